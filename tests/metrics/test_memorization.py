"""Memorization on planted duplicates, against brute force, and without memorization."""

import pytest
import torch
from matplotlib.figure import Figure

from atdm import plot
from atdm.data import load
from atdm.errors import UserError
from atdm.metrics import memorization


@pytest.fixture(scope="module")
def digits():
    x = load("digits", seed=1).x
    return x[:800], x[800:1100], x[1100:1400]  # training, held out, and "samples" that copy nothing


def planted(digits, share):
    """Samples of which a share are training images with a little noise, and where they came from."""
    train, _, fresh = digits
    copies = round(share * len(fresh))
    source = torch.arange(copies) * 2
    noise = 0.02 * torch.randn(copies, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    return torch.cat([train[source] + noise, fresh[copies:]]), source


@pytest.mark.parametrize("features", ["pixels", "pca:directions=16"])
@pytest.mark.parametrize("share", [0.1, 0.5])
def test_planted_duplicates_are_found(digits, features, share):
    samples, source = planted(digits, share)
    found = memorization(samples, digits[0], digits[1], features)
    assert found.near_duplicate_share == pytest.approx(share, abs=0.03)
    assert found.background_share == pytest.approx(0.01, abs=0.005)
    pairs = found.pairs(len(source))
    assert set(pairs[:, 0].tolist()) == set(range(len(source)))
    assert torch.equal(source[pairs[:, 0]], pairs[:, 1])
    assert torch.equal(found.similarity[pairs[:, 0]], found.similarity.sort(descending=True).values[: len(source)])


def test_without_memorization_samples_are_like_the_background(digits):
    found = memorization(digits[2], digits[0], digits[1], quantile=0.9)
    assert found.background_share == pytest.approx(0.1, abs=0.01)
    assert found.near_duplicate_share == pytest.approx(0.1, abs=0.06)
    assert found.similarity.mean() == pytest.approx(float(found.background.mean()), abs=0.02)


@pytest.mark.parametrize("centre", [True, False])
def test_similarities_are_those_of_brute_force(digits, centre):
    train, held, fresh = (part[:40].flatten(1) for part in digits)
    mean = train.mean(0) if centre else 0
    cosine = torch.nn.functional.cosine_similarity((fresh - mean)[:, None], (train - mean)[None], dim=2)
    found = memorization(*(part[:40] for part in (digits[2], digits[0], digits[1])), centre=centre)
    assert torch.allclose(found.similarity, cosine.amax(1), atol=1e-5)
    assert torch.equal(found.nearest, cosine.argmax(1))
    told = found.as_dict()
    assert told["similarity_mean"] == pytest.approx(float(cosine.amax(1).mean()), abs=1e-5)
    assert told["samples"] == told["held_out"] == 40
    assert told["space"] == "pixels"
    assert len(held) == 40


def test_samples_that_are_not_finite_are_near_to_none(digits):
    samples = digits[2][:10].clone()
    samples[3] = float("nan")
    found = memorization(samples, digits[0], digits[1])
    assert found.similarity.isfinite().all()
    assert found.similarity[3] == 0


def test_the_pairs_are_drawn_side_by_side(digits):
    samples, _ = planted(digits, 0.1)
    found = memorization(samples, digits[0], digits[1])
    figure = plot.pairs(samples, digits[0], found.pairs(6), found.similarity)
    assert isinstance(figure, Figure)
    pictures = [torch.as_tensor(image.get_array()) for axis in figure.axes for image in axis.get_images()]
    assert len(pictures) == 6
    for picture in pictures:  # two images of 8 pixels with lines about them
        assert (picture[1:9, 1:9].int() - picture[1:9, 10:18].int()).abs().max() <= 12
    assert figure.axes[0].get_title("left").endswith(f"{float(found.similarity.max()):.3f}")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"samples": torch.zeros(3, 1, 4, 4)}, "items of one shape"),
        ({"held_out": torch.zeros(1, 1, 8, 8)}, "two or more"),
        ({"quantile": 1.0}, "between 0 and 1"),
        ({"features": "patches"}, "several rows"),
        ({"features": "pixel"}, "Did you mean 'pixels'"),
    ],
)
def test_mistakes_are_told(digits, change, message):
    given = {"samples": digits[2][:5], "train": digits[0], "held_out": digits[1], **change}
    with pytest.raises(UserError, match=message):
        memorization(**given)
