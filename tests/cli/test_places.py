"""Places that cannot be written: what only reads works there, what writes says so and leaves nothing. Run with ``-m slow``."""

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from helpers import Warm

pytestmark = pytest.mark.slow
# Root may write anywhere: without its capabilities the modes of what it owns bind it, too.
AS_A_USER = """
import ctypes, os
head, none = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
assert ctypes.CDLL(None).capset(head, none) == 0
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("place")
    yield folder
    opened(folder)


@pytest.fixture(scope="module")
def warm(place, tmp_path_factory):
    process = Warm(tmp_path_factory.mktemp("said"), ATDM_CACHE=str(place / "cache"))
    yield process
    process.close()


@pytest.fixture(scope="module")
def things(place, warm):
    """A run, images, and the cache of their pixels."""
    photos = place / "photos"
    photos.mkdir()
    for i in range(20):
        pixels = np.random.default_rng(i).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(photos / f"{i}.png")
    words = [
        "train",
        "--net=mlp:width=8,depth=1",
        "--steps=2",
        "--batch_size=4",
        "--threads=1",
        "--process=linear:steps=25",
    ]
    for data, run in (("plane:n=40", "plane"), (photos, "images")):
        code, err = warm([*words, f"--data={data}", f"--out={place}/{run}"])
        assert code == 0, err
    return place


def closed(folder):
    for each, _, files in os.walk(folder):
        for name in files:
            os.chmod(os.path.join(each, name), 0o444)
        os.chmod(each, 0o555)


def opened(folder):
    for each, _, _ in os.walk(folder):
        os.chmod(each, 0o755)


@pytest.fixture(params=["modes", "disk"])
def shut(request, things, warm):
    """A copy of the things that cannot be written, by its modes or because its disk is read-only; and a place that can."""
    copy = Path(tempfile.mkdtemp(dir=things))
    shut, names = copy / "shut", ("plane", "images", "cache")
    root = os.geteuid() == 0
    shut.mkdir()
    if request.param == "disk":
        mount = ["mount", "-t", "tmpfs", "none", str(shut)]
        if not root or subprocess.run(mount, capture_output=True, check=False).returncode:
            pytest.skip("a disk can be mounted by root alone")
    for name in names:
        shutil.copytree(things / name, shut / name)
    try:
        if request.param == "disk":
            subprocess.run(["mount", "-o", "remount,ro", str(shut)], check=True)
            yield copy, "import os\n"
        else:
            closed(shut)
            yield copy, AS_A_USER if root else "import os\n"
    finally:
        if request.param == "disk":
            subprocess.run(["umount", str(shut)], check=True)
        opened(shut)


def state(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_what_only_reads_works_in_places_that_cannot_be_written(shut, warm):
    copy, who = shut
    run, before = copy / "shut" / "plane", state(copy / "shut")
    for words in (
        ["export", run, f"--out={copy}/exported"],
        ["show", "run", run, f"--out={copy}/curves.png"],
        ["sample", run, "--n=4", "--sampling_steps=2", f"--out={copy}/samples.npz"],
        ["evaluate", run, "--n=4", "--sampling_steps=2", f"--out={copy}/numbers.json"],
    ):
        code, err = warm(words, who)
        assert code == 0, (words, err)
    assert (copy / "exported" / "model_index.json").is_file()
    assert (copy / "curves.png").is_file()
    assert state(copy / "shut") == before


def test_what_writes_says_that_it_cannot(shut, warm):
    copy, who = shut
    run, before = copy / "shut" / "plane", state(copy / "shut")
    for words in (
        ["export", run, f"--out={copy}/shut/exported"],
        ["show", "run", run],
        ["show", "radius", f"--out={copy}/shut/ray.png"],
        ["sample", run, "--n=4", "--sampling_steps=2", f"--out={copy}/shut/samples.npz"],
        ["train", "--data=plane:n=40", "--net=mlp:width=8,depth=1", "--steps=3", f"--out={run}"],
        ["train", "--data=plane:n=40", "--net=mlp:width=8,depth=1", "--steps=3", f"--out={copy}/shut/new"],
    ):
        code, err = warm(words, who)
        assert code == 2, (words, err)
        assert "Traceback" not in err
        told = [line for line in err.splitlines() if line.startswith("atdm: ")]
        assert len(told) == 1, err
        assert "Cannot write" in told[0] or "cannot be written" in told[0] or "read-only" in told[0], told
    assert state(copy / "shut") == before


@pytest.mark.parametrize("objective", ["ddpm", "auto"])
def test_a_complete_cache_is_used_where_it_cannot_be_written(shut, warm, objective):
    """The images themselves are elsewhere: a key of the cache is their place."""
    copy, who = shut
    data = copy.parent / "photos"
    before = state(copy / "shut" / "cache")
    setting = f"{who}os.environ['ATDM_CACHE'] = {str(copy / 'shut' / 'cache')!r}\n"
    words = [
        "train",
        f"--data={data}",
        "--net=mlp:width=8,depth=1",
        "--steps=1",
        "--batch_size=4",
        "--threads=1",
        f"--objective={objective}",
    ]
    code, err = warm([*words, f"--out={copy}/run"], setting)
    assert code == 0, err
    code, err = warm([*words, "--image_size=4", f"--out={copy}/other"], setting)
    assert code == 2
    assert "cannot be written" in err
    assert "--cache false" in err
    assert state(copy / "shut" / "cache") == before
