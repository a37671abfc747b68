"""Metrics against closed forms, brute force and other libraries."""

import hashlib
import json
import math
from dataclasses import dataclass

import numpy as np
import pytest
import pywt
import scipy.linalg
import torch
from scipy.optimize import linear_sum_assignment
from scipy.stats import wasserstein_distance
from torch import nn

from atdm.diffusion.model import Model
from atdm.diffusion.process import Process
from atdm.diffusion.steps import Sampling
from atdm.errors import UserError
from atdm.metrics import (
    FEATURES,
    METRICS,
    FeatureSpace,
    Provenance,
    Result,
    Score,
    content_hash,
    diverged_share,
    evaluate_samples,
    frechet,
    frechet_distance,
    label,
    metric,
    mode_mass_error,
    nearest_psnr,
    never_varying,
    never_varying_noise,
    noise_std,
    off_support_rms,
    outlier_share,
    psnr,
    residual_noise_std,
    score_error,
    score_errors,
    sliced_wasserstein,
    spread_ratio,
    wasserstein,
)


class Line:
    """The first axis of R^d, uniform on [-1, 1]."""

    true_spread = 1 / math.sqrt(3)

    def distance(self, x):
        return x[:, 1:].norm(dim=1)

    def spread(self, x):
        return x[:, 0].std().item()


class Span:
    """Images on the line spanned by the first pixel, without a known spread."""

    def residual(self, x):
        return x.flatten(1)[:, 1:].square().mean(1).sqrt()

    def residual_rms(self, x):
        return self.residual(x).square().mean().sqrt().item()

    def spread(self, x):
        return x.flatten(1)[:, 0].std().item()


@dataclass
class TwoGaussians:
    """N(-m, s^2 I) and N(m, s^2 I) in 2-D with unequal weights."""

    m: float = 1.5
    s: float = 0.3

    @property
    def weights(self):
        return torch.tensor([0.25, 0.75])

    def distance(self, x):
        return (x.abs() - self.m).norm(dim=1)

    def mode_mass(self, x):
        right = (x[:, 0] > 0).double().mean()
        return torch.stack([1 - right, right])

    def sample(self, n, generator):
        sign = torch.where(torch.rand(n, 1, generator=generator) < 0.25, -1.0, 1.0)
        return sign * self.m + self.s * torch.randn(n, 2, generator=generator)

    def score(self, x, alpha, sigma):
        variance = alpha**2 * self.s**2 + sigma**2
        centers = alpha * self.m * torch.tensor([-1.0, 1.0])
        gaps = centers[None, :, None] - x[:, None, :]
        share = torch.softmax(self.weights.log() - gaps.square().sum(2) / (2 * variance), 1)
        return (share[:, :, None] * gaps).sum(1) / variance


def covariance(d, generator, rank=None):
    root = torch.randn(d, rank or d, generator=generator, dtype=torch.float64)
    return root @ root.T / d


# --- exact -----------------------------------------------------------------------------------------------------------


def test_distance_from_the_support():
    x = torch.tensor([[0.5, 3.0, 4.0], [9.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, 0.0, 0.0]])
    assert off_support_rms(x, Line()) == pytest.approx(math.sqrt(26 / 4))
    assert outlier_share(x, Line(), 0.9) == 0.5
    assert outlier_share(x, Line(), 1.0) == 0.25  # beyond, not at, the threshold


def test_a_subspace_measures_its_own_residual():
    x = torch.zeros(2, 1, 2, 2)
    x[0, 0, 1, 1] = 3.0
    assert off_support_rms(x, Span()) == pytest.approx(math.sqrt(3 / 2))
    assert outlier_share(x, Span(), 1.0) == 0.5


def test_spread_is_relative_to_the_truth_or_to_a_reference(generator):
    x = torch.rand(1000, 3, generator=generator) * 2 - 1
    ratio = spread_ratio(x, Line())
    assert ratio == pytest.approx(1, abs=0.05)
    assert spread_ratio(0.5 * x, Line()) == pytest.approx(ratio / 2)
    images = torch.randn(50, 1, 2, 2, generator=generator)
    assert spread_ratio(3 * images, Span(), images) == pytest.approx(3)
    with pytest.raises(UserError, match="Expected a reference to compare with"):
        spread_ratio(images, Span())


def test_mode_mass_error_is_total_variation():
    x = torch.tensor([[-1.5, -1.5]] * 3 + [[1.5, 1.5]])
    assert mode_mass_error(x, TwoGaussians()) == pytest.approx(0.5)  # shares 3/4, 1/4 against 1/4, 3/4
    assert mode_mass_error(-x, TwoGaussians()) == pytest.approx(0)


def test_diverged_share_counts_nan_infinity_and_far():
    x = torch.zeros(8, 1, 2, 2)
    x[0, 0, 0, 0], x[1, 0, 1, 1], x[2, 0, 0, 1], x[3, 0, 1, 0] = math.nan, -math.inf, -5.1, 5.0
    assert diverged_share(x, 5.0) == 3 / 8


@pytest.mark.parametrize("d", [2, 7])
def test_wasserstein_of_a_shift_is_its_length(d, generator):
    x = torch.randn(200, d, generator=generator)
    shift = torch.randn(d, generator=generator)
    assert wasserstein(x, x + shift, generator=generator) == pytest.approx(shift.norm().item(), rel=1e-5)
    got = sliced_wasserstein(x, x + shift, 10_000, generator=generator)
    assert got == pytest.approx(shift.norm().item() / math.sqrt(d), rel=0.02)


def test_sliced_wasserstein_of_two_gaussians(generator):
    """Along theta, N(0, 1) and N(theta.v, s^2) are sqrt((theta.v)^2 + (1 - s)^2) apart."""
    x, y = torch.randn(5000, 3, generator=generator), torch.randn(4000, 3, generator=generator)
    shift, s = torch.tensor([1.0, 2.0, 2.0]), 1.5
    got = sliced_wasserstein(x, s * y + shift, 1000, generator=generator)
    assert got == pytest.approx(math.sqrt(9 / 3 + 0.25), rel=0.04)


def test_wasserstein_is_the_best_assignment(generator):
    x, y = torch.randn(60, 3, generator=generator), torch.rand(60, 3, generator=generator)
    cost = torch.cdist(x.double(), y.double()).square().numpy()
    best = cost[linear_sum_assignment(cost)].mean() ** 0.5
    assert wasserstein(x, y, generator=generator) == pytest.approx(best, rel=1e-9)


@pytest.mark.parametrize(("n", "m"), [(5, 5), (4, 6), (7, 3), (1, 9)])
def test_one_dimension_is_exact_for_any_two_sizes(n, m, generator):
    """Repeating each point to the least common multiple gives equal sizes, where sorting solves the assignment."""
    x, y = torch.randn(n, 1, generator=generator), torch.randn(m, 1, generator=generator)
    equal = math.lcm(n, m)
    x_all, y_all = (a.repeat_interleave(equal // len(a)).double().sort().values for a in (x[:, 0], y[:, 0]))
    expected = (x_all - y_all).square().mean().sqrt().item()
    assert sliced_wasserstein(x, y, 3, generator=generator) == pytest.approx(expected, rel=1e-9)
    assert wasserstein(x, y, generator=generator) == pytest.approx(expected, rel=1e-6)
    assert expected >= wasserstein_distance(x[:, 0], y[:, 0]) - 1e-9  # W2 is no less than scipy's W1


def test_wasserstein_thins_by_the_generator_alone(generator):
    x, y = torch.randn(300, 2, generator=generator), torch.randn(400, 2, generator=generator)
    seeded = [wasserstein(x, y, 50, generator=torch.Generator().manual_seed(s)) for s in (1, 1, 2)]
    assert seeded[0] == seeded[1] != seeded[2]
    assert seeded[0] != wasserstein(x, y, generator=generator)


def test_score_error_is_zero_for_the_truth_and_e_for_a_score_scaled_by_one_plus_e(generator):
    truth, process = TwoGaussians(), Process.linear(100)
    analytic = lambda x, t: truth.score(x, process.alphas[t[0]], process.sigmas[t[0]])  # noqa: E731
    steps = torch.tensor([0, 30, 99])
    exact = score_error(analytic, truth, process, steps, 500, generator=generator)
    torch.testing.assert_close(exact, torch.zeros(3), atol=1e-5, rtol=0)
    scaled = score_error(lambda x, t: 1.2 * analytic(x, t), truth, process, [30, 99], 500, generator=generator)
    torch.testing.assert_close(scaled, torch.full((2,), 0.2), atol=1e-5, rtol=0)
    half = score_error(
        lambda x, t: analytic(x, t) * (t[:, None] < 50), truth, process, [30, 99], 9, generator=generator
    )
    torch.testing.assert_close(half, torch.tensor([0.0, 1.0]), atol=1e-5, rtol=0)


def test_score_error_weighs_by_the_true_marginal(generator):
    """A wrong constant in the left mode alone: E||s - s*||^2 is that constant squared times the mode's weight."""
    truth, process, offset = TwoGaussians(), Process.linear(100), 5.0
    alpha, sigma = process.alphas[5].item(), process.sigmas[5].item()

    def wrong_on_the_left(x, t):
        return truth.score(x, alpha, sigma) + offset * (x[:, :1] < 0)

    x_t = alpha * truth.sample(100_000, generator) + sigma * torch.randn(100_000, 2, generator=generator)
    size = truth.score(x_t, alpha, sigma).square().sum(1).mean()
    expected = math.sqrt(0.25 * 2 * offset**2 / size)
    got = score_error(wrong_on_the_left, truth, process, [5], 100_000, generator=generator)
    assert got.item() == pytest.approx(expected, rel=0.02)


def test_score_errors_of_a_model_over_t():
    """A network that predicts no noise has the score zero: a relative error of 1 at every t."""
    truth, process = TwoGaussians(), Process.linear(100)
    nothing = nn.Linear(2, 2)
    nn.init.zeros_(nothing.weight)
    nn.init.zeros_(nothing.bias)

    class Zero(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nothing

        def forward(self, x, t):
            return self.inner(x)

    scores = score_errors(Model(Zero(), process), truth)
    assert [s.metric for s in scores] == ["score_error", *(f"score_error_t{t}" for t in (0, 10, 25, 50, 74, 89, 99))]
    assert all(s.value == pytest.approx(1) for s in scores)
    assert score_errors(Model(Zero(), process), Line()) == []


# --- noise and closeness ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("side", "channels", "tolerance"), [(8, 1, 0.03), (8, 3, 0.02), (9, 1, 0.03), (16, 1, 0.01), (32, 3, 0.01)]
)
def test_noise_of_flat_images_is_unbiased(side, channels, tolerance, generator):
    shape = (3000, channels, side, side)
    level = torch.rand(3000, channels, 1, 1, generator=generator)
    std = torch.where(torch.arange(3000) < 1500, 0.1, 0.4)
    x = level + std.reshape(-1, 1, 1, 1) * torch.randn(shape, generator=generator)
    got = residual_noise_std(x) / std
    assert got[:1500].mean().item() == pytest.approx(1, abs=tolerance)
    assert got[1500:].mean().item() == pytest.approx(1, abs=tolerance)
    assert noise_std(x[:1500]) == pytest.approx(0.1, rel=tolerance)
    assert noise_std(x[1500:]) == pytest.approx(0.4, rel=tolerance)


def test_noise_is_the_median_of_the_wavelet_details(generator):
    """PyWavelets' decimated transform, at the four shifts that together make every shift."""
    x = torch.randn(2, 3, 9, 12, generator=generator)
    for image, got in zip(x, residual_noise_std(x), strict=True):
        shifts = [image[:, i:, j:] for i in (0, 1) for j in (0, 1)]
        even = [a[:, : a.shape[1] // 2 * 2, : a.shape[2] // 2 * 2].numpy() for a in shifts]
        details = np.concatenate([pywt.dwt2(a, "haar", axes=(1, 2))[1][2].ravel() for a in even])
        assert details.size == 3 * 8 * 11
        assert got.item() == pytest.approx(np.median(np.abs(details)) / 0.6744897501960817, rel=1e-5)


def test_noise_ignores_ramps_and_a_few_edges(generator):
    rows, columns = torch.meshgrid(torch.linspace(-1, 1, 32), torch.linspace(-1, 1, 32), indexing="ij")
    drawing = 0.5 * rows - 0.3 * columns
    drawing[10:20, 8:25] = 1.0
    noisy = drawing + 0.1 * torch.randn(500, 1, 32, 32, generator=generator)
    assert residual_noise_std(drawing[None, None]).item() == pytest.approx(0, abs=1e-6)
    assert noise_std(noisy) == pytest.approx(0.1, rel=0.03)


def test_noise_of_tiny_images_is_refused():
    with pytest.raises(UserError, match="8x8 or larger"):
        residual_noise_std(torch.zeros(2, 1, 7, 28))


def test_noise_on_pixels_that_never_vary(generator):
    reference = torch.randn(400, 1, 8, 8, generator=generator)
    reference[:, :, 0] = -1.0
    reference[:, :, 1] = -1.0 + 0.05 * torch.randn(400, 1, 8, generator=generator)
    assert never_varying(reference).sum() == 8
    assert never_varying(reference, 0.1).sum() == 16
    x = reference + 0.2 * torch.randn(400, 1, 8, 8, generator=generator)
    assert never_varying_noise(x, reference) == pytest.approx(0.2, rel=0.03)
    assert never_varying_noise(reference, reference) == 0.0
    assert never_varying_noise(reference + 0.3, reference) == pytest.approx(0.3, rel=1e-5)  # a shift is an error too
    with pytest.raises(UserError, match="Every pixel"):
        never_varying_noise(x, x)


def test_psnr_of_known_errors():
    x = torch.zeros(3, 1, 4, 4)
    y = torch.stack([torch.full((1, 4, 4), 0.2), torch.zeros(1, 4, 4), torch.full((1, 4, 4), 2.0)])
    torch.testing.assert_close(psnr(x, y), torch.tensor([20.0, math.inf, 0.0]))
    torch.testing.assert_close(psnr(x[:1], y[:1], data_range=1.0), torch.tensor([20 * math.log10(5)]))


def test_nearest_psnr_is_the_best_over_the_reference(generator):
    x, reference = torch.rand(7, 3, 4, 4, generator=generator), torch.rand(30, 3, 4, 4, generator=generator)
    every = torch.stack([psnr(x, r.expand_as(x)) for r in reference])
    torch.testing.assert_close(nearest_psnr(x, reference, batch=3), every.max(0).values)
    assert nearest_psnr(reference[5:6], reference).item() == math.inf


# --- Frechet ---------------------------------------------------------------------------------------------------------


def test_frechet_of_commuting_covariances(generator):
    """A common eigenbasis gives sum (sqrt a - sqrt b)^2."""
    basis = torch.linalg.qr(torch.randn(6, 6, generator=generator, dtype=torch.float64)).Q
    a, b = (torch.rand(6, generator=generator, dtype=torch.float64) for _ in range(2))
    a[0] = b[1] = b[2] = 0.0  # singular covariances are welcome
    mu = torch.zeros(6, dtype=torch.float64)
    got = frechet_distance(mu, basis @ a.diag() @ basis.T, mu + 1, basis @ b.diag() @ basis.T)
    assert got == pytest.approx((a.sqrt() - b.sqrt()).square().sum().item() + 6, rel=1e-6)


def test_frechet_of_other_covariances_against_scipy(generator):
    c1, c2 = covariance(8, generator), covariance(8, generator)
    mu1, mu2 = torch.randn(2, 8, generator=generator, dtype=torch.float64)
    cross = scipy.linalg.sqrtm((c1 @ c2).numpy()).real.trace()
    expected = ((mu1 - mu2).square().sum() + c1.trace() + c2.trace()).item() - 2 * cross
    assert not torch.allclose(c1 @ c2, c2 @ c1, atol=1e-2)
    assert frechet_distance(mu1, c1, mu2, c2) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(mu2, c2, mu1, c1) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("rank", [12, 3])
def test_frechet_of_identical_is_zero_and_a_shift_adds_its_square(rank, generator):
    c = covariance(12, generator, rank)
    mu, shift = torch.randn(2, 12, generator=generator, dtype=torch.float64)
    assert frechet_distance(mu, c, mu, c) == pytest.approx(0, abs=1e-10)
    assert frechet_distance(mu, c, mu + shift, c) == pytest.approx(shift.square().sum().item(), rel=1e-9)


def test_frechet_fits_gaussians_to_features(generator):
    x = torch.randn(500, 4, generator=generator) + 100  # a far mean must not cost precision
    y = torch.randn(400, 4, generator=generator) @ torch.randn(4, 4, generator=generator) + 100
    mus, covs = zip(*((a.double().mean(0), torch.cov(a.double().T)) for a in (x, y)), strict=True)
    expected = frechet_distance(mus[0], covs[0], mus[1], covs[1])
    assert frechet(x, y) == pytest.approx(expected, rel=1e-9)
    for batch in (1, 7, 1000):
        assert FeatureSpace("mine", lambda a: a).distance(x, y, batch) == pytest.approx(expected, rel=1e-9)
    with pytest.raises(UserError, match="same number"):
        frechet(x, y[:, :3])
    with pytest.raises(UserError, match="two rows"):
        frechet(x, y[:1])


@pytest.mark.parametrize("name", ["pixels", "pca", "patches"])  # networks: test_features.py
def test_every_feature_space(name, generator):
    x, y = torch.randn(2, 60, 3, 6, 6, generator=generator)
    space = FEATURES[name]().fit(y)
    assert space.name.startswith(name)
    assert space.distance(y, y) == pytest.approx(0, abs=1e-8)
    assert space.distance(y, x) > 0
    # The square of a distance: scaling the data scales it by the square.
    assert FEATURES[name]().fit(2 * y).distance(2 * x, 2 * y) == pytest.approx(4 * space.distance(x, y), rel=1e-4)


def test_few_large_images_need_no_covariance(generator, monkeypatch):
    x, y = torch.randn(12, 3, 8, 8, generator=generator), torch.rand(30, 3, 8, 8, generator=generator)
    means, covariances = zip(
        *((f.mean(0), torch.cov(f.T)) for f in (x.flatten(1).double(), y.flatten(1).double())), strict=True
    )
    expected = frechet_distance(means[0], covariances[0], means[1], covariances[1])
    monkeypatch.setattr(FeatureSpace, "moments", None)  # not called
    assert FEATURES["pixels"]().distance(x, y) == pytest.approx(expected, rel=1e-7)
    some = FEATURES["pca"](directions=5).fit(y)
    values, basis = torch.linalg.eigh(covariances[1])
    span = some.fn(torch.eye(192).reshape(192, 3, 8, 8))  # the directions, one a column
    assert torch.allclose(span @ span.T, basis[:, -5:] @ basis[:, -5:].T, atol=1e-9)
    assert torch.allclose(torch.cov(some.fn(y).T).diagonal(), values[-5:], rtol=1e-9)


def test_pca_is_the_frechet_distance_inside_the_subspace(generator):
    basis = torch.linalg.qr(torch.randn(16, 16, generator=generator)).Q
    y = (torch.randn(300, 3, generator=generator) @ basis[:3]).reshape(300, 1, 4, 4)
    x = (torch.randn(300, 3, generator=generator) * 1.5 @ basis[:3]).reshape(300, 1, 4, 4)
    off = (torch.randn(300, 13, generator=generator) @ basis[3:]).reshape(300, 1, 4, 4)
    space = FEATURES["pca"](directions=3).fit(y)
    inside = frechet(x.flatten(1) @ basis[:3].T, y.flatten(1) @ basis[:3].T)
    assert space.name == "pca3"
    assert space.distance(x + off, y) == pytest.approx(inside, rel=1e-4)
    assert FEATURES["pca"](directions=99).fit(y).name == "pca3"  # no more than its rank
    for bad, reference in ((0, y), (3, torch.ones_like(y))):
        with pytest.raises(UserError, match="principal directions"):
            FEATURES["pca"](directions=bad).fit(reference)


def test_patches_see_noise_and_not_layout(generator):
    y = torch.randn(200, 1, 8, 8, generator=generator)
    space = FEATURES["patches"](size=2).fit(y)
    by_hand = torch.stack([y[:, 0, i : i + 2, j : j + 2].flatten(1) for i in range(7) for j in range(7)])
    mu, cov = space.moments(y)
    torch.testing.assert_close(mu, by_hand.flatten(0, 1).double().mean(0))
    torch.testing.assert_close(cov, torch.cov(by_hand.flatten(0, 1).double().T))
    noise = torch.randn(200, 1, 8, 8, generator=generator)
    assert space.distance(y + noise, y) == pytest.approx(4 * (math.sqrt(2) - 1) ** 2, rel=0.1)  # 4 values of a patch
    mirrored = torch.cat([y, y.flip(3)])
    assert space.distance(mirrored.roll(100, 0), mirrored) == pytest.approx(0, abs=1e-8)
    with pytest.raises(UserError, match="1 to 8"):
        FEATURES["patches"](size=9).fit(y)


def test_a_network_as_feature_space_is_put_in_evaluation_mode(generator):
    network = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(16, 3))
    x = torch.randn(50, 1, 4, 4, generator=generator)
    space = FeatureSpace("tiny-net", network)
    assert space.distance(x, x) == pytest.approx(0, abs=1e-8)
    assert network[2].weight.grad is None
    assert "frechet_tiny-net" in evaluate_samples(x, x, features=space)


# --- results ---------------------------------------------------------------------------------------------------------

TRUTHS = [
    pytest.param((64, 3), Line(), {"off_support_rms", "outlier_share", "spread_ratio", "wasserstein"}, id="line"),
    pytest.param(
        (64, 2), TwoGaussians(), {"off_support_rms", "outlier_share", "mode_mass_error", "wasserstein"}, id="mix"
    ),
    pytest.param((64, 2), None, {"wasserstein"}, id="vectors"),
    pytest.param(
        (64, 1, 4, 4), Span(), {"off_support_rms", "spread_ratio", "frechet_pixels", "nearest_psnr"}, id="span"
    ),
    pytest.param(
        (64, 3, 8, 8), None, {"frechet_pixels", "nearest_psnr", "noise_std", "noise_std_reference"}, id="images"
    ),
]


@pytest.mark.parametrize(("shape", "truth", "expected"), TRUTHS)
def test_evaluate_says_what_applies(shape, truth, expected, generator):
    x, reference = torch.randn(2, *shape, generator=generator)
    values = evaluate_samples(x, reference, truth)
    assert expected | {"diverged_share", "sliced_wasserstein"} <= values.keys()
    assert all(math.isfinite(v) for v in values.values())
    assert values == evaluate_samples(x, reference, truth)
    assert values != evaluate_samples(x, reference, truth, seed=1)
    for name in values:
        assert metric(name).meaning.endswith(".")
    if truth is None:
        assert "off_support_rms" not in values


def test_evaluate_measures_the_noise_of_digits(generator):
    """On real digits the exact measure reads the noise where the wavelet one also reads strokes."""
    from sklearn.datasets import load_digits

    clean = torch.tensor(load_digits().images / 8 - 1).float()[:, None]
    noisy = clean[:800] + 0.2 * torch.randn(800, 1, 8, 8, generator=generator)
    values = evaluate_samples(noisy, clean[800:], features="pca:directions=16")
    assert values["never_varying_noise"] == pytest.approx(0.2, rel=0.05)
    assert values["noise_std"] > values["noise_std_reference"] > 0.2
    assert "frechet_pca16" in values
    assert "pca16" in metric("frechet_pca16").meaning


def test_evaluate_leaves_what_is_not_finite_to_the_diverged_share(generator):
    x, reference = torch.randn(2, 40, 2, generator=generator)
    broken = x.clone()
    broken[:10] = math.nan
    values, kept = evaluate_samples(broken, reference, Line()), evaluate_samples(x[10:], reference, Line())
    assert values == kept | {"diverged_share": 0.25}
    assert evaluate_samples(broken[:11], reference) == {"diverged_share": pytest.approx(10 / 11)}
    far = x.clone()
    far[0] = 1e4
    assert evaluate_samples(far, reference)["diverged_share"] == 1 / 40


@pytest.mark.parametrize(
    ("samples", "reference", "features", "message"),
    [
        (torch.zeros(5, 3), torch.zeros(5, 2), "pixels", "same shape"),
        (torch.zeros(5, 3, 3), torch.zeros(5, 3, 3), "pixels", r"Expected \[n, d\]"),
        (torch.zeros(1, 3), torch.zeros(5, 3), "pixels", "two or more"),
        (torch.zeros(5, 3), torch.full((5, 3), math.nan), "pixels", "not finite"),
        (torch.zeros(5, 1, 4, 4), torch.zeros(5, 1, 4, 4), "pixel", "Did you mean 'pixels'"),
        (torch.zeros(5, 1, 4, 4), torch.zeros(5, 1, 4, 4), "patches:side=2", "no option 'side'"),
    ],
)
def test_evaluate_refuses_in_a_sentence(samples, reference, features, message):
    with pytest.raises(UserError, match=message):
        evaluate_samples(samples, reference, features=features)


@pytest.mark.parametrize("name", METRICS)
def test_every_metric_is_described(name):
    entry = METRICS[name]
    assert entry.function is None or callable(entry.function)
    assert entry.better in (("none",) if name == "noise_std_reference" else ("lower", "higher", "one"))
    assert entry.meaning[0].isupper()
    assert entry.meaning.endswith(".")
    assert metric(name) is entry


def test_an_unknown_metric_is_refused():
    with pytest.raises(UserError, match="Did you mean 'noise_std'"):
        metric("noise_st")


def test_content_hash_tells_bytes_shape_and_type():
    x = torch.arange(6, dtype=torch.int32)
    expected = hashlib.sha256(b"torch.int32 (6,) " + x.numpy().tobytes()).hexdigest()[:16]
    assert content_hash(x) == expected
    assert content_hash(torch.arange(12, dtype=torch.int32)[::2] // 2) == expected  # the layout in memory is no content
    others = [x.reshape(2, 3), x.view(torch.float32), x + 1, x[:5], torch.tensor(1.0), x.to(torch.bfloat16)]
    assert len({expected, *map(content_hash, others)}) == 7


def test_a_result_is_a_flat_row_of_json():
    provenance = Provenance(
        samples=100,
        reference="digits",
        reference_hash="ab",
        checkpoint="cd",
        weights="ema",
        sampling=Sampling("ddim", 50),
        last_ratio=0.076,
    )
    row = Result(Score("frechet_pixels", 1.5, "pixels", details={"at": {50: 2.0}}), provenance).as_dict()
    assert json.loads(json.dumps(row, allow_nan=False)) == {
        "metric": "frechet_pixels",
        "label": "FD-pixels",
        "value": 1.5,
        "samples": 100,
        "reference": "digits",
        "reference_hash": "ab",
        "model": None,
        "checkpoint": "cd",
        "weights": "ema",
        "sampler": "ddim",
        "steps": 50,
        "start_ratio": None,
        "stop_ratio": None,
        "last_ratio": 0.076,
        "seed": None,
        "reference_kind": None,
        "conditioned_on": None,
        "clip_sample": None,
        "features": "pixels",
        "features_hash": None,
        "preprocessing": None,
        "settings": None,
        "details": {"at": {"50": 2.0}},
    }
    assert Result(Score("nearest_psnr", math.inf), provenance).as_dict()["value"] is None


@pytest.mark.parametrize(
    ("name", "title"),
    [
        ("frechet_Inception", "FID"),
        ("frechet_EfficientNetLite0", "FD-EfficientNetLite0"),
        ("frechet_extrapolated_pixels", "FD-infinity-pixels"),
        ("kernel_Inception", "KID"),
        ("kernel_Small", "KD-Small"),
        ("class_score_Inception", "IS"),
        ("class_score_EfficientNetLite0", "IS-EfficientNetLite0"),
        ("precision_Inception", "precision-Inception"),
        ("noise_std", "noise_std"),
        ("score_error_t10", "score_error_t10"),
    ],
)
def test_scores_are_named_by_their_network(name, title):
    assert label(name) == title
    assert metric(name).meaning.endswith(".")
    if "Inception" not in name:
        assert "FID" not in title
