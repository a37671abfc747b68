"""Replaced pixels: they are no target, what is around takes their place, and ``auto`` finds them."""

import dataclasses

import pytest
import torch

from atdm.corruption import corrupt
from atdm.data.items import Floats
from atdm.data.source import Source
from atdm.diffusion.process import Process
from atdm.errors import UserError
from atdm.noise.pixels import replaced_pixels, replaced_share
from atdm.objective import BASELINES, Ambient, Masked, Objective, Omni
from atdm.objective.ambient import AmbientGauged
from atdm.objective.auto import EVIDENCE
from atdm.objective.masked import seen
from atdm.training.choice import choose
from atdm.training.config import ObjectiveConfig, TrainConfig
from helpers import pictures

PROCESS = Process.linear()
MAKES = [Masked, lambda process: Ambient(process, masked=True), lambda process: Omni(process, masked=True)]


def replaced(spec, n=400, seed=1):
    clean = pictures(n, 0)
    return clean, corrupt(clean, spec, seed)[0]


def linear(x, t):
    return 0.3 * x


@pytest.mark.parametrize("make", MAKES, ids=["masked", "ambient", "omni"])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_the_loss_does_not_depend_on_what_a_pixel_was_replaced_by(make, prediction):
    objective = make(Process.linear(prediction=prediction))
    _, x = replaced("salt_pepper:rate=0.1")
    mask = replaced_pixels(x).expand_as(x)
    x = x[mask.flatten(1).any(1)]
    mask = replaced_pixels(x).expand_as(x)
    draws = objective.draw(x.shape, generator=torch.Generator().manual_seed(0))
    levels = torch.zeros(len(x))
    other = torch.where(mask, -x, x)  # black for white
    same = (replaced_pixels(other).expand_as(x) == mask).flatten(1).all(1)
    assert same.float().mean() > 0.9
    losses = [objective(linear, y, draws=draws, levels=levels).loss[same] for y in (x, other)]
    assert torch.equal(*losses)
    plain = Objective("ddpm", objective.process)
    assert not torch.equal(*(plain(linear, y, draws=draws).loss[same] for y in (x, other)))


def test_replaced_pixels_are_no_target_and_others_are_as_ever(generator):
    """The gradient of the loss over the output: none at a replaced pixel, ddpm's, over the share that was seen, at others."""
    _, x = replaced("missing:rate=0.3", 8)
    mask = replaced_pixels(x).expand_as(x)
    assert 0.25 < mask.float().mean() < 0.35
    objective = Masked(PROCESS)
    draws = objective.draw(x.shape, generator=generator)
    output = torch.zeros_like(x, requires_grad=True)
    objective(lambda x_t, t: output, x, draws=draws).loss.sum().backward()
    seen = (~mask).flatten(1).sum(1).reshape(-1, 1, 1, 1)
    expected = torch.where(mask, 0, -2 * draws.noise / seen)  # ddpm's target is the noise
    torch.testing.assert_close(output.grad, expected)


@pytest.mark.parametrize("make", MAKES, ids=["masked", "ambient", "omni"])
def test_images_without_replaced_pixels_train_as_ever(make, generator):
    x, plain, objective = pictures(32, 0), Objective("ddpm", PROCESS), make(PROCESS)
    assert not replaced_pixels(x).any()
    draws = objective.draw(x.shape, generator=generator)
    found = objective(linear, x, draws=draws, levels=torch.zeros(32)).loss
    torch.testing.assert_close(found, plain(linear, x, draws=draws).loss, rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("spec", "share"),
    [("salt_pepper:rate=0.1", 0.3), ("missing:rate=0.3", 0.3), ("missing:rate=0.95", 0.8), ("patch:size=0.5", 0.6)],
)
def test_what_is_around_takes_the_place_of_replaced_pixels(spec, share):
    clean, x = replaced(spec)
    filled, mean = seen(x)
    assert (filled - clean).square().mean() < share * (x - clean).square().mean()
    mask = replaced_pixels(x).expand_as(x)
    assert torch.equal(filled[~mask], x[~mask])
    assert filled.isfinite().all()
    assert torch.equal(mean(torch.ones_like(x)), torch.ones(len(x)))


def test_an_image_of_which_nothing_was_seen_trains_nothing(generator):
    x, objective = torch.zeros(4, 3, 8, 8), Masked(PROCESS)
    draws = objective.draw(x.shape, generator=generator)
    assert torch.equal(objective(linear, x, draws=draws).loss, torch.zeros(4))


def test_each_pixel_has_the_optimum_of_clean_images_of_which_half_the_pixels_are_missing(generator):
    """Of images of nearly one value each, the best multiple of the mean of the state is that of clean images."""
    clean = 0.25 * torch.randn(4000, 1, 1, 1, generator=generator) + 0.15 * torch.randn(
        4000, 1, 8, 8, generator=generator
    )
    x = torch.where(torch.rand(clean.shape, generator=generator) < 0.5, 0, clean)
    objective, t = Masked(PROCESS), 200
    draws = objective.draw(x.shape, generator=generator)
    draws = dataclasses.replace(draws, t=torch.full_like(draws.t, t))
    alpha, sigma = PROCESS.alphas[t].item(), PROCESS.sigmas[t].item()

    def best(x):
        def loss(a):
            return (
                objective(lambda x, t: a * x.mean((2, 3), keepdim=True).expand_as(x), x, draws=draws)
                .loss.double()
                .mean()
            )

        low, middle, high = (float(loss(a)) for a in (-1.0, 0.0, 1.0))
        return (low - high) / (2 * (low - 2 * middle + high))  # where the parabola is least

    # E[noise | mean of the state], per unit of the mean: cov(noise, mean) / var(mean).
    expected = (sigma / 64) / (alpha**2 * (0.25**2 + 0.15**2 / 64) + sigma**2 / 64)
    assert best(x) == pytest.approx(best(clean), rel=0.1)
    assert best(clean) == pytest.approx(expected, rel=0.1)


# --- auto -------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("noisy", "spec", "name"),
    [
        (0, "salt_pepper:share=0.9,rate=0.1", "masked"),
        (0, "salt_pepper:rate=0.1", "masked"),  # on every image
        (0, "missing:share=0.5,rate=0.3", "masked"),
        (0, "patch:share=0.2,size=0.4", "masked"),
        (200, "salt_pepper:share=0.5,rate=0.1", f"{EVIDENCE},masked=true"),
        (200, "none", EVIDENCE),
        (0, "none", "ddpm"),
    ],
)
def test_auto_learns_from_the_pixels_that_were_seen(noisy, spec, name, capsys):
    images = corrupt(pictures(600, noisy), spec, 0)[0]
    chosen, (why,) = choose(TrainConfig(objective=ObjectiveConfig("auto")), Source(Floats(images)), None)
    assert chosen.name == name
    found = Objective.auto(images, PROCESS)
    kind = {"masked": Masked, "ddpm": Objective}.get(name, AmbientGauged)
    assert type(found) is kind
    assert found.note == why
    assert why in capsys.readouterr().out
    if "masked" in name:
        assert f"{replaced_share(images).mean():.1%} of the pixels look replaced" in why
        x = images[:64]
        draws = found.draw(x.shape, generator=torch.Generator().manual_seed(1))
        levels = found.gauge.stds(x, torch.arange(64)) if kind is AmbientGauged else None
        expected = chosen.build(PROCESS)(linear, x, draws=draws, levels=levels, step=5, steps=10)
        assert torch.equal(found(linear, x, draws=draws, step=5, steps=10).loss, expected.loss)
    assert (
        choose(TrainConfig(objective=ObjectiveConfig("auto:k=2")), Source(Floats(images)), None)[0].name == "robust_adv"
    )


@pytest.mark.parametrize("spec", ["masked", "ambient:masked=true", "ambient_blind:masked=true", "omni:masked=true"])
@pytest.mark.parametrize("shape", [(3,), (64,), (3, 2, 8)])
def test_items_without_pixels_are_refused(spec, shape):
    with pytest.raises(UserError, match="images of at least 3x3 pixels"):
        ObjectiveConfig(spec).build(PROCESS).require_items(shape)
    assert BASELINES["masked"](PROCESS).require_items((1, 3, 3)) is None
    with pytest.raises(UserError, match="images of at least 3x3 pixels"):  # in a loop of one's own
        Masked(PROCESS)(linear, torch.zeros(2, *shape))
