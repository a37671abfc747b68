"""Trackers, through accelerate: what a run logs, its options and its grids of samples, in TensorBoard, W&B or MLflow."""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import uuid
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..errors import UserError, first_line, unknown
from ..files import read_json, write_text
from ..files.writing import cause
from .callbacks import Callback
from .state import Step

LOG = logging.getLogger(__name__)
NAMES = ("tensorboard", "wandb", "mlflow")
PROJECT = "atdm"  # of W&B and MLflow, where their own environment variables name none
IDS = "trackers.json"  # in a run folder: the runs of the trackers that resuming goes on with


def require(log_with: str) -> list[str]:
    """The trackers that ``tensorboard+wandb``, ``all`` (that are installed) or ``none`` stands for.

    Raises:
        UserError: one is unknown, or not installed.
    """
    if log_with in ("none", "all"):
        return [name for name in NAMES if log_with == "all" and _installed(name)]
    names = list(dict.fromkeys(log_with.split("+")))
    for name in names:
        if name not in NAMES:
            raise unknown("tracker", name, (*NAMES, "all", "none"))
        if not _installed(name):
            raise UserError(
                f"The tracker {name} is not installed. Expected: pip install {name}, or another --log_with "
                f"({', '.join([*filter(_installed, NAMES), 'none'])})."
            )
    return names


def _installed(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


class Trackers(Callback):
    """The trackers of a run folder. One that fails is left out with a warning; training goes on.

    Args:
        names: of :func:`require`.
        options: of the run: its hyperparameters, stored where a tracker sees the run for the first time.
        done: steps done; what was logged beyond them is dropped or written again.

    Raises:
        UserError: a tracker that has not seen the run cannot start.
    """

    def __init__(self, names: list[str], folder: Path, options: dict[str, Any], done: int) -> None:
        self.open: dict[str, Any] = {}
        file = folder / IDS
        known = (
            read_json(file, {}, "what atdm train wrote; without it trackers begin new runs") if file.exists() else {}
        )
        begun = {"tensorboard"} & {path.name for path in folder.iterdir()} | known.keys()
        for name in names:
            try:
                self.open[name] = _start(name, folder, known.get(name), done)
                LOG.info("tracker %s: %s run", name, "the same" if name in begun else "a new")
                if name not in begun:
                    self.open[name].store_init_configuration(options)
            except Exception as problem:  # of whatever kind, from somebody else's code
                if name not in begun:
                    self.close()
                    raise UserError(
                        f"The tracker {name} cannot start: {cause(problem) or first_line(problem)}. Expected another --log_with, or what it asks for."
                    ) from problem
                self._lose(name, problem)
        runs = {name: each.tracker for name, each in self.open.items() if name != "tensorboard"}
        ids = {name: str(run.id if name == "wandb" else run.info.run_id) for name, run in runs.items()}
        if ids:
            write_text(file, json.dumps(known | ids))

    def on_log(self, step: Step, scalars: dict[str, float]) -> None:
        # A folder of MLflow's store cannot be called as a file in it is: denoise/q0 and denoise.
        dotted = {name.replace("/", "."): value for name, value in scalars.items()}
        self._each(lambda name, tracker: tracker.log(dotted if name == "mlflow" else scalars, step=step.index))

    def on_sample(self, step: int, path: Path) -> None:
        self._each(lambda name, tracker: _show(name, tracker, step, path))

    def close(self) -> None:
        """Write or send what is left."""
        self._each(lambda name, tracker: tracker.finish())

    def _each(self, act: Callable[[str, Any], None]) -> None:
        for name, tracker in [*self.open.items()]:
            try:
                act(name, tracker)
            except Exception as problem:  # of whatever kind, from somebody else's code
                self._lose(name, problem)

    def _lose(self, name: str, problem: Exception) -> None:
        if (lost := self.open.pop(name, None)) is not None:
            with suppress(Exception):
                lost.finish()
        warnings.warn(
            f"The tracker {name} failed ({first_line(problem)}). Training goes on without it; "
            "log.jsonl has all values, and resuming the run tries the tracker again.",
            stacklevel=2,
        )


def _start(name: str, folder: Path, known: str | None, done: int) -> Any:
    """A tracker of accelerate, started: the run of the id that is ``known``, or a new one."""
    from accelerate import tracking

    if name == "tensorboard":
        tracker: Any = tracking.TensorBoardTracker("tensorboard", folder, purge_step=done + 1)
    elif name == "wandb":
        tracker = tracking.WandBTracker(
            os.environ.get("WANDB_PROJECT", PROJECT),
            name=os.environ.get("WANDB_NAME", folder.name),
            dir=str(folder),
            id=known or uuid.uuid4().hex[:8],
            resume="allow",
        )
    else:
        tracker = tracking.MLflowTracker(PROJECT, run_name=folder.name, run_id=known)
    tracker.start()
    return tracker


def _show(name: str, tracker: Any, step: int, path: Path) -> None:
    """Give a picture to a tracker; of MLflow accelerate shows none, so there it is a file of the run."""
    if name == "mlflow":
        tracker.log_artifact(str(path), "samples")
        return
    import numpy as np
    from PIL import Image

    with Image.open(path) as opened:
        picture = np.asarray(opened.convert("RGB"))
    how = {"dataformats": "NHWC"} if name == "tensorboard" else {}
    tracker.log_images({"samples": picture[None]}, step=step, **how)
