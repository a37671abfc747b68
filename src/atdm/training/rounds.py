"""Data that change on the way: the trusted items alone, then all, the noisy ones as the model of that moment denoises them.

What was denoised is a part of the state, so that a checkpoint holds it and a run that resumes goes on with it.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .. import memory
from ..data.items import Floats, Items, Pixels, to_uint8
from ..data.source import Source
from ..data.streaming import IndexedBatch
from ..diffusion.backward import backward
from ..diffusion.model import require_finite
from ..diffusion.sampling import Batches, block_size
from ..errors import UserError
from ..objective import Loss, Sfbd
from .batches import Order, RankShare, generator_of
from .state import State

LOG = logging.getLogger(__name__)
AT_ONCE = 256  # items that are denoised together


def batches(
    share: RankShare, loss: Loss, state: State, workers: int | None, accelerator: Any
) -> Iterator[tuple[RankShare, IndexedBatch]]:
    """What this process takes in each step from that of ``state`` on, and of which data it is a share.

    Args:
        state: whose averaged network denoises, and which keeps what comes of it.
        workers: as of :func:`~atdm.training.train.fit`.
        accelerator: whose processes share the denoising.

    Raises:
        UserError: the state lacks what its round learns from.
    """
    if not isinstance(loss, Sfbd):
        yield from ((share, batch) for batch in share.batches(state, workers))
        return
    rounds, steps = _Rounds.of(share, loss), share.settings.steps
    while state.step < steps:
        number, first, end = loss.round(state.step, steps)
        if number and state.step == first:
            state.denoised = rounds.denoised(state, number, accelerator)
        now = rounds.share_of(state, number)
        for batch in islice(now.batches(state, workers), end - state.step):
            yield now, batch


@dataclass(frozen=True)
class _Rounds:
    """The data of a loss in rounds.

    Args:
        still: the items without mirror images.
        noisy: indices of those that are denoised.
        stds: of the noise in each of them.
    """

    share: RankShare
    loss: Sfbd
    still: Source
    noisy: Int[Tensor, "n"]
    stds: Float[Tensor, "n"]

    @classmethod
    def of(cls, share: RankShare, loss: Sfbd) -> _Rounds:
        still, found = replace(share.source, flip=False), []
        for indices in torch.arange(len(still)).split(AT_ONCE):
            found.append(share.levels(loss, still[indices], indices, torch.zeros_like(indices)))
        stds = torch.cat(found)
        noisy = torch.nonzero(stds > 0)[:, 0]
        size = 8.0 * len(noisy) * math.prod(still.item_shape)
        memory.require(size, f"{len(noisy):,} denoised items", "Expected fewer items: a smaller limit.")
        return cls(replace(share, gauge=None), loss, still, noisy, stds[noisy])

    def share_of(self, state: State, number: int) -> RankShare:
        """What a round learns from.

        Raises:
            UserError: the state lacks it.
        """
        share, source, settings = self.share, self.share.source, self.share.settings
        if number == 0:
            first = len(source) - source.trusted
            return replace(share, order=Order(source.trusted, settings.batch_size, settings.seed, first))
        if state.denoised is None or len(state.denoised) != len(self.noisy):
            held = 0 if state.denoised is None else len(state.denoised)
            raise UserError(
                f"The state after {state.step} steps holds {held:,} denoised items, and {len(self.noisy):,} items are noisy. "
                "Expected a state of the same data."
            )
        items = _Renewed(self.still, self.noisy, state.denoised)
        return replace(share, source=replace(source, items=items, corruption=(), std=None).prepared())

    def denoised(self, state: State, number: int, accelerator: Any) -> Tensor:
        """The noisy items followed back by the averaged network; images as bytes."""
        begin, share, source = time.perf_counter(), self.share, self.still
        shape = tuple(source.item_shape)
        found = torch.zeros(1, len(self.noisy), *shape)
        if len(self.noisy):
            parts = Batches(len(self.noisy), shape, batch_size=AT_ONCE, accelerator=accelerator)
            for start, blocks in parts.mine():
                rows = slice(start, start + len(blocks) * block_size(shape))
                indices = self.noisy[rows]
                given = {} if source.classes is None else {"class_labels": source.classes.of[indices].to(share.device)}
                found[0, rows] = backward(
                    state.ema,
                    self.loss.process,
                    source[indices].to(share.device),
                    self.stds[rows],
                    evaluations=self.loss.evaluations,
                    generator=generator_of("cpu", share.settings.seed, "backward", number, start),
                    conditioning=given,
                ).cpu()
            parts.gather(found)
        require_finite(found, "denoised items")
        seconds = time.perf_counter() - begin
        LOG.info("round %d of %d: denoised %d items (%.0f s)", number, self.loss.rounds, len(self.noisy), seconds)
        return to_uint8(found[0]) if len(shape) == 3 else found[0]


class _Renewed:
    """The items of a source as of epoch 0, of which some are replaced.

    Args:
        indices: of those that are.
        instead: what replaces them.
    """

    def __init__(self, source: Source, indices: Int[Tensor, "n"], instead: Tensor) -> None:
        self.source, self.item_shape = source, tuple(source.item_shape)
        self.instead: Items = Pixels(instead.numpy()) if instead.dtype == torch.uint8 else Floats(instead)
        self.rows = torch.full((len(source),), -1).index_copy(0, indices, torch.arange(len(indices)))

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, indices: Int[Tensor, "b"]) -> Float[Tensor, "b *item"]:
        x, rows = self.source[indices], self.rows[indices]
        replaced = rows >= 0
        x[replaced] = self.instead[rows[replaced]]
        return x
