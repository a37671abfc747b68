"""Real images under heavy noise: clean, std 0.1 and 0.2 on 90 % of the images, ddpm beside robust_adv (tables, figure 4).

Each model is a run folder below ``runs/images-SCALE``, made by the recipe of its data set: what is there already is not
trained again, and what was interrupted goes on.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import metrics, plot
from ..diffusion.steps import Sampling
from ..errors import UserError
from ..pool import Tell, part
from ..report import Row
from ..training.config import ObjectiveConfig, TrainConfig
from ..training.recipes import recipe
from . import by_scale
from .runner.findings import Claim, Findings, Outcome, at_most
from .runner.jobs import Job, draw_stops, prepare, train
from .runner.rows import mean_over_seeds, row, table_of, values_of

SETS = {"cifar10": "CIFAR-10", "celeba": "CelebA", "bedroom": "bedrooms"}
CONDITIONS = {
    "noise 0.2": "gaussian:share=0.9,std=0.2",
    "clean": "none",
    "noise 0.1": "gaussian:share=0.9,std=0.1",
}
STOPS = (0.3, 0.5)  # noise levels at which sampling is also stopped
REAL = "clean training images"  # in place of samples: what no model can be expected to go below
# FID of the published evaluation: ddpm, robust_adv.
PUBLISHED_FID = {
    ("cifar10", "clean"): (7.20, 28.68),
    ("cifar10", "noise 0.1"): (58.05, 24.70),
    ("cifar10", "noise 0.2"): (102.68, 24.81),
    ("celeba", "noise 0.2"): (96.03, 16.53),
    ("bedroom", "noise 0.2"): (95.85, 44.27),
}


def jobs(scale: str, seeds: Sequence[int], data: str | None) -> list[Job]:
    """ddpm and robust_adv on every set and condition.

    Args:
        data: a folder that holds ``cifar10``, ``celeba`` and ``bedroom``, instead of what the recipes name.
    """
    job = partial(
        Job,
        samples=by_scale(scale, 32, 1000, 10_000),
        sampling=by_scale(scale, Sampling("ddpm", 5), Sampling("sde-dpm-solver++", 50), Sampling("ddpm", 1000)),
        # Distances among the features of a network take longer than all else at scale smoke.
        features=by_scale(scale, "patches", "pixels+efficientnet-lite", "patches+inception"),
        step_seconds=by_scale(scale, 0.003, 0.25, 0.25),
    )
    todo = []
    for seed in seeds:
        for condition, corrupt in list(CONDITIONS.items())[: 2 if scale == "smoke" else None]:
            for name in ["cifar10"] if scale == "smoke" else SETS:
                base = smoke() if scale == "smoke" else recipe(by_scale(scale, "", f"{name}-cpu", name))
                if data is not None and scale != "smoke":
                    base = dataclasses.replace(base, data=str(folder_below(data, name)))
                for label, objective in {"ddpm": ObjectiveConfig("ddpm"), "robust_adv": base.objective}.items():
                    out = f"runs/images-{scale}/{name}-{condition.replace(' ', '-')}-{label}-{seed}"
                    own: dict[str, Any] = {"out": out, "corrupt": corrupt, "objective": objective, "seed": seed}
                    config = dataclasses.replace(base, **own, metrics="none", sample_every=0)
                    options = {"set": name, "own_steps": by_scale(scale, 5, 300, 300)}
                    todo.append(job(config=config, label=label, condition=condition, options=options))
    return todo


def smoke() -> TrainConfig:
    """Digits and a network that learns nothing."""
    gated = ObjectiveConfig("robust_adv", "constant:r=1", "relative:k=5", "l2", 1, float("inf"), 0.2)
    return TrainConfig(data="digits", limit=64, net="mlp:width=16,depth=1", objective=gated, steps=5, batch_size=8)


def folder_below(data: str, name: str) -> Path:
    folder = Path(data).expanduser() / name
    if not folder.is_dir():
        raise UserError(
            f"There is no folder {folder}. Expected a folder that holds {', '.join(SETS)}, of images or parquet."
        )
    return folder


def work(job: Job, tell: Tell) -> Outcome:
    """Train or go on, sample once, and measure the samples and what stopping earlier would have returned.

    Beside the feature spaces of the job stands one that is trained on the held-out images of the set.
    """
    parts = prepare(job)
    reference = parts.dataset.reference
    # What is missing is told before the training.
    folder, set_name = Path(job.config.out).parent, job.options["set"]
    own = own_features(folder, set_name, reference, job.config.data, job.options["own_steps"])
    spaces = [own, *metrics.require(job.features)]
    trained = train(job, part(tell, 0, 0.75), parts)
    drawn = dict(zip((None, *STOPS), draw_stops(trained, part(tell, 0.75, 0.9), [None, *STOPS]), strict=True))

    def measured(x: Tensor, spaces: list[metrics.Features]) -> Row:
        scores = metrics.measure(x, reference, parts.dataset.truth, spaces, seed=job.seed)
        features = {s.features: s.features_hash for s in scores if s.features}
        return {"set": job.options["set"]} | {s.metric: s.value for s in scores} | {"features": features}

    rows: list[Row] = []
    for turn, (stop, x) in enumerate(drawn.items()):
        # The last space, a network for larger images, takes longer than the sampling: it sees what was sampled to the end.
        values = measured(x, spaces if stop is None else spaces[:2])
        label = job.label if stop is None else f"{job.label}, stopped at {stop:g}"
        rows.append(row(trained, x, values, stop_ratio=stop) | {"method": label})
        tell(0.9 + 0.1 * (turn + 1) / len(drawn))
    if job.label == "ddpm" and job.condition == "clean":
        x = parts.dataset.x
        some = torch.randperm(len(x), generator=torch.Generator().manual_seed(job.seed))[: job.samples]
        made = dict.fromkeys(("checkpoint", "weights", "sampler", "steps", "objective", "training_steps", "net"))
        rows.append(row(trained, None, measured(x[some], spaces), samples=len(some), **made) | {"method": REAL})
    shown = {"clean": reference[:16], "training data": trained.dirty[:16]}
    shown |= {str(stop): x[:16] for stop, x in drawn.items()}
    return Outcome(job, rows, {name: x.clone() for name, x in shown.items()})


def own_features(folder: Path, name: str, images: Tensor, trained_on: str, steps: int) -> metrics.Features:
    """A small network of ``atdm features`` that knows the images of a set at their size; the first job of a set trains it.

    Args:
        folder: where it is kept.
        name: of the set.
        trained_on: spec of the images.
    """
    path = folder / f"{name.split()[0].lower()}-features-{metrics.content_hash(images)}.safetensors"
    if not path.exists():
        for _ in metrics.small_file(path, images, trained_on, steps):
            pass
    (space,) = metrics.require(f"small:file={path}")
    return space


def findings(scale: str, outcomes: Sequence[Outcome]) -> Findings:
    """The table, grids, and what the published evaluation leads one to expect."""
    rows = [r for o in outcomes for r in o.rows]
    distances = [k for k in rows[0] if k.startswith(("frechet_", "kernel_"))]
    frechets = [k for k in distances if k.startswith("frechet_") and "extrapolated" not in k]
    sets, conditions = values_of(rows, "set"), values_of(rows, "condition")

    def of(key: str, **where: Any) -> float:
        return mean_over_seeds(rows, key, **where)

    claims = []
    for name in sets:
        for condition in conditions:
            at = {"set": name, "condition": condition}
            title = f"{SETS[name]}, {condition}"
            if condition == "noise 0.2":
                noise = (of("noise_std", method="robust_adv", **at), of("noise_std", method="ddpm", **at))
                claims.append(
                    at_most(f"{title}: residual noise at most half of ddpm's", *noise, 0.5, ("robust_adv", "ddpm"))
                )
                for key in frechets:
                    pair = (of(key, method="robust_adv", **at), of(key, method="ddpm", **at))
                    words = key.replace("_", " ")
                    claims.append(
                        at_most(f"{title}: {words} at most half of ddpm's", *pair, 0.5, ("robust_adv", "ddpm"))
                    )
                    # How far a network that short of converged is from clean images in any case.
                    clean = of(key, method="ddpm", set=name, condition="clean")
                    beyond = (pair[0] - clean, pair[1] - clean)
                    title_beyond = f"{title}: {words} beyond that of ddpm on clean images at most half of ddpm's"
                    claims.append(at_most(title_beyond, *beyond, 0.5, ("robust_adv", "ddpm")))
            elif condition == "clean":
                for key in frechets:
                    pair = (of(key, method="robust_adv", **at), of(key, method="ddpm", **at))
                    words = key.replace("_", " ")
                    claims.append(
                        at_most(f"{title}: {words} within 1.1 times ddpm's", *pair, 1.1, ("robust_adv", "ddpm"))
                    )
            if condition != "clean":
                claims += [_beats_stopping(rows, key, at, title) for key in ("noise_std", frechets[0])]
    columns = {
        "residual noise": "noise_std",
        "of clean data": "noise_std_reference",
        **{k.replace("_", " "): k for k in distances},
        "PSNR to nearest": "nearest_psnr",
    }
    table = table_of(
        rows,
        {"data": "set", "training data": "condition", "model": "method"},
        columns,
        f"{rows[0]['samples']} samples each ({rows[0]['steps']} steps of {rows[0]['sampler']}, the last at noise level "
        f"{rows[0]['last_ratio']:.2g}; averaged weights) against held-out clean images. Distances to clean data: lower is better; what {REAL} score in place of samples is the least to expect.",
    )
    figures = {
        f"{o.job.options['set']}-{o.job.condition}".replace(" ", "-"): (
            f"{SETS[o.job.options['set']]}, {o.job.condition}: clean images, training data, and samples of both models.",
            plot.image_grids(_panels(outcomes, o), columns=4),
        )
        for o in outcomes
        if o.job.label == "ddpm" and o.job.seed == outcomes[0].job.seed
    }
    published = "; ".join(
        f"{SETS[name]} {condition}: ddpm {a}, robust_adv {b}" for (name, condition), (a, b) in PUBLISHED_FID.items()
    )
    lead = (
        "The published evaluation trains on images of which nine in ten carry Gaussian noise, without any label of which, "
        f"and takes FID against clean images ({published}). "
        + by_scale(
            scale,
            "Here: digits.",
            "Here small twins at 16x16 pixels with a network of 0.7M parameters that predicts v, a few thousand images and minutes "
            "of training, far from converged, with the push of "
            f"{_pushes(outcomes)} in place of the published constants; distances are comparable within the table only. The plain ddpm whose sampling stops at a noise level stands beside both.",
            "Here the published sizes and constants.",
        )
    )
    return Findings(lead, claims, rows, figures, [table])


def _pushes(outcomes: Sequence[Outcome]) -> str:
    """The objectives of the recipes, with the sets that have them."""
    sets: dict[str, list[str]] = {}
    for job in (o.job for o in outcomes if o.job.label != "ddpm"):
        named = sets.setdefault(job.config.objective.name, [])
        named += [] if SETS[job.options["set"]] in named else [SETS[job.options["set"]]]
    return ", ".join(f"{name} ({', '.join(named)})" for name, named in sets.items())


def _beats_stopping(rows: Sequence[Row], key: str, at: Mapping[str, Any], title: str) -> Claim:
    """Whether robust_adv is below every stop of ddpm."""
    stopped = {s: mean_over_seeds(rows, key, method=f"ddpm, stopped at {s:g}", **at) for s in STOPS}
    best = min(stopped, key=lambda s: stopped[s])
    own = mean_over_seeds(rows, key, method="robust_adv", **at)
    measured = f"robust_adv {own:.3g}, ddpm stopped at {best:g} {stopped[best]:.3g}"
    return Claim(f"{title}: {key.replace('_', ' ')} below that of ddpm stopped early", own < stopped[best], measured)


def _panels(outcomes: Sequence[Outcome], plain: Outcome) -> dict[str, Tensor]:
    where = lambda o: (o.job.options["set"], o.job.condition, o.job.seed)  # noqa: E731
    robust = next(o for o in outcomes if where(o) == where(plain) and o.job.label == "robust_adv")
    tensors = plain.tensors
    return {
        "clean": tensors["clean"],
        "training data": tensors["training data"],
        "ddpm": tensors["None"],
        f"ddpm, stopped at {STOPS[0]:g}": tensors[str(STOPS[0])],
        "robust_adv": robust.tensors["None"],
        f"robust_adv, stopped at {STOPS[0]:g}": robust.tensors[str(STOPS[0])],
    }
