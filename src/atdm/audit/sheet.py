"""A contact sheet: the worst of each kind that an audit found."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from matplotlib.figure import Figure
from torch import Tensor

from .. import text
from ..data.items import to_uint8
from ..plot import scatter

ACROSS = 12
INCH = 0.95

Row = tuple[str, Sequence[tuple[int, str]]]  # a title, and items with a word on each


def images(rows: Sequence[Row], x: dict[int, Float[Tensor, "c h w"]]) -> Figure:
    """Rows of images, each under a word on it.

    Args:
        x: the images that the rows name.
    """
    heights = [1.25 * math.ceil(len(items) / ACROSS) or 0.5 for _, items in rows]
    whole = (sum(heights) + 0.45 * len(rows)) * INCH
    figure = Figure(figsize=(ACROSS * INCH, whole), facecolor="white")
    top = 0.0
    for (title, items), height in zip(rows, heights, strict=True):
        figure.text(0.01, 1 - (top + 0.3) * INCH / whole, text.figure(title), fontsize=10, weight="bold", va="center")
        top += 0.45
        if not items:
            figure.text(0.02, 1 - (top + 0.3) * INCH / whole, "none", fontsize=9, va="center")
        for at, (index, word) in enumerate(items):
            left, line = at % ACROSS, at // ACROSS
            bottom = 1 - (top + 1.25 * line + 0.97) * INCH / whole
            axis = figure.add_axes((left / ACROSS + 0.003, bottom, 0.92 / ACROSS, 0.92 * INCH / whole))
            picture = to_uint8(x[index]).permute(1, 2, 0).numpy()
            axis.imshow(picture if picture.shape[2] == 3 else picture[:, :, 0], cmap="gray", vmin=0, vmax=255)
            axis.set_axis_off()
            figure.text((left + 0.48) / ACROSS, bottom - 0.02 * INCH / whole, word, fontsize=6.5, ha="center", va="top")
        top += height
    return figure


def vectors(x: Float[Tensor, "n d"], outliers: Sequence[int]) -> Figure:
    """Vectors of two or three dimensions, outliers over the others; of more, along the first three components."""
    if x.shape[1] > 3:
        centered = x - x.mean(0)
        x = centered @ torch.linalg.svd(centered, full_matrices=False).Vh[:3].T
    chosen = torch.zeros(len(x), dtype=torch.bool)
    chosen[list(outliers)] = True
    return scatter(x[chosen], x[~chosen]) if chosen.any() and not chosen.all() else scatter(x)
