"""Image files decoded once, into ``uint8`` pixels that training maps from disk: memory holds a few images at a time."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import shutil
import struct
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from .. import memory
from ..errors import UserError, unknown
from ..text import one_line
from .items import Pixels
from .listing import Listing, require_handles
from .pixels import MAX_PIXELS, UnknownScale, common_top, decode, extent, formats, settings, why

if TYPE_CHECKING:
    from PIL.Image import Image

VERSION = 2  # of what the cache holds; raise it when the same file comes to be decoded to other pixels
CROPS = ("center", "random", "none")
AT_ONCE = 64  # images decoded before they are written
HEADER = 128  # bytes of an .npy file before its data

RARE = 1e-4  # share of the pixels at either end that do not count for the range of a set
NARROW = 64  # numbers of 256: a set that uses fewer may be meant otherwise

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Framing:
    """How images of any size become images of one size.

    Args:
        size: side in pixels; None keeps the images as they are.
        crop: ``center`` resizes the shorter side (antialiased) and cuts the middle; ``random`` keeps an eighth more,
            of which training sees a random window each time; ``none`` squeezes the whole image into the square.

    Raises:
        UserError: an unknown crop, or one that needs a size.
    """

    size: int | None = None
    crop: str = "center"

    def __post_init__(self) -> None:
        if self.crop not in CROPS:
            raise unknown("crop", self.crop, CROPS)
        if self.size is not None and self.size < 1:
            raise UserError(f"image_size is {self.size}. Expected a positive number of pixels.")
        if self.size is None and self.crop == "random":
            raise UserError("A random crop needs image_size. Expected --image_size N.")

    @property
    def window(self) -> int | None:
        """Side of the random windows that training cuts from the stored images; None: it takes them whole."""
        return self.size if self.crop == "random" else None

    @property
    def side(self) -> int | None:
        """Side of the stored images; None keeps their own."""
        return self.size + self.size // 8 if self.size and self.crop == "random" else self.size

    def scale(self, size: tuple[int, int]) -> float:
        """How many pixels of an image of this width and height become one."""
        if self.side is None:
            return 1.0
        return (math.sqrt(size[0] * size[1]) if self.crop == "none" else min(size)) / self.side

    def __call__(self, image: Image) -> Image:
        from PIL import Image, ImageOps

        if (side := self.side) is None:
            return image
        if self.crop == "none":
            return image.resize((side, side), Image.Resampling.LANCZOS)
        return ImageOps.fit(image, (side, side), Image.Resampling.LANCZOS)


@dataclass
class Tally:
    """What was met while decoding."""

    items: int = 0
    gray: int = 0
    notes: Counter[str] = field(default_factory=Counter)
    broken: list[str] = field(default_factory=list)
    first: tuple[str, tuple[int, ...]] | None = None  # name and shape
    histogram: np.ndarray = field(default_factory=lambda: np.zeros(256, np.int64))  # of the 8-bit numbers

    def sentences(self) -> list[str]:
        """What was converted and skipped."""
        notes = self.notes.copy()
        if self.gray < self.items and self.gray:
            notes["converted from gray to RGB"] += self.gray
        out = [f"{_images(count)} {what}." for what, count in sorted(notes.items())]
        if self.broken:
            more = ", ..." if len(self.broken) > 3 else ""
            out.append(
                f"{len(self.broken)} unreadable images were skipped: {', '.join(map(one_line, self.broken[:3]))}{more}"
            )
        return [*out, *self._range()]

    def _range(self) -> list[str]:
        """A warning where the pixels use little of the range they could."""
        shares = np.cumsum(self.histogram) / max(1, self.histogram.sum())
        low, high = (int(np.searchsorted(shares, share)) for share in (RARE, 1 - RARE))
        if high - low >= NARROW:
            return []
        return [
            f"The images use only the numbers from {low} to {high} of 0 to 255. Where they are meant to be brighter or "
            "richer in contrast, stretch them first, all alike."
        ]


class Read(NamedTuple):
    """Pixels, sentences on what was converted or skipped, and the names of the unreadable images that were skipped."""

    pixels: Pixels
    notes: tuple[str, ...]
    broken: tuple[str, ...]


def _images(count: int) -> str:
    return f"{count} image was" if count == 1 else f"{count} images were"


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
    if max_pixels < 1:
        raise UserError(f"max_pixels is {max_pixels}. Expected a positive number.")
    if framing.side is not None:
        many = min(listing.count, AT_ONCE) if cache else listing.count
        memory.require(3 * framing.side**2 * many, f"{many} images of {framing.side}x{framing.side}", _SMALLER)
    tally = Tally()
    chunks = _decoded(listing, framing, skip_broken, max_pixels, tally, progress)
    if not cache:
        pixels = np.concatenate([*chunks])
        return Read(
            Pixels(pixels if tally.gray < tally.items else pixels[:, :1].copy()),
            tuple(tally.sentences()),
            tuple(tally.broken),
        )
    from filelock import FileLock

    key = json.dumps([VERSION, listing.key, listing.all.key, asdict(framing), skip_broken, max_pixels])
    path = cache_folder() / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.npy"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_suffix(".lock")):  # several processes of one run want the same file
            if (found := _cached(path)) is None:
                _write(path, chunks, tally, listing.count)
                found = _cached(path)
    except OSError as problem:
        why = "is full" if problem.errno in (errno.ENOSPC, errno.EDQUOT) else f"cannot be written ({problem.strerror})"
        raise UserError(f"The cache of decoded images {path.parent} {why}. {_ELSEWHERE}") from problem
    if found is None:
        raise UserError(f"The cache file {path} cannot be read back. {_ELSEWHERE}")
    return found


_SMALLER = "Expected a smaller image_size or limit, or --cache true, which keeps the pixels on disk."
_ELSEWHERE = (
    "Expected room there, ATDM_CACHE=FOLDER on another disk, a smaller image_size or limit, "
    "or --cache false, which keeps the pixels in memory."
)


def cache_folder() -> Path:
    """Where decoded images are kept: ``$ATDM_CACHE``, or ``atdm`` in the user's cache folder. Safe to delete."""
    if own := os.environ.get("ATDM_CACHE"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "atdm"


def _cached(path: Path) -> Read | None:
    """A whole cache entry, or None. The notes are written first, so pixels never lack them."""
    try:
        about = json.loads(path.with_suffix(".json").read_text())
        return Read(Pixels(path), tuple(about["notes"]), tuple(about["broken"]))
    except (FileNotFoundError, ValueError, KeyError):  # ValueError: the file is shorter than its header says
        return None


def _write(path: Path, chunks: Iterator[np.ndarray], tally: Tally, most: int) -> None:
    """Write the cache entry ``path``, whole or not at all; the caller holds its lock."""
    scratch, gray = path.with_suffix(".partial"), path.with_suffix(".partial-gray")
    try:
        with open(scratch, "wb") as file:
            file.seek(HEADER)
            for chunk in chunks:
                if file.tell() == HEADER:
                    _require_room(path.parent, most * chunk[0].nbytes)
                file.write(chunk.tobytes())
            shape = (tally.items, *chunk.shape[1:])
            file.seek(0)
            file.write(_header(shape))
            _sync(file)
        if tally.gray == tally.items:  # three equal channels: keep one
            wide = np.load(scratch, mmap_mode="r")
            with open(gray, "wb") as file:
                file.write(_header((tally.items, 1, *shape[2:])))
                for at in range(0, tally.items, AT_ONCE):
                    file.write(wide[at : at + AT_ONCE, :1].tobytes())
                _sync(file)
            os.replace(gray, scratch)
        about = {"notes": tally.sentences(), "broken": tally.broken, "items": tally.items}
        note = path.with_suffix(".partial-json")
        note.write_text(json.dumps(about))
        os.replace(note, path.with_suffix(".json"))
        os.replace(scratch, path)
    finally:
        for left in (scratch, gray):
            left.unlink(missing_ok=True)


def _require_room(folder: Path, size: int) -> None:
    free = shutil.disk_usage(folder).free
    if size > free:
        raise UserError(
            f"The decoded images take {size / 1e9:.1f} GB, and {folder} has {free / 1e9:.1f} GB free. {_ELSEWHERE}"
        )


def _header(shape: tuple[int, ...]) -> bytes:
    """The first bytes of an .npy file of that shape, always as many: the shape is known only at the end."""
    text = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", HEADER - 10) + text.ljust(HEADER - 11).encode() + b"\n"


def _sync(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())


def _decoded(
    listing: Listing, framing: Framing, skip_broken: bool, max_pixels: int, tally: Tally, progress: Progress | None
) -> Iterator[np.ndarray]:
    """RGB pixels ``[k, 3, h, w]`` a few images at a time, decoded on all cores; ``tally`` keeps the count."""
    top: float | None = None

    def one(index: int) -> tuple[np.ndarray, bool, list[str]] | Exception:
        try:
            image, notes = decode(listing.content(index), top)
            image = framing(image)
            return np.asarray(image.convert("RGB")).transpose(2, 0, 1), image.mode == "L", notes
        except Exception as problem:  # each decoder raises its own
            return problem

    formats()
    with ThreadPoolExecutor(min(32, os.cpu_count() or 1)) as pool:
        for at in range(0, listing.count, AT_ONCE):
            part = range(at, min(at + AT_ONCE, listing.count))
            with settings(max_pixels):
                results = [*pool.map(one, part)]
                if any(isinstance(result, UnknownScale) for result in results):
                    top = _common_top(listing.all, pool)
                    results = [*pool.map(one, part)]
            chunk = []
            for index, result in zip(part, results, strict=True):
                if isinstance(result, Exception):
                    _broken(listing.name(index), result, skip_broken, max_pixels, tally)
                    continue
                pixels, gray, notes = result
                tally.notes.update(notes)
                tally.gray += gray
                tally.items += 1
                tally.histogram += np.bincount(pixels.ravel(), minlength=256)
                tally.first = tally.first or (listing.name(index), pixels.shape)
                if pixels.shape != tally.first[1]:
                    raise _mixed(tally.first, listing.name(index), pixels.shape)
                chunk.append(pixels)
            if progress:
                progress(part.stop, listing.count)
            if chunk:
                yield np.stack(chunk)
    if not tally.items:
        raise UserError(f"No image could be read ({len(tally.broken)} broken). Expected at least one.")


def _common_top(listing: Listing, pool: ThreadPoolExecutor) -> int:
    """The number that is white in all images whose format does not say it."""

    def largest(index: int) -> float:
        try:
            found = extent(listing.content(index))
        except Exception:  # a broken image is told when its turn comes
            return 0.0
        return found[1] if found and found[0] >= 0 and found[1] <= 65535 else 0.0

    return common_top(max(pool.map(largest, range(listing.count))))


def _broken(name: str, problem: Exception, skip_broken: bool, max_pixels: int, tally: Tally) -> None:
    require_handles(problem)
    if not skip_broken:
        larger = ", or a larger --max_pixels" if "max_pixels" in (reason := why(problem, max_pixels)) else ""
        raise UserError(
            f"Cannot read the image {name}: {reason}. Expected a whole image file{larger}.",
            "--skip_broken true leaves such files out.",
        ) from problem
    tally.broken.append(name)


def _mixed(first: tuple[str, tuple[int, ...]], name: str, shape: tuple[int, ...]) -> UserError:
    return UserError(
        f"The images have different sizes: {first[0]} is {first[1][2]}x{first[1][1]}, {name} is {shape[2]}x{shape[1]}. "
        "Expected one size, or --image_size N."
    )
