"""How much memory there is, asked before it is taken."""

from __future__ import annotations

from pathlib import Path

from .errors import UserError

CGROUP = Path("/sys/fs/cgroup")


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
