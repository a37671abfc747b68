"""Distances between sets of features against closed forms, brute force and other libraries."""

import math

import pytest
import scipy.linalg
import torch
from torch import nn

from atdm.errors import UserError
from atdm.metrics import (
    Moments,
    class_score,
    frechet,
    frechet_distance,
    frechet_extrapolated,
    kernel_distance,
    neighbours,
)


class Same(nn.Module):
    """Features as they are, for torchmetrics."""

    num_features = 24

    def forward(self, x):
        return x


def pair(generator, n=300, m=400, d=24):
    mix = torch.randn(d, d, generator=generator) / d**0.5
    x = torch.randn(n, d, generator=generator).relu() @ mix + 0.3
    return x, torch.randn(m, d, generator=generator).relu()


# --- Frechet ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [300, 20])  # more and fewer rows than features
def test_frechet_agrees_with_pytorch_fid(n, generator):
    """pytorch-fid's formula, with scipy's square root of a matrix, on the same features."""
    x, y = pair(generator, n)
    (mu1, mu2), (c1, c2) = zip(*((a.double().mean(0), torch.cov(a.double().T)) for a in (x, y)), strict=True)
    cross = scipy.linalg.sqrtm((c1 @ c2).numpy()).real.trace()
    expected = ((mu1 - mu2).square().sum() + c1.trace() + c2.trace()).item() - 2 * cross
    assert frechet(x, y) == pytest.approx(expected, rel=1e-3 if n < 24 else 1e-8)


def test_frechet_agrees_with_torchmetrics(generator):
    fid = pytest.importorskip("torchmetrics.image.fid")
    x, y = pair(generator)
    theirs = fid.FrechetInceptionDistance(Same(), normalize=True).set_dtype(torch.float64)
    theirs.update(y.double(), real=True)
    theirs.update(x.double(), real=False)
    assert frechet(x, y) == pytest.approx(theirs.compute().item(), rel=1e-6)


def by_symmetric_roots(mu1, c1, mu2, c2):
    """The distance without a Cholesky factor: eigenvectors for both roots, singular values of their product."""

    def root(c):
        values, vectors = torch.linalg.eigh(c)
        return vectors @ values.clamp(min=0).sqrt().diag() @ vectors.T

    cross = torch.linalg.svdvals(root(c1) @ root(c2)).sum()
    return ((mu1 - mu2).square().sum() + c1.trace() + c2.trace() - 2 * cross).item()


def spectrum(d, decades, generator, turn=0.0):
    """A covariance whose eigenvalues fall over so many powers of ten, in a random basis (the same up to a turn)."""
    basis = torch.linalg.qr(torch.randn(d, d, generator=torch.Generator().manual_seed(1), dtype=torch.float64)).Q
    other = torch.randn(d, d, generator=generator, dtype=torch.float64)
    basis = torch.linalg.qr(basis + turn * other).Q
    return basis @ torch.logspace(0, -decades, d, dtype=torch.float64).diag() @ basis.T


def of_rank(d, rank, generator):
    rows = torch.randn(rank, d, generator=generator, dtype=torch.float64)
    return rows.T @ rows / rank


# What the covariances are, and whether the fast route may be taken.
COVARIANCES = {
    "full rank": (lambda g: (spectrum(60, 2, g), spectrum(60, 2, g, 0.1)), True),
    "as those of networks": (lambda g: (spectrum(60, 6, g), 1.1 * spectrum(60, 6, g, 0.1)), True),
    "other scales": (lambda g: (1e6 * spectrum(60, 3, g), 1e-6 * spectrum(60, 3, g, 0.1)), True),
    "equal": (lambda g: (spectrum(60, 4, g), spectrum(60, 4, g)), True),
    "nearly singular": (lambda g: (spectrum(60, 11, g), spectrum(60, 11, g, 0.1)), False),
    "one singular": (lambda g: (of_rank(60, 20, g), spectrum(60, 2, g)), False),
    "the other singular": (lambda g: (spectrum(60, 2, g), of_rank(60, 20, g)), False),
    "both singular": (lambda g: (of_rank(60, 20, g), of_rank(60, 30, g)), False),
    "one constant": (lambda g: (torch.zeros(60, 60, dtype=torch.float64), spectrum(60, 2, g)), False),
    "one feature": (lambda g: (torch.full((1, 1), 4.0), torch.full((1, 1), 9.0)), True),
}


@pytest.mark.parametrize("name", COVARIANCES)
def test_frechet_distance_by_symmetric_roots(name, generator, monkeypatch):
    """Equal to ten digits of what is subtracted, by the fast route where that is safe and by the other elsewhere."""
    build, fast = COVARIANCES[name]
    c1, c2 = (c.double() for c in build(generator))
    mu1, mu2 = torch.randn(2, len(c1), generator=generator, dtype=torch.float64)
    expected = by_symmetric_roots(mu1, c1, mu2, c2)
    singular_values = []
    plain = torch.linalg.svdvals
    monkeypatch.setattr(torch.linalg, "svdvals", lambda x: singular_values.append(x) or plain(x))
    found = frechet_distance(mu1, c1, mu2, c2)
    assert found == pytest.approx(expected, abs=1e-10 * (c1.trace() + c2.trace()).item(), rel=1e-13)
    assert bool(singular_values) != fast


def test_extrapolation_removes_the_bias_of_few_samples(generator):
    """Samples of N(0, I) against its exact moments: to second order the distance is d (d + 5) / (4 N), and should be 0."""
    d, n = 20, 400
    raw, infinite = [], []
    for _ in range(16):
        value, at = frechet_extrapolated(torch.randn(n, d, generator=generator), Moments(torch.zeros(d), torch.eye(d)))
        assert list(at) == [200, 266, 300, 400]
        raw.append(at[400])
        infinite.append(value)
    bias = d * (d + 5) / (4 * n)
    assert sum(raw) / 16 == pytest.approx(bias, rel=0.1)
    assert abs(sum(infinite) / 16) < 0.1 * bias


def test_extrapolation_keeps_a_true_distance(generator):
    """Of a shift and a scale it finds (d shift^2 + d (scale - 1)^2)."""
    d, n, shift, scale = 10, 4000, 1.5, 2.0
    x = scale * torch.randn(n, d, generator=generator) + shift
    value, _ = frechet_extrapolated(x, Moments(torch.zeros(d), torch.eye(d)))
    assert value == pytest.approx(d * (shift**2 + (scale - 1) ** 2), rel=0.03)


def test_the_largest_size_is_the_plain_distance(generator):
    x, y = pair(generator)
    reference = Moments(y.double().mean(0), torch.cov(y.double().T))
    assert frechet_extrapolated(x, reference)[1][300] == pytest.approx(frechet(x, y), rel=1e-9)
    with pytest.raises(UserError, match="needs 4 samples"):
        frechet_extrapolated(x[:3], reference)


# --- kernel ----------------------------------------------------------------------------------------------------------


def cubic(a, b):
    return (float(a @ b) / len(a) + 1) ** 3


def test_kernel_distance_by_hand(generator):
    x, y = pair(generator, 5, 5, 3)
    same = sum(cubic(a[i], a[j]) for a in (x, y) for i in range(5) for j in range(5) if i != j) / 20
    across = sum(cubic(a, b) for a in x for b in y) / 25
    value, std = kernel_distance(x, y)
    assert value == pytest.approx(same - 2 * across, rel=1e-5)
    assert std == 0  # one subset, all of both


def test_kernel_distance_of_gaussians(generator):
    """In one dimension E k(a, b) = 1 + 3 m1 n1 + 3 m2 n2 + m3 n3, with the raw moments of the two."""

    def expected(mean):
        p, q = (0.0, 1.0, 0.0), (mean, mean**2 + 1, mean**3 + 3 * mean)

        def k(a, b):
            return 1 + 3 * a[0] * b[0] + 3 * a[1] * b[1] + a[2] * b[2]

        return k(p, p) + k(q, q) - 2 * k(p, q)

    draws = [torch.randn(2, 400, 1, generator=generator) for _ in range(200)]
    mean = sum(kernel_distance(x, y + 0.3).value for x, y in draws) / 200
    assert mean == pytest.approx(expected(0.3), rel=0.05)


def test_kernel_distance_is_unbiased(generator):
    values = [kernel_distance(*(torch.randn(20, 4, generator=generator) for _ in range(2))).value for _ in range(2000)]
    mean, std = torch.tensor(values).mean(), torch.tensor(values).std()
    assert abs(mean) < 4 * std / 2000**0.5
    assert min(values) < 0


def test_kernel_distance_agrees_with_torchmetrics(generator):
    kid = pytest.importorskip("torchmetrics.image.kid")
    x, y = pair(generator, 60, 60)
    theirs = kid.KernelInceptionDistance(Same(), subsets=1, subset_size=60, normalize=True)
    theirs.update(y, real=True)
    theirs.update(x, real=False)
    assert kernel_distance(x, y).value == pytest.approx(theirs.compute()[0].item(), rel=1e-3)
    subsets = kernel_distance(x, y, subset=30, subsets=200)
    assert subsets.value == pytest.approx(kernel_distance(x, y).value, abs=3 * subsets.std / 200**0.5 + 1e-3)
    assert kernel_distance(x, y, subset=30, seed=1) == kernel_distance(x, y, subset=30, seed=1)


# --- neighbours and classes ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", [7, 1000])
def test_neighbours_by_brute_force(block, generator):
    x, y = (torch.randn(n, 3, generator=generator, dtype=torch.float64) for n in (40, 50))
    x = 0.7 * x + 0.3

    def radius(a, k):
        return [sorted((p - q).norm().item() for q in a)[k] for p in a]

    def inside(points, a, k):
        return [[(p - q).norm().item() <= r for q, r in zip(a, radius(a, k), strict=True)] for p in points]

    of_y3, of_y5, of_x3 = (torch.tensor(t) for t in (inside(x, y, 3), inside(x, y, 5), inside(y, x, 3)))
    found = neighbours(x, y, 3, 5, block)
    assert found.precision == pytest.approx(of_y3.any(1).double().mean().item())
    assert found.recall == pytest.approx(of_x3.any(1).double().mean().item())
    assert found.density == pytest.approx(of_y5.sum().item() / (5 * 40))
    assert found.coverage == pytest.approx(of_y5.any(0).double().mean().item())
    assert 0 < found.recall < 1


def by_whole_matrices(x, y, k, k_density):
    """The same in one matrix for each pair of sets, sorted whole."""

    def square(a, b):
        return (a.square().sum(1)[:, None] + b.square().sum(1)[None] - 2 * a @ b.T).clamp(min=0)

    def radius(a, neighbour):
        return square(a, a).fill_diagonal_(-1).sort(1).values[:, neighbour]

    across, wide = square(y, x), radius(y, k_density)[:, None]
    return (
        (across <= radius(y, k)[:, None]).any(0).double().mean().item(),
        (across <= radius(x, k)[None]).any(1).double().mean().item(),
        (across <= wide).sum().item() / (k_density * len(x)),
        (across <= wide).any(1).double().mean().item(),
    )


@pytest.mark.parametrize(("d", "copies"), [(2, 0), (64, 0), (200, 0), (16, 300)])
def test_neighbours_equal_whole_matrices_bit_for_bit(d, copies, generator):
    """Also with ties: where samples are copies of references, and references are there twice (of integers: exact)."""
    x, y = torch.randn(700, d, generator=generator).double(), torch.randn(900, d, generator=generator).double()
    if copies:
        x, y = (8 * x).round(), (8 * y).round()
        x[:copies], y[-copies:] = y[:copies], y[:copies]
    assert neighbours(x, y) == by_whole_matrices(x, y, 3, 5)
    assert neighbours(x, y, 5, 3) == by_whole_matrices(x, y, 5, 3)


def test_neighbours_of_same_and_of_far_sets(generator):
    x = torch.randn(100, 6, generator=generator) + 100
    assert neighbours(x, x)[:2] == (1, 1)
    assert neighbours(x, x).coverage == 1
    assert neighbours(x, x + 50) == (0, 0, 0, 0)
    half = torch.cat([x[:50], x[:50] + 50])
    assert neighbours(half, x).precision == 0.5
    fresh = torch.randn(2000, 2, generator=generator), torch.randn(2000, 2, generator=generator)
    assert neighbours(*fresh).density == pytest.approx(1, abs=0.05)  # its expectation for equal distributions
    with pytest.raises(UserError, match="more than 5"):
        neighbours(x[:5], x)


def test_class_score_of_known_classes():
    sure = 50 * torch.eye(4).repeat(25, 1)  # each class a quarter of the time, beyond doubt
    assert class_score(sure, 5).value == pytest.approx(4, rel=1e-6)
    assert class_score(sure, 5).std == pytest.approx(0, abs=1e-6)
    assert class_score(torch.zeros(50, 7)).value == pytest.approx(1)
    assert class_score(sure[::4]).value == pytest.approx(1)  # one class only
    p = torch.tensor([[0.9, 0.1], [0.1, 0.9]])
    expected = math.exp(0.9 * math.log(0.9 / 0.5) + 0.1 * math.log(0.1 / 0.5))
    assert class_score(p.log(), 1).value == pytest.approx(expected, rel=1e-6)


def test_class_score_agrees_with_torchmetrics(generator):
    inception = pytest.importorskip("torchmetrics.image.inception")
    logits = 3 * torch.randn(200, 24, generator=generator)
    theirs = inception.InceptionScore(Same(), splits=1)
    theirs.update(logits)
    assert class_score(logits, 1).value == pytest.approx(theirs.compute()[0].item(), rel=1e-5)
