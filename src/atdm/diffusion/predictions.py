"""What a network may output, by name: every output is ``A_t x_0 + B_t eps``, and ``PREDICTIONS`` says which A and B.

Together with ``x_t = alpha_t x_0 + sigma_t eps`` that is two equations in two unknowns, so one formula turns any output
into ``eps`` or ``x_0``, and a perturbation of ``eps`` by ``delta`` moves any output by ``B_t delta``.

Sources: Ho et al. 2020 (epsilon), Salimans & Ho 2022 (v), Song et al. 2021 (score), Liu et al. 2023 (rectified flow),
Karras et al. 2022, eq. 7 and table 1 (edm).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import UserError

Levels = Float[Tensor, "T"]

SMALLEST = 1e-12  # of alpha_t and of det_t: at alpha_t = 0 the quotients below are limits
LEAST_SLOPE = 1e-3  # of d eps / d out: an output that says nothing about eps (alpha_t = 0) has no eps units


@dataclass(frozen=True)
class Parameterization:
    """One way to write a denoiser.

    Args:
        mixture: ``(alpha_t, sigma_t, data_std) -> (A_t, B_t)`` of ``out = A_t x_0 + B_t eps``.
        in_eps_units: the denoising term counts squared errors of eps; else those of the output, as is customary.
    """

    mixture: Callable[[Levels, Levels, float], tuple[Levels, Levels]]
    in_eps_units: bool = False

    def tables(self, alpha: Levels, sigma: Levels, data_std: float) -> dict[str, Levels]:
        """By name, the factors of every conversion, for all timesteps.

        ``target = A x_0 + B eps``; ``eps = eps_out out + eps_x x_t``; ``x_0 = x0_out out + x0_x x_t``; the weights are what
        a squared error of the output, or of eps, counts in the loss.
        """
        alpha = alpha.clamp_min(SMALLEST)
        a, b = self.mixture(alpha, sigma, data_std)
        det = alpha * b - a * sigma
        slope = alpha / det  # d eps / d out at a fixed state
        squared = slope.square().clamp_min(LEAST_SLOPE**2)
        return {
            "A": a,
            "B": b,
            "eps_out": slope,
            "eps_x": -a / det,
            "x0_out": -sigma / det,
            "x0_x": b / det,
            "output_weight": slope.square() if self.in_eps_units else torch.ones_like(slope),
            "eps_weight": torch.ones_like(slope) if self.in_eps_units else 1 / squared,
        }


def _v(alpha: Levels, sigma: Levels, data_std: float) -> tuple[Levels, Levels]:
    return -sigma / data_std, data_std * alpha


PREDICTIONS: dict[str, Parameterization] = {
    "epsilon": Parameterization(lambda alpha, sigma, _: (0 * alpha, 0 * alpha + 1)),
    "sample": Parameterization(lambda alpha, sigma, _: (0 * alpha + 1, 0 * alpha)),
    "v_prediction": Parameterization(_v),
    "score": Parameterization(lambda alpha, sigma, _: (0 * alpha, -1 / sigma), in_eps_units=True),
    "flow": Parameterization(lambda alpha, sigma, _: (0 * alpha - 1, 0 * alpha + 1)),
    "edm": Parameterization(lambda alpha, sigma, data_std: tuple(-part for part in _v(alpha, sigma, data_std))),  # type: ignore[arg-type,return-value]
}


def require_levels(alpha: Levels, sigma: Levels) -> None:
    """Refuse tables that are those of no process.

    Args:
        alpha, sigma: the factors on the data and on the noise.

    Raises:
        UserError: they are no list of timesteps, not finite, or less noisy later on.
    """
    if alpha.dim() != 1 or not len(alpha):
        raise UserError(
            f"The tables of the process have the shape {list(alpha.shape)}. Expected one number for each timestep."
        )
    if not bool((alpha.isfinite() & sigma.isfinite()).all()):
        raise UserError("The tables of the process are not finite. Expected betas from 0 to 1.")
    if not bool(((sigma[1:] / alpha[1:]) >= (sigma[:-1] / alpha[:-1])).all()):
        raise UserError("The noise-to-signal ratio sigma_t/alpha_t decreases with t. Expected one that grows.")
