"""Damaged run folders: what is read again, what an older checkpoint makes good, and what is one sentence."""

import json
import os
import shutil
import signal
import time

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file

from atdm.data.items import Mapped
from atdm.errors import UserError
from atdm.files import Sums
from atdm.training import checkpoint, run
from atdm.training.config import ObjectiveConfig, TrainConfig
from atdm.training.fingerprint import Fingerprint
from helpers import atdm

OPTIONS = {"data": "plane:n=300", "corrupt": "outliers:share=0.1", "net": "mlp:width=16,depth=1", "batch_size": 16}
OPTIONS |= {"save_every": 4, "log_every": 2, "metrics_samples": 20, "process": "linear:steps=25"}
WORDS = [*(f"--{key}={value}" for key, value in OPTIONS.items()), "--objective=robust_adv"]
OPTIONS |= {"objective": ObjectiveConfig("robust_adv")}


def train(out, steps, **changes):
    for _ in run.train(TrainConfig(**{**OPTIONS, **changes}, out=str(out), steps=steps)):
        pass
    return out


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run of eight steps with numbers; its checkpoints are of the steps 4 and 8."""
    return train(tmp_path_factory.mktemp("runs") / "whole", 8, metrics="pixels")


@pytest.fixture
def copy(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "run")


def weights(out):
    return load_file(checkpoint.latest(out) / "state.safetensors")


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def flip(file, place):
    content = bytearray(file.read_bytes())
    content[int(place * (len(content) - 1))] ^= 16
    file.write_bytes(content)


def cut(file, place):
    file.write_bytes(file.read_bytes()[: int(place * file.stat().st_size)])


def step_of(value):
    def change(file, _):
        file.write_text(json.dumps({"step": value, "torch": torch.__version__}))

    return change


DAMAGE = {
    "a flipped bit of a weight": ("state.safetensors", flip, 0.7),
    "a flipped bit of the optimizer": ("state.safetensors", flip, 0.999),
    "a flipped bit of the header": ("state.safetensors", flip, 0.05),
    "cut in the middle": ("state.safetensors", cut, 0.5),
    "empty": ("state.safetensors", cut, 0),
    "gone": ("state.safetensors", lambda file, _: file.unlink(), 0),
    "state.json empty": ("state.json", cut, 0),
    "state.json half": ("state.json", cut, 0.5),
    "state.json no UTF-8": ("state.json", lambda file, _: file.write_bytes(b"\xff\xfe{"), 0),
    "state.json gone": ("state.json", lambda file, _: file.unlink(), 0),
    "step negative": ("state.json", step_of(-5), 0),
    "step huge": ("state.json", step_of(10**30), 0),
    "step of another": ("state.json", step_of(7), 0),
    "step text": ("state.json", step_of("8"), 0),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_newest_checkpoint_is_set_aside_and_the_older_one_used(whole, copy, capsys, damage):
    name, change, place = DAMAGE[damage]
    change(copy / "checkpoints" / "step-00000008" / name, place)
    code, out, err = atdm(capsys, "train", *WORDS, "--metrics=pixels", "--steps=8", f"--out={copy}", "--json")
    assert code == 0, err
    assert "step-00000008 is damaged" in err or "step-00000008/state.safetensors is damaged" in err
    assert "Training goes on from the older checkpoint of step 4." in " ".join(err.split())
    assert json.loads(out)["step"] == 8
    assert same(weights(copy), weights(whole))
    names = {path.name for path in (copy / "checkpoints").iterdir()}
    assert names == {"step-00000004", "step-00000008", "damaged-00000008"}


def test_a_damaged_newest_checkpoint_is_never_all_that_is_kept(whole, copy):
    flip(copy / "checkpoints" / "step-00000008" / "state.safetensors", 0.7)
    steps = iter(range(9))
    config = TrainConfig(**{**OPTIONS, "save_every": 1, "keep": 1}, out=str(copy), steps=8)
    list(run.train(config, stop=lambda: next(steps) >= 1))  # saved at step 6, below the damaged 8
    assert checkpoint.latest(copy).name == "step-00000006"
    assert same(weights(train(copy, 8)), weights(whole))


def test_a_checkpoint_that_a_kill_kept_from_being_dropped_is_dropped_on_resume(copy):
    """The kill came after the last checkpoint was written and before the oldest one was removed."""
    shutil.copytree(copy / "checkpoints" / "step-00000004", copy / "checkpoints" / "step-00000002")
    train(copy, 8)
    assert {path.name for path in (copy / "checkpoints").iterdir()} == {"step-00000004", "step-00000008"}


def test_without_any_good_checkpoint_it_is_a_sentence(copy, capsys):
    for step in ("step-00000004", "step-00000008"):
        flip(copy / "checkpoints" / step / "state.safetensors", 0.7)
    code, _, err = atdm(capsys, "train", *WORDS, "--steps=8", f"--out={copy}", "--json")
    assert (code, err.count("\n")) == (2, 1)
    assert "No older checkpoint" in err
    assert len([*(copy / "checkpoints").glob("step-*")]) == 2, "nothing is touched"


def test_raw_weights_are_checked_before_they_are_measured(copy, capsys):
    file = copy / "checkpoints" / "step-00000008" / "state.safetensors"
    begin = 8 + int.from_bytes(file.read_bytes()[:8], "little")  # of the tensors: ema, model, moments of the optimizer
    flip(file, (begin + 0.4 * (file.stat().st_size - begin)) / file.stat().st_size)
    for words in (["export", copy, "--weights=raw", f"--out={copy}/out"], ["evaluate", copy, "--weights=raw", "--n=4"]):
        code, _, err = atdm(capsys, *map(str, words))
        assert (code, err.count("\n")) == (2, 1)
        assert "is damaged" in err


def test_a_run_of_an_earlier_version_goes_on(whole, tmp_path, capsys):
    """Without checksums, lock and whatever else came later."""
    old = train(tmp_path / "old", 4)
    file = old / "checkpoints" / "step-00000004" / "state.safetensors"
    save_file(load_file(file), file)
    for later in (".lock", "data.npz"):
        (old / later).unlink(missing_ok=True)
    stored = yaml.safe_load((old / "config.yaml").read_text())
    for option in ("metrics", "metrics_samples", "workers", "vae"):
        del stored[option]
    (old / "config.yaml").write_text(yaml.safe_dump(stored))
    code, _, err = atdm(capsys, "train", *WORDS, "--steps=8", f"--out={old}", "--json")
    assert code == 0, err
    assert same(weights(old), weights(whole))
    for words in (["export", f"--out={old}/out"], ["sample", "--n=4", "--sampling_steps=4", f"--out={old}/a.npz"]):
        code, _, err = atdm(capsys, words[0], str(old), *words[1:])
        assert code == 0, err


def half(text):
    """The first half, cut within a word: a YAML file cut at the end of a line may be whole."""
    end = len(text) // 2
    while text[end - 1 : end + 1].isspace() or not text[end - 2 : end + 1].isalpha():
        end -= 1
    return text[:end]


def objects(text):
    """The mappings in a JSON or YAML file, or in a file with one on each line; of another file none."""
    try:
        return [json.loads(line) for line in text.splitlines()]
    except ValueError:
        return [yaml.safe_load(text)] if "\0" not in text else []


TEXTS = {
    "empty": lambda text: b"",
    "half": lambda text: half(text).encode(),
    "no UTF-8": lambda text: half(text).encode() + b"\xff\xfe" + text.encode(),
    "UTF-16": lambda text: text.encode("utf-16"),
    "zeros": lambda text: bytes(len(text)),
    "binary": lambda text: bytes(range(256)) * 4,
    "list": lambda text: b"[1, 2]\n",
    "number": lambda text: b"3\n",
    "text": lambda text: b'"text"\n',
    "null": lambda text: b"null\n",
    "no keys": lambda text: b"{}\n",
    "keys of another": lambda text: b'{"a": 1}\n',
    "types": lambda text: b"".join(json.dumps({key: [1] for key in each}).encode() + b"\n" for each in objects(text)),
}
READERS = {
    "config.yaml": ["train", "export", "evaluate"],
    "log.jsonl": ["train", "show"],
    "objective.json": ["export"],
    "metrics.json": ["export", "compare"],
    "model/model_index.json": ["sample", "export"],
    "model/scheduler/scheduler_config.json": ["sample", "export"],
    "model/unet/config.json": ["sample", "export"],
    "truth.npz": ["export"],
}
FINE = {
    ("log.jsonl", "empty"),
    ("log.jsonl", "half"),
    ("log.jsonl", "zeros"),
    ("log.jsonl", "binary"),
}  # read as what was logged so far


@pytest.mark.parametrize("damage", TEXTS)
@pytest.mark.parametrize("file", READERS)
def test_every_reader_of_damaged_text_ends_in_one_sentence(copy, capsys, monkeypatch, file, damage):
    monkeypatch.setattr("torch.get_num_threads", lambda: 1)
    path = copy / file
    whole = path.read_bytes()
    text = whole.decode("utf-8", "replace")
    path.write_bytes(TEXTS[damage](text))
    commands = commands_on(copy)
    for command in READERS[file]:
        before = path.read_bytes()  # a resumed training may have written it anew
        code, _, err = atdm(capsys, command, *commands[command])
        assert "Traceback" not in err, (command, err)
        assert code == 2 or (code == 0 and (file, damage) in FINE), (command, code, err)
        if code == 2:
            told = [line for line in err.splitlines() if line.startswith("atdm: ")]
            assert len(told) == 1, (command, err)
            assert len(told[0]) < 1200, told
        assert path.read_bytes() == before or code == 0, "a damaged file is left for its owner to look at"
        assert not (copy / "out").exists()


def commands_on(copy):
    return {
        "train": [*WORDS, "--steps=8", f"--out={copy}", "--json"],
        "export": [str(copy), f"--out={copy}/out"],
        "evaluate": [str(copy), "--n=4", "--sampling_steps=4"],
        "show": ["run", str(copy), f"--out={copy}/a.png"],
        "compare": [str(copy), str(copy / "metrics.json")],
        "sample": [str(copy), "--n=4", "--sampling_steps=4", f"--out={copy}/a.npz"],
    }


@pytest.mark.parametrize("command", sorted({command for named in READERS.values() for command in named}))
def test_a_whole_run_is_read(copy, capsys, monkeypatch, command):
    """Without which the table of damages would show nothing."""
    monkeypatch.setattr("torch.get_num_threads", lambda: 1)
    code, _, err = atdm(capsys, command, *commands_on(copy)[command])
    assert code == 0, err


def test_a_log_that_ends_in_half_a_line_goes_on(whole, copy, capsys):
    log = copy / "log.jsonl"
    shutil.rmtree(copy / "checkpoints" / "step-00000008")
    log.write_bytes(log.read_bytes()[:-30])
    train(copy, 8)

    def lines(out):
        read = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
        return [{k: v for k, v in line.items() if k != "samples_per_second"} for line in read]

    assert lines(copy) == lines(whole)
    log.write_bytes(log.read_bytes()[:-30])
    code, _, err = atdm(capsys, "show", "run", str(copy), "--out", str(copy / "a.png"))
    assert code == 0, err


def command(out, *more):
    return ["train", *WORDS, f"--out={out}", "--threads=1", *more]


def test_of_two_writers_of_a_run_one_is_refused_and_nothing_is_lost(whole, tmp_path, capsys, warm):
    out = tmp_path / "run"
    [first] = warm.begin(command(out, "--steps=100000"))
    while not checkpoint.latest(out):
        os.kill(first, 0)
        time.sleep(0.01)
    code, _, err = atdm(capsys, *command(out, "--steps=100000"))
    os.kill(first, signal.SIGKILL)
    warm.end()
    assert code == 2
    assert f"The run folder {out} is being written by process {first} on " in " ".join(err.split())
    assert "Traceback" not in err
    begun = int(checkpoint.latest(out).name[5:])
    steps = iter(range(100))
    options = {**OPTIONS, "out": str(out), "steps": 100000}
    assert next(run.train(TrainConfig(**options), stop=lambda: next(steps) >= 0)).index == begun + 1


def test_of_two_that_begin_together_one_ends_the_run(whole, tmp_path, warm):
    warm.begin(command(tmp_path / "run", "--steps=8", "--metrics=pixels"), copies=2)
    codes, err = warm.end()
    assert sorted(codes) in ([0, 0], [0, 2]), err  # both: one began when the other had ended, and found it done
    assert err.count("is being written by process") == codes.count(2)
    assert "Traceback" not in err
    assert same(weights(tmp_path / "run"), weights(whole))


def test_a_grid_that_a_kill_took_is_drawn_on_resume(tmp_path, monkeypatch):
    options = {"data": "digits", "corrupt": "none", "sample_every": 2, "save_every": 2}
    options |= {"objective": ObjectiveConfig("ddpm")}
    whole = train(tmp_path / "whole", 4, **options)
    lost = train(tmp_path / "lost", 4, **options)
    shutil.rmtree(lost / "checkpoints" / "step-00000004")
    for grid in (lost / "samples").iterdir():
        grid.unlink()
    train(lost, 4, **options)
    for step in (2, 4):
        name = f"samples/step-{step:08d}.png"
        assert (lost / name).read_bytes() == (whole / name).read_bytes()


def test_a_wish_to_stop_during_a_grid_saves_the_step_and_the_grid_is_drawn_later(tmp_path):
    options = {"data": "digits", "corrupt": "none", "sample_every": 3, "save_every": 100}
    options |= {"objective": ObjectiveConfig("ddpm")}
    whole = train(tmp_path / "whole", 6, **options)
    asked = iter(range(1000))
    config = TrainConfig(**{**OPTIONS, **options}, out=str(tmp_path / "cut"), steps=6)
    steps = [step.index for step in run.train(config, stop=lambda: next(asked) >= 8)]  # five evaluations into the grid
    assert steps == [1, 2, 3]
    assert checkpoint.latest(tmp_path / "cut").name == "step-00000003"
    assert not (tmp_path / "cut" / "samples").exists()
    train(tmp_path / "cut", 6, **options)
    assert same(weights(tmp_path / "cut"), weights(whole))
    name = "samples/step-00000003.png"
    assert (tmp_path / "cut" / name).read_bytes() == (whole / name).read_bytes()


def pictures(folder, count, begin=0):
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(begin, begin + count):
        pixels = np.random.default_rng(i).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:02d}.png")
    return folder


CHANGES = {
    "an image more": (
        lambda folder: pictures(folder, 1, 9),
        "of 6 items 0 are gone and 1 are new, the first at place 6",
    ),
    "an image less": (
        lambda folder: (folder / "02.png").unlink(),
        "of 6 items 1 are gone and 0 are new, the first at place 2",
    ),
    "another image": (
        lambda folder: pictures(folder, 1, 9).joinpath("09.png").rename(folder / "01.png"),
        "1 are gone and 1 are new",
    ),
    "another name": (lambda folder: (folder / "00.png").rename(folder / "99.png"), "the same items in another order"),
    "another npz": (None, "of 8 items 1 are gone and 1 are new, the first at place 3"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_data_that_changed_since_the_run_began(tmp_path, capsys, change):
    make, sentence = CHANGES[change]
    words = [
        "train",
        "--net=mlp:width=16,depth=1",
        "--batch_size=4",
        "--objective.name=ddpm",
        "--save_every=2",
        f"--out={tmp_path}/run",
    ]
    data = tmp_path / "data.npz"
    if make:
        words.append(f"--data={pictures(tmp_path / 'photos', 6)}")
    else:
        words.append(f"--data={data}")
        x = np.linspace(-1, 1, 24, dtype=np.float32).reshape(8, 3)
        np.savez(data, samples=x)
    assert atdm(capsys, *words, "--steps=2")[0] == 0
    assert atdm(capsys, *words, "--steps=4")[0] == 0, "the same data"
    if make:
        make(tmp_path / "photos")
    else:
        x[3] *= 0.5
        np.savez(data, samples=x)
    before = sorted(
        (p, p.stat().st_mtime_ns) for p in (tmp_path / "run").rglob("*") if p.is_file() and p.name != ".lock"
    )
    code, _, err = atdm(capsys, *words, "--steps=6")
    assert code == 2
    assert sentence in err
    assert "--changed_data true" in err
    after = sorted(
        (p, p.stat().st_mtime_ns) for p in (tmp_path / "run").rglob("*") if p.is_file() and p.name != ".lock"
    )
    assert after == before
    code, _, err = atdm(capsys, *words, "--steps=6", "--changed_data", "true")
    assert code == 0, err
    assert sentence in err
    assert atdm(capsys, *words, "--steps=8")[0] == 0, "once told, the new data are the data of the run"
    (tmp_path / "run" / "data.npz").write_bytes(b"PK damaged")
    code, _, err = atdm(capsys, *words, "--steps=10")
    assert code == 2
    assert "without that file" in err
    (tmp_path / "run" / "data.npz").unlink()
    assert atdm(capsys, *words, "--steps=10")[0] == 0, "a run of an earlier version keeps none"


def test_a_class_that_has_another_name_since_the_run_began(tmp_path, capsys):
    for name in "ab":
        pictures(tmp_path / "photos" / name, 3)
    words = ["train", f"--data={tmp_path}/photos", "--class_labels=true", "--net=tiny:channels=8,multipliers=1"]
    words += ["--batch_size=4", "--objective.name=ddpm", f"--out={tmp_path}/run"]
    assert atdm(capsys, *words, "--steps=2")[0] == 0
    assert atdm(capsys, *words, "--steps=3")[0] == 0, "the same data"
    (tmp_path / "photos" / "b").rename(tmp_path / "photos" / "c")
    code, _, err = atdm(capsys, *words, "--steps=4")
    assert (code, "their class b is called c." in err) == (2, True), err
    assert atdm(capsys, *words, "--steps=4", "--changed_data=true")[0] == 0
    assert Fingerprint.load(tmp_path / "run").classes == ("a", "c")


def test_latents_are_checked(tmp_path):
    path = tmp_path / "latents.npy"
    x = np.arange(24, dtype="<f4").reshape(4, 6)
    np.save(path, x)
    assert len(Mapped(path)) == 4, "of an earlier version"
    Sums.of(x).save(path)
    Mapped(path).require_whole()
    flip(path, 0.9)
    with pytest.raises(UserError, match="is damaged: item 3"):
        Mapped(path).require_whole()
    for content in (b"", path.read_bytes()[:-4], b"text"):
        path.write_bytes(content)
        with pytest.raises(UserError, match="is damaged"):
            Mapped(path)
