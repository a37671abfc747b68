"""Input perturbation (DDPM-IP): the network sees a noisier state than the one whose noise it is asked for."""

from __future__ import annotations

from dataclasses import dataclass

from ..diffusion.process import PerItem, States, Timesteps
from ..errors import expect
from .terms import Draws, Noisier, Predict, Terms


@dataclass(frozen=True)
class InputPerturbation(Noisier):
    """``||eps_theta(alpha_t x_0 + sigma_t (eps + gamma xi), t) - eps||^2`` with ``xi ~ N(0, I)`` (Ning 2023, arXiv 2301.11706; as in the authors' code).

    The target stays that of ``eps``, so a linear-Gaussian optimum is that of noise of variance ``1 + gamma^2``.

    Args:
        gamma: standard deviation of the perturbation, in noise units; published: 0.1.
    """

    gamma: float = 0.1

    def __post_init__(self) -> None:
        expect(self.gamma >= 0, "gamma of the input perturbation", self.gamma, "a number >= 0, such as 0.1")

    def terms(self, predict: Predict, x0: States, t: Timesteps, draws: Draws, levels: PerItem | None) -> Terms:
        x_t = self.process.mix(x0, draws.noise + self.gamma * draws.need("more"), t)
        return Terms.unperturbed(t, self.denoising(predict(x_t, t), x0, draws.noise, t))
