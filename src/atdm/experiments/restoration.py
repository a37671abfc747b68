"""Restoring the training images with the model trained on them: PSNR beside classical denoisers, and ddpm trained on what was restored."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .. import plot
from ..corruption import parse_corruption
from ..corruption.levels import drawn_levels
from ..data.items import Floats
from ..data.source import Source
from ..metrics import psnr, ssim
from ..pool import Tell, part
from ..report import Row
from ..restoration import gauge, restore
from ..restoration.classical import BM3D, denoised, denoisers
from ..training.config import ObjectiveConfig
from . import by_scale, digits
from .baselines import IMAGES, base, keys, words
from .runner.findings import Claim, Findings, Outcome, by_condition
from .runner.jobs import AUTO, DDPM, Job, Trained, grid, open_held_out, prepare, samples_of, train
from .runner.rows import evaluate, means, number, row, table_of, values_of

OBJECTIVES = {"ddpm": DDPM, AUTO: ObjectiveConfig("auto"), "ambient_blind": ObjectiveConfig("ambient_blind")}
BEST = "ambient_blind"  # whose restored images ddpm learns from, and beside which the classical denoisers work
THEN = f"restored by {BEST}, then ddpm"
NOISY = "as they are"
DIGITS = "digits"
SHOWN = 12
STEPS = 2400  # of images at scale cpu: BM3D is ahead of less training


def jobs(scale: str, seeds: Sequence[int], data: str | None) -> list[Job]:
    """Three objectives under noise of std 0.1 and 0.2 on 90 % of the items.

    Args:
        data: images, learned at 16x16 at scale cpu, by ambient_blind alone; None: digits.
    """
    if data in (None, DIGITS):
        found, objectives, compared = base(DIGITS, scale, None), OBJECTIVES, by_scale(scale, 2, 32, 100)
    else:  # BM3D takes seconds for each image
        found, objectives, compared = base(IMAGES, scale, data), {BEST: OBJECTIVES[BEST]}, by_scale(scale, 2, 24, 100)
        found = found.but(steps=by_scale(scale, found.config.steps, STEPS, found.config.steps))
    return grid(found.but(options={"compared": compared}), objectives, digits.NOISE, seeds)


def work(job: Job, tell: Tell) -> Outcome:
    """Train, restore the training images, and draw samples; of ambient_blind also what others make of the images it restored."""
    main = job.label == BEST
    compared = main and job.config.data == DIGITS
    trained = train(job, part(tell, 0, 0.4 if compared else 0.8), prepare(job, open_held_out(job)))
    clean, given = trained.dataset.x, trained.corrupted
    levels = drawn_levels(parse_corruption(trained.config.corrupt), job.seed, [*range(len(given))], [0] * len(given))
    stds = gauge(Source(Floats(given), seed=job.seed))
    restored = restore(trained.model, given, stds)
    noisy = levels > 0
    both = torch.nonzero(noisy & (stds > 0))[: job.options["compared"], 0]
    values = {
        **_quality(restored[both], clean[both]),
        "psnr_all": psnr(restored, clean)[noisy].mean().item(),
        "psnr_known_level": psnr(restore(trained.model, given, levels), clean)[noisy].mean().item(),
        "missed": float((noisy & (stds == 0)).sum() / noisy.sum()),
        "clean_restored": float((~noisy & (stds > 0)).sum() / (~noisy).sum().clamp_min(1)),
        "untouched": bool(torch.equal(restored[stds == 0], given[stds == 0])),
        "kind": "restored",
    }
    found = [row(trained, None, values)]
    shown = {"noisy": given[both], job.label: restored[both]}
    if main:
        made = {NOISY: given[both].clamp(-1, 1)}  # as all others are clipped
        for name, way in denoisers(tuple(given.shape[1:])).items():
            made[name] = denoised(way, given[both], stds[both])
        for name, x in made.items():
            everything = {"psnr_all": psnr(given.clamp(-1, 1), clean)[noisy].mean().item()} if name == NOISY else {}
            measured = _quality(x, clean[both]) | everything | {"kind": "restored"}
            found.append(row(trained, None, measured) | {"method": name})
        shown |= made | {"truth": clean[both]}
    found.append(_drawn(trained, job.label, part(tell, 0.4 if compared else 0.8, 0.5 if compared else 1)))
    if compared:
        second = job.but(objective=DDPM, corrupt="none")  # learns from the restored images as if they were clean
        dataset = dataclasses.replace(trained.dataset, items=Floats(restored), window=None, files=None)
        then = train(second, part(tell, 0.5, 0.9), prepare(second, dataset))
        found.append(_drawn(then, THEN, part(tell, 0.9, 1)))
    return Outcome(job, found, {"shown": {name: x[:SHOWN] for name, x in shown.items()}})


def _quality(x: Tensor, clean: Tensor) -> dict[str, float]:
    return {"psnr": psnr(x, clean).mean().item(), "ssim": ssim(x, clean).mean().item(), "compared": len(x)}


def _drawn(trained: Trained, method: str, tell: Tell) -> Row:
    samples = samples_of(trained, tell)
    return row(trained, samples, evaluate(trained, samples) | {"kind": "drawn"}) | {"method": method}


def findings(scale: str, outcomes: Sequence[Outcome]) -> Findings:
    """Tables of restored images and of samples, and who is ahead."""
    rows = [r for o in outcomes for r in o.rows]
    restored, drawn = ([r for r in rows if r["kind"] == kind] for kind in ("restored", "drawn"))
    residual, distance = keys(drawn)
    by = {"training data": "condition", "images": "method"}
    best: Mapping[str, Any] = {"PSNR, dB": "higher", "SSIM": "higher"}
    columns = {"PSNR, dB": "psnr", "SSIM": "ssim", "PSNR, all noisy images": "psnr_all"}
    columns["... with the level known"] = "psnr_known_level"
    tables = [
        table_of(
            restored, by, columns,
            f"Noisy training images, restored; the first {restored[0]['compared']} of them, and all. Every method is given the same "
            f"estimated noise of each image. {_bm3d(restored)}", best,
        ),
        table_of(
            drawn, {"training data": "condition", "model": "method"},
            {words(residual): residual, words(distance): distance},
            f"Samples beside clean images: {words(residual)} and {words(distance)}; lower is better.",
            {words(residual): "lower", words(distance): "lower"},
        ),
    ]  # fmt: skip
    figures = {}
    for condition, chosen in by_condition(outcomes):
        panels = {name: x for o in chosen for name, x in o.tensors["shown"].items()}
        others = [name for name in panels if name not in ("noisy", "truth", NOISY, *OBJECTIVES)]
        order = [name for name in ("noisy", *OBJECTIVES, *others, "truth") if name in panels]
        figures[f"restored-{condition}".replace(" ", "-")] = (
            f"{condition}: noisy training images, what each method makes of them, and the truth.",
            plot.image_grids({name: panels[name] for name in order}, columns=4),
        )
    lead = (
        "A model that was trained on noisy images is a denoiser for them: its output at the timestep of an image's own noise is the "
        "least-squares estimate of the clean image (atdm restore). No published counterpart. How far is it ahead of denoisers that "
        "need no training, which are given the same estimated noise, and what does plain ddpm learn from images that were restored?"
    )
    return Findings(lead, [*_claims(restored, drawn, residual, distance)], rows, figures, tables)


def _bm3d(rows: Sequence[Row]) -> str:
    if BM3D in values_of(rows, "method"):
        return "BM3D is that of its authors."
    return "BM3D takes images from 16x16 on, and is no dependency: pip install bm3d."


def _claims(restored: Sequence[Row], drawn: Sequence[Row], residual: str, distance: str) -> Iterator[Claim]:
    """Ahead of each classical denoiser; nothing clean is touched; ddpm on restored images beside the model that restored them."""
    classical = [m for m in values_of(restored, "method") if m not in (NOISY, *OBJECTIVES)]
    for condition in values_of(restored, "condition"):
        of, beside = means(restored, "psnr", condition=condition), means(drawn, condition=condition)
        for name in classical:
            yield Claim(
                f"{condition}: images restored by {BEST} have a higher PSNR than by {name}",
                of(BEST) > of(name),
                f"{number(of(BEST))} dB, {name} {number(of(name))} dB; {NOISY} {number(of(NOISY))} dB",
            )
        pairs = {m: [beside(m, key) for key in (residual, distance)] for m in values_of(drawn, "method")}
        for than in ("ddpm", BEST) if THEN in pairs else ():
            yield Claim(
                f"{condition}: ddpm that learned from images restored by {BEST} is ahead of {than} in both numbers",
                all(a < b for a, b in zip(pairs[THEN], pairs[than], strict=True)),
                f"{words(residual)} {number(pairs[THEN][0])} and {number(pairs[than][0])}, "
                f"{words(distance)} {number(pairs[THEN][1])} and {number(pairs[than][1])}",
            )
    untouched = [r["untouched"] for r in restored if "untouched" in r]
    measured = f"in {sum(untouched)} of {len(untouched)} sets"
    yield Claim("images that look clean are untouched to the bit", all(untouched), measured)
