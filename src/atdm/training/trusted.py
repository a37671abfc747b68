"""Images that a person vouches for: read as the training data are, kept an eye on, and what samples are compared with."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..data import Dataset, load
from ..data.decode import Progress
from ..errors import UserError
from .config import TrainConfig
from .fingerprint import Fingerprint

LEAST = 20  # images: fewer say nothing of a distribution
FILE = "trusted.npz"  # of a run folder: their fingerprint


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
