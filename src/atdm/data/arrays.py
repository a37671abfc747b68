"""Arrays of items in .npz and .npy files, their layout and unit checked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Shaped

from .. import memory
from ..errors import UserError, first_line
from .listing import require_file

NAMES = ("samples", "arr_0")  # what atdm writes, and what numpy and guided-diffusion do
TOO_BRIGHT = 1.5  # images of which nothing is below 0 end at 1
TOO_WIDE = 16.0  # root mean square of images, noise included, that are in [-1, 1]
USUAL = (0.02, 50.0)  # root mean square of vectors that noise of std 1 can hide
AS_BYTES, BYTES_OF_BITS, AS_FLOATS = "x.astype('uint8')", "255 * x.astype('uint8')", "x.astype('float32')"
EXPECTED = "Expected the array 'samples' of .npz, as atdm corrupt and atdm sample write it, or the only array there."


def read(path: Path) -> tuple[Shaped[np.ndarray, "n *item"], tuple[str, ...]]:
    """The items of an .npz or .npy file: floats, or images of bytes, channels first or last, or gray without channels.

    Returns:
        Vectors as float32 and images [n, c, h, w] as float32 in [-1, 1] or uint8; and sentences about them.

    Raises:
        UserError: no such file, none or too many arrays in it, a layout or number that is no item's, images that are plainly
            not in [-1, 1], or more than memory holds.
    """
    name, x = _opened(path)
    named = f"{path} (array '{name}')" if name else str(path)
    if x.dtype.kind != "f" and (x.dtype != np.uint8 or x.ndim == 2):
        raise UserError(
            f"{named} holds {x.dtype} of shape {list(x.shape)}. Expected {_EXPECTED_NUMBERS}{_conversion(path, name, x)}"
        )
    x = _laid_out(x, named)
    if x.dtype == np.uint8:
        return x, ()
    memory.require(4 * x.size, f"The array of {path} as float32", "Expected one with fewer items.")
    with np.errstate(over="ignore"):
        x = x.astype(np.float32)
    if not np.isfinite(x).all():
        raise UserError(f"{named} holds values that are not finite. Expected numbers.")
    return x, _unit(x, path, name, named) if x.ndim == 4 and len(x) else _vectors(x, named)


_EXPECTED_NUMBERS = "floats, [n, d] or [n, 1 or 3 channels, height, width], or images of bytes (uint8)"


def _opened(path: Path) -> tuple[str, np.ndarray]:
    """The array that holds the items, and its name in the file."""
    require_file(path)
    try:
        file = np.load(path, allow_pickle=False, mmap_mode="r" if path.suffix == ".npy" else None)
        if isinstance(file, np.ndarray):
            memory.require(file.nbytes, f"The array of {path}", "Expected one with fewer items.")
            return "", np.array(file)
        with file:
            names = [name for name in NAMES if name in file.files] or (file.files if len(file.files) == 1 else [])
            if not names:
                held = ", ".join(file.files) or "nothing"
                raise UserError(f"{path} holds no array 'samples' but {held}. {EXPECTED}")
            _require_memory(file.zip, names[0], path)
            return names[0], file[names[0]]
    except (UserError, MemoryError):
        raise
    except FileNotFoundError:
        raise UserError(f"There is no file {path}. Expected an .npz that atdm corrupt or atdm sample wrote.") from None
    except Exception as problem:  # numpy, zipfile and zlib each raise their own on damaged files
        reason = "Python objects, which are not read" if "allow_pickle" in str(problem) else first_line(problem)
        raise UserError(f"{path} holds no array that can be read ({reason}). {EXPECTED}") from problem


def _require_memory(archive: Any, name: str, path: Path) -> None:
    with archive.open(f"{name}.npy") as file:
        version = np.lib.format.read_magic(file)
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, kind = read_header(file)
    size = float(np.prod([float(side) for side in shape])) * kind.itemsize
    memory.require(size, f"The array '{name}' of {path}", "Expected one with fewer items.")


def _laid_out(x: np.ndarray, named: str) -> np.ndarray:
    """Vectors as they are, images with channels first.

    Raises:
        UserError: neither.
    """
    shape = x.shape
    if x.ndim > 1 and 0 in shape[1:]:
        raise UserError(
            f"{named} holds items of shape {list(shape[1:])}, which are empty. Expected {_EXPECTED_NUMBERS}."
        )
    if x.dtype == np.uint8 and x.ndim == 3:
        return x[:, None]
    if x.ndim == 2 and x.dtype != np.uint8:
        return x
    first, last = (x.ndim == 4 and shape[axis] in (1, 3) for axis in (1, 3))
    if first and last:  # the sides of most images are equal
        last = shape[1] == shape[2] and shape[2] != shape[3]
        first = not last
    if first:
        return x
    if last:
        return np.ascontiguousarray(x.transpose(0, 3, 1, 2))
    alpha = " In Python: x[..., :3] drops the transparency." if x.ndim == 4 and shape[3] == 4 else ""
    raise UserError(f"{named} holds {x.dtype} of shape {list(shape)}. Expected {_EXPECTED_NUMBERS}.{alpha}")


def _line(path: Path, name: str, what: str) -> str:
    """A line of Python that writes ``what`` of the array ``x`` to a new file."""
    taken = f"np.load({str(path)!r})" + (f"[{name!r}]" if name else "")
    return f"In Python: x = {taken}; np.savez({str(path.with_name(f'{path.stem}-converted.npz'))!r}, samples={what})"


def _conversion(path: Path, name: str, x: np.ndarray) -> str:
    """The line that makes floats of vectors, and bytes or floats in [-1, 1] of images, of other numbers."""
    if x.ndim not in (2, 3, 4) or x.dtype.kind not in "iub" or not x.size:
        return "."
    low, high = int(x.min()), int(x.max())
    if x.ndim == 2:
        what = AS_FLOATS
    elif x.dtype == bool:
        what = BYTES_OF_BITS
    else:
        what = AS_BYTES if low >= 0 and high <= 255 else _to_unit(low, high)
    return f". {_line(path, name, what)}"


def _to_unit(low: float, high: float) -> str:
    """The expression that brings images to [-1, 1]."""
    if low >= 0:
        top = next((top for top in (1, 16, 255, 65535) if high <= top), high)
        return f"x / {top / 2:g} - 1"
    if high <= 128 and low >= -128:
        return "x / 128"
    return f"(x - {low:g}) / {(high - low) / 2:g} - 1"


def _unit(x: np.ndarray, path: Path, name: str, named: str) -> tuple[str, ...]:
    """What can be said against floats as images in [-1, 1]. Noise goes beyond, so nothing is judged by a few values.

    Raises:
        UserError: they plainly have another unit.
    """
    low, high, rms = float(x.min()), float(x.max()), float(np.sqrt(np.square(x, dtype=np.float64).mean()))
    if (low >= 0 and high > TOO_BRIGHT) or rms > TOO_WIDE:
        raise UserError(
            f"{named} holds images from {low:g} to {high:g}. Expected images in [-1, 1], give or take noise. "
            f"{_line(path, name, _to_unit(low, high))}"
        )
    if low >= 0:
        return (
            f"In {named} nothing is below 0, and images are taken to be in [-1, 1]. If these are in [0, 1], convert them. "
            f"{_line(path, name, '2 * x - 1')}",
        )
    return ()


def _vectors(x: np.ndarray, named: str) -> tuple[str, ...]:
    """A warning where noise of std 1 and less is too much or too little for vectors."""
    rms = float(np.sqrt(np.square(x, dtype=np.float64).mean())) if x.size else 1.0
    if rms == 0 or USUAL[0] <= rms <= USUAL[1]:
        return ()
    return (
        f"The vectors in {named} have a root mean square of {rms:.3g}, and the noise of training is made for about 1. "
        f"Expected vectors on that scale, such as x / {rms:.3g}.",
    )
