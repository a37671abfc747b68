"""What a restoration writes: a folder of images under the names they had, a record of what was done, and a contact sheet."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from .. import plot
from ..data.decode import Progress
from ..data.files import Files
from ..data.items import Items, to_uint8
from ..data.source import Source
from ..files import atomic
from ..metrics import psnr, ssim
from ..metrics.image import SIDE
from ..noise.estimate import median_above_zero
from ..plot.samples import save_picture
from .classical import denoised, denoisers
from .denoise import BATCH, Restoration

BINS = (0.05, 0.1, 0.15, 0.2, 0.3, 0.5)  # between the levels of the histogram
SHOWN = 16
ABOUT = "atdm-restore"  # the folder for all that is no image of the set, which readers of folders pass over
MODEL = "model"


@dataclass(frozen=True)
class CleanReference:
    """What is known of a set that was made noisy here.

    Args:
        clean: the items before.
        levels: std of the Gaussian noise in each.
        compared: noisy items on which other denoisers are tried, too.
    """

    clean: Items
    levels: Float[Tensor, "n"]
    compared: int = 0


def names_of(names: Sequence[str]) -> list[str]:
    """Paths of PNGs for images: the names they have, where these are names of files below a folder, or else numbers.

    Two images that differ in their ending alone keep it, as in ``a.jpg.png``.
    """
    paths = [PurePosixPath(name) for name in names]
    if all(path.suffix and not path.is_absolute() and ".." not in path.parts for path in paths):
        count = Counter(str(path.with_suffix("")).lower() for path in paths)
        found = [
            str(path.with_suffix(".png" if count[str(path.with_suffix("")).lower()] == 1 else f"{path.suffix}.png"))
            for path in paths
        ]
        if len({name.lower() for name in found}) == len(found):
            return found
    digits = len(str(len(paths) - 1))
    return [f"{i:0{digits}d}.png" for i in range(len(paths))]


def write(
    folder: Path,
    found: Restoration,
    files: Files | None,
    about: Mapping[str, Any],
    truth: CleanReference | None = None,
    progress: Progress = lambda done, total: None,
) -> dict[str, Any]:
    """Write the restored set, and return what ``atdm-restore/restored.json`` in it holds.

    Images that were files become PNGs of 8 bits, anything else is the float32 array of ``samples.npz``.

    Args:
        about: what else the record is to hold.
        progress: called with how many items are done, and of how many.

    Raises:
        UserError: the disk is full or not writable, or the model's output is not finite.
    """
    names = None if files is None else names_of(files.names)
    with atomic(folder) as scratch:
        (scratch / ABOUT).mkdir(parents=True)
        values = _items(scratch, found, names, truth, progress)
        result = {**about, **_done(found, files), **_quality(found, truth, values)}
        result["names"] = names
        result["stds"] = [round(std, 4) for std in found.stds.tolist()]
        (scratch / ABOUT / "restored.json").write_text(json.dumps(result, indent=1))
        if len(found.item_shape) == 3 and bool((found.stds > 0).any()):
            plot.save(_sheet(found, truth), scratch / ABOUT / "sheet.png")
    return result


def _items(
    scratch: Path, found: Restoration, names: Sequence[str] | None, truth: CleanReference | None, progress: Progress
) -> dict[str, Tensor]:
    """Write all items, a few at a time; PSNR and SSIM of each before and after, where the truth is known."""
    values: dict[str, list[Tensor]] = {}
    if names is None:
        Source(found).save(scratch / "samples.npz")
    for indices in torch.arange(len(found)).split(BATCH):
        after = found[indices] if names is not None or truth is not None else None
        if names is not None and after is not None:
            for row, pixels in zip(indices.tolist(), to_uint8(after), strict=True):
                file = scratch / names[row]
                file.parent.mkdir(parents=True, exist_ok=True)
                save_picture(pixels, file)
        if truth is not None and after is not None:
            clean, before = truth.clean[indices], found.source[indices]
            # clipped as those after are, which alone is worth decibels
            earlier = _scores(before.clamp(-1, 1) if clean.dim() == 4 else before, clean)
            for key, value in _scores(after, clean).items():
                values.setdefault(f"{key}_before", []).append(earlier[key])
                values.setdefault(f"{key}_after", []).append(value)
        progress(int(indices[-1]) + 1, len(found))
    return {key: torch.cat(parts) for key, parts in values.items()}


def _scores(x: Tensor, clean: Tensor) -> dict[str, Float[Tensor, "b"]]:
    """PSNR, and SSIM of images."""
    large = clean.dim() == 4 and min(clean.shape[2:]) >= SIDE
    return {"psnr": psnr(x, clean), **({"ssim": ssim(x, clean)} if large else {})}


def _done(found: Restoration, files: Files | None) -> dict[str, Any]:
    """What was done: counts, levels, and the same for each file format."""
    stds = found.stds.double().numpy()
    noisy = stds[stds > 0]
    edges = [0.0, *BINS, np.inf]
    histogram = [
        {
            "above": low,
            "up_to": None if high == np.inf else high,
            "items": int(((noisy > low) & (noisy <= high)).sum()),
        }
        for low, high in pairwise(edges)
    ]
    formats = []
    kinds = [] if files is None else files.noise().kinds
    for kind in sorted(set(kinds)):
        chosen = stds[np.array([k == kind for k in kinds])]
        formats.append(
            {
                "format": kind,
                "files": len(chosen),
                "restored": int((chosen > 0).sum()),
                "std": median_above_zero(chosen),
            }
        )
    return {
        "items": len(stds),
        "restored": len(noisy),
        "std": median_above_zero(stds),
        "histogram": histogram,
        "formats": formats,
    }


def _quality(found: Restoration, truth: CleanReference | None, values: Mapping[str, Tensor]) -> dict[str, Any]:
    """Means over the items that are noisy, mistakes about the others, and other denoisers on some of the first."""
    if truth is None:
        return {}
    noisy = truth.levels > 0
    result: dict[str, Any] = {
        "noisy": int(noisy.sum()),
        "missed": int((noisy & (found.stds == 0)).sum()),
        "clean_restored": int((~noisy & (found.stds > 0)).sum()),
    }
    if result["noisy"]:
        result |= {key: value[noisy].mean().item() for key, value in values.items()}
    if truth.compared:
        result["compared"] = compare(found, truth)
    return result


def compare(found: Restoration, truth: CleanReference) -> list[dict[str, Any]]:
    """The model and other denoisers on the same noisy images, each given the same estimated noise.

    Raises:
        UserError: the items are no images, scikit-image is not installed, or no item is noisy.
    """
    indices = some((truth.levels > 0) & (found.stds > 0), truth.compared)
    before, clean, stds = found.source[indices], truth.clean[indices], found.stds[indices]
    made = {"noisy": before, MODEL: found[indices]}
    made |= {name: denoised(way, before, stds) for name, way in denoisers(found.item_shape).items()}
    return [
        {"method": name, "images": len(indices), **{key: v.mean().item() for key, v in _scores(x, clean).items()}}
        for name, x in made.items()
    ]


def some(use: Tensor, count: int) -> Int[Tensor, "b"]:
    """So many of the rows in use, evenly spread, or all."""
    indices = torch.nonzero(use)[:, 0]
    return indices if len(indices) <= count else indices[torch.linspace(0, len(indices) - 1, count).long()]


def _sheet(found: Restoration, truth: CleanReference | None) -> plot.Figure:
    """Restored items from the least to the most noisy: before, after, and what was taken away around mid-gray."""
    order = found.stds.argsort(stable=True)
    indices = order[some(found.stds[order] > 0, SHOWN)]
    before, after = found.source[indices], found[indices]
    panels = {"before": before, "after": after, "difference": before - after}
    return plot.image_grids(panels | ({} if truth is None else {"truth": truth.clean[indices]}), columns=4)
