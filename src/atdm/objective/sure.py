"""SURE-Score: the network denoises the noisy items by Stein's unbiased risk estimate, and learns the score of what comes out."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from ..diffusion.process import PerItem, States, Timesteps, per_item
from ..errors import expect
from .ambient import first_above, known
from .terms import Draws, LevelsFrom, Noisier, Predict, Terms, counted, item_mean


@dataclass(frozen=True)
class Sure(Noisier):
    """Denoising score matching on ``D(y)``, plus ``weight`` times SURE of ``D(y)`` (Aali 2023, arXiv 2305.01166).

    Of ``y = x_0 + s n`` the network's own denoiser at the noise level s gives ``D(y)``, and
    ``SURE = ||D(y) - y||^2 + 2 s^2 div_y D(y) - s^2 d`` has the expectation of ``||D(y) - x_0||^2`` (Stein 1981). The
    denoising term is ddpm's with ``D(y)`` for x_0; its gradient reaches D, as in the authors' training of one network.
    The divergence is that of Ramani 2008: ``b . (D(y + step b) - D(y)) / step`` with a random ``b ~ N(0, I)``. Items
    without noise are ddpm's. Both terms are means over dimensions.

    Args:
        weight: of SURE, in data units, beside the denoising term in units of the output. The authors instead raise the
            weight of the denoising term by the epoch; the constant is open.
        step: of the finite difference, data units.
    """

    weight: float = 1.0
    step: float = 1e-3
    levels_from: ClassVar[LevelsFrom] = "truth"
    full_precision: ClassVar[bool] = True

    def __post_init__(self) -> None:
        expect(self.weight >= 0, "weight of SURE", self.weight, "a number >= 0, such as 1")
        expect(self.step > 0, "step of SURE", self.step, "a number > 0, such as 0.001")

    def passes(self) -> dict[str, float]:
        return counted(3, 3)

    def terms(self, predict: Predict, x0: States, t: Timesteps, draws: Draws, levels: PerItem | None) -> Terms:
        process, s = self.process, known(levels)
        denoised, sure = self.denoise(predict, x0, s, draws.need("more"))
        output = predict(process.mix(denoised, draws.noise, t), t)
        plain = Terms.unperturbed(t, self.denoising(output, denoised, draws.noise, t))
        return replace(plain, regularizer=sure, weight=torch.full_like(sure, self.weight, requires_grad=False))

    def denoise(self, predict: Predict, y: States, levels: PerItem, probe: States) -> tuple[States, PerItem]:
        """``D(y)`` at the items' own noise levels, and its SURE; of clean items y itself, and 0."""
        process, t = self.process, first_above(self.process, levels)

        def denoiser(y: Tensor) -> Tensor:
            x = process.alpha(t, y) * y
            return process.to_x0(predict(x, t), x, t)

        denoised = denoiser(y)
        moved = denoiser(y + self.step * probe)
        divergence = item_mean(probe * (moved - denoised)) / self.step
        variance, noisy = levels.square(), levels > 0
        sure = item_mean((denoised - y).square()) + 2 * variance * divergence - variance
        return torch.where(per_item(noisy, y), denoised, y), torch.where(noisy, sure, torch.zeros_like(sure))
