"""Image files decoded once, into ``uint8`` pixels that training maps from disk: memory holds a few images at a time."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import shutil
import struct
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..errors import UserError, unknown
from .items import Pixels

if TYPE_CHECKING:
    from PIL.Image import Image

    from .images import Listing

VERSION = 1  # of what the cache holds; raise it when the same file comes to be decoded to other pixels
CROPS = ("center", "random", "none")
AT_ONCE = 64  # images decoded before they are written
HEADER = 128  # bytes of an .npy file before its data

# What Pillow's decoders raise on damaged files, beside DecompressionBombError.
UNREADABLE = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    TypeError,
    LookupError,
    OverflowError,
    struct.error,
    zlib.error,
)

GRAY_MODES = ("1", "L", "I", "I;16", "I;16B", "I;16L", "F", "LA")

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

    def __call__(self, image: Image) -> Image:
        from PIL import Image, ImageOps

        if self.size is None:
            return image
        side = self.size + self.size // 8 if self.crop == "random" else self.size
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

    def sentences(self) -> list[str]:
        """What was converted and skipped."""
        notes = self.notes.copy()
        if self.gray < self.items and self.gray:
            notes["converted from gray to RGB"] += self.gray
        out = [f"{_images(count)} {what}." for what, count in sorted(notes.items())]
        if self.broken:
            more = ", ..." if len(self.broken) > 3 else ""
            out.append(f"{len(self.broken)} unreadable images were skipped: {', '.join(self.broken[:3])}{more}")
        return out


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
    progress: Progress | None = None,
) -> Read:
    """The pixels of images: decoded, converted, resized and cropped, or found in the cache.

    Args:
        listing: what there is.
        framing: size and crop.
        skip_broken: leave out what cannot be decoded.
        cache: keep the pixels in a file under :func:`cache_folder` and map it, instead of keeping them in memory.
        progress: called with how many are done, and of how many.

    Returns:
        Pixels, all gray if every image is and else RGB, with what was converted or skipped.

    Raises:
        UserError: an unreadable image, mixed sizes without a size, no image left, or no room for the cache.
    """
    tally = Tally()
    chunks = _decoded(listing, framing, skip_broken, tally, progress)
    if not cache:
        pixels = np.concatenate([*chunks])
        return Read(
            Pixels(pixels if tally.gray < tally.items else pixels[:, :1].copy()),
            tuple(tally.sentences()),
            tuple(tally.broken),
        )
    from filelock import FileLock

    key = json.dumps([VERSION, listing.key, asdict(framing), skip_broken])
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
    listing: Listing, framing: Framing, skip_broken: bool, tally: Tally, progress: Progress | None
) -> Iterator[np.ndarray]:
    """RGB pixels ``[k, 3, h, w]`` a few images at a time, decoded on all cores; ``tally`` keeps the count."""
    from PIL import Image

    def one(index: int) -> tuple[np.ndarray, bool, list[str]] | Exception:
        try:
            image, notes = decode(listing.content(index), framing)
            return np.asarray(image.convert("RGB")).transpose(2, 0, 1), image.mode == "L", notes
        except (*UNREADABLE, Image.DecompressionBombError) as problem:
            return problem

    Image.init()  # loads Pillow's decoders, which is not for threads
    with ThreadPoolExecutor(min(32, os.cpu_count() or 1)) as pool:
        for at in range(0, listing.count, AT_ONCE):
            part = range(at, min(at + AT_ONCE, listing.count))
            chunk = []
            for index, result in zip(part, pool.map(one, part), strict=True):
                if isinstance(result, Exception):
                    _broken(listing.name(index), result, skip_broken, tally)
                    continue
                pixels, gray, notes = result
                tally.notes.update(notes)
                tally.gray += gray
                tally.items += 1
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


def _broken(name: str, problem: Exception, skip_broken: bool, tally: Tally) -> None:
    if not skip_broken:
        raise UserError(
            f"Cannot read the image {name}: {problem}. Expected a whole image file; --skip_broken true leaves such files out."
        ) from problem
    tally.broken.append(name)


def _mixed(first: tuple[str, tuple[int, ...]], name: str, shape: tuple[int, ...]) -> UserError:
    return UserError(
        f"The images have different sizes: {first[0]} is {first[1][2]}x{first[1][1]}, {name} is {shape[2]}x{shape[1]}. "
        "Expected one size, or --image_size N."
    )


def decode(content: Any, framing: Framing) -> tuple[Image, list[str]]:
    """A PIL image of mode L or RGB from encoded bytes or a PIL image, and what was done to it."""
    from PIL import Image, ImageOps

    notes = []
    image = Image.open(io.BytesIO(content)) if isinstance(content, bytes) else content
    if getattr(image, "n_frames", 1) > 1:
        notes.append("animated (the first frame was taken)")
        image.seek(0)
    image.load()
    image = ImageOps.exif_transpose(image)
    mode = image.mode
    if mode in ("I;16", "I;16B", "I;16L", "I", "F"):
        values = np.asarray(image, dtype=np.float64)
        if not np.isfinite(values).all() or values.min() < 0 or (mode == "I" and values.max() > 65535):
            raise ValueError(f"pixels from {values.min():g} to {values.max():g}, not 0 to 65535")
        top = 65535.0 if mode != "F" else max(1.0, float(values.max()))
        image = Image.fromarray(np.round(values.clip(0, top) / top * 255).astype(np.uint8))
        notes.append("converted from 16 bits to 8")
    elif mode in ("RGBA", "LA", "PA") or (mode == "P" and "transparency" in image.info):
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image).convert("L" if mode == "LA" else "RGB")
        notes.append("laid on white where transparent")
    elif mode not in ("L", "RGB"):
        image = image.convert("L" if mode in GRAY_MODES else "RGB")
        notes.append(f"converted from {mode} to {image.mode}")
    return framing(image), notes
