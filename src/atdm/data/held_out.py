"""Images that are held out of training: which, and of which shape."""

from __future__ import annotations

from typing import Any

from ..errors import UserError
from .cache import read
from .decode import Framing
from .items import Items
from .listing import Listing, joined, split


def held_out_of(test: Listing | None, rest: Listing | None, limit: int | None, seed: int) -> Listing | None:
    """Of the images named as held out, and then of those that ``limit`` left out, at most ``limit``."""
    if test is None:  # a handful of images would be a poor measure
        return split(rest, limit, seed)[0] if rest and rest.count >= (limit or 0) else None
    test, _ = split(test, limit, seed)
    if rest is None or limit is None or test.count == limit:
        return test
    return joined(test, split(rest, limit - test.count, seed)[0])


def read_held_out(
    listing: Listing, items: Items, named: bool, framing: Framing, how: dict[str, Any]
) -> tuple[Items | None, tuple[str, ...]]:
    """The held-out images, where they are of the shape of the items, and notes.

    Args:
        named: by the source, which should know their shape.
    """
    held, notes, _ = read(listing, framing, **how)
    notes = tuple(f"Held out: {note}" for note in notes)
    if held.item_shape == items.item_shape:
        return held, notes
    shapes = f"items are {list(items.item_shape)}, held-out items {list(held.item_shape)}"
    if named:
        raise UserError(f"The {shapes}. Expected one shape.")
    return None, (*notes, f"Nothing is held out: {shapes}.")
