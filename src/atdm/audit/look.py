"""Look at a set: noise, replaced pixels, outliers, near duplicates and broken files."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int

from ..data.decode import Progress
from ..data.source import Source
from ..noise import NoiseEstimate
from ..noise.estimate import SAMPLE, PatchMeter, by_patches, median_above_zero, spread, whole_estimate, without_sharper
from ..noise.files import FileNoise
from ..noise.mixture import SEEN
from ..noise.pixels import replaced_share
from .duplicates import Duplicates, image_duplicates, vector_duplicates
from .outliers import ALONE, OutlierScores, image_outliers, shrink, vector_outliers

CHUNK = 256
ALIKE = 0.15  # std of the log of the noise std of items below which they are called noisy alike
NAMED = 100  # items of each kind that are named


@dataclass(frozen=True)
class Audit:
    """What was found in a set.

    Args:
        items: how many were looked at.
        estimate: of the noise as the items show it; None where noise cannot be distinguished from content.
        files: of the noise as their files show it, without those that hold something else; None where there are no files.
        replaced: share of the pixels of each item that were replaced.
        outliers: items unlike the rest.
        duplicates: items that show the same.
        broken: names of unreadable files.
        scale: std of the data.
        changed: as of :meth:`FileNoise.merged`.
    """

    items: int
    item_shape: tuple[int, ...]
    estimate: NoiseEstimate | None
    files: FileNoise | None
    replaced: Float[np.ndarray, "n"]
    outliers: OutlierScores
    duplicates: Duplicates
    broken: tuple[str, ...]
    scale: float
    changed: bool = False

    @property
    def noise_of_each(self) -> Float[np.ndarray, "n"]:
        """Noise std of each item; 0 where it is more likely clean."""
        each = np.zeros(self.items) if self.estimate is None else self.estimate.stds
        return each if self.files is None else self.files.merged(each, np.arange(self.items), self.changed)

    @property
    def noise_share(self) -> float:
        """Share of the items that are noisy."""
        if self._files_tell or self.estimate is None:
            return float((self.noise_of_each > 0).mean())
        return self.estimate.noise.share

    @property
    def noise_std(self) -> float | None:
        """Std of the noise of the noisy ones (median); None where there are none."""
        if self._files_tell or self.estimate is None:
            return median_above_zero(self.noise_of_each)
        return self.estimate.noise.std

    @property
    def _files_tell(self) -> bool:
        return self.files is not None and bool(self.files.hidden.any())

    @property
    def sharper(self) -> Int[np.ndarray, "k"]:
        """Images that are sharper than the others, the sharpest first."""
        return np.empty(0, int) if self.estimate is None else self.estimate.sharper

    def as_dict(self) -> dict[str, Any]:
        """The findings, for JSON."""
        hit = self.most_replaced
        return {
            "items": self.items,
            "item_shape": list(self.item_shape),
            "noise": self._noise(),
            "replaced": {
                "count": len(hit),
                "share": len(hit) / self.items,
                "pixels": float(np.median(self.replaced[hit])) if hit else None,
                "worst": [{"index": i, "pixels": round(float(self.replaced[i]), 4)} for i in hit[:NAMED]],
            },
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

    @property
    def most_replaced(self) -> list[int]:
        """The items with replaced pixels, the worst first."""
        order = np.argsort(-self.replaced, kind="stable")
        return [int(i) for i in order if self.replaced[i] > 0]

    def _noise(self) -> dict[str, Any]:
        if self.estimate is None:
            return {"share": None, "std": None, "measurable": False}
        noise, each = self.estimate.noise, self.noise_of_each
        found = each[each > 0]
        alike = len(found) > 0 and float(np.log(found).std()) < ALIKE if self._files_tell else noise.width == 0
        return {
            "share": self.noise_share,
            "std": self.noise_std,
            "measurable": True,
            "alike": alike,
            "channels": "common" if self.estimate.common else "independent",
            "quantiles": _quantiles(found),
            "level_quantiles": _quantiles(self.estimate.levels),
            "clean_level": noise.content,
            "sharper": {
                "count": len(self.sharper),
                "share": len(self.sharper) / self.items,
                "sharpest": [int(i) for i in self.sharper[:NAMED]],
            },
            "smallest": SEEN,
            "formats": self._formats(),
        }

    def _formats(self) -> list[dict[str, Any]]:
        """What was found in the files of each format."""
        if self.files is None:
            return []
        out, each = [], self.noise_of_each
        saved = np.where(self.files.hidden, self.files.stds, each)
        for kind in sorted(set(self.files.kinds)):
            chosen = np.array([k == kind for k in self.files.kinds])
            sizes = self.files.sizes[chosen]
            order = np.argsort(sizes.prod(1), kind="stable")
            out.append(
                {
                    "format": kind,
                    "files": int(chosen.sum()),
                    "smallest": sizes[order[0]].tolist(),
                    "largest": sizes[order[-1]].tolist(),
                    "share": float((each[chosen] > 0).mean()),
                    "std_in_file": median_above_zero(saved[chosen]),
                    "std": median_above_zero(each[chosen]),
                }
            )
        return out


def _quantiles(x: Float[np.ndarray, "n"]) -> dict[str, float] | None:
    """The 5, 25, 50, 75 and 95 % quantiles."""
    if not len(x):
        return None
    return {f"{q:g}": float(np.quantile(x, q)) for q in (0.05, 0.25, 0.5, 0.75, 0.95)}


def audit(source: Source, broken: tuple[str, ...] = (), progress: Progress | None = None) -> Audit:
    """Look at all items of ``source``, as of its first epoch, and at the files they come from.

    Args:
        broken: names of files that could not be read.
        progress: called with how many items were looked at, and of how many.
    """
    return _images(source, broken, progress) if by_patches(source.item_shape) else _whole(source, broken)


def _images(source: Source, broken: tuple[str, ...], progress: Progress | None) -> Audit:
    n, shape = len(source), source.item_shape
    sample = source[spread(n, SAMPLE)]
    meter = PatchMeter.fit(sample)
    measured, small, hit = [], [], []
    for indices in torch.arange(n).split(CHUNK):
        x = source[indices]
        measured.append(meter.levels(x, indices))
        hit.append(replaced_share(x))
        small.append(shrink(x))
        if progress:
            progress(int(indices[-1]) + 1, n)
    levels, thumbs, replaced = torch.cat(measured, 1), torch.cat(small), torch.cat(hit).double().numpy()
    pooled = float(np.prod(shape[1:]) / np.prod(thumbs.shape[2:]))

    def judged(use: Bool[np.ndarray, "n"]) -> NoiseEstimate:
        return without_sharper(meter.judge(levels, use), use, source.__getitem__)

    estimate = judged(replaced == 0)
    outliers = image_outliers(thumbs, estimate.stds / pooled**0.5, pooled)
    duplicates = image_duplicates(thumbs, estimate.stds / pooled**0.5)
    alone = np.isin(np.arange(n), [i for i, why in outliers.why.items() if why == ALONE])
    if alone.any():  # noise with nothing under it is an outlier, no noisy image
        estimate = judged((replaced == 0) & ~alone)
    files = None if source.files is None else source.files.noise().of_these((replaced == 0) & ~alone)
    return Audit(n, shape, estimate, files, replaced, outliers, duplicates, broken, sample.std().item(), source.changed)


def _whole(source: Source, broken: tuple[str, ...]) -> Audit:
    """Vectors, and images too small for patches."""
    x = source[torch.arange(len(source))]
    flat = x.flatten(1)
    scale = flat.std(0).square().mean().sqrt().item()
    estimate = whole_estimate(x)
    each = np.zeros(len(x)) if estimate is None else estimate.stds
    outliers = image_outliers(x, each) if x.dim() == 4 else vector_outliers(flat)
    if estimate is not None and outliers.why:  # they bend the directions that the others leave thin
        estimate = whole_estimate(x, ~np.isin(np.arange(len(x)), [*outliers.why])) or estimate
        each = estimate.stds
    duplicates = image_duplicates(x, each) if x.dim() == 4 else vector_duplicates(flat)
    return Audit(len(x), source.item_shape, estimate, None, np.zeros(len(x)), outliers, duplicates, broken, scale)
