"""Images that a person vouches for: read as the training data are, what samples are compared with, and what others are judged by."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..data import Dataset, load
from ..data.decode import Progress
from ..data.items import every
from ..data.source import GAUGED, Source
from ..errors import UserError
from ..files import Sums, atomic, load_tensors, save_tensors, tensor_metadata
from ..metrics.reference import ReferenceSet
from ..noise import Levels, least_levels
from .config import TrainConfig
from .fingerprint import Fingerprint

LEAST = 20  # images: fewer say nothing of a distribution
FILE = "trusted.npz"  # of a run folder: their fingerprint
LEVELS = "levels.safetensors"  # likewise: from which noise level on each other item is as good as they are
NEEDED = {
    "omni": "omni learns from trusted images which others are as good. Expected --trusted FOLDER, 20 or more clean images.",
    "sfbd": "sfbd begins on trusted images alone. Expected --trusted FOLDER, 20 or more clean images.",
}


def reading(config: Mapping[str, Any]) -> dict[str, Any]:
    """The options of :func:`atdm.data.load` for the trusted images of a configuration: those of its data, but all of them."""
    return {name: config[name] for name in TrainConfig.READING if name in config and name != "limit"}


def open_trusted(config: Mapping[str, Any], progress: Progress | None = None) -> Dataset | None:
    """The trusted images of a configuration; None where it has none.

    Args:
        config: as in ``config.yaml``.
        progress: called while images are decoded, with how many are done and of how many.

    Raises:
        UserError: they cannot be read, or are fewer than 20.
    """
    if config.get("trusted") is None:
        return None
    return require_enough(load(config["trusted"], **reading(config), hold_out=False, progress=progress))


def require_enough(found: Dataset) -> Dataset:
    """The trusted images, if there are enough of them.

    Raises:
        UserError: there are not.
    """
    if len(found.items) < LEAST:
        raise UserError(
            f"{found.spec} holds {len(found.items)} trusted images. Expected {LEAST} or more, better a few hundred."
        )
    return found


def said_of(data: Dataset, found: Dataset) -> tuple[str, ...]:
    """What is to be said of trusted images beside the data.

    Raises:
        UserError: they hold all the data, under whatever name: nothing is left that nobody vouches for.
    """
    shared = np.isin(_sums(found), _sums(data)).sum()
    if shared and len(data.items) <= len(found.items) and np.isin(_sums(data), _sums(found)).all():
        raise UserError(
            f"The data {data.spec} are all among the trusted images {found.spec}. Expected trusted images apart from those "
            "that nobody vouches for: a folder of their own, outside the data."
        )
    twice = f" {shared:,} of them are among the data as well and are used twice, once as untrusted." if shared else ""
    return (
        *found.notes,
        f"Trusted: {len(found.items):,} items of {found.spec} join the training data, and samples are compared with them.{twice} "
        "What repeats them comes close to them, so keep others apart for a last word (--reference FOLDER).",
    )


def reference_for(run: Path, config: Mapping[str, Any], dataset: Dataset) -> ReferenceSet:
    """What samples are compared with, where a person vouches for ``dataset``: the noisy data of the run itself stay such.

    Args:
        run, config: of the model; an empty configuration where it is no run.
    """
    before = Fingerprint.load(run) if config.get("corrupt") == "none" else None
    classes = dataset.classes if config.get("class_labels") and dataset.labelled is not None else None
    now = None if before is None else Fingerprint.of(dataset, classes)
    if before is not None and now is not None and np.isin(before.sums, now.sums).mean() > 0.5:
        return ReferenceSet.of(dataset, corrupted=False)
    return ReferenceSet.trusted(dataset)


def _sums(dataset: Dataset) -> np.ndarray:
    found = Fingerprint.of(dataset)
    return Sums.of(every(dataset.items).numpy()).values if found is None else found.sums


def of_run(run: Path, config: Mapping[str, Any]) -> Dataset | None:
    """The trusted images of a run, which are those that it began with; None where it has none.

    Raises:
        UserError: they cannot be read, or are others by now.
    """
    found = open_trusted(config)
    if found is None:
        return None
    now, before = Fingerprint.of(found), Fingerprint.load(run, FILE)
    if now is not None and before is not None and (changed := before.differs(now)) is not None:
        raise UserError(
            f"The trusted images {found.spec} are not those that {run} began with: {changed}. "
            "Expected the same, or --reference FOLDER."
        )
    return found


def levels_of(source: Source, run: Path | None, progress: Progress | None = None) -> Levels:
    """The noise level from which on each item of a source is as good as its trusted ones: of a run those that it keeps.

    Args:
        run: the folder of a run that may keep them.
        progress: called with how many noise levels were looked at, and of how many.

    Raises:
        UserError: the source has no trusted items, or draws its corruption anew, or the run keeps levels of other items.
    """
    if not source.trusted:
        raise UserError(NEEDED["omni"])
    if source.fresh and source.corruption:
        raise UserError(
            "omni finds one level for each item, and corrupt_fresh draws its corruption anew. Expected one of them."
        )
    others = len(source) - source.trusted
    if run is not None and (run / LEVELS).is_file():
        tensors, about = load_tensors(run / LEVELS), tensor_metadata(run / LEVELS)
        found = Levels(tensors["stds"], tensors["grid"], float(about["seconds"]))
        if len(found.stds) != others:
            raise UserError(
                f"{run} keeps levels of {len(found.stds)} items, and there are {others}. "
                "Expected the data that the run began with, or another --out."
            )
        return found
    prepared: Any = source.prepared()
    untrusted: Any = torch.arange(others)
    trusted = prepared[torch.arange(others, len(source))]
    return least_levels(torch.utils.data.Subset(prepared, untrusted), trusted, source.seed, progress)


def only_noise(source: Source, found: Levels) -> bool:
    """Whether Gaussian noise is what makes items worse than trusted ones: it is found on those that are worse, and not on the others.

    Args:
        source: the items, the trusted ones last.
        found: their levels.
    """
    x, chosen = source.some_indexed(GAUGED)
    try:
        noisy = source.gauge().stds(x, chosen) > 0
    except UserError:  # noise cannot be distinguished from content in such data
        return False
    worse = torch.cat([found.stds > 0, torch.zeros(source.trusted, dtype=torch.bool)])[chosen]
    share, elsewhere = (float(noisy[of].double().mean()) if of.any() else 0.0 for of in (worse, ~worse))
    return share - elsewhere > 0.5


def keep(found: Levels, run: Path) -> None:
    """Write levels into a run folder, where :func:`levels_of` finds them."""
    if not (run / LEVELS).is_file():
        with atomic(run / LEVELS) as scratch:
            save_tensors({"stds": found.stds, "grid": found.grid}, scratch, {"seconds": f"{found.seconds:.3g}"})


def reference_of(runs: Mapping[str, Mapping[str, Any]]) -> tuple[str, dict[str, Any], bool]:
    """What samples of several runs are compared with: their trusted images where all have some, else their data.

    Args:
        runs: the configurations by run folder.

    Returns:
        Its spec, the options of :func:`atdm.data.load`, and whether it is trusted.

    Raises:
        UserError: it differs from run to run, or trusted images are others by now.
    """
    trusted = all(config.get("trusted") for config in runs.values())
    specs = {run: config["trusted" if trusted else "data"] for run, config in runs.items()}
    if len(set(specs.values())) > 1:
        found = ", ".join(f"{run} on {spec}" for run, spec in specs.items())
        raise UserError(f"The runs learned from different data: {found}. Expected one --reference, a trusted set.")
    for run, config in runs.items():
        of_run(Path(run), config)
    first, config = next(iter(runs.items()))
    options = {name: config[name] for name in TrainConfig.READING if name in config}
    return specs[first], reading(config) if trusted else options, trusted
