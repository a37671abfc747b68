"""Real images under heavy noise: every published objective beside ddpm and auto (tables, figure 4), and how far long training goes.

Each model is a run folder below ``runs/images-SCALE``, made by the recipe of its data set: what is there already is not
trained again, and what was interrupted goes on.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
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
from .runner.findings import Claim, Findings, Outcome, at_most, first_seed
from .runner.jobs import DDPM, Job, prepare, published, samples_at_stops, samples_of, train
from .runner.rows import means, number, row, table_of, values_of

SETS = {"cifar10": "CIFAR-10", "celeba": "CelebA", "bedroom": "bedrooms", "imagenet64": "ImageNet-64"}
TITLES = SETS | {"cifar10-32": "CIFAR-10 at 32x32", "celeba-64": "CelebA at 64x64"}
STANDARD = "noise 0.2"
CONDITIONS = {
    STANDARD: "gaussian:share=0.9,std=0.2",
    "clean": "none",
    "noise 0.1": "gaussian:share=0.9,std=0.1",
    "noise 0.2 on 50 %": "gaussian:share=0.5,std=0.2",
}
STOPS = (0.3, 0.5)  # noise levels at which sampling is also stopped
REAL = "clean training images"  # in place of samples: what no model can be expected to go below
STRONGER = {"celeba": 4}  # k that halves the noise of ddpm; elsewhere 3
LATE = 0.8  # of the training is over when "robust_adv, late" begins to regularize
# FID of the published evaluation: ddpm, robust_adv.
PUBLISHED_FID = {
    ("cifar10", "clean"): (7.20, 28.68),
    ("cifar10", "noise 0.1"): (58.05, 24.70),
    ("cifar10", STANDARD): (102.68, 24.81),
    ("celeba", STANDARD): (96.03, 16.53),
    ("bedroom", STANDARD): (95.85, 44.27),
    ("imagenet64", "noise 0.1"): (97.6, 83.8),
    ("imagenet64", STANDARD): (129.4, 80.3),
}


def objectives(name: str, condition: str) -> dict[str, ObjectiveConfig]:
    """What is trained on a set under a condition: ddpm, the published objectives, auto; where published, what else was tried.

    On corrupted images also the regularizer of auto; under the standard condition a stronger one, and the best of the baselines.
    """
    auto = ObjectiveConfig("auto")
    found = {"ddpm": DDPM, "robust_adv": published("robust_adv"), "robust_rand": published("robust_rand"), "auto": auto}
    if condition != "clean":
        found["auto:k=2"] = ObjectiveConfig("auto:k=2")
    if condition == STANDARD:
        stronger = ObjectiveConfig(f"auto:k={STRONGER.get(name, 3)}")
        found |= {stronger.name: stronger, "ambient_blind": ObjectiveConfig("ambient_blind")}
    if name == "cifar10" and condition in (STANDARD, "clean"):
        found["inv_adv"] = published("inv_adv")
    if name == "cifar10" and condition == STANDARD:
        found |= {f"robust_adv, lambda {lam:g}": published("robust_adv", lam) for lam in (0.1, 0.5)}
    if name == "celeba" and condition == STANDARD:
        found["robust_adv, late"] = dataclasses.replace(published("robust_adv"), start=LATE)
    return found


def jobs(scale: str, seeds: Sequence[int], data: str | None) -> list[Job]:
    """Every objective on every set and condition.

    Args:
        data: a folder that holds some of ``SETS``, instead of what the recipes name.
    """
    base = partial(
        Job,
        samples=by_scale(scale, 32, 1000, 10_000),
        sampling=by_scale(scale, Sampling("ddpm", 5), Sampling("sde-dpm-solver++", 50), Sampling("ddpm", 1000)),
        # Beside the small network of the set. EfficientNet-Lite takes half of the time and does not separate such models.
        features=by_scale(scale, "patches", "pixels", "patches+inception"),
        step_seconds=by_scale(scale, 0.003, 0.25, 0.25),
    )
    todo = []
    for seed in seeds:
        for name, config in configs(scale, data).items():
            for condition, corrupt in list(CONDITIONS.items())[: 2 if scale == "smoke" else None]:
                for label, objective in objectives(name, condition).items():
                    folder = "-".join(f"{name} {condition} {label} {seed}".replace(",", "").replace("%", "").split())
                    out: dict[str, Any] = {"out": f"runs/images-{scale}/{folder}", "metrics": "none", "sample_every": 0}
                    changed = dataclasses.replace(config, corrupt=corrupt, objective=objective, seed=seed, **out)
                    options = {"set": name, "own_steps": by_scale(scale, 5, 300, 300)}
                    todo.append(base(config=changed, label=label, condition=condition, options=options))
    return todo


def configs(scale: str, data: str | None) -> dict[str, TrainConfig]:
    """The recipe of each set."""
    if scale == "smoke":
        return {"cifar10": smoke()}
    names = [name for name in SETS if scale == "paper" or name != "imagenet64"]
    found = {name: recipe(by_scale(scale, "", f"{name}-cpu", name)) for name in names}
    if data is None:
        return found
    return {name: dataclasses.replace(found[name], data=str(folder)) for name, folder in folders(data, names).items()}


def folders(data: str, names: Sequence[str] = ("cifar10", "celeba", "bedroom")) -> dict[str, Path]:
    """The folders in ``data`` that are called as a set.

    Raises:
        UserError: there is none.
    """
    found = {name: Path(data).expanduser() / name for name in names}
    here = {name: folder for name, folder in found.items() if folder.is_dir()}
    if not here:
        raise UserError(
            f"{data} holds no folder of a set. Expected some of {', '.join(names)} in it, each of images or parquet."
        )
    return here


def smoke() -> TrainConfig:
    """Digits and a network that learns nothing."""
    auto = ObjectiveConfig("auto")
    return TrainConfig(data="digits", limit=64, net="mlp:width=16,depth=1", objective=auto, steps=5, batch_size=8)


def work(job: Job, tell: Tell) -> Outcome:
    """Train or go on, sample once, and measure the samples and what stopping earlier would have returned.

    Beside the feature spaces of the job stands one that is trained on the held-out images of the set. ``also`` among the
    options of the job: another sampler and number of steps, of which there is a row, too.
    """
    parts = prepare(job)
    reference = parts.dataset.reference
    # What is missing is said before the training.
    folder, set_name = Path(job.config.out).parent, job.options["set"]
    small = small_features(folder, set_name, reference, job.config.data, job.options["own_steps"])
    spaces = metrics.require(f"{small}+{job.features}")
    trained = train(job, part(tell, 0, 0.75), parts)
    drawn = dict(zip((None, *STOPS), samples_at_stops(trained, part(tell, 0.75, 0.9), [None, *STOPS]), strict=True))

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
    if also := job.options.get("also"):
        x = samples_of(trained, **also)
        rows.append(
            row(trained, x, measured(x, spaces[:2]), **also) | {"method": f"{job.label}, {also['steps']} steps"}
        )
    if job.label == "ddpm" and job.condition == "clean":
        x = parts.dataset.x
        some = torch.randperm(len(x), generator=torch.Generator().manual_seed(job.seed))[: job.samples]
        made = dict.fromkeys(("checkpoint", "weights", "sampler", "steps", "objective", "training_steps", "net"))
        rows.append(row(trained, None, measured(x[some], spaces), samples=len(some), **made) | {"method": REAL})
    shown = {"clean": reference[:16], "training data": trained.corrupted[:16]}
    shown |= {str(stop): x[:16] for stop, x in drawn.items()}
    return Outcome(job, rows, {name: x.clone() for name, x in shown.items()})


def small_features(folder: Path, name: str, images: Tensor, trained_on: str, steps: int) -> str:
    """The spec of a small network of ``atdm features`` that knows the images of a set at their size; the first job of a set trains it.

    Args:
        folder: where it is kept.
        name: of the set.
        trained_on: spec of the images.
    """
    path = folder / f"{name.split()[0].lower()}-features-{metrics.content_hash(images)}.safetensors"
    if not path.exists():
        for _ in metrics.small_file(path, images, trained_on, steps):
            pass
    return f"small:file={path}"


def findings(scale: str, outcomes: Sequence[Outcome]) -> Findings:
    """The table, grids, and what the published evaluation leads one to expect."""
    rows = [r for o in outcomes for r in o.rows]
    reported = "; ".join(
        f"{SETS[name]} {condition}: ddpm {a}, robust_adv {b}" for (name, condition), (a, b) in PUBLISHED_FID.items()
    )
    lead = (
        "The published evaluation trains on images of which nine in ten carry Gaussian noise, without any label of which, "
        f"and takes FID against clean images ({reported}). "
        + by_scale(
            scale,
            "Here: digits.",
            "Here 16x16 pixels, a network of 0.7M parameters that predicts v, a few thousand images and minutes of training, "
            "far from converged; robust_adv, robust_rand and inv_adv have the published constants. On noisy images auto chooses "
            "ambient_blind with exchange; beside it stands the regularizer, auto:k=2, and for the standard noise the k that was chosen "
            "on its samples. Distances are comparable within the table only. "
            "The plain ddpm whose sampling stops at a noise level stands beside them.",
            "Here the published sizes and constants.",
        )
    )
    return Findings(lead, [*claims(rows)], rows, figures(outcomes), [table(rows)])


def table(rows: Sequence[Row]) -> Any:
    """Every model under every condition."""
    columns = {
        "residual noise": "noise_std",
        "of clean data": "noise_std_reference",
        **{k.replace("_", " "): k for k in rows[0] if k.startswith(("frechet_", "kernel_"))},
        "PSNR to nearest": "nearest_psnr",
    }
    return table_of(
        rows,
        {"data": "set", "training data": "condition", "model": "method"},
        columns,
        f"{rows[0]['samples']} samples each ({rows[0]['steps']} steps of {rows[0]['sampler']}, the last at noise level "
        f"{rows[0]['last_ratio']:.2g}; averaged weights) against held-out clean images. Distances to clean data: lower is "
        f"better; what {REAL} score in place of samples is the least to expect.",
    )


def figures(outcomes: Sequence[Outcome]) -> dict[str, tuple[str, Any]]:
    """Samples of every model, set by set, the standard condition first."""
    places: dict[tuple[str, str], list[Outcome]] = {}
    for o in sorted(first_seed(outcomes), key=lambda o: o.job.condition != STANDARD):
        places.setdefault((o.job.options["set"], o.job.condition), []).append(o)
    return {
        f"{name}-{condition}".replace(" %", "").replace(" ", "-"): (
            f"{TITLES[name]}, {condition}: clean images, training data, and samples of each model.",
            plot.image_grids(_panels(chosen), columns=4),
        )
        for (name, condition), chosen in places.items()
    }


def claims(rows: Sequence[Row]) -> Iterator[Claim]:
    """What is published or expected, judged by the numbers."""
    keys = [k for k in rows[0] if k.startswith("frechet_") and "extrapolated" not in k]
    for name in values_of(rows, "set"):
        for condition in values_of(rows, "condition"):
            of, title = means(rows, set=name, condition=condition), f"{TITLES[name]}, {condition}"
            if condition == "clean":
                yield from _price(title, keys, of)
                continue
            if condition == STANDARD:
                yield from _published_effect(title, keys, of)
            if not math.isnan(of("auto", "noise_std")):
                for key in ("noise_std", keys[0]):
                    yield _beats_stopping(title, key, of)


def _published_effect(title: str, keys: Sequence[str], of: Callable[..., float]) -> Iterator[Claim]:
    """The order of the published table, by residual noise and in every feature space; and what auto is expected to reach."""
    for key in ("noise_std", *keys):
        words = f"{title}: {'residual noise' if key == 'noise_std' else key.replace('_', ' ')}"
        methods = ("ddpm", "robust_adv", "robust_rand", "inv_adv", "auto")
        score = {m: value for m in methods if not math.isnan(value := of(m, key))}
        plain, adversarial = score["ddpm"], score["robust_adv"]
        statement = f"{words} of published robust_adv at most 0.8 of ddpm's"
        yield at_most(statement, adversarial, plain, 0.8, ("robust_adv", "ddpm"))
        if "robust_rand" in score:
            random = score["robust_rand"]
            measured = f"robust_adv {number(adversarial)}, robust_rand {number(random)}, ddpm {number(plain)}"
            yield Claim(
                f"{words} of published robust_rand lies between the two", adversarial < random < plain, measured
            )
        if "auto" in score:
            yield at_most(f"{words} of auto at most half of ddpm's", score["auto"], plain, 0.5, ("auto", "ddpm"))
        if "inv_adv" in score:
            measured = f"inv_adv {number(score['inv_adv'])}, ddpm {number(plain)}"
            yield Claim(f"{words} of inv_adv, which must fail, above ddpm's", score["inv_adv"] > plain, measured)


def _price(title: str, keys: Sequence[str], of: Callable[..., float]) -> Iterator[Claim]:
    """What regularizing costs where there is nothing to remove."""
    for key in keys:
        words, plain = key.replace("_", " "), of("ddpm", key)
        ratio = of("robust_adv", key) / plain
        statement = f"{title}: published robust_adv pays a price in {words} (published FID: 4.0 times)"
        yield Claim(statement, ratio > 1, f"robust_adv {number(ratio)} times ddpm's")
        statement = f"{title}: {words} of auto within 1.1 times ddpm's"
        yield at_most(statement, of("auto", key), plain, 1.1, ("auto", "ddpm"))


def _beats_stopping(title: str, key: str, of: Callable[..., float]) -> Claim:
    """Whether auto is below every early stop of ddpm."""
    stopped = {s: of(f"ddpm, stopped at {s:g}", key) for s in STOPS}
    best, automatic = min(stopped, key=lambda s: stopped[s]), of("auto", key)
    measured = f"auto {automatic:.3g}, ddpm stopped at {best:g} {stopped[best]:.3g}"
    statement = f"{title}: {key.replace('_', ' ')} of auto below that of ddpm stopped early"
    return Claim(statement, automatic < stopped[best], measured)


def _panels(outcomes: Sequence[Outcome]) -> Mapping[str, Tensor]:
    panels = {name: outcomes[0].tensors[name] for name in ("clean", "training data")}
    for o in outcomes:
        panels[o.job.label] = o.tensors["None"]
        if o.job.label == "ddpm":
            panels[f"ddpm, stopped at {STOPS[0]:g}"] = o.tensors[str(STOPS[0])]
    return panels
