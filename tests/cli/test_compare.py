"""Comparing measured models, and the commands evaluate, compare and features."""

import json
import math

import pytest

from atdm.cli import main
from atdm.errors import UserError
from atdm.metrics import Provenance, Result, Score, compare, over_seeds, read_rows
from atdm.metrics.results import ALIKE


def atdm(capsys, *words):
    """Exit code, standard output and standard error of a command."""
    code = 0
    try:
        main([str(word) for word in words])
    except SystemExit as end:
        code = end.code or 0
    out = capsys.readouterr()
    return code, out.out, out.err


MADE = {
    "samples": 100,
    "reference": "digits",
    "reference_hash": "ref",
    "reference_kind": "trusted set",
    "checkpoint": "c",
    "weights": "ema",
    "sampler": "ddpm",
    "steps": 50,
    "start_ratio": None,
    "seed": 0,
    "clip_sample": False,
}
SCORED = {"features": "Small", "features_hash": "net", "preprocessing": "8 bits", "settings": "k = 3"}


def row(value, metric="frechet_Small", **changed):
    made = {k: changed.get(k, v) for k, v in MADE.items()}
    scored = {k: changed.get(k, v) for k, v in SCORED.items()}
    how = {k: made.pop(k) for k in ("sampler", "steps", "start_ratio", "clip_sample")}
    return Result(Score(metric, value, **scored), Provenance(**made)).as_dict() | how


# --- the rules -------------------------------------------------------------------------------------------------------


def test_numbers_made_alike_are_ranked():
    found = compare(
        {
            "a": [row(2.0), row(0.5, "recall_Small"), row(1.4, "density_Small")],
            "b": [row(1.0, checkpoint="d"), row(0.7, "recall_Small"), row(0.8, "density_Small")],
            "c": [row(2.0, checkpoint="e"), row(0.1, "recall_Small"), row(math.nan, "density_Small")],
        }
    )
    assert found.differences == []
    assert found.ranks == {
        "frechet_Small": {"a": 2, "b": 1, "c": 2},  # equal values share a rank
        "recall_Small": {"a": 2, "b": 1, "c": 3},
        "density_Small": {"a": 2, "b": 1, "c": 3},  # one is best: 0.8 is nearer than 1.4
    }


@pytest.mark.parametrize("field", ALIKE)
def test_every_difference_in_the_making_forbids_a_rank(field):
    other = {"samples": 60, "steps": 60, "clip_sample": True}.get(field, "other")
    found = compare({"a": [row(2.0)], "b": [row(1.0, **{field: other})]})
    assert found.ranks == {}
    (difference,) = found.differences
    assert (difference.metric, difference.field) == ("frechet_Small", field)
    assert difference.values["b"] == other
    # Two sources that are both unlike within themselves are no better for being so alike.
    mixed = [row(2.0), row(1.0, **{field: other})]
    assert compare({"a": mixed, "b": mixed}).ranks == {}


@pytest.mark.parametrize("other", [{"checkpoint": "d"}, {"seed": 7}, {"reference": "the same, elsewhere"}])
def test_models_and_seeds_may_differ(other):
    assert compare({"a": [row(2.0)], "b": [row(1.0, **other)]}).ranks["frechet_Small"] == {"a": 2, "b": 1}


@pytest.mark.parametrize("kind", ["training data", "cleanest training data"])
def test_training_data_rank_nothing_that_needs_a_reference(kind):
    """Nor where one source alone was compared with them; measures of the samples alone rank, and precision by the cleanest."""
    names = (
        "frechet_Small",
        "precision_Small",
        "recall_Small",
        "noise_std",
        "noise_std_reference",
        "class_score_Small",
    )
    doubted = {"reference_kind": kind, "reference": f"{kind}, noise on ~60 % of them (audit)"}
    found = compare(
        {"a": [row(2.0, name, **doubted) for name in names], "b": [row(1.0, name, checkpoint="d") for name in names]}
    )
    alone = {"noise_std": {"a": 2, "b": 1}, "class_score_Small": {"a": 1, "b": 2}}
    precise = {"precision_Small": {"a": 1, "b": 2}} if kind.startswith("cleanest") else {}
    assert found.ranks == alone | precise
    assert {d.field for d in found.differences} == {"reference_kind"}
    assert all(d.values == {"a": doubted["reference"]} for d in found.differences)
    assert {d.metric for d in found.differences} == {*names} - {*found.ranks, "noise_std_reference"}


def test_unknown_origin_is_not_ranked():
    unknown = row(1.0, checkpoint=None, weights=None, sampler=None, steps=None, seed=None)
    found = compare({"a": [unknown], "b": [unknown]})
    assert {d.field for d in found.differences} == {"weights", "sampler", "steps"}
    assert found.ranks == {}


def test_a_metric_of_one_source_alone_hinders_nothing():
    found = compare({"a": [row(2.0), row(1.0, "noise_std")], "b": [row(1.0)]})
    assert found.differences == []
    assert set(found.ranks) == {"frechet_Small"}
    assert found.table["a"]["noise_std"]["mean"] == 1.0


def test_mean_and_spread_over_seeds():
    rows = [row(v, seed=s) for s, v in enumerate((1.0, 2.0, 6.0))] + [
        row(5.0, "noise_std"),
        row(math.inf, "recall_Small"),
    ]
    (frechet, noise, recall) = over_seeds(rows)
    assert frechet["label"] == "FD-Small"
    assert (frechet["mean"], frechet["std"], frechet["seeds"]) == (3.0, pytest.approx(math.sqrt(7)), 3)
    assert (noise["mean"], noise["std"]) == (5.0, None)
    assert recall["mean"] is None


# --- files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "There is no file"),
        ("{", "Expected rows of results"),
        ('{"rows": []}', "Expected rows of results"),
        ('{"rows": [{"metric": "noise_std"}]}', "Expected rows of results"),
        ("[1]", "Expected rows of results"),
    ],
)
def test_files_without_rows_are_refused(tmp_path, content, sentence):
    file = tmp_path / "a.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(UserError, match=sentence):
        read_rows(file)


def test_a_run_that_was_not_measured_says_how(tmp_path):
    with pytest.raises(UserError, match=f"atdm evaluate {tmp_path} --out {tmp_path}/metrics.json"):
        read_rows(tmp_path)


# --- the commands ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Small features, a measured run on digits and one that was not measured."""
    folder = tmp_path_factory.mktemp("runs")
    commands = [
        ["features", "--data", "digits", "--steps", "5", "--out", folder / "f.safetensors", "--json"],
        [
            *("train", "--data", "digits", "--net", "mlp:width=16", "--steps", "5", "--batch_size", "16", "--json"),
            *("--metrics", f"pixels+small:file={folder}/f.safetensors", "--metrics_samples", "110"),
            *("--out", folder / "measured"),
        ],
        [
            *("train", "--data", "plane:n=300", "--net", "mlp:width=16", "--steps", "5", "--batch_size", "16"),
            *("--json", "--out", folder / "plane"),
        ],
    ]
    for words in commands:
        with pytest.raises(SystemExit) as end:
            main([str(word) for word in words])
        assert end.value.code == 0
    return folder


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ATDM_CACHE", str(tmp_path / "cache"))


def test_training_ends_in_measured_rows(files):
    told = json.loads((files / "measured" / "metrics.json").read_text())
    rows = {r["metric"]: r for r in told["rows"]}
    assert {"frechet_pixels", "frechet_Small", "kernel_Small", "noise_std"} <= rows.keys()
    made = rows["kernel_Small"]
    for key in ("checkpoint", "features_hash", "preprocessing", "reference_hash", "settings"):
        assert made[key], key
    assert (made["weights"], made["sampler"], made["steps"], made["seed"]) == ("ema", "ddpm", 250, 0)
    assert made["samples"] == 110
    assert not (files / "plane" / "metrics.json").exists()


def test_evaluate_repeats_what_training_measured(capsys, files):
    words = ["evaluate", files / "measured", "--n", "110", "--features", f"pixels+small:file={files}/f.safetensors"]
    code, out, _ = atdm(capsys, *words, "--json")
    assert code == 0
    before = json.loads((files / "measured" / "metrics.json").read_text())["rows"]
    for now, then in zip(json.loads(out)["rows"], before, strict=True):
        assert now["metric"] == then["metric"]
        assert now["value"] == pytest.approx(then["value"], rel=1e-4)
        assert {k: v for k, v in now.items() if k in ALIKE} == {k: v for k, v in then.items() if k in ALIKE}
    assert now["checkpoint"] == then["checkpoint"]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--metrics", "inception:file=nowhere.pth"], "no file nowhere.pth with the weights of inception"),
        (["--metrics", "pixels+smal:file=a"], "Did you mean 'small'"),
        (["--metrics", "pixels", "--metrics_samples", "1"], "metrics_samples is 1"),
    ],
)
def test_what_a_metric_misses_is_told_before_training(capsys, tmp_path, monkeypatch, words, sentence):
    monkeypatch.chdir(tmp_path)
    code, _, err = atdm(capsys, "train", "--data", "digits", "--out", "run", *words)
    assert code == 2
    assert sentence in err
    assert not (tmp_path / "run").exists()


def test_what_a_metric_misses_is_told_before_sampling(capsys, files, monkeypatch):
    monkeypatch.setattr("atdm.cli.evaluate.samples_of", None)  # calling it would fail otherwise
    code, _, err = atdm(capsys, "evaluate", files / "measured", "--features", "small:file=nowhere.safetensors")
    assert code == 2
    assert "atdm features --data CLEAN --out nowhere.safetensors" in err


def test_seeds_weights_and_out(capsys, files, tmp_path):
    words = ["evaluate", files / "plane", "--n", "64", "--sampling_steps", "5"]
    code, out, _ = atdm(capsys, *words, "--seeds", "3,4", "--out", tmp_path / "ema.json")
    assert code == 0
    assert "std over seeds" in out
    told = json.loads((tmp_path / "ema.json").read_text())
    assert {r["seed"] for r in told["rows"]} == {3, 4}
    assert all(s["seeds"] == 2 for s in told["summary"])
    errors = {r["metric"]: r["value"] for r in told["rows"] if r["metric"].startswith("score_error")}
    assert {"score_error", "score_error_t0", "score_error_t999"} <= errors.keys()
    assert len(set(errors.values())) > 3
    assert atdm(capsys, *words, "--seed", "3", "--weights", "raw", "--out", tmp_path / "raw.json")[0] == 0
    raw = json.loads((tmp_path / "raw.json").read_text())["rows"]
    by = {r["metric"]: r for r in told["rows"] if r["seed"] == 3}
    assert raw[0]["checkpoint"] != by[raw[0]["metric"]]["checkpoint"]
    assert raw[0]["weights"] == "raw"
    code, _, err = atdm(capsys, "compare", tmp_path / "ema.json", tmp_path / "raw.json")
    assert code == 2
    assert f"different averaged or raw weights ({tmp_path}/ema.json: ema; {tmp_path}/raw.json: raw)" in err


def test_samples_of_unknown_origin(capsys, files, tmp_path):
    assert (
        atdm(capsys, "sample", files / "plane", "--n", "64", "--sampling_steps", "5", "--out", tmp_path / "s.npz")[0]
        == 0
    )
    words = ["evaluate", "--samples", tmp_path / "s.npz", "--data", "plane:n=300", "--json"]
    code, out, _ = atdm(capsys, *words)
    rows = {r["metric"]: r for r in json.loads(out)["rows"]}
    assert code == 0
    made = rows["off_support_rms"]
    assert made["checkpoint"] is made["weights"] is made["sampler"] is made["steps"] is made["seed"] is None
    out = atdm(capsys, "evaluate", files / "plane", "--n", "64", "--sampling_steps", "5", "--json")[1]
    drawn = {r["metric"]: r for r in json.loads(out)["rows"]}
    assert made["value"] == pytest.approx(drawn["off_support_rms"]["value"], rel=1e-5)
    assert made["reference_hash"] == drawn["off_support_rms"]["reference_hash"]


def test_a_folder_of_images_and_a_foreign_pipeline(capsys, files, tmp_path):
    images = ["evaluate", "--samples", tmp_path / "images", "--data", "digits", "--json"]
    assert (
        atdm(capsys, "sample", files / "measured", "--n", "8", "--sampling_steps", "5", "--out", tmp_path / "images")[0]
        == 0
    )
    assert json.loads(atdm(capsys, *images)[1])["rows"][0]["samples"] == 8
    pipeline = [
        "evaluate",
        files / "measured" / "model",
        "--data",
        "digits",
        "--n",
        "8",
        "--sampling_steps",
        "5",
        "--json",
    ]
    assert {r["weights"] for r in json.loads(atdm(capsys, *pipeline)[1])["rows"]} == {"pipeline"}


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "Expected either a run folder"),
        (["{plane}", "--samples", "a.npz"], "Expected either a run folder"),
        (["--samples", "a.npz"], "Expected --reference, a trusted set, or --data"),
        (["--samples", "a.npz", "--data", "digits"], "no file a.npz"),
        (["{plane}", "--seeds", "1,a"], "Expected integers"),
        (["{plane}", "--seeds", "1,1"], "each once"),
        (["{plane}", "--weights", "eam"], "Expected ema or raw"),
        (["{plane}", "--out", "a.txt"], "NAME.json"),
        (["{plane}", "--limit", "5"], "--limit is for --data"),
        (["{plane}", "--data", "digits"], "Expected the same shape"),
        (["{plane}", "--features", "pixel"], "Did you mean 'pixels'"),
        (["{plane}/model", "--weights", "raw", "--data", "plane"], "has no checkpoint"),
    ],
)
def test_mistakes_of_evaluate(capsys, files, tmp_path, monkeypatch, words, sentence):
    monkeypatch.chdir(tmp_path)
    code, _, err = atdm(capsys, "evaluate", *(w.format(plane=files / "plane") for w in words))
    assert code == 2
    assert sentence in err


def test_compare_ranks_lists_and_writes(capsys, tmp_path):
    paths = [tmp_path / f"{name}.json" for name in ("plain", "robust", "short")]
    values = ([row(2.0, seed=0), row(2.2, seed=1)], [row(1.0, checkpoint="d")], [row(0.5, steps=10)])
    for path, rows in zip(paths, values, strict=True):
        path.write_text(json.dumps({"rows": rows}))
    code, out, _ = atdm(capsys, "compare", *paths[:2], "--json")
    assert code == 0
    assert json.loads(out)["ranks"] == {"frechet_Small": {str(paths[0]): 2, str(paths[1]): 1}}
    code, _, err = atdm(capsys, "compare", *paths)
    assert code == 2
    assert "different steps" in err
    assert "short.json: 10" in err
    assert "--unranked" in err
    code, out, _ = atdm(capsys, "compare", *paths, "--unranked", "--out", tmp_path / "table.md")
    assert code == 0
    table = (tmp_path / "table.md").read_text()
    assert "| FD-Small | lower | 2.1 (0.14) | 1 | 0.5 |" in table
    assert "Not ranked: different steps" in table
    assert atdm(capsys, "compare", *paths[:2], "--out", tmp_path / "table.md")[0] == 0
    assert "| FD-Small | lower | 2.1 (0.14), 2 | 1, 1 |" in (tmp_path / "table.md").read_text()
    for words, sentence in (
        ([paths[0]], "two or more"),
        ([*paths[:2], "--out", "a.csv"], "NAME.md"),
        ([paths[0], tmp_path / "nowhere.json"], "There is no file"),
    ):
        code, _, err = atdm(capsys, "compare", *words)
        assert code == 2
        assert sentence in err


def test_several_models_in_one_file_are_told_apart(capsys, tmp_path):
    rows = [row(2.0), row(1.0, checkpoint="d")]
    for r, name in zip(rows, ("runs/a", "runs/b"), strict=True):
        r["model"] = name
    (tmp_path / "all.json").write_text(json.dumps({"rows": rows}))
    code, out, _ = atdm(capsys, "compare", tmp_path / "all.json", "--json")
    assert code == 0
    assert json.loads(out)["ranks"]["frechet_Small"] == {
        f"{tmp_path}/all.json:runs/a": 2,
        f"{tmp_path}/all.json:runs/b": 1,
    }


def test_mistakes_of_features(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for words, sentence in (
        (["--data", "digits", "--out", "f.pth"], "NAME.safetensors"),
        (["--data", "plane"], "holds vectors"),
        (["--data", "digits", "--steps", "0"], "at least 1 step"),
    ):
        code, _, err = atdm(capsys, "features", *words)
        assert code == 2
        assert sentence in err
    assert not list(tmp_path.iterdir())


def test_objectives_are_trained_alike_and_put_in_one_table(capsys, tmp_path):
    words = ["compare", "--train", "ddpm,auto,input_perturbation", "--data", "digits", "--scale", "smoke"]
    code, out, err = atdm(capsys, *words, "--out", tmp_path / "table.md", "--json")
    assert code == 0, err
    found = json.loads(out)
    methods = {row["method"] for row in found["rows"]}
    assert {"ddpm", "auto", "input_perturbation", "ddpm, stopped at 0.5"} <= methods
    for row in found["rows"]:  # compute-matched: steps times their cost are those of ddpm
        assert row["training_steps"] * row["cost"] == pytest.approx(30, abs=row["cost"])
    clean = {row["method"]: row["checkpoint"] for row in found["rows"] if row["condition"] == "clean"}
    assert len(set(clean.values())) >= 2
    text = (tmp_path / "table.md").read_text()
    assert "| clean | input_perturbation |" in text
    assert "residual corruption" in text
    own = ["--corrupt", "jpeg:share=0.5,quality=10", "blur+gaussian:share=1,std=0.3"]
    code, out, err = atdm(capsys, *words, *own, "--json")
    assert code == 0, err
    rows = json.loads(out)["rows"]
    assert {(row["condition"], row["corrupt"]) for row in rows} == {
        ("clean", "none"),
        *zip(own[1:], own[1:], strict=True),
    }


def test_a_comparison_goes_on_and_takes_in_more_objectives(capsys, tmp_path, monkeypatch):
    from atdm import pool
    from atdm.experiments import baselines

    monkeypatch.setattr(pool, "workers", lambda jobs: 1)
    work, done = baselines.work, []

    def count(job, tell):
        done.append(job.label)
        return work(job, tell)

    monkeypatch.setattr(baselines, "work", count)
    words = [
        "compare",
        "--data",
        "digits",
        "--scale",
        "smoke",
        "--corrupt",
        "none",
        "--store",
        tmp_path / "kept",
        "--json",
    ]
    tables = []
    for methods in ("ddpm", "ddpm,pseudo_huber", "ddpm,pseudo_huber"):
        code, out, err = atdm(capsys, *words, "--train", methods)
        assert code == 0, err
        tables.append(json.loads(out)["rows"])
    assert done == ["ddpm", "pseudo_huber"]
    assert tables[0] == tables[1][: len(tables[0])]
    assert tables[1] == tables[2]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["a.json", "b.json", "--store", "kept"], "--store is for what --train finds"),
        (["--train", "ddpm,abient"], "ambient"),
        (["a.json", "--train", "ddpm"], "one of them"),
        (["--train", "ddpm", "--seeds", "x"], "Expected integers"),
        (["--train", "ddpm", "--corrupt", "none", "gausian"], "Did you mean 'gaussian'"),
        (["--train", "ddpm", "--scale", "huge"], "smoke"),
    ],
)
def test_mistakes_in_what_is_to_be_trained(capsys, words, says):
    code, _, err = atdm(capsys, "compare", *words)
    assert code == 2
    assert says in err
