"""Memorization: how close samples come to a small training set, beside how close held-out images do."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from .. import plot
from ..corruption import corrupt
from ..data import Dataset, load
from ..data.items import Floats
from ..metrics import Memorization, memorization
from ..plot.lines import Curve, curve_panels
from ..pool import Tell, part
from ..report import Row
from ..report.lab import OTHER
from . import by_scale, digits
from .runner.findings import Claim, Findings, Outcome, by_condition
from .runner.jobs import DDPM, Job, ddpm_job, grids, prepare, published, samples_of, train
from .runner.rows import evaluate, means, number, row, table_of

PAIRS = 6
CONDITIONS = {"clean": "none", "noise 0.2": digits.NOISE["noise 0.2"]}
LEAD = (
    "Published: robust_adv makes fewer near-duplicates of training images, by DINOv2 similarity. Two images of one kind "
    "are similar anyway, so beside each model stands the background: how similar held-out images are to the training "
    "images. The smallest training set is one that ddpm copies."
)


def jobs(scale: str, seeds: Sequence[int], data: str | None) -> list[Job]:
    """ddpm and robust_adv on training sets from one so small that ddpm copies it to one that it cannot copy."""
    spec = data or by_scale(scale, "digits", "digits", digits.CIFAR)
    net = "mlp:width=256,depth=3,residual=true,skip=true"
    base = by_scale(
        scale,
        ddpm_job(spec, "mlp:width=32", 30, 32, 32, 10, warmup=5),
        ddpm_job(spec, net, 4000, 64, 500, 250, lr=3e-3, decay="cosine", ema=0.995)
        if data is None
        else digits.photos(data, 4000, 400, 250),
        ddpm_job(spec, "cifar10:dropout=0", 60_000, 128, 5000, 1000, lr=2e-4, ema=0.9999).but(features="dinov2"),
    ).but(step_seconds=0.006)
    sizes = by_scale(scale, (40,), (100, 400, 1200) if data is None else (100, 400), (2000, 10_000))
    objectives = {"ddpm": DDPM, "robust_adv": published("robust_adv"), **digits.recommended_for(scale, data)}
    conditions = dict(CONDITIONS)
    if scale == "smoke":
        del objectives["robust_adv"], conditions["noise 0.2"]
    plans = []
    for n in sizes:
        named = {f"{condition}, {n} images": corrupt for condition, corrupt in conditions.items()}
        plans.append((base.but(options={"train": n, "smallest": n == min(sizes)}), objectives, named))
    return grids(plans, seeds)


def few(job: Job) -> tuple[Dataset, Tensor]:
    """A few images to train on, and of the others and those held out 2000: what an unseen image looks like."""
    data, n = load(job.config.data, **job.config.reading()), job.options["train"]
    x = data.x[torch.randperm(len(data.x), generator=torch.Generator().manual_seed(job.seed))]  # files come by class
    rest = x[n:] if data.test is None else torch.cat([x[n:], data.test])
    unseen = rest[:2000]
    return Dataset(Floats(x[:n]), data.kind, f"{data.spec}, {n} of them", None, Floats(unseen)), unseen


def work(job: Job, tell: Tell) -> Outcome:
    """Train on few images, sample, look for the nearest training image of each sample."""
    dataset, unseen = few(job)
    trained = train(job, part(tell, 0, 0.85), prepare(job, dataset))
    samples = samples_of(trained, part(tell, 0.85, 1))
    unseen, _ = corrupt(unseen, job.config.corrupt, job.seed + OTHER)
    found = memorization(samples, trained.corrupted, unseen, job.features)
    numbers = {k: v for k, v in found.as_dict().items() if k not in ("samples", "held_out", "space")}
    about = {"memorization_features": found.space, "held_out": len(unseen), "training_items": len(dataset.items)}
    one = row(trained, samples, {**evaluate(trained, samples), **numbers}, **about)
    return Outcome(job, [one], {"found": vars(found), "samples": samples, "train": trained.corrupted})


def findings(scale: str, outcomes: Sequence[Outcome]) -> Findings:
    """Similarities, near-duplicates, and the closest pairs as pictures."""
    rows = [r for o in outcomes for r in o.rows]
    frechet = digits.frechet_key(rows[0])
    panels: dict[str, dict[str, Curve]] = {}
    claims: list[Claim] = []
    pairs = {}
    for condition, chosen in by_condition(outcomes):
        short = condition.replace(", ", "-").replace(" ", "-")
        found: dict[str, Memorization] = {o.job.label: Memorization(**o.tensors["found"]) for o in chosen}
        panels[condition] = {"held out": _shares(found["ddpm"].background)}
        panels[condition] |= {m: _shares(f.similarity) for m, f in found.items()}
        for o in (o for o in chosen if o.job.options["smallest"]):
            name = o.job.label.replace(" ", "-")
            nearest = found[o.job.label]
            pairs[f"pairs-{short}-{name}"] = (
                f"{condition}, {o.job.label}: the closest pairs, sample (left) and training image (right).",
                plot.pairs(o.tensors["samples"], o.tensors["train"], nearest.pairs(PAIRS), nearest.similarity),
            )
        claims += _claims(rows, condition, [*found], frechet, chosen[0].job.options["smallest"])
    columns = {
        "near-duplicates": "near_duplicate_share",
        "held-out above the threshold": "background_share",
        "mean similarity": "similarity_mean",
        "held out": "background_mean",
        "threshold": "threshold",
        "Frechet": frechet,
    }
    table = table_of(
        rows,
        {"training data": "condition", "objective": "method"},
        columns,
        f"Similarity, beside that of held-out images, in "
        f"{rows[0]['memorization_features']}. A near-duplicate is more similar to its nearest training image than 99 % of "
        "held-out images are to theirs.",
    )
    similarity = (
        "Share of samples that are closer to a training image than this; held-out images are the background.",
        curve_panels(panels, "cosine similarity to the nearest training image", "share that is closer"),
    )
    return Findings(LEAD, claims, rows, {"similarity": similarity, **pairs}, [table])


def _claims(
    rows: Sequence[Row], condition: str, methods: Sequence[str], frechet: str, smallest: bool
) -> Iterator[Claim]:
    """What is published, on training sets of one size."""
    of = means(rows, condition=condition)
    plain, background = of("ddpm", "near_duplicate_share"), of("ddpm", "background_share")
    if smallest:
        yield Claim(
            f"{condition}: ddpm memorizes, with over three times the near-duplicates of held-out images",
            plain > 3 * background,
            f"{number(100 * plain)} % of its samples, {number(100 * background)} % of held-out images",
        )
    for method in [m for m in methods if m != "ddpm"]:
        yield Claim(
            f"{condition}: {method} makes fewer near-duplicates than ddpm",
            of(method, "near_duplicate_share") < plain,
            f"{number(100 * of(method, 'near_duplicate_share'))} %, ddpm {number(100 * plain)} %; mean similarity "
            f"{number(of(method, 'similarity_mean'))}, ddpm {number(of('ddpm', 'similarity_mean'))}; Frechet distance "
            f"from held-out images {number(of(method, frechet))}, ddpm {number(of('ddpm', frechet))}",
        )
        yield Claim(
            f"{condition}: {method} is measured against the same background as ddpm",
            abs(of(method, "background_mean") - of("ddpm", "background_mean")) < 1e-6,
            f"mean similarity of held-out images {number(of(method, 'background_mean'))}",
        )


def _shares(values: Tensor) -> Curve:
    """Each value, from the smallest, and the share of the values that is larger."""
    ordered = values.sort().values
    return ordered.tolist(), (1 - torch.arange(1, len(ordered) + 1) / len(ordered)).tolist()
