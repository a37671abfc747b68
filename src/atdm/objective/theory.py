"""What the objective does to Gaussian data, in closed form: the linear optimum, and what is sampled from it (docs/method.md).

Along a direction in which the data have variance ``s^2`` the best linear network is ``eps(x) = a_t x``,
``a_t = sigma (1 + lambda_t c) / (alpha^2 s^2 + sigma^2 (1 + lambda_t c))`` with ``c = E[delta^2]``: the plain optimum for
data of variance ``s^2 / (1 + lambda_t c)``. All in double precision.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..diffusion.process import Process
from ..diffusion.sampling import open_solver
from ..diffusion.steps import Sampling
from ..errors import UserError
from .equivariance import Objective

# What the formulas of the sources may mean: specs of radius and weight. The first is what this package calls published.
READINGS: dict[str, tuple[str, str]] = {
    "published": ("published", "published"),
    "bias inside the weight": ("published", "over_radius"),
    "bias as a least radius": ("floored", "over_radius"),
    "weight over the variance": ("published", "over_variance"),
    "beta at least 0.05": ("published:beta_min=0.05", "published"),
}
BETAS = 2000  # midpoints of (0, 1] that the mean over beta is taken at


def shrinkage(objective: Objective, t: Int[Tensor, "T"], betas: int = BETAS) -> Float[Tensor, "T"]:
    """``lambda_t c`` at each t, its mean over beta; zero where nothing is perturbed.

    Of a sign step c is that of a corner, ``r^2``: there the ascent of an isotropic or axis-aligned Gaussian ends. Of a random
    perturbation it is ``r^2 / 3`` in the cube, and ``r^2`` in the Euclidean ball, as in many dimensions.

    Args:
        betas: midpoints of (0, 1]. The published weight has no finite mean: with n midpoints that of 1/beta is about
            ``log(n) + 2``, so this says how far into the tail training is taken to look.
    """
    process, kind = objective.process, objective.kind
    if not (kind.perturbs and kind.equivariant):
        return torch.zeros(len(t), dtype=torch.float64)
    beta = ((torch.arange(betas, dtype=torch.float64) + 0.5) / betas).repeat(len(t))
    reach = objective.radius.reach(process, t.repeat_interleave(betas), beta)
    in_cube = not kind.adversarial and objective.perturbation.norm == "linf"
    c = reach.r.square() / (3 if in_cube else 1)
    shrunk = (objective.weight(reach, c.sqrt()[:, None]) * c).double().unflatten(0, (len(t), betas)).mean(1)
    return shrunk if objective.gate is None else torch.where(process.ratio(t) < objective.gate, shrunk, 0.0)


def optimum(
    process: Process, t: Int[Tensor, "T"], variance: Float[Tensor, "#T d"], lambda_c: Float[Tensor, "T"]
) -> Float[Tensor, "T d"]:
    """The gain ``a_t`` of the best linear network for data of these variances."""
    alpha, sigma = (table(t).double()[:, None] for table in (process.alpha, process.sigma))
    grown = 1 + lambda_c.double()[:, None]
    return sigma * grown / (alpha.square() * variance + sigma.square() * grown)


def sampled_variance(
    process: Process, variance: Float[Tensor, "d"], lambda_c: Float[Tensor, "T"], sampling: Sampling | None = None
) -> Float[Tensor, "d"]:
    """Variances of what the DDPM sampler (posterior variance) draws from the linear optimum for these data.

    Args:
        process: variance preserving.
        lambda_c: of all timesteps, as of :func:`shrinkage`.
        sampling: ddpm or ddpm-unrespaced, with its number of steps and where it begins; None: all T steps of ddpm.
    """
    how = sampling or Sampling("ddpm", process.steps)
    if how.sampler not in ("ddpm", "ddpm-unrespaced"):
        raise UserError(f"There is no closed form for the sampler {how.sampler}. Expected ddpm or ddpm-unrespaced.")
    visited = open_solver(lambda x, t: x, process, (1, 1), how, generator=torch.Generator()).visits
    following = [*visited[1:], -1] if how.sampler == "ddpm" else [t - 1 for t in visited]
    gains = optimum(process, torch.tensor(visited), variance.double()[None], lambda_c[visited])
    abar = process.alphas.double().square()
    drawn = torch.ones_like(gains[0])
    for t, t_next, gain in zip(visited, following, gains, strict=True):
        before = abar[t_next] if t_next >= 0 else abar.new_ones(())
        beta = 1 - abar[t] / before
        denoised = (1 - (1 - abar[t]).sqrt() * gain) / abar[t].sqrt()  # D = denoised x
        mean = (before.sqrt() * beta * denoised + (1 - beta).sqrt() * (1 - before)) / (1 - abar[t])
        drawn = mean.square() * drawn + beta * (1 - before) / (1 - abar[t])
    return drawn


def frechet(variance: Float[Tensor, "d"], other: Float[Tensor, "d"]) -> Float[Tensor, ""]:
    """Squared Frechet distance between Gaussians of these variances along the same directions, ``sum (s - s')^2``."""
    return (variance.double().sqrt() - other.double().sqrt()).square().sum()


def power_law(dimensions: int = 3072, exponent: float = 1.35, std: float = 0.5) -> Float[Tensor, "d"]:
    """Variances ``i^-exponent`` along ``dimensions`` directions, as of natural images, of mean ``std^2``."""
    found = torch.arange(1, dimensions + 1, dtype=torch.float64) ** -exponent
    return found * std**2 / found.mean()
