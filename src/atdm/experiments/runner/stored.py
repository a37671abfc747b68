"""Outcomes of jobs, kept in a folder: an experiment that was interrupted goes on, and further seeds join what is there.

An outcome is one safetensors file, its tensors and, as JSON in the header, its rows, plain values and seconds; its name is the hash of the
job, as far as it is not a default, and of the versions of atdm and torch. So an option that is added to atdm keeps the outcomes that
are there. A default that changes keeps them, too, where the field says what it was (``unsaid``); changed code needs a new version.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ... import __version__
from ...files import Damaged, atomic, load_tensors, save_tensors, tensor_metadata
from ...pool import Tell
from .findings import Outcome


def work(do: Callable[[Any, Tell], Any], folder: Path, job: Any, tell: Tell) -> Any:
    """The outcome of ``do(job, tell)``: the one that is kept in ``folder``, or a new one, which is then kept there.

    Raises:
        UserError: ``folder`` cannot be written to.
    """
    path = path_of(folder, job)
    found = read(path, job)
    if found is None:
        begin = time.process_time()
        found = do(job, tell)
        found.seconds = time.process_time() - begin
        write(found, path)
    return found


def kept(folder: Path, jobs: Sequence[Any]) -> int:
    """How many of the jobs have an outcome in ``folder``."""
    return sum(path_of(folder, job).exists() for job in jobs)


def path_of(folder: Path, job: Any) -> Path:
    """Where the outcome of a job is kept."""
    return folder / f"{name_of(job)}.safetensors"


def name_of(job: Any) -> str:
    """A hash of everything that the outcome depends on, but for the files of its data."""
    about = {"job": _chosen(job), "atdm": __version__, "torch": torch.__version__}
    return hashlib.sha256(json.dumps(about, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _chosen(value: Any) -> Any:
    """``value`` with only those fields of dataclasses that differ from their defaults."""
    if not dataclasses.is_dataclass(value):
        return value
    chosen = {}
    for field in dataclasses.fields(value):
        given = getattr(value, field.name)
        default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        if given != field.metadata.get("unsaid", default):
            chosen[field.name] = _chosen(given)
    return chosen


def write(outcome: Outcome, path: Path) -> None:
    """Keep an outcome.

    Raises:
        TypeError: it holds more than tensors, plain values, dictionaries and lists.
    """
    tensors: dict[str, Tensor] = {}
    found = _pack(outcome.tensors, tensors)
    with atomic(path) as scratch:
        header = {"rows": outcome.rows, "found": found, "seconds": outcome.seconds}
        save_tensors(tensors, scratch, {name: json.dumps(value) for name, value in header.items()})


def read(path: Path, job: Any) -> Outcome | None:
    """The outcome that is kept in ``path``; None if there is none, or the file is damaged."""
    try:
        tensors, about = load_tensors(path), tensor_metadata(path)
        rows, packed, seconds = (json.loads(about[name]) for name in ("rows", "found", "seconds"))
        found = _unpack(packed, tensors.__getitem__)
    except (FileNotFoundError, Damaged, KeyError, TypeError, ValueError, RecursionError):
        return None
    whole = isinstance(rows, list) and isinstance(found, dict) and isinstance(seconds, float)
    return Outcome(job, rows, found, seconds) if whole else None


def _pack(value: Any, tensors: dict[str, Tensor]) -> Any:
    """``value`` as JSON, with the names of its tensors in ``tensors`` in place of them."""
    if isinstance(value, Tensor):
        name = str(len(tensors))
        tensors[name] = value.detach().cpu().contiguous().clone()
        return {"tensor": name}
    if isinstance(value, Mapping):
        return {"items": [[_pack(key, tensors), _pack(each, tensors)] for key, each in value.items()]}
    if isinstance(value, tuple):
        return {"tuple": [_pack(each, tensors) for each in value]}
    if isinstance(value, list):
        return [_pack(each, tensors) for each in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(
        f"An outcome holds a {type(value).__name__}. Expected tensors, plain values, dictionaries and lists."
    )


def _unpack(packed: Any, tensor: Callable[[str], Tensor]) -> Any:
    if isinstance(packed, list):
        return [_unpack(each, tensor) for each in packed]
    if not isinstance(packed, dict):
        return packed
    if "tensor" in packed:
        return tensor(packed["tensor"])
    if "tuple" in packed:
        return tuple(_unpack(packed["tuple"], tensor))
    return {_unpack(key, tensor): _unpack(each, tensor) for key, each in packed["items"]}
