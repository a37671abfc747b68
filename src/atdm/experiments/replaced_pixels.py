"""Images of which pixels were replaced: what learning from the others is worth, and how well these pixels are found."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from .. import plot
from ..noise.pixels import replaced_pixels
from ..pool import Tell, part
from ..report import Row
from ..training.config import ObjectiveConfig
from . import by_scale, digits
from .baselines import IMAGES, base, keys, words
from .runner.findings import Claim, Findings, Outcome, at_most, beside_training, by_condition
from .runner.jobs import AUTO, DDPM, Job, Trained, grids, open_held_out, prepare, samples_of, train
from .runner.rows import evaluate, means, number, row, table_of, values_of

CONDITIONS = {
    "salt and pepper": "salt_pepper:share=0.9,rate=0.1",
    "missing pixels": "missing:share=0.9,rate=0.3",
    "missing patches": "patch:share=0.5,size=0.4",
    "noise or salt and pepper": "gaussian:share=0.5,std=0.2+salt_pepper:share=0.5,rate=0.1",
}
REGULARIZER = "auto:k=2"
OBJECTIVES = {"ddpm": DDPM, **{name: ObjectiveConfig(name) for name in ("pseudo_huber", REGULARIZER, AUTO)}}
CLEAN = "clean"
SHOWN = 12


def jobs(scale: str, seeds: Sequence[int], data: str | None) -> list[Job]:
    """Four objectives under every condition; ddpm and auto on clean images.

    Args:
        data: images, learned at 16x16 at scale cpu; None: CIFAR-10.
    """
    found = base(IMAGES, scale, data or by_scale(scale, "digits", digits.CIFAR, digits.CIFAR))
    clean = {name: OBJECTIVES[name] for name in ("ddpm", AUTO)}
    conditions = dict([*CONDITIONS.items()][: 1 if scale == "smoke" else None])
    return grids([(found, clean, {CLEAN: "none"}), (found, OBJECTIVES, conditions)], seeds)


def work(job: Job, tell: Tell) -> Outcome:
    """Train, sample, and compare the pixels that look replaced with those that were."""
    trained = train(job, part(tell, 0, 0.8), prepare(job, open_held_out(job)))
    samples = samples_of(trained, part(tell, 0.8, 1))
    chosen = {"chosen": trained.config.objective.name, **_found(trained)}
    one = row(trained, samples, evaluate(trained, samples) | chosen)
    shown = {"corrupted": trained.corrupted[:SHOWN], "samples": samples[:SHOWN]}
    return Outcome(job, [one], {name: x.clone() for name, x in shown.items()})


def _found(trained: Trained) -> dict[str, float]:
    """Of the pixels that were replaced the share that is found, and of those found the share that was replaced.

    Nothing is said of clean images, and where noise changed other pixels.
    """
    clean, given = trained.dataset.x, trained.corrupted
    changed = (given != clean).any(1, keepdim=True)
    if "gaussian" in trained.config.corrupt or not changed.any():
        return {}
    found = torch.cat([replaced_pixels(x) for x in given.split(256)])
    both = (changed & found).sum().item()
    return {"recall": both / changed.sum().item(), "precision": both / max(1, int(found.sum()))}


def findings(scale: str, outcomes: Sequence[Outcome]) -> Findings:
    """A table, samples under each condition, and whether auto is ahead."""
    rows = [r for o in outcomes for r in o.rows]
    residual, distance = keys(rows)
    columns = {words(residual): residual, words(distance): distance, "recall": "recall", "precision": "precision"}
    table = table_of(
        rows, {"training data": "condition", "objective": "method", "auto chose": "chosen"}, columns,
        f"{words(residual)} and {words(distance)} of the samples: lower is better. Recall: of the pixels that were replaced the share "
        "that is found; precision: of those found the share that was replaced.",
        {words(residual): "lower", words(distance): "lower"},
    )  # fmt: skip
    figures = {
        f"samples-{condition}".replace(" ", "-"): (
            f"{condition}: training data, and samples of each objective.",
            plot.image_grids(beside_training(chosen), columns=4),
        )
        for condition, chosen in by_condition(outcomes)
        if condition != CLEAN
    }
    lead = (
        "No published counterpart. Salt and pepper, missing pixels and blank patches destroy some pixels of an image and keep the others. auto "
        "recognizes such pixels in the images alone and learns from the others (masked). Beside it stand ddpm, the pseudo-Huber loss, for "
        "which such pixels are outliers, and the regularizer, which is for small noise on many values. Conditions: "
        + "; ".join(f"{name}: {spec}" for name, spec in CONDITIONS.items())
        + "."
    )
    return Findings(lead, [*_claims(rows, residual, distance)], rows, figures, [table])


def _claims(rows: Sequence[Row], residual: str, distance: str) -> Iterator[Claim]:
    clean = means(rows, distance, condition=CLEAN)("ddpm")
    for condition in [c for c in values_of(rows, "condition") if c != CLEAN]:
        of = means(rows, condition=condition)
        others = [m for m in values_of(rows, "method") if m != AUTO]
        for key in (residual, distance):
            best = min(others, key=lambda m, of=of, key=key: of(m, key))  # type: ignore[misc]
            yield at_most(
                f"{condition}: {words(key)} of auto at most that of the best of the others", of(AUTO, key), of(best, key), 1.0,
                (AUTO, best),
            )  # fmt: skip
        price = of(AUTO, distance) / clean
        yield Claim(
            f"{condition}: auto is within 1.1 times the {words(distance)} of ddpm that learned from clean images",
            price <= 1.1,
            f"{number(of(AUTO, distance))}, on clean images {number(clean)}: {number(price)} times",
        )
