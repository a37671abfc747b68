"""The damage an attack does against its budget: paired with the clean samples of the same random numbers."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ..diffusion.model import Model, require_finite
from ..diffusion.sampling import Hook
from ..diffusion.steps import Sampling
from ..errors import UserError
from ..metrics import evaluate_samples
from .goals import Goal
from .hook import TrajectoryAttack
from .search import Search

PAIRED = ("damage", "moved_rms")
DIAGNOSTICS = ("used", "excess", "idle")


def bootstrap(values: Sequence[float], share: float = 0.95, draws: int = 4000) -> tuple[float, float]:
    """The percentile interval of the mean over resampled ``values`` (Efron 1979); the same values, the same interval."""
    x = np.asarray(values, dtype=float)
    means = x[np.random.default_rng(0).integers(len(x), size=(draws, len(x)))].mean(1)
    low, high = np.quantile(means, [(1 - share) / 2, (1 + share) / 2])
    return float(low), float(high)


@dataclass(frozen=True)
class Victim:
    """A model, how it is sampled, and what an attack on it is after.

    Args:
        model: of pixels or vectors.
        goal: fitted to the data (``goal.fit(reference, truth)``).
        n: samples.
        at, through: see :class:`TrajectoryAttack`.
        sampling: how it is sampled.
        batch_size: see :class:`~atdm.diffusion.sampling.Batches`.
    """

    model: Model
    goal: Goal
    n: int = 256
    at: Collection[int] | None = None
    through: str = "step"
    sampling: Sampling = Sampling()
    batch_size: int = 1024

    def sample(self, seed: int, hook: Hook | None = None) -> Float[Tensor, "n *item"]:
        """The samples of a seed, clean or under a hook."""
        return self.model.sample(self.n, self.sampling, seed=seed, hook=hook, batch_size=self.batch_size)

    def attack(
        self, search: Search, budget: float, seed: int, keep: bool = False
    ) -> tuple[Float[Tensor, "n *item"], TrajectoryAttack]:
        """The samples of a seed under attack, and the attack with its records."""
        hook = TrajectoryAttack(search, self.goal, budget, at=self.at, through=self.through, seed=seed, keep=keep)
        return self.sample(seed, hook), hook

    def damage(self, samples: Float[Tensor, "n *item"], clean: Float[Tensor, "n *item"]) -> float:
        """By how much the goal is further up than in the clean samples, mean over the items that are finite in both.

        In the goal's unit; the goals that see a movement have a mean square one, of the samples.
        """
        fine = (samples.isfinite() & clean.isfinite()).flatten(1).all(1)
        if not fine.any():
            return math.nan
        samples, clean = samples[fine], clean[fine]
        with torch.no_grad():
            return (self.goal(samples, clean) - self.goal(clean, clean)).double().mean().item()


@dataclass(frozen=True)
class Attacked:
    """One budget and seed: a row of numbers, and the samples they are of."""

    row: dict[str, Any]
    samples: Float[Tensor, "n *item"]


def damage_curve(
    victim: Victim,
    search: Search,
    budgets: Sequence[float],
    seeds: Sequence[int],
    reference: Float[Tensor, "m *item"],
    truth: object | None = None,
    features: str = "pixels",
) -> Iterator[Attacked]:
    """Attack at every budget (noise units) under every seed of the sampling.

    Each row has the paired ``damage`` and ``moved_rms`` (root mean square movement of the samples, data units), all that
    :func:`atdm.metrics.evaluate_samples` says of the attacked samples, and the attack's own diagnostics.

    Raises:
        UserError: no budget or seed, a negative budget, or samples that diverge without attack.
    """
    if not budgets or not seeds:
        raise UserError("A damage curve needs budgets and seeds. Expected at least one of each.")
    for seed in seeds:
        clean = victim.sample(seed)
        require_finite(clean, "samples without attack")
        for budget in budgets:
            samples, hook = victim.attack(search, budget, seed)
            values = evaluate_samples(samples, reference, truth, features)
            row = {"budget": budget, "seed": seed, **_paired(victim, samples, clean), **values, **_diagnostics(hook)}
            yield Attacked(row, samples)


def _paired(victim: Victim, samples: Tensor, clean: Tensor) -> dict[str, float]:
    moved = (samples - clean).double().square()
    moved_rms = moved[moved.flatten(1).isfinite().all(1)].mean().sqrt().item()
    return {"damage": victim.damage(samples, clean), "moved_rms": moved_rms}


def _diagnostics(hook: TrajectoryAttack) -> dict[str, Any]:
    perturbations = [one for batch in hook.perturbations for one in batch]
    return {
        "attacked_steps": len(hook.perturbations[0]) if perturbations else 0,
        "used": sum(p.used for p in perturbations) / len(perturbations) if perturbations else None,
        "excess": max(p.excess for p in perturbations) if perturbations else None,
        "idle": max(p.idle for p in perturbations) if perturbations else None,
    }


def summarize(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """For each budget and measure the mean over the seeds and its 95 % bootstrap interval: ``measure, low, high``."""
    measures = [k for k in rows[0] if k not in ("budget", "seed", "attacked_steps", *DIAGNOSTICS)]
    out = []
    for budget in dict.fromkeys(row["budget"] for row in rows):
        of = [row for row in rows if row["budget"] == budget]
        for measure in measures:
            values = [row[measure] for row in of if row.get(measure) is not None and math.isfinite(row[measure])]
            if values:
                low, high = bootstrap(values)
                mean = sum(values) / len(values)
                out.append(
                    {"budget": budget, "measure": measure, "mean": mean, "low": low, "high": high, "seeds": len(values)}
                )
    return out
