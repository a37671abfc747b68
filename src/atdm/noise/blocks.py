"""The noise of image files, from the luminance of their 8x8 blocks: what chroma subsampling and quantization leave of it.

Lossy formats destroy the fine color patterns that :mod:`~atdm.noise.filters` looks at: chroma is stored at half size, and fine
detail is rounded away. Luminance keeps its noise. In blocks of little texture the fine frequencies of a block hold the noise
and next to nothing else; what middle frequencies say of texture is taken off. JPEG rounds each frequency to a multiple of a
step that the file tells, so the noise before rounding follows in closed form.

Stds are in [-1, 1]; luminance is 0.299 R + 0.587 G + 0.114 B, which of white noise in color keeps 0.67 (ITU-R BT.601).
"""

from __future__ import annotations

import io
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from .mixture import SEEN

if TYPE_CHECKING:
    from PIL.Image import Image

SIDE = 8
WINDOW = 128  # pixels of a side that are looked at
LEAST = 24  # pixels of a side: nine blocks
SMOOTH = 0.2  # share of the blocks, those of least texture
TEXTURE = 0.15  # power of texture in fine frequencies over that in middle ones
RISING = 0.36, 0.85  # noise is where fine frequencies are above the first times middle ones to the power of the second,
EVEN = 0.9  # alike in all smooth blocks: the geometric over the arithmetic mean of their fine levels,
ROUND = 0.4  # and alike in all directions: the least over the largest level of the sectors
CLIPPED = 3.0  # stds of luminance from black or white within which noise is clipped
ROUNDING = 1 / 127.5
ROUNDED = 0.2  # stds of luminance below this share of the quantization steps are lost, and what is there may come from rounding
FLOOR = 0.02  # level below which what rounding took is not made up for
LUMA = (0.299, 0.587, 0.114)
KEPT = float(np.linalg.norm(LUMA))  # std of luminance over that of white noise in color
MODES = ("L", "LA", "RGB", "RGBA", "P", "CMYK", "YCbCr", "1")

_DOWN, _ACROSS = np.indices((SIDE, SIDE))
MIDDLE, FINE = (_DOWN + _ACROSS >= 3) & (_DOWN + _ACROSS <= 5), _DOWN + _ACROSS >= 7
SECTORS = [FINE & (_DOWN - _ACROSS > 2), FINE & (_ACROSS - _DOWN > 2), FINE & (abs(_DOWN - _ACROSS) <= 2)]
BANDS = [MIDDLE, FINE, *SECTORS, FINE]  # of which the levels are measured, the last as a geometric mean over blocks
STDS = np.geomspace(0.005, 1.5, 80)  # of luminance, at which the response of a file is known


def _cosines() -> Float[np.ndarray, "8 8"]:
    k = np.arange(SIDE)
    basis = np.cos((2 * k + 1) * k[:, None] * np.pi / (2 * SIDE)) * np.sqrt(2 / SIDE)
    basis[0] /= np.sqrt(2)
    return basis.astype(np.float32)


DCT = _cosines()


class Blocks(NamedTuple):
    """What is measured in a file.

    Args:
        kind: format and chroma subsampling, as in ``JPEG 4:2:0``.
        size: width and height, pixels.
        steps: quantization steps of the luminance of a JPEG, by frequency; None for other formats.
        gray: the file has no color.
        levels: of the smooth blocks, in each of ``BANDS``: root mean square.
        smooth: how many such blocks there were; 0 where nothing can be measured.
    """

    kind: str
    size: tuple[int, int]
    steps: tuple[int, ...] | None
    gray: bool
    levels: tuple[float, ...]
    smooth: int

    @classmethod
    def from_json(cls, row: list[Any]) -> Blocks:
        """From what ``json`` makes of one."""
        kind, size, steps, gray, levels, smooth = row
        return cls(kind, tuple(size), steps and tuple(steps), gray, tuple(levels), smooth)


def measure(content: Any) -> Blocks:
    """Measure a file.

    Args:
        content: encoded bytes, or a PIL image.

    Raises:
        What Pillow raises on damaged files.
    """
    from PIL import Image

    image = Image.open(io.BytesIO(content)) if isinstance(content, bytes) else content
    kind, steps = _kind(image)
    size, gray = image.size, image.mode in ("L", "LA", "1")
    if image.mode not in MODES or min(size) < LEAST:
        return Blocks(kind, size, steps, gray, (), 0)
    if steps is not None:
        image.draft("L", size)  # decodes luminance alone
    left, top = (max(0, side - WINDOW) // (2 * SIDE) * SIDE for side in size)
    right, bottom = (at + min(WINDOW, side) // SIDE * SIDE for at, side in ((left, size[0]), (top, size[1])))
    pixels = np.asarray(image.convert("L").crop((left, top, right, bottom)), np.float32)
    levels, smooth = _levels(pixels / 127.5 - 1)
    return Blocks(kind, size, steps, gray, levels, smooth)


def _kind(image: Image) -> tuple[str, tuple[int, ...] | None]:
    if image.format in ("JPEG", "MPO"):
        from PIL.JpegImagePlugin import get_sampling

        name = {0: " 4:4:4", 1: " 4:2:2", 2: " 4:2:0"}.get(get_sampling(image), "")
        return "JPEG" + name, tuple(next(iter(getattr(image, "quantization", {}).values()), [])) or None
    return {"WEBP": "WebP", None: "image"}.get(image.format, str(image.format)), None


def _levels(x: Float[np.ndarray, "h w"]) -> tuple[tuple[float, ...], int]:
    h, w = x.shape
    tiles = x.reshape(h // SIDE, SIDE, w // SIDE, SIDE).transpose(0, 2, 1, 3).reshape(-1, SIDE, SIDE)
    power = (DCT @ tiles @ DCT.T) ** 2
    middle, fine, bright = power[:, MIDDLE].mean(1), power[:, FINE].mean(1), np.abs(tiles.mean((1, 2)))

    def smooth(use: Bool[np.ndarray, "blocks"]) -> Int[np.ndarray, "some"]:
        kept = np.flatnonzero(use)
        return kept[np.argsort(middle[kept], kind="stable")[: max(2, round(SMOOTH * len(kept)))]]

    first = float(fine[smooth(bright <= 1)].mean() ** 0.5)
    limit = max(1 - CLIPPED * first - ROUNDING, float(np.quantile(bright, 0.125, method="nearest")))
    kept = smooth(bright <= limit)
    levels = [power[kept][:, band].mean() for band in BANDS[:-1]]
    levels.append(np.exp(np.log(fine[kept] + 1e-12).mean()))
    return tuple(float(level) ** 0.5 for level in levels), len(kept)


@lru_cache(maxsize=1024)
def _response(steps: tuple[int, ...]) -> list[Float[np.ndarray, "stds"]]:
    """Level of each of ``BANDS`` for pure noise of each of ``STDS``, rounded to multiples of ``steps``.

    The mean square of a normal variable of std s rounded to multiples of q is ``q^2 sum_j 2 (2j - 1) P(z > (j - 1/2) q / s)``.
    """
    from scipy.stats import norm

    each = np.asarray(steps, float).reshape(SIDE, SIDE) / 127.5
    out = []
    for band in BANDS:
        q = each[band]
        square = np.zeros((len(STDS), len(q)))
        for j in range(1, int(6 * STDS[-1] / q.min()) + 2):
            tail = norm.sf((j - 0.5) * q / STDS[:, None])
            square += 2 * (2 * j - 1) * tail
            if tail.max() < 1e-9:
                break
        out.append(np.sqrt((square * q**2).mean(1)))
    return out


def _before_rounding(level: float, response: Float[np.ndarray, "stds"]) -> float:
    """The std of luminance that gives this level. Below the floor rounding may have taken any noise: the level is as it is."""
    first = int(np.argmax(response >= FLOOR))
    if level < FLOOR:
        ends = [np.log(FLOOR / 2), np.log(max(STDS[first], FLOOR))]
        at = np.interp(np.log(max(level, 1e-9)), [np.log(FLOOR / 2), np.log(FLOOR)], ends)
        return float(np.exp(at)) if level > FLOOR / 2 else level
    return float(np.exp(np.interp(np.log(level), np.log(response[first:]), np.log(STDS[first:]))))


def noise_std(blocks: Blocks) -> float:
    """Std of the white noise that a file held before it was saved; 0 where it looks clean.

    What the rounding of a JPEG takes is not found: std 0.1 at quality 75, 0.05 at 85.
    """
    if blocks.smooth == 0:
        return 0.0
    levels, step = list(blocks.levels), 0.0
    if blocks.steps is not None and len(blocks.steps) == SIDE**2:
        levels = list(map(_before_rounding, levels, _response(blocks.steps)))
        step = float(np.asarray(blocks.steps).reshape(SIDE, SIDE)[FINE].mean() / 127.5)
    middle, fine, *sectors, geometric = levels
    luminance = max(0.0, (fine**2 - TEXTURE * middle**2) / (1 - TEXTURE)) ** 0.5
    std = luminance / (1.0 if blocks.gray else KEPT)
    white = fine > RISING[0] * middle ** RISING[1] and geometric > EVEN * fine and min(sectors) > ROUND * max(sectors)
    return std if white and std > SEEN and luminance > ROUNDED * step else 0.0
