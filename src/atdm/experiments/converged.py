"""Long training: CIFAR-10 at 16x16, all its images, noise of std 0.2 on 90 % of them, 20,000 steps of 64 for every objective.

Each model is a run folder below ``runs/converged``: hours of training may be spread over many sittings.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from ..diffusion.steps import Sampling
from ..training.config import ObjectiveConfig
from ..training.recipes import recipe
from . import by_scale, images
from .images import work
from .runner.findings import Findings, Outcome
from .runner.jobs import DDPM, Job, published

__all__ = ["findings", "jobs", "work"]


def jobs(scale: str, seeds: Sequence[int], data: str | None) -> list[Job]:
    """ddpm, the published objectives, auto and ambient_blind.

    Args:
        data: a folder or spec of CIFAR-10, instead of what the recipe names.
    """
    objectives = {
        "ddpm": DDPM,
        "robust_adv": published("robust_adv"),
        "ambient_blind": ObjectiveConfig("ambient_blind"),
        "auto": ObjectiveConfig("auto"),
        "robust_rand": published("robust_rand"),
    }
    base = images.smoke() if scale == "smoke" else recipe("cifar10-16")
    if data is not None and scale != "smoke":
        base = dataclasses.replace(base, data=data)
    if scale == "smoke":
        objectives["ambient_blind"] = ObjectiveConfig("ambient")
    todo = []
    for seed in seeds:
        for label, objective in objectives.items():
            options: dict[str, Any] = {
                "out": f"runs/converged-{scale}/{label}-{seed}",
                "objective": objective,
                "seed": seed,
            }
            todo.append(
                Job(
                    config=dataclasses.replace(base, corrupt=images.CONDITIONS[images.STANDARD], **options),
                    samples=by_scale(scale, 32, 5000, 10_000),
                    sampling=by_scale(
                        scale, Sampling("ddpm", 5), Sampling("sde-dpm-solver++", 50), Sampling("ddpm", 1000)
                    ),
                    features=by_scale(scale, "patches", "pixels+efficientnet-lite", "pixels+inception"),
                    step_seconds=by_scale(scale, 0.003, 0.15, 0.15),
                    label=label,
                    condition=images.STANDARD,
                    options={"set": "cifar10", "own_steps": by_scale(scale, 5, 1000, 1000)},
                )
            )
    return todo


def findings(scale: str, outcomes: Sequence[Outcome]) -> Findings:
    """The table of every objective, and the published order."""
    rows = [r for o in outcomes for r in o.rows]
    config = outcomes[0].job.config
    lead = (
        "Are the differences those of short training? The same network and images for every objective, "
        f"{config.steps} steps of {config.batch_size}. Published, at 32x32 with FID: ddpm 102.68, robust_rand 68.04, "
        "robust_adv 24.81."
    )
    return Findings(lead, images.claims(rows), rows, images.figures(outcomes), [images.table(rows)])
