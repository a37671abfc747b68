"""Attacks on the sampling trajectory: damage against budget, with exact error on the plane, and sanity checks."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from .. import plot
from ..attack import ATTACKS, GOALS, Search, Victim, check_seeds, damage_curve, doubt, random, summarize
from ..pool import Tell, part
from ..report import Row
from ..spec import build
from . import by_scale, digits, plane
from .runner.findings import Claim, Findings, Outcome, by_condition
from .runner.jobs import DDPM, RECOMMENDED, Job, Trained, grid, grids, published, recommended, train
from .runner.rows import mean_over_seeds, number, row, table_of, values_of

BUDGETS = (0.0, 0.01, 0.03, 0.1, 0.3)
IMAGE_BUDGETS = (0.0, 0.001, 0.003, 0.01, 0.03)  # more dimensions to move in
ATTACK = "pgd:steps=5,norm=l2"
IMAGES = "digits, noise 0.2"
SAMPLING_SEEDS = 3
LEAD = (
    "Published: under iterative attacks on the sampling trajectory the FID of robust_adv decays more slowly than ddpm's. "
    "Here every step of a DDIM sampler is perturbed by PGD inside an l2 ball, on the plane away from the plane, whose "
    "distance is exact. Attacked and clean samples share their random numbers, and each attack is checked."
)


def jobs(scale: str, seeds: Sequence[int], data: str | None) -> list[Job]:
    """The plane, clean and with noise, under the exact distance; digits, or 16x16 ``data``, under the movement of the image."""
    every = {"steps": by_scale(scale, 10, 50, 100), "sampling_seeds": by_scale(scale, 1, SAMPLING_SEEDS, 5)}
    exact = every | {"attack": ATTACK, "goal": "distance", "budgets": BUDGETS, "measure": "off_support_rms"}
    exact["n"] = by_scale(scale, 32, 500, 2000)
    moved = every | {"attack": ATTACK, "goal": "denoised", "budgets": IMAGE_BUDGETS, "measure": "moved_rms"}
    moved["n"] = by_scale(scale, 32, 200, 1000)
    if scale == "smoke":
        exact |= {"budgets": (0.0, 0.1), "attack": "pgd:steps=2,norm=l2"}
    conditions = [plane.NOISE] if scale == "smoke" else [plane.CLEAN, plane.NOISE]
    both = {"ddpm": DDPM, "robust_adv": published("robust_adv")}
    images = both | digits.recommended_for(scale, data)
    points = by_scale(scale, {"ddpm": DDPM}, both, both) | {RECOMMENDED: recommended(**plane.GATED)}
    noisy = {IMAGES if data is None else "photos, noise 0.2": digits.NOISE["noise 0.2"]}
    if data is not None:
        return grid(digits.photos(data, 4000, 400, 250).but(options=moved), images, noisy, seeds)
    on_plane = {f"plane, {name}": spec for name, spec in conditions}
    plans = [(plane.base(scale).but(options=exact), points, on_plane)]
    if scale != "smoke":
        plans.append((digits.base(scale).but(options=moved), images, noisy))
    return grids(plans, seeds)


def work(job: Job, tell: Tell) -> Outcome:
    """Train, attack at every budget, and doubt the attack; a defended model has its undefended baseline trained beside it."""
    trained = train(job, part(tell, 0, 0.3))
    plain = train(job.but(objective=DDPM), part(tell, 0.3, 0.4)) if job.label != "ddpm" else None
    reference, truth, options = trained.dataset.reference, trained.dataset.truth, job.options
    search: Search = build("attack", options["attack"], ATTACKS)
    victim = _victim(trained)
    sampling_seeds = [job.seed + i for i in range(options["sampling_seeds"])]
    rows, summaries = [], {}
    searches = {options["attack"]: search, "random:norm=l2": random(norm="l2")}
    total = len(searches) * len(sampling_seeds) * len(options["budgets"])
    for name, how in searches.items():
        found: list[Row] = []
        for point in damage_curve(victim, how, options["budgets"], sampling_seeds, reference, truth, job.features):
            found.append(point.row)
            about = {"attack": name, "goal": options["goal"], "sampler": "ddim", "steps": options["steps"]}
            about |= {"seed": job.seed, "sampling_seed": point.row["seed"], "samples": len(point.samples)}
            rows.append(row(trained, point.samples, point.row, **about))
            tell(0.4 + 0.4 * len(rows) / total)
        summaries[name] = summarize(found)
    worst = max(options["budgets"])
    checks = doubt(victim, search, worst, job.seed, _victim(plain) if plain else None)
    hardest = [r for r in rows if r["budget"] == worst and r["attack"] == options["attack"]]
    checks.append(check_seeds([r["damage"] for r in hardest]))
    for r in hardest:
        r["checks"] = [c.as_dict() for c in checks]
    return Outcome(job, rows, {"summaries": summaries, "checks": [c.as_dict() for c in checks]})


def _victim(trained: Trained) -> Victim:
    options = trained.job.options
    reference, truth = trained.dataset.reference, trained.dataset.truth
    goal = build("objective of an attack", options["goal"], GOALS).fit(reference, truth)
    sampling = dataclasses.replace(trained.sampling, sampler="ddim", steps=options["steps"])
    return Victim(trained.model, goal, options["n"], sampling=sampling)


def budget_that_doubles(curve: Mapping[float, float]) -> float | None:
    """The budget at which the error is twice that without attack, between those measured linearly; None if none is."""
    points = sorted(curve.items())
    wanted = 2 * points[0][1]
    for (low, below), (high, above) in itertools.pairwise(points):
        if below < wanted <= above:
            return low + (high - low) * (wanted - below) / (above - below)
    return None


def at(curve: Mapping[float, float], budget: float) -> float:
    """The error at a budget between those measured."""
    budgets = sorted(curve)
    return float(np.interp(budget, budgets, [curve[b] for b in budgets]))


def findings(scale: str, outcomes: Sequence[Outcome]) -> Findings:
    """Damage curves, growth where ddpm's error doubles, and doubts."""
    rows = [r for o in outcomes for r in o.rows]
    claims: list[Claim] = []
    figures, notes = {}, []
    for condition, chosen in by_condition(outcomes):
        options = chosen[0].job.options
        measure, attack = options["measure"], options["attack"]
        short = condition.replace(",", "").replace(" %", "").replace(" ", "-")
        curves = {o.job.label: o.tensors["summaries"][attack] for o in chosen}
        curves |= {f"{o.job.label}, random": o.tensors["summaries"]["random:norm=l2"] for o in chosen}
        measures = list(dict.fromkeys(["damage", measure, "moved_rms", "sliced_wasserstein"]))[:3]
        figures[f"damage-{short}"] = (
            f"{condition}: {attack} on every one of {options['steps']} DDIM steps, and random perturbations of the same budget.",
            plot.damage(curves, measures),
        )
        methods = [o.job.label for o in chosen if o.job.label != "ddpm"]
        claims += _claims(rows, condition, measure, attack, methods)
        for o in chosen:
            raised = [c for c in o.tensors["checks"] if not c["ok"]]
            notes.append(
                f"{condition}, {o.job.label}: {len(raised)} of {len(o.tensors['checks'])} sanity checks of the attack at budget "
                f"{max(options['budgets']):g} fail" + (": " + " ".join(c["says"] for c in raised) if raised else ".")
            )
    table = table_of(
        rows,
        {"data": "condition", "objective": "method", "attack": "attack", "budget": "budget"},
        {
            "damage": "damage",
            "off the support": "off_support_rms",
            "moved (rms)": "moved_rms",
            "sliced W2": "sliced_wasserstein",
        },
        f"Budgets in noise units at every step. Damage in the unit of the goal: distance from the plane, or mean square "
        f"movement of the image. Mean over {rows[0]['samples']} samples and the seeds of the sampling.",
    )
    return Findings(LEAD, claims, rows, figures, [table], notes)


def _claims(rows: Sequence[Row], condition: str, measure: str, attack: str, methods: Sequence[str]) -> Iterator[Claim]:
    """What becomes of samples under attack, beside ddpm's."""

    chosen = [r for r in rows if (r["condition"], r["attack"]) == (condition, attack)]

    def curve_of(method: str) -> dict[float, float]:
        return {b: mean_over_seeds(chosen, measure, method=method, budget=b) for b in values_of(chosen, "budget")}

    plain = {b: v for b, v in curve_of("ddpm").items() if v == v}
    if measure == "off_support_rms":
        doubles = budget_that_doubles(plain)
        for method in methods:
            curves = {"ddpm": plain, method: curve_of(method)}
            where = max(plain) if doubles is None else doubles
            reached = {m: at(curve, where) for m, curve in curves.items()}
            grown = {m: reached[m] - curve[0.0] for m, curve in curves.items()}
            times = {m: reached[m] / curve[0.0] for m, curve in curves.items()}
            budget = (
                f"at budget {number(where)}, where ddpm's error doubles"
                if doubles is not None
                else f"at the largest budget {number(where)} (ddpm's error doubles at none)"
            )
            for what, values, unit in (("grows less", grown, "by "), ("grows by a smaller factor", times, "times ")):
                yield Claim(
                    f"{condition}: {budget}, the error of {method} {what}",
                    values[method] < values["ddpm"],
                    f"{unit}{number(values[method])} to {number(reached[method])}, ddpm {unit}"
                    f"{number(values['ddpm'])} to {number(reached['ddpm'])}",
                )
    else:
        worst = max(plain)
        for method in methods:
            defended = curve_of(method)
            yield Claim(
                f"{condition}: at budget {worst:g} the samples of {method} move less than those of ddpm",
                defended[worst] < plain[worst],
                f"{measure.replace('_', ' ')} {number(defended[worst])}, ddpm {number(plain[worst])}",
            )
