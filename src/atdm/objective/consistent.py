"""Ambient, and below the noise of the data the consistency that a denoiser has with itself."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from ..diffusion.process import PerItem, Process, States, Timesteps, per_item
from ..errors import expect
from .ambient import AmbientBlind, first_above, known, noised
from .terms import Draws, LevelsFrom, Predict, Terms, counted, item_mean


@dataclass(frozen=True)
class AmbientConsistent(AmbientBlind):
    """:class:`Ambient` with a consistency term for the noise levels below that of every item (Daras 2024, arXiv 2404.10177).

    No data say what the network should do there. But a denoiser is the mean of its own later predictions along the reverse process,
    ``D(x_t, t) = E[D(x_t', t') | x_t]`` for t' < t, and with the denoiser known at and above a level this equation has only the clean one below.
    From the state at an item's own level two paths of the network's reverse process lead, with independent noise, in ``hops`` steps
    to a timestep drawn uniformly below, and

    ``(D(x_t'^1, t') - D(x_t, t)) (D(x_t'^2, t') - D(x_t, t)) / (sigma_t / alpha_t)^2``

    has the expectation of the squared difference between the mean and ``D(x_t, t)``, as in the authors' code. Gradients reach the
    predictions at the ends alone, which follow those at the level of the item. Items that look clean have no such term.

    Args:
        weight: of the consistency term. On the plane 0.1 was better than 0.03 and 1; of more the term's variance hides the rest.
        hops: steps from the level of an item to the drawn timestep; with more of them a step is nearer to the reverse process.
        known: the noise of each item is known, as :class:`Ambient` knows it; otherwise it is estimated from the items.
    """

    weight: float = 0.1
    hops: int = 2
    known: bool = False

    full_precision: ClassVar[bool] = True  # the differences are small beside the predictions

    def __post_init__(self) -> None:
        expect(self.weight >= 0, "weight of ambient_consistent", self.weight, "a number >= 0, such as 0.1")
        expect(self.hops >= 1, "hops", self.hops, "an integer >= 1")

    @property
    def levels_from(self) -> LevelsFrom:  # type: ignore[override]
        return "truth" if self.known else "items"

    def levels(self, x0: States, given: PerItem | None) -> PerItem:
        return known(given) if self.known else super().levels(x0, given)

    def require_items(self, item_shape: tuple[int, ...]) -> None:
        if not self.known:
            super().require_items(item_shape)

    def passes(self) -> dict[str, float]:
        return counted(2 + 2 * self.hops, 3)

    def draw_extra(
        self, t: Timesteps, shape: tuple[int, ...], device: torch.device, generator: torch.Generator
    ) -> dict[str, torch.Tensor]:
        more = torch.randn((shape[0], 2 * self.hops, *shape[1:]), generator=generator, device=device)
        return {**super().draw_extra(t, shape, device, generator), "more": more}

    def terms(self, predict: Predict, x0: States, t: Timesteps, draws: Draws, levels: PerItem | None) -> Terms:
        levels = known(levels)
        noisy = (levels > 0) & levels.isfinite()
        off = self.inconsistency(predict, x0, levels, draws)
        return replace(
            super().terms(predict, x0, t, draws, levels), regularizer=off, weight=self.weight * noisy.to(off)
        )

    def inconsistency(self, predict: Predict, y: States, levels: PerItem, draws: Draws) -> PerItem:
        """The consistency term of noisy items ``y``, by which gradients reach only what is predicted at the lower level."""
        process, noises = self.process, draws.need("more")
        first = first_above(process, levels)
        last = ((1 - draws.need("beta")) * first).long()  # uniform below the first
        start = noised(process, y, levels, first, draws.noise)[0] / process.alpha(first, y)
        with torch.no_grad():
            target = _denoised(process, predict, start, first)
            ends = [start, start]
            for path in (0, 1):
                t, denoised = first, target
                for hop in range(self.hops):
                    denoised = _denoised(process, predict, ends[path], t) if hop else denoised
                    following = first + (last - first) * (hop + 1) // self.hops
                    ends[path] = stepped(process, ends[path], denoised, t, following, noises[:, 2 * hop + path])
                    t = following
        one, other = (_denoised(process, predict, end, last) - target for end in ends)
        return item_mean(one * other) / process.ratio(first).square()


def stepped(process: Process, state: States, denoised: States, t: Timesteps, to: Timesteps, noise: States) -> States:
    """A step of the reverse process from timestep t down to another, for states over alpha: ddpm's posterior, written for any process."""
    r, lower = process.ratio(t), process.ratio(to)
    kept = (lower / r).square().clamp(max=1)
    return denoised + per_item(kept, state) * (state - denoised) + per_item(lower * (1 - kept).sqrt(), state) * noise


def _denoised(process: Process, predict: Predict, state: States, t: Timesteps) -> States:
    x_t = process.alpha(t, state) * state
    return process.to_x0(predict(x_t, t), x_t, t)
