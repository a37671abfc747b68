"""A few clean items that are known to be clean, beside many corrupted ones: which objective makes most of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from .. import plot
from ..data import Dataset
from ..data.items import Floats
from ..plot.images import image_grids
from ..pool import Tell, part
from ..report import Row
from ..training.config import ObjectiveConfig
from . import by_scale, digits, label_of, plane
from .baselines import IMAGES, keys, words
from .baselines import base as base_of
from .images import small_features
from .runner.findings import Claim, Findings, Outcome, at_most, first_seed
from .runner.jobs import AUTO, DDPM, Job, grid, open_held_out, prepare, train
from .runner.rows import by_value, means, number, rows_at_stops, table_of, values_of

ONLY, BEST, WITHOUT = "ddpm, trusted items only", "ddpm, best early stop", "auto, none trusted"
STOPS = (0.1, 0.2, 0.3, 0.5)  # noise levels at which the sampling of ddpm is also stopped
PLAIN = {"ddpm": DDPM, ONLY: DDPM}
METHODS = PLAIN | {name: ObjectiveConfig(name) for name in ("auto:k=2", "ambient_blind", "omni", "sfbd")}
OF_VECTORS = METHODS | {"sfbd": ObjectiveConfig("sfbd:known=true")}  # their noise cannot be estimated
del OF_VECTORS["ambient_blind"]
OF_IMAGES = PLAIN | {n: ObjectiveConfig(n.split(",")[0]) for n in ("auto", WITHOUT, "ambient_blind", "omni", "sfbd")}
CONDITIONS = {
    "digits": {
        "noise 0.2 on 90 %": "gaussian:share=0.9,std=0.2",
        "JPEG on 90 %": "jpeg:share=0.9,quality=10",
        "patches on 50 %": "patch:share=0.5,size=0.4",
    },
    "plane": {
        "noise 0.2 on 90 %": "gaussian:share=0.9,std=0.2",
        "10 % outliers": "outliers:share=0.1",
    },
    IMAGES: {
        "noise 0.2 on 90 %": "gaussian:share=0.9,std=0.2",
        "JPEG on 90 %": "jpeg:share=0.9,quality=10",
        "patches on 50 %": "patch:share=0.5,size=0.4",
        "10 % outliers": "outliers:share=0.1",
    },
}
FOREIGN = ("JPEG on 90 %", "patches on 50 %")  # kinds of corruption for which nothing else helps
TARGET = 0.7  # of the distance of ddpm's best early stop


def jobs(scale: str, seeds: Sequence[int], data: str | None) -> list[Job]:
    """Every method under every corruption.

    Args:
        data: digits, plane, or images, learned at 16x16 at scale cpu; None: digits and plane.
    """
    todo = []
    for benchmark in [data] if data else by_scale(scale, ["digits"], ["digits", "plane"], ["digits", "plane"]):
        base = _base(benchmark, scale)
        able = {"digits": METHODS, "plane": OF_VECTORS}.get(benchmark, OF_IMAGES)
        conditions = CONDITIONS[base.options["benchmark"]]
        if scale == "smoke":
            conditions = dict(list(conditions.items())[:1])
        first = next(iter(conditions))  # what learns from the trusted items alone need not learn again
        todo += [job for job in grid(base, able, conditions, seeds) if job.label != ONLY or job.condition == first]
    return [job.but(corrupt="none") if job.label == ONLY else job for job in todo]


def _base(benchmark: str, scale: str) -> Job:
    count = 150
    if benchmark == "plane":
        found = plane.base(scale)
        found = found if scale != "cpu" else found.but(steps=1000, samples=1000)
        found = found.but(sampling=dataclasses.replace(found.sampling, steps=by_scale(scale, 20, 100, 500)))
    elif benchmark == "digits":
        found = digits.base("smoke" if scale == "smoke" else "cpu", steps=800, samples=400, sampling_steps=50)
    else:
        found, benchmark, count = base_of(IMAGES, scale, benchmark), IMAGES, 200
        found = found.but(steps=2 * found.config.steps)  # twice those of the baselines: details are learned last
    return found.but(options={"benchmark": benchmark, "trusted": by_scale(scale, 40, count, count)})


def split(job: Job) -> tuple[Dataset, Dataset]:
    """The data of a job without some of its items, and those, which are trusted."""
    data, count = open_held_out(job), job.options["trusted"]
    order = torch.randperm(len(data.x), generator=torch.Generator().manual_seed(job.seed))
    trusted, others = order[:count], order[count:]
    return (
        dataclasses.replace(data, items=Floats(data.x[others])),
        dataclasses.replace(data, items=Floats(data.x[trusted]), held_out=None),
    )


def work(job: Job, tell: Tell) -> Outcome:
    """Train with the trusted items among the others, or with them alone; sample, of ddpm also stopping early; measure."""
    data, trusted = split(job)
    if job.options["benchmark"] == IMAGES:  # pixels hardly show what is wrong with details
        steps = min(300, job.config.steps)
        small = small_features(Path("runs/trusted"), label_of(job.config.data), data.reference, job.config.data, steps)
        job = job.but(features=f"{small}+{job.features}")
    alone = dataclasses.replace(data, items=trusted.items)
    parts = prepare(job, alone if job.label == ONLY else data, None if job.label in (ONLY, WITHOUT) else trusted)
    trained = train(job, part(tell, 0, 0.8), parts)
    stops = {f"ddpm, stopped at {stop:g}": stop for stop in STOPS} if job.label == "ddpm" else {}
    more: Row = {"benchmark": job.options["benchmark"]}
    if job.options["benchmark"] == IMAGES:
        more["chosen"] = trained.config.objective.name
    if parts.levels is not None:
        found, touched = parts.levels, torch.from_numpy(parts.truth.corrupted)
        more |= {"level_seconds": found.seconds, "always": float((found.stds == 0).double().mean())}
        if bool(touched.any()) and not bool(touched.all()):
            more["level_auc"] = auc(found.stds, touched)
    rows, drawn = rows_at_stops(trained, part(tell, 0.8, 1), stops, more)
    return Outcome(job, rows, {"samples": drawn[job.label][:16]})


def auc(scores: Tensor, label: Tensor) -> float:
    """How often an item of the class has a higher score than one of the other, equal ones by half."""
    theirs, other = scores[label], scores[~label]
    above = (theirs[:, None] > other[None, :]).double() + 0.5 * (theirs[:, None] == other[None, :]).double()
    return float(above.mean())


def with_best_stop(rows: Sequence[Row], distance: str) -> list[Row]:
    """The rows with only the best early stop of ddpm, which is known in hindsight, for each corruption and seed."""
    stopped = [r for r in rows if r["method"].startswith("ddpm, stopped")]
    best: dict[tuple[str, int], Row] = {}
    for r in stopped:
        key = (r["condition"], r["seed"])
        best[key] = min(best.get(key, r), r, key=lambda r: r[distance])
    return [*(r for r in rows if r not in stopped), *({**r, "method": BEST} for r in best.values())]


def _elsewhere(rows: Sequence[Row]) -> list[Row]:
    """The rows of what saw no corruption, for the other conditions."""
    alone = [r for r in rows if r["method"] == ONLY]
    return [{**r, "condition": c} for r in alone for c in values_of(rows, "condition") if c != r["condition"]]


def findings(scale: str, outcomes: Sequence[Outcome]) -> Findings:
    """A table for each benchmark; whether omni is ahead of what does without its classifier."""
    every = [r for o in outcomes for r in o.rows]
    claims: list[Claim] = []
    rows, tables, figures = [], [], {}
    for benchmark, chosen in by_value(every, "benchmark").items():
        residual, distance = keys(chosen)
        order = values_of(chosen, "condition")
        chosen = sorted(
            [*with_best_stop(chosen, distance), *_elsewhere(chosen)], key=lambda r: order.index(r["condition"])
        )
        rows += chosen
        columns = {
            "residual": residual,
            "distance from clean": distance,
            "spread": "spread",
            "among pixels": "frechet_pixels" if "pixels" not in distance else "",
            "AUC of the levels": "level_auc",
        }
        columns = {head: key for head, key in columns.items() if any(key in r for r in chosen)}
        by = {"training data": "condition", "method": "method", "objective": "chosen"}
        by = {head: key for head, key in by.items() if key in chosen[0]}
        tables.append(
            table_of(
                chosen, by, columns,
                f"{benchmark}: {words(residual)}; {words(distance)}. Lower is better. AUC: of the noise level from which on omni "
                "uses an item, between corrupted and untouched ones.",
            )
        )  # fmt: skip
        for condition in values_of(chosen, "condition"):
            claims += _judged(chosen, f"{benchmark}, {condition}", condition, distance)
        points = [
            (r["condition"], r["method"], r[residual], r[distance])
            for r in sorted(chosen, key=lambda r: r["method"])
            if r["seed"] == outcomes[0].job.seed
        ]
        figures[f"{benchmark}-tradeoff"] = (
            f"{benchmark}: residual and distance from clean data, towards the lower left is better; a line for each method.",
            plot.scatter_tradeoff(points, words(residual), words(distance)),
        )
    shown = [o for o in first_seed(outcomes) if o.tensors["samples"].dim() == 4]
    condition = next((c for c in FOREIGN if any(o.job.condition == c for o in shown)), None)
    panels = {o.job.label: o.tensors["samples"] for o in shown if o.job.condition == condition}
    if panels:
        figures["samples"] = (f"Samples, {condition}.", image_grids(panels))
    without = f" but one ({WITHOUT})" if any(o.job.label == WITHOUT for o in outcomes) else ""
    lead = (
        f"No published counterpart on these data. {outcomes[0].job.options['trusted']} clean items are known to be clean, and join "
        f"the training data of every method{without}; one baseline learns from them alone. omni (Daras 2025) uses each other item only from the noise level on from "
        "which a classifier cannot tell it from a trusted one. sfbd (Lu 2025) learns from the trusted items first, then denoises the noisy "
        "ones; on the plane it knows their noise, elsewhere it estimates it. Distances are to held-out clean data, which no method saw; the best "
        "early stop is known in hindsight."
    )
    return Findings(lead, claims, rows, figures, tables)


def _judged(rows: Sequence[Row], where: str, condition: str, distance: str) -> Iterator[Claim]:
    """omni, and auto where it chose for itself, beside the best of the others and beside the early stop."""
    of = means(rows, distance, condition=condition)
    measured = [m for m in values_of(rows, "method") if of(m) == of(m)]
    for ours in [m for m in ("omni", AUTO) if m in measured]:
        best = min((m for m in measured if m != ours), key=of)
        yield at_most(
            f"{where}: {ours} is at least as close to clean data as any other", of(ours), of(best), 1, (ours, best)
        )
        if condition in FOREIGN:
            statement = f"{where}: {ours} is at {TARGET:g} times the distance of ddpm's best early stop"
            yield at_most(statement, of(ours), of(BEST), TARGET, (ours, BEST))
    aucs = [r["level_auc"] for r in rows if r["condition"] == condition and "level_auc" in r]
    if aucs:
        statement = f"{where}: the levels tell corrupted items from untouched ones, AUC 0.9"
        yield Claim(statement, min(aucs) >= 0.9, f"AUC {number(min(aucs))}")
