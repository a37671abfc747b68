"""sfbd: trusted items alone, then with them what the model so far makes of the noisy ones, round by round; resumed to the bit."""

import json
import shutil

import numpy as np
import pytest
import torch
from torch import nn

from atdm.corruption import parse_corruption
from atdm.data import load
from atdm.data.items import Floats, Joined
from atdm.data.source import Source
from atdm.diffusion.process import Process
from atdm.errors import UserError
from atdm.files import load_tensors
from atdm.nets import build_net
from atdm.objective import Objective, Sfbd
from atdm.training.config import ObjectiveConfig, Settings, TrainConfig
from atdm.training.parts import build
from atdm.training.train import State, fit
from helpers import LINEAR, atdm, seeded

NOISE = "gaussian:share=0.5,std=0.3"
SETTINGS = Settings(steps=8, batch_size=16, warmup=0)
LOSS = Sfbd(LINEAR, pretrain=0.25, rounds=3, evaluations=3, known=True)  # rounds begin at steps 2, 4 and 6
SHORT = ["--net=mlp:width=16", "--batch_size=16", "--warmup=0", "--threads=1", "--save_every=1", "--log_every=1"]


def source(corrupt=NOISE, **own):
    """40 vectors and 20 trusted ones that are all 5."""
    x = torch.randn(40, 3, generator=seeded())
    items = Joined(Floats(x), Floats(torch.full((20, 3), 5.0)))
    return Source(items, parse_corruption(corrupt), trusted=20, **own)


def fresh(shape=(3,), settings=SETTINGS):
    torch.manual_seed(0)
    return State.create(build_net("mlp:width=16", shape), settings)


class Seen(nn.Module):
    """A network that keeps what it is given."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.states = []

    def forward(self, x, t):
        self.states.append((x.detach().clone(), t.clone()))
        return self.scale * x


def test_rounds_divide_the_training():
    assert [LOSS.round(step, 8) for step in range(8)] == [
        *[(0, 0, 2)] * 2, *[(1, 2, 4)] * 2, *[(2, 4, 6)] * 2, *[(3, 6, 8)] * 2
    ]  # fmt: skip
    assert Sfbd(LINEAR).round(0, 1) == (0, 0, 1)  # at least a step on trusted items
    for step in range(5):
        number, first, end = Sfbd(LINEAR, rounds=9).round(step, 5)
        assert first <= step < end, number


def test_the_first_steps_see_trusted_items_alone_and_the_others_all_of_them():
    data, seen = source(), Seen()
    state = State.create(seen, SETTINGS)
    alone = [x for step in fit(LOSS, state, data, SETTINGS) if step.index <= 2 for x in seen.states[-1:]]
    for x, t in alone:  # of x_t the mean is that of the trusted ones
        alpha, sigma = LINEAR.alpha(t, x), LINEAR.sigma(t, x)
        assert ((x - 5 * alpha).abs() < 5 * sigma + 1e-4).all()
    x, t = seen.states[-1]
    assert ((x - 5 * LINEAR.alpha(t, x)).abs() > 5 * LINEAR.sigma(t, x)).any()


def test_noisy_items_are_denoised_by_the_average_and_the_others_stay_to_the_bit(monkeypatch):
    from atdm.training import rounds

    shares, calls = [], []
    made, went = rounds._Rounds.share_of, rounds.backward
    monkeypatch.setattr(rounds._Rounds, "share_of", lambda *of: shares.append(made(*of)) or shares[-1])
    monkeypatch.setattr(rounds, "backward", lambda *of, **how: calls.append(of) or went(*of, **how))
    state, data = fresh(), source()
    [*_, last] = fit(LOSS, state, data, SETTINGS)
    every, zeros = torch.arange(60), torch.zeros(60, dtype=torch.long)
    before, stds = data.batch(every, zeros), data.levels(every, zeros)
    noisy = stds > 0
    assert 0 < noisy.sum() < 40
    assert len(calls) == 3
    for model, process, y, levels in calls:
        assert model is state.ema
        assert process is LINEAR
        assert torch.equal(y, before[noisy])
        assert torch.equal(levels, stds[noisy])
    drawn = []
    for share in shares[1:]:
        after = share.source.batch(every, zeros)
        assert torch.equal(after[~noisy], before[~noisy])
        assert not (after[noisy] == before[noisy]).any()
        assert (share.source.levels(every, zeros) == 0).all()
        drawn.append(after[noisy])
    assert not torch.equal(drawn[0], drawn[1])
    assert torch.equal(drawn[-1], last.state.denoised)


def test_where_no_item_is_noisy_it_is_ddpm_on_all_after_the_trusted_ones():
    state = fresh()
    half, data = Sfbd(LINEAR, pretrain=0.5, rounds=1, known=True), source("none")
    [*_, last] = fit(half, state, data, SETTINGS)
    assert last.state.denoised.shape == (0, 3)
    again = fresh()
    for step in fit(half, again, data, SETTINGS):
        if step.index == 4:
            break
    for _ in fit(Objective("ddpm", LINEAR), again, data, SETTINGS):
        pass
    assert all(torch.equal(a, b) for a, b in zip(state.model.parameters(), again.model.parameters(), strict=True))


@pytest.mark.parametrize("at", [1, 2, 3, 4, 5])
def test_a_state_that_is_restored_goes_on_to_the_bit(at):
    whole, state, again = fresh(), fresh(), fresh()
    [*_, last] = fit(LOSS, whole, source(), SETTINGS)
    for step in fit(LOSS, state, source(), SETTINGS):
        if step.index == at:
            break
    again.restore({k: v.clone() for k, v in state.tensors().items()}, at)
    [*_, end] = fit(LOSS, again, source(), SETTINGS)
    one, two = last.state.tensors(), end.state.tensors()
    assert one.keys() == two.keys()
    assert all(torch.equal(one[key], two[key]) for key in one)


def test_a_state_without_the_items_of_its_round_is_refused():
    state = fresh()
    for step in fit(LOSS, state, source(), SETTINGS):
        if step.index == 3:
            break
    state.denoised = None
    with pytest.raises(UserError, match="holds 0 denoised items"):
        next(fit(LOSS, state, source(), SETTINGS))


def test_images_are_kept_as_bytes_and_mirrored_after_they_were_denoised(monkeypatch):
    from atdm.training import rounds

    images, seen = load("digits").x[:60], []
    went = rounds.backward
    monkeypatch.setattr(rounds, "backward", lambda *of, **how: seen.append(of[2]) or went(*of, **how))
    for flip in (False, True):
        data, state = Source(Floats(images), parse_corruption(NOISE), flip=flip, trusted=20), fresh((1, 8, 8))
        [*_, last] = fit(LOSS, state, data, SETTINGS)
        assert last.state.denoised.dtype == torch.uint8
    assert len(seen) == 6
    assert all(torch.equal(y, seen[0]) for y in seen)


# --- the command ------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    """25 digits in a file."""
    path = tmp_path_factory.mktemp("clean") / "clean.npz"
    np.savez(path, samples=load("digits").test[:25].numpy())
    return str(path)


def words(clean, out, *more, steps=8):
    objective = "sfbd:pretrain=0.25,rounds=3,evaluations=3,known=true"
    data = ["--data=digits", "--limit=200", f"--corrupt={NOISE}", f"--trusted={clean}"]
    return ["train", *data, f"--objective={objective}", f"--steps={steps}", *SHORT, f"--out={out}", *more]


def weights(out):
    [file] = (out / "model").rglob("*.safetensors")
    return file.read_bytes()


def test_a_run_learns_and_resumes_from_within_a_round_and_from_its_first_step(capsys, tmp_path, clean):
    whole = tmp_path / "whole"
    code, _, err = atdm(capsys, *words(clean, whole, "--keep=9"))
    assert code == 0, err
    assert (
        json.loads((whole / "objective.json").read_text())["name"]
        == "sfbd:pretrain=0.25,rounds=3,evaluations=3,known=true"
    )
    kept = load_tensors(whole / "checkpoints/step-00000005/state.safetensors")["denoised"]
    assert (kept.dtype, kept.shape[1:]) == (torch.uint8, (1, 8, 8))
    assert 80 < len(kept) < 120
    assert "denoised" not in load_tensors(whole / "checkpoints/step-00000002/state.safetensors")
    for at in (2, 4, 5):  # before the first round, at the beginning of the second, within it
        out = tmp_path / f"from-{at}"
        shutil.copytree(whole, out)
        shutil.rmtree(out / "model")
        for step in range(at + 1, 9):
            shutil.rmtree(out / f"checkpoints/step-{step:08d}", ignore_errors=True)
        code, _, err = atdm(capsys, *words(clean, out, "--keep=9"))
        assert code == 0, err
        assert f"goes on from step {at}" in err
        assert weights(out) == weights(whole)
        last = "checkpoints/step-00000008/state.safetensors"
        assert (out / last).read_bytes() == (whole / last).read_bytes()


def test_what_it_cannot_do_is_refused_in_a_sentence(capsys, tmp_path, clean):
    run = tmp_path / "run"
    own = words(clean, run)
    without = [word for word in own if not word.startswith("--trusted")]
    for command, sentence in (
        (without, "sfbd begins on trusted images alone. Expected --trusted FOLDER"),
        ([*own, "--corrupt_fresh=true"], "Expected one of them"),
        ([*own, "--objective.start=0.5"], "sfbd:pretrain=0.5"),
        ([*own, "--vae=somewhere"], "works by the noise of pixels"),
        ([*own, "--shard=true"], "shard splits a network over processes"),
        ([*without, "--objective=sfbd:pretrain=0"], "Expected a share of the training in (0, 1)"),
        ([*without, "--objective=sfbd:rounds=0"], "Expected an integer >= 1"),
        ([*own, "--data=plane:n=100"], "Expected one shape"),
    ):
        code, _, err = atdm(capsys, *command)
        assert (code, sentence in " ".join(err.split())) == (2, True), err
    assert not (run / "config.yaml").exists()


def test_vectors_of_few_values_need_known_noise():
    with pytest.raises(UserError, match="sfbd:known=true"):
        Sfbd(LINEAR).require_items((3,))
    Sfbd(LINEAR, known=True).require_items((3,))


def test_random_crops_are_refused():
    data = Source(Floats(torch.zeros(30, 1, 16, 16)), window=8, trusted=20)
    with pytest.raises(UserError, match="crop random"):
        next(fit(LOSS, fresh((1, 8, 8)), data, SETTINGS))


def test_a_run_cannot_be_made_longer(capsys, tmp_path, clean):
    run = tmp_path / "run"
    assert atdm(capsys, *words(clean, run, steps=4))[0] == 0
    code, _, err = atdm(capsys, *words(clean, run, steps=8))
    assert code == 2
    assert "begins its rounds at a share of the steps" in " ".join(err.split())


def test_the_configuration_knows_the_noise_that_it_adds(clean):
    config = TrainConfig(
        data="digits", limit=40, corrupt=NOISE, trusted=clean, objective=ObjectiveConfig("sfbd:known=true")
    )
    parts = build(config)
    assert isinstance(parts.objective, Sfbd)
    assert parts.objective.levels_from == "truth"


def test_it_works_with_a_flow():
    process = Process.flow(steps=50)
    [*_, last] = fit(Sfbd(process, evaluations=3, known=True), fresh(), source(), SETTINGS)
    assert last.state.denoised.isfinite().all()
