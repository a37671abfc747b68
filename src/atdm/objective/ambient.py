"""Training on items each of which is good only above a noise level of its own: Ambient, with the noise known or not, and Omni."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from ..diffusion.process import PerItem, Process, States, Timesteps, per_item
from ..errors import UserError, expect
from ..noise import Gauge
from ..noise.estimate import noise_alone
from ..noise.filters import THIN
from .huber import item_loss, require_c
from .masked import require_pixels, seen
from .terms import Baseline, Draws, LevelsFrom, Predict, Terms, first_step, item_mean

if TYPE_CHECKING:
    from typing_extensions import Self


@dataclass(frozen=True)
class Ambient(Baseline):
    """Denoise to the clean item through what the network must then say of the noisy one.

    Of ``y = x_0 + s n`` with s known, states ``x_t = alpha_t y + kappa sigma_t z`` with ``kappa^2 = 1 - (alpha_t s / sigma_t)^2``
    are noised clean items of timestep t wherever ``sigma_t / alpha_t > s``, and
    ``E[y | x_t] = (1 - s^2 alpha_t^2 / sigma_t^2) E[x_0 | x_t] + s^2 alpha_t^2 / sigma_t^2  x_t / alpha_t``
    (Daras 2024, arXiv 2404.10177: Tweedie's formula twice). Written for the noise z that was added to y, the network's own eps is to be
    scaled by kappa: the loss is ``||kappa eps_theta(x_t, t) - z||^2``, as in the authors' training of epsilon networks, and
    ddpm's where s = 0. t is drawn as always, given that it is above the level (Daras 2025, arXiv 2506.10038).
    Noise that is not Gaussian counts as part of the item. Below the lowest level of the data nothing is learned: the
    consistency term that the paper adds there is not part of this.

    Args:
        exchange: where the timestep drawn is below an item's level, another item of the batch that may be used there takes its
            place, as in :class:`Omni`, so that low noise is trained as often as always; False, as published, moves the timestep.
        masked: pixels that look replaced are no target, as in :class:`Masked`.
        exchange_from: share of the training before ``exchange`` begins; calls then need ``step`` (from 0) and ``steps``.
        c: of a pseudo-Huber loss in place of the squared error (:class:`~atdm.objective.PseudoHuber`); its least is the
            same where what is left to predict is as often above as below. Infinite, as published: the squared error.
    """

    exchange: bool = False
    masked: bool = False
    exchange_from: float = 0.0
    c: float = math.inf

    levels_from: ClassVar[LevelsFrom] = "truth"

    def __post_init__(self) -> None:
        expect(
            0 <= self.exchange_from < 1, "exchange_from", f"{self.exchange_from:g}", "a share of the training in [0, 1)"
        )
        require_c(self.c)

    def at(self, step: int | None, steps: int | None) -> Self:
        if not self.exchange or self.exchange_from == 0:
            return self
        begun = (step or 0) >= first_step(self.exchange_from, "moves timesteps up", step, steps)
        return dataclasses.replace(self, exchange=begun, exchange_from=0.0)

    def draw_extra(
        self, t: Timesteps, shape: tuple[int, ...], device: torch.device, generator: torch.Generator
    ) -> dict[str, Tensor]:
        return {"beta": 1 - torch.rand(shape[0], generator=generator, device=device)}

    def placed(
        self, x0: States, t: Timesteps, draws: Draws, levels: PerItem | None
    ) -> tuple[Tensor | None, Timesteps, PerItem | None]:
        s, beta = self.levels(x0, levels), draws.need("beta")
        return (
            (*exchanged(self.process, s, t, beta), s) if self.exchange else (None, above(self.process, s, t, beta), s)
        )

    def require_items(self, item_shape: tuple[int, ...]) -> None:
        if self.masked:
            require_pixels("masked=true", item_shape)

    def levels(self, x0: States, given: PerItem | None) -> PerItem:
        """The level of each item, above which it is used.

        Raises:
            UserError: nobody gave them.
        """
        return known(given)

    def terms(self, predict: Predict, x0: States, t: Timesteps, draws: Draws, levels: PerItem | None) -> Terms:
        x0, mean = seen(x0) if self.masked else (x0, item_mean)
        x_t, kappa = noised(self.process, x0, known(levels), t, draws.noise)
        eps = self.process.to_eps(predict(x_t, t), x_t, t)
        squared = (per_item(kappa, eps) * eps - draws.noise).square()
        return Terms.unperturbed(t, item_loss(self.process, squared, self.process.eps_weight(t), t, self.c, mean))


@dataclass(frozen=True)
class AmbientBlind(Ambient):
    """:class:`Ambient` that does not know the levels: they are estimated from the items (:mod:`atdm.noise`).

    Images that are noise alone train at no level.
    """

    levels_from: ClassVar[LevelsFrom] = "items"

    def levels(self, x0: States, given: PerItem | None) -> PerItem:
        levels = self.estimated(x0, given)
        return torch.where(noise_alone(x0, levels), math.inf, levels)

    def estimated(self, x0: States, given: PerItem | None) -> PerItem:
        """The noise std of each item."""
        return known(given)

    def require_items(self, item_shape: tuple[int, ...]) -> None:
        super().require_items(item_shape)
        require_directions("ambient_blind", item_shape, "ambient")


@dataclass(frozen=True)
class AmbientGauged(AmbientBlind):
    """:class:`AmbientBlind` for a loop of one's own: it estimates the levels of a batch itself.

    Args:
        gauge: what estimates them.
        note: what :meth:`Objective.auto` chose, in words.
    """

    gauge: Gauge = field(kw_only=True, repr=False)
    note: str = field(default="", kw_only=True, repr=False)

    def estimated(self, x0: States, given: PerItem | None) -> PerItem:
        return self.gauge.stds(x0, torch.arange(len(x0))) if given is None else given


@dataclass(frozen=True)
class Omni(Ambient):
    """Denoise each item only at noise levels from which on it is as good as a trusted one (Ambient Diffusion Omni, Daras 2025).

    The levels (:mod:`atdm.noise.trusted`) come from a classifier of trusted and other items, whatever is wrong with these. From
    its level on an item is a sample of the clean distribution, noised, so that the loss is ddpm's. The paper writes Ambient's for
    the item with noise up to its level: for fresh noise its mean over that noise has the same gradient, and this one varies less.
    Where the timestep drawn is below an item's level, another item of the batch that may be used there takes its place, so that
    timesteps are drawn as always: with few such items the network is else hardly trained at low noise.
    """

    exchange: bool = True

    levels_from: ClassVar[LevelsFrom] = "trusted"

    def terms(self, predict: Predict, x0: States, t: Timesteps, draws: Draws, levels: PerItem | None) -> Terms:
        x0, mean = seen(x0) if self.masked else (x0, item_mean)
        x_t = self.process.mix(x0, draws.noise, t)
        eps = self.process.to_eps(predict(x_t, t), x_t, t)
        squared = (eps - draws.noise).square()
        return Terms.unperturbed(t, item_loss(self.process, squared, self.process.eps_weight(t), t, self.c, mean))


def require_directions(name: str, item_shape: tuple[int, ...], other: str) -> None:
    """Refuse items whose noise cannot be estimated.

    Args:
        name, other: of the loss that estimates it, and of one that knows it.

    Raises:
        UserError: they have too few values.
    """
    if (d := math.prod(item_shape)) < THIN:
        raise UserError(
            f"{name} estimates noise along the directions in which the data vary least, and vectors of {d} values have none "
            f"for sure. Expected items of {THIN} values or more, or {other}, which knows the noise."
        )


def known(levels: PerItem | None) -> PerItem:
    """The levels.

    Raises:
        UserError: nobody gave them.
    """
    if levels is None:
        raise UserError(
            "The loss needs the noise level of each item and got none. "
            "Expected levels=, a standard deviation for each item of the batch."
        )
    return levels


def first_above(process: Process, levels: PerItem) -> Timesteps:
    """The first timestep of each item with ``sigma_t / alpha_t >= s``; the last one where none has."""
    ratios = process.ratio(torch.arange(process.steps, device=levels.device))
    first = torch.searchsorted(ratios, levels.to(ratios.dtype)).clamp(max=process.steps - 1)
    return torch.where(levels > 0, first, 0)


def above(process: Process, levels: PerItem, t: Timesteps, beta: PerItem) -> Timesteps:
    """The drawn timesteps moved to where the process would have drawn them given that they are above the levels.

    t and a uniform ``beta`` in (0, 1] make a uniform number of [0, 1), which is inverted on the timesteps that are left.
    """
    chances = torch.full((process.steps,), 1 / process.steps) if process.chances is None else process.chances
    # How often an earlier timestep is drawn.
    below = torch.cat([chances.new_zeros(1), chances]).double().cumsum(0).to(t.device)
    first = first_above(process, levels)
    u = below[t] + (1 - beta.double()) * (below[t + 1] - below[t])
    u = below[first] + u * (below[-1] - below[first])
    moved = torch.searchsorted(below, u, right=True) - 1
    return torch.where(first > 0, torch.maximum(moved, first).clamp(max=process.steps - 1), t)


def exchanged(process: Process, levels: PerItem, t: Timesteps, beta: PerItem) -> tuple[Timesteps, Timesteps]:
    """For each timestep the item of the batch that trains there, and the timestep, which moves up only where no item may be used.

    An item keeps a timestep at or above its level; for others ``beta`` chooses among the items that may be used.
    """
    first = first_above(process, levels)
    itself = torch.arange(len(t), device=t.device)
    able = first[None, :] <= t[:, None]
    count = able.sum(1)
    rank = ((1 - beta) * count).long().clamp(max=(count - 1).clamp_min(0))  # of the chosen one among the able
    chosen = (able.cumsum(1) > rank[:, None]).int().argmax(1)
    indices = torch.where(first <= t, itself, torch.where(count > 0, chosen, itself))
    return indices, torch.where(count > 0, t, above(process, levels, t, beta))


def noised(process: Process, y: States, levels: PerItem, t: Timesteps, z: States) -> tuple[States, PerItem]:
    """States of timesteps t above the levels, made of items that hold noise already; and ``kappa``, the share they lacked."""
    kappa = (1 - (levels / process.ratio(t)).square()).clamp_min(0).sqrt()
    return process.mix(y, per_item(kappa, z) * z, t), kappa
