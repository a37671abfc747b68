"""What ends a command from outside: signals in every phase, lost parents and readers, and what is then said."""

import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from PIL import Image

from atdm import cli
from atdm.cli import faults, launch
from atdm.training import checkpoint
from helpers import atdm

TRAIN = [
    "train",
    "--data=plane:n=300",
    "--net=mlp:width=16,depth=1",
    "--batch_size=16",
    "--threads=1",
    "--objective=robust_adv",
]
PATIENCE = 200  # seconds on a busy machine; the phases themselves take hours


def begin(*words, code="from atdm.cli import main; main()", **options):
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        **options,
    )


def end(process, name):
    process.send_signal(getattr(signal, name))
    out, err = process.communicate(timeout=PATIENCE)
    assert "Traceback" not in err, err
    assert process.returncode == 130, (process.returncode, err)
    return out, " ".join(err.split())


def until(process, condition):
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def until_alive(pid, condition):
    deadline = time.monotonic() + PATIENCE
    while not condition():
        os.kill(pid, 0)
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1"])
def test_every_signal_saves_the_step(tmp_path, warm, name):
    [pid] = warm.begin([*TRAIN, "--steps=1000000", "--log_every=1", "--save_every=1000000", f"--out={tmp_path}/run"])
    log = tmp_path / "run" / "log.jsonl"
    until_alive(pid, lambda: log.is_file() and len(log.read_text().splitlines()) > 3)
    os.kill(pid, getattr(signal, name))
    codes, err = warm.end()
    assert codes == [130], err
    assert "Traceback" not in err
    out = warm.out.read_text()
    step = int(checkpoint.latest(tmp_path / "run").name[5:])
    assert f"Stopped after step {step} and saved; the same command goes on from there." in out
    assert json.loads(log.read_text().splitlines()[-1])["step"] == step
    assert not [*(tmp_path / "run").rglob(".partial-*")]


def test_what_nohup_ignores_stays_ignored(tmp_path):
    process = begin(
        *TRAIN,
        "--steps=1000000",
        "--log_every=1",
        f"--out={tmp_path}/run",
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN),
    )
    log = tmp_path / "run" / "log.jsonl"
    until(process, log.is_file)
    process.send_signal(signal.SIGHUP)
    before = log.stat().st_size
    until(process, lambda: log.stat().st_size > before)
    end(process, "SIGTERM")


# A phase that takes forever from a mark on, by the function that it calls again and again.
PHASES = {
    "decoding": ("atdm.data.decode", "decode", ["train", "--data={photos}", "--out={out}/run"], "No step was made"),
    "sampling": ("atdm.nets.mlp", "MLP.forward", ["sample", "{run}", "--out={out}/a.npz"], "stopped by"),
    "exporting": (
        "atdm.diffusion.model",
        "Model.write",
        [*TRAIN, "--steps=2", "--out={out}/run"],
        "All steps are",
    ),
    "measuring": (
        "atdm.metrics",
        "measure",
        ["evaluate", "{run}", "--n=8", "--sampling_steps=2", "--out={out}/a.json"],
        "stopped by",
    ),
    "measuring a run": (
        "atdm.metrics",
        "measure",
        [*TRAIN, "--steps=2", "--metrics=pixels", "--metrics_samples=8", "--out={out}/run"],
        "All steps are made and saved",
    ),
    "sharing": ("atdm.training.share", "_facts", ["export", "{run}", "--out={out}/model"], "stopped by"),
    "corrupting": (
        "atdm.data.source",
        "Source.save",
        ["corrupt", "--data=digits", "--corrupt=gaussian:share=0.5,std=0.2", "--out={out}/dirty"],
        "stopped by",
    ),
    "attacking": (
        "atdm.nets.mlp",
        "MLP.forward",
        ["attack", "{run}", "--n=2", "--sampling_steps=2", "--seeds=1", "--out={out}/attack"],
        "stopped by",
    ),
    "looking": ("atdm.audit.look", "_whole", ["audit", "plane:n=40", "--out={out}/audit"], "stopped by"),
    "timing": ("atdm.nets.mlp", "MLP.forward", ["bench", "--net=mlp:width=8"], "stopped by"),
}
SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1")  # the last is what SLURM sends with --signal=USR1
SLOW = """
import importlib, time
place = importlib.import_module(MODULE)
*path, last = NAME.split(".")
for part in path:
    place = getattr(place, part)
original = getattr(place, last)
def slow(*arguments, **options):
    open(MARK, "w").close()
    time.sleep(SECONDS)
    return original(*arguments, **options)
setattr(place, last, slow)
"""


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    for i in range(3):
        Image.fromarray(np.full((8, 8, 3), 40 * i, np.uint8)).save(folder / f"{i}.png")
    return folder


def ends(out, folder, photos, warm, phase, name):
    """A signal in the middle of a phase: the command ends, saved, with its sentence, and leaves nothing half-written."""
    module, function, given, sentence = PHASES[phase]
    mark = out.with_name(f"{out.name}-mark")
    # An image that is being decoded is waited for, so decoding is made to sleep where its result is waited for.
    slow = SLOW.replace("SECONDS", "1" if phase == "decoding" else "3600")
    slow = slow.replace("MODULE", repr(module)).replace("NAME", repr(function)).replace("MARK", repr(str(mark)))
    words = [word.format(photos=photos, out=out, run=folder) for word in given]
    [pid] = warm.begin(words, slow)
    until_alive(pid, mark.exists)
    began = time.monotonic()
    os.kill(pid, getattr(signal, name))
    codes, err = warm.end()
    assert time.monotonic() - began < 60
    assert codes == [130], err
    assert "Traceback" not in err
    assert sentence in " ".join(err.split())
    assert not [*out.rglob(".partial-*")]
    assert not out.exists() or {path.name for path in out.iterdir()} <= {"run"}
    if phase in ("exporting", "measuring a run"):
        assert checkpoint.latest(out / "run").name == "step-00000002"
        code, err = warm(words)
        assert code == 0, err
        assert (out / "run" / "model" / "model_index.json").is_file()


@pytest.mark.parametrize(("place", "phase"), enumerate(PHASES))
def test_every_phase_ends_within_seconds(tmp_path, folder, photos, warm, place, phase):
    ends(tmp_path / "out", folder, photos, warm, phase, SIGNALS[place % len(SIGNALS)])


@pytest.mark.slow
@pytest.mark.parametrize("name", SIGNALS)
@pytest.mark.parametrize("phase", PHASES)
def test_every_signal_ends_every_phase(tmp_path, folder, photos, warm, phase, name):
    ends(tmp_path / "out", folder, photos, warm, phase, name)


@pytest.mark.parametrize("lost", [0, 1])
def test_of_two_processes_without_a_launcher_the_other_ends_by_itself(tmp_path, warm, lost):
    """As on two machines, where nobody else tells it."""
    ranks = warm.begin([*TRAIN, "--steps=1000000", "--save_every=3", f"--out={tmp_path}/run"], ranks=2)
    until_alive(ranks[lost], lambda: checkpoint.latest(tmp_path / "run"))
    os.kill(ranks[lost], signal.SIGKILL)
    began = time.monotonic()
    codes, err = warm.end()
    assert time.monotonic() - began < 60
    assert codes[lost] == -signal.SIGKILL
    assert codes[1 - lost] == 2, err
    assert "Another process of this run is gone" in err
    assert "Traceback" not in err
    assert "gloo" not in err


START = "import sys; from atdm.cli import launch; sys.exit(launch.start(sys.argv[1:], 2))"


@pytest.mark.parametrize("name", ["SIGTERM", "SIGKILL"])
def test_two_processes_end_with_their_launcher_and_save(tmp_path, warm, name):
    """A launcher that is killed cannot tell them."""
    process = begin(*TRAIN, "--steps=1000000", "--save_every=3", f"--out={tmp_path}/run", code=START)
    until(process, lambda: checkpoint.latest(tmp_path / "run"))
    import psutil

    ranks = psutil.Process(process.pid).children()
    process.send_signal(getattr(signal, name))
    process.wait(PATIENCE)
    _, alive = psutil.wait_procs(ranks, PATIENCE)
    assert not alive
    assert process.returncode == (130 if name == "SIGTERM" else -9)
    last = int(checkpoint.latest(tmp_path / "run").name[5:])
    log = (tmp_path / "run" / "log.jsonl").read_text().splitlines()
    assert last >= 3
    assert all(json.loads(line)["step"] <= last for line in log)
    warm.succeeds([*TRAIN, f"--steps={last + 1}", f"--out={tmp_path}/run"])


def test_of_two_processes_one_that_is_lost_is_a_sentence(tmp_path):
    process = begin(*TRAIN, "--steps=1000000", "--save_every=3", f"--out={tmp_path}/run", code=START)
    until(process, lambda: checkpoint.latest(tmp_path / "run"))
    import psutil

    ranks = psutil.Process(process.pid).children()
    ranks[1].kill()
    _, err = process.communicate(timeout=2 * PATIENCE)
    assert process.returncode != 0
    assert "Traceback" not in err, err
    assert "Another process of this run is gone" in err or process.returncode in (-9, 130)


@pytest.mark.parametrize(
    ("problem", "sentence"),
    [
        (MemoryError("Unable to allocate 7.28 TiB for an array with shape (1000000000000,)"), "7.28 TiB more"),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4000000000000 bytes."),
            "4,000.0 GB",
        ),
        (RuntimeError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has"), "20.00 GiB more"),
        (MemoryError(), "There is not enough memory. Expected"),
        (RuntimeError("DataLoader worker (pid 12) is killed by signal: Killed."), "fewer --workers"),
        (cli.faults.BrokenExecutor("A process in the process pool was terminated"), "was killed"),
        (OSError(24, "Too many open files", "/a/b"), r"ulimit -n\) \(/a/b\)"),
        (OSError(30, "Read-only file system", "/a"), r"read-only \(/a\)"),
        (OSError(13, "Permission denied", "/a"), r"Permission denied \(/a\)"),
        (OSError(28, "No space left on device"), "The disk is full"),
        (OSError("cannot read"), "cannot read"),
        (
            RuntimeError("[../gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:1"),
            "Another process",
        ),
        (RuntimeError("received 0 items of ancdata: Too many open files"), "Too many files"),
    ],
)
def test_what_the_machine_refuses_is_a_sentence(monkeypatch, capsys, problem, sentence):
    monkeypatch.setattr(cli, "_overview", lambda: (_ for _ in ()).throw(problem))
    code, _, err = atdm(capsys, "--help")
    assert code == 2
    assert err.startswith("atdm: ")
    assert err.count("\n") == 1
    import re

    assert re.search(sentence, err)


def test_a_disk_that_is_full_is_no_traceback_of_the_thread_that_writes_to_it(monkeypatch):
    """Of TensorBoard's: what it raises is said where it is called. Other threads keep their tracebacks."""

    class Writer(threading.Thread):
        def run(self):
            raise OSError(errno.ENOSPC, "No space left on device")

    for module, lines in (("tensorboard.summary.writer.event_file_writer", 0), ("elsewhere", 1)):
        Writer.__module__ = module
        heard = []
        monkeypatch.setattr(threading, "excepthook", heard.append)
        with faults.quiet_writers():
            writer = Writer()
            writer.start()
            writer.join()
        assert len(heard) == lines
        assert threading.excepthook == heard.append


@pytest.mark.parametrize(
    "problem", [KeyError("x"), RuntimeError("mat1 and mat2 shapes cannot be multiplied"), TypeError()]
)
def test_a_mistake_of_the_program_keeps_its_traceback(monkeypatch, problem):
    assert faults.explain(problem) is None


@pytest.mark.parametrize("words", ["--help", "show radius --json --out a.png"])
def test_a_reader_that_is_gone(tmp_path, words):
    """``atdm ... | head`` when head has read enough."""
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "atdm", *words.split()],
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    os.close(writer)
    assert done.returncode == 0
    assert done.stderr == "atdm: nobody reads the output any more; it is cut short.\n"


def test_a_terminal_without_room(tmp_path):
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "atdm", "--help"], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert (done.returncode, done.stderr) == (2, "atdm: The disk is full. What was saved before is still there.\n")


def test_the_launcher_knows_the_signals():
    assert {signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1} == {*launch.SIGNALS}
