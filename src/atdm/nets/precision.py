"""Mixed precision: whether the passes of a network are in half precision, and passes that are not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.amp.autocast_mode import is_autocast_available


def half_precision(model: Callable[..., Any], device: torch.device) -> torch.dtype | None:
    """The precision that autocast gives the passes of ``model`` here; None: there is no autocast.

    Of a network that accelerate prepared only that it has one can be seen: bfloat16, the coarser, is assumed.
    """
    if "_original_forward" in vars(_local(model)):
        return torch.bfloat16
    on = is_autocast_available(device.type) and torch.is_autocast_enabled(device.type)
    return torch.get_autocast_dtype(device.type) if on else None


@contextmanager
def full_precision(model: Callable[..., Any], device: torch.device) -> Iterator[None]:
    """Passes of ``model`` without autocast: neither the one around the call nor the one that accelerate puts into a network."""
    network: Any = _local(model)
    prepared = vars(network)["forward"] if "_original_forward" in vars(network) else None
    if prepared is not None:
        network.forward = network._original_forward
    try:
        with torch.autocast(device.type, enabled=False) if is_autocast_available(device.type) else nullcontext():
            yield
    finally:
        if prepared is not None:
            network.forward = prepared


def _local(model: Any) -> Any:
    return model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model
