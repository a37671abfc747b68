"""What a network asks of a CPU: how many threads its passes are worth, and whether bfloat16 is any faster there."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from . import device_of, flops, is_unet

PER_THREAD = 0.25e9  # floating point operations of a forward pass below which another thread costs more than it saves
TRIES = 3  # of a timing, of which the shortest counts


@contextmanager
def worth(
    net: nn.Module, item_shape: tuple[int, ...], batch: int, asked: int = 0, **conditioning: Any
) -> Iterator[str | None]:
    """As many threads as passes of ``net`` on a ``batch`` of items are worth, until the end of the block.

    A thread more halves the arithmetic, and is waited for in every layer. Their number is a function of the work and not
    timed, so that a run that resumes rounds as the one that never stopped.

    Args:
        asked: so many instead; 0: by the work.
        conditioning: passed to the network.

    Yields:
        A sentence, where they are fewer than there were and nobody asked for that.
    """
    before = torch.get_num_threads()
    on_cpu = device_of(net).type == "cpu"
    chosen, note = asked or before, None
    if not asked and on_cpu and before > 1:
        work = batch * flops(net, item_shape, **conditioning)
        chosen = max(1, min(before, int(work / PER_THREAD)))
        if chosen < before:
            note = (
                f"{chosen} of {before} threads: a pass of {batch} items is {work / 1e9:.2g} GFLOP, too few for more. "
                "--threads takes another number."
            )
    with threads(chosen):
        yield note


@contextmanager
def threads(count: int) -> Iterator[None]:
    """So many threads, until the end of the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def bf16_slowdown(net: nn.Module) -> float:
    """How many times as long bfloat16 takes as float32 on this CPU, for both passes through a layer such as ``net`` has.

    It takes a tenth of a second or two where there is no bfloat16, else milliseconds.
    """
    operation: Callable[..., Tensor]
    shapes: tuple[tuple[int, ...], tuple[int, ...]]
    if is_unet(net):
        operation, shapes = partial(nn.functional.conv2d, padding=1), ((8, 32, 16, 16), (32, 32, 3, 3))
    else:
        operation, shapes = nn.functional.linear, ((128, 256), (256, 256))
    least = []
    for kind in (torch.bfloat16, torch.float32):
        x, weight = (torch.ones(shape, dtype=kind, requires_grad=True) for shape in shapes)
        times = []
        for _ in range(1 + TRIES):  # the first one prepares
            begin = time.process_time()
            operation(x, weight).sum().backward()
            times.append(time.process_time() - begin)
        least.append(min(times[1:]))
    return least[0] / least[1]
