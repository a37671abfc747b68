"""Every objective on the same corruption with the same compute: ours, ``auto``, and the baselines of other papers.

Compute-matched: an objective whose step costs c ddpm steps (:meth:`atdm.objective.Loss.passes`) makes 1/c of the steps.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Iterator, Sequence
from typing import Literal

import torch

from .. import plot
from ..corruption import parse_corruption
from ..diffusion.process import Process
from ..diffusion.steps import Sampling
from ..errors import require_known
from ..objective.auto import GATE, STOP, quiet_std
from ..plot.lines import curve_panels
from ..pool import Tell, part
from ..report import Row
from ..spec import parse_spec
from ..training.config import ObjectiveConfig
from . import SUBSPACE, butterflies, by_scale, digits, plane
from .runner.findings import Claim, Findings, Outcome, at_most
from .runner.jobs import AUTO, DDPM, Job, ddpm_job, grids, open_held_out, prepare, published, train
from .runner.rows import by_value, mean_over_seeds, means, number, rows_at_stops, table_of, values_of

SHARES, STDS = (0.3, 0.6, 0.9, 1.0), (0.05, 0.1, 0.2)
STANDARD = (0.9, 0.2)  # where the shares and the stds cross
STOPS = (0.3, 0.5)  # noise levels at which the sampling of ddpm is also stopped; what suits is not known without labels
STOPPED = ", stopped "
HALF = f"{STOPPED}at half its gate"
BASELINES = ("input_perturbation", "pseudo_huber", "free", "ambient", "ambient_blind", "sure")
OBJECTIVES = {
    "ddpm": DDPM,
    **{name: published(name) for name in ("robust_rand", "robust_adv")},
    **{name: ObjectiveConfig(name) for name in ("auto", *BASELINES)},
}
COMPARED = tuple(OBJECTIVES)
# By name only: one is for replaced pixels (.replaced_pixels), one for data of which every item is noisy.
OBJECTIVES |= {
    "masked": ObjectiveConfig("masked"),
    "ambient_consistent": ObjectiveConfig("ambient_consistent:known=true"),
}
INFORMED = ("ambient", "ambient_consistent", "sure")  # know the noise of every item
IMAGES_ONLY = ("ambient_blind", "masked")
PHOTOS, IMAGES = "photos on a subspace", "images"
BENCHMARKS = ("digits", "plane")
OTHER = {
    "digits": {
        "salt and pepper": "salt_pepper:share=0.9,rate=0.1",
        "outlier images": "outliers:share=0.1",
        "JPEG": "jpeg:share=0.9,quality=10",
        "missing patches": "patch:share=0.5,size=0.4",
    },
    "plane": {"10 % outliers": "outliers:share=0.1"},
    IMAGES: {
        "outlier images": "outliers:share=0.1",
        "JPEG": "jpeg:share=0.9,quality=10",
        "blur": "blur:share=0.9,sigma=1",
    },
}
FARTHER = 0.05  # that another method may be better than auto in one number
LIMIT = 5000  # images to train on at scale cpu; as many others are held out


def noise(share: float, std: float) -> tuple[str, str]:
    """A condition and its corruption."""
    return f"{share:.0%} noise {std:g}", f"gaussian:share={share:g},std={std:g}"


CROSS = {  # the conditions at which one of both numbers is the standard one, by the other
    "share": {share: noise(share, STANDARD[1])[0] for share in SHARES},
    "std": {std: noise(STANDARD[0], std)[0] for std in STDS},
}


def conditions(benchmark: str, scale: str) -> dict[str, str]:
    """The corruptions of a benchmark."""
    grid = [(p, s) for p in SHARES for s in STDS]
    few = [STANDARD, (1.0, STANDARD[1])]
    at_cpu = {"digits": grid, IMAGES: [*few, (STANDARD[0], STDS[0])]}.get(benchmark, few)
    chosen = by_scale(scale, few, at_cpu, grid)
    other = {} if scale == "smoke" else OTHER.get(benchmark, {})
    return {"clean": "none", **dict(noise(p, s) for p, s in chosen), **other}


def base(benchmark: str, scale: str, data: str | None) -> Job:
    """Data, network and training of a benchmark."""
    if benchmark == "plane":
        found = plane.base(scale)
        found = found if scale != "cpu" else found.but(steps=3000, samples=2000, sampling=Sampling("ddpm", 250))
    elif benchmark == PHOTOS:
        found = butterflies.base(scale, data)
    elif benchmark == IMAGES:
        found = photos(scale, data or "").but(limit=by_scale(scale, 64, LIMIT, None))
    else:
        found = digits.base(scale, steps=1500, samples=500, sampling_steps=125)
    return found.but(options={**found.options, "benchmark": benchmark})


def photos(scale: str, data: str) -> Job:
    """Images as they are: at scale cpu 16x16 pixels and the network of ``recipes/cifar10-cpu.yaml``, which predicts v."""
    net = "tiny:channels=16,multipliers=1-2-4,head_dim=64"
    small = ddpm_job(data, net, 600, 32, 500, 25, lr=3e-3, warmup=100, decay="cosine", ema=0.99, image_size=16)
    sampling = Sampling("sde-dpm-solver++", 25)
    return by_scale(
        scale,
        ddpm_job(data, "mlp:width=16,depth=1", 5, 8, 24, 5, warmup=2).but(image_size=8),
        small.but(sampling=sampling, process="linear:prediction=v_prediction", step_seconds=0.075),
        digits.base("paper").but(data=data, image_size=32),
    )


def jobs(
    scale: str,
    seeds: Sequence[int],
    data: str | None,
    objectives: Sequence[str] = COMPARED,
    corruptions: Sequence[str] = (),
) -> list[Job]:
    """Every objective under every condition.

    Args:
        data: one of ``BENCHMARKS``; images, or ``subspace:`` and images to be projected onto a subspace; None: ``BENCHMARKS``.
        objectives: of ``OBJECTIVES``, with options of their own or without; ddpm, which the others are matched to, is always
            there.
        corruptions: instead of those of the benchmark; clean data are always there.

    Raises:
        UserError: an unknown objective or corruption.
    """
    for spec in corruptions:
        parse_corruption(spec)
    given = {"clean": "none"} | {spec: spec for spec in corruptions if spec != "none"}
    chosen = dict(named(name) for name in dict.fromkeys(["ddpm", *objectives]))
    benchmarks: Sequence[str] = by_scale(scale, BENCHMARKS[:1], BENCHMARKS, BENCHMARKS)
    if data:
        benchmarks = [data if data in BENCHMARKS else PHOTOS if data.startswith(SUBSPACE) else IMAGES]
        data = data.removeprefix(SUBSPACE)
    plans = []
    for benchmark in benchmarks:
        able = {k: o for k, o in chosen.items() if benchmark != "plane" or o.name.split(":")[0] not in IMAGES_ONLY}
        corrupted = given if corruptions else conditions(benchmark, scale)
        plans.append((base(benchmark, scale, data), able, corrupted))
    return grids(plans, seeds)


def named(spec: str) -> tuple[str, ObjectiveConfig]:
    """What tables call an objective, and the objective; ``auto`` and baselines take options, as in ``auto:k=5``.

    Raises:
        UserError: an unknown name or option.
    """
    name, options = parse_spec(spec)
    require_known("objective to compare", name, OBJECTIVES)
    objective = ObjectiveConfig(spec) if options else OBJECTIVES[name]
    if options:
        objective.fitted(torch.eye(16)).build(Process.linear())  # refuses what is no option
    return spec, objective


def work(job: Job, tell: Tell) -> Outcome:
    """Train with the compute of the base's ddpm steps, sample, measure; of ddpm and ``auto`` also what stopping early returns."""
    parts = prepare(job, butterflies.linearized(job) if job.options["benchmark"] == PHOTOS else open_held_out(job))
    cost = parts.config.objective.cost(parts.objective.process)
    config = dataclasses.replace(parts.config, steps=max(1, round(job.config.steps / cost)))
    trained = train(job, part(tell, 0, 0.8), dataclasses.replace(parts, config=config))
    stops: dict[str, float] = {}
    if job.label == "ddpm":
        stops = {f"ddpm{STOPPED}at {stop:g}": stop for stop in STOPS}
        stops[f"ddpm{STOPPED}by auto"] = max(GATE * quiet_std(trained.corrupted), 1e-6)
    elif job.config.objective.automatic:
        stops[f"{job.label}{HALF}"] = max(STOP * (config.objective.gate or 0.0), 1e-6)
    more = {"cost": cost, "benchmark": job.options["benchmark"]}
    return Outcome(job, rows_at_stops(trained, part(tell, 0.8, 1), stops, more)[0])


def keys(rows: Sequence[Row]) -> tuple[str, str]:
    """What measures residual corruption, and what measures the distance from clean data, in the rows of a benchmark."""
    distance = next((k for k in rows[0] if k.startswith("frechet_")), "sliced_wasserstein")
    return digits.residual_key(rows[0]), distance


def findings(scale: str, outcomes: Sequence[Outcome]) -> Findings:
    """A table and a figure for each benchmark; whether ``auto`` is harmless on clean data, and worth it on corrupted data."""
    rows = [r for o in outcomes for r in o.rows]
    claims: list[Claim] = []
    tradeoffs, curves, tables = {}, {}, []
    for benchmark, chosen in by_value(rows, "benchmark").items():
        name = benchmark.replace(" ", "-")
        residual, distance = keys(chosen)
        columns = {
            "residual corruption": residual,
            "distance from clean": distance,
            "spread": "spread",
            "step cost": "cost",
            "steps": "training_steps",
        }
        columns = {head: key for head, key in columns.items() if any(key in r for r in chosen)}
        tables.append(
            table_of(
                chosen, {"training data": "condition", "objective": "method"}, columns,
                f"{benchmark}: {words(residual)}; {words(distance)}. Lower is better. Step cost: floor, over ddpm's. "
                f"{', '.join(INFORMED)} know the noise of every item.",
            )
        )  # fmt: skip
        seen, standard = by_value(chosen, "condition"), noise(*STANDARD)[0]
        condition = standard if standard in seen else [*seen][-1]
        tradeoffs[f"{name}-tradeoff"] = (
            f"{benchmark}, {condition}: residual corruption and the distance from clean data, towards the lower left is "
            "better; ddpm and auto with the levels at which their sampling stops.",
            tradeoff(seen[condition], residual, distance),
        )
        for title, key in (("residual", residual), ("distance", distance)):
            panels = {}
            for what, named in CROSS.items():
                at = {v: seen[condition] for v, condition in named.items() if condition in seen}
                if len(at) > 2:
                    panels[f"{what} of the noise"] = {
                        method: ([*at], [mean_over_seeds(those, key, method=method) for those in at.values()])
                        for method in values_of(chosen, "method")
                    }
            if panels:
                curves[f"{name}-{title}"] = (
                    f"{benchmark}: {words(key)} against share (at std {STANDARD[1]:g}) and std (at {STANDARD[0]:.0%}) of the noise.",
                    curve_panels(panels, "share, std", words(key)),
                )
        claims += judged(chosen, benchmark, residual, distance)
    lead = (
        "No published counterpart: the paper compares with plain ddpm only. Here its objectives, ours with gate and strength "
        "chosen from the data (auto), and baselines of other papers learn from the same corrupted data with the same compute: whose "
        "step costs c ddpm steps makes 1/c of them. Some know the noise of every item. The baseline that costs nothing is "
        "ddpm whose sampling stops at a noise level; which level suits is known with hindsight only, or taken from auto. auto is "
        "sampled to the end, and stopped at half its gate. Judged are two numbers at once, residual corruption / the distance "
        "from clean data: in one of the two ways auto has to be at least as good in both. Ahead: both means are at most the "
        "baseline's. Level: what it lacks is within the standard deviation of the difference over the seeds. Neither: it lacks more in "
        "one and is better in the other. Behind: it lacks more, and is better in none."
    )
    return Findings(lead, claims, rows, tradeoffs | curves, tables)


def tradeoff(rows: Sequence[Row], residual: str, distance: str) -> plot.Figure:
    """A marker for each method; those of one network, sampled to the end and stopped ever earlier, are joined."""
    stops = {r["method"]: r["stop_ratio"] or 0.0 for r in rows}
    networks = list(dict.fromkeys(method.split(STOPPED)[0] for method in stops))
    points = []
    for network in networks:
        for method in sorted((m for m in stops if m.split(STOPPED)[0] == network), key=lambda m: stops[m]):
            left, far = (mean_over_seeds(rows, key, method=method) for key in (residual, distance))
            points.append((method.partition(STOPPED)[2], network, left, far))
    return plot.scatter_tradeoff(points, words(residual), words(distance))


def words(key: str) -> str:
    """A key of a row in words."""
    return {"off_support_rms": "distance off the support (rms)", "sliced_wasserstein": "sliced W2 distance"}.get(
        key, key.replace("_", " ")
    )


def judged(rows: Sequence[Row], benchmark: str, residual: str, distance: str) -> Iterator[Claim]:
    """What the table says of ``auto``: on clean data, beside robust_adv as published, and beside every stop of ddpm."""
    if AUTO not in values_of(rows, "method"):
        return

    def shown(method: str, condition: str) -> str:
        keys = (residual, distance)
        return " / ".join(number(mean_over_seeds(rows, key, method=method, condition=condition)) for key in keys)

    plain, ours = (mean_over_seeds(rows, distance, method=m, condition="clean") for m in ("ddpm", AUTO))
    statement = f"{benchmark}, clean: auto is within 1.1 times ddpm's {words(distance)}"
    yield at_most(statement, ours, plain, 1.1, ("auto", "ddpm"))
    ways = {"auto": AUTO, "stopped": AUTO + HALF}
    for baseline in [m for m in values_of(rows, "method") if m == "robust_adv" or m.startswith(f"ddpm{STOPPED}")]:
        labels: dict[str, list[str]] = {"ahead": [], "level": [], "neither": [], "behind": []}
        for condition, chosen in by_value([r for r in rows if r["condition"] != "clean"], "condition").items():
            found = {beside(chosen, way, baseline, (residual, distance)) for way in ways.values()}
            best = next(label for label in labels if label in found)
            numbers = ", ".join(f"{name} {shown(way, condition)}" for name, way in ways.items())
            detail = f" ({numbers}; {baseline} {shown(baseline, condition)})" if best in ("neither", "behind") else ""
            labels[best].append(condition + detail)
        yield Claim(
            f"{benchmark}: auto is at least as good in both numbers as "
            f"{'robust_adv as published' if baseline == 'robust_adv' else baseline} under every corruption",
            not labels["neither"] and not labels["behind"],
            "; ".join(f"{label}: {', '.join(where)}" for label, where in labels.items() if where),
        )
    yield from never_behind(rows, benchmark, (residual, distance))


def never_behind(rows: Sequence[Row], benchmark: str, keys: Sequence[str]) -> Iterator[Claim]:
    """Whether a method that knows no more is better than ``auto``; early stops whose level is known in hindsight do not count.

    Less residual noise than clean data have is not better.
    """
    hindsight = {f"ddpm{STOPPED}at {stop:g}" for stop in STOPS}
    both: list[str] = []
    either: list[str] = []
    for condition, chosen in by_value([r for r in rows if r["condition"] != "clean"], "condition").items():
        of = means(chosen)
        least = {key: of(AUTO, f"{key}_reference") if f"{key}_reference" in chosen[0] else 0.0 for key in keys}
        ratios = {
            m: [max(of(m, key), least[key]) / max(of(AUTO, key), least[key]) for key in keys]
            for m in values_of(chosen, "method")
            if m.split(STOPPED)[0] not in (AUTO, *INFORMED) and m not in hindsight
        }
        for title, those in (
            (both, {m: math.prod(r) for m, r in ratios.items() if max(r) < 1}),
            (either, {m: min(r) for m, r in ratios.items() if min(r) < 1 - FARTHER}),
        ):
            if those:
                best = min(those, key=those.__getitem__)
                title.append(f"{condition}: {best} at {' / '.join(f'{ratio:.2f}' for ratio in ratios[best])}")
    for found, better in ((both, "in both numbers"), (either, f"by more than {FARTHER:.0%} in one")):
        yield Claim(
            f"{benchmark}: under no corruption a method that knows no more than auto is better {better}",
            not found,
            f"the best of those, its numbers over auto's: {'; '.join(found)}" if found else "none is",
        )


def beside(
    rows: Sequence[Row], method: str, baseline: str, keys: Sequence[str]
) -> Literal["ahead", "level", "neither", "behind"]:
    """How a method stands beside a baseline in ``keys``, of which less is better, seed by seed.

    Ahead: no mean is above the baseline's. Level: none is by more than the standard deviation of the difference over the seeds,
    which for one seed is none. Neither: one is above by more and another is below. Behind: one is above by more, none below.
    """
    lacks, spreads = [], []
    for key in keys:
        ours, theirs = ({r["seed"]: float(r[key]) for r in rows if r["method"] == m} for m in (method, baseline))
        each = [ours[seed] - theirs[seed] for seed in ours.keys() & theirs.keys()]
        lacks.append(statistics.fmean(each))
        spreads.append(statistics.stdev(each) if len(each) > 1 else 0.0)
    if all(lack <= 0 for lack in lacks):
        return "ahead"
    if all(lack <= spread for lack, spread in zip(lacks, spreads, strict=True)):
        return "level"
    return "neither" if any(lack < 0 for lack in lacks) else "behind"
