"""``auto`` is the default objective, and whatever was stored or said before means what it meant."""

import dataclasses
import json

import yaml

from atdm.experiments.runner.jobs import ddpm_job
from atdm.experiments.runner.stored import _chosen
from atdm.training import checkpoint
from atdm.training.config import ObjectiveConfig, TrainConfig
from atdm.training.recipes import recipe_file
from helpers import atdm

TRAIN = [
    "train",
    "--data",
    "plane:n=60",
    "--net",
    "mlp:width=8",
    "--steps",
    "2",
    "--batch_size",
    "8",
    "--log_with",
    "none",
    "--threads",
    "1",
]
AUTO, PUBLISHED = ObjectiveConfig("auto"), ObjectiveConfig("robust_adv")


def resolved(capsys, tmp_path, *words):
    code, out, err = atdm(capsys, *TRAIN, "--out", str(tmp_path / "run"), "--dry_run", "--json", *words)
    assert code == 0, err
    return ObjectiveConfig(**json.loads(out)["config"]["objective"])


def test_auto_is_the_default_and_the_published_method_is_one_word_away(capsys, tmp_path):
    assert TrainConfig().objective == resolved(capsys, tmp_path) == AUTO
    assert resolved(capsys, tmp_path, "--objective", "robust_adv") == PUBLISHED == ObjectiveConfig()
    said = " ".join(atdm(capsys, "train", "--help")[1].split())
    assert "--objective NAME its name, as in --objective robust_adv, or {name: ..., ...} (default: auto)" in said


def test_options_that_only_the_regularizer_has_ask_for_it(capsys, tmp_path):
    wanted = dataclasses.replace(PUBLISHED, gate=0.3)
    file = tmp_path / "mine.yaml"
    file.write_text("objective:\n  gate: 0.3\n")
    for words in (["--objective.gate", "0.3"], ["--objective", "{gate: 0.3}"], ["--config", str(file)]):
        assert resolved(capsys, tmp_path, *words) == wanted
    # What a recipe says is no reason to refuse another objective by name.
    assert resolved(capsys, tmp_path, "--config", str(file), "--objective", "auto").name == "auto"
    code, _, err = atdm(capsys, *TRAIN, "--objective", "atuo")
    assert (code, "Unknown objective 'atuo'. Did you mean 'auto'" in err) == (2, True)
    code, _, err = atdm(capsys, *TRAIN, "--objective", "auto", "--objective.gate", "0.3")
    assert (code, "auto chooses --objective.gate from the data" in err) == (2, True)


def test_a_file_without_an_objective_means_what_it_meant_and_training_says_so(capsys, tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("lr: 0.01\n")
    assert resolved(capsys, tmp_path, "--config", str(file)) == PUBLISHED
    code, _, err = atdm(capsys, *TRAIN, "--config", str(file), "--out", str(tmp_path / "new"))
    assert code == 0, err
    assert err.startswith(f"No objective is named in {file}, which means robust_adv, the published method")
    assert "--objective auto" in err.splitlines()[0]
    assert checkpoint.read_config(tmp_path / "new")["objective"] == dataclasses.asdict(PUBLISHED)
    assert resolved(capsys, tmp_path, "--config", str(file), "--objective", "auto") == AUTO


def test_every_recipe_names_its_objective():
    files = sorted(recipe_file("digits").parent.glob("*.yaml"))
    assert len(files) > 10
    assert [f.name for f in files if "name" not in yaml.safe_load(f.read_text()).get("objective", {})] == []


def test_a_run_keeps_its_objective_where_none_is_named(capsys, tmp_path):
    run = tmp_path / "run"
    words = [*TRAIN, "--out", str(run)]
    assert atdm(capsys, *words, "--objective", "robust_adv", "--objective.start", "0")[0] == 0
    stored = yaml.safe_load((run / "config.yaml").read_text())
    del stored["objective"]  # as if no objective had been written
    (run / "config.yaml").write_text(yaml.safe_dump(stored))
    assert checkpoint.read_config(run)["objective"] == dataclasses.asdict(PUBLISHED)
    code, _, err = atdm(capsys, *words, "--steps", "4")
    assert code == 0, err
    assert "Training goes on from step 2 of 4." in err
    assert checkpoint.read_config(run)["objective"]["name"] == "robust_adv"
    code, _, err = atdm(capsys, *words, "--steps", "4", "--objective", "auto")
    assert (code, "its objective.name is robust_adv, this one's is auto" in err) == (2, True)


def test_a_run_of_auto_says_why_it_cannot_be_made_longer(capsys, tmp_path):
    words = [*TRAIN, "--out", str(tmp_path / "run")]
    assert atdm(capsys, *words)[0] == 0
    code, _, err = atdm(capsys, *words, "--steps", "4")
    assert code == 2
    assert "auto begins its regularizer at a share of the steps, so a longer run begins later" in err
    assert "--init" in err


def test_of_too_few_items_auto_makes_ddpm_and_says_so(capsys, tmp_path):
    words = [*TRAIN, "--data", "plane:n=15", "--out", str(tmp_path / "run")]
    code, _, err = atdm(capsys, *words)
    assert code == 0, err
    assert "objective auto: ddpm, for 15 items are too few" in err
    assert json.loads((tmp_path / "run" / "objective.json").read_text())["name"] == "ddpm"
    code, _, err = atdm(capsys, *words, "--steps", "4")  # without a schedule it can be made longer
    assert code == 0, err
    assert "Training goes on from step 2 of 4." in err


def test_kept_outcomes_are_found_under_their_names():
    """Those of the published objective were named by the absence of one, when it was the default."""
    job = ddpm_job("plane", "mlp", 10, 8, 8, 5)
    assert _chosen(job.but(objective=AUTO))["config"]["objective"] == {"name": "auto"}
    assert "objective" not in _chosen(job.but(objective=PUBLISHED))["config"]
    assert _chosen(job)["config"]["objective"] == {"name": "ddpm"}
