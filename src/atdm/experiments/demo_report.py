"""The report of the demonstration: one section per data set and corruption, what each costs, and the ray."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .. import plot
from ..corruption import corrupt
from ..data import load
from ..diffusion.process import Process
from ..report import Section, Table, render, show
from .demo import CORRUPTIONS, EXPERIMENTS, Outcome, objective_of, score_field

Row = Mapping[str, Any]
ORDER = ("ddpm", "early stop", "inv_adv", "robust_rand", "robust_adv", "robust_adv recommended")
TITLES = {
    ("plane", "outliers"): "A plane with 10 % outliers",
    ("plane", "noise"): "A plane with noise on 90 % of the points",
    ("plane", "clean"): "A clean plane",
    ("digits", "noise"): "Handwritten digits with noise on 90 % of the images",
    ("digits", "clean"): "Clean handwritten digits",
    ("digits-subspace", "noise"): "Linearized digits with noise on 90 % of the images",
    ("digits-subspace", "clean"): "Clean linearized digits",
}


def named(row: Row) -> str:
    """The label of a row in figures and tables: objective and setting, the setting left out where it is published."""
    setting = row["setting"]
    if setting.startswith("early stop"):
        return setting
    return row["objective"] if setting == "published" else f"{row['objective']} {setting}"


def over_seeds(rows: Sequence[Row], key: str) -> Any:
    """A cell: the value, or mean and standard deviation over the seeds; None where nothing was measured."""
    values = [float(r[key]) for r in rows if r.get(key) is not None]
    if not values:
        return None
    return values[0] if len(values) == 1 else (statistics.fmean(values), statistics.stdev(values))


def by_label(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Rows of one data set and corruption by label, in the order of the tables: strengths and stops come last."""
    labels = sorted({named(r) for r in rows}, key=lambda n: (ORDER.index(n) if n in ORDER else len(ORDER), n))
    return {label: [r for r in rows if named(r) == label] for label in labels}


def overview(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """What the terminal shows: one line per data set, corruption and label."""
    lines = []
    for experiment, corruption in TITLES:
        chosen = [r for r in rows if (r["experiment"], r["corruption"]) == (experiment, corruption)]
        for label, group in by_label(chosen).items():
            cells = {k: over_seeds(group, k) for k in (_dirt(experiment), "spread", "frechet_pixels", "seconds")}
            shown = {k: show(v) if isinstance(v, tuple) else v for k, v in cells.items()}
            line = {"data": experiment, "corruption": corruption, "objective": label}
            lines.append(line | {"dirt": shown.pop(_dirt(experiment)), **shown})
    return lines


def write(out: Path, outcomes: list[Outcome], provenance: Mapping[str, Any]) -> None:
    """Write ``report.html``."""
    lead = (
        "A diffusion model learns whatever its data hold, dirt included. Equivariant adversarial training adds one term: "
        "push the noisy state by delta, and the predicted noise must move by delta. Below, a plain DDPM and the robust "
        "objectives learn the same dirty data and are measured against the truth that was kept aside."
    )
    sections = []
    for experiment, corruption in TITLES:
        chosen = [o for o in outcomes if (o.job.experiment, o.job.corruption) == (experiment, corruption)]
        if chosen:
            sections.append((plane_section if experiment == "plane" else digits_section)(chosen))
    sections += [cost_section(outcomes), ray_section()]
    render("atdm demo: learning what dirty data mean", lead, sections, provenance, out / "report.html")


def _dirt(experiment: str) -> str:
    return "never_varying_noise" if experiment == "digits" else "off_support_rms"


def _first_seed(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """The outcomes that figures show, in the order of the tables."""
    seed = outcomes[0].job.seed
    kept = [o for o in outcomes if o.job.seed == seed and o.job.strength is None]
    return sorted(kept, key=lambda o: ORDER.index(named(o.rows[0])))


def _seeds_sentence(outcomes: Sequence[Outcome]) -> str:
    n = len({o.job.seed for o in outcomes})
    return "One seed." if n == 1 else f"Mean ± standard deviation over {n} seeds; figures show the first one."


def plane_section(outcomes: list[Outcome]) -> Section:
    """The plane under one corruption."""
    outcomes = sorted(outcomes, key=lambda o: o.job.seed)
    shown, e, process = _first_seed(outcomes), EXPERIMENTS["plane"], Process.linear()
    job = shown[0].job
    dataset = load(e.data, seed=job.seed)
    dirty, _ = corrupt(dataset.x, CORRUPTIONS[job.corruption], job.seed)
    rows = [r for o in outcomes for r in o.rows]
    groups = by_label(rows)
    keys = {
        "off the plane (rms)": "off_support_rms",
        "spread in it": "spread",
        "sliced W2": "sliced_wasserstein",
        "diverged": "diverged_share",
        "training": "seconds",
    }
    unit = "data units"
    table = Table(
        ["objective", *keys],
        [[label, *(over_seeds(group, k) for k in keys.values())] for label, group in groups.items()],
        f"Distances to the true plane; the true spread is 0.577. {_seeds_sentence(outcomes)}",
        best={"off the plane (rms)": "lower", "sliced W2": "lower"},
        units={"off the plane (rms)": unit, "spread in it": unit, "sliced W2": unit, "training": "s"},
    )
    data = (
        "Points of a square patch of a plane in 3-D"
        + {
            "outliers": ", one in ten of them replaced by a uniform draw from the cube [-2, 2]^3. ",
            "noise": ", nine in ten of them with Gaussian noise of standard deviation 0.2 in all three directions. ",
            "clean": ", without any dirt: what does the regularizer cost where there is nothing to remove? ",
        }[job.corruption]
    )
    text = (
        f"{data}A good model puts its samples on the plane (small distance) and covers the patch (spread 0.577). "
        f"'published' is the formula and the constants of the paper, as far as they are known; the recommended "
        f"setting (gate {e.gate}, k = {e.k:g}, r = {e.radius:g}, l_2) is the same for every kind of dirt. "
        f"'early stop' is the free rival: the plain DDPM, stopped at noise level {e.stop} and denoised once."
    )
    panels = {"training data": dirty} | {
        named(r): o.samples[r["setting"]] for o in shown for r in o.rows if named(r) in ORDER
    }
    away = {
        named(o.rows[0]): (
            [max(ratio, 0.005) for ratio in o.ratios],
            [dataset.truth.distance(x[x.isfinite().all(1)]).square().mean().sqrt().item() for x in o.paths],
        )
        for o in shown
    }
    fields = {"truth": score_field(None, process, dataset)} | {
        named(o.rows[0]): o.scores for o in shown if o.scores is not None
    }
    main = [r | {"label": named(r)} for r in rows if named(r) in ORDER]
    main.sort(key=lambda r: ORDER.index(r["label"]))
    figures = [
        (
            "Training data and samples, coloured by their distance from the true plane.",
            plot.points3d(panels, dataset.truth),
        ),
        (
            "The last part of 30 reverse trajectories in 3-D, from noise level 1.2 (grey) to the sample.",
            plot.trajectories3d({named(o.rows[0]): o.paths[:, :30] for o in shown}, dataset.truth),
        ),
        (
            "Distance of the trajectories from the plane while the noise level falls (right to left; the last point is the sample).",
            plot.curves(away, "noise level sigma/alpha", "rms distance from the plane (data units)", "xy"),
        ),
        (
            "The score in the plane of one in-plane direction (across) and the normal (up), truth first.",
            plot.score_fields(fields),
        ),
        ("Distance from the plane.", plot.bars(main, "off_support_rms", ("label",))),
    ]
    return Section(TITLES["plane", job.corruption], text, figures, [table])


def digits_section(outcomes: list[Outcome]) -> Section:
    """Digits, raw or on a subspace."""
    outcomes = sorted(outcomes, key=lambda o: o.job.seed)
    shown = _first_seed(outcomes)
    job, experiment = shown[0].job, shown[0].job.experiment
    e, linear, dirt = EXPERIMENTS[experiment], experiment != "digits", _dirt(experiment)
    dataset = load(e.data, seed=job.seed)
    dirty, _ = corrupt(dataset.x, CORRUPTIONS[job.corruption], job.seed)
    panels = {"clean": dataset.x[:36], "training data": dirty[:36]} | {
        named(r): o.samples[r["setting"]][:36] for o in shown for r in o.rows if named(r) in ORDER
    }
    rows = [r for o in outcomes for r in o.rows]
    keys = {
        "residual noise": dirt,
        "Frechet distance (pixels)": "frechet_pixels",
        **({"spread": "spread"} if linear else {}),
        "training": "seconds",
    }
    table = Table(
        ["objective", *keys],
        [[label, *(over_seeds(group, k) for k in keys.values())] for label, group in by_label(rows).items()],
        "Residual noise is measured "
        + ("off the subspace, per coordinate. " if linear else "on the pixels that never vary in clean digits. ")
        + _seeds_sentence(outcomes),
        best={"residual noise": "lower", "Frechet distance (pixels)": "lower"},
        units={"training": "s"},
    )
    text = (
        (
            "Digits projected onto their first 16 principal directions: the exact error is the distance to the subspace. "
            if linear
            else "Real handwritten digits, 8x8 pixels. "
        )
        + (
            "Nine in ten training images carry Gaussian noise of standard deviation 0.2 in all 64 pixels. "
            if job.corruption == "noise"
            else "Nothing is dirty here: this is what the regularizer costs. "
        )
        + f"The recommended setting here has gate {e.gate}, k = {e.k:g}, r = {e.radius:g}: the gate lies near the noise "
        "that is to go."
    )
    main = [r | {"label": named(r)} for r in rows if named(r) in ORDER]
    main.sort(key=lambda r: ORDER.index(r["label"]))
    figures = [
        ("Clean data, what training saw, and samples.", plot.image_grids(panels, columns=6)),
        ("Residual noise.", plot.bars(main, dirt, ("label",))),
    ]
    if any(o.job.strength is not None for o in outcomes):
        figures.append(
            (
                "Residual noise against the distance from clean data: each line goes through the strengths of one method.",
                tradeoff(rows, dirt),
            )
        )
    return Section(TITLES[experiment, job.corruption], text, figures, [table])


def tradeoff(rows: Sequence[Row], dirt: str) -> plot.Figure:
    """Dirt against Frechet distance over strengths and stopping levels; both lower is better."""
    points = []
    for label, group in by_label(rows).items():
        method, _, strength = label.partition(", ") if "," in label else (label, "", "")
        if label.startswith("early stop"):
            method = "early stop"
            strength = label.removeprefix("early stop").strip() or f"{EXPERIMENTS['digits'].stop:g}"
        elif label == "robust_adv":
            strength = "lambda 0.3"
        elif label == "robust_adv recommended":
            strength = f"k {EXPERIMENTS['digits'].k:g}"
        x, y = (statistics.fmean(float(r[k]) for r in group) for k in (dirt, "frechet_pixels"))
        points.append((strength, method, x, y))
    points.sort(key=lambda p: (p[1], float(p[0].split()[-1]) if p[0] else 0.0))
    return plot.scatter_tradeoff(points, "residual noise (lower is better)", "Frechet distance in pixels", "y")


def cost_section(outcomes: list[Outcome]) -> Section:
    """What each objective costs: passes counted, the floor they imply, and seconds measured in this run."""
    cells = []
    for experiment in EXPERIMENTS:
        own = [o for o in outcomes if o.job.experiment == experiment and o.job.strength is None]
        seconds: dict[str, list[float]] = {}
        for o in own:
            seconds.setdefault(named(o.rows[0]), []).append(o.rows[0]["seconds"])
        if not own:
            continue
        plain = statistics.fmean(seconds["ddpm"])
        for label, o in sorted({named(o.rows[0]): o for o in own}.items(), key=lambda item: ORDER.index(item[0])):
            p = objective_of(o.job, Process.linear()).passes()
            passes = [p["forwards"], p["backwards"], p["input_backwards"], p["floor_over_ddpm"]]
            cells.append([experiment, label, *passes, statistics.fmean(seconds[label]) / plain])
    columns = ["data", "objective", "forwards", "backwards", "input backwards", "floor", "measured"]
    caption = (
        "Per training step and sample. Floor and measured are relative to ddpm; a gate pushes only some timesteps."
    )
    text = (
        "A forward pass counts 1, a backward pass 2 and a backward pass to the input alone 1: their sum over ddpm's is the "
        "floor. What was measured can lie below it, since the optimizer and the averaging of a step cost the same for all, "
        "or above it, where a gate leaves too few rows to fill a pass. "
        "The trainings of this demonstration share the machine's cores, so read the measured ratios as rough; "
        "atdm bench measures them properly."
    )
    return Section("What it costs", text, [], [Table(columns, cells, caption)])


def ray_section() -> Section:
    """How far the state is pushed."""
    text = (
        "The published radius follows the noise schedule: large while the state is noise, small while content forms. "
        "The recommended setting pushes with one radius, but only at the low noise levels where the data's own "
        "directions are already decided and only the dirt is open, and only along the directions in which the "
        "prediction changes most."
    )
    caption = "The perturbation ray for several omega beside the DDPM ray sigma_t."
    return Section("How far the state is pushed", text, [(caption, plot.ray(Process.linear(), [1.0, 2.0, 4.0]))])
