"""One writer of a folder at a time."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import stat
import time
from pathlib import Path
from typing import Any

from ..errors import UserError
from .reading import read_json

NAME = ".lock"
SILENT = 600.0  # seconds without a sign of life after which an owner on another machine counts as gone
_here: set[str] = set()  # folders that this process holds


class Hold(contextlib.AbstractContextManager["Hold"]):
    """A folder that this process alone writes, from :meth:`take` until :meth:`release`, its end, or its death.

    The file ``.lock`` tells the owner's machine and process. The operating system holds a lock on it for as long as the
    process lives, on network disks too, so what remains of a killed process is no obstacle. On disks without locks
    the owner counts as gone if its process is, or, on another machine, if :meth:`beat` was not called for ten minutes.

    Args:
        folder: it must exist when it is taken.
        what: what sentences call it.
        instead: what to do instead of writing there, for the sentence.
    """

    def __init__(self, folder: Path, what: str, instead: str) -> None:
        self.path, self.what, self.instead = folder / NAME, what, instead
        self._file: int | None = None
        self._beaten = 0.0

    def take(self) -> None:
        """Become the one writer; a second call does nothing.

        Raises:
            UserError: another process writes there, or the lock cannot be written.
        """
        if self._file is not None:
            return
        key = os.path.realpath(self.path)
        if key in _here:
            raise self._taken({"host": socket.gethostname(), "pid": os.getpid()})
        try:
            file = os.open(self.path, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o666)
        except OSError as problem:
            raise UserError(
                f"Cannot write {self.path} ({problem.strerror}). Expected a place to write to."
            ) from problem
        try:
            if not stat.S_ISREG(os.fstat(file).st_mode):
                raise UserError(f"{self.path} is a pipe or a device. Expected a file, or none: remove it.")
            locked = _lock(file)
            if locked is False or (locked is None and self._alive()):
                raise self._taken(self._owner())
            owner = {"host": socket.gethostname(), "pid": os.getpid(), "started": _started(os.getpid())}
            os.ftruncate(file, 0)
            os.pwrite(file, json.dumps(owner).encode(), 0)
        except BaseException:
            os.close(file)
            raise
        self._file, self._beaten = file, time.monotonic()
        _here.add(key)

    def beat(self) -> None:
        """A sign of life; to be given now and then."""
        if self._file is not None and time.monotonic() - self._beaten > SILENT / 10:
            self._beaten = time.monotonic()
            with contextlib.suppress(OSError):
                os.utime(self.path)

    def release(self) -> None:
        """Let others write."""
        if self._file is None:
            return
        with contextlib.suppress(OSError):
            os.ftruncate(self._file, 0)  # not removed: another process may be waiting with it open
        os.close(self._file)
        self._file = None
        _here.discard(os.path.realpath(self.path))

    def __exit__(self, *problem: object) -> None:
        self.release()

    def _owner(self) -> dict[str, Any]:
        try:
            return read_json(self.path, {"host": str, "pid": int, "started": float}, "the owner")
        except UserError:  # just made, or damaged
            return {}

    def _alive(self) -> bool:
        """Whether the owner lives, as far as can be known without a lock of the operating system."""
        if not (owner := self._owner()):
            return False
        if owner["host"] == socket.gethostname():
            begun = _started(owner["pid"])
            return owner["pid"] != os.getpid() and begun is not None and abs(begun - owner["started"]) < 2
        return time.time() - self.path.stat().st_mtime < SILENT

    def _taken(self, owner: dict[str, Any]) -> UserError:
        who = f"process {owner['pid']} on {owner['host']}" if owner else "another process"
        return UserError(f"{self.what} is being written by {who}. Expected it to end first, or {self.instead}.")


def _lock(file: int) -> bool | None:
    """Whether the operating system gives this process the lock; None where it has none to give.

    Of the two kinds of locks it is the one that children do not inherit: a worker that outlives the process frees it too.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        return None
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as problem:
        return False if problem.errno in (errno.EACCES, errno.EAGAIN) else None
    return True


def _started(pid: int) -> float | None:
    """When a process began, by which it differs from a later one with its number; None: there is none."""
    import psutil

    try:
        return psutil.Process(pid).create_time()
    except psutil.Error:
        return None
