"""How a batch and its perturbed rows are passed through a network: stacked or one by one, with the same dropout masks.

The mathematics does not depend on it; the cost does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..diffusion.conditioning import of_items
from ..diffusion.process import Process, States, Timesteps
from ..nets.passes import RandomState, frozen, known_random, remember_random
from ..nets.precision import full_precision
from .perturb import Radius
from .terms import counted, predicted

Indices = Int[Tensor, "perturbed"] | slice
Moves = Callable[[Tensor], Tensor]  # delta -> eps(x + sigma delta) - eps(x), with frozen weights
# Relative roundings of a state: the least move of which half precision still gives the gradient within a tenth.
RESOLUTION = 4


@dataclass(frozen=True)
class Attack:
    """How the perturbations of some rows are found.

    Args:
        perturb: of how the prediction moves, radii and starts in the unit ball: the perturbations.
        r, start: radius and start of each row.
        attacks: it asks for predictions; else the perturbations are random.
    """

    perturb: Callable[[Moves, Tensor, Tensor], Tensor]
    r: Float[Tensor, "perturbed"]
    start: Float[Tensor, "perturbed *dims"]
    attacks: bool

    def __call__(self, moves: Moves) -> Float[Tensor, "perturbed *dims"]:
        return self.perturb(moves, self.r, self.start)

    def map(self, change: Callable[[Tensor], Tensor]) -> Attack:
        """The same of other rows."""
        return replace(self, r=change(self.r), start=change(self.start))


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


def items_below(gate: float | None, process: Process, t: Timesteps) -> Indices | None:
    """The rows whose noise level is below ``gate``, None where there are none. Found on the CPU: no accelerator is waited for."""
    if gate is None:
        return slice(None)
    indices = (process.ratio(t.cpu()) < gate).nonzero().squeeze(1)
    return indices if len(indices) else None


def too_fine(half: torch.dtype | None, process: Process, t: Timesteps, radius: Radius) -> Tensor | None:
    """Which of the perturbed rows, at timesteps ``t``, the perturbation moves by too little for the precision ``half`` of autocast.

    There a difference of two predictions is made of rounding errors. None where there are no such rows. Found on the CPU.
    """
    if half is None:
        return None
    t = t.cpu()
    alpha, sigma = process.alpha(t), process.sigma(t)
    moves = sigma * radius(process, t, torch.full_like(sigma, 0.5)) / (alpha.square() + sigma.square()).sqrt()
    which = (moves < RESOLUTION * torch.finfo(half).eps).nonzero().squeeze(1)
    return which if len(which) else None


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

    def perturbed(self, attack: Attack, indices: Indices, fine: Tensor | None = None) -> tuple[Tensor, Perturbed]:
        """The output for the whole batch, and what became of its perturbed ``indices``.

        Args:
            fine: which of them, by their positions, are to be perturbed and predicted without autocast.
        """
        n, rows = len(attack.r), indices
        if isinstance(indices, Tensor):
            indices, attack = _padded(indices, len(self.t)), attack.map(partial(_padded, batch=len(self.t)))
        output, perturbed = self._routed(attack, indices)
        perturbed = Perturbed(*(values[:n] for values in perturbed))
        return output, perturbed if fine is None else self._exactly(fine, perturbed, attack, rows)

    def _exactly(self, fine: Tensor, perturbed: Perturbed, attack: Attack, indices: Indices) -> Perturbed:
        """``perturbed`` with its rows ``fine`` found anew in full precision."""
        n, fine = len(fine), _padded(fine.to(self.t.device, non_blocking=True), len(self.t))
        rows = torch.arange(len(self.t), device=self.t.device)[indices][fine]
        conditioning = of_items(self.conditioning, rows, len(self.t))
        part = Passes(self.model, self.process, self.x[rows], self.t[rows], conditioning)
        with full_precision(self.model, self.x.device):
            _, found = part.perturbed(attack.map(lambda values: values[fine]), slice(None))
        return Perturbed(*(old.index_copy(0, fine[:n], new[:n]) for old, new in zip(perturbed, found, strict=True)))

    def _routed(self, attack: Attack, indices: Indices) -> tuple[Tensor, Perturbed]:
        if stacks(attack.attacks, len(attack.r) / len(self.t)) and not known_random(self.model):
            before = RandomState(self.x.device)
            found = self._stacked(attack, indices)
            if before == RandomState(self.x.device):
                return found
            before.restore()  # stacked rows cannot share dropout masks
            remember_random(self.model)
        return self._one_by_one(attack, indices)

    def _stacked(self, attack: Attack, indices: Indices) -> tuple[Tensor, Perturbed]:
        """The attack on the rows' clean and perturbed states at once, then the whole batch and its perturbed rows at once."""
        process, n = self.process, len(attack.r)
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
            delta = attack(moves)
        x_moved = x + shift * delta
        both = self.output(self.model, torch.cat([self.x, x_moved]), torch.cat([everything, indices]))
        output, moved = both.split([len(self.t), n])
        return output, Perturbed(delta, process.to_eps(output[indices], x, t), process.to_eps(moved, x_moved, t))

    def _one_by_one(self, attack: Attack, indices: Indices) -> tuple[Tensor, Perturbed]:
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
            delta = attack(lambda delta: predict(attacked, x + shift * delta) - fixed)
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
