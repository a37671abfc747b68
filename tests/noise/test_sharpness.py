"""Sharp images among blurred or compressed ones look noisy, and are not: what they have more of is not white."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from atdm.audit import audit
from atdm.audit.recipe import recommend
from atdm.corruption import corrupt
from atdm.data import load
from atdm.data.items import Floats
from atdm.data.source import Source
from atdm.noise import estimate_noise
from atdm.noise.filters import _covariance, rise
from atdm.training.choice import choose
from atdm.training.config import ObjectiveConfig, TrainConfig


def textured(n, seed, side=16):
    """Gaussian images of which the variance falls with the frequency."""
    frequency = torch.fft.fftfreq(2 * side)
    fall = (frequency[:, None] ** 2 + frequency**2).sqrt().clamp_min(1 / (2 * side)) ** -1.4
    white = torch.randn(n, 3, 2 * side, 2 * side, generator=torch.Generator().manual_seed(seed))
    x = torch.fft.ifft2(torch.fft.fft2(white) * fall).real[:, :, :side, :side]
    return 0.4 * x / x.std()


def test_the_rise_is_one_for_white_noise_and_that_of_the_variances_for_more_contrast():
    clean, others = textured(3000, 0), textured(3000, 1)
    noise = 0.2 * torch.randn(others.shape, generator=torch.Generator().manual_seed(2))
    assert rise(others + noise, clean) == pytest.approx(1, abs=0.1)
    assert rise((others + noise).mean(1, keepdim=True), clean.mean(1, keepdim=True)) == pytest.approx(1, abs=0.1)
    variance = torch.linalg.eigvalsh(_covariance(clean))[1:]
    sixth = len(variance) // 6
    expected = variance[2 * sixth : 3 * sixth].mean() / variance[:sixth].mean()
    assert rise(2 * clean, clean) == pytest.approx(float(expected), rel=1e-3)
    assert expected > 2


def photos():
    root = Path(os.environ.get("ATDM_SHARED") or Path(__file__).parents[3] / "shared")
    if not (root / "data" / "cifar10").is_dir():
        pytest.skip("no CIFAR-10 here")
    return load(str(root / "data" / "cifar10"), limit=1500, image_size=16).x[:1500]


@pytest.mark.parametrize(("spec", "share"), [("jpeg:share=0.9,quality=10", 0.1), ("blur:share=0.5,sigma=1", 0.5)])
def test_sharp_images_among_blurred_or_compressed_ones_are_no_noise(spec, share):
    images, truth = corrupt(photos(), spec, 0)
    found = estimate_noise(images)
    assert found.noise.std is None
    assert not found.stds.any()
    assert len(found.sharper) / len(images) == pytest.approx(share, abs=0.03)
    assert truth.corrupted[found.sharper].mean() < 0.2
    assert truth.corrupted[found.sharper[: len(found.sharper) // 2]].mean() < 0.02  # the sharpest are untouched
    assert found.levels[found.sharper[0]] == found.levels[found.sharper].max()
    source = Source(Floats(images))
    chosen, (why,) = choose(TrainConfig(objective=ObjectiveConfig("auto")), source, None)
    assert chosen.name == "ddpm"
    assert f"{len(found.sharper) / len(images):.0%} of them are sharper than the others" in why
    seen = audit(source)
    assert seen.noise_share == 0
    listed = seen.as_dict()["noise"]["sharper"]
    assert listed["share"] == pytest.approx(share, abs=0.03)
    assert listed["sharpest"] == [int(i) for i in seen.sharper[: len(listed["sharpest"])]]
    assert any("--trusted" in reason for reason in recommend(TrainConfig(), seen, cuda=False)[1])


@pytest.mark.parametrize(
    "spec", ["gaussian:share=0.3,std=0.05", "gaussian:share=0.9,std=0.05", "gaussian:share=0.5,std=0.2"]
)
def test_noise_is_still_found(spec):
    images, truth = corrupt(photos(), spec, 0)
    found = estimate_noise(images)
    assert not len(found.sharper)
    assert np.mean((found.stds > 0) == truth.corrupted) > 0.97
