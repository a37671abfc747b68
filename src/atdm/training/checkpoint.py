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
from typing import TYPE_CHECKING, Any, Literal

import torch
import yaml

from .. import hub
from ..diffusion.latent import Latents
from ..diffusion.process import Process
from ..diffusion.schedulers import pipeline_scheduler
from ..errors import UserError, first_line
from ..files import TEMPORARY, atomic, remove

if TYPE_CHECKING:
    from torch import nn

    from .train import State


def clean(run: Path) -> None:
    """Remove what an earlier process left half-written, and put back a ``model/`` it was about to replace."""
    for folder in (run, run / "checkpoints"):
        for left in folder.glob(f"{TEMPORARY}*") if folder.is_dir() else ():
            name = left.name.partition("-old-")[2]
            if name and not (folder / name).exists():
                os.replace(left, folder / name)
            else:
                remove(left)


def write_config(run: Path, config: dict[str, Any]) -> None:
    """Write the resolved configuration of a run."""
    with atomic(run / "config.yaml") as scratch:
        scratch.write_text(yaml.safe_dump(config, sort_keys=False))


def read_config(run: Path) -> dict[str, Any]:
    """The configuration of a run folder.

    Raises:
        UserError: the folder is not a run.
    """
    file = run / "config.yaml"
    if not file.is_file():
        raise UserError(f"{run} is not a run folder: it has no config.yaml. Expected a folder that atdm train wrote.")
    return yaml.safe_load(file.read_text())


def latest(run: Path) -> Path | None:
    """The newest checkpoint of a run."""
    found = sorted((run / "checkpoints").glob("step-*")) if (run / "checkpoints").is_dir() else []
    return found[-1] if found else None


def save(run: Path, state: State, keep: int) -> Path:
    """Write the state atomically and drop all but the newest ``keep`` checkpoints.

    Raises:
        UserError: a weight is not finite (the last good checkpoint stays), or the disk is full.
    """
    from safetensors.torch import save_file

    tensors = {k: v.detach().cpu().contiguous().clone() for k, v in state.tensors().items()}
    broken = next((k for k, v in tensors.items() if v.is_floating_point() and not bool(v.isfinite().all())), None)
    if broken:
        raise UserError(f"{broken} is not finite at step {state.step}; not saved, the last good checkpoint is kept.")
    target = run / "checkpoints" / f"step-{state.step:08d}"
    with atomic(target) as scratch:
        scratch.mkdir()
        save_file(tensors, scratch / "state.safetensors")
        (scratch / "state.json").write_text(json.dumps({"step": state.step, "torch": torch.__version__}))
    for old in sorted((run / "checkpoints").glob("step-*"))[:-keep]:
        remove(old)
    return target


def load(checkpoint: Path, state: State) -> None:
    """Put a checkpoint's tensors and step into ``state``.

    Raises:
        UserError: the checkpoint belongs to another network or cannot be read.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        step = json.loads((checkpoint / "state.json").read_text())["step"]
        state.restore(load_file(checkpoint / "state.safetensors"), step)
    except (OSError, SafetensorError, KeyError, json.JSONDecodeError) as problem:
        raise UserError(
            f"Cannot read the checkpoint {checkpoint}: {problem}. Remove that folder to use an older one."
        ) from problem
    except RuntimeError as problem:
        raise UserError(f"The checkpoint {checkpoint} does not fit the network: {problem}") from problem


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


def load_weights(run: Path, model: nn.Module, part: Literal["ema", "model"]) -> int:
    """Put the averaged (``ema``) or raw (``model``) weights of a run's newest checkpoint into ``model``; its step.

    Raises:
        UserError: there is no checkpoint, or it cannot be read.
    """
    from safetensors import SafetensorError, safe_open

    found = latest(run)
    if found is None:
        raise UserError(f"The run {run} has no checkpoint. Expected checkpoints/step-..., as atdm train writes them.")
    try:
        step = json.loads((found / "state.json").read_text())["step"]
        with safe_open(found / "state.safetensors", "pt") as file:
            names = [k for k in file.keys() if k.startswith(f"{part}.")]  # noqa: SIM118 (not a dict)
            model.load_state_dict({k[len(part) + 1 :]: file.get_tensor(k) for k in names})
    except (OSError, SafetensorError, KeyError, json.JSONDecodeError, RuntimeError) as problem:
        raise UserError(f"Cannot read the checkpoint {found}: {problem}") from problem
    return step
