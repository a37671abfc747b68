"""The objective: denoising, plus a regularizer that asks the prediction to move with the state (equivariance).

``L = ||eps(x_t) - eps||^2 + lambda_t ||eps(x_t + sigma_t delta) - [eps(x_t) + delta]||^2`` (arXiv 2505.21742, eq. of section 4).
Invariance, the ablation that must fail, drops the ``+ delta``. Everything is a mean over an item's dimensions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .errors import UserError, unknown
from .nets import call
from .perturb import Perturbation, PublishedRadius, PublishedWeight, Radius, Weight
from .process import Process

ASCENTS = ("prediction", "residual")


class _Kind(NamedTuple):
    pushes: bool
    adversarial: bool
    equivariant: bool


OBJECTIVES: dict[str, _Kind] = {
    "ddpm": _Kind(pushes=False, adversarial=False, equivariant=False),
    "robust_rand": _Kind(pushes=True, adversarial=False, equivariant=True),
    "robust_adv": _Kind(pushes=True, adversarial=True, equivariant=True),
    "inv_rand": _Kind(pushes=True, adversarial=False, equivariant=False),
    "inv_adv": _Kind(pushes=True, adversarial=True, equivariant=False),
}


@dataclass(frozen=True)
class Draws:
    """The randomness of one batch. ``beta`` and ``start`` are None when the objective does not push."""

    t: Int[Tensor, "batch"]
    noise: Float[Tensor, "batch *dims"]
    beta: Float[Tensor, "batch"] | None = None
    start: Float[Tensor, "batch *dims"] | None = None

    def __getitem__(self, rows: slice) -> Draws:
        return Draws(*(None if d is None else d[rows] for d in (self.t, self.noise, self.beta, self.start)))  # type: ignore[arg-type]


@dataclass(frozen=True)
class Terms:
    """Named terms of the loss, one value per sample. The push terms are zero where no push was made."""

    t: Int[Tensor, "batch"]
    denoise: Float[Tensor, "batch"]
    regularizer: Float[Tensor, "batch"]  # eps units, before lambda_t
    weight: Float[Tensor, "batch"]  # lambda_t
    pushed: Bool[Tensor, "batch"]
    radius: Float[Tensor, "batch"]  # noise units
    delta_rms: Float[Tensor, "batch"]  # noise units
    at_radius: Float[Tensor, "batch"]  # share of the ball's constraint that binds

    @property
    def loss(self) -> Float[Tensor, "batch"]:
        """``denoise + lambda_t regularizer``; reduce it with ``.mean()``."""
        return self.denoise + self.weight * self.regularizer


@dataclass(frozen=True)
class Objective:
    """A training loss by one word: ``ddpm``, ``robust_rand``, ``robust_adv``, ``inv_rand`` or ``inv_adv``.

    >>> objective = Objective("robust_adv", Process.from_scheduler(noise_scheduler))
    >>> loss = objective(unet, x0).loss.mean()

    Args:
        name: which objective.
        process: the forward process; its ``prediction`` says what the network outputs.
        radius, weight: how far to push and how much it counts.
        perturbation: norm, steps and step length of the push; random objectives use its norm only.
        gate: push only where ``sigma_t / alpha_t < gate`` (data units); None pushes everywhere.
        ascent: what the attack raises: how much the ``prediction`` moves (as published) or the ``residual`` of equivariance.
        detach_target: stop the gradient through the clean prediction in the target.
        seed: seeds the objective's own stream for beta and the start, used when a call brings no ``push_generator``.
    """

    name: str
    process: Process
    radius: Radius = PublishedRadius()
    weight: Weight = PublishedWeight()
    perturbation: Perturbation = Perturbation()
    gate: float | None = None
    ascent: str = "prediction"
    detach_target: bool = False
    seed: int = 0
    _streams: dict[torch.device, torch.Generator] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.name not in OBJECTIVES:
            raise unknown("objective", self.name, OBJECTIVES)
        if self.ascent not in ASCENTS:
            raise unknown("ascent", self.ascent, ASCENTS)
        if self.gate is not None and self.gate <= 0:
            raise UserError(f"The gate is {self.gate}. Expected a noise level sigma_t/alpha_t > 0, or none.")
        if self.kind.adversarial and self.perturbation.steps < 1:
            raise UserError(
                f"{self.name} has {self.perturbation.steps} attack steps. Expected at least 1; "
                f"for a random push use {self.name.replace('adv', 'rand')}."
            )
        if self.kind.pushes and not self.kind.adversarial and self.perturbation.steps:
            object.__setattr__(self, "perturbation", Perturbation(self.perturbation.norm, steps=0))

    @property
    def kind(self) -> _Kind:
        return OBJECTIVES[self.name]

    def passes(self) -> dict[str, float]:
        """Network passes per sample of a training step, and the floor of its cost over ddpm's that they imply.

        A forward pass counts 1, a backward pass 2, a backward pass to the input alone 1; pushed timesteps count by share.
        """
        share = 1.0 if self.gate is None else self.process.timestep_at(self.gate) / self.process.steps
        pushed = share if self.kind.pushes else 0.0
        attacked = pushed * self.perturbation.steps
        counted = {"forwards": 1 + pushed + attacked, "backwards": 1 + pushed, "input_backwards": attacked}
        floor = (counted["forwards"] + 2 * counted["backwards"] + counted["input_backwards"]) / 3
        return {**counted, "floor_over_ddpm": floor}

    def draw(
        self,
        shape: torch.Size | tuple[int, ...],
        device: torch.device | str = "cpu",
        generator: torch.Generator | None = None,
        push_generator: torch.Generator | None = None,
    ) -> Draws:
        """The randomness for a batch of ``shape``: t and noise from ``generator``, the push from its own stream.

        So every objective sees the same timesteps and noise under the same seed.
        """
        device = torch.device(device)
        t = torch.randint(self.process.steps, (shape[0],), generator=generator, device=device)
        noise = torch.randn(shape, generator=generator, device=device)
        if not self.kind.pushes:
            return Draws(t, noise)
        stream = push_generator or self._streams.setdefault(device, torch.Generator(device).manual_seed(self.seed))
        beta = 1 - torch.rand(shape[0], generator=stream, device=device)
        return Draws(t, noise, beta, self.perturbation.start(tuple(shape), stream, device))

    def __call__(
        self,
        model: Callable[..., Any],
        x0: Float[Tensor, "batch *dims"],
        *,
        draws: Draws | None = None,
        generator: torch.Generator | None = None,
        **conditioning: Any,
    ) -> Terms:
        """The terms for clean images ``x0`` (in [-1, 1]) or vectors.

        Args:
            model: any ``model(x, t, **conditioning)`` that returns a tensor or a diffusers output.
            draws: the randomness; drawn here with ``generator`` (None: torch's global stream) when not given.
            conditioning: passed to the model; tensors with one row per sample follow their samples.
        """
        draws = draws or self.draw(x0.shape, x0.device, generator)
        t, process = draws.t, self.process
        x_t = process.mix(x0, draws.noise, t)

        before = _RandomState(x0.device)
        output = call(model, x_t, t, **conditioning)
        denoise = _item_mean((output.float() - process.target(x0, draws.noise, t)).square())
        zero = torch.zeros_like(denoise, requires_grad=False)
        if draws.start is None or draws.beta is None:
            return Terms(t, denoise, zero, zero, torch.zeros_like(t, dtype=torch.bool), zero, zero, zero)

        after = _RandomState(x0.device)
        everywhere = self.gate is None
        pushed = torch.ones_like(t, dtype=torch.bool) if self.gate is None else process.ratio(t) < self.gate
        rows = slice(None) if everywhere else pushed.nonzero().squeeze(1)
        if not everywhere and len(rows) == 0:  # type: ignore[arg-type]
            return Terms(t, denoise, zero, zero, pushed, zero, zero, zero)
        t, x_t, beta, start = t[rows], x_t[rows], draws.beta[rows], draws.start[rows]
        if not everywhere:
            conditioning = {k: _follow(v, rows, len(x0)) for k, v in conditioning.items()}

        # Every pass over the pushed rows starts from the same random state, so all see the same dropout masks.
        def predict(x: Tensor) -> Tensor:
            before.restore()
            return process.to_eps(call(model, x, t, **conditioning).float(), x, t)

        reuse = everywhere or before == after  # a network that drew nothing gives the rows the same prediction alone
        clean = process.to_eps(output[rows].float(), x_t, t) if reuse else predict(x_t)
        shift = process.sigma(t, x_t)
        fixed = clean.detach()

        def gain(delta: Tensor) -> Tensor:
            moved = predict(x_t + shift * delta) - fixed
            return _item_mean((moved - delta if self.ascent == "residual" else moved).square())

        r = self.radius(process, t, beta)
        delta = self.perturbation.find(gain, start, r)
        target = fixed if self.detach_target else clean
        residual = predict(x_t + shift * delta) - (target + delta if self.kind.equivariant else target)
        after.restore()

        def spread(values: Tensor) -> Tensor:
            return values if everywhere else zero.index_put((rows,), values)  # type: ignore[arg-type]

        return Terms(
            draws.t,
            denoise,
            spread(_item_mean(residual.square())),
            spread(self.weight(r, delta)),
            pushed,
            spread(r),
            spread(_item_mean(delta.square()).sqrt()),
            spread(self.perturbation.ball.used(delta, r)),
        )


def _item_mean(values: Float[Tensor, "batch *dims"]) -> Float[Tensor, "batch"]:
    return values.flatten(1).mean(1)


def _follow(value: Any, rows: Tensor | slice, batch: int) -> Any:
    """The conditioning of the pushed rows; anything without one row per sample is passed on as it is."""
    if isinstance(value, Tensor) and value.dim() > 0 and len(value) == batch:
        return value[rows]
    if isinstance(value, dict):
        return {k: _follow(v, rows, batch) for k, v in value.items()}
    return value


class _RandomState:
    """torch's global random state on the CPU and on one device: what dropout draws from."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.cpu = torch.get_rng_state()
        self.accelerator = torch.cuda.get_rng_state(device) if device.type == "cuda" else None

    def restore(self) -> None:
        torch.set_rng_state(self.cpu)
        if self.accelerator is not None:
            torch.cuda.set_rng_state(self.accelerator, self.device)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, _RandomState):
            return NotImplemented
        same = torch.equal(self.cpu, other.cpu)
        if self.accelerator is not None and other.accelerator is not None:
            same = same and torch.equal(self.accelerator, other.accelerator)
        return same

    __hash__ = None  # type: ignore[assignment]
