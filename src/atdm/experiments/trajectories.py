"""A plane in 3-D with strong inlier noise or uniform outliers: data, reverse trajectories, divergence (figure 2a)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from .. import plot
from ..data import load
from ..metrics import diverged_share
from ..pool import Tell, part
from ..report import Row
from . import plane
from .runner.findings import Claim, Findings, Outcome, at_most, beside_training, first_seed
from .runner.jobs import RECOMMENDED, Job, grid, paths, train
from .runner.rows import evaluate, mean_over_seeds, number, row, table_of, values_of

FAR = 3.0  # times the largest clean coordinate: a sample beyond it left the data altogether
SHOWN = 30  # noise levels at which trajectories are kept
LEAD = (
    "Points of a square patch of a plane in 3-D, one in ten replaced by a uniform draw from a cube, or nine in ten with "
    "noise of std 0.2 in all directions. The published figure shows that ddpm follows the corruption, that invariance (inv_adv) "
    "makes trajectories diverge, and that robust_adv stays on the plane."
)


def jobs(scale: str, seeds: Sequence[int], data: str | None) -> list[Job]:
    """Every method on both kinds of corruption."""
    conditions = [plane.OUTLIERS] if scale == "smoke" else [plane.OUTLIERS, plane.NOISE]
    return grid(plane.base(scale), plane.objectives(), dict(conditions), seeds)


def work(job: Job, tell: Tell) -> Outcome:
    """Train, then sample and keep the last part of the trajectories, from noise level 1.2 on."""
    trained = train(job, part(tell, 0, 0.8))
    steps, total = job.sampling.steps, trained.process.steps
    late = [i for i in range(steps) if total - 1 - i * (total // steps) <= trained.process.timestep_at(1.2)]
    keep = late[:: max(1, len(late) // SHOWN)]
    drawn = paths(trained, part(tell, 0.8, 0.95), keep)
    samples = drawn[-1]
    values = evaluate(trained, samples)
    values["left_share"] = diverged_share(samples, FAR * trained.dataset.x.abs().max().item())
    t = torch.tensor([total - 1 - i * (total // steps) for i in keep])
    levels = trained.process.ratio(torch.cat([t, torch.zeros(1, dtype=t.dtype)])).tolist()  # of samples: the lowest
    smooth = paths(trained, part(tell, 0.95, 1), keep, n=40, sampler="ddim")
    tensors = {"paths": smooth, "samples": samples[:3000], "corrupted": trained.corrupted[:3000]}
    away = [trained.dataset.truth.distance(x[x.isfinite().all(1)]).square().mean().sqrt().item() for x in drawn]
    return Outcome(job, [row(trained, samples, values)], {**tensors, "away": (levels, away)})


def findings(scale: str, outcomes: Sequence[Outcome]) -> Findings:
    """Clouds, trajectories and how far from the plane they end."""
    rows = [r for o in outcomes for r in o.rows]
    shown = first_seed(outcomes)
    truth = load(shown[0].job.config.data).truth
    claims: list[Claim] = []
    figures = {}
    for condition in values_of(rows, "condition"):
        chosen, short = [o for o in shown if o.job.condition == condition], plane.short(condition)
        figures[f"samples-{short}"] = (
            f"Training data with {condition}, and samples, coloured by their distance from the true plane.",
            plot.points3d(beside_training(chosen), truth),
        )
        figures[f"trajectories-{short}"] = (
            f"{condition}: a cut across the plane. The last part of reverse trajectories of the DDIM sampler, from noise level 1.2 (grey) on.",
            plot.trajectories({o.job.label: o.tensors["paths"] for o in chosen}, truth),
        )
        figures[f"distance-{short}"] = (
            f"{condition}: distance of the trajectories from the plane as the noise level falls (right to left).",
            plot.curves(
                {o.job.label: o.tensors["away"] for o in chosen},
                "noise level sigma/alpha",
                "rms distance from the plane (data units)",
                "xy",
            ),
        )

        claims += _claims(rows, condition)
    spreads = {
        m: [mean_over_seeds(rows, "spread_ratio", method=m, condition=c) for c in values_of(rows, "condition")]
        for m in values_of(rows, "method")
    }
    notes = [
        "Spread in the plane, relative to the truth: "
        + "; ".join(f"{m} {' and '.join(number(v) for v in s)}" for m, s in spreads.items())
        + f" ({' and '.join(values_of(rows, 'condition'))})."
    ]
    columns = {
        "off the plane (rms)": "off_support_rms",
        "spread / truth": "spread_ratio",
        "farther than 0.25": "outlier_share",
        "left the data": "left_share",
        "diverged": "diverged_share",
        "training (s)": "seconds",
    }
    table = table_of(
        rows,
        {"corruption": "condition", "objective": "method"},
        columns,
        f"Distances in data units. Left the data: a coordinate beyond {FAR:g} times the largest clean one; diverged: not "
        "finite, or beyond 10 times.",
    )
    return Findings(LEAD, claims, rows, figures, [table], notes)


def _claims(rows: Sequence[Row], condition: str) -> Iterator[Claim]:
    """What is published of each method under a corruption."""

    def off(method: str, key: str = "off_support_rms") -> float:
        return mean_over_seeds(rows, key, method=method, condition=condition)

    plain = off("ddpm")
    yield Claim(
        f"{condition}: ddpm follows the corruption off the plane",
        plain > 0.05,
        f"rms distance {number(plain)}",
    )
    yield Claim(
        f"{condition}: inv_adv diverges or misses the plane",
        off("inv_adv", "left_share") > 0.01 or off("inv_adv") > plain,
        f"{number(100 * off('inv_adv', 'left_share'))} % of its samples end beyond {FAR:g} times the data; rms distance "
        f"{number(off('inv_adv'))}, ddpm {number(plain)}",
    )
    yield at_most(
        f"{condition}: robust_adv as published stays at 0.6 times ddpm's distance or less",
        off("robust_adv"),
        plain,
        0.6,
        ("robust_adv", "ddpm"),
    )
    yield at_most(
        f"{condition}: robust_adv with the recommended setting stays at 0.6 times ddpm's distance or less",
        off(RECOMMENDED),
        plain,
        0.6,
        (RECOMMENDED, "ddpm"),
    )
    yield Claim(
        f"{condition}: adversarial beats random at the published constants",
        off("robust_adv") < off("robust_rand"),
        f"robust_adv {number(off('robust_adv'))}, robust_rand {number(off('robust_rand'))}",
    )
