"""The folder of a diffusers pipeline: where it is, and what it says of itself."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .. import hub
from ..errors import UserError, first_line
from ..files import read_json
from ..nets.checks import quiet
from .process import MOST_STEPS

CLASSES = "classes.json"  # beside model_index.json: the names of the classes, by label


def pipeline_folder(source: Path | str) -> Path:
    """The folder with ``model_index.json`` of a run, a pipeline, or a name on the Hub."""
    path = Path(source)
    if not path.exists():
        if not hub.is_name(source):
            raise UserError(
                f"There is no folder {source}. Expected a run folder, a diffusers pipeline folder or a Hub name."
            )
        path = hub.fetch(str(source))
    path = path / "model" if (path / "model" / "model_index.json").is_file() else path
    if not (path / "model_index.json").is_file():
        if (path / "config.yaml").is_file():
            raise UserError(
                f"The run {source} has no model/ yet: its training has not ended. "
                "The command that started it goes on with it; a smaller --steps ends it sooner."
            )
        raise UserError(
            f"{source} holds no diffusers pipeline. Expected a run folder with model/, or a folder with model_index.json."
        )
    return path


def class_names(pipeline: Path) -> tuple[str, ...]:
    """The names of the classes that a model of atdm knows; none of other pipelines."""
    file = pipeline / CLASSES
    if not file.is_file():
        return ()
    return tuple(map(str, read_json(file, {"names": list}, "what atdm train wrote")["names"]))


def index_of(pipeline: Path) -> dict[str, Any]:
    """What ``model_index.json`` says; it names a network and a scheduler."""
    file = pipeline / "model_index.json"
    index = read_json(file, {}, "what diffusers writes")
    if not {"unet", "scheduler"} <= index.keys():
        raise UserError(
            f"{file} names no unet and scheduler. Expected the pipeline of an unconditional U-Net, such as a DDPMPipeline."
        )
    return index


def scheduler_of(pipeline: Path, index: Mapping[str, Any], source: str | Path) -> Any:
    """The scheduler of a pipeline, one of diffusers' own.

    Args:
        source: what sentences call the pipeline.

    Raises:
        UserError: it is of another kind, or its options are no scheduler's.
    """
    import diffusers

    entry = index["scheduler"]
    name = entry[-1] if isinstance(entry, list) and entry else entry
    kind = getattr(diffusers, name, None) if isinstance(name, str) else None
    if not hasattr(kind, "set_timesteps"):
        raise UserError(
            f"{source} has the scheduler {name}, which diffusers does not have. Expected one of its own, such as DDPMScheduler."
        )
    subfolder = "scheduler" if (pipeline / "scheduler").is_dir() else None
    config = read_json(pipeline / (subfolder or "") / "scheduler_config.json", {}, "what diffusers writes")
    steps = config.get("num_train_timesteps", 1000)
    if isinstance(steps, bool) or not isinstance(steps, int) or not 1 <= steps <= MOST_STEPS:
        raise UserError(f"The scheduler of {source} has {steps} timesteps. Expected from 1 to {MOST_STEPS:,}.")
    try:
        with quiet():
            return kind.from_pretrained(pipeline, subfolder=subfolder)  # type: ignore[union-attr]
    except Exception as problem:  # diffusers raises what its constructors do
        raise UserError(f"The scheduler of {source} does not open: {first_line(problem)}.") from problem
