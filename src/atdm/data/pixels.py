"""One encoded image as 8-bit pixels, gray or RGB, whatever its format and mode."""

from __future__ import annotations

import contextlib
import ctypes
import io
import re
import struct
import warnings
from collections.abc import Iterator
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import UserError, first_line

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_PIXELS = 178_956_970  # of one image: the limit at which Pillow stops by default

# Formats that Pillow opens by running another program (Ghostscript), on Windows alone, or not beyond the header.
UNUSED = {"EPS", "WMF", "BUFR", "GRIB", "HDF5", "MPEG"}
GRAY_MODES = ("1", "L", "LA", "La", "I", "I;16", "I;16B", "I;16L", "I;16N", "F")
ALPHA_MODES = ("RGBA", "RGBa", "LA", "La", "PA")
WIDE_MODES = ("I", "I;16", "I;16B", "I;16L", "I;16N", "F")
TOPS = (1, 255, 65535)  # what white may be where the format does not say
ORIENTATION, PHOTOMETRIC = 0x0112, 262
TURNS = {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}  # Exif's orientation -> Image.Transpose


class UnknownScale(Exception):
    """The format does not say which number is white."""


@cache
def formats() -> tuple[str, ...]:
    """The formats that are read; loads Pillow's decoders, which is not for threads."""
    from PIL import Image, _imaging

    Image.init()
    with contextlib.suppress(AttributeError, OSError):  # libtiff prints by itself what Pillow then raises
        library = ctypes.CDLL(_imaging.__file__)
        library.TIFFSetErrorHandler(None)
        library.TIFFSetWarningHandler(None)
    return tuple(name for name in Image.OPEN if name not in UNUSED)


@cache
def suffixes() -> tuple[str, ...]:
    """The endings of image files, in lower case."""
    from PIL import Image

    read = {*formats(), "MPO"}
    return tuple(sorted(ending for ending, name in Image.registered_extensions().items() if name in read))


@contextlib.contextmanager
def limited(max_pixels: int) -> Iterator[None]:
    """Pillow with another limit of pixels."""
    from PIL import Image

    kept, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, max_pixels / 2  # type: ignore[assignment]
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = kept


@contextlib.contextmanager
def settings(max_pixels: int) -> Iterator[None]:
    """Pillow without its warnings, and with another limit of pixels."""
    with limited(max_pixels), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def decode(content: Any, top: float | None = None) -> tuple[Image, list[str]]:
    """A PIL image of mode L or RGB, and what was done to it.

    Damaged metadata are no damage: where an image does not open with them, it is opened without.

    Args:
        content: encoded bytes or a PIL image.
        top: the number that is white in images whose format does not say it (32-bit integers and floats).

    Raises:
        UnknownScale: ``top`` is needed.
        Exception: whatever Pillow raises on a damaged file.
    """
    if not isinstance(content, bytes):
        return _converted(content, top)
    try:
        return _converted(_opened(content), top)
    except UnknownScale:
        raise
    except Exception:
        for bare, note in _without_metadata(content):
            try:
                image, notes = _converted(_opened(bare), top)
            except UnknownScale:
                raise
            except Exception:  # then the first problem says more
                continue
            return image, [note, *notes]
        raise


def why(problem: Exception, max_pixels: int = MAX_PIXELS) -> str:
    """What is wrong with an image, in words."""
    from PIL import Image, UnidentifiedImageError

    if isinstance(problem, UnidentifiedImageError):
        return "it is of no image format that atdm reads"
    if isinstance(problem, Image.DecompressionBombError):
        size = re.search(r"\((\d+) pixels\)", str(problem))
        return f"{f'it has {int(size[1]):,} pixels' if size else 'it is too large'}, and max_pixels is {max_pixels:,}"
    if isinstance(problem, OSError) and problem.strerror:
        return problem.strerror
    if isinstance(problem, MemoryError):
        return "it needs more memory than there is"
    return first_line(problem)


def extent(content: Any) -> tuple[float, float] | None:
    """The least and the largest number in an image whose format does not say which one is white; None for others."""
    image = _opened(content) if isinstance(content, bytes) else content
    if not _scale_is_open(image):
        return None
    values = np.asarray(image)
    return float(values.min()), float(values.max())


def common_top(high: float) -> int:
    """The number that is white in a set of images, of which ``high`` is the largest one.

    Raises:
        UserError: the scale cannot be determined.
    """
    if 1 < high < 16 or high > TOPS[-1]:
        raise UserError(
            f"The largest number in the images of floats or 32-bit integers is {high:g}, which does not tell which number "
            "is white. Expected images from 0 to 1, 0 to 255 or 0 to 65535. In Python: "
            "Image.fromarray((255 * (x - low) / (high - low)).round().astype('uint8')), one low and high for all."
        )
    return next(top for top in TOPS if high <= top)


# --- opening ----------------------------------------------------------------------------------------------------------
def _opened(content: bytes) -> Image:
    from PIL import Image

    if not content:
        raise ValueError("it is empty")
    return Image.open(io.BytesIO(content), formats=formats())


def _without_metadata(content: bytes) -> list[tuple[bytes, str]]:
    """A PNG or JPEG without what says nothing on its pixels, then also without its transparency; and what is to be said of each.

    Nothing for other formats, or where the parts cannot be found.
    """
    bare: list[tuple[bytes, str]] = []
    try:
        if content.startswith(b"\x89PNG\r\n\x1a\n"):
            bare.append((_bare_png(content, b"tRNS"), "read without its metadata, which are damaged"))
            bare.append((_bare_png(content), "read without its transparency, which is damaged"))
        if content.startswith(b"\xff\xd8"):
            bare.append((_bare_jpeg(content), "read without its metadata, which are damaged"))
    except (struct.error, IndexError):
        pass
    return [(each, note) for each, note in bare if each != content]


def _bare_png(content: bytes, *kept: bytes) -> bytes:
    """The critical chunks, and those of the names to be ``kept``."""
    parts, at = [content[:8]], 8
    while at + 12 <= len(content):
        (length,) = struct.unpack_from(">I", content, at)
        name = content[at + 4 : at + 8]
        if name[:1].isupper() or name in kept:
            parts.append(content[at : at + 12 + length])
        at += 12 + length
    return b"".join(parts)


def _bare_jpeg(content: bytes) -> bytes:
    """All segments but comments and those of applications; Adobe's stays, for it tells the color space."""
    kept, at = [content[:2]], 2
    while content[at] == 0xFF and content[at + 1] != 0xDA:
        (length,) = struct.unpack_from(">H", content, at + 2)
        marker = content[at + 1]
        if marker != 0xFE and not (0xE0 <= marker <= 0xEF and marker != 0xEE):
            kept.append(content[at : at + 2 + length])
        at += 2 + length
    return b"".join([*kept, content[at:]])


# --- converting -------------------------------------------------------------------------------------------------------
def _scale_is_open(image: Image) -> bool:
    return image.mode == "F" or (image.mode == "I" and image.format not in ("PNG", "PPM"))


def _converted(image: Image, top: float | None) -> tuple[Image, list[str]]:
    from PIL import Image

    notes: list[str] = []
    stored = [tile[3] for tile in getattr(image, "tile", ())][:1]
    image.load()
    picture = image
    if image.mode in WIDE_MODES:
        picture, key = _narrowed(image, top, notes)
    else:
        key = _color_key(image, stored[0] if stored else None)
    if key is not None:
        pixels = np.array(picture.convert("L" if picture.mode in GRAY_MODES else "RGB"))
        pixels[key] = 255
        picture = _from(pixels)
        notes.append("laid on white where transparent")
    elif picture.mode in ALPHA_MODES or picture.has_transparency_data:
        gray = picture.mode in ("LA", "La")
        picture = picture.convert("LA").convert("RGBA") if picture.mode == "La" else picture.convert("RGBA")
        empty = picture.getchannel("A").getextrema()[1] == 0
        white = Image.new("RGBA", picture.size, "white")
        picture = Image.alpha_composite(white, picture).convert("L" if gray else "RGB")
        notes.append("wholly transparent, and so white" if empty else "laid on white where transparent")
    elif picture.mode not in ("L", "RGB"):
        mode = "L" if picture.mode in GRAY_MODES else "RGB"
        notes.append(f"converted from {picture.mode} to {mode}")
        picture = picture.convert(mode)
    notes += _look_further(image)
    return _upright(image, picture, notes), notes


def _narrowed(image: Image, top: float | None, notes: list[str]) -> tuple[Image, np.ndarray | None]:
    """16 and 32 bits as 8, and the places of the color that is transparent."""
    values = np.asarray(image, dtype=np.float64)
    low, high = (values.min(), values.max()) if np.isfinite(values).all() else (np.nan, np.nan)
    if not (low >= 0 and high <= TOPS[-1]):
        raise ValueError(f"pixels from {low:g} to {high:g}, not 0 to {TOPS[-1]}")
    white = float(TOPS[-1])
    if _scale_is_open(image):
        if top is None:
            raise UnknownScale
        white = top
        notes.append(f"converted from {'floats' if image.mode == 'F' else '32 bits'} to 8 bits ({white:g} is white)")
    else:
        notes.append("converted from 16 bits to 8")
    key = values == image.info["transparency"] if isinstance(image.info.get("transparency"), int) else None
    values = values.clip(0, white) / white
    if getattr(image, "tag_v2", {}).get(PHOTOMETRIC) == 0:  # white is zero; Pillow minds it with 8 bits only
        values = 1 - values
    return _from(np.round(values * 255).astype(np.uint8)), key


def _from(pixels: np.ndarray) -> Image:
    from PIL import Image

    return Image.fromarray(pixels)


def _color_key(image: Image, stored: Any) -> np.ndarray | None:
    """The places of the one color that a PNG of gray or RGB calls transparent; None where it names none.

    Args:
        stored: how the file holds the pixels, in Pillow's words: it tells the color in the same bits.
    """
    color = image.info.get("transparency")
    if image.mode not in ("1", "L", "RGB") or not isinstance(color, int | tuple):
        return None
    if image.mode == "RGB":
        return (np.asarray(image) == (np.asarray(color) >> (8 if stored == "RGB;16B" else 0))).all(-1)
    return np.asarray(image.convert("L")) == np.asarray(color) * {"L;2": 85, "L;4": 17}.get(stored, 1)


def _look_further(image: Image) -> list[str]:
    """Whether there are more frames; damage there is none of the first."""
    try:
        return ["animated (the first frame was taken)"] if getattr(image, "is_animated", False) else []
    except Exception:  # whatever its decoder raises
        return ["animated (the first frame was taken)"]


def _upright(image: Image, picture: Image, notes: list[str]) -> Image:
    """Turned as the metadata say, where these can be read."""
    from PIL import Image

    try:
        turn = TURNS.get(image.getexif().get(ORIENTATION, 1))
    except Exception:  # whatever the reader of the metadata raises
        notes.append("taken as stored: its orientation cannot be read")
        return picture
    return picture if turn is None else picture.transpose(Image.Transpose(turn))
