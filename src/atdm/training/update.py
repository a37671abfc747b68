"""One optimizer step: the passes of its micro-batches, gradients, clipping and AdamW, with nothing the step can do without.

Nothing here waits for an accelerator: no value of a tensor is read.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from ..errors import UserError, first_line
from ..objective import Draws, Loss, Terms
from .sharding import whole

if TYPE_CHECKING:
    from accelerate import Accelerator


class MicroBatch(NamedTuple):
    """A part of the batch: its items, where they are in the batch, their noise levels for a loss that needs them, and what the
    network is given beside them."""

    x0: Tensor
    where: slice
    levels: Tensor | None = None
    conditioning: Mapping[str, Any] = MappingProxyType({})


class Update:
    """Steps of one network with one optimizer.

    Args:
        model: the network, prepared by ``accelerator``.
        optimizer: of its parameters, on their device.
        grad_clip: largest gradient norm (0: no clipping).
        compiled: the network (as it was before ``accelerator`` wrapped it) is to be compiled.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        accelerator: Accelerator,
        grad_clip: float,
        compiled: bool = False,
    ) -> None:
        self.model, self.optimizer, self.accelerator = model, optimizer, accelerator
        self.limit = grad_clip or math.inf
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        # Accelerate's own wrappers look for optional packages in every step: more than the step of a small network.
        self.scaler: Any = accelerator.scaler or torch.amp.GradScaler(accelerator.device.type, enabled=False)
        self.compiled = compiled
        if compiled:
            accelerator.unwrap_model(model).compile()

    def __call__(
        self, loss_of: Loss, micro_batches: Sequence[MicroBatch], draws: Draws, seed: int
    ) -> tuple[Terms, Tensor]:
        """Make one step from micro-batches.

        Args:
            draws: the randomness of the whole batch.
            seed: of what the network itself draws (dropout).

        Returns:
            The terms of the last micro-batch, and the norm of the gradient before clipping.
        """
        terms = self._gradients(loss_of, micro_batches, draws, seed)
        self.scaler.unscale_(self.optimizer)
        norm = whole(nn.utils.clip_grad_norm_(self.parameters, self.limit))
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self._clear()
        return terms, norm

    def _gradients(self, loss_of: Loss, micro_batches: Sequence[MicroBatch], draws: Draws, seed: int) -> Terms:
        try:
            return self._backward(loss_of, micro_batches, draws, seed)
        except Exception as problem:  # compilers fail in many ways, and some only when a new shape comes
            if not self.compiled:
                raise
            warnings.warn(
                f"torch.compile cannot compile this network here ({first_line(problem)[:200]}); training goes on without it.",
                stacklevel=2,
            )
            self.compiled = False
            self.accelerator.unwrap_model(self.model)._compiled_call_impl = None  # Module.compile has no public inverse
            self._clear()
            return self._backward(loss_of, micro_batches, draws, seed)

    def _backward(self, loss_of: Loss, micro_batches: Sequence[MicroBatch], draws: Draws, seed: int) -> Terms:
        seed_all(seed, self.accelerator.device)
        for index, (x0, where, levels, conditioning) in enumerate(micro_batches):
            last = index == len(micro_batches) - 1
            with nullcontext() if last else self.accelerator.no_sync(self.model):
                terms = loss_of(self.model, x0, draws=draws[where], levels=levels, **conditioning)
                self.scaler.scale(terms.loss.mean() / len(micro_batches)).backward()
        return terms

    def _clear(self) -> None:
        for parameter in self.parameters:
            parameter.grad = None


def seed_all(seed: int, device: torch.device) -> None:
    """``torch.manual_seed`` for the CPU and ``device`` only: that of torch also queues work for devices that are not there."""
    if device.type not in ("cpu", "cuda"):
        torch.manual_seed(seed)
        return
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)


def checkpoint_activations(model: nn.Module) -> None:
    """Keep only some activations and compute the others again in the backward pass: less memory, a forward pass more.

    Raises:
        UserError: the network has no such switch.
    """
    switch: Any = getattr(model, "enable_gradient_checkpointing", None)
    try:
        if switch is None:
            raise ValueError
        switch()
    except ValueError:
        raise UserError(
            f"The network {type(model).__name__} has no gradient checkpointing. Expected a U-Net of diffusers, "
            "or gradient_checkpointing off; accumulate also saves memory."
        ) from None
