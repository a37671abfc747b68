"""Corruptions by spec, joined and done to the items of a data set, each with its own randomness.

The randomness of item i depends on (seed, i) alone, or (seed, i, epoch) where corruption is fresh in every epoch, so any item
by itself comes out as it does in the whole set.
"""

from __future__ import annotations

import dataclasses
import re
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from torch import Tensor

from .. import spec as specs
from ..errors import UserError
from .kinds import CORRUPTIONS, Corruption
from .truth import Truth


def parse_corruption(spec: str) -> tuple[Corruption, ...]:
    """The parts of a spec: ``gaussian:share=0.9,std=0.2``, several joined by '+'; ``none`` is no part.

    Raises:
        UserError: an unknown corruption or option, or a value out of range.
    """
    words = re.split(r"\+(?!\d)", spec)  # 1e+0 is a number
    if any(word.strip().partition(":")[0] == "poison" for word in words):
        raise UserError(
            "Poison is made against a model, too slowly to be made on the fly. Make the set first (atdm corrupt --data DATA "
            "--corrupt poison:model=FOLDER --out noisy), then learn from it (--data noisy/samples.npz)."
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


PLACES = 64  # parts a corruption can have


class _Philox(threading.local):
    """The generator that :func:`item_generator` moves: building one for each item takes far longer."""

    def __init__(self) -> None:
        self.bits = np.random.Philox(0)
        self.rng = np.random.Generator(self.bits)
        self.state: Any = np.random.Philox(key=0).state


_philox = _Philox()


def item_generator(seed: int, index: int, part: int, epoch: int = 0) -> np.random.Generator:
    """The source of randomness of item ``index`` for part number ``part`` of a corruption; the next call moves it on."""
    state = _philox.state
    state["state"]["key"][:] = seed & (2**64 - 1), index * PLACES + part
    state["state"]["counter"][3] = epoch
    _philox.bits.state = state
    return _philox.rng


def corrupt_items(
    x: Float[Tensor, "b *item"], parts: tuple[Corruption, ...], seed: int, indices: list[int], epochs: list[int]
) -> None:
    """Items of a data set as training sees them, in place: ``x[row]`` is item ``indices[row]`` as of epoch ``epochs[row]``.

    Args:
        epochs: corruption that is fresh in every epoch counts them; fixed corruption is that of epoch 0.
    """
    items = x.numpy()
    for row, index, epoch in zip(items, indices, epochs, strict=True):
        damaged = row
        for number, part in enumerate(parts):
            rng = item_generator(seed, index, number, epoch)
            if rng.random() < part.share:
                damaged = part.damage(damaged, part.draw(damaged.shape, rng), rng)
        row[...] = damaged


def require_shape(parts: tuple[Corruption, ...], shape: tuple[int, ...]) -> None:
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


def truth_of(spec: str, items: int | Sequence[int], shape: tuple[int, ...], seed: int = 0) -> Truth:
    """The truth about items of that shape, known before any of them is read.

    Args:
        items: how many, or what chance goes by for each (:meth:`atdm.data.source.Source.named`).

    Raises:
        UserError: the spec is wrong or does not fit the data.
    """
    parts = parse_corruption(spec)
    require_shape(parts, shape)
    names = [_name(part) for part in parts]
    indices = range(items) if isinstance(items, int) else items
    count = len(indices)
    touched, details = np.zeros((len(parts), count), dtype=bool), {}
    for number, part in enumerate(parts):
        values = {key: np.full(count, np.nan) for key in part.draw(shape, item_generator(seed, 0, number))}
        for row, index in enumerate(indices):
            rng = item_generator(seed, index, number)
            if rng.random() < part.share:
                touched[number, row] = True
                for key, value in part.draw(shape, rng).items():
                    values[key][row] = np.sum(value)  # of a mask: how many
        nth = names[: number + 1].count(names[number])
        details[names[number] if nth == 1 else f"{names[number]}_{nth}"] = values
    about = {"items": count, "parts": [dataclasses.asdict(p) | {"kind": n} for p, n in zip(parts, names, strict=True)]}
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
    corrupt_items(out, parts, seed, [*range(len(x))], [0] * len(x))
    return out, truth
