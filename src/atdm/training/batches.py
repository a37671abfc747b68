"""What a process trains on in each step: its share of the batch, and all that goes with it, each a function of (seed, step)."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ..data.items import Floats
from ..data.source import Source, feed, indexed, stream_batches, workers_for
from ..data.streaming import IndexedBatch
from ..diffusion.conditioning import drop_conditioning
from ..errors import UserError
from ..noise import Gauge
from ..objective import Draws, Loss, Sfbd
from .config import Settings
from .state import State
from .trusted import NEEDED
from .update import MicroBatch


def generator_of(device: torch.device | str, *key: object) -> torch.Generator:
    """A generator whose randomness is a function of ``key`` alone."""
    return torch.Generator(device).manual_seed(seed_of(*key))


def seed_of(*key: object) -> int:
    """A seed that is a function of ``key`` alone."""
    digest = hashlib.sha256("/".join(map(str, key)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


class Order:
    """The order of the data: every item once per epoch, shuffled anew each epoch, addressed by step.

    Args:
        start: index of the first of the items.
    """

    def __init__(self, items: int, batch_size: int, seed: int, start: int = 0) -> None:
        self.items, self.batch_size, self.seed, self.start = items, batch_size, seed, start
        self._epochs: dict[int, Tensor] = {}

    def __getitem__(self, step: int) -> Tensor:
        first = step * self.batch_size
        epochs = range(first // self.items, (first + self.batch_size - 1) // self.items + 1)
        self._epochs = {e: self._epochs[e] if e in self._epochs else self._permutation(e) for e in epochs}
        indices = torch.cat([self._epochs[e] for e in epochs])
        begin = first - epochs[0] * self.items
        return indices[begin : begin + self.batch_size]

    def epochs(self, step: int) -> Tensor:
        """The epoch each item of the step is in."""
        return (step * self.batch_size + torch.arange(self.batch_size)) // self.items

    def _permutation(self, epoch: int) -> Tensor:
        return self.start + torch.randperm(self.items, generator=generator_of("cpu", self.seed, "order", epoch))


def source_for(objective: Loss, data: Source | Tensor) -> Source:
    """What training sees, where it tells all that the loss asks of its items.

    Raises:
        UserError: it does not, or the loss cannot learn from such items.
    """
    if objective.levels_from == "truth" and not isinstance(data, Source):
        raise UserError(
            f"{type(objective).__name__} needs the noise level of each item, and a tensor tells none. "
            "Expected Source(Floats(data), std=levels)."
        )
    source = (data if isinstance(data, Source) else Source(Floats(data))).prepared()
    require_items(objective, source)
    return source


def require_items(objective: Loss, source: Source) -> None:
    """Refuse items that the loss cannot learn from (:class:`~atdm.errors.UserError`)."""
    if objective.levels_from == "trusted" and source.least is None:
        raise UserError(
            "omni needs the level from which on each item is as good as a trusted one. Expected trusted images (--trusted "
            "FOLDER), or Source(items, least=atdm.noise.least_levels(items, trusted).stds)."
        )
    if isinstance(objective, Sfbd):
        if not source.trusted:
            raise UserError(NEEDED["sfbd"])
        if source.fresh and source.corruption:
            raise UserError(
                "sfbd denoises each item once in a round, and corrupt_fresh draws its corruption anew. Expected one of them."
            )
        if source.window is not None:
            raise UserError(
                "sfbd denoises whole images, and crop random cuts windows. Expected a crop of center or none."
            )
    objective.require_items(source.item_shape)


def gauge_of(source: Source) -> Gauge | None:
    """What estimates the noise of the items; None, said aloud, where it cannot be known from content."""
    try:
        return source.gauge()
    except UserError as problem:
        warnings.warn(f"{problem} All items count as clean.", stacklevel=3)
        return None


@dataclass(frozen=True)
class RankShare:
    """Of each batch, that of process ``rank`` of ``world``: a piece of every micro-batch.

    Args:
        gauge: what estimates the noise of items, for a loss that asks for it.
    """

    source: Source
    settings: Settings
    order: Order
    device: torch.device
    world: int
    rank: int
    gauge: Gauge | None

    @cached_property
    def micro_size(self) -> int:
        """Items of a micro-batch of one process.

        Raises:
            UserError: the batch does not split so.
        """
        size, count = self.settings.batch_size, self.settings.accumulate
        if size % (count * self.world):
            raise UserError(
                f"A batch of {size} does not split over {self.world} processes with {count} micro-batches each. "
                f"Expected a multiple of {count * self.world}."
            )
        return size // count // self.world

    @cached_property
    def mine(self) -> Tensor:
        """Which items of the batch."""
        every = torch.arange(self.settings.batch_size).reshape(self.settings.accumulate, self.world, self.micro_size)
        return every[:, self.rank].flatten()

    def batches(self, state: State, workers: int | None) -> Iterator[IndexedBatch]:
        """What this process takes in each step from that of ``state`` on.

        Args:
            workers: as of :func:`~atdm.training.train.fit`.
        """
        source, mine, pin = self.source, self.mine, self.device.type == "cuda"
        if source.stream is not None:
            position = state.position_of(self.rank, self.world)
            return stream_batches(source, len(mine), self.rank, self.world, position, workers or None, pin)
        steps = range(state.step, self.settings.steps)
        workers = workers_for(source, self.device, self.world) if workers is None else workers
        return indexed(feed(source, self.order, mine, steps, workers, pin), self.order, mine, steps)

    def draws(self, loss: Loss, step: int) -> Draws:
        """The randomness of the whole batch, alike in all processes."""
        seed, device = self.settings.seed, self.device
        return loss.draw(
            (self.settings.batch_size, *self.source.item_shape),
            device,
            generator_of(device, seed, "noise", step),
            generator_of(device, seed, "push", step),
            generator_of("cpu", seed, "timesteps", step) if device.type != "cpu" else None,
        )

    def micro_batches(self, loss: Loss, step: int, batch: IndexedBatch) -> list[MicroBatch]:
        """The micro-batches of the items that this process took, on the device."""
        x = batch.x.to(self.device, non_blocking=True)
        levels: list[Tensor | None] = [None] * self.settings.accumulate
        if loss.levels_from is not None:
            known = self.levels(loss, x, batch.indices, batch.epochs).to(self.device, non_blocking=True)
            levels = [*known.split(self.micro_size)]
        found, labels = [], self._labels(step)
        for i, (x0, items) in enumerate(zip(x.split(self.micro_size), self.mine.split(self.micro_size), strict=True)):
            begin = (i * self.world + self.rank) * self.micro_size
            given = {name: values[items].to(self.device) for name, values in labels.items()}
            found.append(MicroBatch(x0, slice(begin, begin + self.micro_size), levels[i], given))
        return found

    def levels(self, loss: Loss, x: Tensor, indices: Tensor, epochs: Tensor) -> Tensor:
        """The noise levels of the items, from where the loss wants them."""
        source = self.source
        if loss.levels_from == "truth":
            return source.levels(indices, epochs)
        if loss.levels_from == "trusted" and source.least is not None:
            return source.least[indices]
        found = self.gauge.stds(x, indices) if self.gauge else torch.zeros(len(x))
        return found.masked_fill(source.is_trusted(indices).to(found.device), 0)

    def _labels(self, step: int) -> dict[str, Tensor]:
        """What the network is given of the whole batch: the classes, some of them withheld for guidance."""
        if self.source.classes is None:
            return {}
        seed, found = self.settings.seed, {"class_labels": self.source.classes.of[self.order[step]]}
        none = {"class_labels": torch.tensor(len(self.source.classes.names))}
        generator = generator_of("cpu", seed, "labels", step)
        return drop_conditioning(found, none, self.settings.label_dropout, generator)
