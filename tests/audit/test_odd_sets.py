"""Audits of sets that were once too odd: names that are formulas, images of a pixel, sets of two, a set beside its own results."""

import json
import os
import shutil

import numpy as np
import pytest
from PIL import Image

from helpers import atdm


def fill(folder, count, side=16, mode="RGB"):
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        pixels = np.random.default_rng(i).integers(0, 255, (side, side, 3), dtype=np.uint8)
        Image.fromarray(pixels).convert(mode).save(folder / f"{i}.png")
    return folder


def audit(capsys, *words):
    code, out, err = atdm(capsys, "audit", *map(str, words), "--json")
    assert code == 0, err
    return json.loads(out)


NAMES = ["cost_$10_and_$20.png", "$\\bad{$.png", "[/b].png", "\x1b[31m.png", "a\nb.png", "<b>.png", "日本.png"]


def test_any_name_of_a_broken_file(capsys, tmp_path):
    fill(tmp_path / "set", 20)
    for name in NAMES:
        file = tmp_path / "set" / name
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(b"text")
    found = audit(capsys, tmp_path / "set", "--out", tmp_path / "out")
    assert found["broken"]["count"] == len(NAMES)
    assert sorted(found["broken"]["names"]) == sorted(NAMES)
    assert {file.name for file in (tmp_path / "out").iterdir()} == {"audit.json", "recipe.yaml", "sheet.png"}
    code, out, err = atdm(capsys, "audit", str(tmp_path / "set"), "--out", str(tmp_path / "out"))
    assert code == 0
    assert "\x1b" not in out + err


@pytest.mark.parametrize("side", [1, 2, 3, 5])
@pytest.mark.parametrize("count", [2, 3, 30])
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_sets_of_next_to_nothing(capsys, tmp_path, side, count, mode):
    told = audit(capsys, fill(tmp_path / "set", count, 8, mode), "--image_size", side, "--out", tmp_path / "out")
    assert told["items"] == count


def test_equal_images_and_black_ones(capsys, tmp_path):
    for name, value in (("same", 77), ("black", 0)):
        for i in range(20):
            (tmp_path / name).mkdir(exist_ok=True)
            Image.new("RGB", (16, 16), (value,) * 3).save(tmp_path / name / f"{i}.png")
        assert audit(capsys, tmp_path / name, "--out", tmp_path / f"{name} out")["items"] == 20


def test_results_are_there_before_the_pictures(capsys, tmp_path, monkeypatch):
    from atdm.audit import report

    def fail(*_):
        raise ZeroDivisionError("no picture")

    monkeypatch.setattr(report, "_sheet", fail)
    with pytest.raises(ZeroDivisionError):
        atdm(capsys, "audit", str(fill(tmp_path / "set", 20)), "--out", str(tmp_path / "out"))
    assert json.loads((tmp_path / "out" / "audit.json").read_text())["items"] == 20
    assert (tmp_path / "out" / "recipe.yaml").is_file()


def test_a_set_beside_its_own_results_stays_what_it_is(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(fill(tmp_path / "photos", 20))
    for _ in range(2):
        assert audit(capsys, ".")["items"] == 20
    train = ["--data", ".", "--net", "mlp:width=8", "--steps", "2", "--batch_size", "4", "--threads", "1"]
    assert atdm(capsys, "train", *train)[0] == 0
    assert atdm(capsys, "corrupt", "--data", ".", "--corrupt", "gaussian", "--out", "noisy")[0] == 0
    assert audit(capsys, ".")["items"] == 20
    for words in (
        ["purify", "runs/run", "--data", ".", "--noise", "0.3", "--sampling_steps", "2"],
        ["sample", "runs/run", "--n", "2", "--sampling_steps", "2"],
        ["sample", "runs/run", "--n", "2", "--sampling_steps", "2", "--out", "drawn"],
        ["show", "run", "runs/run", "--out", "curves.png"],
    ):
        code, _, err = atdm(capsys, *words)
        assert code == 2, words
        assert "would be read as data there" in err, words
    for words in (
        ["sample", "runs/run", "--n", "2", "--sampling_steps", "2", "--out", "runs/run/x.png"],
        ["show", "run", "runs/run"],
    ):
        assert atdm(capsys, *words)[0] == 0, words
    code, _, err = atdm(capsys, "train", *train)
    assert code == 0, err


def test_results_do_not_go_into_the_folder_of_the_images_itself(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(fill(tmp_path / "photos", 20))
    os.symlink(tmp_path / "photos", tmp_path / "alias")
    train = ["train", "--net", "mlp:width=8", "--steps", "2", "--batch_size", "4", "--threads", "1"]
    before = sorted(os.listdir())
    for words in (
        [*train, "--data", ".", "--out", "."],
        [*train, "--data", "folder:../photos/", "--out", str(tmp_path / "alias")],
        [*train, "--data", "plane:n=40", "--trusted", "../alias", "--out", "../photos"],
    ):
        code, _, err = atdm(capsys, *words)
        assert code == 2, words
        assert "is the folder of the images of" in err, words
    assert sorted(os.listdir()) == before
    assert atdm(capsys, *train, "--data", ".", "--out", "../run")[0] == 0
    attack = ["attack", "../run", "--n", "2", "--sampling_steps", "2", "--seeds", "1", "--checks", "false"]
    code, _, err = atdm(capsys, *attack, "--budgets", "0", "--out", ".")
    assert code == 2
    assert "is the folder of the images of" in err
    assert sorted(os.listdir()) == before


def test_a_home_is_a_home(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(fill(tmp_path / "photos", 20))
    (tmp_path / "home").mkdir()
    audit(capsys, ".", "--out=~/x")
    assert (tmp_path / "home" / "x" / "audit.json").is_file()
    assert not (tmp_path / "photos" / "~").exists()
    shutil.move(tmp_path / "home" / "x", tmp_path / "y")
    audit(capsys, "~/../photos", "--out", "~/x")
    assert (tmp_path / "home" / "x").is_dir()


@pytest.mark.parametrize("name", ["digits", "plane"])
def test_a_folder_named_like_a_set_is_told_of(tmp_path, monkeypatch, name):
    from atdm.data import load

    monkeypatch.chdir(tmp_path)
    assert not load(name).notes
    fill(tmp_path / name, 3)
    (note,) = load(name).notes
    assert f"The folder is ./{name}" in note
    assert len(load(f"./{name}").items) == len(load(f"folder:{name}").items) == 3
