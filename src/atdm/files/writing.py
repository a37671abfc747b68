"""Files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import UserError, first_line

TEMPORARY = ".partial-"
NAMED = 60  # characters of a name that its scratch file keeps, the suffix among them

REASONS = {
    errno.ENOSPC: "The disk is full",
    errno.EDQUOT: "The disk quota is used up",
    errno.EFBIG: "The file is larger than this system lets a file be (see ulimit -f)",
    errno.EROFS: "The disk is read-only",
    errno.EMFILE: "Too many files are open (see ulimit -n)",
}


def scratch_beside(path: Path, word: str = "") -> Path:
    """A path beside ``path`` under a name that nobody can foresee."""
    return path.with_name(f"{TEMPORARY}{secrets.token_hex(8)}-{word}{path.name[-NAMED:]}")


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """A scratch path that takes the place of ``path`` (file or folder) when the block ends well, and vanishes otherwise.

    What appears has the permissions that the umask gives, whatever the library that wrote it chose.

    Raises:
        UserError: the disk is full or not writable, or a file would take the place of a folder; what was at ``path`` is still there.
    """
    scratch = scratch_beside(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield scratch
        if path.is_dir() and not scratch.is_dir():
            raise UserError(f"{path} is a folder. Expected the name of a file.")
        _settle(scratch)
        _take_place(scratch, path)
    except Exception as problem:
        if isinstance(problem, UserError) or (reason := cause(problem)) is None:
            raise
        raise UserError(f"{reason} while saving {path}. What was saved before is still there.") from problem
    finally:
        remove(scratch)


def write_text(path: Path, text: str) -> None:
    """Write text in UTF-8, whole or not at all; the errors are those of :func:`atomic`."""
    with atomic(path) as scratch:
        scratch.write_text(text, encoding="utf-8")


def cause(problem: BaseException) -> str | None:
    """What the operating system refused, in words; None if ``problem`` does not come from it.

    Libraries that are not written in Python wrap its errors as text, such as ``File too large (os error 27)``.
    """
    number = problem.errno if isinstance(problem, OSError) else None
    if number is None and (wrapped := re.search(r"\(os error (\d+)\)", str(problem))):
        number = int(wrapped[1])
    if number is None:
        return f"Cannot write ({first_line(problem)})" if isinstance(problem, OSError) else None
    return REASONS.get(number, f"Cannot write ({os.strerror(number)})")


def _settle(scratch: Path) -> None:
    """Give all that was written the permissions of the umask, and see it onto the disk."""
    mask = _umask()
    for file in [scratch, *scratch.rglob("*")] if scratch.is_dir() else [scratch]:
        now = stat.S_IMODE(file.stat().st_mode)
        wanted = now | ((0o777 if file.is_dir() else 0o666) & ~mask)
        if wanted != now:
            with contextlib.suppress(OSError):  # some disks know no permissions
                file.chmod(wanted)
        if file.is_file():
            with open(file, "rb") as handle:
                os.fsync(handle.fileno())


def _umask() -> int:
    """Of this process, where the system shows it without setting it: other threads may be writing."""
    with contextlib.suppress(OSError, StopIteration, ValueError), open("/proc/self/status", encoding="ascii") as lines:
        return int(next(line for line in lines if line.startswith("Umask:")).split()[1], 8)
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _take_place(scratch: Path, path: Path) -> None:
    if not path.is_dir():
        os.replace(scratch, path)
        return
    aside = scratch_beside(path, "old-")  # a folder cannot be renamed over another: step aside first
    try:
        os.replace(path, aside)
        os.replace(scratch, path)
    except BaseException:
        if aside.exists() and not path.exists():
            os.replace(aside, path)
        raise
    remove(aside)


def require_empty(folder: Path) -> None:
    """Refuse a folder that holds something, and a file in its place.

    Raises:
        UserError: what it is.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} is not empty. Expected a new or empty folder, so that nothing is overwritten.")


def require_writable(path: Path) -> None:
    """Whether ``path``, a file or a folder, can be written: to be asked before the work whose results go there. Makes nothing.

    Raises:
        UserError: it cannot.
    """
    folder = path.absolute()
    try:
        while not folder.exists():
            if folder.is_symlink():
                raise UserError(
                    f"{folder} is a link to {os.readlink(folder)}, which is not there. Expected a link to what is, or another name."
                )
            folder = folder.parent
        with tempfile.TemporaryFile(dir=folder.parent if folder == path.absolute() and folder.is_file() else folder):
            pass
    except OSError as problem:
        raise UserError(
            f"Cannot write {path} ({problem.strerror} in {folder}). Expected a place to write to."
        ) from problem


def remove(path: Path) -> None:
    """Remove a file or a folder, if it is there and the system lets it be removed."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()
