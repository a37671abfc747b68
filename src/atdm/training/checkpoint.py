"""Run folders: atomic checkpoints, and exact resume. No pickle anywhere.

A run folder holds ``config.yaml``, ``log.jsonl``, ``tensorboard/``, ``samples/``, ``checkpoints/step-NNNNNNNN/`` (safetensors
and JSON) and ``model/``, a diffusers pipeline of the averaged weights; of a run on latents also ``latents-HASH.npy``, what
the autoencoder with that hash made of the images.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_type_hints

import torch
import yaml

from ..errors import UserError
from ..files import (
    TEMPORARY,
    Damaged,
    atomic,
    checked,
    kinds_of,
    load_tensors,
    read_json,
    read_yaml,
    remove,
    save_tensors,
    write_text,
)
from .config import ObjectiveConfig, TrainConfig
from .versions import in_todays_words

if TYPE_CHECKING:
    from torch import Tensor, nn

    from .state import State


STEP, TENSORS = "step-", "state.safetensors"
DAMAGED = "damaged-"  # a checkpoint that could not be read, set aside


def clean(run: Path) -> None:
    """Remove what an earlier process left half-written, and put back a ``model/`` it was about to replace."""
    for folder in (run, run / "checkpoints", run / "samples"):
        for left in folder.glob(f"{TEMPORARY}*"):
            name = left.name.partition("-old-")[2]
            if name and not (folder / name).exists():
                os.replace(left, folder / name)
            else:
                remove(left)


def write_config(run: Path, config: dict[str, Any]) -> None:
    """Write the resolved configuration of a run."""
    write_text(run / "config.yaml", yaml.safe_dump(config, sort_keys=False))


def read_config(run: Path) -> dict[str, Any]:
    """The configuration of a run folder, in today's words; options that were not there yet when it was written have their defaults.

    Raises:
        UserError: the folder is not a run, or its configuration is damaged.
    """
    file = run / "config.yaml"
    if not file.is_file():
        raise UserError(f"{run} is not a run folder: it has no config.yaml. Expected a folder that atdm train wrote.")
    written = "what atdm train wrote; without that file the same command writes it again"
    stored = read_yaml(file, {"data": str, "net": str, "process": str, "steps": int, "seed": int}, written)
    for values, kind in ((stored, TrainConfig), (stored.get("objective", {}), ObjectiveConfig)):
        checked(values, {k: kinds_of(h) for k, h in get_type_hints(kind).items() if k in values}, file, written)
    defaults = TrainConfig.unsaid().as_dict()
    return {
        **defaults,
        **stored,
        "objective": {**defaults["objective"], **in_todays_words(stored.get("objective", {}))},
    }


def read_objective(run: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """The options of the objective of a run, in today's words; of ``auto`` what it chose.

    Args:
        config: of the run.

    Raises:
        UserError: the file is damaged.
    """
    path = run / "objective.json"
    if not path.is_file():
        return dict(config["objective"])
    return in_todays_words(read_json(path, {"name": str}, "what atdm train wrote"))


def latest(run: Path) -> Path | None:
    """The newest checkpoint of a run."""
    found = _all(run)
    return found[-1] if found else None


def _all(run: Path) -> list[Path]:
    """The checkpoints, the newest last."""
    found = [path for path in run.glob(f"checkpoints/{STEP}*") if path.name.removeprefix(STEP).isdecimal()]
    return sorted(found, key=lambda path: int(path.name.removeprefix(STEP)))


class Writer:
    """Writes checkpoints beside the training: a save copies the state, and a thread puts it onto the disk.

    One is in flight at most. What goes wrong in the thread is raised by the next :meth:`save` or by :meth:`wait`.

    Args:
        run: the run folder.
        keep: how many checkpoints to keep.
        written: called with the step and the checkpoint once it is whole, by the thread that waits for it.
    """

    def __init__(
        self, run: Path, keep: int, written: Callable[[int, Path], None] = lambda step, checkpoint: None
    ) -> None:
        self.run, self.keep, self.written = run, keep, written
        self._writing: tuple[ThreadPoolExecutor, int, Future[Path]] | None = None

    def save(self, state: State) -> None:
        """Copy the state and begin to write it, once the checkpoint before it is written. Of a split one all processes take part.

        Raises:
            UserError: of the checkpoint before it: a weight is not finite (the last good checkpoint stays), or the disk is full.
        """
        self.wait()
        tensors = {k: v.detach().to("cpu", copy=True).contiguous() for k, v in state.tensors().items()}
        # Python waits for it at its end, whatever ends the training.
        thread = ThreadPoolExecutor(1, f"checkpoint {state.step}")
        self._writing = thread, state.step, thread.submit(write, self.run, tensors, state.step, self.keep)

    def wait(self) -> None:
        """Until all is written; the errors are those of :meth:`save`."""
        if self._writing is not None:
            thread, step, checkpoint = self._writing
            thread.shutdown()
            self._writing = None
            self.written(step, checkpoint.result())


def write(run: Path, tensors: dict[str, Tensor], step: int, keep: int) -> Path:
    """Write tensors on the CPU atomically, with checksums, and drop all but the newest ``keep`` checkpoints.

    Raises:
        UserError: a weight is not finite (the last good checkpoint stays), or the disk is full.
    """
    broken = next((k for k, v in tensors.items() if v.is_floating_point() and not bool(v.isfinite().all())), None)
    if broken:
        raise UserError(
            f"{broken} is not finite at step {step}; not saved, the last good checkpoint is kept. Expected a smaller lr."
        )
    target = run / "checkpoints" / f"{STEP}{step:08d}"
    with atomic(target) as scratch:
        scratch.mkdir()
        save_tensors(tensors, scratch / TENSORS)
        (scratch / "state.json").write_text(json.dumps({"step": step, "torch": torch.__version__}))
    _drop(run, keep)
    return target


def _drop(run: Path, keep: int) -> None:
    for old in _all(run)[:-keep]:
        remove(old)


def restore(run: Path, state: State) -> list[str]:
    """Put the newest checkpoint of a run that can be read into ``state``, if it has any; sentences on those that cannot.

    Raises:
        UserError: there are checkpoints, and none can be read; or one belongs to another network.
    """
    notes: list[str] = []
    found = _all(run)
    for checkpoint in reversed(found):
        try:
            load(checkpoint, state)
        except Damaged as problem:
            notes.append(str(problem))
        else:
            return [f"{note} Training goes on from the older checkpoint of step {state.step}." for note in notes]
    if found:
        raise UserError(
            f"{notes[0]} No older checkpoint of {run} can be read. "
            f"Expected one; without the folder {run / 'checkpoints'} the run starts again."
        )
    return []


def tidy(run: Path, step: int, keep: int) -> None:
    """Bring the checkpoints of a run that goes on from ``step`` into order.

    Those beyond it, which could not be read, are renamed, so that none of them counts as the newest. Of the others the newest
    ``keep`` stay: a process may have been killed before it dropped an older one.
    """
    for checkpoint in _all(run):
        if int(checkpoint.name.removeprefix(STEP)) > step:
            aside = checkpoint.with_name(DAMAGED + checkpoint.name.removeprefix(STEP))
            remove(aside)
            os.replace(checkpoint, aside)
    _drop(run, keep)


def load(checkpoint: Path, state: State) -> None:
    """Put a checkpoint's tensors and step into ``state``.

    Raises:
        Damaged: it cannot be read, or is not as it was written.
        UserError: it belongs to another network.
    """
    step, tensors = _read(checkpoint)
    try:
        state.restore(tensors, step)
    except (KeyError, RuntimeError) as problem:
        raise UserError(f"The checkpoint {checkpoint} does not fit the network: {problem}") from problem


def load_weights(run: Path, model: nn.Module, part: Literal["ema", "model"]) -> int:
    """Put the averaged (``ema``) or raw (``model``) weights of a run's newest checkpoint into ``model``; its step.

    Raises:
        UserError: there is no checkpoint, it cannot be read, or it is of another network.
    """
    found = latest(run)
    if found is None:
        raise UserError(f"The run {run} has no checkpoint. Expected checkpoints/step-..., as atdm train writes them.")
    step, weights = _read(found, f"{part}.")
    try:
        model.load_state_dict({k[len(part) + 1 :]: v for k, v in weights.items()})
    except RuntimeError as problem:
        raise UserError(f"The checkpoint {found} does not fit the network: {problem}") from problem
    return step


def _read(checkpoint: Path, prefix: str = "") -> tuple[int, dict[str, Tensor]]:
    """The step of a checkpoint, and its tensors whose names begin with ``prefix``."""
    try:
        step = read_json(checkpoint / "state.json", {"step": int}, "what atdm train wrote")["step"]
    except UserError as problem:
        raise Damaged(f"The checkpoint {checkpoint} is damaged: {problem}") from problem
    if checkpoint.name != f"{STEP}{step:08d}":
        raise Damaged(f"The checkpoint {checkpoint} is damaged: its state.json is of step {step}.")
    try:
        return int(step), load_tensors(checkpoint / TENSORS, prefix)
    except FileNotFoundError as problem:
        raise Damaged(f"The checkpoint {checkpoint} is damaged: it has no {TENSORS}.") from problem
