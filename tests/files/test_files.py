"""Files: what a crash, a quota, another process or a flipped bit may do, and what is said of it."""

import json
import os
import resource
import signal
import stat
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from atdm.errors import UserError
from atdm.files import (
    TEMPORARY,
    Damaged,
    Hold,
    Sums,
    atomic,
    load_tensors,
    locks,
    read_json,
    read_lines,
    read_yaml,
    require_sealed,
    require_writable,
    save_tensors,
    seal,
)

TENSORS = {"a.w": torch.arange(6.0).reshape(2, 3), "a.b": torch.tensor(3), "b.w": torch.ones(4, dtype=torch.bfloat16)}


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_what_is_written_has_the_permissions_of_the_umask(tmp_path, mask):
    before = os.umask(mask)
    try:
        with atomic(tmp_path / "weights.safetensors") as scratch:
            save_tensors(TENSORS, scratch)
        with atomic(tmp_path / "folder") as scratch:
            scratch.mkdir(mode=0o700)
            save_tensors(TENSORS, scratch / "weights.safetensors")
    finally:
        os.umask(before)
    for name, wanted in (("weights.safetensors", 0o666), ("folder/weights.safetensors", 0o666), ("folder", 0o777)):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == wanted & ~mask, name


def test_nobody_can_foresee_a_scratch_name(tmp_path):
    names = set()
    for _ in range(20):
        with atomic(tmp_path / "a.npz") as scratch:
            names.add(scratch.name)
            scratch.write_bytes(b"")
    assert len(names) == 20
    assert all(name.startswith(TEMPORARY) and name.endswith(".npz") and str(os.getpid()) not in name for name in names)


def _write_and_fail(path, problem):
    with atomic(path) as scratch:
        scratch.mkdir()
        (scratch / "new").write_text("new")
        raise problem


@pytest.mark.parametrize("problem", [KeyboardInterrupt(), ValueError("x"), OSError(122, "Disk quota exceeded")])
def test_whatever_ends_the_writing_leaves_what_was_there(tmp_path, problem):
    for name in ("file", "folder"):
        with atomic(tmp_path / name) as scratch:
            (scratch.write_text if name == "file" else lambda _: scratch.mkdir())("old")
        with pytest.raises((type(problem), UserError)):
            _write_and_fail(tmp_path / name, problem)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder"]
    assert (tmp_path / "file").read_text() == "old"


@pytest.mark.parametrize(
    ("problem", "sentence"),
    [
        (OSError(28, "No space left on device"), "The disk is full while saving"),
        (OSError(122, "Disk quota exceeded"), "The disk quota is used up"),
        (RuntimeError("I/O error: Disk quota exceeded (os error 122)"), "The disk quota is used up"),
        (RuntimeError("I/O error: File too large (os error 27)"), "larger than this system lets a file be"),
        (RuntimeError("I/O error: Read-only file system (os error 30)"), "The disk is read-only"),
        (OSError(24, "Too many open files"), "Too many files are open"),
        (OSError(5, "Input/output error"), r"Cannot write \(Input/output error\)"),
        (OSError("1024 requested and 0 written"), r"Cannot write \(1024 requested"),
    ],
)
def test_what_the_system_refuses_is_a_sentence_whoever_reports_it(tmp_path, problem, sentence):
    with pytest.raises(UserError, match=sentence), atomic(tmp_path / "x"):
        raise problem
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(
    "write", [lambda p: save_tensors({"w": torch.zeros(10**5)}, p), lambda p: p.write_bytes(bytes(10**5))]
)
def test_a_limit_of_the_size_of_files(tmp_path, write):
    old, most = resource.getrlimit(resource.RLIMIT_FSIZE), signal.getsignal(signal.SIGXFSZ)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # as Python has it; pytest's own files stay small
    resource.setrlimit(resource.RLIMIT_FSIZE, (10**4, old[1]))
    try:
        with (
            pytest.raises(UserError, match="larger than this system lets a file be"),
            atomic(tmp_path / "x") as scratch,
        ):
            write(scratch)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
        signal.signal(signal.SIGXFSZ, most)
    assert not [*tmp_path.iterdir()]


DAMAGES = {
    "empty": b"",
    "blank": b"\n\n",
    "half": b'{"step": 1, "na',
    "no UTF-8": b'{"step": 1, "name": "\xff\xfe"}',
    "UTF-16": '{"step": 1}'.encode("utf-16"),
    "zeros": bytes(64),
    "list": b"[1, 2]",
    "number": b"3",
    "text": b'"step"',
    "null": b"null",
    "lacks": b"{}",
    "type": b'{"step": "1"}',
    "truth": b'{"step": true}',
    "nothing": b'{"step": null}',
    "float": b'{"step": 1.5}',
    "deep": b"[" * 100_000,
    "digits": b"9" * 10_000,
    "binary": bytes(range(256)),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("read", [read_json, read_yaml, read_lines])
def test_damaged_text_is_one_sentence(tmp_path, read, damage):
    file = tmp_path / "state"
    file.write_bytes(DAMAGES[damage] + (b"\n" if read is read_lines else b""))
    with pytest.raises(UserError) as problem:
        read(file, {"step": int}, "what was written")
    text = str(problem.value)
    assert text.startswith(f"Cannot read {file}: ")
    assert text.endswith("Expected what was written.")
    assert "\n" not in text
    assert len(text) < 500


def test_whole_text_is_read(tmp_path):
    file = tmp_path / "state"
    file.write_text('\ufeff{"step": 3, "rate": 1}', encoding="utf-8")
    for read in (read_json, read_yaml):
        assert read(file, {"step": int, "rate": float}, "x") == {"step": 3, "rate": 1}
    file.write_text('{"step": 1}\n{"step": 2}\n{"st')
    assert read_lines(file, {"step": int}, "x") == [{"step": 1}, {"step": 2}], "the last line was being written"
    file.write_text("")
    assert read_lines(file, {"step": int}, "x") == []
    for read in (read_json, read_yaml, read_lines):
        for missing in (tmp_path / "none", tmp_path):
            with pytest.raises(UserError, match="Cannot read"):
                read(missing, {}, "x")


def test_no_flipped_bit_of_a_file_of_tensors_goes_unnoticed(tmp_path):
    path = tmp_path / "state.safetensors"
    save_tensors(TENSORS, path, {"about": "x"})
    assert load_tensors(path, "a.").keys() == {"a.w", "a.b"}
    whole = path.read_bytes()
    noticed = 0
    for bit in range(8 * len(whole)):
        changed = bytearray(whole)
        changed[bit // 8] ^= 1 << bit % 8
        path.write_bytes(changed)
        try:
            found = load_tensors(path)
        except Damaged:
            noticed += 1
        else:
            assert found.keys() == TENSORS.keys()
            assert all(torch.equal(found[name], TENSORS[name]) for name in TENSORS)
    assert noticed > 6 * len(whole), "only spaces and what the metadata say beside are free"
    for size in range(0, len(whole), 7):
        path.write_bytes(whole[:size])
        with pytest.raises(Damaged, match="is damaged"):
            load_tensors(path)


def test_what_is_said_about_tensors_is_checked_with_them(tmp_path):
    """Kept outcomes of experiments hold their numbers there."""
    path = tmp_path / "kept.safetensors"
    save_tensors(TENSORS, path, {"rows": "[1.25, 2.5]"})
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b"1.25", b"1.26"))
    with pytest.raises(Damaged, match="checksum of the metadata differs"):
        load_tensors(path)


def test_tensors_of_earlier_versions_have_no_checksums_and_are_read(tmp_path):
    from safetensors.torch import save_file

    save_file(TENSORS, tmp_path / "old")
    assert load_tensors(tmp_path / "old").keys() == TENSORS.keys()


def test_items_are_checked_as_they_are_read(tmp_path):
    items = np.random.default_rng(0).integers(0, 256, (5, 3, 4, 4), dtype=np.uint8)
    path, sums = tmp_path / "items.npy", Sums.of(items)
    assert Sums.load(path, 5) is None
    sums.save(path)
    rows = np.array([3, 1])
    Sums.load(path, 5).require(items[rows], rows, path)
    changed = items[rows]
    changed[1, 0, 0, 0] ^= 1
    with pytest.raises(Damaged, match=r"items\.npy is damaged: item 1 "):
        Sums.load(path, 5).require(changed, rows, path)
    with pytest.raises(Damaged, match="holds 20 bytes"):
        Sums.load(path, 6)


def test_a_sealed_folder(tmp_path):
    require_sealed(tmp_path)  # of an earlier version
    (tmp_path / "unet").mkdir()
    for name in ("model_index.json", "unet/weights.safetensors", "README.md"):
        (tmp_path / name).write_text(name)
    seal(tmp_path)
    done = subprocess.run(["sha256sum", "-c", "--quiet", "SHA256SUMS"], cwd=tmp_path, check=False)
    assert done.returncode == 0
    (tmp_path / "README.md").write_text("a card may be edited")
    require_sealed(tmp_path)
    (tmp_path / "unet/weights.safetensors").write_text("unet/weights.safetensorr")
    with pytest.raises(Damaged, match=r"weights\.safetensors is not as it was written"):
        require_sealed(tmp_path)
    (tmp_path / "unet/weights.safetensors").unlink()
    with pytest.raises(Damaged, match=r"weights\.safetensors"):
        require_sealed(tmp_path)
    (tmp_path / "SHA256SUMS").write_bytes(b"\xff\xfe")
    with pytest.raises(Damaged):
        require_sealed(tmp_path)


HOLD = "import sys, pathlib, time; from atdm.files import Hold; Hold(pathlib.Path(sys.argv[1]), 'It', 'that').take(); "


def holder(folder, then="print('held', flush=True); time.sleep(60)"):
    process = subprocess.Popen([sys.executable, "-c", HOLD + then, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    return process


def test_one_process_writes_at_a_time_and_a_killed_one_is_no_obstacle(tmp_path):
    process = holder(tmp_path)
    try:
        with pytest.raises(UserError) as problem:
            Hold(tmp_path, "It", "another one").take()
        assert str(problem.value) == (
            f"It is being written by process {process.pid} on {locks.socket.gethostname()}. "
            "Expected it to end first, or another one."
        )
        process.kill()
        process.wait()
        with Hold(tmp_path, "It", "another one") as hold:
            hold.take()
            hold.take()
            with pytest.raises(UserError, match=f"process {os.getpid()} "):
                Hold(tmp_path, "It", "another one").take()
            with pytest.raises(AssertionError):
                holder(tmp_path)
        holder(tmp_path, "print('held', flush=True)").wait()
    finally:
        process.kill()


def test_a_worker_that_outlives_its_process_does_not_hold_the_folder(tmp_path):
    process = holder(
        tmp_path, "import os; child = os.fork(); print('held', flush=True) if child else None; time.sleep(5)"
    )
    process.kill()
    process.wait()
    with Hold(tmp_path, "It", "another one") as hold:
        hold.take()


def test_a_damaged_lock_is_no_obstacle(tmp_path):
    (tmp_path / ".lock").write_bytes(b"\xff\x00{")
    with Hold(tmp_path, "It", "another one") as hold:
        hold.take()
    (tmp_path / ".lock").unlink()
    (tmp_path / ".lock").mkdir()
    with pytest.raises(UserError, match="Cannot write"):
        Hold(tmp_path, "It", "another one").take()


@pytest.mark.parametrize(
    ("owner", "age", "held"),
    [
        ("alive", 0, True),
        ("alive", 1e6, True),
        ("dead", 0, False),
        ("another with its number", 0, False),
        ("on another machine", 60, True),
        ("on another machine", 1000, False),
        ("nobody", 0, False),
    ],
)
def test_disks_without_locks(tmp_path, monkeypatch, owner, age, held):
    monkeypatch.setattr(locks, "_lock", lambda file: None)
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    about = {"host": locks.socket.gethostname(), "pid": process.pid, "started": locks._started(process.pid)}
    if owner == "dead":
        process.kill()
        process.wait()
    about |= {"started": 1.0} if owner.startswith("another") else {}
    about |= {"host": "elsewhere"} if owner.startswith("on") else {}
    (tmp_path / ".lock").write_text("" if owner == "nobody" else json.dumps(about))
    os.utime(tmp_path / ".lock", (time.time() - age,) * 2)
    try:
        with Hold(tmp_path, "It", "another one") as hold:
            if held:
                with pytest.raises(UserError, match=f"process {about['pid']} on {about['host']}"):
                    hold.take()
            else:
                hold.take()
    finally:
        process.kill()


def test_a_link_to_nothing_is_no_place_to_write_to(tmp_path):
    (tmp_path / "run").symlink_to("elsewhere")
    (tmp_path / "loop").symlink_to("loop")
    for path, link in (("run", "elsewhere"), ("run/below/x.json", "elsewhere"), ("loop", "loop")):
        with pytest.raises(UserError, match=f"is a link to {link}, which is not there. Expected a link to what is"):
            require_writable(tmp_path / path)
    (tmp_path / "elsewhere").mkdir()
    require_writable(tmp_path / "run")


@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_a_lock_that_is_no_file_is_a_sentence(tmp_path, kind):
    if kind == "pipe":
        os.mkfifo(tmp_path / ".lock")
    else:
        (tmp_path / ".lock").symlink_to("/dev/full")
    with pytest.raises(UserError, match=r"\.lock is a pipe or a device. Expected a file, or none: remove it"):
        Hold(tmp_path, "The folder", "another").take()
