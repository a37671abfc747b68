"""Linearized butterflies: photos on a PCA subspace, clean and noisy, so that the error is exact (figure 3)."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence

from torch import Tensor

from .. import plot
from ..data import Dataset
from ..data.items import Floats
from ..data.subspace import Subspace
from ..metrics import psnr
from ..plot.base import Log
from ..pool import Tell, part
from ..training.config import ObjectiveConfig
from . import BUTTERFLIES, by_scale
from .runner.findings import Claim, Findings, Outcome, at_most, beats_random, beside_training, by_condition
from .runner.jobs import AUTO, DDPM, Job, Trained, ddpm_job, grids, open_held_out, prepare, published, samples_of, train
from .runner.rows import evaluate, means, number, row, table_of

CONDITIONS = {"clean": "none", "noise 0.1": "gaussian:share=0.9,std=0.1", "noise 0.2": "gaussian:share=0.9,std=0.2"}
STRONG = "inv_adv, lambda 0.3"
SHOWN = 12
# What is looked at during training: figure, place in a look, in words, axis, its scale.
LOOKS: tuple[tuple[str, int, str, str, Log], ...] = (
    ("curves", 1, "distance of samples from the subspace, per coordinate,", "off the subspace (rms)", "y"),
    ("psnr", 2, "PSNR of samples to their projection (median)", "PSNR (dB)", ""),
)


def base(scale: str, data: str | None) -> Job:
    """Photos of few pixels, or digits in their place at scale smoke; their subspace, and looks at samples during training."""
    data = data or by_scale(scale, "digits", BUTTERFLIES, BUTTERFLIES)
    size = None if re.match(r"(digits|npz)\b", data) else by_scale(scale, 16, 28, 32)
    net = "mlp:width=256,depth=2,residual=true,skip=true"
    options = {
        "dimension": by_scale(scale, 8, 16, 64),
        "looks": by_scale(scale, 2, 5, 12),
        "look_steps": by_scale(scale, 5, 50, 100),
    }
    return by_scale(
        scale,
        ddpm_job(data, "mlp:width=64,skip=true", 30, 32, 24, 10, warmup=5),
        # It predicts v: with eps an error at the noisiest timesteps, times 157, sends a few samples of 2352 pixels far away.
        ddpm_job(data, net, 2000, 128, 400, 250, lr=3e-3, decay="cosine", ema=0.995).but(
            process="linear:prediction=v_prediction"
        ),
        ddpm_job(data, "cifar10:dropout=0", 60_000, 128, 2000, 1000, lr=2e-4, ema=0.9999),
    ).but(
        image_size=size,
        features=by_scale(scale, "pca:directions=8", "pca:directions=16", "pca:directions=64+inception"),
        step_seconds=0.012,
        options=options,
    )


def jobs(scale: str, seeds: Sequence[int], data: str | None) -> list[Job]:
    """Every method on clean and noisy photos; invariance at two strengths."""
    harder, weak = "auto:k=5", "inv_adv, lambda 0.03"
    everything = {"ddpm": DDPM, **{name: published(name) for name in ("robust_rand", "robust_adv")}}
    everything |= {name: ObjectiveConfig(name) for name in (AUTO, harder)}
    everything |= {STRONG: published("inv_adv", 0.3), weak: published("inv_adv", 0.03)}
    few = ["ddpm", "robust_adv", AUTO, harder]
    labels: dict[str, list[str]] = by_scale(
        scale,
        {"noise 0.1": ["ddpm", AUTO, weak]},
        {"clean": [*few, STRONG, weak], "noise 0.1": [*everything], "noise 0.2": few},
        {condition: [*everything] for condition in CONDITIONS},
    )
    plans = []
    for condition, those in labels.items():
        plans.append(
            (base(scale, data), {name: everything[name] for name in those}, {condition: CONDITIONS[condition]})
        )
    return grids(plans, seeds)


def linearized(job: Job) -> Dataset:
    """The photos, projected onto the first principal directions of those to train on."""
    data, k = open_held_out(job), job.options["dimension"]
    x, test = data.x, data.reference
    truth = Subspace.fit(x, k)
    spec = f"{data.spec}, {'x'.join(map(str, x.shape[1:]))}, first {k} principal directions"
    return Dataset(Floats(truth.project(x)), "image", spec, truth, Floats(truth.project(test)))


def work(job: Job, tell: Tell) -> Outcome:
    """Train, looking at samples now and then; sample and measure."""
    parts = prepare(job, linearized(job))
    dataset, looks = parts.dataset, job.options["looks"]
    at = {max(1, round(job.config.steps * (i + 1) / looks)) for i in range(looks)}
    few = min(100, job.samples)
    curve: list[tuple[int, float, float]] = []

    def watch(trained: Trained, step: int) -> None:
        if step in at:
            samples = samples_of(trained, n=few, steps=job.options["look_steps"])
            curve.append((step, dataset.truth.residual_rms(samples), quality(dataset.truth, samples)))

    trained = train(job, part(tell, 0, 0.8), parts, watch)
    samples = samples_of(trained, part(tell, 0.8, 1))
    values = evaluate(trained, samples) | {"psnr": quality(dataset.truth, samples)}
    rows = [row(trained, samples, values)]
    rows += [
        row(trained, None, {"step": s, "look_off_support_rms": e, "look_psnr": q}, checkpoint=None, sampler="ddpm",
            steps=job.options["look_steps"], samples=few, training_steps=s)
        for s, e, q in curve
    ]  # fmt: skip
    tensors = {
        "curve": curve,
        "samples": samples[:SHOWN],
        "clean": dataset.x[:SHOWN],
        "corrupted": trained.corrupted[:SHOWN],
    }
    return Outcome(job, rows, tensors)


def quality(truth: Subspace, samples: Tensor) -> float:
    """Median PSNR (dB) of samples to their projection: the reconstruction that the subspace knows."""
    finite = samples[samples.flatten(1).isfinite().all(1)]
    return psnr(finite, truth.project(finite)).median().item()


def findings(scale: str, outcomes: Sequence[Outcome]) -> Findings:
    """Strips, curves over training, errors."""
    every = [r for o in outcomes for r in o.rows]
    rows = [r for r in every if "psnr" in r]
    claims: list[Claim] = []
    figures, notes = {}, []
    for condition, chosen in by_condition(outcomes):
        short = condition.replace(" ", "-")
        strips = {"clean": chosen[0].tensors["clean"]} | beside_training(chosen)
        figures[f"strips-{short}"] = (
            f"{condition}: clean photos, what training saw, samples.",
            plot.image_grids(strips, columns=4),
        )
        looks = {o.job.label: [*zip(*o.tensors["curve"], strict=True)] for o in chosen}  # steps, and what was seen
        for name, index, what, axis, log in LOOKS:
            lines = {label: (seen[0], seen[index]) for label, seen in looks.items()}
            figures[f"{name}-{short}"] = (
                f"{condition}: {what} over training.",
                plot.curves(lines, "training step", axis, log),
            )
        methods = [o.job.label for o in chosen]
        of = means(rows, "off_support_rms", condition=condition)
        claims += _claims(of, condition, methods)
        notes.append(
            f"{condition}: spread within the subspace, relative to held-out photos: "
            + ", ".join(f"{m} {number(of(m, 'spread_ratio'))}" for m in methods)
            + ". A regularizer that only shrank everything would show here."
        )
    frechet = next(k for k in rows[0] if k.startswith("frechet_"))
    columns = {
        "off the subspace (rms)": "off_support_rms",
        "PSNR (dB)": "psnr",
        "spread / truth": "spread_ratio",
        "Frechet, subspace": frechet,
        "diverged": "diverged_share",
        "training (s)": "seconds",
    }
    table = table_of(
        rows,
        {"training data": "condition", "objective": "method"},
        columns,
        "Off the subspace: per orthogonal coordinate, so that noise of std s reads s. PSNR: median, to the own projection.",
    )
    figures = dict(sorted(figures.items(), key=lambda named: "noise" not in named[0]))  # a page shows the first few
    lead = (
        f"Photos ({rows[0]['reference']}): on the subspace the reconstruction error is exact, the distance to it. "
        "The published figure shows samples and metrics over training, clean and with noise on 90 % of the photos: ddpm "
        "reproduces the noise, robust_adv does not, robust_rand hardly helps, and invariance fails at lambda 0.3 and at 0.03."
    )
    return Findings(lead, claims, every, figures, [table], notes)


def _claims(of: Callable[..., float], condition: str, methods: Sequence[str]) -> Iterator[Claim]:
    """What is published of the methods under a condition."""
    plain = of("ddpm")
    for method in [m for m in methods if m.startswith(("robust_adv", AUTO))]:
        share = 0.5 if condition == "noise 0.1" else 1.0
        statement = f"{condition}: {method} has at most {share:g} times ddpm's reconstruction error"
        yield at_most(statement, of(method), plain, share, (method, "ddpm"))
        yield Claim(
            f"{condition}: {method} has a higher PSNR than ddpm",
            of(method, "psnr") > of("ddpm", "psnr"),
            f"{method} {number(of(method, 'psnr'))} dB, ddpm {number(of('ddpm', 'psnr'))} dB",
        )
    if STRONG in methods:
        yield Claim(
            f"{condition}: {STRONG} is clearly worse than ddpm",
            of(STRONG) > 1.2 * plain or of(STRONG, "diverged_share") > 0.01,
            f"{STRONG} {number(of(STRONG))}, ddpm {number(plain)}",
        )
    if "robust_rand" in methods:
        yield beats_random(condition, of)
