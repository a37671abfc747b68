"""How far ``atdm audit`` is off: seeded corruption with known truth on real images, share and std estimated from the pixels alone."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

from torch import Tensor

from .. import plot
from ..audit import audit
from ..corruption import corrupt
from ..data import load
from ..data.items import Floats
from ..data.source import Source
from ..metrics import content_hash
from ..pool import Tell
from ..report import Row, Table
from ..training.config import TrainConfig
from . import by_scale
from .images import SETS, folders
from .runner.findings import Claim, Findings, Outcome
from .runner.jobs import Job
from .runner.rows import by_value, cell, number, table_of

SHARES, STDS = (0.3, 0.6, 0.9), (0.05, 0.1, 0.2)
POINTS, PERCENT = 5.0, 15.0  # errors of the share and of the std that count as agreement
OTHER = {  # corruption that is not Gaussian noise
    "salt and pepper": "salt_pepper:share=0.3,rate=0.1",
    "missing pixels": "missing:share=0.3,rate=0.3",
    "patches": "patch:share=0.3,size=0.4",
    "JPEG": "jpeg:share=0.3,quality=30",
    "blur": "blur:share=0.3,sigma=1",
    "outliers": "outliers:share=0.1",
}
LEAD = (
    "`atdm audit` sees images and nothing else. Here it looks at sets whose corruption is seeded and known: Gaussian noise of "
    "several strengths on several shares of the images, clean sets, and corruption that is not Gaussian noise. "
    "*Saved* sets were clipped and rounded to 8 bits afterwards, as files are."
)


@dataclass(frozen=True, kw_only=True)
class Look(Job):
    """An audit of a data set under all kinds of corruption, which trains nothing."""

    @property
    def cost(self) -> float:
        """Seconds on one core, roughly."""
        pixels = (self.config.limit or 0) * (self.config.image_size or 8) ** 2 / 1e6
        options = self.options
        return (1 + len(options["shares"]) * len(options["stds"]) + len(options["other"])) * (2 + 2.5 * pixels)

    def __str__(self) -> str:
        return self.condition + (", saved" if self.options["saved"] else "")


def jobs(scale: str, seeds: Sequence[int], data: str | None) -> list[Look]:
    """The digits, and with ``data``, a folder that holds ``cifar10``, ``celeba`` and ``bedroom``, these."""
    every = {"shares": SHARES, "stds": STDS, "other": [*OTHER]}
    few = by_scale(scale, {"shares": (0.6,), "stds": (0.2,), "other": ["outliers"]}, every, every)

    def look(title: str, spec: str, items: int, side: int | None, seed: int, saved: bool) -> Look:
        config = TrainConfig(out="", data=spec, limit=items, image_size=side, seed=seed)
        return Look(config=config, samples=0, condition=title, options={**few, "saved": saved})

    out = [look("digits", "digits", by_scale(scale, 600, 1500, 1500), None, seed, False) for seed in seeds]
    if data is not None and scale != "smoke":
        size = by_scale(scale, 8, 32, 64)
        for name, folder in folders(data).items():
            title, spec, side = SETS[name], str(folder), 32 if name == "cifar10" else size
            out += [look(title, spec, 2000, side, seed, saved) for seed in seeds for saved in (False, True)]
    return out


@lru_cache(maxsize=1)
def _clean(data: str, items: int, image_size: int | None, seed: int) -> Tensor:
    return load(data, seed=seed, limit=items, image_size=image_size).x


def work(job: Look, tell: Tell) -> Outcome:
    """Audit the set under each kind of corruption."""
    clean = _clean(job.config.data, job.config.limit, job.config.image_size, job.seed)
    options, specs = job.options, {"clean": "none"}
    specs |= {
        f"{share:.0%}, std {std:g}": f"gaussian:share={share},std={std}"
        for std in options["stds"]
        for share in options["shares"]
    }
    specs |= {name: OTHER[name] for name in options["other"] if "patch" not in name or clean.shape[-1] > 12}
    rows = []
    for done, (condition, spec) in enumerate(specs.items()):
        noisy, truth = corrupt(clean, spec, job.seed)
        if options["saved"]:
            noisy = ((noisy.clamp(-1, 1) + 1) * 127.5).round() / 127.5 - 1
        found = audit(Source(Floats(noisy)))
        hit = truth.corrupted
        gaussian = spec.startswith("gaussian")
        share, std = 100 * float(hit.mean()) if gaussian else 0.0, float(spec.split("std=")[1]) if gaussian else None
        result = found.as_dict()
        found_share, found_std = result["noise"]["share"], result["noise"]["std"]
        outliers = sorted(found.outliers.why)
        rows.append(
            {
                "set": str(job),
                "condition": condition,
                "kind": "noise" if gaussian else condition,
                "seed": job.seed,
                "share": share,
                "std": std,
                "found_share": 100 * found_share if found_share is not None else None,
                "found_std": found_std,
                "share_error": 100 * found_share - share if found_share is not None else math.nan,
                "std_error": 100 * (found_std / std - 1) if found_std and std else math.nan if std else None,
                "corrupted": 100 * float(hit.mean()),
                "outliers": 100 * result["outliers"]["share"],
                "outliers_found": 100 * float(hit[outliers].sum() / hit.sum()) if hit.any() else None,
                "replaced": 100 * result["replaced"]["share"],
                "replaced_found": 100 * float((hit & (found.replaced > 0)).sum() / hit.sum()) if hit.any() else None,
                "items": len(noisy),
                "reference": job.config.data,
                "reference_hash": content_hash(noisy),
                "corrupt": spec,
                "item_shape": list(noisy.shape[1:]),
            }
        )
        tell((done + 1) / len(specs))
    return Outcome(job, rows)


def findings(scale: str, outcomes: Sequence[Outcome]) -> Findings:
    """Errors of share and std, what is called noise in clean sets and under other corruption, and which outliers are found."""
    rows = [row for o in outcomes for row in o.rows]
    claims: list[Claim] = []
    for name, of_set in by_value(rows, "set").items():
        claims += _claims(name, of_set)
    noise = [r for r in rows if r["kind"] == "noise"]
    other = [r for r in rows if r["kind"] != "noise"]
    tables = [
        table_of(
            noise,
            {"data": "set", "noise": "condition"},
            {"true share, %": "share", "found": "found_share", "std found": "found_std", "std error, %": "std_error"},
            "Gaussian noise: what was put in, and what was estimated from the images alone.",
        ),
        table_of(
            other,
            {"data": "set", "corruption": "condition"},
            {
                "corrupted, %": "corrupted",
                "called noise, %": "found_share",
                "called replaced, %": "replaced",
                "of the corrupted": "replaced_found",
                "called outliers, %": "outliers",
                "of the corrupted ": "outliers_found",
            },
            "Clean sets and other corruption. Nothing here is Gaussian noise: the noise column ought to be 0.",
        ),
        _worst(rows),
    ]
    return Findings(LEAD, claims, rows, _figures(noise), tables)


def _claims(name: str, of_set: Sequence[Row]) -> Iterator[Claim]:
    """How far estimates for a set are off, and what is called noise that is none."""
    kinds = by_value(of_set, "kind")
    noisy = kinds.get("noise", [])
    worst = [_largest(noisy, key) for key in ("share_error", "std_error")]
    yield Claim(
        f"{name}: the share is within {POINTS:g} points and the std within {PERCENT:g} %",
        worst[0] <= POINTS and worst[1] <= PERCENT,
        f"largest errors over {len(noisy)} settings {number(worst[0])} points and {number(worst[1])} %",
    )
    for kind in ["clean", *(kind for kind in kinds if kind not in ("noise", "clean"))]:
        found = max(r["found_share"] or 0.0 for r in kinds[kind])
        what = "clean images" if kind == "clean" else kind
        yield Claim(f"{name}: no Gaussian noise is seen in {what}", found <= POINTS, f"{number(found)} % called noisy")
    for r in kinds.get("outliers", []):
        yield Claim(
            f"{name}: nine in ten of the images that are noise alone are outliers",
            r["outliers_found"] >= 90,
            f"{number(r['outliers_found'])} % of them found; {number(r['corrupted'])} % there, {number(r['outliers'])} % reported",
        )


def _largest(rows: Sequence[Row], key: str) -> float:
    return max((math.inf if math.isnan(r[key]) else abs(r[key]) for r in rows), default=math.inf)


def _worst(rows: Sequence[Row]) -> Table:
    """The largest errors of each set."""
    lines = []
    for name, of_set in by_value(rows, "set").items():
        noisy = [r for r in of_set if r["kind"] == "noise"]
        clean = cell(of_set, "found_share", condition="clean")
        lines.append([name, _largest(noisy, "share_error"), _largest(noisy, "std_error"), clean])
    columns = ["data", "share: largest error, points", "std: largest error, %", "of the clean set called noise, %"]
    return Table(columns, lines, f"Over {len(SHARES) * len(STDS)} settings each, or fewer at scale smoke.")


def _figures(rows: Sequence[Row]) -> dict[str, tuple[str, plot.Figure]]:
    lines = {}
    for name, of_set in by_value(rows, "set").items():
        shares = sorted((r["share"], r["found_share"]) for r in of_set)
        lines[name] = ([a for a, _ in shares], [b if b is not None else math.nan for _, b in shares])
    caption = "The share of noisy images that was found against the true one, over all strengths of noise."
    return {"share": (caption, plot.curves(lines, "true share, %", "share found, %"))}
