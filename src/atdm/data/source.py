"""What training sees, batch by batch: clean items read, corrupted and augmented on the fly, ahead of the device.

Every row is a function of (seed, index, epoch) alone, so batches are the same for any number of workers and processes,
and those of a run that resumes are those of the run that never stopped. An item of a stream has its key for an index.
"""

from __future__ import annotations

import os
import signal
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..corruption import Corruption, corrupt_items, require_shape
from ..corruption.levels import drawn_levels
from ..errors import UserError
from ..noise import Gauge
from .classes import Classes
from .files import Files
from .items import Floats, Items, every, write_header
from .streaming import IndexedBatch, Stream

RESIDENT = 256 * 2**20  # bytes of items that are prepared once and kept in memory
GAUGED = 4096  # items that a gauge of their noise is fitted to


@runtime_checkable
class ItemOrder(Protocol):
    """Which items a step trains on, and in which epoch each of them is."""

    def __getitem__(self, step: int) -> Tensor: ...

    def epochs(self, step: int) -> Tensor: ...


@dataclass(frozen=True)
class Source:
    """Training data by index.

    The order is that of a corrupted set on disk: corruption first, fixed to the item as stored, then window and mirror image.

    Args:
        items: clean items.
        corruption: what is done to them.
        seed: of all that is drawn here.
        fresh: draw the corruption anew in every epoch; otherwise it is fixed to the item.
        flip: mirror each image with probability 1/2, anew in every epoch.
        window: cut a random square of this side from each image, anew in every epoch; None takes images whole.
        std: standard deviation of the Gaussian noise that each item is known to hold before anything is done to it;
            None: the items are clean.
        files: the image files of the items, in which noise is seen that their formats and resizing hide; None: there are none.
        trusted: so many of the last items are known to be clean, and stay so: nothing corrupts them.
        classes: of the items, which the network is given; None: it is given none.
        least: noise level of each item from which on it is as good as a trusted one; None: nobody looked.
        stream: what training reads, of which the items are a sample; None: the items are all there is.
        keys: of the items of a sample, which corruption goes by.

    Raises:
        UserError: corruption, flip or window are for images and the items are not.
    """

    items: Items
    corruption: tuple[Corruption, ...] = ()
    seed: int = 0
    fresh: bool = False
    flip: bool = False
    window: int | None = None
    std: Float[Tensor, "n"] | None = field(default=None, compare=False)
    files: Files | None = field(default=None, compare=False)
    trusted: int = 0
    classes: Classes | None = field(default=None, compare=False)
    least: Float[Tensor, "n"] | None = field(default=None, compare=False)
    stream: Stream | None = field(default=None, compare=False)
    keys: Int[Tensor, "n"] | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        require_shape(self.corruption, tuple(self.items.item_shape))
        if (self.flip or self.window) and len(self.items.item_shape) != 3:
            raise UserError("flip and random crops are for images, and the data are vectors. Expected neither.")
        labels = None if self.classes is None else self.classes.of
        for each, what in ((self.std, "noise levels"), (self.least, "noise levels"), (labels, "labels")):
            if each is not None and len(each) != len(self.items):
                raise UserError(f"There are {len(self.items)} items and {len(each)} {what}. Expected one for each.")

    def __len__(self) -> int:
        return len(self.items)

    @property
    def item_shape(self) -> tuple[int, ...]:
        """The shape of an item of a batch."""
        shape = tuple(self.items.item_shape)
        return shape if self.window is None else (shape[0], self.window, self.window)

    def __getitem__(self, indices: Int[Tensor, "b"]) -> Float[Tensor, "b *item"]:
        """These items as of epoch 0."""
        return self.batch(indices, torch.zeros_like(indices))

    def batch(self, indices: Int[Tensor, "b"], epochs: Int[Tensor, "b"]) -> Float[Tensor, "b *item"]:
        """These items as training sees them in these epochs."""
        return self.transformed(self.items[indices], self.keys_of(indices), epochs)

    def keys_of(self, indices: Int[Tensor, "b"]) -> Int[Tensor, "b"]:
        """What chance goes by for these items: the keys of those of a sample, else the indices themselves."""
        return indices if self.keys is None else self.keys[indices]

    def transformed(self, x: Tensor, indices: Int[Tensor, "b"], epochs: Int[Tensor, "b"]) -> Float[Tensor, "b *item"]:
        """Clean items as training sees them in these epochs; of a stream ``indices`` are keys. Changes ``x``."""
        if self.corruption:
            when, untrusted = epochs if self.fresh else torch.zeros_like(epochs), ~self.is_trusted(indices)
            touched = x[untrusted]
            corrupt_items(touched, self.corruption, self.seed, indices[untrusted].tolist(), when[untrusted].tolist())
            x[untrusted] = touched
        if self.window is not None:
            x = self._windows(x, indices, epochs)
        if self.flip:
            coins = torch.from_numpy(hashed_uniform(self.seed, "flip", indices, epochs) < 0.5)
            x = torch.where(coins.reshape(-1, 1, 1, 1), x.flip(-1), x)
        return x

    def is_trusted(self, indices: Int[Tensor, "b"]) -> Bool[Tensor, "b"]:
        """Which of these items are trusted."""
        return indices >= len(self) - self.trusted if self.trusted else torch.zeros_like(indices, dtype=torch.bool)

    def levels(self, indices: Int[Tensor, "b"], epochs: Int[Tensor, "b"]) -> Float[Tensor, "b"]:
        """Standard deviation of the Gaussian noise in these items of :meth:`batch`; of a stream ``indices`` are keys."""
        when = epochs if self.fresh else torch.zeros_like(epochs)
        drawn = drawn_levels(self.corruption, self.seed, indices.tolist(), when.tolist())
        drawn[self.is_trusted(indices)] = 0
        return drawn if self.std is None else torch.hypot(drawn, self.std[indices])

    def _windows(self, x: Tensor, indices: Tensor, epochs: Tensor) -> Tensor:
        cuts = []
        for name, side in zip(("top", "left"), x.shape[2:], strict=True):
            drawn = hashed_uniform(self.seed, name, indices, epochs) * (side - self.item_shape[1] + 1)
            cuts.append(torch.from_numpy(drawn.astype(np.int64))[:, None] + torch.arange(self.item_shape[1]))
        lines, columns = cuts
        each = torch.arange(len(x))[:, None, None]
        return x.permute(0, 2, 3, 1)[each, lines[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()

    def first(self, count: int) -> Float[Tensor, "b *item"]:
        """So many items as of epoch 0, from the start again where there are fewer."""
        return self[torch.arange(count) % len(self)]

    def some(self, count: int) -> Float[Tensor, "b *item"]:
        """So many items of epoch 0 drawn at random, or all: what a look at the data is taken from."""
        return self.some_indexed(count)[0]

    def some_indexed(self, count: int) -> tuple[Float[Tensor, "b *item"], Int[Tensor, "b"]]:
        """The items of :meth:`some`, and their indices."""
        chosen = torch.randperm(len(self), generator=torch.Generator().manual_seed(self.seed))[:count]
        return self[chosen], chosen

    def gauge(self) -> Gauge:
        """What tells the noise of the items of a batch from these themselves and from their files.

        Raises:
            UserError: there is no telling noise from content in such data.
        """
        x, chosen = self.some_indexed(GAUGED)
        gauge = Gauge.fit(x, self.keys_of(chosen))
        if self.files is None or self.stream is not None:
            return gauge
        return replace(gauge, files=self.files.noise().with_clean(self.trusted), changed=self.changed)

    @property
    def changed(self) -> bool:
        """Whether items hold anything that their files do not."""
        return bool(self.corruption) or self.std is not None

    @property
    def hidden_std(self) -> float:
        """Root mean square over all items of the noise that their files show and their formats and resizing hide."""
        return 0.0 if self.files is None else self.files.hidden_std

    def save(self, path: Path) -> None:
        """Write all items as of epoch 0 to an .npz (float32 array ``samples``), a few at a time."""
        with zipfile.ZipFile(path, "w") as archive, archive.open("samples.npy", "w", force_zip64=True) as file:
            write_header(file, "<f4", (len(self), *self.item_shape))
            for indices in torch.arange(len(self)).split(256):
                file.write(self[indices].numpy().astype("<f4").tobytes())

    def prepared(self) -> Source:
        """The same source with what never changes done once and kept in memory, where that is small."""
        size = 4 * len(self) * int(np.prod(self.items.item_shape))
        if self.stream is not None or size > RESIDENT or (isinstance(self.items, Floats) and not self.corruption):
            return self
        x = every(self.items)
        if self.corruption and not self.fresh:
            indices = torch.arange(len(x))
            levels = self.levels(indices, torch.zeros_like(indices))
            untrusted = indices[: len(x) - self.trusted].tolist()
            corrupt_items(x[: len(untrusted)], self.corruption, self.seed, untrusted, [0] * len(untrusted))
            return replace(self, items=Floats(x), corruption=(), std=levels)
        return replace(self, items=Floats(x))


def hashed_uniform(
    seed: int, purpose: str, indices: Int[Tensor, "b"], epochs: Int[Tensor, "b"]
) -> Float[np.ndarray, "b"]:
    """Uniform numbers in [0, 1), each a function of its (seed, purpose, index, epoch): splitmix64 (Steele 2014) as a hash."""
    z = np.full(len(indices), (seed ^ int.from_bytes(purpose.encode(), "little")) & (2**64 - 1), np.uint64)
    for word in (indices.numpy().astype(np.uint64), epochs.numpy().astype(np.uint64)):
        z = (z ^ word) + np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    return (z >> np.uint64(11)).astype(np.float64) / 2**53


@dataclass(frozen=True)
class _Steps(torch.utils.data.Dataset[Tensor]):
    """Batches by step: this process's rows of each."""

    source: Source
    order: ItemOrder
    mine: Tensor

    def __getitem__(self, step: int) -> Tensor:
        return self.source.batch(self.order[step][self.mine], self.order.epochs(step)[self.mine])


def feed(source: Source, order: ItemOrder, mine: Tensor, steps: range, workers: int, pin: bool) -> Iterator[Tensor]:
    """The batch of each step, in order.

    Args:
        mine: which rows of the global batch this process trains on.
        workers: processes that prepare batches ahead; 0 prepares each when it is asked for.
        pin: put batches into page-locked memory, from which a GPU fetches them while it computes.

    Raises:
        UserError: a worker died.
    """
    batches = _Steps(replace(source, files=None, classes=None), order, mine)  # workers only read items
    if workers == 0:
        for step in steps:
            batch = batches[step]
            yield batch.pin_memory() if pin else batch
        return
    loader: Any = torch.utils.data.DataLoader(
        batches,
        batch_size=None,
        sampler=steps,
        num_workers=workers,
        worker_init_fn=_ignore_signals,
        pin_memory=pin,
        generator=torch.Generator(),  # the loader's own seed must not come from the generator that training uses
    )
    ahead = iter(loader)
    # A worker's death must be found where its batch is waited for, and not raised by torch's signal handler wherever this
    # process happens to be: in a training step, or while another sign of the same death becomes a sentence.
    torch.utils.data._utils.signal_handling._remove_worker_pids(id(ahead))
    ahead._worker_pids_set = False
    try:
        yield from ahead
    except UserError as problem:  # of a worker, whose traceback torch puts before the sentence
        raise UserError(problem.args[0].strip().splitlines()[-1].partition(": ")[2]) from problem
    except (RuntimeError, OSError, EOFError) as problem:  # as torch or its pipes happen to notice
        if isinstance(problem, RuntimeError) and "DataLoader worker (pid" not in str(problem):
            raise
        raise UserError(
            f"A process that prepares batches failed: {' '.join(str(problem).split())}. "
            "Memory may have run out. Expected more of it, fewer --workers, or --workers 0."
        ) from problem
    finally:  # the errors above would keep workers alive, which ignore the signal with which an exit would end them
        ahead._shutdown_workers()


def indexed(batches: Iterator[Tensor], order: ItemOrder, mine: Tensor, steps: range) -> Iterator[IndexedBatch]:
    """The batches of :func:`feed`, each with what it holds."""
    for step, x in zip(steps, batches, strict=True):
        yield IndexedBatch(x, order[step][mine], order.epochs(step)[mine])


def stream_batches(
    source: Source, size: int, process: int, processes: int, position: str | None, threads: int | None, pin: bool
) -> Iterator[IndexedBatch]:
    """Batches of a stream as training sees them, without end.

    Args:
        size: items of a batch of this process.
        process, processes: which this is of how many.
        position: of the batch behind which to go on; None: at the beginning.
        threads: as of :meth:`atdm.data.streaming.Stream.batches`.
        pin: as of :func:`feed`.
    """
    if source.stream is None:
        raise UserError("The source is no stream. Expected data with streaming=true.")
    for batch in source.stream.batches(source.seed, size, process, processes, position, threads):
        x = source.transformed(batch.x, batch.indices, batch.epochs)
        yield batch._replace(x=x.pin_memory() if pin else x)


def _ignore_signals(_: int) -> None:
    """Ctrl-C reaches every process of the terminal; the one that trains ends the others, after its step."""
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)


def workers_for(source: Source, device: torch.device, processes: int) -> int:
    """How many workers keep a device fed: none where batches cost nothing or the CPU itself trains."""
    if device.type == "cpu" or (isinstance(source.items, Floats) and not source.corruption):
        return 0
    return min(4, max(1, (os.cpu_count() or 1) // processes))
