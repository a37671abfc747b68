"""Kills at any moment and at any file operation, full disks, memory: what must keep holding. Run with ``-m slow``.

After each the same command goes on, and the run is the one that was never stopped, byte for byte.
"""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress

import numpy as np
import pytest
from PIL import Image

PLAIN = [
    "--net=mlp:width=16,depth=1",
    "--batch_size=16",
    "--threads=1",
    "--process=linear:steps=25",
    "--steps=60",
    "--save_every=7",
    "--log_every=3",
    "--objective=robust_adv",
]
CONFIGURATIONS = {
    "vectors": ["--data=plane:n=300"],
    "corrupted": ["--data=plane:n=300", "--corrupt=outliers:share=0.1"],
    "dropout": ["--data=plane:n=300", "--net=mlp:width=16,dropout=0.2"],
    "automatic": ["--data=plane:n=300", "--corrupt=outliers:share=0.1", "--objective.name=auto"],
    "accumulated": ["--data=plane:n=300", "--accumulate=2", "--keep=1"],
    "measured": ["--data=plane:n=300", "--metrics=pixels", "--metrics_samples=8"],
    "images": ["--data={photos}", "--flip=true"],
    "workers": ["--data={photos}", "--workers=2", "--corrupt=gaussian", "--corrupt_fresh=true"],
    "grids": ["--data={photos}", "--sample_every=10"],
    "flow": ["--data=plane:n=300", "--process=flow:steps=50"],
    "edm": ["--data=plane:n=300", "--process=edm:steps=50"],
}
KILLS = 10
OTHERWISE = ("log.jsonl", "config.yaml")  # the clock's part of the log, and where the run is

# Kills the process before the nth of what the system is asked to do to files; counts them where n is 0.
PLACED = """
import atexit, os, signal, sys
seen = 0
CHANGES = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate", "os.chmod", "os.utime", "shutil.rmtree"}
def hook(event, args):
    global seen
    if event == "open":
        if not isinstance(args[2], int) or not args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            return
    elif event not in CHANGES:
        return
    path = os.fsdecode(args[0]) if isinstance(args[0], (str, bytes, os.PathLike)) else ""
    if path.startswith("/") and not path.startswith(PLACE):
        return
    seen += 1
    if seen == NUMBER:
        os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(hook)
if not NUMBER:
    atexit.register(lambda: os.write(2, f"operations {seen}\\n".encode()))
"""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    for i in range(12):
        pixels = np.random.default_rng(i).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:02d}.png")
    return folder


def contents(out):
    """Every file that is the same in every run."""
    found = {}
    for path in sorted(out.rglob("*")):
        name = path.relative_to(out).as_posix()
        if path.is_file() and not name.startswith(("tensorboard/", ".")) and name not in OTHERWISE:
            found[name] = path.read_bytes().replace(str(out).encode(), b"OUT")  # numbers name their model
    return found


def require_same(out, whole, where):
    assert contents(out) == whole, where
    assert not [*out.rglob(".partial-*")], where


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_a_killed_run_is_the_one_that_never_stopped(warm, tmp_path, photos, name):
    words = ["train", *PLAIN, *(option.format(photos=photos) for option in CONFIGURATIONS[name]), "--json"]
    for again in range(2):  # the second knows how long it takes
        begun = time.monotonic()
        code, err = warm([*words, f"--out={tmp_path}/{again}"])
        assert code == 0, err
        seconds = time.monotonic() - begun
    whole = contents(tmp_path / "0")
    assert contents(tmp_path / "1") == whole
    dice = random.Random(name)
    kill = 0
    while kill < KILLS:
        out = tmp_path / f"killed-{kill}"
        [victim] = warm.begin([*words, f"--out={out}"])
        time.sleep(dice.uniform(0.02, 0.95) * seconds)
        with suppress(ProcessLookupError):
            os.kill(victim, signal.SIGKILL)
        if warm.end()[0] == [-signal.SIGKILL]:
            kill += 1
        else:  # the machine is less busy than it was, and the run had ended
            seconds *= 0.8
        code, err = warm([*words, f"--out={out}"])
        assert code == 0, err
        require_same(out, whole, kill)
        shutil.rmtree(out)


SHORT = [
    "--data=plane:n=300",
    "--steps=6",
    "--save_every=2",
    "--sample_every=3",
    "--log_every=1",
    "--metrics=pixels",
    "--metrics_samples=8",
]
PARTS = 8


@pytest.mark.parametrize("part", range(PARTS))
def test_a_kill_before_each_file_operation(warm, tmp_path, part):
    words = ["train", *PLAIN, *SHORT, "--json"]
    whole = tmp_path / "whole"
    placed = PLACED.replace("PLACE", repr(str(tmp_path)))
    code, err = warm([*words, f"--out={whole}"], placed.replace("NUMBER", "0"))
    assert code == 0, err
    count = int(err.rpartition("operations ")[2])
    assert count > 80, "the kills of all parts"
    for number in range(1 + part, count + 1, PARTS):
        out = tmp_path / f"killed-{number}"
        code, err = warm([*words, f"--out={out}"], placed.replace("NUMBER", str(number)))
        assert code == -signal.SIGKILL, (number, err)
        code, err = warm([*words, f"--out={out}"])
        assert code == 0, (number, err)
        require_same(out, contents(whole), number)
        shutil.rmtree(out)


TWO = 25


def test_kills_of_one_of_two_processes(warm, tmp_path):
    """The other ends by itself, with a sentence; both together go on."""
    words = [
        "train",
        *PLAIN,
        "--steps=600",
        "--save_every=50",
        "--data=plane:n=300",
        "--corrupt=outliers:share=0.1",
        "--json",
    ]

    def begin(out):
        """Both, once they have met."""
        ranks = warm.begin([*words, f"--out={out}"], ranks=2)
        deadline = time.monotonic() + 600
        while not (out / "config.yaml").is_file():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        return ranks

    for again in range(2):  # the second knows how long it takes
        begin(tmp_path / f"{again}")
        begun = time.monotonic()
        codes, err = warm.end()
        assert codes == [0, 0], err
        seconds = time.monotonic() - begun
    whole = contents(tmp_path / "0")
    assert contents(tmp_path / "1") == whole
    dice = random.Random("two")
    told = 0
    for kill in range(TWO):
        out = tmp_path / f"killed-{kill}"
        ranks = begin(out)
        time.sleep(dice.uniform(0, 0.9) * seconds)
        lost = dice.randrange(2)
        with suppress(ProcessLookupError):
            os.kill(ranks[lost], signal.SIGKILL)
        codes, err = warm.end()
        assert "Traceback" not in err, err
        assert codes[1 - lost] in (0, 2), (codes, err)  # 0: it had ended
        assert codes[1 - lost] == 0 or "Another process of this run is gone" in err
        if codes[1 - lost] == 2:
            told += 1
        else:  # the machine is less busy than it was, and the run had ended
            seconds *= 0.8
        begin(out)
        codes, err = warm.end()
        assert codes == [0, 0], (kill, err)
        require_same(out, whole, kill)
        shutil.rmtree(out)
    assert told > TWO / 3


@pytest.fixture
def small_disk(tmp_path):
    """A function that mounts a disk of so many kilobytes."""
    mounted = []

    def mount(kilobytes):
        place = tmp_path / f"disk-{kilobytes}"
        place.mkdir()
        options = ["-t", "tmpfs", "-o", f"size={kilobytes}k", "none", str(place)]
        if subprocess.run(["mount", *options], capture_output=True, check=False).returncode:
            pytest.skip("a disk can be mounted by root alone")
        mounted.append(place)
        return place

    yield mount
    for place in mounted:
        subprocess.run(["umount", str(place)], check=True)


def test_full_disks_lose_nothing(warm, tmp_path, small_disk):
    """Wherever the room ends, the command says so, and goes on from what was saved once there is more."""
    words = ["train", *PLAIN, "--data=plane:n=300", "--json"]
    code, err = warm([*words, f"--out={tmp_path}/whole"])
    assert code == 0, err
    whole = contents(tmp_path / "whole")
    codes = []
    for kilobytes in (4, 12, 24, 40, 60, 80, 100, 140, 180, 240):
        out = small_disk(kilobytes) / "run"
        code, err = warm([*words, f"--out={out}"])
        codes.append(code)
        if code == 0:
            continue
        assert code == 2, err
        assert "The disk is full" in err, err
        assert "Traceback" not in err
        shutil.copytree(out, tmp_path / "more", ignore_dangling_symlinks=True) if out.exists() else None
        code, err = warm([*words, f"--out={tmp_path}/more"])
        assert code == 0, (kilobytes, err)
        require_same(tmp_path / "more", whole, kilobytes)
        shutil.rmtree(tmp_path / "more")
    assert codes.count(2) > 3


@pytest.mark.parametrize("what", ["steps", "evaluations"])
def test_memory_is_flat(tmp_path, what):
    """The process does not grow over two thousand steps, or three hundred evaluations, once the first are made."""
    code = """
import dataclasses, sys
import psutil
import torch
from atdm.diffusion.model import Model
from atdm.metrics import measure
from atdm.training.config import TrainConfig
from atdm.training.run import train

size = psutil.Process().memory_info
config = TrainConfig(data="plane:n=300", net="mlp:width=16,depth=1", batch_size=16, steps=2000, save_every=200, threads=1,
    process="linear:steps=25", out=sys.argv[1])
if sys.argv[2] == "evaluations":
    config = dataclasses.replace(config, steps=2)
sizes = [size().rss for _ in train(config)]
if sys.argv[2] == "evaluations":
    model, reference = Model.from_pretrained(sys.argv[1]), torch.randn(64, 3)
    sizes = [(measure(model.sample(64, steps=5, seed=i), reference, None, []), size().rss)[1] for i in range(300)]
print((max(sizes) - sizes[len(sizes) // 20]) / 1e6)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "run"), what],
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 30, "megabytes"
