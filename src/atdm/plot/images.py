"""Grids of images, and pairs of them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float, Int
from matplotlib.figure import Figure
from torch import Tensor

from .. import text
from .base import DPI, balanced, head, need, side_by_side
from .samples import grid


def image_grids(panels: Mapping[str, Float[Tensor, "_ _ _ _"]], columns: int = 8) -> Figure:
    """Grids of images in [-1, 1] side by side, every pixel a square.

    Args:
        columns: of each grid.
    """
    need(panels, "images")
    grids = {name: grid(x.detach().float().cpu(), columns).permute(1, 2, 0).numpy() for name, x in panels.items()}
    across = balanced(len(grids))
    height, width = (max(picture.shape[side] for picture in grids.values()) for side in (0, 1))
    inches = min(11 / across, max(2.7, width / DPI))
    figure, axes = side_by_side(len(grids), across, inches, inches * height / width + 0.35)
    for axis, (name, picture) in zip(axes, grids.items(), strict=True):
        axis.imshow(picture, interpolation="nearest")
        axis.set_axis_off()
        head(axis, text.figure(name))
    return figure


def pairs(
    samples: Float[Tensor, "n channels height width"],
    train: Float[Tensor, "m channels height width"],
    indices: Int[Tensor, "pairs 2"],
    similarity: Float[Tensor, "n"],
) -> Figure:
    """Samples (left) beside their nearest training images (right): what memorization looks like.

    Args:
        indices: of :meth:`atdm.metrics.Memorization.pairs`, the closest first.
        similarity: of all samples; each pair is titled with its own.
    """
    return image_grids(
        {
            f"{rank}: sample {i}, training {j}, {similarity[i].item():.3f}": torch.stack([samples[i], train[j]])
            for rank, (i, j) in enumerate(indices.tolist(), 1)
        },
        columns=2,
    )
