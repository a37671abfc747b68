"""Measures against data whose truth is known: toys and subspaces. No network, no estimate where a closed form exists.

``x`` are samples ``[n, *dims]`` in data units. A *truth* is any object with the methods of the protocols below.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..diffusion.process import Process
from ..errors import UserError


@runtime_checkable
class HasDistance(Protocol):
    """Knows how far each sample is from the support, in data units (Euclidean)."""

    def distance(self, x: Tensor, /) -> Tensor: ...


@runtime_checkable
class HasResidual(Protocol):
    """A subspace: knows the residual of each sample, and its root mean square over samples, as it defines them."""

    def residual(self, x: Tensor, /) -> Tensor: ...

    def residual_rms(self, x: Tensor, /) -> float | Tensor: ...


HasSupport = HasDistance | HasResidual


@runtime_checkable
class HasSpread(Protocol):
    """Knows how widely samples are spread along the support (rms over directions, data units)."""

    def spread(self, x: Tensor, /) -> float | Tensor: ...


@runtime_checkable
class HasModes(Protocol):
    """A mixture: ``mode_mass(x)`` is the share of samples in each mode, ``weights`` the true shares."""

    @property
    def weights(self) -> Tensor | Sequence[float]: ...

    def mode_mass(self, x: Tensor, /) -> Tensor: ...


@runtime_checkable
class HasScore(Protocol):
    """Knows the score of ``alpha x_0 + sigma eps`` and can draw ``x_0``."""

    def sample(self, n: int, generator: torch.Generator, /) -> Tensor: ...

    def score(self, x: Tensor, alpha: float, sigma: float, /) -> Tensor: ...


def diverged(x: Float[Tensor, "n *dims"], limit: float) -> Bool[Tensor, "n"]:
    """Which samples hold a value that is not finite or is larger than ``limit`` in absolute value."""
    return ~(x.flatten(1).abs() <= limit).all(1)  # a comparison with nan is false


def diverged_share(x: Float[Tensor, "n *dims"], limit: float) -> float:
    """Share of samples that are not finite or go beyond ``limit`` (data units)."""
    return diverged(x, limit).double().mean().item()


def support_distance(x: Float[Tensor, "n *dims"], truth: HasSupport) -> Float[Tensor, "n"]:
    """How far each sample is off the support, by ``truth.residual`` (subspaces) or ``truth.distance`` (toys)."""
    return truth.residual(x) if isinstance(truth, HasResidual) else truth.distance(x)


def off_support_rms(x: Float[Tensor, "n *dims"], truth: HasSupport) -> float:
    """Root mean square distance from the support: data units for toys, the subspace's own units for subspaces."""
    if isinstance(truth, HasResidual):
        return float(truth.residual_rms(x))
    return truth.distance(x).double().square().mean().sqrt().item()


def outlier_share(x: Float[Tensor, "n *dims"], truth: HasSupport, threshold: float) -> float:
    """Share of samples farther than ``threshold`` from the support (data units)."""
    return (support_distance(x, truth) > threshold).double().mean().item()


def spread_ratio(
    x: Float[Tensor, "n *dims"], truth: HasSpread, reference: Float[Tensor, "m *dims"] | None = None
) -> float:
    """Spread along the support relative to the truth's ``true_spread``, or to a clean ``reference`` where it has none.

    Raises:
        UserError: neither is there.
    """
    true = getattr(truth, "true_spread", None)
    if true is None:
        if reference is None:
            raise UserError(f"{type(truth).__name__} has no true_spread. Expected a reference to compare with.")
        true = truth.spread(reference)
    return float(truth.spread(x)) / float(true)


def mode_mass_error(x: Float[Tensor, "n *dims"], truth: HasModes) -> float:
    """Total variation ``1/2 sum_k |share_k - weight_k|`` of the modes' shares from their true weights, in [0, 1]."""
    weights = torch.as_tensor(truth.weights, dtype=torch.float64)
    return 0.5 * (truth.mode_mass(x).double().cpu() - weights.cpu()).abs().sum().item()


def sliced_wasserstein(
    x: Float[Tensor, "n *dims"],
    y: Float[Tensor, "m *dims"],
    projections: int = 256,
    *,
    generator: torch.Generator,
) -> float:
    """Sliced 2-Wasserstein distance ``sqrt(E_theta W2^2(theta.x, theta.y))``, theta uniform on the sphere (Rabin 2012).

    Each 1-D distance is exact, for unequal sizes too: it integrates the squared gap between the two quantile functions.
    A shift by v gives ``||v|| / sqrt(d)``.
    """
    x, y = _rows(x), _rows(y)
    theta = torch.randn(x.shape[1], projections, generator=generator, dtype=torch.float64)
    theta = theta / theta.norm(dim=0)
    n, m = len(x), len(y)
    # Quantile functions are steps at i/n and j/m; in units of 1/(n m) the steps are integers, hence exact.
    edges = torch.cat([torch.arange(n + 1) * m, torch.arange(m + 1) * n]).unique()
    mass = edges.diff().double() / (n * m)
    total = 0.0
    for part in theta.split(64, dim=1):  # bounds the memory: a column of gaps is n + m long
        gap = (x @ part).sort(0).values[edges[:-1] // m] - (y @ part).sort(0).values[edges[:-1] // n]
        total += (mass @ gap.square()).sum().item()
    return (total / projections) ** 0.5


def wasserstein(
    x: Float[Tensor, "n *dims"], y: Float[Tensor, "m *dims"], points: int = 2000, *, generator: torch.Generator
) -> float:
    """Exact 2-Wasserstein distance between the two point clouds (network simplex, POT).

    Above ``points``, each cloud is thinned to that many by the ``generator``. Two finite draws from one distribution
    are a positive distance apart, so compare values at equal sizes.
    """
    import ot

    x, y = _thin(_rows(x), points, generator), _thin(_rows(y), points, generator)
    cost = ot.dist(x.numpy(), y.numpy(), metric="sqeuclidean")
    return float(ot.emd2([], [], cost, numItermax=10_000_000)) ** 0.5


def score_error(
    score_fn: Callable[[Tensor, Tensor], Tensor],
    truth: HasScore,
    process: Process,
    timesteps: Int[Tensor, "k"] | Sequence[int],
    n: int = 4096,
    *,
    generator: torch.Generator,
) -> Float[Tensor, "k"]:
    """Relative L2 error ``sqrt(E||s - s*||^2 / E||s*||^2)`` of a score, at ``x_t`` from the true marginal of each t.

    Args:
        score_fn: the score ``s(x_t, t)`` under test, with ``t`` of shape ``[n]``.
        truth: knows the analytic score ``s*``.
        process: gives ``alpha_t`` and ``sigma_t``.
        timesteps: where to measure.
        n: points at each timestep.
        generator: draws the points and their noise.
    """
    errors = []
    for step in torch.as_tensor(timesteps).tolist():
        x0 = truth.sample(n, generator)
        t = torch.full((n,), step, device=x0.device)
        x_t = process.mix(x0, torch.randn(x0.shape, generator=generator, device=x0.device), t)
        true = truth.score(x_t, process.alphas[step].item(), process.sigmas[step].item()).double()
        with torch.no_grad():
            error = score_fn(x_t, t).double() - true
        errors.append((error.square().sum() / true.square().sum()).sqrt())
    return torch.stack(errors).float()


def _rows(x: Tensor) -> Tensor:
    return x.detach().flatten(1).double().cpu()


def _thin(x: Tensor, points: int, generator: torch.Generator) -> Tensor:
    return x if len(x) <= points else x[torch.randperm(len(x), generator=generator)[:points]]
