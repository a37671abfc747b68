"""Sentences for what neither the user's words nor the program did wrong: the machine, and other processes."""

from __future__ import annotations

import errno
import os
import re
import threading
from collections.abc import Iterator
from concurrent.futures import BrokenExecutor
from contextlib import contextmanager

from ..errors import first_line, missing
from ..files.writing import REASONS
from ..text import short

MEMORY = ("can't allocate memory", "out of memory", "unable to allocate", "storage size calculation overflowed")
# What torch's back ends for several processes say when one of them is gone.
LOST = ("connection closed by peer", "connection reset by peer", "connection refused", "broken pipe", "socket timeout")


def explain(problem: Exception) -> str | None:
    """A sentence for ``problem``; None if it is a mistake of the program, of which the traceback should be seen."""
    if isinstance(problem, ModuleNotFoundError):
        absent = missing(problem)
        return str(absent) if absent else None
    text = " ".join(str(problem).split())
    low = text.lower()
    if isinstance(problem, MemoryError) or any(words in low for words in MEMORY):
        return f"There is not enough memory{_wanted(text)}. Expected smaller sizes: fewer items at a time, or a smaller network."
    if isinstance(problem, RuntimeError) and "DataLoader worker (pid" in text:
        return (
            f"A process that prepares batches failed: {text} Memory may have run out. What was saved before is still there. "
            "Expected more of it, fewer --workers, or --workers 0."
        )
    if isinstance(problem, BrokenExecutor):
        return "A process that works on a part was killed. Memory may have run out. Expected more of it, or fewer threads (OMP_NUM_THREADS)."
    if isinstance(problem, OSError):
        return _system(problem)
    if isinstance(problem, RuntimeError):
        if "too many open files" in low:
            return f"{REASONS[errno.EMFILE]}. Expected a higher limit, or fewer --workers."
        if any(words in low for words in LOST) or type(problem).__name__.startswith("Dist"):
            return "Another process of this run is gone. What was saved before is still there; the same command goes on from it."
    return None


@contextmanager
def quiet_writers() -> Iterator[None]:
    """No traceback of TensorBoard's writer, a thread: what stops it is raised again where it is called, and said there."""
    usual = threading.excepthook

    def hook(stopped: threading.ExceptHookArgs) -> None:
        if not type(stopped.thread).__module__.startswith("tensorboard."):
            usual(stopped)

    threading.excepthook = hook
    try:
        yield
    finally:
        threading.excepthook = usual


def _system(problem: OSError) -> str:
    where = f" ({short(str(problem.filename), 300)})" if problem.filename else ""
    if problem.errno is None:
        return f"{first_line(problem)}."
    reason = REASONS.get(problem.errno, os.strerror(problem.errno))
    kept = " What was saved before is still there." if problem.errno in (errno.ENOSPC, errno.EDQUOT) else ""
    return f"{reason}{where}.{kept}"


def _wanted(text: str) -> str:
    """How much memory was asked for, where ``text`` says it."""
    if found := re.search(r"(\d+) bytes", text):
        return f": {int(found[1]) / 1e9:,.1f} GB more were asked for"
    if found := re.search(r"allocate ([\d.]+ [KMGTPE]iB)", text):
        return f": {found[1]} more were asked for"
    return ""
