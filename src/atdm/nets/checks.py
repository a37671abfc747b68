"""Whether a network that somebody saved can be used: asked once, where it is opened."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UserError, first_line

LEAST_SIDE = 8  # of the image that a network is tried on


@contextmanager
def quiet() -> Iterator[None]:
    """Without what diffusers prints of classes that are not its own, of weights that it lacks, and without its bars."""
    from diffusers.utils import logging as theirs

    level, bars = theirs.get_verbosity(), theirs.is_progress_bar_enabled()
    theirs.set_verbosity(logging.CRITICAL + 1)
    theirs.disable_progress_bar()
    try:
        yield
    finally:
        theirs.set_verbosity(level)
        if bars:
            theirs.enable_progress_bar()


def variant(folder: Path) -> str | None:
    """``fp16`` where a folder holds weights in that variant of diffusers alone; None: it holds plain ones, or none."""
    names = [file.name for file in folder.glob("diffusion_pytorch_model*")]
    half = [name for name in names if re.search(r"\.fp16[.-]", name)]
    return "fp16" if half and len(half) == len(names) else None


def require_weights(net: nn.Module, source: object, loaded: Mapping[str, Sequence[str]]) -> None:
    """Refuse a network that the file of weights does not fill, or fills with numbers that are not finite.

    Args:
        source: what sentences call it.
        loaded: what diffusers says of the file: ``missing_keys`` and ``unexpected_keys``.

    Raises:
        UserError: names the first weight that lacks or is not finite.
    """
    if absent := sorted(loaded["missing_keys"]):
        raise UserError(
            f"The weights of '{source}' lack {_first(absent)}, which its config.json asks for. "
            "Expected the weights and the config.json of one network."
        )
    if more := sorted(loaded["unexpected_keys"]):
        warnings.warn(
            f"The weights of '{source}' hold {_first(more)}, for which its config.json has no place.", stacklevel=3
        )
    floats = ((name, value) for name, value in net.state_dict().items() if value.is_floating_point())
    if broken := next((name for name, value in floats if not bool(value.isfinite().all())), None):
        raise UserError(f"The weights of '{source}' are not finite ({broken}). Expected a model that did not diverge.")


def _first(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"


def require_size(net: nn.Module, source: object) -> None:
    """Refuse a ``sample_size`` that is no size.

    Raises:
        UserError: says what it is.
    """
    config: Any = net.config
    size = config.get("sample_size")
    sides = size if isinstance(size, list | tuple) else (size, size)
    whole = all(isinstance(side, int) and not isinstance(side, bool) and side > 0 for side in sides)
    if size is not None and not (whole and len(sides) in (0, 2)):
        raise UserError(
            f"The network of '{source}' has the sample_size {size!r}. Expected a positive number of pixels, two of them, or null."
        )


def halvings(config: Mapping[str, Any]) -> int:
    """The number that the sides of images must be divisible by, for a U-Net of diffusers with this configuration."""
    return int(2 ** (len(config["block_out_channels"]) - 1))


@torch.no_grad()
def try_out(net: nn.Module, source: object, time: Tensor | None = None) -> None:
    """Evaluate a U-Net once, on a small image: some configurations make networks that cannot run.

    Args:
        source: what sentences call it.
        time: a time ``[1]`` that it is to take; None: 0.

    Raises:
        UserError: it fails.
    """
    config: Any = net.config
    kind, labels = config.get("class_embed_type"), config.get("num_class_embeds")
    if "block_out_channels" not in config or (kind is not None and labels is None):
        return
    factor = halvings(config)
    side = factor * max(2, -(-LEAST_SIDE // factor))
    given = {} if labels is None else {"class_labels": torch.zeros(1, dtype=torch.long)}
    try:
        net(torch.zeros(1, config["in_channels"], side, side), torch.zeros(1).long() if time is None else time, **given)
    except Exception as problem:  # torch and diffusers each raise their own
        learned = isinstance(getattr(net, "time_proj", None), nn.Embedding)  # the times that it takes
        when = f" at the time {float(time):g} of its process" if learned and time is not None else ""
        raise UserError(
            f"The network of '{source}' cannot run{when}: {first_line(problem)}. Expected one that diffusers can run."
        ) from problem
