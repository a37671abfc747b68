"""How much memory there is, and how many threads make sense: asked before they are taken."""

from __future__ import annotations

import os
from pathlib import Path

from .errors import UserError, expect

CGROUP = Path("/sys/fs/cgroup")
PER_CORE = 8  # threads; many more only wait for each other, so that next to nothing moves


def available() -> int:
    """Bytes that this process can still take: what the machine has free, or the rest of its container's share."""
    import psutil

    free = int(psutil.virtual_memory().available)
    try:
        limit, used = (int((CGROUP / name).read_text()) for name in ("memory.max", "memory.current"))
    except (OSError, ValueError):  # no container, or one without a limit
        return free
    return max(0, min(free, limit - used))


def require(size: float, what: str, instead: str) -> None:
    """Refuse what needs more memory than there is.

    Args:
        size: bytes.
        what: takes them, as in "The images".
        instead: what would need less.

    Raises:
        UserError: says how much is wanted and how much there is.
    """
    if size > (free := available()):
        raise UserError(
            f"{what} would take {size / 1e9:,.1f} GB of memory, and {free / 1e9:,.1f} GB are free. {instead}"
        )


def require_threads(threads: int) -> None:
    """Refuse a number of threads with which work would stand still.

    Args:
        threads: 0 lets atdm choose the number.

    Raises:
        UserError: it is negative, or far beyond the number of cores.
    """
    most = PER_CORE * (os.cpu_count() or 1)
    possible = f"at most {most}, {PER_CORE} for each core, or 0: as many as the work is worth"
    expect(0 <= threads <= most, "threads", threads, possible)
