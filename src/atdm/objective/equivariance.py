"""The objective: denoising, plus a regularizer that asks the prediction to move with the state (equivariance).

``L = ||eps(x_t) - eps||^2 + lambda_t ||eps(x_t + sigma_t delta) - [eps(x_t) + delta]||^2`` (arXiv 2505.21742).
Invariance, the ablation that must fail, drops the ``+ delta``. Everything is a mean over an item's dimensions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..diffusion.process import PerItem, Process, States, Timesteps
from ..errors import UserError
from ..nets.precision import half_precision
from ..spec import build
from ..text import changed
from . import auto as automatic
from .kinds import KINDS, Kind, due, require_kind, require_options
from .passes import Attack, Moves, Passes, cost, items_below, too_fine
from .perturb import RADII, WEIGHTS, Perturbation, PublishedRadius, PublishedWeight, Radius, Weight
from .terms import Draws, Loss, Terms, item_mean

EXAMPLES = {"radius": "constant:r=0.3", "weight": "relative:k=2"}


@dataclass(frozen=True)
class Objective(Loss):
    """A training loss by one word: ``ddpm``, ``robust_rand``, ``robust_adv``, ``inv_rand`` or ``inv_adv``.

    Examples:
        >>> objective = Objective("robust_adv", noise_scheduler)
        >>> loss = objective(unet, x0).loss.mean()

    :meth:`auto` chooses from the training data.

    Args:
        name: which objective.
        process: the forward process, or a diffusers scheduler of it; its ``prediction`` says what the network outputs.
        radius, weight: how far to perturb and how much it counts, or their specs, such as ``constant:r=0.3`` and ``relative:k=2``.
        perturbation: norm, steps and step length of the perturbation; random objectives use its norm only.
        gate: perturb only where ``sigma_t / alpha_t < gate`` (data units); None perturbs everywhere.
        ascent: what the attack raises: how much the ``prediction`` moves (as published) or the ``residual`` of equivariance.
        detach_target: stop the gradient through the clean prediction in the target.
        every: apply the regularizer every N steps, scaled by N: on average the same loss. The ``step`` of a call
            decides which steps, or its timesteps do.
        seed: seeds the objective's own generator for beta and the start, used when a call brings no ``perturbation_generator``.
        start: share of the training that is plain denoising; calls then need ``step`` (from 0) and ``steps``.
        note: what :meth:`auto` chose, in words.
    """

    name: str
    process: Process | Any
    radius: Radius | Any = PublishedRadius()
    weight: Weight | Any = PublishedWeight()
    perturbation: Perturbation = Perturbation()
    gate: float | None = None
    ascent: str = "prediction"
    detach_target: bool = False
    every: int = 1
    seed: int = 0
    start: float = 0.0
    note: str = field(default="", repr=False)
    _generators: dict[torch.device, torch.Generator] = field(default_factory=dict, repr=False, compare=False)

    __repr__ = changed

    def __post_init__(self) -> None:
        require_kind(self.name)
        for option, registry in (("radius", RADII), ("weight", WEIGHTS)):
            given = getattr(self, option)
            if isinstance(given, str):
                object.__setattr__(self, option, build(option, given, registry))
            elif not callable(given):
                raise UserError(
                    f"The {option} is {given}. Expected a {option} or its spec, such as {EXAMPLES[option]}."
                )
        require_options(self.name, self.ascent, self.gate, self.every, self.perturbation.steps)
        if not isinstance(self.process, Process):
            object.__setattr__(self, "process", Process.from_scheduler(self.process))
        if self.kind.perturbs and not self.kind.adversarial and self.perturbation.steps:
            object.__setattr__(self, "perturbation", Perturbation(self.perturbation.norm, steps=0))

    auto = classmethod(automatic.loss_for)

    @property
    def kind(self) -> Kind:
        return KINDS[self.name]

    def passes(self) -> dict[str, float]:
        share = 1.0 if self.gate is None else self.process.share_below(self.gate)
        return cost(share if self.kind.perturbs else 0.0, self.perturbation.steps, self.every)

    def due(self, t: Timesteps) -> bool:
        return self.every == 1 or int(t.sum()) % self.every == 0

    def draw_extra(
        self, t: Timesteps, shape: tuple[int, ...], device: torch.device, generator: torch.Generator
    ) -> dict[str, Tensor]:
        if not self.kind.perturbs:
            return {}
        beta = 1 - torch.rand(shape[0], generator=generator, device=device)
        return {"beta": beta, "start": self.perturbation.start(shape, generator, device)}

    def __call__(
        self,
        model: Callable[..., Any],
        x0: States,
        *,
        draws: Draws | None = None,
        generator: torch.Generator | None = None,
        levels: PerItem | None = None,
        step: int | None = None,
        steps: int | None = None,
        **conditioning: Any,
    ) -> Terms:
        if draws is None:
            draws = self.draw(x0.shape, x0.device, generator, perturbs=due(self.start, self.every, step, steps))
        process, t = self.process, draws.t.to(x0.device, non_blocking=True)
        passes = Passes(model, process, process.mix(x0, draws.noise, t), t, conditioning)

        rows = items_below(self.gate, process, draws.t) if self.kind.perturbs else None
        # None are below the gate, or this step does not perturb.
        if rows is None or draws.beta is None or draws.start is None:
            return Terms.unperturbed(t, self.denoising(passes.output(model, passes.x), x0, draws.noise, t))

        indices = rows if isinstance(rows, slice) else rows.to(x0.device, non_blocking=True)
        reach = self.radius.reach(process, t[indices], draws.beta[indices])
        fine = too_fine(half_precision(model, x0.device), process, draws.t[rows], self.radius)
        attack = Attack(self._perturb, reach.r, draws.start[indices], self.kind.adversarial)
        output, (delta, clean, moved) = passes.perturbed(attack, indices, fine)
        target = clean.detach() if self.detach_target else clean
        residual = moved - (target + delta if self.kind.equivariant else target)
        weight = self.every * self.weight(reach, delta) * process.eps_weight(t[indices])
        return Terms.of_items(
            t,
            self.denoising(output, x0, draws.noise, t),
            indices,
            regularizer=item_mean(residual.square()),
            weight=weight,
            radius=reach.r,
            delta_rms=item_mean(delta.square()).sqrt(),
            at_radius=self.perturbation.ball.used(delta, reach.r),
        )

    def _perturb(self, moves: Moves, r: Float[Tensor, "perturbed"], start: Float[Tensor, "perturbed *dims"]) -> Tensor:
        """delta in the ball that raises ``J = ||eps(x + sigma delta) - eps(x)||^2``, or the residual of equivariance."""

        def gain(delta: Tensor) -> Tensor:
            moved = moves(delta)
            return item_mean((moved - delta if self.ascent == "residual" else moved).square())

        return self.perturbation.find(gain, start, r)
