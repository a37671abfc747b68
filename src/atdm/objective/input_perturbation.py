"""Input perturbation (DDPM-IP): the network sees a noisier state than the one whose noise it is asked for."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor

from ..errors import UserError
from .terms import Draws, Noisier, Predict, Terms, item_mean


@dataclass(frozen=True)
class InputPerturbation(Noisier):
    """``||eps_theta(alpha_t x_0 + sigma_t (eps + gamma xi), t) - eps||^2`` with ``xi ~ N(0, I)`` (Ning 2023, arXiv 2301.11706; as in the authors' code).

    The target stays that of ``eps``, so a linear-Gaussian optimum is that of noise of variance ``1 + gamma^2``.

    Args:
        gamma: standard deviation of the perturbation, in noise units; published: 0.1.
    """

    gamma: float = 0.1

    def __post_init__(self) -> None:
        if not self.gamma >= 0:
            raise UserError(f"gamma of the input perturbation is {self.gamma}. Expected a number >= 0, such as 0.1.")

    def terms(
        self,
        predict: Predict,
        x0: Float[Tensor, "batch *dims"],
        t: Int[Tensor, "batch"],
        draws: Draws,
        levels: Float[Tensor, "batch"] | None,
    ) -> Terms:
        process = self.process
        x_t = process.mix(x0, draws.noise + self.gamma * draws.need("more"), t)
        residual = predict(x_t, t) - process.target(x0, draws.noise, t)
        return Terms.unpushed(t, item_mean(residual.square()) * process.output_weight(t))
