"""How a network is passed through several times for one step: without gradients of its parameters, with the same masks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakSet

import torch
from torch import nn

_RANDOM: WeakSet[Any] = WeakSet()


@contextmanager
def frozen(model: Callable[..., Any]) -> Iterator[Callable[..., Any]]:
    """``model`` for passes that need gradients of the input only.

    Autograd then keeps no activations for the parameters' gradients, and a compiled network gets a graph without them.
    Of a network on several processes it is the local copy: such passes have nothing to exchange.
    """
    if not isinstance(model, nn.Module):
        yield model
        return
    changed = [p for p in model.parameters() if p.requires_grad]
    for parameter in changed:
        parameter.requires_grad_(False)
    try:
        yield model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model
    finally:
        for parameter in changed:
            parameter.requires_grad_(True)


@contextmanager
def evaluating(model: Callable[..., Any]) -> Iterator[None]:
    """Evaluation mode; afterwards every submodule is back in the mode it was in."""
    modes = [(m, m.training) for m in model.modules()] if isinstance(model, nn.Module) else []
    for module, _ in modes:
        module.training = False
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def known_random(model: Callable[..., Any]) -> bool:
    """Whether an earlier pass through ``model`` drew random numbers, as dropout does."""
    try:
        return model in _RANDOM
    except TypeError:  # cannot be hashed
        return False


def remember_random(model: Callable[..., Any]) -> None:
    """Note that a pass through ``model`` drew random numbers."""
    try:
        _RANDOM.add(model)
    except TypeError:  # cannot be hashed or referred to weakly: it will be found out anew
        return


class RandomState:
    """torch's global random state on the CPU and on one device: what dropout draws from. Reading it waits for no device."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.cpu = torch.get_rng_state()
        self.accelerator = torch.cuda.get_rng_state(device) if device.type == "cuda" else None

    def restore(self) -> None:
        torch.set_rng_state(self.cpu)
        if self.accelerator is not None:
            torch.cuda.set_rng_state(self.accelerator, self.device)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, RandomState):
            return NotImplemented
        same = torch.equal(self.cpu, other.cpu)
        if self.accelerator is not None and other.accelerator is not None:
            same = same and torch.equal(self.accelerator, other.accelerator)
        return same

    __hash__ = None  # type: ignore[assignment]
