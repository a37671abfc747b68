"""Outcomes of jobs, kept in a folder: an experiment that was interrupted goes on, and further seeds join what is there.

An outcome is one safetensors file, its tensors and, as JSON in the header, its rows; its name is the hash of the job and of the
versions of atdm and torch. Outcomes that hold more than tensors are not kept: those jobs are done again.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from .. import __version__
from ..files import atomic
from .findings import Outcome
from .pool import Tell
from .training import Job


def work(do: Callable[[Any, Tell], Any], folder: Path, job: Any, tell: Tell) -> Any:
    """The outcome of ``do(job, tell)``: the one that is kept in ``folder``, or a new one, which is then kept there.

    Raises:
        UserError: ``folder`` cannot be written to.
    """
    if not isinstance(job, Job):
        return do(job, tell)
    path = path_of(folder, job)
    found = read(path, job)
    if found is None:
        found = do(job, tell)
        write(found, path)
    return found


def kept(folder: Path, jobs: Sequence[Any]) -> int:
    """How many of the jobs have an outcome in ``folder``."""
    return sum(isinstance(job, Job) and path_of(folder, job).exists() for job in jobs)


def path_of(folder: Path, job: Job) -> Path:
    """Where the outcome of a job is kept."""
    return folder / f"{name_of(job)}.safetensors"


def name_of(job: Job) -> str:
    """A hash of everything that the outcome depends on, but for the files of its data."""
    about = {"job": dataclasses.asdict(job), "atdm": __version__, "torch": torch.__version__}
    return hashlib.sha256(json.dumps(about, sort_keys=True, default=str).encode()).hexdigest()[:16]


def write(outcome: Outcome, path: Path) -> None:
    """Keep an outcome of rows and tensors; others are left alone."""
    if all(isinstance(x, torch.Tensor) for x in outcome.tensors.values()):
        tensors = {name: x.detach().cpu().contiguous().clone() for name, x in outcome.tensors.items()}
        with atomic(path) as scratch:
            save_file(tensors, scratch, {"rows": json.dumps(outcome.rows)})


def read(path: Path, job: Job) -> Outcome | None:
    """The outcome that is kept in ``path``; None if there is none, or the file is damaged."""
    try:
        with safe_open(path, "pt") as file:
            rows = json.loads(file.metadata()["rows"])
            return Outcome(job, rows, {name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
    except (FileNotFoundError, SafetensorError, KeyError, TypeError, ValueError):
        return None
