"""Gate and strength chosen from the data: the quiet directions against known truth, and the runs they lead to."""

import dataclasses
import json
import math
import re

import pytest
import torch
from diffusers import DDPMScheduler
from torch.utils.data import DataLoader, TensorDataset

from atdm.corruption import corrupt
from atdm.data import load
from atdm.data.items import Floats
from atdm.data.source import Source
from atdm.diffusion.process import Process
from atdm.errors import UserError
from atdm.noise.estimate import noise_alone
from atdm.objective import Objective
from atdm.objective.ambient import AmbientGauged
from atdm.objective.auto import EVIDENCE, GATE, LENGTH, constants, quiet_std
from atdm.training.choice import choose
from atdm.training.config import ObjectiveConfig, TrainConfig
from atdm.training.parts import build
from atdm.training.run import train
from helpers import pictures


def plane(dirt: str) -> torch.Tensor:
    return corrupt(load("plane:n=4000", seed=0).x, dirt, 0)[0]


@pytest.mark.parametrize(("share", "std"), [(0.3, 0.1), (0.9, 0.05), (0.9, 0.2), (1.0, 0.2)])
@pytest.mark.parametrize("data", ["plane:n=4000", "digits:subspace=16"])
def test_noise_on_a_share_of_the_items_shows_where_the_data_are_quiet(data, share, std):
    x = corrupt(load(data, seed=0).x, f"gaussian:share={share},std={std}", 0)[0]
    assert quiet_std(x) == pytest.approx(math.sqrt(share) * std, rel=0.08)


def test_clean_data_on_a_subspace_are_quiet():
    assert quiet_std(plane("none")) < 1e-3
    assert quiet_std(load("digits:subspace=16", seed=0).x) < 1e-3


def test_outliers_show_by_their_spread_over_the_cube():
    side = 2.0
    dirty = plane(f"outliers:share=0.1,low={-side},high={side}")
    # One coordinate of a uniform draw from a cube has variance side^2 / 3, in any direction.
    assert quiet_std(dirty) == pytest.approx(math.sqrt(0.1 * side**2 / 3), rel=0.1)


def test_images_are_looked_at_channel_by_channel():
    """Dirt that is alike in all channels leaves their differences alone, and must count all the same."""
    generator = torch.Generator().manual_seed(0)
    smooth = torch.rand(400, 3, 1, 1, generator=generator).expand(400, 3, 16, 16)
    grain = 0.2 * torch.randn(400, 1, 16, 16, generator=generator)
    assert quiet_std(smooth + grain) == pytest.approx(0.2, rel=0.05)
    assert quiet_std(smooth.contiguous()) < 1e-6


def test_directions_and_their_variance_come_from_different_halves():
    """On the same half the least of many directions would look quieter than it is."""
    x = torch.randn(300, 100, generator=torch.Generator().manual_seed(0))
    assert quiet_std(x) == pytest.approx(1.0, rel=0.1)


@pytest.mark.parametrize(
    ("n", "noisy", "name"),
    [
        (600, 400, EVIDENCE),
        (600, 60, EVIDENCE),
        (600, 0, "ddpm"),  # nothing is noisy
        (600, 600, "ambient_blind"),  # nothing is clean
        (200, 160, "ambient_blind"),  # few are clean
    ],
)
def test_low_noise_is_learned_from_clean_images_where_there_are_enough(n, noisy, name, capsys):
    images = pictures(n, noisy)
    source = Source(Floats(images))
    chosen, why = choose(TrainConfig(objective=ObjectiveConfig("auto")), source, None)
    assert chosen.name == name
    found = Objective.auto(images, Process.linear())
    assert isinstance(found, AmbientGauged if noisy else Objective)
    assert (found.exchange if noisy else found.name == "ddpm") == (name != "ambient_blind")
    assert found.note in capsys.readouterr().out
    if noisy:
        std, share = re.search(r"std (0\.\d+) was found on (\d+)% of the images", why[0]).groups()
        assert float(std) == pytest.approx(0.2, rel=0.1)
        assert float(share) == pytest.approx(100 * noisy / n, abs=2)
        assert found.note == why[0]
        assert (found.gauge.stds(images, torch.arange(n)) > 0).double().mean() == pytest.approx(noisy / n, abs=0.02)
    chosen, _ = choose(TrainConfig(objective=ObjectiveConfig("auto:k=2")), source, None)
    assert chosen.name == "robust_adv"
    assert isinstance(Objective.auto(images, Process.linear(), k=2), Objective)


@pytest.mark.parametrize(("noisy", "words"), [(0, "for 1"), (200, "for Gaussian noise")])
def test_images_that_are_noise_alone_are_not_used(noisy, words):
    images, truth = corrupt(pictures(600, noisy), "outliers:share=0.1", 0)
    chosen, (why,) = choose(TrainConfig(objective=ObjectiveConfig("auto")), Source(Floats(images)), None)
    assert chosen.name == EVIDENCE
    assert words in why
    found = float(re.search(r"(\d+\.\d)% of the images are noise alone, and are not used", why)[1])
    assert found == pytest.approx(100 * truth.corrupted.mean(), abs=0.6)
    loss = Objective.auto(images, Process.linear())
    outputs = torch.zeros_like(images, requires_grad=True)
    draws = dataclasses.replace(loss.draw(images.shape), t=torch.full((600,), 900))  # far above their noise
    loss = dataclasses.replace(loss, exchange=False)
    loss(lambda x, t: outputs, images, draws=draws).loss.sum().backward()
    learned = outputs.grad.flatten(1).any(1).numpy()
    assert learned[truth.corrupted].mean() < 0.05
    assert learned[~truth.corrupted].all()


def test_flat_images_with_noise_are_used():
    flat = torch.zeros(600, 3, 16, 16) + torch.linspace(-0.8, 0.8, 600).reshape(-1, 1, 1, 1)
    noise = torch.randn(flat.shape, generator=torch.Generator().manual_seed(0))
    assert not noise_alone(flat + 0.2 * noise, torch.full((600,), 0.2)).any()
    assert noise_alone(flat + 0.5 * noise, torch.full((600,), 0.5)).double().mean() > 0.98
    assert not noise_alone(pictures(600) + 0.5 * noise, torch.full((600,), 0.5)).any()
    assert not noise_alone(torch.randn(600, 20), torch.ones(600)).any()


def test_a_loop_of_ones_own_learns_from_the_levels_that_its_batches_show():
    images = pictures(600, 400)
    found = Objective.auto(DataLoader(TensorDataset(images), batch_size=64), DDPMScheduler(), seed=3)
    x, model = images[:64], lambda x, t: x
    draws = found.draw(x.shape, generator=torch.Generator().manual_seed(1))
    terms = found(model, x, draws=draws, step=5, steps=10)
    trained = choose(TrainConfig(objective=ObjectiveConfig("auto")), Source(Floats(images)), None)[0]
    levels = found.gauge.stds(x, torch.arange(64))
    expected = trained.build(found.process)(model, x, draws=draws, levels=levels, step=5, steps=10)
    assert torch.equal(terms.loss, expected.loss)
    clean = Objective("ddpm", found.process)(model, x, draws=draws)
    assert not torch.equal(terms.loss, clean.loss)


def test_too_few_items_to_tell():
    with pytest.raises(UserError, match="at least 16"):
        quiet_std(torch.zeros(15, 3))


def test_the_push_has_one_length_whatever_the_dimension():
    for d in (3, 64, 768):
        x = torch.randn(100, d, generator=torch.Generator().manual_seed(0))
        chosen = constants(x)
        r = float(chosen["radius"].split("=")[1])
        assert r * math.sqrt(d) == pytest.approx(LENGTH, rel=1e-3)
        assert chosen["gate"] == pytest.approx(GATE * quiet_std(x), rel=1e-2)


def config(tmp_path, **options) -> TrainConfig:
    values = {"data": "plane:n=500", "net": "mlp:width=16", "steps": 12, "batch_size": 64, "save_every": 6, "seed": 3}
    return TrainConfig(**{"out": str(tmp_path / "run"), **values, **options})


def weights(steps) -> list[torch.Tensor]:
    *_, last = steps
    return [p.detach().clone() for p in last.state.ema.parameters()]


def test_on_clean_data_auto_is_ddpm_to_the_bit(tmp_path):
    auto = config(tmp_path / "a", objective=ObjectiveConfig("auto"))
    plain = config(tmp_path / "b", objective=ObjectiveConfig("ddpm"))
    assert all(torch.equal(a, b) for a, b in zip(weights(train(auto)), weights(train(plain)), strict=True))


def test_a_run_tells_and_stores_what_auto_chose_and_resumes(tmp_path):
    dirty = config(tmp_path, objective=ObjectiveConfig("auto"), corrupt="gaussian:share=0.9,std=0.2")
    told: list[str] = []
    whole = weights(train(dirty, notify=told.append))
    note = next(note for note in told if "objective auto" in note)
    stored = json.loads((tmp_path / "run" / "objective.json").read_text())
    assert stored["name"] == "robust_adv"
    assert stored["gate"] == pytest.approx(GATE * math.sqrt(0.9) * 0.2, rel=0.15)
    assert f"gate {stored['gate']:g}," in note
    assert f"--stop_ratio {stored['gate'] / 2:.3g}" in note
    again = config(tmp_path / "c", objective=ObjectiveConfig("auto"), corrupt="gaussian:share=0.9,std=0.2")
    for step in train(again):
        if step.index == 7:
            break
    assert all(torch.equal(a, b) for a, b in zip(whole, weights(train(again)), strict=True))


def test_auto_needs_data():
    with pytest.raises(UserError, match="chosen from training data"):
        ObjectiveConfig("auto").build(Process.linear())


def test_a_run_of_auto_is_described_by_what_it_chose(tmp_path):
    parts = build(config(tmp_path, objective=ObjectiveConfig("auto"), corrupt="outliers:share=0.1"))
    assert isinstance(parts.objective, Objective)
    assert parts.objective.gate == parts.config.objective.gate
    assert parts.objective.perturbation.norm == "l2"


def test_auto_can_be_told_to_push_harder():
    x = plane("gaussian:share=0.9,std=0.2")
    usual, harder = (ObjectiveConfig(name).fitted(x) for name in ("auto", "auto:k=5"))
    assert harder.weight == "relative:k=5"
    assert dataclasses.replace(harder, weight=usual.weight) == usual
    with pytest.raises(UserError, match="has no option 'gate'"):
        ObjectiveConfig("auto:gate=1").fitted(x)
    with pytest.raises(UserError, match="positive"):
        ObjectiveConfig("auto:k=0").fitted(x)


def test_a_late_start_leaves_the_first_steps_to_ddpm(tmp_path):
    pushing = ObjectiveConfig(start=0.5)
    assert TrainConfig(objective=pushing, steps=11).regularize_from == 6
    steps = list(train(config(tmp_path, objective=pushing)))
    assert [bool(step.terms.perturbed.any()) for step in steps] == [False] * 6 + [True] * 6
    whole = ObjectiveConfig().cost(Process.linear())
    assert pushing.cost(Process.linear()) == pytest.approx((1 + whole) / 2)
    assert whole == pytest.approx(8 / 3)


def test_a_resumed_run_keeps_what_it_began_with(tmp_path):
    """Also where a later version would choose otherwise."""
    auto = config(tmp_path, objective=ObjectiveConfig("auto"), corrupt="outliers:share=0.1")
    next(train(auto))
    file = tmp_path / "run" / "objective.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "gate": 0.123}))
    parts = build(auto)
    assert (parts.config.objective.gate, parts.objective.gate) == (0.123, 0.123)
    assert parts.notes[-1] == "objective auto: robust_adv, as when the run began."
    new = build(dataclasses.replace(auto, out=str(tmp_path / "other")))
    assert new.config.objective.gate not in (None, 0.123)


@pytest.mark.parametrize(
    ("objective", "what"),
    [
        (ObjectiveConfig(start=0.5), "regularizer"),
        (ObjectiveConfig("ambient:exchange=true,exchange_from=0.5"), "exchange"),
    ],
)
def test_a_run_that_starts_late_cannot_be_made_longer(tmp_path, objective, what):
    """The first perturbation would come at another step than in a run of that length."""
    short = config(tmp_path, objective=objective)
    list(train(short))
    with pytest.raises(UserError, match=f"its steps is 12.*begins its {what} at a share"):
        list(train(config(tmp_path, objective=objective, steps=20)))


def test_the_gate_follows_noise_that_only_files_show():
    x = plane("none")
    assert constants(x, hidden=0.15)["gate"] == pytest.approx(GATE * 0.15)
    noisy = x + torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    assert constants(noisy, hidden=0.15) == constants(noisy)


@pytest.mark.parametrize("start", [-0.1, 1.0])
def test_a_start_is_a_share_of_the_training(start):
    with pytest.raises(UserError, match=r"\[0, 1\)"):
        ObjectiveConfig(start=start)
