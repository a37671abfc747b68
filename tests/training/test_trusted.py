"""Trusted images: they join the training data as they are, and are what samples of the run are compared with."""

import json
import os
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from atdm.corruption import corrupt, parse_corruption
from atdm.data import load
from atdm.data.items import Floats, Joined
from atdm.data.source import Source
from atdm.errors import UserError
from atdm.metrics import ReferenceSet
from atdm.training.config import TrainConfig
from atdm.training.parts import build
from helpers import atdm, pictures

NOISE = "gaussian:share=1,std=0.2"
SHORT = [
    "--net",
    "mlp:width=16",
    "--steps",
    "2",
    "--batch_size",
    "8",
    "--warmup",
    "0",
    "--threads",
    "1",
    "--log_every",
    "1",
]


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    """25 digits in a file."""
    path = tmp_path_factory.mktemp("clean") / "clean.npz"
    np.savez(path, samples=load("digits").test[:25].numpy())
    return str(path)


@pytest.fixture
def photos(tmp_path):
    """24 small pictures of noise."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(24):
        pixels = np.random.default_rng(i).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    return folder


@pytest.mark.parametrize("prepared", [False, True])
@pytest.mark.parametrize("fresh", [False, True])
def test_trusted_items_follow_the_others_and_nothing_corrupts_them(prepared, fresh):
    x, good = torch.zeros(30, 1, 8, 8), torch.ones(20, 1, 8, 8)
    source = Source(Joined(Floats(x), Floats(good)), parse_corruption(NOISE), fresh=fresh, trusted=20)
    plain = Source(Floats(x), parse_corruption(NOISE), fresh=fresh)
    source, plain = (s.prepared() if prepared else s for s in (source, plain))
    rows = torch.tensor([49, 3, 30, 29, 3])
    when = torch.tensor([2, 1, 0, 1, 0])
    batch = source.batch(rows, when)
    own = rows < 30
    assert torch.equal(batch[~own], good[:2])
    assert torch.equal(batch[own], plain.batch(rows[own], when[own]))
    assert batch[own].std() == pytest.approx(0.2, rel=0.2)
    assert torch.allclose(source.levels(rows, when), torch.tensor([0, 0.2, 0, 0.2, 0.2]))
    assert source.is_trusted(rows).tolist() == [True, False, True, False, False]


def test_a_configuration_with_trusted_images_trains_on_both(clean):
    parts = build(TrainConfig(data="digits", limit=40, corrupt=NOISE, trusted=clean, net="mlp:width=16"))
    assert (len(parts.source), parts.source.trusted, parts.truth.touched.shape[1]) == (65, 25, 40)
    assert torch.equal(parts.source.first(65)[40:], load(clean).x)
    (note,) = (note for note in parts.notes if "25 items" in note and "join the training data" in note)
    assert "among the data" not in note


def test_training_and_evaluation_compare_with_the_trusted_images(capsys, tmp_path, clean):
    run = str(tmp_path / "run")
    words = ["train", "--data", "digits", "--limit", "40", "--corrupt", NOISE, "--trusted", clean, "--out", run, *SHORT]
    code, out, err = atdm(capsys, *words, "--metrics", "pixels", "--metrics_samples", "8")
    assert code == 0, err
    hash_ = ReferenceSet.trusted(load(clean)).as_dict()["reference_hash"]
    rows = json.loads((tmp_path / "run" / "metrics.json").read_text())["rows"]
    assert {(r["reference_kind"], r["reference"], r["reference_hash"]) for r in rows} == {("trusted set", clean, hash_)}
    code, out, err = atdm(capsys, "evaluate", run, "--n", "8", "--sampling_steps", "3", "--json")
    assert code == 0, err
    assert {(r["reference_kind"], r["reference_hash"]) for r in json.loads(out)["rows"]} == {("trusted set", hash_)}
    # What the run learned from can still be named.
    code, out, err = atdm(capsys, "evaluate", run, "--data", "digits", "--n", "8", "--sampling_steps", "3", "--json")
    assert {r["reference_kind"] for r in json.loads(out)["rows"]} == {"clean truth"}
    # The report finds them, too.
    from atdm.report import lab

    (job,) = lab.jobs([run], lab.Plan(n=8, steps=(4,)))
    assert (job.data, job.trusted) == (clean, True)


def test_trusted_images_that_changed_are_refused(capsys, tmp_path, clean):
    own = tmp_path / "own.npz"
    np.savez(own, samples=np.load(clean)["samples"])
    run = str(tmp_path / "run")
    words = ["train", "--data", "digits", "--limit", "40", "--trusted", str(own), "--out", run, *SHORT]
    assert atdm(capsys, *words)[0] == 0
    np.savez(own, samples=np.load(clean)["samples"] * 0.5)
    for again in (words, ["evaluate", run, "--n", "8", "--sampling_steps", "3"]):
        code, _, err = atdm(capsys, *again)
        assert code == 2
        assert "25 are gone and 25 are new" in err
    code, _, err = atdm(capsys, *words[:5], *words[7:])
    assert code == 2
    assert "its trusted is" in err


def test_trusted_images_that_cannot_be_used_are_refused_in_a_sentence(tmp_path):
    np.savez(tmp_path / "few.npz", samples=np.zeros((19, 1, 8, 8), "float32"))
    np.savez(tmp_path / "large.npz", samples=np.zeros((20, 1, 9, 9), "float32"))
    for name, sentence in (("few", "holds 19 trusted images. Expected 20 or more"), ("large", "Expected one shape")):
        with pytest.raises(UserError, match=sentence):
            build(TrainConfig(data="digits", trusted=str(tmp_path / f"{name}.npz")))


def test_trusted_images_are_apart_from_the_data(photos, tmp_path, monkeypatch):
    """By what is in them, whatever they are called; fewer data than trusted images are found among them, too."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to(photos)
    shutil.copytree(photos, tmp_path / "copy")
    for name in (str(photos), f"{photos}/", f"{photos}/../{photos.name}/.", os.path.relpath(photos), "./link", "copy"):
        for limit in (None, 10):
            with pytest.raises(UserError, match=r"are all among the trusted images .* Expected trusted images apart"):
                build(TrainConfig(data=str(photos), trusted=name, limit=limit, image_size=8, net="mlp:width=16"))
    with pytest.raises(UserError, match="are all among the trusted images digits"):
        build(TrainConfig(data="digits", trusted="digits", limit=40, net="mlp:width=16"))
    for old in sorted((tmp_path / "copy").iterdir())[:4]:
        old.unlink()
    parts = build(TrainConfig(data=str(photos), trusted="copy", image_size=8, net="mlp:width=16"))
    assert parts.source.trusted == 20
    assert any("20 of them are among the data as well" in note for note in parts.notes)


def test_noisy_training_data_are_no_trusted_reference(photos, tmp_path, capsys):
    """Whoever calls them so: the numbers are said to rank nothing."""
    run = str(tmp_path / "run")
    assert atdm(capsys, "train", "--data", str(photos), "--image_size", "8", "--out", run, *SHORT)[0] == 0
    (tmp_path / "link").symlink_to(photos)
    others = tmp_path / "others"
    others.mkdir()
    for i in range(20):
        Image.fromarray(np.full((8, 8, 3), 10 * i, "uint8")).save(others / f"{i}.png")
    for reference, kind in (("link", "training data"), ("others", "trusted set")):
        words = ["--reference", str(tmp_path / reference), "--n", "8", "--sampling_steps", "3", "--json"]
        code, out, err = atdm(capsys, "evaluate", run, *words)
        assert code == 0, err
        assert {r["reference_kind"] for r in json.loads(out)["rows"]} == {kind}
        assert ("rank nothing" in err) == (kind == "training data")


def test_ambient_knows_that_trusted_items_are_clean(clean):
    from atdm.training.config import ObjectiveConfig

    config = TrainConfig(data="digits", limit=40, corrupt=NOISE, trusted=clean, objective=ObjectiveConfig("ambient"))
    source = build(config).source
    rows = torch.arange(65)
    assert torch.equal(source.levels(rows, rows * 0) > 0, rows < 40)


# --- omni -------------------------------------------------------------------------------------------------------------
OMNI = ["--corrupt", "outliers:share=0.3", "--objective", "omni"]


def test_omni_finds_levels_once_keeps_them_and_goes_on_with_them(capsys, tmp_path, clean, monkeypatch):
    from atdm.files import load_tensors
    from atdm.training import trusted

    out = tmp_path / "run"
    words = ["train", "--data", "digits", "--limit", "200", "--trusted", clean, *OMNI, *SHORT, "--out", str(out)]
    code, _, err = atdm(capsys, *words)
    assert code == 0, err
    assert "are as good as trusted ones at every noise level" in " ".join(err.split())
    kept = load_tensors(out / trusted.LEVELS)["stds"]
    assert kept.shape == (200,)
    monkeypatch.setattr(trusted, "least_levels", lambda *_: pytest.fail("looked again"))
    parts = build(
        TrainConfig(data="digits", limit=200, trusted=clean, corrupt=OMNI[1], objective=_omni(), out=str(out))
    )
    assert torch.equal(parts.source.least, torch.cat([kept, torch.zeros(25)]))
    code, _, err = atdm(capsys, *words, "--steps", "3")
    assert code == 0, err
    touched = torch.from_numpy(parts.truth.corrupted)
    assert kept[touched].median() > kept[~touched].median()


def _omni():
    from atdm.training.config import ObjectiveConfig

    return ObjectiveConfig("omni")


def test_omni_is_refused_in_a_sentence_without_trusted_images_or_fixed_corruption(capsys, tmp_path, clean):
    words = ["train", "--data", "digits", *SHORT, "--objective", "omni", "--out", str(tmp_path / "run")]
    code, _, err = atdm(capsys, *words)
    assert (code, "Expected --trusted FOLDER" in err) == (2, True)
    fresh = ["--trusted", clean, "--corrupt", NOISE, "--corrupt_fresh", "true"]
    code, _, err = atdm(capsys, *words, *fresh)
    assert (code, "Expected one of them" in err) == (2, True)
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_auto_takes_omni_or_ddpm_by_the_trusted_images_and_says_why(clean):
    from atdm.training.config import ObjectiveConfig

    for spec, name in (("outliers:share=0.5", "omni"), ("none", "ddpm")):
        config = TrainConfig(data="digits", limit=200, trusted=clean, corrupt=spec, objective=ObjectiveConfig("auto"))
        parts = build(config)
        assert parts.config.objective.name == name
        assert parts.notes[-1].startswith(f"objective auto: {name}, for ")
    chosen = build(TrainConfig(data="digits", limit=200, trusted=clean, objective=ObjectiveConfig("auto:k=3")))
    assert (chosen.config.objective.name, chosen.levels) == ("robust_adv", None)


@pytest.mark.parametrize(
    ("corrupt", "name"),
    [("gaussian:share=0.9,std=0.2", "robust_adv"), ("jpeg:share=0.9,quality=10", "omni"), ("patch:share=0.5", "omni")],
)
def test_auto_keeps_the_regularizer_where_noise_is_what_is_wrong(clean, corrupt, name):
    from atdm.training.config import ObjectiveConfig

    config = TrainConfig(data="digits", corrupt=corrupt, trusted=clean, objective=ObjectiveConfig("auto"))
    assert build(config).config.objective.name == name


def test_pixels_tell_more_than_levels_of_whole_images():
    from atdm.training.choice import choose, trusted_levels
    from atdm.training.config import ObjectiveConfig

    corrupted = corrupt(pictures(300), "salt_pepper:share=0.8,rate=0.1", 0)[0]
    source = Source(Floats(torch.cat([corrupted, pictures(340)[300:]])), trusted=40)
    config = TrainConfig(objective=ObjectiveConfig("auto"))
    levels = trusted_levels(config, source)
    assert levels is not None
    assert (levels.stds > 0).double().mean() > 0.5
    chosen, why = choose(config, source, levels)
    assert chosen.name == "masked"
    assert why[0].startswith("objective auto: masked, for ")


def test_omni_with_options_finds_its_levels(clean):
    from atdm.training.config import ObjectiveConfig

    chosen = ObjectiveConfig("omni:masked=true,exchange=false")
    parts = build(TrainConfig(data="digits", limit=200, trusted=clean, corrupt="outliers:share=0.5", objective=chosen))
    assert parts.levels is not None
    assert (parts.objective.masked, parts.objective.exchange) == (True, False)


def test_omni_of_a_loop_needs_levels():
    from atdm.diffusion.process import Process
    from atdm.nets import build_net
    from atdm.objective import Omni
    from atdm.training.config import Settings
    from atdm.training.train import State, fit

    settings, x = Settings(steps=2, batch_size=4), torch.zeros(8, 3)
    state = State.create(build_net("mlp:width=16", (3,)), settings)
    with pytest.raises(UserError, match="Expected trusted images"):
        next(fit(Omni(Process.linear()), state, x, settings))
    source = Source(Floats(x), least=torch.tensor([0.0, 1e9] * 4))
    assert len([*fit(Omni(Process.linear()), state, source, settings)]) == 2
