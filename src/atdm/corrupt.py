"""Dirt with a known truth: seeded corruptions, pure per item, that record which items they touched and how.

The randomness of item i depends on (seed, i) alone, so any item by itself comes out as it does in the whole set.
"""

from __future__ import annotations

import dataclasses
import io
import json
import os
import re
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from . import spec as specs
from .errors import UserError


def _within(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise UserError(f"{name} of the corruption is {value}. Expected a number from {low:g} to {high:g}.")


@dataclass(frozen=True)
class Corruption:
    """One kind of dirt.

    Args:
        share: probability that an item is touched.
    """

    share: float = 1.0

    images_only = False

    def __post_init__(self) -> None:
        _within("share", self.share, 0, 1)

    def damage(self, x: Float[np.ndarray, "*item"], rng: np.random.Generator) -> Float[np.ndarray, "*item"]:
        """The damaged item."""
        raise UserError(f"{type(self).__name__} does nothing.")


@dataclass(frozen=True)
class Gaussian(Corruption):
    """Additive Gaussian noise, not clipped. With ``std_max`` each item has its own level, uniform in [std, std_max]."""

    std: float = 0.2
    std_max: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        _within("std", self.std, 0, 100)
        if self.std_max is not None:
            _within("std_max", self.std_max, self.std, 100)

    def damage(self, x: Float[np.ndarray, "*item"], rng: np.random.Generator) -> Float[np.ndarray, "*item"]:
        std = self.std if self.std_max is None else rng.uniform(self.std, self.std_max)
        return x + np.float32(std) * rng.standard_normal(x.shape, dtype=np.float32)


@dataclass(frozen=True)
class Outliers(Corruption):
    """The item is replaced by a uniform draw from a box: [-2, 2] for vectors and [-1, 1] for images by default."""

    low: float | None = None
    high: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for edge in (self.low, self.high):
            if edge is not None:
                _within("edge of the box", edge, -1e6, 1e6)

    def damage(self, x: Float[np.ndarray, "*item"], rng: np.random.Generator) -> Float[np.ndarray, "*item"]:
        edge = 2.0 if x.ndim == 1 else 1.0
        low, high = -edge if self.low is None else self.low, edge if self.high is None else self.high
        if low >= high:
            raise UserError(f"The box of the outliers is [{low}, {high}]. Expected low < high.")
        return rng.uniform(low, high, x.shape).astype(np.float32)


@dataclass(frozen=True)
class SaltPepper(Corruption):
    """A share ``rate`` of the pixels becomes black or white."""

    rate: float = 0.1
    images_only = True

    def __post_init__(self) -> None:
        super().__post_init__()
        _within("rate", self.rate, 0, 1)

    def damage(self, x: Float[np.ndarray, "*item"], rng: np.random.Generator) -> Float[np.ndarray, "*item"]:
        hit = rng.random(x.shape[1:]) < self.rate
        white = rng.random(x.shape[1:]) < 0.5
        return np.where(hit, np.where(white, np.float32(1), np.float32(-1)), x)


@dataclass(frozen=True)
class Missing(Corruption):
    """A share ``rate`` of the pixels becomes mid-grey (0)."""

    rate: float = 0.3
    images_only = True

    def __post_init__(self) -> None:
        super().__post_init__()
        _within("rate", self.rate, 0, 1)

    def damage(self, x: Float[np.ndarray, "*item"], rng: np.random.Generator) -> Float[np.ndarray, "*item"]:
        return np.where(rng.random(x.shape[1:]) < self.rate, np.float32(0), x)


@dataclass(frozen=True)
class Patch(Corruption):
    """A square of side ``size`` (as a share of the image's shorter side) becomes mid-grey (0)."""

    size: float = 0.4
    images_only = True

    def __post_init__(self) -> None:
        super().__post_init__()
        _within("size", self.size, 0, 1)

    def damage(self, x: Float[np.ndarray, "*item"], rng: np.random.Generator) -> Float[np.ndarray, "*item"]:
        height, width = x.shape[1:]
        side = max(1, round(self.size * min(height, width)))
        top, left = rng.integers(height - side + 1), rng.integers(width - side + 1)
        out = x.copy()
        out[:, top : top + side, left : left + side] = 0
        return out


@dataclass(frozen=True)
class Blur(Corruption):
    """Gaussian blur of ``sigma`` pixels."""

    sigma: float = 1.0
    images_only = True

    def __post_init__(self) -> None:
        super().__post_init__()
        _within("sigma", self.sigma, 0, 100)

    def damage(self, x: Float[np.ndarray, "*item"], rng: np.random.Generator) -> Float[np.ndarray, "*item"]:
        from scipy.ndimage import gaussian_filter

        return gaussian_filter(x, (0, self.sigma, self.sigma), mode="nearest")


@dataclass(frozen=True)
class Jpeg(Corruption):
    """JPEG at ``quality``; values outside [-1, 1] are clipped, as a file would."""

    quality: int = 30
    images_only = True

    def __post_init__(self) -> None:
        super().__post_init__()
        _within("quality", self.quality, 1, 95)

    def damage(self, x: Float[np.ndarray, "*item"], rng: np.random.Generator) -> Float[np.ndarray, "*item"]:
        from PIL import Image

        pixels = np.round((x.clip(-1, 1) + 1) * 127.5).astype(np.uint8)
        image = Image.fromarray(pixels[0] if len(x) == 1 else pixels.transpose(1, 2, 0))
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=self.quality)
        back = np.asarray(Image.open(buffer), dtype=np.float32).reshape(x.shape[1], x.shape[2], -1)
        return back.transpose(2, 0, 1) / np.float32(127.5) - 1


CORRUPTIONS: dict[str, type[Corruption]] = {
    "gaussian": Gaussian,
    "outliers": Outliers,
    "salt_pepper": SaltPepper,
    "missing": Missing,
    "patch": Patch,
    "blur": Blur,
    "jpeg": Jpeg,
}


@dataclass(frozen=True)
class Truth:
    """What a corruption did, apart from what training sees.

    Args:
        touched: which items were damaged, by each part of the corruption.
        spec: the corruption.
        seed: of it.
    """

    touched: Bool[np.ndarray, "parts n"]
    spec: str
    seed: int
    about: dict[str, Any] = field(default_factory=dict)

    @property
    def dirty(self) -> Bool[np.ndarray, "n"]:
        """Which items were damaged at all."""
        return np.asarray(self.touched.any(0))

    def save(self, path: Path) -> None:
        """Write ``path`` (.npz, no objects), whole or not at all."""
        scratch = path.with_suffix(".partial.npz")
        about = json.dumps({"spec": self.spec, "seed": self.seed, **self.about})
        np.savez_compressed(scratch, touched=self.touched, about=np.array(about))
        os.replace(scratch, path)

    @classmethod
    def load(cls, path: Path) -> Truth:
        """What :meth:`save` wrote.

        Raises:
            UserError: there is no such file, or it is not a truth file.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                about = json.loads(str(file["about"]))
                return cls(file["touched"], about.pop("spec"), about.pop("seed"), about)
        except FileNotFoundError:
            raise UserError(f"There is no truth file {path}.") from None
        except (OSError, ValueError, KeyError, EOFError, TypeError, AttributeError, zipfile.BadZipFile) as problem:
            raise UserError(f"{path} is not a truth file. Expected an .npz that atdm corrupt wrote.") from problem


def parse_corruption(spec: str) -> tuple[Corruption, ...]:
    """The parts of a spec: ``gaussian:share=0.9,std=0.2``, several joined by '+', or ``none``.

    Raises:
        UserError: an unknown corruption or option, or a value out of range.
    """
    if spec.strip() == "none":
        return ()
    return tuple(
        specs.build("corruption", part, CORRUPTIONS) for part in re.split(r"\+(?!\d)", spec)
    )  # 1e+0 is a number


def describe_corruption(parts: tuple[Corruption, ...]) -> str:
    """The spec that :func:`parse_corruption` reads back."""
    names = {kind: name for name, kind in CORRUPTIONS.items()}
    return "+".join(specs.describe(names[type(p)], p) for p in parts) or "none"


def corrupt_item(
    x: Float[Tensor, "*item"], parts: tuple[Corruption, ...], seed: int, index: int
) -> tuple[Float[Tensor, "*item"], list[bool]]:
    """Item ``index`` of a data set as training sees it, and which parts touched it."""
    out, touched = x.numpy(), []
    for place, part in enumerate(parts):
        rng = np.random.Generator(np.random.Philox(key=[seed & (2**64 - 1), index * 64 + place]))
        touched.append(bool(rng.random() < part.share))
        if touched[-1]:
            out = part.damage(out, rng)
    return (torch.from_numpy(np.ascontiguousarray(out)) if any(touched) else x), touched


def corrupt(x: Float[Tensor, "n *item"], spec: str, seed: int = 0) -> tuple[Float[Tensor, "n *item"], Truth]:
    """A corrupted copy of a data set and the truth about it.

    Raises:
        UserError: the spec is wrong or does not fit the data (images only), or the data hold NaN.
    """
    parts = parse_corruption(spec)
    if not bool(x.isfinite().all()):
        raise UserError("The data hold values that are not finite. Expected numbers.")
    for part in parts:
        if part.images_only and x.dim() != 4:
            raise UserError(
                f"The corruption '{describe_corruption((part,))}' is for images. Expected gaussian or outliers for vectors."
            )
    out, touched = x.clone(), np.zeros((len(parts), len(x)), dtype=bool)
    for index in range(len(x) if parts else 0):
        out[index], hits = corrupt_item(x[index], parts, seed, index)
        touched[:, index] = hits
    about = {"items": len(x), "parts": [dataclasses.asdict(p) | {"kind": type(p).__name__} for p in parts]}
    return out, Truth(touched, describe_corruption(parts), seed, about)
