"""Scheduled pseudo-Huber loss: outliers pull with a bounded force, the more so the noisier the state."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch

from ..diffusion.process import PerItem, States, Timesteps, per_item
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
        expect(self.c > 0, "c of the pseudo-Huber loss", self.c, "a number > 0, such as 0.1")
        finite = not math.isinf(self.c) or self.schedule == "constant"
        expect(finite, f"c of the schedule '{self.schedule}'", self.c, "a finite number, or schedule=constant")

    def threshold(self, t: Timesteps) -> PerItem:
        """``c_t``."""
        if self.schedule == "exponential":
            return torch.exp(math.log(self.c) * t / self.process.steps)
        if self.schedule == "snr":
            return self.c + (1 - self.c) / (1 + self.process.ratio(t)).square()
        return torch.full(t.shape, self.c, device=t.device)

    def terms(self, predict: Predict, x0: States, t: Timesteps, draws: Draws, levels: PerItem | None) -> Terms:
        process = self.process
        output = predict(process.mix(x0, draws.noise, t), t)
        residual = output - process.target(x0, draws.noise, t)
        squared = residual.square() * per_item(process.output_weight(t), residual)
        c = per_item(self.threshold(t), residual)
        # The difference of the formula, multiplied out: it does not cancel where r is small beside c.
        return Terms.unperturbed(t, item_mean(2 * squared / (1 + (1 + squared / c.square()).sqrt())))
