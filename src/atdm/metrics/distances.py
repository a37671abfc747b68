"""Distances between two sets of features ``[n, d]``: of samples ``x`` and of a reference ``y``. In float64.

Each is computed on features gathered over all processes, in the order of the items, so a metric does not depend on how
many processes drew them.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import NamedTuple, cast

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import UserError

SUBSET = 1000  # rows in a subset of the kernel distance, as in the code of Binkowski 2018
SUBSETS = 10
FRACTIONS = (1 / 2, 2 / 3, 3 / 4, 1)  # of the samples, for extrapolating
CERTAIN = 1e-9  # bound of the rounding error of the fast Frechet distance, over the two variances; mostly 1e-15
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
    _require_rows(x)
    mean, deviations = _centred(x)
    return Moments(mean, deviations.T @ deviations)


def frechet_distance(
    mu1: Float[Tensor, "d"], cov1: Float[Tensor, "d d"], mu2: Float[Tensor, "d"], cov2: Float[Tensor, "d d"]
) -> float:
    """Squared Frechet (2-Wasserstein) distance between two Gaussians (Dowson & Landau 1982).

    ``||mu1 - mu2||^2 + tr(C1 + C2 - 2 (C1^1/2 C2 C1^1/2)^1/2)``, in float64. With ``C = F F^T`` the last trace is the sum
    of the singular values of ``F1^T F2``, whichever factors are taken. Covariances of full rank have Cholesky factors;
    for others symmetric roots are taken, so singular covariances are fine. No root is complex.
    """
    return Normal(mu1, covariance=cov1).frechet(Normal(mu2, covariance=cov2))


def frechet(x: Float[Tensor, "n d"], y: Float[Tensor, "m e"]) -> float:
    """Squared Frechet distance between the Gaussians fitted to two sets of features.

    Raises:
        UserError: a set has fewer than two rows, or the numbers of features differ.
    """
    if x.shape[1] != y.shape[1]:
        raise UserError(f"Cannot compare {x.shape[1]} with {y.shape[1]} features. Expected the same number.")
    return Normal.fitted(x).frechet(Normal.fitted(y))


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
    clean = Normal(reference.mean, covariance=reference.covariance)
    at: dict[int, float] = {}
    for part in FRACTIONS:
        size = int(part * len(x))
        pieces = [x[start : start + size] for start in range(0, len(x) - size + 1, size)]
        at[size] = sum(Normal.fitted(piece).frechet(clean) for piece in pieces) / len(pieces)
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
    x: Float[Tensor, "n d"], y: Float[Tensor, "m d"], k: int = 3, k_density: int = 5, block: int = 500
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
    radius_x, (radius_y, wide_y) = _radii(x, (k,), block)[0], _radii(y, (k, k_density), block)
    covered_x = torch.zeros(len(x), dtype=torch.bool, device=x.device)
    recalled, reached, inside = 0, 0, 0
    for block_y, square in _square_distances(y, x, block):
        covered_x |= (square <= radius_y[block_y, None]).any(0)
        recalled += int((square <= radius_x[None]).any(1).sum())
        reached += int((square.amin(1) <= wide_y[block_y]).sum())
        inside += int((square <= wide_y[block_y, None]).count_nonzero())
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


def _require_rows(x: Tensor) -> None:
    if len(x) < 2:
        raise UserError(f"A covariance needs two rows of features. Got {len(x)}.")


def _centred(x: Tensor) -> tuple[Tensor, Tensor]:
    """The mean, and scaled deviations ``R`` from it with ``R^T R`` the unbiased covariance."""
    x = x.double()
    mean = x.mean(0)
    return mean, (x - mean) / (len(x) - 1) ** 0.5


class Normal:
    """A mean, and a covariance or deviations ``R`` with ``R^T R`` the covariance; its factors are computed when first needed."""

    def __init__(self, mean: Tensor, covariance: Tensor | None = None, deviations: Tensor | None = None) -> None:
        self.mean = mean.double()
        self.covariance = None if covariance is None else covariance.double()
        self.deviations = deviations

    @classmethod
    def fitted(cls, x: Float[Tensor, "n d"]) -> Normal:
        """To features, by the smaller of their deviations and their covariance.

        Raises:
            UserError: there are fewer than two rows.
        """
        _require_rows(x)
        mean, deviations = _centred(x)
        if len(deviations) <= deviations.shape[1]:
            return cls(mean, deviations=deviations)
        return cls(mean, deviations.T @ deviations)

    @cached_property
    def variance(self) -> Tensor:
        """The trace of the covariance."""
        return self.factor.square().sum() if self.covariance is None else self.covariance.trace()

    @cached_property
    def cholesky(self) -> Tensor | None:
        """The lower triangular factor of a covariance of full rank."""
        if self.covariance is None:
            return None
        factor, failed = torch.linalg.cholesky_ex(self.covariance)
        return None if failed else factor

    @cached_property
    def factor(self) -> Tensor:
        """An ``F`` with ``F F^T`` the covariance, of any rank."""
        covariance = self.covariance
        if covariance is None:
            return cast(Tensor, self.deviations).T
        if self.cholesky is not None:
            return self.cholesky
        values, vectors = torch.linalg.eigh((covariance + covariance.T) / 2)
        return (vectors * values.clamp(min=0).sqrt()) @ vectors.T

    @property
    def axes(self) -> tuple[Float[Tensor, "k"], Float[Tensor, "d k"]]:
        """The variances along the principal directions, and these: least variance first; no more than there are deviations."""
        if self.covariance is not None:
            return torch.linalg.eigh(self.covariance)
        _, scales, directions = torch.linalg.svd(cast(Tensor, self.deviations), full_matrices=False)
        return scales.square().flip(0), directions.flip(0).T

    def frechet(self, other: Normal) -> float:
        """The squared Frechet distance to another."""
        distance = (self.mean - other.mean).square().sum() + self.variance + other.variance - 2 * _cross(self, other)
        return max(distance.item(), 0.0)  # rounding can leave -1e-15


def _cross(a: Normal, b: Normal) -> Tensor:
    """``tr (A^1/2 B A^1/2)^1/2``: the sum of the singular values of ``F_a^T F_b``, whichever factors are taken.

    The eigenvalues of ``L_b^T A L_b``, with ``L_b`` of Cholesky, are the squares of these and come at a quarter of the
    cost. Each is known to within the rounding of the largest, so small ones have uncertain roots: they are taken where
    that cannot be seen in the distance, and singular values elsewhere.
    """
    if a.cholesky is not None and b.cholesky is not None and a.covariance is not None:
        squares = torch.linalg.eigvalsh(b.cholesky.T @ a.covariance @ b.cholesky)
        rounding = torch.finfo(squares.dtype).eps * squares[-1]
        roots = squares.clamp(min=rounding).sqrt()
        if (rounding / roots).sum() < CERTAIN * (a.variance + b.variance):
            return roots.sum()
    return torch.linalg.svdvals(a.factor.T @ b.factor).sum()


def _cubic(a: Tensor, b: Tensor) -> Tensor:
    return (a @ b.T / a.shape[1] + 1) ** 3


def _square_distances(a: Tensor, b: Tensor, block: int) -> Iterator[tuple[slice, Tensor]]:
    """Squared distances of a block of ``a`` to all of ``b``, block by block in the same memory."""
    norms_a, norms_b = a.square().sum(1), b.square().sum(1)
    square, product = a.new_empty(2, min(block, len(a)), len(b))
    for start in range(0, len(a), block):
        part = slice(start, min(start + block, len(a)))
        size = part.stop - start
        torch.mm(2 * a[part], b.T, out=product[:size])
        torch.add(norms_a[part, None], norms_b, out=square[:size])
        yield part, square[:size].sub_(product[:size]).clamp_(min=0)


def _radii(x: Tensor, ks: tuple[int, ...], block: int) -> Float[Tensor, "ks n"]:
    """Squared distance of each row to its k-th nearest other row, for each k."""
    radii = []
    for part, square in _square_distances(x, x, block):
        itself = torch.arange(len(square), device=x.device)
        square[itself, part.start + itself] = -1.0  # itself comes first, whatever rounding makes of the distance zero
        radii.append(square.topk(max(ks) + 1, dim=1, largest=False).values[:, list(ks)])
    return torch.cat(radii).T
