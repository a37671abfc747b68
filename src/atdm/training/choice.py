"""What ``auto`` chooses for the data of a run: by its trusted items, by the noise of single images, or by the data as a whole."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ..data.source import GAUGED, Source
from ..noise import Levels
from ..noise.estimate import by_patches
from ..noise.found import CorruptionFound
from ..objective import auto
from ..spec import parse_spec
from .checkpoint import read_objective
from .config import ObjectiveConfig, TrainConfig
from .trusted import levels_of, only_noise


def trusted_levels(
    config: TrainConfig, source: Source, progress: Callable[[int, int], None] | None = None
) -> Levels | None:
    """Where trusted items are to say from which noise level on each other item is used: those levels."""
    name = config.objective.name  # auto:k=3 asks for the regularizer
    able = parse_spec(name)[0] == "omni" or (name == "auto" and not source.fresh)
    return levels_of(source, Path(config.out) if config.out else None, progress) if source.trusted and able else None


def choose(config: TrainConfig, source: Source, levels: Levels | None) -> tuple[ObjectiveConfig, list[str]]:
    """The objective that auto chooses, and why, in sentences; of a run that is resumed what it chose when the run began.

    Args:
        levels: of :func:`trusted_levels`.
    """
    run = Path(config.out)
    if config.out and all((run / name).is_file() for name in ("config.yaml", "objective.json")):
        begun = ObjectiveConfig(**read_objective(run, {}))
        if not begun.automatic:
            return begun, [f"objective auto: {begun.name}, as when the run began."]
    by_trusted = None if levels is None else auto.by_levels(levels.stds, only_noise(source, levels))
    # auto:k=3 asks for the regularizer, and in latents noise is not what it is in pixels.
    looked = config.objective.name == "auto" and config.vae is None
    found = found_in(source) if looked else None
    by_pixels = auto.by_images(found, len(source)) if found else None
    if found and found.replaced >= auto.REPLACED:  # pixels tell more than levels of whole images
        by_trusted = None
    chosen = by_trusted or by_pixels
    if chosen:
        objective = ObjectiveConfig(**chosen)
    else:
        objective = config.objective.fitted(source.some(auto.ITEMS), source.hidden_std)
    why = [auto.explain(vars(objective), len(source), found if chosen and not by_trusted else None)]
    if config.vae:
        why.append("It looked at the latents, where auto was not measured: train with --objective ddpm, too.")
    return objective, why


def found_in(source: Source) -> CorruptionFound | None:
    """What is wrong with single images of a source, in its pixels; None where items are no images that show it."""
    if not by_patches(source.item_shape):
        return None
    x, indices = source.some_indexed(GAUGED)
    return CorruptionFound.of(None if source.hidden_std > 0 else source.gauge(), x, indices)
