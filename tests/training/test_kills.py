"""Random SIGKILLs: after each the same command goes on, and the run is the one that was never stopped. Run with ``-m slow``."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

PLAIN = [
    "--net=mlp:width=16,depth=1",
    "--batch_size=16",
    "--threads=1",
    "--steps=60",
    "--save_every=7",
    "--log_every=3",
]
CONFIGURATIONS = {
    "vectors": ["--data=plane:n=300"],
    "corrupted": ["--data=plane:n=300", "--corrupt=outliers:share=0.1"],
    "dropout": ["--data=plane:n=300", "--net=mlp:width=16,dropout=0.2"],
    "automatic": ["--data=plane:n=300", "--corrupt=outliers:share=0.1", "--objective.name=auto"],
    "images": ["--data={photos}", "--flip=true"],
    "workers": ["--data={photos}", "--workers=2", "--corrupt=gaussian", "--corrupt_fresh=true"],
    "grids": ["--data={photos}", "--sample_every=10", "--process=linear:steps=25"],
    "flow": ["--data=plane:n=300", "--process=flow:steps=50"],
}
KILLS = 10


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    for i in range(12):
        pixels = np.random.default_rng(i).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:02d}.png")
    return folder


def contents(out):
    """Every file that is the same in every run: all but the clock's part of the log, events and the lock."""
    found = {}
    for path in sorted(out.rglob("*")):
        name = path.relative_to(out).as_posix()
        if path.is_file() and not name.startswith(("tensorboard/", ".")) and name not in ("log.jsonl", "config.yaml"):
            found[name] = path.read_bytes()
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_a_killed_run_is_the_one_that_never_stopped(tmp_path, photos, name):
    options = [*PLAIN, *(option.format(photos=photos) for option in CONFIGURATIONS[name])]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "ATDM_CACHE": str(tmp_path / "cache")}

    def begin(out):
        words = [sys.executable, "-m", "atdm", "train", *options, f"--out={out}", "--json"]
        return subprocess.Popen(words, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)

    whole = begin(tmp_path / "whole")
    started = time.monotonic()
    assert whole.wait(600) == 0, whole.stderr.read()
    seconds = time.monotonic() - started
    dice = random.Random(name)
    for kill in range(KILLS):
        out = tmp_path / f"killed-{kill}"
        victim = begin(out)
        time.sleep(dice.uniform(0.3, 1) * seconds)
        victim.send_signal(signal.SIGKILL)
        victim.wait()
        again = begin(out)
        assert again.wait(600) == 0, again.stderr.read()
        assert contents(out) == contents(tmp_path / "whole"), kill
        assert not [*out.rglob(".partial-*")]
        shutil.rmtree(out)


@pytest.mark.slow
def test_memory_is_flat(tmp_path):
    """The process does not grow over two thousand steps once the first hundred are made."""
    code = """
import sys
import psutil
from atdm.training.config import TrainConfig
from atdm.training.run import train

config = TrainConfig(data="plane:n=300", net="mlp:width=16,depth=1", batch_size=16, steps=2000, save_every=200, threads=1, out=sys.argv[1])
sizes = [psutil.Process().memory_info().rss for _ in train(config)]
print((max(sizes) - sizes[100]) / 1e6)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "run")], capture_output=True, text=True, timeout=900, check=False
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 30, "megabytes"
