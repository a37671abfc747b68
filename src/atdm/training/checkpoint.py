"""Run folders: atomic checkpoints, exact resume, and export as a diffusers pipeline. No pickle anywhere.

A run folder holds ``config.yaml``, ``log.jsonl``, ``tensorboard/``, ``samples/``, ``checkpoints/step-NNNNNNNN/`` (safetensors
and JSON) and ``model/``, a diffusers pipeline of the averaged weights; of a run on latents also ``latents-HASH.npy``, what
the autoencoder with that hash made of the images.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_type_hints

import torch
import yaml

from .. import hub
from ..diffusion.latent import Latents
from ..diffusion.process import Process
from ..diffusion.schedulers import pipeline_scheduler
from ..errors import UserError, first_line
from ..files import (
    TEMPORARY,
    Damaged,
    atomic,
    kinds_of,
    load_tensors,
    misfit,
    read_json,
    read_yaml,
    remove,
    require_sealed,
    save_tensors,
    seal,
)
from .config import ObjectiveConfig, TrainConfig
from .versions import in_todays_words

if TYPE_CHECKING:
    from torch import nn

    from .train import State


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
    with atomic(run / "config.yaml") as scratch:
        scratch.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")


def read_config(run: Path) -> dict[str, Any]:
    """The configuration of a run folder, in today's words; options that were not there yet when it was written have their defaults.

    Raises:
        UserError: the folder is not a run, or its configuration is damaged.
    """
    file = run / "config.yaml"
    if not file.is_file():
        raise UserError(f"{run} is not a run folder: it has no config.yaml. Expected a folder that atdm train wrote.")
    written = "what atdm train wrote; without that file the same command writes it again"
    stored = read_yaml(file, {"data": str}, written)
    for values, kind in ((stored, TrainConfig), (stored.get("objective", {}), ObjectiveConfig)):
        if wrong := misfit(values, {k: kinds_of(h) for k, h in get_type_hints(kind).items() if k in values}):
            raise UserError(f"Cannot read {file}: {wrong}. Expected {written}.")
    defaults = TrainConfig().as_dict()
    return {
        **defaults,
        **stored,
        "objective": {**defaults["objective"], **in_todays_words(stored.get("objective", {}))},
    }


def latest(run: Path) -> Path | None:
    """The newest checkpoint of a run."""
    found = _all(run)
    return found[-1] if found else None


def _all(run: Path) -> list[Path]:
    """The checkpoints, the newest last."""
    found = [path for path in run.glob(f"checkpoints/{STEP}*") if path.name.removeprefix(STEP).isdecimal()]
    return sorted(found, key=lambda path: int(path.name.removeprefix(STEP)))


def save(run: Path, state: State, keep: int) -> Path:
    """Write the state atomically, with checksums, and drop all but the newest ``keep`` checkpoints.

    Raises:
        UserError: a weight is not finite (the last good checkpoint stays), or the disk is full.
    """
    tensors = {k: v.detach().cpu().contiguous().clone() for k, v in state.tensors().items()}
    broken = next((k for k, v in tensors.items() if v.is_floating_point() and not bool(v.isfinite().all())), None)
    if broken:
        raise UserError(f"{broken} is not finite at step {state.step}; not saved, the last good checkpoint is kept.")
    target = run / "checkpoints" / f"{STEP}{state.step:08d}"
    with atomic(target) as scratch:
        scratch.mkdir()
        save_tensors(tensors, scratch / TENSORS)
        (scratch / "state.json").write_text(json.dumps({"step": state.step, "torch": torch.__version__}))
    for old in _all(run)[:-keep]:
        remove(old)
    return target


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


def set_aside(run: Path, step: int) -> None:
    """Rename checkpoints beyond ``step``, which could not be read, so that none of them counts as the newest."""
    for checkpoint in _all(run):
        if int(checkpoint.name.removeprefix(STEP)) > step:
            aside = checkpoint.with_name(DAMAGED + checkpoint.name.removeprefix(STEP))
            remove(aside)
            os.replace(checkpoint, aside)


def load(checkpoint: Path, state: State) -> None:
    """Put a checkpoint's tensors and step into ``state``.

    Raises:
        Damaged: it cannot be read, or is not as it was written.
        UserError: it belongs to another network.
    """
    step = _step(checkpoint)
    tensors = _tensors(checkpoint)
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
    step, weights = _step(found), _tensors(found, f"{part}.")
    try:
        model.load_state_dict({k[len(part) + 1 :]: v for k, v in weights.items()})
    except RuntimeError as problem:
        raise UserError(f"The checkpoint {found} does not fit the network: {problem}") from problem
    return step


def _step(checkpoint: Path) -> int:
    try:
        step = read_json(checkpoint / "state.json", {"step": int}, "what atdm train wrote")["step"]
    except UserError as problem:
        raise Damaged(f"The checkpoint {checkpoint} is damaged: {problem}") from problem
    if checkpoint.name != f"{STEP}{step:08d}":
        raise Damaged(f"The checkpoint {checkpoint} is damaged: its state.json is of step {step}.")
    return int(step)


def _tensors(checkpoint: Path, prefix: str = "") -> dict[str, torch.Tensor]:
    try:
        return load_tensors(checkpoint / TENSORS, prefix)
    except FileNotFoundError as problem:
        raise Damaged(f"The checkpoint {checkpoint} is damaged: it has no {TENSORS}.") from problem


def export(folder: Path, model: nn.Module, process: Process, clip_sample: bool, latents: Latents | None = None) -> None:
    """Write ``model`` as the folder of a diffusers pipeline, atomically.

    It is a ``DDPMPipeline``, of EDM a ``ConsistencyModelPipeline``: that one scales what the network sees. Their own
    ``__call__`` samples what diffusers has a word for; a network that predicts a score needs :func:`atdm.diffusion.sampling.sample`.
    With ``latents`` it is an ``LDMPipeline``, which decodes what it draws, and whose sampler is ddim: it gives no generator
    to the steps.
    """
    with atomic(folder) as scratch:
        write_pipeline(scratch, model, process, clip_sample, latents)


def write_pipeline(
    folder: Path, model: nn.Module, process: Process, clip_sample: bool, latents: Latents | None = None
) -> None:
    """:func:`export` into a folder that is already a scratch folder of :func:`atomic`."""
    from diffusers import ConsistencyModelPipeline, DDPMPipeline, LDMPipeline

    model.to(memory_format=torch.contiguous_format)  # all that safetensors writes
    kind = ConsistencyModelPipeline if process.family == "edm" else DDPMPipeline
    scheduler = pipeline_scheduler(process, clip_sample, deterministic=latents is not None)
    with _quiet():
        pipeline: Any = kind(model, scheduler) if latents is None else LDMPipeline(latents.vae, model, scheduler)
    pipeline.save_pretrained(folder)
    seal(folder)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without diffusers' warning that the network of a ``DDPMPipeline`` is a class of ours, and without its bars."""
    from diffusers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def load_pipeline(folder: Path | str, *, latent: bool = False) -> tuple[nn.Module, Process, bool]:
    """The network, its process and whether samples are clipped to [-1, 1], from any diffusers pipeline folder or run.

    Args:
        latent: open also a network that works on latents; :func:`load_latents` opens its autoencoder.

    Raises:
        UserError: there is no pipeline at ``folder``, or one of latents that was not asked for.
    """
    from diffusers import DDPMPipeline

    from ..nets import mlp  # noqa: F401  (diffusers opens a pipeline of ours once this is imported)

    path = _pipeline_folder(folder)
    if not latent and _is_latent(path):
        raise UserError(
            f"{folder} is a latent diffusion model, and this works on pixels. Expected a model of pixels; train, sample, "
            "evaluate, show and export take latent ones."
        )
    require_sealed(path)
    try:
        with _quiet():
            pipeline = DDPMPipeline.from_pretrained(path)
    except Exception as problem:  # diffusers, safetensors and torch each raise their own
        raise UserError(
            f"{folder} does not open as a diffusers pipeline of a U-Net: {first_line(problem)}"
        ) from problem
    scheduler = pipeline.scheduler
    process = Process.from_scheduler(scheduler)
    return pipeline.unet.eval(), process, bool(scheduler.config.get("clip_sample", process.family == "vp"))


def load_latents(folder: Path | str) -> Latents | None:
    """The autoencoder behind which the network of a pipeline or run works; None: it works on pixels or vectors.

    Raises:
        UserError: there is no pipeline at ``folder``, or its autoencoder is no ``AutoencoderKL``.
    """
    path = _pipeline_folder(folder)
    return Latents.load(path) if _is_latent(path) else None


def _is_latent(pipeline: Path) -> bool:
    try:
        return "vqvae" in json.loads((pipeline / "model_index.json").read_text())  # the word of LDMPipeline
    except (OSError, ValueError) as problem:
        raise UserError(
            f"Cannot read {pipeline / 'model_index.json'}: {first_line(problem)}. Expected what diffusers writes."
        ) from problem


def _pipeline_folder(folder: Path | str) -> Path:
    """The folder with ``model_index.json`` of a run, a pipeline, or a name on the Hub."""
    path = Path(folder)
    if not path.exists():
        if not hub.is_name(folder):
            raise UserError(
                f"There is no folder {folder}. Expected a run folder, a diffusers pipeline folder or a Hub name."
            )
        path = hub.fetch(str(folder))
    path = path / "model" if (path / "model" / "model_index.json").is_file() else path
    if not (path / "model_index.json").is_file():
        if (path / "config.yaml").is_file():
            raise UserError(
                f"The run {folder} has no model/ yet: its training has not ended. "
                "The command that started it goes on with it; a smaller --steps ends it sooner."
            )
        raise UserError(
            f"{folder} holds no diffusers pipeline. Expected a run folder with model/, or a folder with model_index.json."
        )
    return path
