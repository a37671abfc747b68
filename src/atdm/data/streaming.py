"""Batches of a stream: images decoded ahead of their turn, a few batches at most, and never all of them."""

from __future__ import annotations

import os
import warnings
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..errors import UserError
from .cache import Read, read
from .decode import Framing, Progress, mixed
from .listing import Listing, key_of
from .pixels import UnknownScale, decode, formats, limited, why
from .shards import Item, Position, Shards

AHEAD = 2  # batches


class IndexedBatch(NamedTuple):
    """Items of a step: as floats, images in [-1, 1]; their index in the set, of a stream their key; the epoch each is in; and
    where a stream goes on behind them."""

    x: Float[Tensor, "b *item"]
    indices: Int[Tensor, "b"]
    epochs: Int[Tensor, "b"]
    position: str | None = None


@dataclass(frozen=True)
class Stream:
    """The images of shards, decoded when their turn comes.

    Args:
        shards: what is read.
        buffer: images that are shuffled together.
        framing: size and crop.
        shape: of the images of the sample, which all are to have.
        skip_broken: leave out what cannot be decoded.
        max_pixels: an image of more is not decoded.
    """

    shards: Shards
    buffer: int
    framing: Framing
    shape: tuple[int, ...]
    skip_broken: bool
    max_pixels: int

    def batches(
        self, seed: int, size: int, process: int, processes: int, position: str | None, threads: int | None
    ) -> Iterator[IndexedBatch]:
        """Batches without end, decoded ahead by threads.

        Args:
            seed: of the order.
            size: images of a batch.
            process, processes: of how many processes that share the set this is which.
            position: of the batch behind which to go on; None: at the beginning.
            threads: that decode; None: one for each core, at most 8.

        Raises:
            UserError: a shard or an image cannot be read, or is of another shape.
        """
        start = Position.read(position) if position else Position()
        formats()
        warnings.filterwarnings("ignore", module=r"PIL\.")  # for threads, so it stays
        with (
            limited(self.max_pixels),
            ThreadPoolExecutor(threads or min(8, os.cpu_count() or 1)) as pool,
            ThreadPoolExecutor(1) as reader,
        ):
            made = self._batches(self._items(seed, start, process, processes), size, pool)
            waiting = deque(reader.submit(next, made) for _ in range(AHEAD))
            try:
                while True:
                    batch = waiting.popleft().result()
                    waiting.append(reader.submit(next, made))
                    yield batch
            finally:
                reader.shutdown(wait=True, cancel_futures=True)

    def _items(self, seed: int, position: Position, process: int, processes: int) -> Iterator[tuple[Item, Position]]:
        """Items, each with the position behind it."""
        taken = position.taken
        for here, block in self.shards.blocks(seed, self.buffer, position, process, processes):
            for at in range(taken, len(block)):
                yield block[at], here._replace(taken=at + 1)
            taken = 0

    def _batches(
        self, items: Iterator[tuple[Item, Position]], size: int, pool: ThreadPoolExecutor
    ) -> Iterator[IndexedBatch]:
        while True:
            pixels: list[np.ndarray] = []
            found: list[tuple[Item, Position]] = []
            broken = 0
            while len(found) < size:
                some = [next(items) for _ in range(size - len(found))]
                for (item, position), result in zip(some, pool.map(self._decoded, [i for i, _ in some]), strict=True):
                    if isinstance(result, np.ndarray):
                        pixels.append(result)
                        found.append((item, position))
                    elif (broken := broken + 1) > 1000 + 10 * size:
                        raise UserError(f"Of {broken:,} images of {self.shards.where} none could be read.")
                last = some[-1][1]
            x = torch.from_numpy(np.stack(pixels)).float().div_(127.5).sub_(1)
            keys = torch.tensor([item.key for item, _ in found])
            yield IndexedBatch(x, keys, torch.tensor([position.epoch for _, position in found]), last.text())

    def _decoded(self, item: Item) -> np.ndarray | None:
        """The pixels of an image; None where it cannot be read and is to be skipped."""
        try:
            image = self.framing(decode(item.encoded)[0])
            if self.shape[0] == 1 and image.mode != "L":
                raise ValueError("it is in color, and the sample that was looked at is gray")
            array = np.asarray(image.convert("L" if self.shape[0] == 1 else "RGB"))
            array = array[None] if array.ndim == 2 else array.transpose(2, 0, 1)
        except UnknownScale:
            raise UserError(
                f"The format of {item.name} does not say which number is white, and a stream cannot look at all images to find "
                "out. Expected 8- or 16-bit images, or the set without streaming."
            ) from None
        except Exception as problem:  # each decoder raises its own
            if self.skip_broken:
                return None
            raise UserError(
                f"Cannot read the image {item.name}: {why(problem, self.max_pixels)}. Expected a whole image file.",
                "--skip_broken true skips such files.",
            ) from problem
        if array.shape != self.shape:
            raise mixed("those of the sample are", self.shape, item.name, array.shape)
        return array


def sampled(
    shards: Shards, count: int, seed: int, framing: Framing, progress: Progress | None = None, **how: Any
) -> tuple[Listing, Read, Int[Tensor, "n"]]:
    """So many images of a few shards chosen by ``seed``: as files and decoded, and the key of each that could be read.

    Args:
        how: as of :func:`atdm.data.cache.read`.
    """
    items = shards.sample(count, seed)
    names = [f"{item.name} ({i + 1} of the sample)" for i, item in enumerate(items)]
    keys = [item.key for item in items]
    listing = Listing(len(items), names.__getitem__, lambda i: items[i].encoded, key_of("sample", keys), shards.notes)
    done = read(listing, framing, progress=progress, **how)
    return listing, done, torch.tensor([keys[i] for i in listing.without(done.broken)])
