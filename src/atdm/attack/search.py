"""How an attack looks for the perturbation: random points, FGSM and PGD with restarts, in the balls of :mod:`atdm.objective.perturb`.

Sources: Goodfellow 2015 (FGSM), Wong 2020 (random start), Madry 2018 (PGD, restarts), Athalye 2018 (expectation over
transformation).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Bool
from torch import Tensor

from ..diffusion.process import PerItem, States, per_item
from ..errors import expect
from ..objective.perturb import Ball, Perturbation


@runtime_checkable
class Gain(Protocol):
    """What the attack raises, one value per item, as a function of the perturbation."""

    def __call__(self, delta: Tensor, draw_index: int | None, /) -> Tensor:
        """``draw_index`` numbers the noise of the steps ahead, the same for every perturbation; None is new noise at every call."""
        ...


@dataclass(frozen=True)
class Found:
    """A perturbation and how it was found.

    Args:
        delta: noise units.
        gain: with it, under the noise that is common to all candidates.
        idle: items whose gradient was zero (or not finite) at every step; none where no step was made.
    """

    delta: States
    gain: PerItem
    idle: Bool[Tensor, "batch"]


@dataclass(frozen=True)
class Search:
    """Projected gradient ascent from random starts.

    Args:
        steps: ascent steps; 0 keeps the random points.
        norm: ``linf`` for ``[-r, r]^d`` or ``l2`` for the Euclidean ball of radius ``r sqrt(d)``.
        restarts: starts; each item keeps its best end.
        kappa: length of the first step in radii; steps shorten linearly. With inf every step ends on the boundary, for
            l2 a power iteration.
        draws: of the noise ahead, averaged in each gradient, for stochastic samplers through the rest.
        start: ``random`` in the ball, or ``zero``, where the gradient of a movement vanishes.
    """

    steps: int = 10
    norm: str = "linf"
    restarts: int = 1
    kappa: float = 1.0
    draws: int = 1
    start: Literal["random", "zero"] = "random"

    def __post_init__(self) -> None:
        Perturbation(self.norm, self.steps, self.kappa)
        for name in ("restarts", "draws"):
            expect(getattr(self, name) >= 1, f"{name} of the attack", getattr(self, name), "an integer >= 1")

    @property
    def ball(self) -> Ball:
        return Perturbation(self.norm).ball

    def run(self, gain: Gain, x: States, generators: list[torch.Generator], r: PerItem) -> Found:
        """The best perturbation of all restarts, item by item.

        Args:
            x: what is perturbed.
            generators: of the starts, on the CPU; each serves as many consecutive items.
            r: radius in noise units.
        """
        shape = (len(x) // len(generators), *x.shape[1:])
        tries = []
        for _ in range(self.restarts):
            start = torch.cat([self.ball.start(shape, g, torch.device("cpu")) for g in generators]).to(x)
            delta = per_item(r, start) * start if self.start == "random" else torch.zeros_like(start)
            idle = torch.full_like(r, bool(self.steps), dtype=torch.bool)
            for k in range(self.steps):
                ascent = Perturbation(self.norm, 1, self.kappa * (1 - k / self.steps))
                gradient = self._gradient(gain, delta)
                idle &= (gradient == 0).flatten(1).all(1)
                delta = ascent.step(delta, gradient, r)
            with torch.no_grad():
                reached = torch.stack([gain(delta, draw_index) for draw_index in range(self.draws)]).mean(0)
            tries.append(Found(delta, reached, idle))
        return reduce(_better, tries)

    def _gradient(self, gain: Gain, delta: Tensor) -> Tensor:
        """Averaged over draws; zero for items where it is not finite."""
        total = torch.zeros_like(delta)
        for _ in range(self.draws):
            with torch.enable_grad():
                leaf = delta.detach().clone().requires_grad_(True)
                value = gain(leaf, None).sum()
                if value.requires_grad:
                    (gradient,) = torch.autograd.grad(value, leaf, allow_unused=True)
                    total += 0 if gradient is None else gradient  # None: the network hides its input
        return torch.where(per_item(total.isfinite().flatten(1).all(1), total), total, torch.zeros_like(total))


def _better(one: Found, other: Found) -> Found:
    """Item by item, the one that gains more."""
    wins = other.gain > one.gain
    return Found(
        torch.where(per_item(wins, one.delta), other.delta, one.delta),
        torch.where(wins, other.gain, one.gain),
        one.idle & other.idle,
    )


def random(restarts: int = 1, norm: str = "linf", draws: int = 1) -> Search:
    """Uniform points of the ball; with restarts the best of so many."""
    return Search(0, norm, restarts, draws=draws)


def fgsm(norm: str = "linf", restarts: int = 1, draws: int = 1, start: Literal["random", "zero"] = "random") -> Search:
    """One step of a radius from a random start."""
    return Search(1, norm, restarts, draws=draws, start=start)


ATTACKS: dict[str, Callable[..., Search]] = {"random": random, "fgsm": fgsm, "pgd": Search}
