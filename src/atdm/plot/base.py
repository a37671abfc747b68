"""What all figures share: colours that belong to names, frames and axes, and files."""

from __future__ import annotations

import base64
import io
import math
import warnings
from collections.abc import Iterable, Sequence, Sized
from pathlib import Path
from typing import Any, Literal

import matplotlib
import matplotlib.ticker
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from torch import Tensor

from ..errors import UserError
from ..files import atomic

COLOURS: dict[str, str] = {
    "ddpm": "#4d4d4d",
    "inv_adv": "#d55e00",
    "inv_rand": "#e69f00",
    "robust_rand": "#56b4e9",
    "robust_adv": "#0072b2",
    "auto": "#cc79a7",
    "ddpm, stopped": "#009e73",
    "input_perturbation": "#a6761d",
    "pseudo_huber": "#8b3a8b",
    "masked": "#1f5fa8",
    "ambient": "#117733",
    "ambient_blind": "#6b8e23",
    "ambient_consistent": "#3f7d20",
    "omni": "#a03050",
    "sfbd": "#2a9d8f",
    "sure": "#5b7083",
    "free": "#c2185b",
}
OTHER_COLOURS = ("#8c6d31", "#7b6fd0", "#2f7f7f", "#b8a400", "#4b3f72")
INK, FAINT = "#222222", "#dddddd"
DISTANCE = ListedColormap(matplotlib.colormaps["plasma"](np.linspace(0, 0.86, 256)), "distance")  # its end is too pale
DPI = 140
MOST_PICTURE = 5.0  # inches of height for the samples of a run
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
Log = Literal["", "x", "y", "xy"]


def colours(names: Iterable[str]) -> dict[str, str]:
    """A colour for each name: the fixed one of the longest name it is or begins with, or else the next free one."""
    found: dict[str, str] = {}
    free = 0
    for name in dict.fromkeys(names):
        known = max(
            (key for key in COLOURS if f"{name} ".startswith((f"{key} ", f"{key},", f"{key}:"))), key=len, default=""
        )
        if known and COLOURS[known] not in found.values():
            found[name] = COLOURS[known]
        else:
            found[name] = OTHER_COLOURS[free % len(OTHER_COLOURS)]
            free += 1
    return found


# --- frames -----------------------------------------------------------------------------------------------------------
def frame(width: float, height: float, rows: int = 1, columns: int = 1, **options: Any) -> tuple[Figure, list[Any]]:
    """A figure in inches and its axes, row by row."""
    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    return figure, list(figure.subplots(rows, columns, squeeze=False, **options).flat)


def side_by_side(
    n: int, columns: int, width: float, height: float, beside: float = 0, below: float = 0, **options: Any
) -> tuple[Figure, list[Any]]:
    """A figure of ``n`` axes of ``width`` and ``height`` (inches) in so many columns, with room beside and below them all."""
    rows = math.ceil(n / columns)
    figure, axes = frame(width * columns + beside, height * rows + below, rows, columns, **options)
    return figure, drop(axes, n)


def balanced(n: int) -> int:
    """Columns for ``n`` axes in as few rows as four columns need."""
    return math.ceil(n / math.ceil(n / 4))


def drop(axes: list[Any], n: int) -> list[Any]:
    """The first ``n`` axes, after the rest were taken out of the figure."""
    for axis in axes[n:]:
        axis.remove()
    return axes[:n]


def dress(axis: Axes, x_label: str = "", y_label: str = "", title: str = "", log: str = "") -> None:
    axis.spines[["top", "right"]].set_visible(False)
    axis.spines[["left", "bottom"]].set_color("#888888")
    axis.tick_params(colors=INK, labelsize=9, color="#888888")
    axis.set_axisbelow(True)
    axis.grid(color=FAINT, linewidth=0.6)
    axis.set_xlabel(x_label, fontsize=10, color=INK)
    axis.set_ylabel(y_label, fontsize=10, color=INK)
    head(axis, title)
    logarithmic(axis, log)


def logarithmic(axis: Axes, sides: str) -> None:
    """Make the axes ``x``, ``y`` or both logarithmic, with plain numbers at few ticks."""
    for side in sides:
        axis.set(**{f"{side}scale": "log"})
        edge = axis.xaxis if side == "x" else axis.yaxis
        low, high = sorted(edge.get_view_interval())
        edge.set_major_locator(matplotlib.ticker.LogLocator(subs=(1, 2, 5) if high / low < 300 else (1,)))
        edge.set_major_formatter(matplotlib.ticker.StrMethodFormatter("{x:g}"))
        edge.set_minor_formatter(matplotlib.ticker.NullFormatter())


def small_panels(titles: Sequence[str], width: float, height: float, across: int) -> tuple[Figure, list[Any]]:
    """A figure of axes of ``width`` and ``height`` (inches), each with its title, at most so many ``across``."""
    figure, axes = side_by_side(len(titles), min(across, len(titles)), width, height)
    for axis, title in zip(axes, titles, strict=True):
        axis.set_title(title, fontsize=9.5, color=INK, loc="left")
        axis.tick_params(labelsize=8, colors=INK)
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(color=FAINT, linewidth=0.6)
        axis.set_axisbelow(True)
    return figure, axes


def head(axis: Any, title: str, **options: Any) -> None:
    """A title of our own; one that names something goes through :func:`atdm.text.figure`."""
    axis.set_title(title, fontsize=10.5, color=INK, loc=options.pop("loc", "left"), **options)


def legend(axis: Any, **options: Any) -> None:
    axis.legend(fontsize=9, frameon=False, labelcolor=INK, **options)


def need(panels: Sized, what: str) -> None:
    if not panels:
        raise UserError(f"There are no {what} to draw. Expected at least one.")


def array(x: Tensor) -> np.ndarray:
    return x.detach().float().cpu().numpy()


# --- out --------------------------------------------------------------------------------------------------------------
def save(figure: Figure, path: str | Path) -> Path:
    """Write ``NAME.png`` or ``NAME.svg``; the file appears whole or not at all.

    Raises:
        UserError: another ending.
    """
    path = Path(path)
    kind = path.suffix.lstrip(".")
    if kind not in ("png", "svg"):
        raise UserError(f"Cannot write a figure to '{path}'. Expected NAME.png or NAME.svg.")
    with atomic(path) as scratch:
        scratch.write_bytes(_bytes(figure, kind))
    return path


def data_uri(figure: Figure | Path) -> str:
    """The figure, or the PNG file of one, inside a ``data:`` address, for pages without other files."""
    png = figure.read_bytes() if isinstance(figure, Path) else _bytes(figure, "png")
    return "data:image/png;base64," + base64.b64encode(png).decode()


def _bytes(figure: Figure, kind: str) -> bytes:
    buffer = io.BytesIO()
    # The same figure gives the same bytes: no date, and identifiers that are not random.
    with matplotlib.rc_context({"svg.hashsalt": "atdm"}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # of a name in another script
        figure.savefig(buffer, format=kind, dpi=DPI, metadata={"Date": None} if kind == "svg" else {"Software": None})
    return buffer.getvalue()
