"""Sweeps: lambda, omega, floor of the published regularizer, k, radius, gate and rarity of the recommended one, fine-tuning, auto.

On noisy digits; what lambda, k and auto cost on clean ones is measured beside.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from .. import plot
from ..objective.auto import K
from ..pool import Tell, part
from ..training.config import ObjectiveConfig
from . import by_scale, digits
from .runner.findings import Claim, Findings, Outcome, first_seed
from .runner.jobs import DDPM, RECOMMENDED, Job, published, recommended, samples_of, train
from .runner.rows import by_value, evaluate, mean_over_seeds, number, row, table_of, values_of

STRONG = 3.0  # lambda of the sweeps of omega and floor: at 0.3 they would show little
LATE = (0.5, 0.75, 0.9)  # share of the training after which the regularizer is applied
NOISY, CLEAN = "noise 0.2", "clean"
ON_CLEAN = ("lambda", "k", "auto")  # sweeps that are made on clean data, too
LEAD = (
    "How strong should the regularizer be? One dial at a time, around the published constants and around the recommended "
    "setting; and the regularizer only in the last part of training, as in the published CelebA run (the last 100 epochs, FID "
    "25.8 against 16.53 throughout and 96.03 for ddpm)."
)


def sweeps(scale: str) -> dict[str, list[tuple[str, ObjectiveConfig]]]:
    """By the dial that is turned: the value as text, and the objective."""
    base = digits.gated(scale)

    def gated(**own: Any) -> ObjectiveConfig:
        return recommended(**(base | own))

    return {
        "lambda": [(f"{lam:g}", published("robust_adv", lam)) for lam in (0.1, 0.3, 1.0, STRONG, 10.0)],
        "omega": [(f"{o:g}", published("robust_adv", STRONG, omega=o)) for o in (0.5, 1.0, 2.0, 4.0)],
        "floor": [(f"{f}/255", published("robust_adv", STRONG, floor=f"{f}/255")) for f in (2, 8, 32, 64)],
        "k": [(f"{k:g}", gated(k=k)) for k in (1, 2, 5, 15)],
        "radius": [(f"{r:.3g}", gated(r=r)) for r in (base["r"] * times for times in (0.5, 1, 2, 5))],
        "gate": [(f"{g:g}", gated(gate=g)) for g in (0.1, 0.2, 0.4, 0.8)],
        "every": [(f"{n}", dataclasses.replace(gated(), every=n)) for n in (1, 2, 4, 8)],
        "auto": [(f"k {k:g}", ObjectiveConfig(f"auto:k={k:g}")) for k in (K, 3, 5)],
    }


def jobs(scale: str, seeds: Sequence[int], data: str | None) -> list[Job]:
    """ddpm, and each setting once, however many sweeps go through it."""
    base = digits.base(scale, steps=1500, samples=500, sampling_steps=125)
    corruptions = {NOISY: digits.NOISE[NOISY], CLEAN: "none"}
    todo: dict[Any, Job] = {}

    def add(label: str, point: tuple[str, str], objective: ObjectiveConfig, seed: int, condition: str = NOISY) -> None:
        config = {"objective": objective, "corrupt": corruptions[condition], "seed": seed}
        new = base.but(label=label, condition=condition, options={"places": []}, **config)
        job = todo.setdefault((dataclasses.astuple(objective), condition, seed), new)
        job.options["places"].append(point)

    chosen = sweeps(scale)
    if scale == "smoke":
        chosen = {"lambda": chosen["lambda"][3:4], "k": chosen["k"][2:3], "auto": chosen["auto"][:1]}
    late = by_scale(scale, LATE[1:2], LATE, LATE)
    for seed in seeds:
        for condition in (NOISY, CLEAN):
            add("ddpm", ("none", ""), DDPM, seed, condition)
            for sweep, settings in chosen.items():
                for value, objective in settings if condition == NOISY or sweep in ON_CLEAN else ():
                    add(f"robust_adv, {sweep} {value}", (sweep, value), objective, seed, condition)
        for share in late:
            last = f"{1 - share:.0%}"
            gated, strong = recommended(**digits.gated(scale)), published("robust_adv", STRONG)
            for label, sweep, objective in (
                (RECOMMENDED, "late, recommended", gated),
                (f"robust_adv, lambda {STRONG:g}", "late, published", strong),
            ):
                add(f"{label}, last {last}", (sweep, last), dataclasses.replace(objective, start=share), seed)
    return list(todo.values())


def work(job: Job, tell: Tell) -> Outcome:
    """Train, sample, measure; a row for every sweep that goes through this setting."""
    trained = train(job, part(tell, 0, 0.9))
    samples = samples_of(trained, part(tell, 0.9, 1))
    values = evaluate(trained, samples) | {"cost": trained.config.objective.cost(trained.process)}
    rows = [row(trained, samples, {**values, "sweep": sweep, "value": value}) for sweep, value in job.options["places"]]
    return Outcome(job, rows, {"samples": samples[:36], "corrupted": trained.corrupted[:36]})


def findings(scale: str, outcomes: Sequence[Outcome]) -> Findings:
    """Trade-offs between residual noise, distance from clean data, cost, and the price on clean data."""
    rows = [r for o in outcomes for r in o.rows]
    shown = [o for o in first_seed(outcomes) if o.job.condition == NOISY]
    left, frechet, base = digits.residual_key(rows[0]), digits.frechet_key(rows[0]), digits.gated(scale)
    noisy = [r for r in rows if r["condition"] == NOISY]
    lines = {sweep: values_of(those, "value") for sweep, those in by_value(noisy, "sweep").items()}
    for name, settings in sweeps(scale).items():  # a setting that several sweeps share came first
        if name in lines:
            lines[name] = [value for value, _ in settings if value in lines[name]]

    def of(sweep: str, value: str, key: str, condition: str = NOISY) -> float:
        return mean_over_seeds(rows, key, sweep=sweep, value=value, condition=condition)

    turned = [name for name in lines if name != "none"]
    cheap = [(v, name, of(name, v, "cost"), of(name, v, left)) for name in turned for v in lines[name]]
    price = {  # of a setting on clean data, in times ddpm's distance
        name: {v: of(name, v, frechet, CLEAN) / of("none", "", frechet, CLEAN) for v in lines[name]}
        for name in ON_CLEAN
        if name in lines
    }
    figures = _figures(of, lines, cheap, price, (left, frechet))
    best = {sweep: min(lines[sweep], key=partial(of, sweep, key=frechet)) for sweep in turned}
    claims = _claims(of, lines, best, price, (left, frechet), f"{base['k']:g}")
    table = table_of(
        rows,
        {"training data": "condition", "sweep": "sweep", "value": "value"},
        {"residual noise": left, "Frechet": frechet, "sliced W2": "sliced_wasserstein", "step cost": "cost"},
        f"Digits, noise of std 0.2 on 90 %. omega and floor at lambda {STRONG:g}; k, radius and gate about the recommended "
        f"setting (gate {base['gate']:g}, k {base['k']:g}, r {base['r']:.3g}).",
    )
    samples = {"training data": shown[0].tensors["corrupted"]} | {
        o.job.label: o.tensors["samples"]
        for o in shown
        if o.job.label == "ddpm" or any(o.job.options["places"][0] == (s, v) for s, v in best.items())
    }
    figures["samples"] = (
        "ddpm, and the setting of each sweep that came closest to clean data.",
        plot.image_grids(samples, columns=6),
    )
    ends = ", ".join(f"{name} {v} ({number(cost)} times, {number(noise)})" for v, name, cost, noise in front(cheap))
    note = f"The Pareto front of step cost (over ddpm's) and residual noise: {ends}."
    return Findings(LEAD, [*claims], rows, figures, [table], [note])


def _figures(
    of: Callable[..., float],
    lines: Mapping[str, Sequence[str]],
    cheap: Sequence[tuple[str, str, float, float]],
    price: Mapping[str, Mapping[str, float]],
    keys: tuple[str, str],
) -> dict[str, tuple[str, plot.Figure]]:
    left, frechet = keys
    plain = {key: of("none", "", key) for key in keys}

    def tradeoff(names: Sequence[str]) -> plot.Figure:
        points = [("", "ddpm", plain[left], plain[frechet])]
        points += [(v, name, of(name, v, left), of(name, v, frechet)) for name in names for v in lines.get(name, [])]
        return plot.scatter_tradeoff(points, "residual noise (lower is better)", "Frechet distance (lower is better)")

    dear = [(v, name, of(name, v, left), times) for name, along in price.items() for v, times in along.items()]
    return {
        "recommended": ("Gated relative regularizer: k, radius, gate.", tradeoff(["k", "radius", "gate"])),
        "cost": (
            "Residual noise against the cost of a step (floor, over ddpm's): towards the lower left is better.",
            plot.scatter_tradeoff([("", "ddpm", 1.0, plain[left]), *cheap], "step cost over ddpm's", "residual noise"),
        ),
        "penalty": (
            "What a setting costs on clean digits, against the residual noise: towards the lower left is better.",
            plot.scatter_tradeoff(
                [("", "ddpm", plain[left], 1.0), *dear],
                "residual noise, trained on noisy digits",
                "Frechet distance over ddpm's, trained on clean digits",
            ),
        ),
        "published": ("Published radius and weight: lambda, omega, floor.", tradeoff(["lambda", "omega", "floor"])),
        "fine-tuning": (
            "The regularizer only in the last part of training.",
            tradeoff(["late, recommended", "late, published", "auto"]),
        ),
    }


def _claims(
    of: Callable[..., float],
    lines: Mapping[str, Sequence[str]],
    best: Mapping[str, str],
    price: Mapping[str, Mapping[str, float]],
    keys: tuple[str, str],
    strong: str,
) -> Iterator[Claim]:
    """What strength costs on clean data and gains on noisy data, what is left of it late in training, and at what price.

    Args:
        strong: the k of the recommended setting.
    """
    left, frechet = keys
    plain = {key: of("none", "", key) for key in keys}
    for name, along in price.items():
        yield Claim(
            f"on clean digits every setting along {name} stays within 1.1 times ddpm's Frechet distance",
            all(times <= 1.1 for times in along.values()),
            ", ".join(f"{v}: {number(times)} times" for v, times in along.items()),
        )
    for sweep in ("lambda", "k"):
        values = lines[sweep]
        noise = [of(sweep, v, left) for v in values]
        if len(values) > 1:
            yield Claim(
                f"more {sweep} gives less residual noise",
                all(b < a for a, b in itertools.pairwise(noise)),
                ", ".join(f"{v}: {number(n)}" for v, n in zip(values, noise, strict=True))
                + f"; ddpm {number(plain[left])}",
            )
    for sweep, value in best.items():
        yield Claim(
            f"some setting along {sweep} comes closer to clean data than ddpm",
            of(sweep, value, frechet) < plain[frechet],
            f"best at {value}: Frechet distance {number(of(sweep, value, frechet))}, ddpm {number(plain[frechet])}; residual "
            f"noise {number(of(sweep, value, left))}, ddpm {number(plain[left])}",
        )
    if strong in lines.get("k", []):
        for value in lines["late, recommended"]:
            gained = (plain[left] - of("late, recommended", value, left)) / (plain[left] - of("k", strong, left))
            yield Claim(
                f"the recommended regularizer in the last {value} of training removes most of the noise that it removes throughout",
                gained > 0.5,
                f"{number(100 * gained)} % of it: {number(of('late, recommended', value, left))} against "
                f"{number(of('k', strong, left))}, ddpm {number(plain[left])}",
            )
    if "every" in lines:
        often = of("every", "1", left)
        for sweep, value, name in (("every", "4", "the regularizer in one of four steps"), ("auto", "k 5", "auto:k=5")):
            remains, cost = of(sweep, value, left), of(sweep, value, "cost")
            yield Claim(
                f"{name} costs at most 1.2 times ddpm and keeps at most 1.05 times the noise of the regularizer in every step",
                cost <= 1.2 and remains <= 1.05 * often,
                f"{number(remains)} at {number(cost)} times ddpm's cost, {number(often)} at {number(of('every', '1', 'cost'))}; "
                f"ddpm {number(plain[left])}",
            )


def front(points: Sequence[tuple[str, str, float, float]]) -> list[tuple[str, str, float, float]]:
    """The points that no other is below in both numbers, by the first of the two."""
    ahead = [p for p in points if not any(o[2] <= p[2] and o[3] <= p[3] and o[2:] != p[2:] for o in points)]
    return sorted(dict.fromkeys(ahead), key=lambda p: p[2:])
