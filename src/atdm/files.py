"""Files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import UserError

TEMPORARY = ".partial-"


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """A scratch path that takes the place of ``path`` (file or folder) when the block ends well, and vanishes otherwise.

    Raises:
        UserError: the disk is full or not writable, or a file would take the place of a folder; what was at ``path`` is still there.
    """
    scratch = path.with_name(f"{TEMPORARY}{os.getpid()}-{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove(scratch)
        yield scratch
        if path.is_dir() and not scratch.is_dir():
            raise UserError(f"{path} is a folder. Expected the name of a file.")
        for file in [scratch, *scratch.rglob("*")] if scratch.is_dir() else [scratch]:
            if file.is_file():
                with open(file, "rb") as handle:
                    os.fsync(handle.fileno())
        if path.is_dir():  # a folder cannot be renamed over another: step aside first
            aside = path.with_name(f"{TEMPORARY}{os.getpid()}-old-{path.name}")
            remove(aside)
            os.replace(path, aside)
            os.replace(scratch, path)
            remove(aside)
        else:
            os.replace(scratch, path)
    except OSError as problem:
        reason = (
            "The disk is full"
            if problem.errno in (errno.ENOSPC, errno.EDQUOT)
            else f"Cannot write ({problem.strerror})"
        )
        raise UserError(f"{reason} while saving {path}. What was saved before is still there.") from problem
    except Exception as problem:  # safetensors wraps the operating system's errors
        if "No space left" in str(problem):
            raise UserError(f"The disk is full while saving {path}. What was saved before is still there.") from problem
        raise
    finally:
        remove(scratch)


def require_writable(path: Path) -> None:
    """Whether ``path``, a file or a folder, can be written: to be asked before the work whose results go there. Makes nothing.

    Raises:
        UserError: it cannot.
    """
    place = path.absolute()
    try:
        while not place.exists():
            place = place.parent
        with tempfile.TemporaryFile(dir=place.parent if place == path.absolute() and place.is_file() else place):
            pass
    except OSError as problem:
        raise UserError(
            f"Cannot write {path} ({problem.strerror} in {place}). Expected a place to write to."
        ) from problem


def remove(path: Path) -> None:
    """Remove a file or a folder, if it is there."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            path.unlink()
