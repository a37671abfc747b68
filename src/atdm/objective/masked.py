"""Training on the pixels that were seen: those that were replaced are no target."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import nn

from ..diffusion.process import PerItem, States, Timesteps
from ..errors import UserError
from ..noise.pixels import replaced_pixels
from .huber import item_loss, require_c
from .terms import Baseline, Draws, Predict, Terms


@dataclass(frozen=True)
class Masked(Baseline):
    """ddpm's loss over the pixels of each image that do not look replaced (:func:`atdm.noise.pixels.replaced_pixels`).

    Salt and pepper, missing pixels and blank patches destroy some pixels and keep the others as they were. The loss of a pixel
    is least at ``E[x_0 | x_t]`` of that pixel, whatever the others are; so pixels that are left out cost evidence and bend no
    target (trained on what is seen, too: Daras 2023, arXiv 2305.19256, where the masks are known and more pixels are hidden from the
    network, so that no image need be whole). In the states, what is around takes the place of a replaced pixel (:func:`seen`), for
    samples will have none. Images with no such pixel train as by ddpm.

    Args:
        c: of a pseudo-Huber loss in place of the squared error, as in :class:`~atdm.objective.Ambient`.
        note: what :meth:`Objective.auto` chose, in words.
    """

    c: float = math.inf
    note: str = field(default="", kw_only=True, repr=False)

    def __post_init__(self) -> None:
        require_c(self.c)

    def require_items(self, item_shape: tuple[int, ...]) -> None:
        require_pixels("masked", item_shape)

    def terms(self, predict: Predict, x0: States, t: Timesteps, draws: Draws, levels: PerItem | None) -> Terms:
        x0, mean = seen(x0)
        output = predict(self.process.mix(x0, draws.noise, t), t)
        squared = (output - self.process.target(x0, draws.noise, t)).square()
        return Terms.unperturbed(t, item_loss(self.process, squared, self.process.output_weight(t), t, self.c, mean))


def seen(x0: States) -> tuple[States, Callable[[States], PerItem]]:
    """Images without their replaced pixels, and the mean over those pixels of an item that were seen.

    A replaced pixel becomes the mean over the pixels that were seen in the smallest window around it that holds any: of 3x3, and
    others of which each reaches twice as far as the last.

    Raises:
        UserError: they are no images.
    """
    require_pixels("masked", tuple(x0.shape[1:]))
    replaced = replaced_pixels(x0)
    kept, filled, missing = (~replaced).to(x0), x0, replaced
    for reach in (2**k for k in range(max(x0.shape[2:]).bit_length())):  # the last holds the image from wherever in it
        total, count = (nn.functional.avg_pool2d(y, 2 * reach + 1, 1, reach) for y in (x0 * kept, kept))
        filled = torch.where(missing & (count > 0), total / count, filled)
        missing = missing & (count == 0)
    weights = kept.expand_as(x0).flatten(1)
    return filled, lambda values: (values.flatten(1) * weights).sum(1) / weights.sum(1).clamp_min(1)


def require_pixels(name: str, item_shape: tuple[int, ...]) -> None:
    """Refuse items in which no pixel can look replaced.

    Raises:
        UserError: they are no images of at least 3x3 pixels.
    """
    if len(item_shape) != 3 or min(item_shape[1:]) < 3:
        raise UserError(
            f"{name} looks for replaced pixels, and items of shape {list(item_shape)} have none that can be recognized. Expected images "
            "of at least 3x3 pixels; pseudo_huber takes other items, too."
        )
