"""Hooks for :func:`atdm.diffusion.sampling.trajectory` that move the state where it hurts, or as another attack did.

Budgets are in noise units: at every attacked step ``x_t`` becomes ``x_t + sigma_t delta`` with delta in the ball.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import KW_ONLY, dataclass, field

import numpy as np
import torch
from torch import Tensor

from ..diffusion.process import States
from ..diffusion.sampling import Solver
from ..errors import UserError, expect, require_known
from .goals import Goal
from .search import Found, Search

THROUGH = ("step", "rest")


@dataclass(frozen=True)
class StepPerturbation:
    """What an attack did to one batch at one step.

    Args:
        index, t: the step.
        gain: of the goal, mean over items.
        used: share of the ball's constraint that binds, mean over items.
        excess: largest ratio of a perturbation's norm to the budget, over items.
        idle: share of items that had no gradient.
        drew: the steps ahead drew noise, so that the gain was an estimate.
        delta: noise units, on the CPU; None unless the attack keeps its perturbations.
    """

    index: int
    t: int
    gain: float
    used: float
    excess: float
    idle: float
    drew: bool
    delta: States | None = None


@dataclass(eq=False, repr=False)
class TrajectoryAttack:
    """A hook that attacks: give it to ``sample(..., hook=...)`` or ``trajectory``, with any sampler.

    Examples:
        >>> attack = TrajectoryAttack(Search(steps=10), Denoised(), budget=0.3)
        >>> attacked = sample(model, process, 64, (3, 32, 32), seed=0, hook=attack)
        >>> clean = sample(model, process, 64, (3, 32, 32), seed=0)  # the same x_T and the same noise

    The sampler's own noise stays as it is, so that attacked and clean samples are comparable item by item. The attacker
    does not know the noise of the steps ahead: it averages over ``search.draws`` of its own. Its random starts are a
    function of ``seed``, the sampling seed and the item.

    Args:
        search: how to look for the perturbation.
        goal: what to raise.
        budget: radius in noise units at each attacked step; 0 does nothing.
        at: indices of the network evaluations to attack, 0 being the first; None: all of them.
        through: ``step`` raises the goal of the denoised image or the prediction at the state itself, ``rest`` that of
            the sample at the end, through all the steps that remain (checkpointed, so memory is that of one evaluation).
        seed: of the random starts and of the draws.
        keep: keep the perturbations, for :class:`Replay`; they are as large as the trajectories.

    Raises:
        UserError: a budget or a combination that makes no sense.
    """

    search: Search
    goal: Goal
    budget: float
    _: KW_ONLY
    at: Collection[int] | None = None
    through: str = "step"
    seed: int = 0
    keep: bool = False
    perturbations: list[list[StepPerturbation]] = field(default_factory=list, init=False)  # of each batch

    def __post_init__(self) -> None:
        require_known("way through the sampler", self.through, THROUGH)
        expect(self.budget >= 0, "The budget of the attack", self.budget, "a number >= 0, in noise units")
        if self.through == "rest" and self.goal.sees != "image":
            raise UserError(
                "An attack through the rest of the sampler needs a goal that sees the image; this one sees the "
                "prediction. Expected through='step', or another goal such as denoised."
            )
        self.at = None if self.at is None else frozenset(self.at)
        self._clean: Solver | None = None

    def attach(self, solver: Solver) -> None:
        """Begin with a batch; called by ``trajectory``."""
        self._solver = solver
        self._clean = solver.fork() if self.goal.beside == "clean" else None
        self.perturbations.append([])

    def __call__(self, index: int, t: int, x: States) -> States:
        """The perturbed state."""
        if self.budget and (self.at is None or index in self.at):
            # Generators of this step alone: the k-th start is the same whatever the search did before it.
            starts, draws = ([_derived(g, self.seed, index, use) for g in self._solver.generators] for use in range(2))
            look = _Look(self._solver, self._clean, self.goal, self.through, draws)
            r = torch.full((len(x),), float(self.budget), device=x.device)
            found = self.search.run(look, x, starts, r)
            self.perturbations[-1].append(_record(index, t, self.search, found, r, look.drew, self.keep))
            x = x + look.sigma * found.delta
        if self._clean is not None:
            self._clean.step()
        return x


class _Look:
    """The gain of a perturbation at the solver's present step."""

    def __init__(
        self, solver: Solver, clean: Solver | None, goal: Goal, through: str, generators: list[torch.Generator]
    ) -> None:
        self.solver, self.clean, self.goal, self.through, self.generators = solver, clean, goal, through, generators
        self.sigma = float(solver.process.sigmas[solver.t])
        self.x = solver.x
        self.common: dict[int, list[torch.Generator]] = {}
        self.beside: Tensor | None = None
        self.drew = False

    def __call__(self, delta: Tensor, draw_index: int | None) -> Tensor:
        generators = self.generators
        if draw_index is not None and self.through == "rest":
            if draw_index not in self.common:  # drawn once, and seen by every candidate
                numbers = (int(torch.randint(2**62, (), generator=g)) for g in self.generators)
                self.common[draw_index] = [torch.Generator().manual_seed(number) for number in numbers]
            generators = [g.clone_state() for g in self.common[draw_index]]
        same = [g.clone_state() for g in generators]
        seen = self._see(self.solver, self.x + self.sigma * delta, generators)
        return self.goal(seen, self._beside(same))

    def _beside(self, generators: list[torch.Generator]) -> Tensor | None:
        if self.goal.beside == "none":
            return None
        if self.beside is None or self.drew:
            solver = self.solver if self.clean is None else self.clean
            with torch.no_grad():
                self.beside = self._see(solver, solver.x, generators)
        return self.beside

    def _see(self, solver: Solver, x: Tensor, generators: list[torch.Generator]) -> Tensor:
        if self.through == "step":
            # Not clipped: what the sampler clips has no gradient, and an attack must not mistake that for strength.
            evaluation = solver.predict(x)
            return evaluation.eps if self.goal.sees == "eps" else evaluation.raw
        fork = solver.fork(generators)
        fork.move(x)
        before = generators[0].get_state()
        end = fork.finish()
        self.drew |= not torch.equal(before, generators[0].get_state())
        return end


class Replay:
    """A hook that perturbs as another attack did, step by step and item by item: a transferred attack.

    Args:
        attack: made with ``keep=True``; has attacked a run with the same sampler, steps, number of samples and batch size.
    """

    def __init__(self, attack: TrajectoryAttack) -> None:
        self.batches = iter(attack.perturbations)

    def attach(self, solver: Solver) -> None:
        """Begin with a batch; called by ``trajectory``."""
        perturbations = next(self.batches, None)
        if perturbations is None:
            raise UserError("The attack has fewer batches than this run. Expected one of the same size.")
        self.process = solver.process
        self.deltas = {one.index: one.delta for one in perturbations}

    def __call__(self, index: int, t: int, x: States) -> States:
        """The perturbed state."""
        if index not in self.deltas:
            return x
        delta = self.deltas[index]
        if delta is None:
            raise UserError("The attack did not keep its perturbations. Expected one made with keep=True.")
        if delta.shape != x.shape:
            raise UserError(
                f"The attack perturbed {list(delta.shape)} and this run has {list(x.shape)}. Expected the same size."
            )
        return x + float(self.process.sigmas[t]) * delta.to(x)


def _record(index: int, t: int, search: Search, found: Found, r: Tensor, drew: bool, keep: bool) -> StepPerturbation:
    flat = found.delta.flatten(1)
    norm = flat.abs().amax(1) if search.norm == "linf" else flat.square().mean(1).sqrt()
    gain, used = found.gain.mean().item(), search.ball.used(found.delta, r).mean().item()
    excess, idle = (norm / r).max().item(), found.idle.float().mean().item()
    return StepPerturbation(index, t, gain, used, excess, idle, drew, found.delta.cpu() if keep else None)


def _derived(generator: torch.Generator, *numbers: int) -> torch.Generator:
    """A generator of the attacker beside one of the sampler: another, and a function of it."""
    entropy = [generator.initial_seed(), *(n for number in numbers for n in (abs(number), int(number < 0)))]
    (state,) = np.random.SeedSequence(entropy).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state) >> 1)
