"""The same perturbation with a random or an adversarial direction: the published constants, and the gated relative regularizer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from .. import plot
from ..pool import Tell, part
from ..report import Row
from ..training.config import ObjectiveConfig
from . import by_scale, digits, plane
from .runner.findings import Claim, Findings, Outcome, beside_training, by_condition
from .runner.jobs import DDPM, RECOMMENDED, Job, grid, published, recommended, samples_of, train
from .runner.rows import evaluate, means, number, row, table_of, values_of

GATED_RANDOM = "robust_rand recommended"
STDS = {"noise 0.1": 0.1, "noise 0.2": 0.2}
PUBLISHED_FID = {"noise 0.1": (58.05, 79.21, 24.70), "noise 0.2": (102.68, 68.04, 24.81)}  # ddpm, rand, adv: CIFAR-10
LEAD = (
    "Does the direction matter, or would any perturbation do? The published table has FID on CIFAR-10 with noise on 90 % of the "
    "images: the random perturbation (robust_rand) does little, or harms, where the adversarial one helps. Here the same "
    "comparison, with the published constants and with the recommended gated regularizer, whose size both directions share."
)


def jobs(scale: str, seeds: Sequence[int], data: str | None) -> list[Job]:
    """Both directions with both settings on noisy images; the gated regularizer on the plane with outliers."""
    todo = []
    for condition, std in by_scale(scale, {"noise 0.2": 0.2}, STDS, STDS).items():
        images = {"ddpm": DDPM, **{name: published(name) for name in ("robust_rand", "robust_adv")}}
        images |= both_directions(digits.gated(scale, std))
        todo += grid(digits.base(scale), images, {condition: digits.NOISE[condition]}, seeds)
    outliers = {f"plane, {plane.OUTLIERS[0]}": plane.OUTLIERS[1]}
    return todo + grid(plane.base(scale), {"ddpm": DDPM, **both_directions(plane.GATED)}, outliers, seeds)


def both_directions(gated: Mapping[str, Any]) -> dict[str, ObjectiveConfig]:
    """The gated regularizer along a random and along the adversarial direction."""
    return {GATED_RANDOM: recommended(**gated, name="robust_rand"), RECOMMENDED: recommended(**gated)}


def work(job: Job, tell: Tell) -> Outcome:
    """Train, sample, measure."""
    trained = train(job, part(tell, 0, 0.8))
    samples = samples_of(trained, part(tell, 0.8, 1))
    shown = {"samples": samples[:36], "corrupted": trained.corrupted[:36]}
    return Outcome(job, [row(trained, samples, evaluate(trained, samples))], shown)


def findings(scale: str, outcomes: Sequence[Outcome]) -> Findings:
    """Residual noise, distance from clean data, spread kept."""
    rows = [r for o in outcomes for r in o.rows]
    images = [r for r in rows if not r["condition"].startswith("plane")]
    points = [r for r in rows if r["condition"].startswith("plane")]
    residual, frechet = digits.residual_key(images[0]), digits.frechet_key(images[0])
    claims: list[Claim] = []
    notes = []
    for condition in values_of(images, "condition"):
        of = means(images, condition=condition)
        claims += _claims(of, condition, {"Frechet distance": frechet, "residual noise": residual})
        plain, rand, adv = PUBLISHED_FID[condition]
        ours = [of(m, frechet) for m in ("ddpm", "robust_rand", "robust_adv")]
        notes.append(
            f"{condition}: published FID on CIFAR-10 of ddpm, robust_rand, robust_adv: {plain}, {rand}, {adv}, that is 1, "
            f"{number(rand / plain)} and {number(adv / plain)} times ddpm's; here, in {frechet.replace('_', ' ')}: "
            f"1, {number(ours[1] / ours[0])} and {number(ours[2] / ours[0])} times."
        )
    claims.append(_same_size(points))
    tables = [
        table_of(
            images,
            {"training data": "condition", "objective": "method"},
            {
                "residual noise": residual,
                "Frechet": frechet,
                "sliced W2": "sliced_wasserstein",
                "training (s)": "seconds",
            },
            f"Images ({images[0]['reference']}): residual noise is {residual.replace('_', ' ')}, Frechet is {frechet.replace('_', ' ')}.",
        ),
        table_of(
            points,
            {"data": "condition", "objective": "method"},
            {
                "off the plane (rms)": "off_support_rms",
                "spread / truth": "spread_ratio",
                "sliced W2": "sliced_wasserstein",
            },
        ),
    ]
    figures = {
        "noise": ("Residual noise.", plot.bars(images, residual, ("condition", "method"))),
        "frechet": ("Frechet distance from clean data.", plot.bars(images, frechet, ("condition", "method"))),
        "spread": ("Spread in the plane.", plot.bars(points, "spread_ratio", ("method",))),
    }
    samples = plot.image_grids(beside_training(dict(by_condition(outcomes))[condition]), columns=6)
    figures["samples"] = (f"{condition}: training data and samples.", samples)
    return Findings(LEAD, claims, rows, figures, tables, notes)


def _claims(of: Callable[[str, str], float], condition: str, keys: Mapping[str, str]) -> Iterator[Claim]:
    """Adversarial beside random perturbations, with the published constants and with the gate."""
    for what, key in keys.items():
        for random, adversarial in (("robust_rand", "robust_adv"), (GATED_RANDOM, RECOMMENDED)):
            yield Claim(
                f"{condition}: {adversarial} beats {random} in {what}",
                of(adversarial, key) < of(random, key),
                f"{number(of(adversarial, key))} and {number(of(random, key))}; ddpm {number(of('ddpm', key))}",
            )


def _same_size(points: Sequence[Row]) -> Claim:
    """What perturbations of one size do to the data's own directions."""
    where = points[0]["condition"]
    off = {m: means(points, "off_support_rms")(m) for m in (GATED_RANDOM, RECOMMENDED, "ddpm")}
    kept = {m: means(points, "spread_ratio")(m) for m in off}
    return Claim(
        f"{where}: a random perturbation of the same size shrinks the data's own directions too, an adversarial one does not",
        kept[RECOMMENDED] > 0.9 > kept[GATED_RANDOM],
        f"spread over the truth: {number(kept[RECOMMENDED])} and {number(kept[GATED_RANDOM])}, ddpm "
        f"{number(kept['ddpm'])}; off the plane {number(off[RECOMMENDED])} and {number(off[GATED_RANDOM])}, ddpm "
        f"{number(off['ddpm'])}",
    )
