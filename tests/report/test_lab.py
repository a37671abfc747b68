"""``atdm report``: runs of ours and a pipeline that diffusers alone made, on one page."""

import json
import re

import pytest
import torch

from atdm.diffusion.model import Model
from atdm.diffusion.process import Process
from atdm.metrics import content_hash
from atdm.nets import build_net
from atdm.report import lab, sections
from atdm.report import sections as lab_report
from atdm.training.log import training_seconds
from helpers import atdm

FAST = ["--n", "4", "--steps_list", "2", "--budgets", "0.5", "--attack", "pgd:steps=1,norm=l2"]
FAST += ["--attacked", "2", "--attacked_steps", "2"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two runs on dirty digits, hardly trained."""
    from atdm.training import run
    from atdm.training.config import ObjectiveConfig, TrainConfig

    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("runs")
    for name in ("ddpm", "robust_adv"):
        options = {"net": "mlp:width=16,depth=1", "steps": 4, "batch_size": 8, "log_every": 2, "save_every": 4}
        options |= {"corrupt": "gaussian:share=1,std=0.5", "objective": ObjectiveConfig(name)}
        for _ in run.train(TrainConfig(out=str(folder / name), **options)):
            pass
    return folder


@pytest.fixture(scope="module")
def page(runs, tmp_path_factory):
    """The page over both runs, and its numbers."""
    out = tmp_path_factory.mktemp("page") / "report.html"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "get_num_threads", lambda: 1)
        models = [str(runs / "ddpm"), str(runs / "robust_adv")]
        plan = lab.Plan(8, (2, 4), (0.0, 0.01, 0.5), "pgd:steps=1,norm=l2", 4, 4)
        told = sections.run(lab.jobs(models, plan), out, lambda done, total, label: None)
        return out.read_text(), json.loads(json.dumps(told, allow_nan=False))


def test_the_page_is_self_contained_and_has_every_section(page):
    text, told = page
    titles = re.findall("<h2>(.*?)</h2>", text)
    assert titles == [
        "In short",
        "Samples",
        "Few steps",
        "Attack on the sampler",
        "Sanity checks of the attack",
        "Memorization",
        "Cost",
    ]
    for section in text.split("<section")[1:]:
        opening = re.search("<p>(.*?)</p>", section, re.DOTALL)[1]
        assert len(re.findall(r"[.:] ", opening + " ")) >= 2, "two sentences for a newcomer"
    assert "http" not in text.split("</style>")[1].replace("data:image", "")
    assert text.count("data:image/png;base64,") == 2 + 1 + 1 + 2
    assert told["models"] == ["ddpm", "robust_adv"]


def test_every_model_has_every_number_and_the_same_reference(page):
    _, told = page
    for label in told["models"]:
        rows = [r for r in told["rows"] if r["label"] == label]
        assert [(r["sampler"], r["steps"]) for r in rows] == [("ddpm", 2), ("ddpm", 4), ("ddim", 2), ("ddim", 4)]
        curve = {r["budget"]: r["mean"] for r in told["damage"][label] if r["measure"] == "moved_rms"}
        assert curve[0] == 0 < curve[0.01] < curve[0.5]
        names = [c["name"] for c in told["checks"][label]]
        assert ("transfer to undefended" in names) is (label != "ddpm")  # from and to the plain run
        assert told["memorization"][label]["held_out"] == 297
    assert len({r["reference_hash"] for r in told["rows"]}) == 1
    assert told["cost"]["robust_adv"]["floor_over_ddpm"] > told["cost"]["ddpm"]["floor_over_ddpm"] == 1
    assert told["cost"]["ddpm"]["training_seconds"] > 0


def test_memorization_looks_among_the_dirty_items_the_run_saw(runs):
    from atdm.corruption import corrupt
    from atdm.data import load

    (job,) = lab.jobs([str(runs / "ddpm")], lab.Plan())
    data = load("digits")
    seen, _ = corrupt(data.x, "gaussian:share=1,std=0.5", 0)
    found, _, training = lab._copies(job, seen[:3])
    assert content_hash(training) == content_hash(seen)
    assert found.near_duplicate_share == 1
    assert found.nearest.tolist() == [0, 1, 2]
    clean, _, _ = lab._copies(job, data.x[:200])
    assert clean.near_duplicate_share < 1


def test_training_seconds_are_items_over_speed():
    log = [{"step": 10, "samples_per_second": 100.0}, {"step": 30, "samples_per_second": 50.0}]
    assert training_seconds(log, 5) == pytest.approx(10 * 5 / 100 + 20 * 5 / 50)
    assert training_seconds([], 5) is None


@pytest.mark.parametrize(
    ("row", "kept"),
    [
        (
            {"never_varying_noise": 1.0, "noise_std": 1.0, "frechet_pixels": 2.0},
            ["never_varying_noise", "frechet_pixels"],
        ),
        ({"off_support_rms": 1.0, "sliced_wasserstein": 1.0}, ["off_support_rms", "sliced_wasserstein"]),
    ],
)
def test_tables_show_exact_measures_where_there_are_any(row, kept):
    assert lab_report.measures([row]) == kept


def test_a_stock_pipeline_goes_through_attack_evaluate_and_report(capsys, stock, tmp_path):
    data = [str(stock), "--data", "digits", "--limit", "100", "--json"]
    words = [
        "attack",
        *data,
        "--n",
        "4",
        "--sampling_steps",
        "4",
        "--seeds",
        "1",
        "--budgets",
        "0.5",
        "--checks",
        "false",
    ]
    code, out, err = atdm(capsys, *words, "--attack", "fgsm", "--out", str(tmp_path / "attack"))
    assert code == 0, err
    attacked = json.loads(out)["provenance"]["checkpoint"]
    code, out, err = atdm(capsys, "evaluate", *data, "--n", "8", "--sampling_steps", "4")
    assert code == 0, err
    assert {r["checkpoint"] for r in json.loads(out)["rows"]} == {attacked}
    code, out, err = atdm(capsys, "report", *data, *FAST, "--out", str(tmp_path / "page.html"))
    assert code == 0, err
    told = json.loads(out)
    assert {r["checkpoint"] for r in told["rows"]} == {attacked}
    assert "training_steps" not in told["cost"]["pipeline"]
    assert told["memorization"]["pipeline"]["held_out"] == 297
    assert told["damage"]["pipeline"][0]["budget"] == 0  # beside which damage is measured
    assert "The training data of pipeline are not known" in (tmp_path / "page.html").read_text()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "Expected --reference, a trusted set, or --data"),
        (["--data", "plane"], "Expected the same"),
        (["--data", "digits", "--steps_list", "2,x"], "numbers separated by commas"),
        (["--data", "digits", "--steps_list", "0"], "of 1 or more"),
        (["--data", "digits", "--steps_list", "2000"], "Expected 1 to 1000"),
        (["--data", "digits", "--budgets", "0"], "one above 0"),
        (["--data", "digits", "--attack", "pdg"], "Did you mean 'pgd'"),
        (["--data", "digits", "--n", "1"], "Expected 2 or more"),
        (["--data", "digits", "--out", "page.pdf"], "NAME.html"),
        (["--limit", "5"], "--limit is for --data"),
        (["nowhere", "--data", "digits"], "There is no folder nowhere"),
    ],
)
def test_mistakes_are_sentences(capsys, stock, tmp_path, monkeypatch, words, sentence):
    monkeypatch.chdir(tmp_path)
    code, _, err = atdm(capsys, "report", str(stock), *words)
    assert code == 2
    assert sentence in err
    assert not list(tmp_path.iterdir())


def test_runs_on_different_data_need_one_reference(runs, tmp_path):
    import yaml

    from atdm.errors import UserError

    other = tmp_path / "other"
    other.mkdir()
    config = yaml.safe_load((runs / "ddpm" / "config.yaml").read_text())
    (other / "config.yaml").write_text(yaml.safe_dump({**config, "data": "digits:subspace=8"}))
    with pytest.raises(UserError, match="different data"):
        lab.jobs([str(runs / "ddpm"), str(other)], lab.Plan())


@pytest.mark.parametrize(
    ("family", "samplers"),
    [("flow", {"euler", "heun"}), ("edm", {"euler", "dpm-solver++"}), ("cosine", {"ddpm", "ddim"})],
)
def test_the_samplers_are_those_of_the_family(family, samplers, tmp_path, capsys):
    torch.manual_seed(0)
    Model(build_net("mlp:width=8", (2,)), getattr(Process, family)()).save_pretrained(tmp_path / "model")
    few = ["--n", "8", "--steps_list", "4,5", "--attacked", "4", "--attacked_steps", "4", "--attack", "fgsm:norm=l2"]
    words = ["report", str(tmp_path / "model"), "--data", "moons:n=200", *few, "--budgets", "0.1"]
    code, out, err = atdm(capsys, *words, "--out", str(tmp_path / "r.html"), "--json")
    assert code == 0, err
    rows = json.loads(out)["rows"]
    assert {row["sampler"] for row in rows} == samplers
    assert {row["steps"] for row in rows} == {4, 5}
    assert all(row["last_ratio"] > 0 and row["start_ratio"] is None for row in rows)
    assert "steps of a deterministic sampler" in (tmp_path / "r.html").read_text()
