"""Look before training: noise, outliers, near duplicates and broken files of a data set, and a recipe for what was found."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ..source import Source
from . import mixture
from .duplicates import Duplicates, image_duplicates, vector_duplicates
from .levels import LEAST, Probe, central, thin_levels
from .mixture import Noise
from .outliers import Outliers, image_outliers, shrink, vector_outliers

CHUNK = 256
USUAL = {3: 0.006, 1: 0.02}  # level of clean photographs by channels, as CIFAR-10 has it
THIN_USUAL = 0.01
COMMON_GAIN = 0.1  # log likelihood per image from which on gray noise in color images is believed
NAMED = 100  # items of each kind that are named

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Audit:
    """What was found in a set.

    Args:
        items: how many were looked at.
        noise: shares and stds; None where noise cannot be told from content.
        common: the noise is the same in all color channels, as after JPEG.
        levels: measured for each item, of its noise and of content that looks like it.
        outliers: items unlike the rest.
        duplicates: items that show the same.
        broken: names of unreadable files.
        scale: std of the data.
    """

    items: int
    item_shape: tuple[int, ...]
    noise: Noise | None
    common: bool
    levels: Float[np.ndarray, "n"] | None
    outliers: Outliers
    duplicates: Duplicates
    broken: tuple[str, ...]
    scale: float

    @property
    def noise_of_each(self) -> Float[np.ndarray, "n"]:
        """Noise std of each item; 0 where it is more likely clean."""
        if self.noise is None:
            return np.zeros(self.items)
        return np.where(self.noise.posterior > 0.5, self.noise.per_image, 0.0)

    def as_dict(self) -> dict[str, Any]:
        """The findings, for JSON."""
        return {
            "items": self.items,
            "item_shape": list(self.item_shape),
            "noise": self._noise(),
            "outliers": {
                "count": len(self.outliers.why),
                "share": len(self.outliers.why) / self.items,
                "worst": [
                    {"index": i, "score": round(float(self.outliers.score[i]), 3), "why": self.outliers.why[i]}
                    for i in self.outliers.worst[:NAMED]
                ],
            },
            "duplicates": {
                "pairs": len(self.duplicates.pairs),
                "groups": len(self.duplicates.groups),
                "extra": self.duplicates.extra,
                "share": self.duplicates.extra / self.items,
                "closest": [pair._asdict() for pair in self.duplicates.pairs[:NAMED]],
            },
            "broken": {"count": len(self.broken), "names": list(self.broken)},
        }

    def _noise(self) -> dict[str, Any]:
        if self.noise is None or self.levels is None:
            return {"share": None, "std": None, "told": False}
        noisy = self.noise_of_each[self.noise_of_each > 0]
        return {
            "share": self.noise.share,
            "std": self.noise.std,
            "told": True,
            "alike": self.noise.width == 0,
            "channels": "common" if self.common else "independent",
            "quantiles": _quantiles(noisy),
            "level_quantiles": _quantiles(self.levels),
            "clean_level": self.noise.content,
            "smallest": mixture.SEEN,
        }


def _quantiles(x: Float[np.ndarray, "n"]) -> dict[str, float] | None:
    """The 5, 25, 50, 75 and 95 % quantiles."""
    if not len(x):
        return None
    return {f"{q:g}": float(np.quantile(x, q)) for q in (0.05, 0.25, 0.5, 0.75, 0.95)}


def audit(source: Source, broken: tuple[str, ...] = (), progress: Progress | None = None) -> Audit:
    """Look at all items of ``source``, as of its first epoch.

    Args:
        broken: names of files that could not be read.
        progress: called with how many items were read, and of how many.

    Raises:
        UserError: the images are too small to tell anything.
    """
    shape = source.item_shape
    if len(shape) == 1 or min(shape[1:]) < LEAST:
        return _whole(source, broken)
    return _images(source, broken, progress)


def _images(source: Source, broken: tuple[str, ...], progress: Progress | None) -> Audit:
    n, shape = len(source), source.item_shape
    sample = central(_rows(source, torch.linspace(0, n - 1, min(n, 512)).long()))
    probes = [Probe.fit(sample)] + ([Probe.fit(sample.mean(1, keepdim=True))] if shape[0] == 3 else [])
    levels: list[list[Tensor]] = [[] for _ in probes]
    small = []
    for rows in torch.arange(n).split(CHUNK):
        x = _rows(source, rows)
        middle = central(x)
        levels[0].append(probes[0].levels(middle))
        if len(probes) == 2:
            levels[1].append(probes[1].levels(middle.mean(1, keepdim=True)))
        small.append(shrink(x))
        if progress:
            progress(int(rows[-1]) + 1, n)
    found = [
        mixture.fit(torch.cat(level).double().numpy(), probe.tau, USUAL[probe.filters.shape[1]])
        for level, probe in zip(levels, probes, strict=True)
    ]
    common = len(found) == 2 and found[0].std is None and found[1].std is not None and found[1].gain > COMMON_GAIN
    noise = found[int(common)]
    each = np.where(noise.posterior > 0.5, noise.per_image, 0.0)
    thumbs = torch.cat(small)
    pooled = float(np.prod(shape[1:]) / np.prod(thumbs.shape[2:]))
    return Audit(
        items=n,
        item_shape=shape,
        noise=noise,
        common=common,
        levels=torch.cat(levels[int(common)]).double().numpy(),
        outliers=image_outliers(thumbs, each / pooled**0.5, pooled),
        duplicates=image_duplicates(thumbs, each / pooled**0.5),
        broken=broken,
        scale=sample.std().item(),
    )


def _whole(source: Source, broken: tuple[str, ...]) -> Audit:
    """Vectors, and images too small for patches."""
    x = torch.cat([_rows(source, rows) for rows in torch.arange(len(source)).split(4096)])
    flat = x.flatten(1)
    scale = flat.std(0).square().mean().sqrt().item()
    unit = 1.0 if x.dim() == 4 else max(2 * scale, 1e-12)  # thresholds of noise are for data of std 0.5
    told = thin_levels(flat / unit)
    noise, levels = None, None
    if told:
        levels = told[0] * unit
        noise = _scaled(mixture.fit(told[0], told[1], THIN_USUAL), unit)
    each = np.zeros(len(x)) if noise is None else np.where(noise.posterior > 0.5, noise.per_image, 0.0)
    if x.dim() == 4:
        outliers, duplicates = image_outliers(x, each), image_duplicates(x, each)
    else:
        outliers, duplicates = vector_outliers(flat), vector_duplicates(flat)
    return Audit(len(x), source.item_shape, noise, False, levels, outliers, duplicates, broken, scale)


def _scaled(noise: Noise, unit: float) -> Noise:
    std = None if noise.std is None else noise.std * unit
    return Noise(
        noise.share, std, noise.width, noise.posterior, noise.per_image * unit, noise.content * unit, noise.gain
    )


def _rows(source: Source, rows: Tensor) -> Tensor:
    return source.batch(rows, torch.zeros_like(rows))

