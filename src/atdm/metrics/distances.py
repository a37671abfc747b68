"""Distances between two sets of features ``[n, d]``: of samples ``x`` and of a clean reference ``y``. In float64.

Each is computed on features gathered over all processes, in the order of the items, so a metric does not depend on how
many processes drew them.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import UserError

SUBSET = 1000  # rows in a subset of the kernel distance, as in the code of Binkowski 2018
SUBSETS = 10
FRACTIONS = (1 / 2, 2 / 3, 3 / 4, 1)  # of the samples, for extrapolating
SPLITS = 10  # of the inception score, as in Salimans 2016


class Moments(NamedTuple):
    """Mean and unbiased covariance."""

    mean: Float[Tensor, "d"]
    covariance: Float[Tensor, "d d"]


class Estimate(NamedTuple):
    """A value and its spread over subsets or splits of the data."""

    value: float
    std: float


def moments(x: Float[Tensor, "n d"]) -> Moments:
    """Mean and unbiased covariance of the rows, in float64.

    Raises:
        UserError: there are fewer than two rows.
    """
    if len(x) < 2:
        raise UserError(f"A covariance needs two rows of features. Got {len(x)}.")
    mean, rows = _centred(x)
    return Moments(mean, rows.T @ rows)


def frechet_distance(
    mu1: Float[Tensor, "d"], cov1: Float[Tensor, "d d"], mu2: Float[Tensor, "d"], cov2: Float[Tensor, "d d"]
) -> float:
    """Squared Frechet (2-Wasserstein) distance between two Gaussians (Dowson & Landau 1982).

    ``||mu1 - mu2||^2 + tr(C1 + C2 - 2 (C1^1/2 C2 C1^1/2)^1/2)``, in float64. The last trace is the sum of the singular
    values of ``C1^1/2 C2^1/2``: only symmetric roots are taken, so singular covariances are fine and none is complex.
    """
    mu1, cov1, mu2, cov2 = (a.double() for a in (mu1, cov1, mu2, cov2))
    return _frechet(mu1, _root(cov1), mu2, _root(cov2))


def frechet(x: Float[Tensor, "n d"], y: Float[Tensor, "m e"]) -> float:
    """Squared Frechet distance between the Gaussians fitted to two sets of features.

    Raises:
        UserError: a set has fewer than two rows, or the numbers of features differ.
    """
    if x.shape[1] != y.shape[1]:
        raise UserError(f"Cannot compare {x.shape[1]} with {y.shape[1]} features. Expected the same number.")
    return frechet_distance(*moments(x), *moments(y))


def _frechet(mu1: Tensor, factor1: Tensor, mu2: Tensor, factor2: Tensor) -> float:
    """The same from any ``F`` with ``C = F F^T``: singular values do not see which one it is."""
    cross = torch.linalg.svdvals(factor1.T @ factor2).sum()
    distance = (mu1 - mu2).square().sum() + factor1.square().sum() + factor2.square().sum() - 2 * cross
    return max(distance.item(), 0.0)  # rounding can leave -1e-15


def frechet_extrapolated(x: Float[Tensor, "n d"], reference: Moments, seed: int = 0) -> tuple[float, dict[int, float]]:
    """Frechet distance at infinitely many samples (Chong & Forsyth 2020), and the distances at N it is read from.

    The bias of the distance falls as 1/N, once N is beyond the number of features: a line in 1/N through the distances
    of shuffled parts of N = n/2 (both halves), 2n/3, 3n/4 and n samples. Only the bias of finitely many samples goes;
    that of the reference stays.

    Raises:
        UserError: there are too few rows.
    """
    if len(x) < 4:
        raise UserError(f"Extrapolating needs 4 samples. Got {len(x)}.")
    x = x[torch.randperm(len(x), generator=torch.Generator().manual_seed(seed)).to(x.device)]
    mu, root = reference.mean.double(), _root(reference.covariance.double())
    at: dict[int, float] = {}
    for part in FRACTIONS:
        size = int(part * len(x))
        pieces = [x[start : start + size] for start in range(0, len(x) - size + 1, size)]
        at[size] = sum(_frechet(*_factor(piece), mu, root) for piece in pieces) / len(pieces)
    design = torch.tensor([[1.0, 1.0 / size] for size in at], dtype=torch.float64)
    line = torch.linalg.lstsq(design, torch.tensor([*at.values()], dtype=torch.float64)[:, None]).solution
    return line[0].item(), at


def kernel_distance(
    x: Float[Tensor, "n d"], y: Float[Tensor, "m d"], subset: int = SUBSET, subsets: int = SUBSETS, seed: int = 0
) -> Estimate:
    """Unbiased squared MMD with the kernel ``(a.b/d + 1)^3`` (Binkowski 2018), and its std over random subsets.

    Where a subset would be all of both sets, it is taken once. Being unbiased it can come out negative.

    Raises:
        UserError: a set has fewer than two rows.
    """
    size = min(subset, len(x), len(y))
    if size < 2:
        raise UserError(f"A kernel distance needs two rows of features. Got {size}.")
    generator = torch.Generator().manual_seed(seed)
    values = []
    for _ in range(1 if size == len(x) == len(y) else subsets):
        a, b = (f[torch.randperm(len(f), generator=generator)[:size].to(f.device)].double() for f in (x, y))
        same_a, same_b, across = _cubic(a, a), _cubic(b, b), _cubic(a, b)
        pairs = same_a.sum() - same_a.trace() + same_b.sum() - same_b.trace()
        values.append((pairs / (size * (size - 1)) - 2 * across.mean()).item())
    spread = torch.tensor(values, dtype=torch.float64)
    return Estimate(spread.mean().item(), spread.std(correction=0).item())


class Neighbours(NamedTuple):
    """Fidelity and variety of samples by nearest neighbours, each 1 at best in expectation."""

    precision: float
    recall: float
    density: float
    coverage: float


def neighbours(
    x: Float[Tensor, "n d"], y: Float[Tensor, "m d"], k: int = 3, k_density: int = 5, block: int = 1000
) -> Neighbours:
    """Precision and recall (Kynkaanniemi 2019, ``k``), density and coverage (Naeem 2020, ``k_density``).

    A set is taken to cover the balls around its points that reach to their k-th nearest neighbours in it. Precision is
    the share of samples that the reference covers, recall the share of the reference that the samples cover; density
    counts the reference's balls around each sample (over k), coverage the reference's balls with a sample inside.

    Raises:
        UserError: a set has no k-th neighbour.
    """
    most = max(k, k_density)
    if min(len(x), len(y)) <= most:
        raise UserError(f"Neighbours need more than {most} samples and references. Got {len(x)} and {len(y)}.")
    x, y = x.double(), y.double()
    radius_x, radius_y, wide_y = _radius(x, k, block), _radius(y, k, block), _radius(y, k_density, block)
    covered_x = torch.zeros(len(x), dtype=torch.bool, device=x.device)
    recalled, reached, inside = 0, 0, 0
    for start in range(0, len(y), block):
        rows = slice(start, start + block)
        square = _square_distances(y[rows], x)
        covered_x |= (square <= radius_y[rows, None]).any(0)
        recalled += int((square <= radius_x[None]).any(1).sum())
        within = square <= wide_y[rows, None]
        reached += int(within.any(1).sum())
        inside += int(within.sum())
    return Neighbours(
        covered_x.double().mean().item(), recalled / len(y), inside / (k_density * len(x)), reached / len(y)
    )


def class_score(logits: Float[Tensor, "n classes"], splits: int = SPLITS) -> Estimate:
    """``exp E KL(p(class|x) || p(class))``, mean and std over splits of the samples: the inception score (Salimans 2016).

    From 1 to the number of classes; low for few samples, as a split cannot show more classes than it has items.
    """
    log_p = logits.double().log_softmax(1)
    scores = []
    for part in log_p.tensor_split(min(splits, len(log_p))):
        marginal = part.exp().mean(0).log()
        scores.append((part.exp() * (part - marginal)).sum(1).mean().exp())
    spread = torch.stack(scores)
    return Estimate(spread.mean().item(), spread.std(correction=0).item())


def _centred(x: Tensor) -> tuple[Tensor, Tensor]:
    """The mean, and rows ``R`` with ``R^T R`` the unbiased covariance."""
    x = x.double()
    mean = x.mean(0)
    return mean, (x - mean) / (len(x) - 1) ** 0.5


def _factor(x: Tensor) -> tuple[Tensor, Tensor]:
    """The mean, and an ``F`` with ``F F^T`` the unbiased covariance: the smaller of the centred rows and its root."""
    mean, rows = _centred(x)
    return mean, (rows.T if len(rows) <= rows.shape[1] else _root(rows.T @ rows))


def _root(cov: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh((cov + cov.T) / 2)
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.T


def _cubic(a: Tensor, b: Tensor) -> Tensor:
    return (a @ b.T / a.shape[1] + 1) ** 3


def _square_distances(a: Tensor, b: Tensor) -> Tensor:
    return (a.square().sum(1)[:, None] + b.square().sum(1)[None] - 2 * a @ b.T).clamp(min=0)


def _radius(x: Tensor, k: int, block: int) -> Tensor:
    """Squared distance of each row to its k-th nearest other row."""
    radii = []
    for start in range(0, len(x), block):
        square = _square_distances(x[start : start + block], x)
        own = torch.arange(len(square), device=x.device)
        square[own, start + own] = -1.0  # itself comes first, whatever rounding makes of the distance zero
        radii.append(square.kthvalue(k + 1, dim=1).values)
    return torch.cat(radii)
