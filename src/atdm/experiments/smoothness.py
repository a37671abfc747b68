"""How smooth a model is: its Jacobian along trajectories, how far they stretch, and how much they turn.

All of it along the probability flow (DDIM), whose step is ``x' = alpha' D(x, t) + sigma' eps(x, t)``. Models treat each item
by itself; a truth is the network of one through :func:`as_model`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..diffusion.model import Model
from ..diffusion.process import Process
from ..diffusion.sampling import trajectory
from ..diffusion.steps import Sampling


def as_model(truth: Any, process: Process) -> Callable[[Tensor, Tensor], Tensor]:
    """The ideal ``eps(x, t) = -sigma_t score`` of a distribution whose score is known."""

    def eps(x: Tensor, t: Tensor) -> Tensor:
        a, s = (v.double().to(x.device) for v in (process.alpha(t), process.sigma(t)))
        return -process.sigma(t, x) * truth.score(x, a, s)

    return eps


def jacobian(model: Model, x: Float[Tensor, "n d"], t: Int[Tensor, "n"]) -> Float[Tensor, "n d d"]:
    """``d eps_i / d x_j`` of the noise prediction at each point (1 / data units)."""
    with torch.enable_grad():
        at = x.detach().requires_grad_(True)
        eps = model.eps(at, t)
        lines = [
            torch.autograd.grad(eps[:, i].sum(), at, retain_graph=i + 1 < eps.shape[1])[0] for i in range(eps.shape[1])
        ]
    return torch.stack(lines, 1).detach()


@dataclass(frozen=True)
class Smoothness:
    """Along trajectories of the probability flow.

    Args:
        gain: at each step, the mean over trajectories of the spectral norm of ``sigma_t d eps / d x``: how far the
            predicted noise moves for a unit of noise. Of Gaussian data it is below 1, and 1 off a subspace.
        levels: ``sigma_t / alpha_t`` of those steps.
        lyapunov: mean of the largest finite-time Lyapunov exponent, ``log s_max(d x_0 / d x_T)``; the reverse process is
            the unit of time.
        turning: mean of the angle (radians) through which ``eps`` turns along a trajectory. In ``x/alpha`` against
            ``sigma/alpha`` eps is the trajectory's direction, so that a straight one has 0.
    """

    gain: list[float]
    levels: list[float]
    lyapunov: float
    turning: float


def smoothness(model: Model, n: int = 256, steps: int = 100, seed: int = 0) -> Smoothness:
    """Measure ``n`` trajectories of a model of vectors from common noise."""
    process, device, (d,) = model.process, model.device, model.item_shape
    generator = torch.Generator().manual_seed(seed)
    walk = trajectory(model.net, process, (n, d), Sampling("ddim", steps), generator=generator)
    seen = [(s.t, s.x, s.eps) for s in walk]
    at = torch.tensor([t for t, _, _ in seen])
    alphas, sigmas = [*process.alphas[at].tolist(), 1.0], [*process.sigmas[at].tolist(), 0.0]  # no noise in the end
    flow = torch.eye(d, device=device).expand(n, d, d).double()
    gains = []
    for i, (t, x, _) in enumerate(seen):
        j = jacobian(model, x, torch.full((n,), t, device=device)).double()
        step = alphas[i + 1] / alphas[i] * (torch.eye(d, device=device) - sigmas[i] * j) + sigmas[i + 1] * j
        flow = step @ flow
        gains.append(sigmas[i] * torch.linalg.matrix_norm(j, 2).mean().item())
    turned = torch.zeros(n, dtype=torch.float64, device=device)
    for (_, _, eps), (_, _, following) in itertools.pairwise(seen):
        a, b = (v.double() / v.double().norm(dim=1, keepdim=True).clamp_min(1e-12) for v in (eps, following))
        turned += 2 * torch.atan2((a - b).norm(dim=1), (a + b).norm(dim=1))  # exact for small angles too
    stretch = torch.linalg.matrix_norm(flow, 2).clamp_min(1e-300).log().mean().item()
    return Smoothness(gains, process.ratio(at).tolist(), stretch, turned.mean().item())


def below(gains: Sequence[float], levels: Sequence[float], level: float) -> float:
    """The mean gain where the noise level is below ``level``."""
    chosen = [g for g, v in zip(gains, levels, strict=True) if v < level]
    return sum(chosen) / max(1, len(chosen))
