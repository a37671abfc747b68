"""Quality against sampling steps, with the DDPM and the DDIM sampler, relative to the model's own 1000 steps."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ..plot import panels as pictures
from ..pool import Tell, part
from . import by_scale, digits
from .runner.findings import Claim, Findings, Outcome
from .runner.jobs import DDPM, RECOMMENDED, Job, draw, grid, published, recommended, train
from .runner.rows import evaluate, mean_over_seeds, number, row, table_of, values_of

STEPS = (1000, 500, 300, 100, 50, 20, 10)
SAMPLERS = ("ddpm", "ddim")
PUBLISHED_FID = {"ddpm": {300: 224.38, 500: 28.07, 1000: 7.20}, "robust_adv": {300: 37.89, 500: 24.34, 1000: 28.68}}
FEW = 20


def jobs(scale: str, seeds: Sequence[int], data: str | None) -> list[Job]:
    """ddpm and robust_adv, on clean images and on noisy ones."""
    objectives = {"ddpm": DDPM, "robust_adv": published("robust_adv"), RECOMMENDED: recommended(**digits.GATED)}
    dirt = {"clean": "none", "noise 0.2": digits.NOISE["noise 0.2"]}
    if scale == "smoke":
        del objectives["robust_adv"], dirt["noise 0.2"]
    options = {"steps": by_scale(scale, (20, 10), STEPS, STEPS)}
    return grid(digits.base(scale, samples=400).but(options=options), objectives, dirt, seeds)


def work(job: Job, tell: Tell) -> Outcome:
    """Train once, sample with every sampler and number of steps."""
    trained = train(job, part(tell, 0, 0.4))
    rows, steps = [], job.options["steps"]
    total = len(SAMPLERS) * sum(steps)
    done = 0
    for sampler in SAMPLERS:
        for count in steps:
            inner = part(tell, 0.4 + 0.6 * done / total, 0.4 + 0.6 * (done + count) / total)
            samples = draw(trained, inner, sampler=sampler, steps=count)
            rows.append(row(trained, samples, evaluate(trained, samples), sampler=sampler, steps=count))
            done += count
    return Outcome(job, rows)


def findings(scale: str, outcomes: Sequence[Outcome]) -> Findings:
    """Curves, and what few steps lose."""
    rows = [r for o in outcomes for r in o.rows]
    frechet = digits.frechet_key(rows[0])
    conditions, methods, steps = (values_of(rows, k) for k in ("condition", "method", "steps"))
    full, few = max(steps), min(steps, key=lambda s: abs(s - FEW))

    def of(condition: str, method: str, sampler: str, count: int) -> float:
        return mean_over_seeds(rows, frechet, condition=condition, method=method, sampler=sampler, steps=count)

    def panels(relative: bool) -> dict[str, dict[str, pictures.Curve]]:
        return {
            f"{condition}, {sampler} sampler": {
                method: (
                    steps,
                    [
                        of(condition, method, sampler, s) / (of(condition, method, sampler, full) if relative else 1.0)
                        for s in steps
                    ],
                )
                for method in methods
            }
            for condition in conditions
            for sampler in SAMPLERS
        }

    figures = {
        "frechet": (
            "Frechet distance from clean images against sampling steps.",
            pictures.curve_panels(panels(False), "sampling steps", "Frechet distance", "xy"),
        ),
        "relative": (
            f"The same relative to the model's own {full} steps.",
            pictures.curve_panels(panels(True), "sampling steps", f"times that of {full} steps", "xy"),
        ),
    }
    claims = []
    for condition in conditions:
        for sampler in SAMPLERS:
            plain = of(condition, "ddpm", sampler, few) / of(condition, "ddpm", sampler, full)
            for method in [m for m in methods if m != "ddpm"]:
                loss = of(condition, method, sampler, few) / of(condition, method, sampler, full)
                claims.append(
                    Claim(
                        f"{condition}, {sampler} sampler: at {few} steps {method} loses less than ddpm, relative to its own {full} steps",
                        bool(math.isfinite(loss) and loss < plain),
                        f"Frechet distance times {number(loss)} (from {number(of(condition, method, sampler, full))} to "
                        f"{number(of(condition, method, sampler, few))}), ddpm times {number(plain)} (from "
                        f"{number(of(condition, 'ddpm', sampler, full))} to {number(of(condition, 'ddpm', sampler, few))})",
                    )
                )
    notes = [
        "Published FID on clean CIFAR-10 at 300, 500 and all steps: "
        + "; ".join(
            f"{m} {f[300]}, {f[500]}, {f[1000]} (300 steps: {number(f[300] / f[1000])} times)"
            for m, f in PUBLISHED_FID.items()
        )
        + ". A sampler whose strides reach from noise to data loses far less at 300 steps: "
        + ", ".join(
            f"{m} {number(of(conditions[0], m, 'ddpm', 300) / of(conditions[0], m, 'ddpm', full))} times here"
            for m in methods
            if 300 in steps
        )
        + "."
    ]
    table = table_of(
        rows,
        {"training data": "condition", "objective": "method", "sampler": "sampler", "steps": "steps"},
        {"Frechet": frechet, "residual noise": digits.dirt_key(rows[0]), "sliced W2": "sliced_wasserstein"},
        f"Samples of {rows[0]['reference']}; Frechet is {frechet.replace('_', ' ')}.",
    )
    lead = (
        "The published table samples with fewer steps: FID of ddpm rises steeply at 300 of 1000 steps, that of robust_adv "
        "hardly, as it is the smoother model. Here from 1000 steps down to 10, with the DDPM and the DDIM sampler, each "
        "model relative to its own 1000 steps."
    )
    return Findings(lead, claims, rows, figures, [table], notes if scale != "smoke" else [])
