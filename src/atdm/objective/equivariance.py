"""The objective: denoising, plus a regularizer that asks the prediction to move with the state (equivariance).

``L = ||eps(x_t) - eps||^2 + lambda_t ||eps(x_t + sigma_t delta) - [eps(x_t) + delta]||^2`` (arXiv 2505.21742).
Invariance, the ablation that must fail, drops the ``+ delta``. Everything is a mean over an item's dimensions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..diffusion.process import Process
from ..errors import UserError, unknown
from ..nets import call
from ..nets.passes import RandomState, frozen, known_random, remember_random
from .perturb import Perturbation, PublishedRadius, PublishedWeight, Radius, Weight
from .terms import Draws, Loss, Terms, counted, full, item_mean

ASCENTS = ("prediction", "residual")


class _Kind(NamedTuple):
    pushes: bool
    adversarial: bool
    equivariant: bool


KINDS: dict[str, _Kind] = {
    "ddpm": _Kind(pushes=False, adversarial=False, equivariant=False),
    "robust_rand": _Kind(pushes=True, adversarial=False, equivariant=True),
    "robust_adv": _Kind(pushes=True, adversarial=True, equivariant=True),
    "inv_rand": _Kind(pushes=True, adversarial=False, equivariant=False),
    "inv_adv": _Kind(pushes=True, adversarial=True, equivariant=False),
}


@dataclass(frozen=True)
class Objective(Loss):
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
        every: push in one of so many steps, with so many times the weight: on average the same loss, for less. Which
            steps, their timesteps decide, so that all processes and a resumed run agree.
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
    every: int = 1
    seed: int = 0
    _streams: dict[torch.device, torch.Generator] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.name not in KINDS:
            raise unknown("objective", self.name, KINDS)
        if self.ascent not in ASCENTS:
            raise unknown("ascent", self.ascent, ASCENTS)
        if self.gate is not None and self.gate <= 0:
            raise UserError(f"The gate is {self.gate}. Expected a noise level sigma_t/alpha_t > 0, or none.")
        if self.every < 1:
            raise UserError(f"every is {self.every}. Expected an integer >= 1: push in one of so many steps.")
        if self.kind.adversarial and self.perturbation.steps < 1:
            raise UserError(
                f"{self.name} has {self.perturbation.steps} attack steps. Expected at least 1; "
                f"for a random push use {self.name.replace('adv', 'rand')}."
            )
        if self.kind.pushes and not self.kind.adversarial and self.perturbation.steps:
            object.__setattr__(self, "perturbation", Perturbation(self.perturbation.norm, steps=0))

    @property
    def kind(self) -> _Kind:
        return KINDS[self.name]

    def passes(self) -> dict[str, float]:
        share = 1.0 if self.gate is None else self.process.share_below(self.gate)
        pushed = share / self.every if self.kind.pushes else 0.0
        attacked = pushed * self.perturbation.steps
        if self.kind.adversarial and self._stacks(share):
            attacked += pushed  # the clean rows beside the pushed ones
        return counted(1 + pushed + attacked, 1 + pushed, attacked)

    def own(
        self, t: Int[Tensor, "batch"], shape: tuple[int, ...], device: torch.device, stream: torch.Generator
    ) -> dict[str, Tensor]:
        if not self.kind.pushes or (self.every > 1 and int(t.sum()) % self.every):
            return {}
        beta = 1 - torch.rand(shape[0], generator=stream, device=device)
        return {"beta": beta, "start": self.perturbation.start(shape, stream, device)}

    def __call__(
        self,
        model: Callable[..., Any],
        x0: Float[Tensor, "batch *dims"],
        *,
        draws: Draws | None = None,
        generator: torch.Generator | None = None,
        levels: Float[Tensor, "batch"] | None = None,
        **conditioning: Any,
    ) -> Terms:
        draws = draws or self.draw(x0.shape, x0.device, generator)
        t, process = draws.t.to(x0.device, non_blocking=True), self.process
        x_t = process.mix(x0, draws.noise, t)
        rows = self._rows(draws, x0.device)
        if rows is None or draws.beta is None or draws.start is None:
            output, push = _Batch(model, x_t, t, process.time(t), conditioning).call(model, x_t), None
        else:
            reach = self.radius.reach(process, t[rows], draws.beta[rows])
            output, push = self._push(
                _Batch(model, x_t, t, process.time(t), conditioning), rows, draws.beta, draws.start
            )
        denoise = item_mean((output - process.target(x0, draws.noise, t)).square()) * process.output_weight(t)
        if push is None:
            return Terms.unpushed(t, denoise)

        zero = torch.zeros_like(denoise, requires_grad=False)
        target = push.clean.detach() if self.detach_target else push.clean
        residual = push.moved - (target + push.delta if self.kind.equivariant else target)

        def spread(values: Tensor) -> Tensor:
            return values if isinstance(rows, slice) else zero.index_put((rows,), values.to(zero.dtype))

        return Terms(
            t,
            denoise,
            spread(item_mean(residual.square())),
            spread(self.every * self.weight(reach, push.delta) * process.eps_weight(t[rows])),
            spread(torch.ones_like(push.r)).bool(),
            spread(push.r),
            spread(item_mean(push.delta.square()).sqrt()),
            spread(self.perturbation.ball.used(push.delta, push.r)),
        )

    def _rows(self, draws: Draws, device: torch.device) -> Int[Tensor, "pushed"] | slice | None:
        """The rows to push, None where there are none. Found on the CPU, so that no accelerator is waited for."""
        if not self.kind.pushes or self.gate is None:
            return slice(None) if self.kind.pushes else None
        rows = (self.process.ratio(draws.t.cpu()) < self.gate).nonzero().squeeze(1)
        return rows.to(device, non_blocking=True) if len(rows) else None

    def _push(
        self, batch: _Batch, rows: Tensor | slice, beta: Float[Tensor, "batch"], start: Float[Tensor, "batch *dims"]
    ) -> tuple[Tensor, _Push]:
        """The output for the batch, and the push of its ``rows``."""
        if isinstance(rows, slice):
            return self._pass(batch, rows, self.radius(self.process, batch.t, beta), start)
        n, padded = len(rows), _padded(rows, len(batch.t))
        r = self.radius(self.process, batch.t[padded], beta[padded])
        output, push = self._pass(batch, padded, r, start[padded])
        return output, _Push(*(values[:n] for values in push))

    def _pass(self, batch: _Batch, rows: Tensor | slice, r: Tensor, start: Tensor) -> tuple[Tensor, _Push]:
        if self._stacks(len(r) / len(batch.t)) and not known_random(batch.model):
            before = RandomState(batch.x.device)
            found = self._stacked(batch, rows, start, r)
            if before == RandomState(batch.x.device):
                return found
            before.restore()  # stacked rows cannot share dropout masks
            remember_random(batch.model)
        return self._one_by_one(batch, rows, start, r)

    def _stacks(self, share: float) -> bool:
        """Whether to stack passes when this ``share`` of a batch is pushed.

        Stacked, an attack predicts the clean rows once more: cheaper than passes of their own only where they are few.
        """
        return not self.kind.adversarial or share <= 0.25

    def _stacked(self, batch: _Batch, rows: Tensor | slice, start: Tensor, r: Tensor) -> tuple[Tensor, _Push]:
        """The attack on the rows' clean and pushed states at once, then the whole batch and its pushed rows at once."""
        process, n = self.process, len(r)
        x, t, everything = batch.x[rows], batch.t[rows], torch.arange(len(batch.t), device=batch.t.device)
        rows = everything[rows]
        shift = process.sigma(t, x)
        clean: Tensor | None = None

        def gain(delta: Tensor) -> Tensor:
            nonlocal clean
            x_moved = x + shift * delta
            if clean is None:
                clean, moved = batch.call(attacked, torch.cat([x, x_moved]), torch.cat([rows, rows])).split(n)
                clean = process.to_eps(clean, x, t).detach()
            else:
                moved = batch.call(attacked, x_moved, rows)
            return self._gain(process.to_eps(moved, x_moved, t) - clean, delta)

        with frozen(batch.model) as attacked:
            delta = self.perturbation.find(gain, start, r)
        x_moved = x + shift * delta
        both = batch.call(batch.model, torch.cat([batch.x, x_moved]), torch.cat([everything, rows]))
        output, moved = both.split([len(batch.t), n])
        return output, _Push(r, delta, process.to_eps(output[rows], x, t), process.to_eps(moved, x_moved, t))

    def _one_by_one(self, batch: _Batch, rows: Tensor | slice, start: Tensor, r: Tensor) -> tuple[Tensor, _Push]:
        """A pass at a time; all those over the rows start from one random state, so that they share dropout masks."""
        process = self.process
        x, t = batch.x[rows], batch.t[rows]
        shift = process.sigma(t, x)
        before = RandomState(x.device)
        output = batch.call(batch.model, batch.x)
        after = RandomState(x.device)
        random = before != after

        def predict(model: Callable[..., Any], x: Tensor) -> Tensor:
            if random:
                before.restore()
            return process.to_eps(batch.call(model, x, rows), x, t)

        alone = random and not isinstance(rows, slice)  # the masks of the whole batch are not those of its rows
        clean = predict(batch.model, x) if alone else process.to_eps(output[rows], x, t)
        fixed = clean.detach()
        with frozen(batch.model) as attacked:
            delta = self.perturbation.find(
                lambda delta: self._gain(predict(attacked, x + shift * delta) - fixed, delta), start, r
            )
        moved = predict(batch.model, x + shift * delta)
        if random:
            after.restore()
        return output, _Push(r, delta, clean, moved)

    def _gain(self, moved: Float[Tensor, "pushed *dims"], delta: Tensor) -> Float[Tensor, "pushed"]:
        """What the attack raises, where the prediction ``moved`` by so much."""
        return item_mean((moved - delta if self.ascent == "residual" else moved).square())


class _Push(NamedTuple):
    """Of the pushed rows: radius, push, and the noise predicted before and after it."""

    r: Float[Tensor, "pushed"]
    delta: Float[Tensor, "pushed *dims"]
    clean: Float[Tensor, "pushed *dims"]
    moved: Float[Tensor, "pushed *dims"]


class _Batch(NamedTuple):
    """Noisy states, and what their network is given beside them."""

    model: Callable[..., Any]
    x: Float[Tensor, "batch *dims"]
    t: Int[Tensor, "batch"]
    time: Int[Tensor, "batch"] | Float[Tensor, "batch"]  # what the network is told
    conditioning: dict[str, Any]

    def call(self, model: Callable[..., Any], x: Tensor, rows: Tensor | slice = slice(None)) -> Tensor:
        """The output of ``model`` at states ``x`` that belong to these ``rows``."""
        conditioning = {k: _follow(v, rows, len(self.t)) for k, v in self.conditioning.items()}
        return full(call(model, x, self.time[rows], **conditioning))


def _padded(rows: Int[Tensor, "pushed"], batch: int) -> Int[Tensor, "padded"]:
    """``rows`` with the last repeated up to one of few lengths: kernels are prepared anew for each size they meet."""
    n = len(rows)
    unit = 4 if n <= 16 else 8 if n <= 64 else 16
    length = max(n, min(-(-n // unit) * unit, batch // 4))
    return torch.cat([rows, rows[-1:].expand(length - n)]) if length > n else rows


def _follow(value: Any, rows: Tensor | slice, batch: int) -> Any:
    """The conditioning of the pushed rows; anything without one row per sample is passed on as it is."""
    if isinstance(value, Tensor) and value.dim() > 0 and len(value) == batch:
        return value[rows]
    if isinstance(value, dict):
        return {k: _follow(v, rows, batch) for k, v in value.items()}
    return value
