"""Scheduled pseudo-Huber loss: outliers pull with a bounded force, the more so the noisier the state."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch

from ..diffusion.process import PerItem, Process, States, Timesteps, per_item
from ..errors import expect
from .terms import Baseline, Draws, Predict, Terms, item_mean


@dataclass(frozen=True)
class PseudoHuber(Baseline):
    """``2 c_t^2 (sqrt(1 + r^2 / c_t^2) - 1)`` of each element r of the residual (Khrapov 2024, arXiv 2403.16728; schedule as in the authors' code).

    Twice the usual pseudo-Huber function, so that small residuals count as ddpm's do and ``c = inf`` is ddpm.

    Args:
        c: where the loss turns from quadratic to linear, in units of the residual; in the authors' scripts 0.1. Of a schedule, c_T.
        schedule: ``exponential``: ``c_t = exp(log(c) t / T)``, from 1 to c, as published; ``constant``; ``snr``:
            ``c + (1 - c) / (1 + sigma_t / alpha_t)^2``, a later variant of the authors' training scripts.
    """

    c: float = 0.1
    schedule: Literal["exponential", "constant", "snr"] = "exponential"

    def __post_init__(self) -> None:
        require_c(self.c)
        finite = not math.isinf(self.c) or self.schedule == "constant"
        expect(finite, f"c of the schedule '{self.schedule}'", self.c, "a finite number, or schedule=constant")

    def threshold(self, t: Timesteps) -> PerItem:
        """``c_t``."""
        if self.schedule == "exponential":
            return falling(self.process, t, self.c)
        if self.schedule == "snr":
            return self.c + (1 - self.c) / (1 + self.process.ratio(t)).square()
        return torch.full(t.shape, self.c, device=t.device)

    def terms(self, predict: Predict, x0: States, t: Timesteps, draws: Draws, levels: PerItem | None) -> Terms:
        process = self.process
        output = predict(process.mix(x0, draws.noise, t), t)
        residual = output - process.target(x0, draws.noise, t)
        return Terms.unperturbed(t, bounded(residual.square(), process.output_weight(t), self.threshold(t)))


def falling(process: Process, t: Timesteps, c: float) -> PerItem:
    """The published schedule of thresholds, ``c_t = exp(log(c) t / T)``."""
    return torch.exp(math.log(c) * t / process.steps)


def bounded(squared: States, weight: PerItem, c_t: PerItem, mean: Callable[[States], PerItem] = item_mean) -> PerItem:
    """The pseudo-Huber loss of each item.

    Args:
        squared: residuals, squared.
        weight: of squared residuals in the loss.
        c_t: where the loss turns linear, in units of weighted residuals.
        mean: over the elements of an item.
    """
    squared = squared * per_item(weight, squared)
    c_t = per_item(c_t, squared)
    # The difference of the formula, multiplied out: it does not cancel where r is small beside c.
    return mean(2 * squared / (1 + (1 + squared / c_t.square()).sqrt()))


def item_loss(
    process: Process, squared: States, weight: PerItem, t: Timesteps, c: float, mean: Callable[[States], PerItem]
) -> PerItem:
    """:func:`bounded` by the published schedule; the squared error where c is infinite."""
    return mean(squared) * weight if math.isinf(c) else bounded(squared, weight, falling(process, t, c), mean)


def require_c(c: float) -> None:
    """Refuse what is no threshold.

    Raises:
        UserError: it is not above 0.
    """
    expect(c > 0, "c of the pseudo-Huber loss", c, "a number > 0, such as 0.1")
