"""Image files decoded once, into ``uint8`` pixels that training maps from disk: memory holds a few images at a time."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from ..errors import UserError, expect, require_known
from ..text import one_line
from .listing import Listing, require_handles
from .pixels import UnknownScale, common_top, decode, extent, formats, settings, why

if TYPE_CHECKING:
    from PIL.Image import Image

VERSION = 2  # of what the cache holds; raise it when the same file comes to be decoded to other pixels
CROPS = ("center", "random", "none")
AT_ONCE = 64  # images decoded before they are written

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
        require_known("crop", self.crop, CROPS)
        expect(self.size is None or self.size >= 1, "image_size", self.size, "a positive number of pixels")
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
        out = [f"{count} image{' was' if count == 1 else 's were'} {what}." for what, count in sorted(notes.items())]
        if self.broken:
            more = ", ..." if len(self.broken) > 3 else ""
            skipped = "unreadable image was" if len(self.broken) == 1 else "unreadable images were"
            out.append(f"{len(self.broken)} {skipped} skipped: {', '.join(map(one_line, self.broken[:3]))}{more}")
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


def decoded(
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
                    name, shape = tally.first
                    raise mixed(f"{name} is", shape, listing.name(index), pixels.shape)
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
        except Exception:  # a broken image is reported when its turn comes
            return 0.0
        return found[1] if found and found[0] >= 0 and found[1] <= 65535 else 0.0

    return common_top(max(pool.map(largest, range(listing.count))))


def _broken(name: str, problem: Exception, skip_broken: bool, max_pixels: int, tally: Tally) -> None:
    require_handles(problem)
    if not skip_broken:
        reason = why(problem, max_pixels)
        larger = "A larger --max_pixels takes it, " if "max_pixels" in reason else ""
        raise UserError(
            f"Cannot read the image {name}: {reason}. Expected a whole image file.",
            f"{larger}--skip_broken true skips such files.",
        ) from problem
    tally.broken.append(name)


def mixed(others: str, of: tuple[int, ...], name: str, shape: tuple[int, ...]) -> UserError:
    """The error for an image of another shape than ``others`` (their name, and its verb)."""
    return UserError(
        f"The images have different sizes: {others} {of[2]}x{of[1]}, {name} is {shape[2]}x{shape[1]}. "
        "Expected one size, or --image_size N."
    )
