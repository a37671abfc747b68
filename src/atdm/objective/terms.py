"""What every training loss shares: the randomness of a batch, the named terms of the loss, and the class itself."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ..diffusion.conditioning import of_items
from ..diffusion.process import PerItem, Process, States, Timesteps
from ..errors import UserError
from ..nets import call
from ..nets.precision import full_precision

if TYPE_CHECKING:
    from typing_extensions import Self

Predict = Callable[[Tensor, Tensor], Tensor]
LevelsFrom = Literal["truth", "items", "trusted"] | None


@dataclass(frozen=True)
class Draws:
    """The randomness of one batch; ``t`` may be on the CPU while the rest is elsewhere.

    Args:
        t, noise: what all losses draw alike under one seed.
        beta: a number in (0, 1] for each item: of the radius, or of where a loss moves its timestep.
        start: where each perturbation starts, in the unit ball.
        more: further noise, for losses that need more: of the items' shape, or several such for each item.
        delta: of a loss that keeps its perturbation from one replay to the next: that, in units of the state.
    """

    t: Timesteps
    noise: States
    beta: PerItem | None = None
    start: States | None = None
    more: Float[Tensor, "batch *further"] | None = None
    delta: States | None = None

    def __getitem__(self, items: slice) -> Draws:
        chosen: dict[str, Any] = {k: None if v is None else v[items] for k, v in vars(self).items()}
        return Draws(**chosen)

    def need(self, name: str) -> Tensor:
        """What a loss cannot do without.

        Raises:
            UserError: the draws are those of another loss.
        """
        if (found := getattr(self, name)) is None:
            raise UserError("The draws are of another loss. Expected those of this loss's own draw().")
        return found


@dataclass(frozen=True)
class Terms:
    """Named terms of the loss, one value per sample. The perturbation terms are zero where the regularizer was not applied."""

    t: Timesteps
    denoise: PerItem  # units of the output (a score's: eps units)
    regularizer: PerItem  # before the weight: eps units of a perturbation; another loss's second term
    weight: PerItem  # lambda_t of a perturbation, in the units of the denoising term
    perturbed: Bool[Tensor, "batch"]
    radius: PerItem  # noise units
    delta_rms: PerItem  # noise units
    at_radius: PerItem  # share of the ball's constraint that binds

    @classmethod
    def unperturbed(cls, t: Timesteps, denoise: PerItem) -> Terms:
        """The terms of a loss that only denoises."""
        zero = torch.zeros_like(denoise, requires_grad=False)
        return cls(t, denoise, zero, zero, torch.zeros_like(t, dtype=torch.bool), zero, zero, zero)

    @classmethod
    def of_items(cls, t: Timesteps, denoise: PerItem, indices: Tensor | slice, **perturbed: Tensor) -> Terms:
        """The terms where only these ``indices`` were perturbed, whose own terms follow by name."""
        zero = torch.zeros_like(denoise, requires_grad=False)

        def spread(values: Tensor) -> Tensor:
            return values if isinstance(indices, slice) else zero.index_put((indices,), values.to(zero.dtype))

        made = spread(torch.ones_like(perturbed["radius"])).bool()
        return cls(t, denoise, perturbed=made, **{name: spread(values) for name, values in perturbed.items()})

    @property
    def loss(self) -> PerItem:
        """``denoise + lambda_t regularizer``; reduce it with ``.mean()``."""
        return self.denoise + self.weight * self.regularizer


class Loss(ABC):
    """A training loss. Subclasses are frozen dataclasses with a process, their constants and the seed of their own generator.

    Attributes:
        replays: optimizer steps on each batch; :meth:`next_draws` gives the randomness of the next one.
        levels_from: where the noise that each item holds already is to come from: the truth about the data, or an estimate
            from the items (:class:`atdm.noise.Gauge`), or the level from which on each is as good as a trusted one; None: it need
            not be known.
    """

    process: Process
    seed: int
    _generators: dict[torch.device, torch.Generator]
    replays: int = 1
    levels_from: ClassVar[LevelsFrom] = None

    def draw(
        self,
        shape: torch.Size | tuple[int, ...],
        device: torch.device | str = "cpu",
        generator: torch.Generator | None = None,
        perturbation_generator: torch.Generator | None = None,
        t_generator: torch.Generator | None = None,
        perturbs: bool | None = None,
    ) -> Draws:
        """The randomness for a batch of ``shape``: t and noise from ``generator``, the rest from the loss's own generator.

        So every loss sees the same timesteps and noise under the same seed. t comes from ``t_generator`` where one
        is given; drawn on the CPU, it tells which rows a gate perturbs without waiting for an accelerator. The loss's own generator
        differs from process to process where torch.distributed runs.

        Args:
            perturbs: whether this step draws what is the loss's own; None: as :meth:`due` says.
        """
        device = torch.device(device)
        t = self.process.draw(shape[0], t_generator or generator)
        noise = torch.randn(shape, generator=generator, device=device)
        if perturbation_generator is None and device not in self._generators:
            self._generators[device] = torch.Generator(device).manual_seed(self.seed + 104_729 * rank())
        extra_generator = perturbation_generator or self._generators[device]
        extra = (
            self.draw_extra(t, tuple(shape), device, extra_generator)
            if (self.due(t) if perturbs is None else perturbs)
            else {}
        )
        return Draws(t, noise, **extra)

    def denoising(self, output: States, x0: States, noise: States, t: Timesteps) -> PerItem:
        """ddpm's term for the network's ``output`` at states of ``x0`` with this ``noise``."""
        return item_mean((output - self.process.target(x0, noise, t)).square()) * self.process.output_weight(t)

    def due(self, t: Timesteps) -> bool:
        """Whether a step with these timesteps draws what is the loss's own."""
        return True

    def draw_extra(
        self, t: Timesteps, shape: tuple[int, ...], device: torch.device, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """What the loss itself draws for these timesteps, by the names of :class:`Draws`."""
        return {}

    def at(self, step: int | None, steps: int | None) -> Self:
        """The loss in optimizer step ``step`` (from 0) of ``steps``, where it changes in the course of the training.

        Raises:
            UserError: it does, and the step is not known.
        """
        return self

    def next_draws(self, draws: Draws) -> Draws:
        """The randomness of the next step on the same batch, after a backward pass of the last."""
        return draws

    def require_items(self, item_shape: tuple[int, ...]) -> None:
        """Refuse items that the loss cannot learn from (:class:`~atdm.errors.UserError`)."""
        return

    @abstractmethod
    def passes(self) -> dict[str, float]:
        """Network passes per sample of a training step, and the floor of its cost over ddpm's that they imply.

        A forward pass counts 1, a backward pass 2, a backward pass to the input alone 1; perturbed timesteps count by share.
        Networks without dropout; see docs/performance.md.
        """

    @abstractmethod
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
        """The terms for images ``x0`` (in [-1, 1]) or vectors, as training sees them.

        Args:
            model: any ``model(x, t, **conditioning)`` that returns a tensor or a diffusers output and treats each sample
                by itself (so no batch normalization): passes may be stacked into one batch.
            draws: the randomness; drawn here with ``generator`` (None: torch's global generator) when not given.
            levels: standard deviation of the Gaussian noise in each item; losses that know nothing of it take no notice.
            step, steps: of the training, from 0, and how many there are; losses without a schedule take no notice.
            conditioning: passed to the model; tensors with one row per sample follow their samples.
        """


@dataclass(frozen=True)
class Baseline(Loss):
    """A loss from another paper, on the same path as ours: same process, batches, timesteps and noise."""

    process: Process
    seed: int = field(default=0, kw_only=True)
    full_precision: ClassVar[bool] = False  # autocast would leave rounding errors of what the loss subtracts
    _generators: dict[torch.device, torch.Generator] = field(
        default_factory=dict, init=False, repr=False, compare=False, kw_only=True
    )

    def passes(self) -> dict[str, float]:
        return counted(1, 1)

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
        draws = draws or self.draw(x0.shape, x0.device, generator)
        now = self.at(step, steps)
        items, t, levels = now.placed(x0, draws.t.to(x0.device, non_blocking=True), draws, levels)
        if items is not None:
            x0, levels, conditioning = (of_items(value, items, len(t)) for value in (x0, levels, conditioning))

        def predict(x_t: Tensor, t: Tensor) -> Tensor:
            return predicted(model, x_t, self.process.time(t), **conditioning)

        with full_precision(model, x0.device) if self.full_precision else nullcontext():
            return now.terms(predict, x0, t, draws, levels)

    def placed(
        self, x0: States, t: Timesteps, draws: Draws, levels: PerItem | None
    ) -> tuple[Tensor | None, Timesteps, PerItem | None]:
        """Which items train (None: all, as they are), at which timesteps, and the levels of the items of the batch."""
        return None, t, levels

    @abstractmethod
    def terms(self, predict: Predict, x0: States, t: Timesteps, draws: Draws, levels: PerItem | None) -> Terms:
        """The terms where ``predict(x_t, t)`` is the network's output; see :meth:`Loss.__call__`."""


@dataclass(frozen=True)
class Noisier(Baseline):
    """A baseline that draws more noise of the items' shape than all losses do: ``draws.more``."""

    def draw_extra(
        self, t: Timesteps, shape: tuple[int, ...], device: torch.device, generator: torch.Generator
    ) -> dict[str, Tensor]:
        return {"more": torch.randn(shape, generator=generator, device=device)}


def counted(forwards: float, backwards: float, input_backwards: float = 0.0) -> dict[str, float]:
    """What :meth:`Loss.passes` returns for so many passes."""
    floor = (forwards + 2 * backwards + input_backwards) / 3
    named = {"forwards": forwards, "backwards": backwards, "input_backwards": input_backwards}
    return {**named, "floor_over_ddpm": floor}


def predicted(model: Callable[..., Any], x: Tensor, time: Tensor, **conditioning: Any) -> Tensor:
    """The network's output at states ``x`` in at least single precision; a network in half precision sees them so.

    Raises:
        UserError: the output has another shape than the states.
    """
    weight = next(model.parameters(), None) if isinstance(model, nn.Module) else None
    half = weight is not None and weight.dtype in (torch.float16, torch.bfloat16)
    output = call(model, x.to(weight.dtype) if half and weight is not None else x, time, **conditioning)
    if output.shape != x.shape:
        twice = output.dim() == x.dim() and output.shape[1] == 2 * x.shape[1]
        hint = " Twice the channels are learned variances, which this loss does not train." if twice else ""
        raise UserError(
            f"The network turns {list(x.shape)} into {list(output.shape)}. Expected an output of the same shape.{hint}"
        )
    return output if output.dtype == torch.float64 else output.float()


def first_step(start: float, before: str, step: int | None, steps: int | None) -> int:
    """The first of ``steps`` optimizer steps after the share ``start`` of the training.

    Args:
        before: what the loss does until then.

    Raises:
        UserError: the step or their number is not known, and start is not 0.
    """
    if start == 0:
        return 0
    if step is None or steps is None:
        raise UserError(
            f"This objective {before} for the first {start:.0%} of the training. "
            "Expected objective(model, x, step=step, steps=steps), the number of the step from 0 and how many there are."
        )
    return round(start * steps)


def item_mean(values: States) -> PerItem:
    """The mean over an item's dimensions."""
    return values.flatten(1).mean(1)


def world() -> int:
    """How many processes train together."""
    return torch.distributed.get_world_size() if _distributed() else 1


def rank() -> int:
    """Which of them this one is."""
    return torch.distributed.get_rank() if _distributed() else 0


def _distributed() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()
