"""Decoded images kept in a file: written once, whole or not at all, and checked as they are read."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from .. import memory
from ..errors import UserError, expect
from ..files import read_json, scratch_beside
from .decode import AT_ONCE, VERSION, Framing, Progress, Tally, decoded
from .items import Pixels, write_items
from .pixels import MAX_PIXELS

if TYPE_CHECKING:
    from .images import Listing

LOG = logging.getLogger(__name__)


class Read(NamedTuple):
    """Pixels, sentences on what was converted or skipped, and the names of the unreadable images that were skipped."""

    pixels: Pixels
    notes: tuple[str, ...]
    broken: tuple[str, ...]


def read(
    listing: Listing,
    framing: Framing,
    *,
    skip_broken: bool = False,
    cache: bool = True,
    max_pixels: int = MAX_PIXELS,
    progress: Progress | None = None,
) -> Read:
    """The pixels of images: decoded, converted, resized and cropped, or found in the cache.

    Args:
        listing: what there is.
        framing: size and crop.
        skip_broken: leave out what cannot be decoded.
        cache: keep the pixels in a file under :func:`cache_folder` and map it, instead of keeping them in memory.
        max_pixels: an image of more is not decoded.
        progress: called with how many are done, and of how many.

    Returns:
        Pixels, all gray if every image is and else RGB, with what was converted or skipped.

    Raises:
        UserError: an unreadable image, mixed sizes without a size, no image left, or no room for the cache.
    """
    expect(max_pixels >= 1, "max_pixels", max_pixels, "a positive number")
    if framing.side is not None:
        many = min(listing.count, AT_ONCE) if cache else listing.count
        memory.require(3 * framing.side**2 * many, f"{many} images of {framing.side}x{framing.side}", _SMALLER)
    tally = Tally()
    chunks = decoded(listing, framing, skip_broken, max_pixels, tally, progress)
    if not cache:
        pixels = np.concatenate([*chunks])
        return Read(
            Pixels(pixels if tally.gray < tally.items else pixels[:, :1].copy()),
            tuple(tally.sentences()),
            tuple(tally.broken),
        )
    path = entry([VERSION, listing.key, listing.all.key, asdict(framing), skip_broken, max_pixels], ".npy")
    found = _cached(path)  # without a lock: the disk may be read-only, and what is there is whole
    LOG.info("%s decoded images in %s", "writing" if found is None else "reading", path)
    return found if found is not None else _made(path, chunks, tally, listing.count)


_SMALLER = "Expected a smaller image_size or limit, or --cache true, which keeps the pixels on disk."
_ELSEWHERE = (
    "Expected room there, ATDM_CACHE=FOLDER on another disk, a smaller image_size or limit, "
    "or --cache false, which keeps the pixels in memory."
)


def cache_folder() -> Path:
    """Where decoded images are kept: ``$ATDM_CACHE``, or ``atdm`` in the user's cache folder. Safe to delete."""
    if folder := os.environ.get("ATDM_CACHE"):
        return Path(folder).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "atdm"


def entry(facts: list[Any], ending: str) -> Path:
    """The file in the cache for what follows from these facts."""
    return cache_folder() / f"{hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]}{ending}"


def _cached(path: Path) -> Read | None:
    """A cache entry that is whole, as far as can be seen now, or None. The pixels come last, so they never lack their notes."""
    try:
        about = read_json(path.with_suffix(".json"), {"notes": list, "broken": list}, "notes")
        pixels = Pixels(path)
        pixels.require_whole()
    except (FileNotFoundError, UserError):
        return None
    return Read(pixels, tuple(about["notes"]), tuple(about["broken"]))


def _made(path: Path, chunks: Iterator[np.ndarray], tally: Tally, most: int) -> Read:
    """A new cache entry, or that of another process that made it meanwhile."""
    from filelock import FileLock

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_suffix(".lock")):  # several processes of one run want the same file
            for left in path.parent.glob(f"*{path.stem}*"):
                if "partial" in left.name:  # of a process that was killed
                    left.unlink()
            if (found := _cached(path)) is None:
                _write(path, chunks, tally, most)
                found = _cached(path)
    except OSError as problem:
        why = "is full" if problem.errno in (errno.ENOSPC, errno.EDQUOT) else f"cannot be written ({problem.strerror})"
        raise UserError(f"The cache of decoded images {path.parent} {why}. {_ELSEWHERE}") from problem
    if found is None:
        raise UserError(f"The cache file {path} cannot be read back. {_ELSEWHERE}")
    return found


def _write(path: Path, chunks: Iterator[np.ndarray], tally: Tally, most: int) -> None:
    """Write the cache entry ``path``, whole or not at all; the caller holds its lock."""
    scratch, gray, note = (scratch_beside(path.with_suffix(ending)) for ending in (".npy", ".gray", ".json"))
    try:
        first = next(chunks)
        size, free = most * first[0].nbytes, shutil.disk_usage(path.parent).free
        if size > free:
            raise UserError(
                f"The decoded images take {size / 1e9:.1f} GB, and {path.parent} has {free / 1e9:.1f} GB free. {_ELSEWHERE}"
            )
        sums = write_items(scratch, chain([first], chunks))
        if tally.gray == tally.items:  # three equal channels: keep one
            wide = np.load(scratch, mmap_mode="r")
            sums = write_items(gray, (wide[at : at + AT_ONCE, :1] for at in range(0, tally.items, AT_ONCE)))
            os.replace(gray, scratch)
        sums.save(path)
        note.write_text(json.dumps({"notes": tally.sentences(), "broken": tally.broken, "items": tally.items}))
        os.replace(note, path.with_suffix(".json"))
        os.replace(scratch, path)
    finally:
        for left in (scratch, gray, note):
            left.unlink(missing_ok=True)
