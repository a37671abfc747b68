"""Dirt with a known truth: seeded corruptions, pure per item, that record which items they touched and how.

The randomness of item i depends on (seed, i) alone, or (seed, i, epoch) where dirt is fresh in every epoch, so any item
by itself comes out as it does in the whole set.
"""

from __future__ import annotations

import dataclasses
import io
import json
import os
import re
import threading
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

Item = Float[np.ndarray, "*item"]


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

    def __post_init__(self) -> None:
        super().__post_init__()
        _within("std", self.std, 0, 100)
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

    def __post_init__(self) -> None:
        super().__post_init__()
        _within("rate", self.rate, 0, 1)

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

    def __post_init__(self) -> None:
        super().__post_init__()
        _within("rate", self.rate, 0, 1)

    def draw(self, shape: tuple[int, ...], rng: np.random.Generator) -> dict[str, Any]:
        return {"missing": rng.random(shape if len(shape) == 1 else shape[1:]) < self.rate}

    def damage(self, x: Item, drawn: dict[str, Any], rng: np.random.Generator) -> Item:
        return np.where(drawn["missing"], np.float32(0), x)


@dataclass(frozen=True)
class Patch(Corruption):
    """A square of side ``size`` (as a share of the image's shorter side) becomes mid-grey (0)."""

    size: float = 0.4
    images_only = True

    def __post_init__(self) -> None:
        super().__post_init__()
        _within("size", self.size, 0, 1)

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

    def __post_init__(self) -> None:
        super().__post_init__()
        _within("sigma", self.sigma, 0, 100)

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

    def __post_init__(self) -> None:
        super().__post_init__()
        _within("quality", self.quality, 1, 95)

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


@dataclass(frozen=True)
class Truth:
    """What a corruption did, apart from what training sees.

    Args:
        touched: which items were damaged, by each part of the corruption.
        spec: the corruption.
        seed: of it.
        about: further facts, such as the options of each part.
        details: how: for each part and each number that defines its damage one value per item, NaN where untouched, such
            as ``details["gaussian"]["std"][i]``. Of a mask it is the number of pixels hit. A second part of the same
            kind is ``gaussian_2``.
    """

    touched: Bool[np.ndarray, "parts n"]
    spec: str
    seed: int
    about: dict[str, Any] = field(default_factory=dict)
    details: dict[str, dict[str, Float[np.ndarray, "n"]]] = field(default_factory=dict)

    @property
    def dirty(self) -> Bool[np.ndarray, "n"]:
        """Which items were damaged at all."""
        return np.asarray(self.touched.any(0))

    def save(self, path: Path) -> None:
        """Write ``path`` (.npz, no objects), whole or not at all."""
        scratch = path.with_suffix(".partial.npz")
        about = json.dumps({"spec": self.spec, "seed": self.seed, **self.about})
        details: Any = {f"{part}/{key}": v for part, values in self.details.items() for key, v in values.items()}
        np.savez_compressed(scratch, touched=self.touched, about=np.array(about), **details)
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
                details: dict[str, dict[str, Any]] = {}
                for name in file.files:
                    part, slash, key = name.partition("/")
                    if slash:
                        details.setdefault(part, {})[key] = file[name]
                return cls(file["touched"], about.pop("spec"), about.pop("seed"), about, details)
        except FileNotFoundError:
            raise UserError(f"There is no truth file {path}.") from None
        except (OSError, ValueError, KeyError, EOFError, TypeError, AttributeError, zipfile.BadZipFile) as problem:
            raise UserError(f"{path} is not a truth file. Expected an .npz that atdm corrupt wrote.") from problem


def parse_corruption(spec: str) -> tuple[Corruption, ...]:
    """The parts of a spec: ``gaussian:share=0.9,std=0.2``, several joined by '+'; ``none`` is no part.

    Raises:
        UserError: an unknown corruption or option, or a value out of range.
    """
    words = re.split(r"\+(?!\d)", spec)  # 1e+0 is a number
    if any(word.strip().partition(":")[0] == "poison" for word in words):
        raise UserError(
            "Poison is made against a model, too slowly to be made on the fly. Make the set first (atdm corrupt --data DATA "
            "--corrupt poison:model=FOLDER --out dirty), then learn from it (--data dirty/samples.npz)."
        )
    parts = tuple(specs.build("corruption", word, CORRUPTIONS) for word in words if word.strip() != "none")
    if len(parts) > PLACES:
        raise UserError(f"The corruption has {len(parts)} parts. Expected at most {PLACES}.")
    return parts


def describe_corruption(parts: tuple[Corruption, ...]) -> str:
    """The spec that :func:`parse_corruption` reads back."""
    return "+".join(specs.describe(_name(p), p) for p in parts) or "none"


def _name(part: Corruption) -> str:
    return next(name for name, kind in CORRUPTIONS.items() if kind is type(part))


class _Streams(threading.local):
    """A generator for each (seed, item, part, epoch), by moving one Philox there: building one takes far longer."""

    def __init__(self) -> None:
        self.bits = np.random.Philox(0)
        self.rng = np.random.Generator(self.bits)
        self.state: Any = np.random.Philox(key=0).state

    def at(self, seed: int, index: int, place: int, epoch: int) -> np.random.Generator:
        self.state["state"]["key"][:] = seed & (2**64 - 1), index * PLACES + place
        self.state["state"]["counter"][3] = epoch
        self.bits.state = self.state
        return self.rng


PLACES = 64  # parts a corruption can have
_streams = _Streams()


def stream(seed: int, index: int, place: int, epoch: int = 0) -> np.random.Generator:
    """The source of randomness of item ``index`` for the part at ``place`` of a corruption; the next call moves it on."""
    return _streams.at(seed, index, place, epoch)


def corrupt_item(
    x: Float[Tensor, "*item"], parts: tuple[Corruption, ...], seed: int, index: int, epoch: int = 0
) -> tuple[Float[Tensor, "*item"], list[dict[str, Any] | None]]:
    """Item ``index`` of a data set as training sees it, and what each part drew for it (None: untouched).

    Args:
        epoch: dirt that is fresh in every epoch counts them; fixed dirt is that of epoch 0.
    """
    out, hits = _damaged(x.numpy(), parts, seed, index, epoch)
    untouched = all(hit is None for hit in hits)
    return (x if untouched else torch.from_numpy(np.ascontiguousarray(out))), hits


def corrupt_rows(
    x: Float[Tensor, "b *item"], parts: tuple[Corruption, ...], seed: int, indices: list[int], epochs: list[int]
) -> None:
    """:func:`corrupt_item` of many rows, in place: ``x[row]`` is item ``indices[row]`` as of epoch ``epochs[row]``."""
    rows = x.numpy()
    for row, index, epoch in zip(rows, indices, epochs, strict=True):
        row[...] = _damaged(row, parts, seed, index, epoch)[0]


def _damaged(x: Any, parts: tuple[Corruption, ...], seed: int, index: int, epoch: int) -> tuple[Any, list[Any]]:
    hits: list[dict[str, Any] | None] = []
    for place, part in enumerate(parts):
        rng = stream(seed, index, place, epoch)
        hits.append(drawn := part.draw(x.shape, rng) if rng.random() < part.share else None)
        if drawn is not None:
            x = part.damage(x, drawn, rng)
    return x, hits


def require_fit(parts: tuple[Corruption, ...], shape: tuple[int, ...]) -> None:
    """Refuse corruptions that items of this shape cannot have.

    Raises:
        UserError: one of the parts is for images, and the items are vectors.
    """
    for part in parts:
        if part.images_only and len(shape) != 3:
            raise UserError(
                f"The corruption '{describe_corruption((part,))}' is for images. "
                f"Expected one of {', '.join(n for n, k in CORRUPTIONS.items() if not k.images_only)} for vectors."
            )


def truth_of(spec: str, items: int, shape: tuple[int, ...], seed: int = 0) -> Truth:
    """The truth about ``items`` items of that shape, known before any of them is read.

    Raises:
        UserError: the spec is wrong or does not fit the data.
    """
    parts = parse_corruption(spec)
    require_fit(parts, shape)
    names = [_name(part) for part in parts]
    touched, details = np.zeros((len(parts), items), dtype=bool), {}
    for place, part in enumerate(parts):
        values = {key: np.full(items, np.nan) for key in part.draw(shape, stream(seed, 0, place))}
        for index in range(items):
            rng = stream(seed, index, place)
            if rng.random() < part.share:
                touched[place, index] = True
                for key, value in part.draw(shape, rng).items():
                    values[key][index] = np.sum(value)  # of a mask: how many
        nth = names[: place + 1].count(names[place])
        details[names[place] if nth == 1 else f"{names[place]}_{nth}"] = values
    about = {"items": items, "parts": [dataclasses.asdict(p) | {"kind": n} for p, n in zip(parts, names, strict=True)]}
    return Truth(touched, describe_corruption(parts), seed, about, details)


def corrupt(x: Float[Tensor, "n *item"], spec: str, seed: int = 0) -> tuple[Float[Tensor, "n *item"], Truth]:
    """A corrupted copy of a data set and the truth about it.

    Raises:
        UserError: the spec is wrong or does not fit the data (images only), or the data hold NaN.
    """
    if not bool(x.isfinite().all()):
        raise UserError("The data hold values that are not finite. Expected numbers.")
    truth = truth_of(spec, len(x), tuple(x.shape[1:]), seed)
    parts, out = parse_corruption(spec), x.clone()
    corrupt_rows(out, parts, seed, [*range(len(x))], [0] * len(x))
    return out, truth
