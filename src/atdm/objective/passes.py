"""How a batch and its perturbed rows are passed through a network: stacked or one by one, with the same dropout masks.

The mathematics does not depend on it; the cost does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..diffusion.conditioning import of_items
from ..diffusion.process import Process, States, Timesteps
from ..nets.passes import RandomState, frozen, known_random, remember_random
from .terms import counted, predicted

Indices = Int[Tensor, "perturbed"] | slice
Moves = Callable[[Tensor], Tensor]  # delta -> eps(x + sigma delta) - eps(x), with frozen weights
Perturb = Callable[[Moves, Tensor, Tensor], Tensor]  # of that, radii and starts in the unit ball: delta


class Perturbed(NamedTuple):
    """Of the perturbed rows: the perturbation, and the noise predicted before and after it."""

    delta: Float[Tensor, "perturbed *dims"]
    clean: Float[Tensor, "perturbed *dims"]
    moved: Float[Tensor, "perturbed *dims"]


def stacks(attacked: bool, share: float) -> bool:
    """Whether passes are stacked when this ``share`` of a batch is perturbed.

    Stacked, an attack predicts the clean rows once more: cheaper than passes of their own only where they are few.
    """
    return not attacked or share <= 0.25


def cost(share: float, steps: int, every: int) -> dict[str, float]:
    """What :meth:`~atdm.objective.Loss.passes` returns where this ``share`` of a batch is perturbed in one of ``every`` steps.

    Args:
        steps: of the attack; 0: the perturbation is random.
    """
    perturbed = share / every
    attacked = perturbed * steps
    if steps and stacks(attacked=True, share=share):
        attacked += perturbed  # the clean rows beside the perturbed ones
    return counted(1 + perturbed + attacked, 1 + perturbed, attacked)


def items_below(gate: float | None, process: Process, t: Timesteps, device: torch.device) -> Indices | None:
    """The rows whose noise level is below ``gate``, None where there are none. Found where ``t`` is: on the CPU no
    accelerator is waited for."""
    if gate is None:
        return slice(None)
    indices = (process.ratio(t.cpu()) < gate).nonzero().squeeze(1)
    return indices.to(device, non_blocking=True) if len(indices) else None


@dataclass(frozen=True)
class Passes:
    """Noisy states, the network that sees them, and what it is given beside them."""

    model: Callable[..., Any]
    process: Process
    x: States
    t: Timesteps
    conditioning: dict[str, Any]

    def output(self, model: Callable[..., Any], x: Tensor, indices: Indices = slice(None)) -> Tensor:
        """The output of ``model`` at states ``x`` that belong to these ``indices``."""
        conditioning = of_items(self.conditioning, indices, len(self.t))
        return predicted(model, x, self.process.time(self.t)[indices], **conditioning)

    def perturbed(
        self, perturb: Perturb, indices: Indices, r: Tensor, start: Tensor, attacked: bool
    ) -> tuple[Tensor, Perturbed]:
        """The output for the whole batch, and what became of its perturbed ``indices``.

        Args:
            perturb: finds the perturbations.
            r, start: radius and start of each of the rows.
            attacked: ``perturb`` asks for predictions.
        """
        n = len(r)
        if isinstance(indices, Tensor):
            indices, r, start = (_padded(values, len(self.t)) for values in (indices, r, start))
        output, perturbed = self._routed(perturb, indices, r, start, attacked)
        return output, Perturbed(*(values[:n] for values in perturbed))

    def _routed(
        self, perturb: Perturb, indices: Indices, r: Tensor, start: Tensor, attacked: bool
    ) -> tuple[Tensor, Perturbed]:
        if stacks(attacked, len(r) / len(self.t)) and not known_random(self.model):
            before = RandomState(self.x.device)
            found = self._stacked(perturb, indices, r, start)
            if before == RandomState(self.x.device):
                return found
            before.restore()  # stacked rows cannot share dropout masks
            remember_random(self.model)
        return self._one_by_one(perturb, indices, r, start)

    def _stacked(self, perturb: Perturb, indices: Indices, r: Tensor, start: Tensor) -> tuple[Tensor, Perturbed]:
        """The attack on the rows' clean and perturbed states at once, then the whole batch and its perturbed rows at once."""
        process, n = self.process, len(r)
        x, t, everything = self.x[indices], self.t[indices], torch.arange(len(self.t), device=self.t.device)
        indices = everything[indices]
        shift = process.sigma(t, x)
        clean: Tensor | None = None

        def moves(delta: Tensor) -> Tensor:
            nonlocal clean
            x_moved = x + shift * delta
            if clean is None:
                clean, moved = self.output(attacked, torch.cat([x, x_moved]), torch.cat([indices, indices])).split(n)
                clean = process.to_eps(clean, x, t).detach()
            else:
                moved = self.output(attacked, x_moved, indices)
            return process.to_eps(moved, x_moved, t) - clean

        with frozen(self.model) as attacked:
            delta = perturb(moves, r, start)
        x_moved = x + shift * delta
        both = self.output(self.model, torch.cat([self.x, x_moved]), torch.cat([everything, indices]))
        output, moved = both.split([len(self.t), n])
        return output, Perturbed(delta, process.to_eps(output[indices], x, t), process.to_eps(moved, x_moved, t))

    def _one_by_one(self, perturb: Perturb, indices: Indices, r: Tensor, start: Tensor) -> tuple[Tensor, Perturbed]:
        """A pass at a time; all those over the rows start from one random state, so that they share dropout masks."""
        process = self.process
        x, t = self.x[indices], self.t[indices]
        shift = process.sigma(t, x)
        before = RandomState(x.device)
        output = self.output(self.model, self.x)
        after = RandomState(x.device)
        random = before != after

        def predict(model: Callable[..., Any], x: Tensor) -> Tensor:
            if random:
                before.restore()
            return process.to_eps(self.output(model, x, indices), x, t)

        alone = random and not isinstance(indices, slice)  # the masks of the whole batch are not those of its rows
        clean = predict(self.model, x) if alone else process.to_eps(output[indices], x, t)
        fixed = clean.detach()
        with frozen(self.model) as attacked:
            delta = perturb(lambda delta: predict(attacked, x + shift * delta) - fixed, r, start)
        moved = predict(self.model, x + shift * delta)
        if random:
            after.restore()
        return output, Perturbed(delta, clean, moved)


def _padded(values: Tensor, batch: int) -> Tensor:
    """``values`` with the last repeated up to one of few lengths: kernels are prepared anew for each size they meet."""
    n = len(values)
    unit = 4 if n <= 16 else 8 if n <= 64 else 16
    length = max(n, min(-(-n // unit) * unit, batch // 4))
    return torch.cat([values, values[-1:].expand(length - n, *values.shape[1:])]) if length > n else values
