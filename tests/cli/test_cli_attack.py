"""``atdm attack`` on a run of ours and on a stock diffusers pipeline that somebody else saved."""

import json

import pytest

from helpers import atdm


def attack_on(pipeline, options):
    return ["attack", str(pipeline), "--data", "digits", *options.split()]


def test_a_stock_pipeline_is_attacked(capsys, stock, tmp_path):
    words = attack_on(stock, "--n 6 --sampling_steps 4 --seeds 0,1 --limit 100")
    words += ["--budgets", "0,0.5", "--attack", "pgd:steps=2", "--out", str(tmp_path / "out")]
    code, out, err = atdm(capsys, *words, "--undefended", str(stock), "--json")
    assert code == 0, err
    told = json.loads(out)
    assert json.loads((tmp_path / "out" / "attack.json").read_text()) == told
    assert {f.name for f in (tmp_path / "out").iterdir()} == {"attack.json", "damage.png", "damage.svg", "samples.png"}
    assert [(row["seed"], row["budget"]) for row in told["rows"]] == [(0, 0.0), (0, 0.5), (1, 0.0), (1, 0.5)]
    clean, hurt = told["rows"][:2]
    assert clean["damage"] == 0 < hurt["damage"]
    assert hurt["frechet_pixels"] is not None
    measures = {(row["budget"], row["measure"]): row for row in told["summary"]}
    assert measures[0.5, "damage"]["seeds"] == 2
    names = {check["name"]: check for check in told["checks"]}
    assert "transfer to undefended" in names
    assert not names["seeds"]["ok"]  # two are too few, and it says so
    for key in ("checkpoint", "reference_hash", "attack", "objective", "budget_unit", "seeds"):
        assert told["provenance"][key], key


def test_findings_are_printed_beside_the_numbers(capsys, stock, tmp_path):
    words = attack_on(stock, "--n 4 --sampling_steps 2 --seeds 1 --at 0-1")
    words += ["--budgets", "0.5", "--attack", "fgsm:start=zero", "--goal", "prediction"]
    code, out, err = atdm(capsys, *words, "--out", str(tmp_path / "out"))
    assert code == 0, err
    assert "DOUBT" in out
    assert "had no" in out
    code, out, err = atdm(capsys, *words, "--out", str(tmp_path / "other"), "--checks", "false")
    assert code == 0, err
    assert "DOUBT" not in out


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--attack", "pdg"], "Did you mean 'pgd'"),
        (["--goal", "distnce"], "Did you mean 'distance'"),
        (["--goal", "distance"], "known support"),
        (["--goal", "prediction", "--through", "rest"], "sees the image"),
        (["--through", "steps"], "Did you mean 'step'"),
        (["--budgets", "0,x"], "Expected numbers separated by commas"),
        (["--budgets=-1"], "budgets are [-1.0]. Expected 0 or more"),
        (["--at", "first"], "Expected all, or indices"),
        (["--data", "plane"], "Expected the same"),
        (["--seeds", "x"], "Expected integers"),
        (["--undefended", "nowhere"], "There is no folder nowhere"),
        (["--sampler", "dimm"], "Did you mean 'ddim'"),
    ],
)
def test_mistakes_are_sentences_and_leave_nothing(capsys, stock, tmp_path, monkeypatch, words, sentence):
    monkeypatch.chdir(tmp_path)
    data = [] if "--data" in words else ["--data", "digits"]
    code, _, err = atdm(capsys, "attack", str(stock), *data, *words)
    assert code == 2
    assert sentence in err
    assert not list(tmp_path.iterdir())
