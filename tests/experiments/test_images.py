"""Real images: recipes and their twins, and the experiment that compares ddpm with robust_adv on them."""

from __future__ import annotations

import json
import math

import pytest
import torch

from atdm.errors import UserError
from atdm.experiments import images, larger
from atdm.experiments.runner import reproduce
from atdm.training.config import TrainConfig
from atdm.training.recipes import recipe

SETS = ["cifar10", "celeba", "bedroom", "imagenet64"]


@pytest.mark.parametrize("name", SETS)
def test_each_recipe_has_its_twins(name):
    full, small, quick = (recipe(f"{name}{twin}") for twin in ("", "-cpu", "-gpu10"))
    assert full.data == small.data == quick.data
    assert full.corrupt == small.corrupt == quick.corrupt == "gaussian:share=0.9,std=0.2"
    assert (full.objective.radius, full.objective.weight) == (
        "published:omega=2,floor=8/255,beta=uniform",
        "published:lam=0.3",
    )
    assert small.image_size == 16
    assert full.image_size == quick.image_size
    assert small.objective == quick.objective
    for config in (full, small, quick):
        config.objective.fitted(torch.randn(32, 3, 8, 8)).build(config.build_process())
    assert small.objective.automatic


def test_an_unknown_recipe_names_the_nearest():
    with pytest.raises(UserError, match="Did you mean 'cifar10-cpu'"):
        recipe("cifar-cpu")


def test_every_set_and_condition_has_every_published_objective_alike():
    todo = images.jobs("cpu", [0], None)
    sets = [name for name in images.SETS if name != "imagenet64"]  # whose place is at scale paper
    by_place: dict = {}
    for job in todo:
        by_place.setdefault((job.options["set"], job.condition), {})[job.label] = job.config
    assert set(by_place) == {(name, condition) for name in sets for condition in images.CONDITIONS}
    for found in by_place.values():
        assert list(found)[:4] == ["ddpm", "robust_adv", "robust_rand", "auto"]
        assert found["auto"].objective.name == "auto"
        for label in ("robust_adv", "robust_rand"):
            assert found[label].objective.weight == "published:lam=0.3"
        for config in found.values():
            for field in ("data", "corrupt", "net", "steps", "batch_size", "lr", "seed", "image_size", "limit"):
                assert getattr(config, field) == getattr(found["ddpm"], field)
    standard = by_place["cifar10", images.STANDARD]
    assert {"inv_adv", "robust_adv, lambda 0.1", "robust_adv, lambda 0.5"} <= set(standard)
    assert standard["auto:k=3"].objective.name == "auto:k=3"
    assert standard["ambient_blind"].objective.name == "ambient_blind"
    assert by_place["celeba", images.STANDARD]["robust_adv, late"].objective.start == images.LATE
    assert len({job.config.out for job in todo}) == len(todo)
    assert {job.options["set"] for job in images.jobs("paper", [0], None)} == set(images.SETS)


def test_a_folder_may_hold_some_of_the_sets(tmp_path):
    (tmp_path / "celeba").mkdir()
    assert {job.options["set"] for job in images.jobs("cpu", [0], str(tmp_path))} == {"celeba"}


def test_a_folder_without_the_sets_is_refused(tmp_path):
    with pytest.raises(UserError, match="cifar10"):
        images.jobs("cpu", [0], str(tmp_path))


def test_a_smoke_run_writes_numbers_and_grids(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    reproduce.run("images", tmp_path / "out", "smoke")
    found = json.loads((tmp_path / "out" / "images" / "numbers.json").read_text())
    assert {r["method"] for r in found["rows"]} >= {
        "ddpm",
        "robust_adv",
        "inv_adv",
        "auto",
        "ddpm, stopped at 0.3",
        images.REAL,
    }
    for row in found["rows"]:
        assert row["method"] == images.REAL or row["checkpoint"]
        assert math.isfinite(row["noise_std"])
    (real,) = (r for r in found["rows"] if r["method"] == images.REAL)
    assert all(real["frechet_patches4"] < r["frechet_patches4"] for r in found["rows"] if r is not real)
    assert (tmp_path / "out" / "images" / "cifar10-noise-0.2.png").is_file()
    assert isinstance(images.smoke(), TrainConfig)
    # What is there is not trained again.
    before = {f: f.stat().st_mtime_ns for f in (tmp_path / "runs").rglob("state.safetensors")}
    reproduce.run("images", tmp_path / "again", "smoke")
    assert {f: f.stat().st_mtime_ns for f in (tmp_path / "runs").rglob("state.safetensors")} == before
    again = json.loads((tmp_path / "again" / "images" / "numbers.json").read_text())
    values = [[(r["method"], r["noise_std"]) for r in n["rows"]] for n in (found, again)]
    assert values[0] == values[1]


def test_larger_images_know_every_objective_of_the_comparison(tmp_path):
    (tmp_path / "celeba").mkdir()
    small = larger.jobs("cpu", [0], str(tmp_path))
    assert {(job.condition, job.label) for job in small} == {
        (images.STANDARD, label) for label in ("ddpm", "robust_adv", "ambient_blind", "auto")
    }
    assert {job.config.image_size for job in small} == {64}
    every = larger.jobs("paper", [0, 1], None)
    assert len(every) == len({job.config.out for job in every}) == 2 * 2 * 2 * 4  # sets, conditions, objectives, seeds
    assert {job.config.image_size for job in every} == {32, 64}
    assert {job.config.objective.weight for job in every if job.label == "robust_adv"} == {"published:lam=0.3"}
