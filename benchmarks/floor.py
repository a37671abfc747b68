"""The least that a training step of ddpm can do, written by hand: no files, no logs, no options."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch
from _timing import interleaved
from accelerate import Accelerator
from torch import Tensor, nn

from atdm.data.items import Floats
from atdm.data.source import Source
from atdm.diffusion.process import Process
from atdm.nets import build_net
from atdm.objective import Objective
from atdm.training.config import Settings
from atdm.training.train import State, fit

SHAPES = {"mlp": (3,), "digits": (1, 8, 8), "tiny": (3, 16, 16)}
STEPS = {"mlp": 50}  # in a turn


def by_hand(net: nn.Module, data: Tensor, batch_size: int) -> Iterator[None]:
    """Noise, one pass forward and one back, clipping, AdamW and a moving average."""
    process = Process.linear()
    parameters = [*net.parameters()]
    average = [p.detach().clone() for p in parameters]
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, fused=True)
    generator = torch.Generator().manual_seed(0)
    while True:
        for rows in torch.randperm(len(data), generator=generator).split(batch_size):
            x, t = data[rows], torch.randint(process.steps, (len(rows),), generator=generator)
            noise = torch.randn(x.shape, generator=generator)
            loss = (net(process.mix(x, noise, t), t).sample - noise).square().mean()
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            with torch.no_grad():
                torch._foreach_lerp_(average, parameters, 1e-3)
            yield


def floor_row(name: str, batch_size: int, rounds: int) -> dict[str, float]:
    """Median processor seconds of a turn of each."""
    shape = SHAPES[name]
    data = torch.randn(8 * batch_size, *shape, generator=torch.Generator().manual_seed(0))
    settings = Settings(steps=10**9, batch_size=batch_size, lr=1e-4)
    state = State.create(build_net(name, shape), settings)
    loops = {
        "atdm": fit(Objective("ddpm", Process.linear()), state, Source(Floats(data)), settings, Accelerator(cpu=True)),
        "peer": by_hand(build_net(name, shape), data, batch_size),
    }

    def turn(loop: Iterator[object]) -> None:
        for _ in itertools.islice(loop, STEPS.get(name, 4)):
            pass

    functions = {key: (lambda loop=loop: turn(loop)) for key, loop in loops.items()}
    interleaved(functions, 1)
    taken = interleaved(functions, rounds)
    return {key: seconds / STEPS.get(name, 4) for key, seconds in taken.items()}
