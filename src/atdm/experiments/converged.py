"""Long training: CIFAR-10 at 16x16, all its images, noise of std 0.2 on 90 % of them, 20,000 steps of 64 for every objective.

Each model is a run folder below ``runs/converged``: hours of training may be spread over many sittings. Samples take 1,000
steps, as published: the weight of the regularizer is largest at the lowest noise levels, which fewer steps do not visit
(docs/method.md). Beside them stand the 50 steps of the other pages.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from ..diffusion.steps import Sampling
from ..report import Row
from ..training.config import ObjectiveConfig
from ..training.recipes import recipe
from . import by_scale, images
from .images import work
from .runner.findings import Claim, Findings, Outcome
from .runner.jobs import DDPM, Job, published
from .runner.rows import means

__all__ = ["findings", "jobs", "work"]

FEW = {"sampler": "sde-dpm-solver++", "steps": 50}


def jobs(scale: str, seeds: Sequence[int], data: str | None) -> list[Job]:
    """ddpm, the published objectives, auto and ambient_blind.

    Args:
        data: a folder or spec of CIFAR-10, instead of what the recipe names.
    """
    objectives = {
        "ddpm": DDPM,
        "robust_adv": published("robust_adv"),
        "ambient_blind": ObjectiveConfig("ambient" if scale == "smoke" else "ambient_blind"),
        "auto": ObjectiveConfig("auto"),
        "robust_rand": published("robust_rand"),
    }
    config = images.smoke() if scale == "smoke" else recipe("cifar10-16")
    if data is not None and scale != "smoke":
        config = dataclasses.replace(config, data=data)
    base = Job(
        config=dataclasses.replace(config, corrupt=images.CONDITIONS[images.STANDARD]),
        samples=by_scale(scale, 32, 500, 10_000),
        sampling=Sampling("ddpm", by_scale(scale, 5, 1000, 1000)),
        features=by_scale(scale, "patches", "pixels+efficientnet-lite", "pixels+inception"),
        step_seconds=by_scale(scale, 0.003, 0.15, 0.15),
        condition=images.STANDARD,
        options={"set": "cifar10", "own_steps": by_scale(scale, 5, 1000, 1000), "also": FEW},
    )
    todo = []
    for seed in seeds:
        for label, objective in objectives.items():
            # No faster in bf16 on a CPU: what the published perturbation moves too little for it is in single precision anyway.
            precision = "no" if "robust" in label else config.precision
            out = f"runs/converged-{scale}/{label}-{seed}"
            todo.append(base.but(label=label, objective=objective, seed=seed, out=out, precision=precision))
    return todo


def findings(scale: str, outcomes: Sequence[Outcome]) -> Findings:
    """The table of every objective, and the published order."""
    rows = [r for o in outcomes for r in o.rows]
    config = outcomes[0].job.config
    lead = (
        "Are the differences those of short training? The same network and images for every objective, at 16x16 "
        f"{config.steps:,} steps of {config.batch_size}. Published, at 32x32 with FID: ddpm 102.68, robust_rand 68.04, "
        "robust_adv 24.81. Rows that name no number of steps are sampled in as many as published, 1,000."
    )
    return Findings(lead, [*images.claims(rows), _steps(rows)], rows, images.figures(outcomes), [images.table(rows)])


def _steps(rows: Sequence[Row]) -> Claim:
    """Whether the regularizer acts where few sampling steps do not go."""

    def ratio(ending: str) -> float:
        of = means(rows, "noise_std", set="cifar10")
        return of("robust_adv" + ending) / of("ddpm" + ending)

    many, few = ratio(""), ratio(f", {FEW['steps']} steps")
    return Claim(
        "published robust_adv reduces the residual noise by more in 1,000 sampling steps than in 50",
        many < few,
        f"{many:.2f} times ddpm's, in 50 steps {few:.2f}",
    )
