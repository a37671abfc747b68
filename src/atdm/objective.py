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
from .passes import RandomState, frozen, known_random, remember_random
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
    """The randomness of one batch; ``t`` may be on the CPU while the rest is elsewhere. ``beta`` and ``start`` are None when the objective does not push."""

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
    denoise: Float[Tensor, "batch"]  # units of the output (a score's: eps units)
    regularizer: Float[Tensor, "batch"]  # eps units, before lambda_t
    weight: Float[Tensor, "batch"]  # lambda_t, in the units of the denoising term
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
        Networks without dropout; see docs/performance.md.
        """
        share = 1.0 if self.gate is None else self.process.share_below(self.gate)
        pushed = share if self.kind.pushes else 0.0
        attacked = pushed * self.perturbation.steps
        if self.kind.adversarial and self._stacks(share):
            attacked += pushed  # the clean rows beside the pushed ones
        counted = {"forwards": 1 + pushed + attacked, "backwards": 1 + pushed, "input_backwards": attacked}
        floor = (counted["forwards"] + 2 * counted["backwards"] + counted["input_backwards"]) / 3
        return {**counted, "floor_over_ddpm": floor}

    def draw(
        self,
        shape: torch.Size | tuple[int, ...],
        device: torch.device | str = "cpu",
        generator: torch.Generator | None = None,
        push_generator: torch.Generator | None = None,
        t_generator: torch.Generator | None = None,
    ) -> Draws:
        """The randomness for a batch of ``shape``: t and noise from ``generator``, the push from its own stream.

        So every objective sees the same timesteps and noise under the same seed. t comes from ``t_generator`` where one
        is given; drawn on the CPU, it tells which rows a gate pushes without waiting for an accelerator.
        """
        device = torch.device(device)
        source = t_generator or generator
        t = self.process.draw(shape[0], source)
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
            model: any ``model(x, t, **conditioning)`` that returns a tensor or a diffusers output and treats each sample
                by itself (so no batch normalization): passes may be stacked into one batch.
            draws: the randomness; drawn here with ``generator`` (None: torch's global stream) when not given.
            conditioning: passed to the model; tensors with one row per sample follow their samples.
        """
        draws = draws or self.draw(x0.shape, x0.device, generator)
        t, process = draws.t.to(x0.device, non_blocking=True), self.process
        x_t = process.mix(x0, draws.noise, t)
        rows = self._rows(draws, x0.device)
        if rows is None or draws.beta is None or draws.start is None:
            output, push = _Batch(model, x_t, t, process.time(t), conditioning).call(model, x_t), None
        else:
            output, push = self._push(
                _Batch(model, x_t, t, process.time(t), conditioning), rows, draws.beta, draws.start
            )
        denoise = _item_mean((output - process.target(x0, draws.noise, t)).square()) * process.output_weight(t)
        zero = torch.zeros_like(denoise, requires_grad=False)
        if push is None:
            return Terms(t, denoise, zero, zero, torch.zeros_like(t, dtype=torch.bool), zero, zero, zero)

        target = push.clean.detach() if self.detach_target else push.clean
        residual = push.moved - (target + push.delta if self.kind.equivariant else target)

        def spread(values: Tensor) -> Tensor:
            return values if isinstance(rows, slice) else zero.index_put((rows,), values.to(zero.dtype))

        return Terms(
            t,
            denoise,
            spread(_item_mean(residual.square())),
            spread(self.weight(push.r, push.delta) * process.eps_weight(t[rows])),
            spread(torch.ones_like(push.r)).bool(),
            spread(push.r),
            spread(_item_mean(push.delta.square()).sqrt()),
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
        return _item_mean((moved - delta if self.ascent == "residual" else moved).square())


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
        output = call(model, x, self.time[rows], **conditioning)
        return output if output.dtype == torch.float64 else output.float()


def _padded(rows: Int[Tensor, "pushed"], batch: int) -> Int[Tensor, "padded"]:
    """``rows`` with the last repeated up to one of few lengths: kernels are prepared anew for each size they meet."""
    n = len(rows)
    unit = 4 if n <= 16 else 8 if n <= 64 else 16
    length = max(n, min(-(-n // unit) * unit, batch // 4))
    return torch.cat([rows, rows[-1:].expand(length - n)]) if length > n else rows


def _item_mean(values: Float[Tensor, "batch *dims"]) -> Float[Tensor, "batch"]:
    return values.flatten(1).mean(1)


def _follow(value: Any, rows: Tensor | slice, batch: int) -> Any:
    """The conditioning of the pushed rows; anything without one row per sample is passed on as it is."""
    if isinstance(value, Tensor) and value.dim() > 0 and len(value) == batch:
        return value[rows]
    if isinstance(value, dict):
        return {k: _follow(v, rows, batch) for k, v in value.items()}
    return value
