"""A plane in 3-D with strong inlier noise or uniform outliers: data, reverse trajectories, divergence (figure 2a)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch

from .. import plot
from ..data import load
from ..metrics import diverged_share
from ..pool import Tell, part
from . import plane
from .runner.findings import Claim, Findings, Outcome, at_most, beats_random, beside_training, by_condition
from .runner.jobs import RECOMMENDED, Job, grid, paths, train
from .runner.rows import evaluate, means, number, row, table_of, values_of

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
    truth = load(outcomes[0].job.config.data).truth
    claims: list[Claim] = []
    figures = {}
    for condition, chosen in by_condition(outcomes):
        short = plane.short(condition)
        figures[f"samples-{short}"] = (
            f"Training data with {condition}, and samples, coloured by their distance from the true plane.",
            plot.points3d(beside_training(chosen), truth),
        )
        figures[f"trajectories-{short}"] = (
            f"{condition}: a cut across the plane. The last part of reverse trajectories of the DDIM sampler, from noise level 1.2 (grey) on.",
            plot.trajectories({o.job.label: o.tensors["paths"] for o in chosen}, truth),
        )
        away = {o.job.label: o.tensors["away"] for o in chosen}
        figures[f"distance-{short}"] = (
            f"{condition}: distance of the trajectories from the plane as the noise level falls (right to left).",
            plot.curves(away, "noise level sigma/alpha", "rms distance from the plane (data units)", "xy"),
        )
        claims += _claims(means(rows, "off_support_rms", condition=condition), condition)
    conditions = values_of(rows, "condition")
    spreads = {
        m: [number(means(rows, "spread_ratio", condition=c)(m)) for c in conditions] for m in values_of(rows, "method")
    }
    notes = [
        "Spread in the plane, relative to the truth: "
        + "; ".join(f"{m} {' and '.join(s)}" for m, s in spreads.items())
        + f" ({' and '.join(conditions)})."
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


def _claims(off: Callable[..., float], condition: str) -> Iterator[Claim]:
    """What is published of each method under a corruption."""
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
    for method, setting in (("robust_adv", "as published"), (RECOMMENDED, "with the recommended setting")):
        statement = f"{condition}: robust_adv {setting} stays at 0.6 times ddpm's distance or less"
        yield at_most(statement, off(method), plain, 0.6, (method, "ddpm"))
    yield beats_random(condition, off)
