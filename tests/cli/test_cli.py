"""The command line as a person meets it."""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import jsonargparse
import pytest

from atdm.cli.common import destination
from atdm.cli.parser import SUMMARY, make_parser
from atdm.errors import UserError
from helpers import atdm, parsed


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["trian"], "Did you mean 'train'"),
        (["train", "--objective.nam", "ddpm"], "Did you mean 'objective.name'"),
        (["train", "--seed", "x"], "Expected an integer"),
        (["train", "--workers", "x"], "The option workers is 'x'. Expected an integer or null"),
        (["train", "--workers", "-1"], "Expected an integer >= 0"),
        (["train", "--flip", "true", "--data", "plane"], "for images"),
        (["train", "--crop", "random", "--data", "."], "Expected --image_size N"),
        (["corrupt", "--corrupt", "gaussian", "--out", "x", "--data", ".", "--crop", "random"], "center or none"),
        (["train", "--objective.name", "robust"], "Unknown objective 'robust'"),
        (["train", "--data", "plain"], "Did you mean 'plane'"),
        (["train", "--steps", "0"], "Expected an integer >= 1"),
        (["train", "--objective.radius", "published:omga=1"], "Did you mean 'omega'"),
        (["train", "--corrupt", "gaussian:share=2"], "from 0 to 1"),
        (["train", "--net", "unet"], "Unknown network 'unet'"),
        (["sample", "nowhere"], "There is no folder nowhere"),
        (["sample", "nobody/nothing"], "There is no folder 'nobody/nothing'"),
        (["train", "--init", "nobody/nothing", "--data", "plane"], "There is no folder 'nobody/nothing'"),
        (["show", "rays"], "Did you mean 'radius'"),
        (["show", "radius", "--omegas", "a,b"], "Expected numbers"),
        (["show", "run", "nowhere"], "has no log.jsonl"),
    ],
)
def test_mistakes_are_sentences_and_exit_2(capsys, tmp_path, monkeypatch, words, sentence):
    monkeypatch.chdir(tmp_path)
    code, _, err = atdm(capsys, *words)
    assert code == 2
    assert sentence in err
    assert "Traceback" not in err
    assert not list(tmp_path.iterdir()), "a mistake must leave nothing behind"


@pytest.mark.parametrize("command", SUMMARY)
def test_every_option_is_spelt_with_either_dash(capsys, monkeypatch, command):
    words = [command, "run"] if command == "show" else [command]
    parser, _ = parsed(words, monkeypatch)
    options = [s[2:] for action in parser._actions for s in action.option_strings if "shtab" not in s and s[2:]]
    assert "json" in options
    assert not any("-" in option for option in options), "the help shows one spelling"
    heard = []

    def listen(self, words, *_):
        heard.extend(words)
        raise UserError("heard")

    monkeypatch.setattr(jsonargparse.ArgumentParser, "parse_args", listen)
    given = [f"--{option}=./a-b_c" for option in options if f"{option}.name" not in options]
    atdm(capsys, *words, *(word.replace("_", "-", word.partition("=")[0].count("_")) for word in given))
    assert heard == given


def test_an_option_that_is_true_or_false_may_stand_alone():
    parser = make_parser("train")
    parser.add_argument("--skip_broken", type=bool, default=False)
    parser.add_argument("--n", type=int, default=0)
    words = (["--skip-broken"], ["--skip_broken", "true"], ["--skip-broken", "--n", "3"], ["--skip_broken=true"])
    assert all(parser.parse_args(w).skip_broken is True for w in words)
    assert parser.parse_args(["--skip-broken", "false"]).skip_broken is False
    assert parser.parse_args([]).skip_broken is False


def test_help_tells_what_each_option_means(capsys):
    _, out, _ = atdm(capsys, "train", "--help")
    for word in ("count and skip unreadable images", "how far to perturb, in noise units", "peak learning rate"):
        assert word in " ".join(out.split())


def test_help_answers_at_once():
    shown, seconds = None, []
    for _ in range(3):  # the machine does other things, too
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        shown = subprocess.run([sys.executable, "-m", "atdm", "--help"], capture_output=True, text=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(seconds) < 0.5
    for command in ("train", "sample", "evaluate", "attack", "purify", "corrupt", "demo", "show"):
        assert command in shown.stdout


def test_a_recipe_with_overrides_is_resolved_and_costed(capsys, tmp_path, pytestconfig):
    recipe = pytestconfig.rootpath / "recipes" / "plane-outliers.yaml"
    code, out, _ = atdm(
        capsys,
        "train",
        "--config",
        str(recipe),
        "--objective.name",
        "robust_rand",
        "--seed",
        "3",
        "--dry-run",
        "--json",
    )
    told = json.loads(out)
    assert code == 0
    assert told["config"]["objective"]["name"] == "robust_rand"
    assert told["config"]["objective"]["weight"] == "relative:k=5"
    assert told["config"]["seed"] == 3
    assert told["cost"]["parameters"] > 10_000
    assert 1 < told["cost"]["floor_over_ddpm"] < 2


def test_every_recipe_resolves(capsys, pytestconfig):
    for recipe in sorted((pytestconfig.rootpath / "recipes").glob("*.yaml")):
        if "\ndata: plane" not in recipe.read_text() and "\ndata: digits" not in recipe.read_text():
            continue  # needs images from elsewhere: tests/test_images.py builds its parts
        code, out, err = atdm(capsys, "train", "--config", str(recipe), "--dry-run", "--json")
        assert code == 0, (recipe, err)
        assert json.loads(out)["cost"]["seconds_on_this_cpu"] > 0


def test_evaluate_rows_carry_their_provenance(capsys, folder):
    code, out, _ = atdm(capsys, "evaluate", str(folder), "--n", "200", "--sampling_steps", "10", "--json")
    rows = {row["metric"]: row for row in json.loads(out)["rows"]}
    assert code == 0
    assert rows["off_support_rms"]["value"] > 0
    for key in (
        "checkpoint",
        "weights",
        "sampler",
        "steps",
        "last_ratio",
        "seed",
        "samples",
        "reference",
        "reference_hash",
    ):
        assert rows["off_support_rms"][key] is not None, key
    again = json.loads(atdm(capsys, "evaluate", str(folder), "--n", "200", "--sampling_steps", "10", "--json")[1])
    assert again["rows"] == list(rows.values())
    table = atdm(capsys, "evaluate", str(folder), "--n", "20", "--sampling_steps", "10")[1]
    assert "ddpm, 10 steps down to noise level 0.34" in " ".join(table.split())


def test_sample_show_and_corrupt_write_what_they_say(capsys, folder, tmp_path):
    import numpy as np
    from PIL import Image

    code, out, _ = atdm(
        capsys, "sample", str(folder), "--n", "8", "--sampling_steps", "5", "--out", str(tmp_path / "s.npz"), "--json"
    )
    told = json.loads(out)
    assert code == 0
    assert told["files"] == [str(tmp_path / "s.npz")]
    assert (told["n"], told["sampler"], told["steps"], told["seed"]) == (8, "ddpm", 5, 0)
    assert len(told["checkpoint"]) == 16
    with np.load(tmp_path / "s.npz", allow_pickle=False) as file:
        assert file["samples"].shape == (8, 3)
    assert atdm(capsys, "show", "radius", "--out", str(tmp_path / "ray.png"))[0] == 0
    code, out, _ = atdm(capsys, "show", "run", str(folder), "--out", str(tmp_path / "run.png"), "--json")
    assert code == 0
    told = json.loads(out)
    assert told["samples"] == str(folder / "samples" / "step-00000020.png")
    assert told["steps"] == 20
    (folder / "samples").rename(folder / "aside")
    assert atdm(capsys, "show", "run", str(folder), "--out", str(tmp_path / "bare.png"))[0] == 0
    (folder / "aside").rename(folder / "samples")
    with Image.open(tmp_path / "run.png") as whole, Image.open(tmp_path / "bare.png") as bare:
        assert whole.height > bare.height + 300, "the samples are below the curves"
    assert (tmp_path / "ray.png").read_bytes()[:4] == (tmp_path / "run.png").read_bytes()[:4] == b"\x89PNG"
    words = ["corrupt", "--data", "digits", "--corrupt", "gaussian:share=0.9,std=0.2", "--limit", "50", "--out"]
    assert atdm(capsys, *words, str(tmp_path / "dirty"))[0] == 0
    assert {f.name for f in (tmp_path / "dirty").iterdir()} == {"samples.npz", "truth.npz", "preview.png"}
    code, _, err = atdm(capsys, *words, str(tmp_path / "dirty"))
    assert code == 2
    assert "is not empty" in err


@pytest.mark.parametrize(
    "words",
    [
        "train --data plane --out",
        "demo --out",
        "reproduce baselines --out",
        "reproduce baselines --pages",
        "compare --train ddpm --out NAME.md",
        "compare --train ddpm --store",
        "features --data digits --out NAME.safetensors",
        "audit digits --out",
        "corrupt --data digits --corrupt gaussian --out",
    ],
)
def test_a_place_that_cannot_be_written_is_told_before_the_work(words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("precious")
    *given, last = words.split()
    last = [str(tmp_path / "file" / last)] if last.startswith("NAME") else [last, str(tmp_path / "file" / "x")]
    code, out, err = atdm(capsys, *given, *last)
    assert (code, out) == (2, "")
    assert "Cannot write" in err
    assert "Not a directory" in err
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_what_a_run_or_a_pipeline_owns_is_not_overwritten(capsys, tmp_path, monkeypatch):
    """Before any work: nothing is opened, so that the files may be empty. What is no part of them may be overwritten."""
    monkeypatch.chdir(tmp_path)
    owned = {
        "run": "config.yaml truth.npz log.jsonl metrics.json objective.json checkpoints/step-1/state.json "
        "checkpoints/step-1/state.safetensors model/unet/config.json samples/step-1.png data.npz",
        "pipe": "model_index.json unet/config.json unet/weights.safetensors README.md grid.png",
        "noisy": "samples.npz truth.npz",
        "audit": "audit.json recipe.yaml",
        "demo": "summary.json report.html",
        "page": "numbers.json paragraph.md",
    }
    for folder, names in owned.items():
        for name in (*names.split(), "curves.png", "mine.json"):
            (tmp_path / folder / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / folder / name).write_text("precious")
    (tmp_path / "link").symlink_to(tmp_path / "run")
    (tmp_path / "link.json").symlink_to(tmp_path / "run" / "metrics.json")
    before = {file: file.read_text() for file in tmp_path.rglob("*") if file.is_file()}
    commands = {
        ".json": ["evaluate", "--samples", "x.npz", "--data", "plane"],
        ".html": ["report", "run"],
        ".md": ["compare", "--train", "ddpm"],
        ".npz": ["sample", "runs/not-there"],
        ".safetensors": ["features", "--data", "digits"],
        ".png": ["show", "run", "run"],
    }
    aimed = [f"{folder}/{name}" for folder, names in owned.items() for name in names.split()]
    for aim in (
        *aimed,
        "./run/../run/metrics.json",
        "link/objective.json",
        "link.json",
        str(tmp_path / "run/metrics.json"),
    ):
        if words := commands.get(Path(aim).suffix):
            code, out, err = atdm(capsys, *words, "--out", aim)
            assert (code, out) == (2, ""), (aim, err)
            assert "so that it is not overwritten" in " ".join(err.split()), (aim, err)
    for words in (["sample", "none"], ["purify", "none", "--data", "digits", "--noise", "1"]):
        code, _, err = atdm(capsys, *words, "--out", "run/samples/step-1.png")
        assert code == 2
        assert "so that it is not overwritten" in " ".join(err.split()), err
    assert {file: file.read_text() for file in tmp_path.rglob("*") if file.is_file()} == before
    for free in ("run/mine.json", "new/metrics.json", "audit/mine.json"):
        assert destination(free, ".json") == Path(free)


@pytest.mark.parametrize(("data", "shape"), [("digits", (1, 8, 8)), ("plane:n=60", (3,))])
def test_corrupted_data_can_be_learned_from(capsys, tmp_path, data, shape):
    import numpy as np

    from atdm.corruption import Truth, corrupt
    from atdm.data import load

    words = [
        "--corrupt",
        "outliers:share=0.2+gaussian:share=0.9,std=0.2",
        "--limit",
        "50",
        "--out",
        str(tmp_path / "d"),
    ]
    code, out, _ = atdm(capsys, "corrupt", "--data", data, *words, "--json")
    told, truth = json.loads(out), Truth.load(tmp_path / "d" / "truth.npz")
    assert code == 0
    assert told["items"] == 50
    assert told["corrupted"] == truth.corrupted.sum()
    assert [p["touched"] for p in told["parts"]] == truth.touched.sum(1).tolist()
    assert all((tmp_path / "d" / name).is_file() for name in ("samples.npz", "truth.npz"))
    assert {str(f) for f in (tmp_path / "d").iterdir()} == set(told["files"])
    with np.load(tmp_path / "d" / "samples.npz") as file:
        dirty = file["samples"]
    expected, _ = corrupt(load(data, limit=50).x, words[1], 0)
    assert np.array_equal(dirty, expected.numpy())
    for spec in (str(tmp_path / "d" / "samples.npz"), f"npz:path={tmp_path}/d/samples.npz"):
        again = load(spec)
        assert again.item_shape == shape
        assert np.array_equal(again.x.numpy(), dirty)
    train = ["train", "--data", spec, "--net", "mlp:width=32", "--steps", "2", "--batch_size", "8", "--json"]
    assert atdm(capsys, *train, "--out", str(tmp_path / "run"))[0] == 0
    assert atdm(capsys, "evaluate", str(tmp_path / "run"), "--n", "20", "--sampling_steps", "5", "--json")[0] == 0


def test_a_folder_with_odd_files_says_what_it_did(capsys, tmp_path):
    """Truncated JPEG, CMYK, gray, 16 bits, animation and text: refused by name, or counted, converted and told."""
    import numpy as np
    from PIL import Image

    folder = tmp_path / "photos"
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 255, (16, 16, 3), dtype=np.uint8)
    photo = Image.fromarray(pixels)
    photo.save(folder / "good.png")
    photo.convert("CMYK").save(folder / "cmyk.jpg")
    photo.convert("L").save(folder / "gray.png")
    Image.fromarray(np.full((16, 16), 40000, dtype=np.uint16)).save(folder / "sixteen.png")
    photo.save(folder / "moving.gif", save_all=True, append_images=[Image.fromarray(255 - pixels)])
    (folder / "text.png").write_text("no image")
    photo.save(folder / "half.jpg", quality=95)
    whole = (folder / "half.jpg").read_bytes()
    (folder / "half.jpg").write_bytes(whole[: len(whole) // 2])

    train = ["train", "--data", str(folder), "--net", "mlp:width=32", "--steps", "2", "--batch_size", "4", "--json"]
    corrupt = ["corrupt", "--data", str(folder), "--corrupt", "gaussian", "--json"]
    for words in (train, corrupt):
        code, _, err = atdm(capsys, *words, "--out", str(tmp_path / "refused"))
        assert code == 2
        assert "half.jpg" in err
        assert "skip_broken" in err
        assert not (tmp_path / "refused").exists()
        (folder / "half.jpg").rename(folder / "half.txt")
        assert "text.png" in atdm(capsys, *words, "--out", str(tmp_path / "refused"))[2]
        (folder / "half.txt").rename(folder / "half.jpg")
        for turn in ("decoded", "from the cache"):
            code, out, err = atdm(
                capsys, *words, "--skip_broken", "true", "--out", str(tmp_path / f"{words[0]} {turn}")
            )
            assert code == 0, err
            assert json.loads(out)
            said = " ".join(err.split())
            for sentence in (
                "2 unreadable images were skipped: half.jpg, text.png",
                "1 image was animated (the first frame was taken).",
                "1 image was converted from CMYK to RGB.",
                "1 image was converted from 16 bits to 8.",
                "2 images were converted from gray to RGB.",
            ):
                assert sentence in said, (turn, sentence)


@pytest.mark.parametrize("words", [["--config", "plane-outliers"], ["--config=plane-outliers"]])
def test_a_recipe_of_the_package_by_its_name(capsys, words):
    code, out, err = atdm(capsys, "train", *words, "--steps", "7", "--dry_run", "--json")
    assert code == 0, err
    config = json.loads(out)["config"]
    assert config["corrupt"].startswith("outliers")
    assert config["steps"] == 7


def test_a_recipe_that_is_not_there(capsys):
    code, _, err = atdm(capsys, "train", "--config", "plane-outlier", "--dry_run")
    assert code == 2
    assert "plane-outliers" in err


def test_a_file_that_may_mean_either_reading_is_refused(capsys, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("data: plane:n=100\nobjective:\n  weight: published:lam=0.2\n")
    words = ["train", "--config", str(recipe), "--dry_run", "--json"]
    code, _, err = atdm(capsys, *words)
    assert code == 2
    assert "version: 2" in err
    assert "over_radius" in err
    for own in (["--objective.version", "2"], ["--objective.weight", "over_radius"], ["--objective.name", "ddpm"]):
        code, out, err = atdm(capsys, *words, *own)
        assert code == 0, err
    recipe.write_text(recipe.read_text() + "  version: 2\n")
    code, out, _ = atdm(capsys, *words)
    assert code == 0
    assert json.loads(out)["config"]["objective"]["weight"] == "published:lam=0.2"


@pytest.mark.parametrize(
    ("radius", "weight"),
    [("published", "over_radius:lam=0.3"), ("floored", "over_variance"), ("published:beta_min=0.05", "published")],
)
def test_readings_by_name(capsys, radius, weight):
    words = ["--data", "plane:n=100", "--objective.radius", radius, "--objective.weight", weight]
    code, out, err = atdm(capsys, "train", *words, "--dry_run", "--json")
    assert code == 0, err
    objective = json.loads(out)["config"]["objective"]
    assert (objective["radius"], objective["weight"], objective["version"]) == (radius, weight, 2)


def test_the_drawing_backend_of_a_notebook_need_not_be_installed(tmp_path):
    command = [sys.executable, "-m", "atdm", "show", "radius", "--omegas", "1", "--out", str(tmp_path / "ray.png")]
    environment = os.environ | {"MPLBACKEND": "module://of_a_notebook.elsewhere"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "ray.png").is_file()
