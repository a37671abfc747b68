"""Poisoned data: the closed form on a Gaussian, the budget, the truth, and the same item for the same (seed, index)."""

import json

import numpy as np
import pytest
import torch

from atdm.attack.poison import Poison, parse_poison, poison, poison_item
from atdm.corruption import Truth, parse_corruption
from atdm.data import load
from atdm.data.items import Floats
from atdm.diffusion.model import Model
from atdm.diffusion.process import Process
from atdm.errors import UserError
from helpers import atdm

PROCESS = Process.linear()
S2 = 0.25


def ideal(x, t):
    """The ideal network for Gaussian data of variance ``S2``: ``sigma x / (alpha^2 s^2 + sigma^2)``."""
    a, s = PROCESS.alpha(t, x), PROCESS.sigma(t, x)
    return s * x / (a**2 * S2 + s**2)


def test_against_a_gaussian_the_strongest_poison_is_the_corner_away_from_the_mean(generator):
    # E ||g (alpha (x + delta) + sigma eps) - eps||^2 = E (g alpha)^2 ||x + delta||^2 + const: the corner along sign(x).
    x = 0.5 * torch.randn(20, 6, generator=generator)
    poisoned, truth = poison(Floats(x), Model(ideal, PROCESS), Poison("ideal", radius=0.1, draws=64))
    far = x.abs() > 0.2  # nearer to the mean a finite number of draws may err
    assert torch.allclose(poisoned[far], (x + 0.1 * x.sign())[far], atol=1e-6)
    assert ((poisoned - x)[far].abs() - 0.1).abs().max() < 1e-6
    details = truth.details["poison"]
    assert (details["loss_after"] > details["loss_before"]).mean() > 0.95


def test_recorded_losses_are_the_closed_form(generator):
    x = torch.randn(120, 6, generator=generator)
    _, truth = poison(Floats(x), Model(ideal, PROCESS), Poison("ideal", radius=0.3, steps=0, draws=1))
    t = torch.arange(1000)
    a, s = PROCESS.alpha(t).double(), PROCESS.sigma(t).double()
    g = s / (a**2 * S2 + s**2)
    expected = (g * a).square().mean() * x.double().square().mean() + (g * s - 1).square().mean()
    assert truth.details["poison"]["loss_before"].mean() == pytest.approx(expected.item(), rel=0.06)


@pytest.mark.parametrize("family", ["flow", "edm"])
def test_the_surrogate_of_a_flow_or_edm_is_given_its_own_time(family):
    """The ideal network of a Gaussian, which looks its timestep up by the time that it is given: the closed form again."""
    process = getattr(Process, family)()
    times = process.time(torch.arange(process.steps))

    def ideal(x, time):
        t = (times[None] == time[:, None]).int().argmax(1)
        assert torch.equal(times[t], time), "the network is given T s or log(sigma)/4, not the timestep"
        a, s = process.alpha(t, x), process.sigma(t, x)
        v = a**2 * S2 + s**2
        return process.target(a * S2 * x / v, s * x / v, t)

    x = 0.5 * torch.randn(60, 6, generator=torch.Generator().manual_seed(0))
    poisoned, truth = poison(Floats(x), Model(ideal, process), Poison("ideal", radius=0.1, draws=64))
    far = x.abs() > 0.2
    at_corner = (poisoned - (x + 0.1 * x.sign()))[far].abs() < 1e-4
    assert at_corner.float().mean() > 0.95  # a finite number of draws may err, more often at few levels
    t = torch.arange(process.steps)
    a, s = process.alpha(t).double(), process.sigma(t).double()
    g = s / (a**2 * S2 + s**2)
    expected = (g * a).square().mean() * x.double().square().mean() + (g * s - 1).square().mean()
    assert truth.details["poison"]["loss_before"].mean() == pytest.approx(expected.item(), rel=0.1)


@pytest.fixture(scope="module")
def surrogate():
    """A small network that learned the digits for a few seconds."""
    from atdm.nets import build_net
    from atdm.objective import Objective
    from atdm.training.config import Settings
    from atdm.training.train import State, fit

    torch.manual_seed(0)
    torch.set_num_threads(1)
    settings = Settings(150, 64)
    state = State.create(build_net("mlp:width=64,depth=2", (1, 8, 8)), settings)
    for _ in fit(Objective("ddpm", PROCESS), state, load("digits").x, settings):
        pass
    return Model(state.model.eval(), PROCESS)


def test_poison_raises_the_loss_of_a_trained_surrogate_more_than_random_noise(surrogate):
    items = Floats(load("digits").x[:16])
    risen = {}
    for steps in (0, 10):
        _, truth = poison(items, surrogate, Poison("run", radius=0.1, steps=steps), seed=1)
        details = truth.details["poison"]
        risen[steps] = details["loss_after"] - details["loss_before"]  # of the same draws
        assert details["moved_max"].max() <= 0.1 + 1e-6
    assert (risen[10] > 0).mean() > 0.9
    assert risen[10].mean() > 3 * abs(risen[0].mean())


def test_items_stay_in_the_ball_and_images_in_their_range(surrogate):
    x = load("digits").x[:16]
    poisoned, truth = poison(Floats(x), surrogate, Poison("run", share=0.5, radius=0.3, steps=3))
    assert poisoned.min() >= -1
    assert poisoned.max() <= 1
    moved = (poisoned - x).flatten(1).abs().amax(1)
    assert moved.max() <= 0.3 + 1e-6
    assert ((moved > 0).numpy() == truth.corrupted).all()
    assert 0 < truth.corrupted.sum() < 16
    details = truth.details["poison"]
    assert np.allclose(details["moved_max"][truth.corrupted], moved[truth.corrupted], atol=1e-6)
    assert np.isnan(details["loss_after"][~truth.corrupted]).all()


def test_an_item_is_the_same_to_the_bit_whatever_is_beside_it(surrogate):
    x, how = load("digits").x[:6], Poison("run", share=0.7, radius=0.2, steps=3)
    whole, _ = poison(Floats(x), surrogate, how, seed=3)
    state = torch.get_rng_state()
    alone = [poison_item(x[i], surrogate, how, 3, i)[0] for i in (5, 2, 0)]
    assert torch.equal(torch.stack(alone), whole[[5, 2, 0]])
    assert torch.equal(torch.get_rng_state(), state)
    assert all(p.requires_grad for p in surrogate.net.parameters())
    other, _ = poison(Floats(x), surrogate, how, seed=4)
    assert not torch.equal(other, whole)


def test_the_share_is_that_of_the_items_and_not_those_of_other_dirt():
    from atdm.corruption import truth_of

    touched = poison(Floats(torch.zeros(400, 2)), Model(ideal, PROCESS), Poison("m", share=0.3, steps=0, draws=1))[
        1
    ].corrupted
    assert touched.mean() == pytest.approx(0.3, abs=0.06)
    gaussian = truth_of("gaussian:share=0.3", 400, (2,)).corrupted
    assert (touched & gaussian).mean() == pytest.approx(0.09, abs=0.04)


def test_a_poisoned_set_is_made_and_learned_from(capsys, folder, tmp_path):
    out = tmp_path / "dirty"
    words = ["--data", "plane:n=20", "--corrupt", f"poison:model={folder},share=0.5,radius=0.2,steps=2,draws=2"]
    code, text, err = atdm(capsys, "corrupt", *words, "--out", str(out), "--json")
    assert code == 0, err
    told = json.loads(text)
    truth = Truth.load(out / "truth.npz")
    assert told["corrupted"] == truth.corrupted.sum() > 0
    assert len(truth.about["checkpoint"]) == 16
    assert parse_poison(truth.spec) == Poison(str(folder), 0.5, 0.2, 2, 2)
    poisoned, clean = load(str(out / "samples.npz")).x, load("plane:n=20").x
    moved = (poisoned - clean).abs().amax(1)
    assert ((moved > 0).numpy() == truth.corrupted).all()
    assert moved.max() <= 0.2 + 1e-5
    words = ["--net", "mlp:width=8", "--steps", "2", "--batch_size", "4", "--out", str(tmp_path / "run")]
    code, _, err = atdm(capsys, "train", "--data", str(out / "samples.npz"), *words, "--json")
    assert code == 0, err


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ("poison", "needs model"),
        ("poison:model=m,shar=1", "Did you mean 'share'"),
        ("poison:model=m,share=2", "from 0 to 1"),
        ("poison:model=m,radius=0", "above 0"),
        ("poison:model=m,steps=-1", "0 or more steps"),
        ("poison:model=m+gaussian:std=0.1", "stands alone"),
        ("gaussian:std=0.1+poison:model=m", "stands alone"),
    ],
)
def test_mistakes_are_sentences(spec, sentence):
    with pytest.raises(UserError, match=sentence):
        parse_poison(spec)


def test_other_dirt_is_not_poison_and_training_says_how_poison_is_made():
    assert parse_poison("gaussian:share=1e+0+missing") is None
    with pytest.raises(UserError, match="Make the set first"):
        parse_corruption("poison:model=m")


def test_a_surrogate_for_other_items_is_refused(capsys, folder, tmp_path):
    words = ["--data", "digits", "--corrupt", f"poison:model={folder}", "--out", str(tmp_path / "x")]
    code, _, err = atdm(capsys, "corrupt", *words)
    assert code == 2
    assert "Expected the same" in err
    assert not list(tmp_path.iterdir())
