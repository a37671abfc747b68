"""Samples that a run draws on its way."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from ..diffusion.steps import Sampling
from .callbacks import Callback
from .parts import Parts
from .state import State

LOG = logging.getLogger(__name__)


class _Ended(Exception):
    """A wish to stop came while samples were drawn."""


def save_grid(
    folder: Path,
    parts: Parts,
    state: State,
    device: torch.device,
    stop: Callable[[], bool],
    callbacks: Sequence[Callback],
) -> None:
    """Samples of the averaged weights so far: a grid of images, or a scatter plot of vectors. Left out once ``stop()``."""
    images = parts.dataset.kind == "image"
    if not images and parts.source.item_shape[0] not in (2, 3):
        return

    def watch(*_: int) -> None:
        if stop():
            raise _Ended

    try:
        with torch.random.fork_rng():
            model = parts.model(state.ema.to(device))
            if model.classes:  # each in turn
                model = dataclasses.replace(model, conditioning={"class_labels": torch.arange(len(model.classes))})
            sampling = model.sampling(Sampling(steps=min(100, model.process.steps)), "ddpm")
            drawn = model.sample(64 if images else 1000, sampling, seed=0, progress=watch)
    except _Ended:
        return
    target = grid_file(folder, state.step)
    target.parent.mkdir(exist_ok=True)
    from .. import plot
    from ..plot.samples import save_samples

    if images:
        save_samples(drawn, target)
    else:
        plot.save(plot.scatter(drawn, parts.dataset.x[:1000]), target)
    LOG.info("drew %s", target)
    for each in callbacks:
        each.on_sample(state.step, target)


def grid_file(folder: Path, step: int) -> Path:
    """Where the samples drawn after ``step`` steps are."""
    return folder / "samples" / f"step-{step:08d}.png"
