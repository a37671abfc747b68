"""Quality against sampling steps under three protocols: respaced, begun late, and not respaced (docs/method.md)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from .. import metrics
from ..diffusion.process import Process
from ..diffusion.steps import Sampling
from ..objective import Objective
from ..objective.theory import frechet, power_law, sampled_variance, shrinkage
from ..plot.lines import Curve, curve_panels
from ..pool import Tell, part
from ..report import Row, Table
from ..training.recipes import recipe
from . import by_scale, digits, images, plane
from .runner.findings import Claim, Findings, Outcome
from .runner.jobs import DDPM, RECOMMENDED, Job, grid, published, recommended, samples_of, train
from .runner.rows import by_value, mean_over_seeds, number, row, table_of, values_of

STEPS = (1000, 500, 300, 100, 50, 20, 10)
FEWER = (500, 300)  # those of the published table
PROTOCOLS = {
    "respaced": "the DDPM sampler of fewer steps, whose strides reach from noise to data",
    "respaced, ddim": "the same without noise on the way (DDIM)",
    "begun late": "the last steps alone, from N(0, I) in place of the noisy data that belong there",
    "not respaced": "a subset of the timesteps, each step with its own one-step beta",
}
PUBLISHED = "Published FID on clean CIFAR-10 at 300, 500 and 1000 steps: ddpm 224.38, 28.07, 7.2; robust_adv 37.89, 24.34, 28.68."
CLIFF = 3  # times its own distance at all steps that ddpm must lose for the published pattern; published 31
CIFAR = "CIFAR-10 at 16x16"


def sampling_of(protocol: str, count: int, process: Process) -> Sampling:
    """How ``count`` evaluations of the network are made under a protocol."""
    if protocol == "begun late":
        return Sampling("ddpm", process.steps, start_ratio=float(process.ratio(torch.tensor([count - 1]))))
    samplers = {"respaced": "ddpm", "respaced, ddim": "ddim", "not respaced": "ddpm-unrespaced"}
    return Sampling(samplers[protocol], count)


def jobs(scale: str, seeds: Sequence[int], data: str | None) -> list[Job]:
    """ddpm, and robust_adv as published and as recommended, on clean and on noisy data.

    Args:
        data: a folder that holds ``cifar10``, for a third set beside the plane and digits.
    """
    steps, fewer = by_scale(scale, (20, 10), STEPS, STEPS), by_scale(scale, (10,), FEWER, FEWER)
    counts = {"respaced": steps, "respaced, ddim": steps, "begun late": fewer, "not respaced": fewer}
    about = {"counts": counts, "features": f"runs/fewer-steps-{scale}", "feature_steps": by_scale(scale, 5, 300, 300)}
    todo = []
    for name, base, noise, gated in (
        ("plane", plane.base(scale).but(samples=by_scale(scale, 64, 1000, 4000)), plane.NOISE[1], plane.GATED),
        ("digits", digits.base(scale, samples=400), digits.NOISE["noise 0.2"], digits.gated(scale)),
    ):
        objectives = {"ddpm": DDPM, "robust_adv": published("robust_adv"), RECOMMENDED: recommended(**gated)}
        conditions = {"clean": "none"} if scale == "smoke" else {"clean": "none", "noise": noise}
        todo += grid(base.but(options={"set": name, **about}), objectives, conditions, seeds)
    return todo if data is None or scale == "smoke" else todo + _images(scale, seeds, data, about)


def _images(scale: str, seeds: Sequence[int], data: str, about: dict[str, Any]) -> list[Job]:
    """CIFAR-10 on clean images, as published; the runs of ddpm and of the recipe's objective are those of ``images``."""
    folder = images.folders(data, ["cifar10"])["cifar10"]
    config = dataclasses.replace(
        recipe("cifar10-cpu"), data=str(folder), corrupt="none", metrics="none", sample_every=0
    )
    counts = {k: [c for c in of if c >= min(FEWER)] for k, of in about["counts"].items() if k != "respaced, ddim"}
    base = Job(config=config, samples=200, step_seconds=0.25, options={**about, "set": CIFAR, "counts": counts})
    trained = {
        "ddpm": base.but(objective=DDPM),
        "robust_adv": base.but(objective=published("robust_adv"), label="robust_adv"),
        "auto": base.but(label=RECOMMENDED),
    }
    return [
        job.but(seed=seed, out=f"runs/images-{scale}/cifar10-clean-{name}-{seed}")
        for seed in seeds
        for name, job in trained.items()
    ]


def work(job: Job, tell: Tell) -> Outcome:
    """Train once, sample under every protocol with every number of steps."""
    trained = train(job, part(tell, 0, 0.4))
    dataset, counts = trained.dataset, job.options["counts"]
    reference, spaces = dataset.reference, metrics.require("pixels")
    if dataset.kind == "image":
        small = images.small_features(
            Path(job.options["features"]), job.options["set"], reference, job.config.data, job.options["feature_steps"]
        )
        spaces = metrics.require(f"{job.features}+{small}")
    rows: list[Row] = []
    total, done = sum(sum(of) for of in counts.values()), 0
    for protocol, of in counts.items():
        for count in of:
            how = sampling_of(protocol, count, trained.process)
            options = {"sampler": how.sampler, "steps": how.steps, "start_ratio": how.start_ratio}
            inner = part(tell, 0.4 + 0.6 * done / total, 0.4 + 0.6 * (done + count) / total)
            samples = samples_of(trained, inner, **options)
            values = metrics.evaluate_samples(samples, reference, dataset.truth, spaces, job.seed)
            about = {"set": job.options["set"], "protocol": protocol, "evaluations": count}
            rows.append(row(trained, samples, about | values, **options))
            done += count
    return Outcome(job, rows)


def findings(scale: str, outcomes: Sequence[Outcome]) -> Findings:
    """Curves, what fewer steps lose under each protocol, and which one shows the published pattern."""
    rows = [r for o in outcomes for r in o.rows]
    full = max(r["evaluations"] for r in rows)
    claims, figures, tables = [], {}, []
    for name, of_set in by_value(rows, "set").items():
        protocols = values_of(of_set, "protocol")
        of_images = [k for k in of_set[0] if k.startswith("frechet_") and "extrapolated" not in k]
        measures = of_images or ["sliced_wasserstein"]  # the distances from clean data that the set has
        claims += [_pattern(of_set, key, protocol, full) for key in measures for protocol in protocols]
        panels = {
            f"{condition}, {protocol}": _curves(chosen, measures[-1], protocol, full)
            for condition, chosen in by_value(of_set, "condition").items()
            for protocol in protocols
        }
        words = measures[-1].replace("_", " ")
        figures[name.split()[0].lower()] = (
            f"{name}: {words} from clean data against evaluations of the network, by protocol.",
            curve_panels(panels, "evaluations", words, "xy"),
        )
        headings = {"training data": "condition", "objective": "method", "protocol": "protocol", "steps": "evaluations"}
        columns = {k.replace("_", " "): k for k in [*measures, "noise_std", "off_support_rms"] if k in of_set[0]}
        tables.append(table_of(of_set, headings, columns, f"{name}, {of_set[0]['samples']} samples each."))
    theory = _theory(by_scale(scale, 64, 3072, 3072))
    shown = [claim.statement.split(": at")[0] for claim in claims if claim.holds]
    which = "**None of the protocols shows the published pattern here.**"
    if shown:
        pattern = "The published pattern, a cliff of ddpm that robust_adv is spared"
        which = f"**{pattern}, is shown by**: {'; '.join(shown)}."
    notes = [which, PUBLISHED, _words(theory)]
    lead = (
        "The published table samples with fewer steps, and does not say how: FID of ddpm rises steeply at 300 of 1000 steps, that of "
        "robust_adv hardly. Three protocols are measured, each model relative to its own "
        f"{full} steps: {'; '.join(f'{name}: {what}' for name, what in PROTOCOLS.items())}."
    )
    return Findings(lead, claims, rows, figures, [theory, *tables], notes)


def _of(rows: Sequence[Row], key: str, protocol: str, method: str, count: int, full: int) -> float:
    """The mean over seeds; with all steps every protocol is the respaced one."""
    protocol = "respaced" if count == full and protocol != "respaced, ddim" else protocol
    return mean_over_seeds(rows, key, protocol=protocol, method=method, evaluations=count)


def _curves(rows: Sequence[Row], key: str, protocol: str, full: int) -> dict[str, Curve]:
    counts = sorted({r["evaluations"] for r in rows if r["protocol"] == protocol} | {full}, reverse=True)
    return {
        method: (counts, [_of(rows, key, protocol, method, count, full) for count in counts])
        for method in values_of(rows, "method")
    }


def _pattern(rows: Sequence[Row], key: str, protocol: str, full: int) -> Claim:
    """Whether clean data show what is published: ddpm falls off a cliff at the fewer steps, robust_adv stays below it."""
    clean = [r for r in rows if r["condition"] == "clean"]
    few = min(c for c in values_of(clean, "evaluations") if c >= min(FEWER) or full < min(FEWER))
    at = {m: [_of(clean, key, protocol, m, count, full) for count in (full, few)] for m in ("ddpm", "robust_adv")}
    ratios = {method: ends[1] / ends[0] if ends[0] else math.nan for method, ends in at.items()}
    return Claim(
        f"{rows[0]['set']}, {protocol}, {key.replace('_', ' ')}: at {few} steps ddpm has at least {CLIFF} times its distance at {full}, "
        "and robust_adv as published is below it",
        bool(ratios["ddpm"] >= CLIFF and at["robust_adv"][1] < at["ddpm"][1]),
        "; ".join(f"{m} {number(a)} to {number(b)} ({number(ratios[m])} times)" for m, (a, b) in at.items()),
    )


def _theory(dimensions: int) -> Table:
    """Squared Frechet distances of the linear optimum for clean Gaussian data with a natural spectrum, exact."""
    process, clean = Process.linear(), power_law(dimensions)
    lines: list[list[Any]] = []
    for method in ("ddpm", "robust_adv"):
        lambda_c = shrinkage(Objective(method, process), torch.arange(process.steps))
        for protocol in ("respaced", "begun late", "not respaced"):
            hows = [("respaced", process.steps), *((protocol, count) for count in FEWER)]
            drawn = [sampled_variance(process, clean, lambda_c, sampling_of(*how, process)) for how in hows]
            lines.append([method, protocol, *(float(frechet(variance, clean)) for variance in drawn)])
    return Table(
        ["objective", "protocol", "1000 steps", *(f"{count} steps" for count in FEWER)],
        lines,
        f"Linear theory, clean Gaussian data in {dimensions} dimensions with eigenvalues i^-1.35 and std 0.5: squared Frechet distance of what "
        "the best linear network under each objective draws (published constants).",
    )


def _words(theory: Table) -> str:
    """What the exact numbers say of each protocol at the fewest steps."""
    at = {(line[0], line[1]): (float(line[2]), float(line[-1])) for line in theory.rows}
    parts = []
    for protocol in ("respaced", "begun late", "not respaced"):
        (full, plain), (_, robust) = at["ddpm", protocol], at["robust_adv", protocol]
        cliff = "a cliff" if plain >= CLIFF * full and plain > at["robust_adv", "respaced"][0] else "no cliff"
        better = "robust_adv is better" if robust < plain else "ddpm is better"
        parts.append(f"{protocol}: ddpm {number(plain)}, robust_adv {number(robust)}, {cliff}, and {better}")
    return f"Linear theory at {FEWER[-1]} of 1000 steps (ddpm with all steps {number(at['ddpm', 'respaced'][0])}): {'; '.join(parts)}."
