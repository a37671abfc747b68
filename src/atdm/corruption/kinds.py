"""The kinds of corruption: what each does to one item."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float

from ..errors import UserError, expect

Item = Float[np.ndarray, "*item"]


def _within(name: str, value: float, low: float, high: float) -> None:
    expect(low <= value <= high, f"{name} of the corruption", value, f"a number from {low:g} to {high:g}")


@dataclass(frozen=True)
class Corruption:
    """One kind of corruption.

    Args:
        share: probability that an item is touched.
    """

    share: float = 1.0

    images_only = False
    limits: ClassVar[tuple[tuple[str, float, float], ...]] = ()  # options of the kind, the least and the most of each

    def __post_init__(self) -> None:
        for name, low, high in (("share", 0, 1), *self.limits):
            _within(name, getattr(self, name), low, high)

    def draw(self, shape: tuple[int, ...], rng: np.random.Generator) -> dict[str, Any]:
        """How an item of that shape is damaged: numbers (and masks, counted in the truth) that define it."""
        return {}

    def damage(self, x: Item, drawn: dict[str, Any], rng: np.random.Generator) -> Item:
        """The damaged item, given what :meth:`draw` drew."""
        raise UserError(f"{type(self).__name__} does nothing.")


@dataclass(frozen=True)
class Gaussian(Corruption):
    """Additive Gaussian noise, not clipped. With ``std_max`` each item has its own level, uniform in [std, std_max]."""

    std: float = 0.2
    std_max: float | None = None
    limits = (("std", 0, 100),)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.std_max is not None:
            _within("std_max", self.std_max, self.std, 100)

    def draw(self, shape: tuple[int, ...], rng: np.random.Generator) -> dict[str, Any]:
        return {"std": self.std if self.std_max is None else rng.uniform(self.std, self.std_max)}

    def damage(self, x: Item, drawn: dict[str, Any], rng: np.random.Generator) -> Item:
        return x + np.float32(drawn["std"]) * rng.standard_normal(x.shape, dtype=np.float32)


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

    def draw(self, shape: tuple[int, ...], rng: np.random.Generator) -> dict[str, Any]:
        edge = 2.0 if len(shape) == 1 else 1.0
        low, high = -edge if self.low is None else self.low, edge if self.high is None else self.high
        if low >= high:
            raise UserError(f"The box of the outliers is [{low}, {high}]. Expected low < high.")
        return {"low": low, "high": high}

    def damage(self, x: Item, drawn: dict[str, Any], rng: np.random.Generator) -> Item:
        return rng.uniform(drawn["low"], drawn["high"], x.shape).astype(np.float32)


@dataclass(frozen=True)
class SaltPepper(Corruption):
    """A share ``rate`` of the pixels becomes black or white."""

    rate: float = 0.1
    images_only = True
    limits = (("rate", 0, 1),)

    def draw(self, shape: tuple[int, ...], rng: np.random.Generator) -> dict[str, Any]:
        hit = rng.random(shape[1:]) < self.rate
        white = rng.random(shape[1:]) < 0.5
        return {"black": hit & ~white, "white": hit & white}

    def damage(self, x: Item, drawn: dict[str, Any], rng: np.random.Generator) -> Item:
        return np.where(drawn["white"], np.float32(1), np.where(drawn["black"], np.float32(-1), x))


@dataclass(frozen=True)
class Missing(Corruption):
    """A share ``rate`` of the pixels (of a vector: of its coordinates) becomes 0, in images mid-grey."""

    rate: float = 0.3
    limits = (("rate", 0, 1),)

    def draw(self, shape: tuple[int, ...], rng: np.random.Generator) -> dict[str, Any]:
        return {"missing": rng.random(shape if len(shape) == 1 else shape[1:]) < self.rate}

    def damage(self, x: Item, drawn: dict[str, Any], rng: np.random.Generator) -> Item:
        return np.where(drawn["missing"], np.float32(0), x)


@dataclass(frozen=True)
class Patch(Corruption):
    """A square of side ``size`` (as a share of the image's shorter side) becomes mid-grey (0)."""

    size: float = 0.4
    images_only = True
    limits = (("size", 0, 1),)

    def draw(self, shape: tuple[int, ...], rng: np.random.Generator) -> dict[str, Any]:
        height, width = shape[1:]
        side = max(1, round(self.size * min(height, width)))
        top, left = rng.integers(height - side + 1), rng.integers(width - side + 1)
        return {"top": int(top), "left": int(left), "side": side}

    def damage(self, x: Item, drawn: dict[str, Any], rng: np.random.Generator) -> Item:
        top, left, side = drawn["top"], drawn["left"], drawn["side"]
        out = x.copy()
        out[:, top : top + side, left : left + side] = 0
        return out


@dataclass(frozen=True)
class Blur(Corruption):
    """Gaussian blur of ``sigma`` pixels."""

    sigma: float = 1.0
    images_only = True
    limits = (("sigma", 0, 100),)

    def draw(self, shape: tuple[int, ...], rng: np.random.Generator) -> dict[str, Any]:
        return {"sigma": self.sigma}

    def damage(self, x: Item, drawn: dict[str, Any], rng: np.random.Generator) -> Item:
        from scipy.ndimage import gaussian_filter

        return gaussian_filter(x, (0, drawn["sigma"], drawn["sigma"]), mode="nearest")


@dataclass(frozen=True)
class Jpeg(Corruption):
    """JPEG at ``quality``; values outside [-1, 1] are clipped, as a file would."""

    quality: int = 30
    images_only = True
    limits = (("quality", 1, 95),)

    def draw(self, shape: tuple[int, ...], rng: np.random.Generator) -> dict[str, Any]:
        return {"quality": self.quality}

    def damage(self, x: Item, drawn: dict[str, Any], rng: np.random.Generator) -> Item:
        from PIL import Image

        pixels = np.round((x.clip(-1, 1) + 1) * 127.5).astype(np.uint8)
        image = Image.fromarray(pixels[0] if len(x) == 1 else pixels.transpose(1, 2, 0))
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=drawn["quality"])
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
