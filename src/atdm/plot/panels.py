"""Figures that only the reproductions need; the others are in :mod:`atdm.plot`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure
from torch import Tensor

from .. import plot, text
from .base import logarithmic, side_by_side

Curve = tuple[Sequence[float], Sequence[float]]


def _panels(titles: Sequence[str], width: float, height: float, across: int) -> tuple[Figure, list]:
    figure, axes = side_by_side(len(titles), min(across, len(titles)), width, height)
    for axis, title in zip(axes, titles, strict=True):
        axis.set_title(title, fontsize=9.5, color=plot.INK, loc="left")
        axis.tick_params(labelsize=8, colors=plot.INK)
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(color=plot.FAINT, linewidth=0.6)
        axis.set_axisbelow(True)
    return figure, axes


def points2d(clouds: Mapping[str, Tensor]) -> Figure:
    """Clouds of points of the plane; the first one sets the frame, and titles say how many points lie outside."""
    first = next(iter(clouds.values()))
    reach = 1.15 * float(first[first.isfinite().all(1)].abs().max())
    figure, axes = _panels(list(clouds), 2.6, 2.8, 4)
    palette = plot.colours(clouds)
    for axis, (name, x) in zip(axes, clouds.items(), strict=True):
        inside = x[(x.abs() <= reach).all(1)]
        outside = 1 - len(inside) / len(x)
        if outside:
            axis.set_title(f"{name}\n({100 * outside:.2g} % outside)", fontsize=9.5, color=plot.INK, loc="left")
        axis.scatter(*inside.numpy().T, s=3, linewidths=0, alpha=0.5, color=palette[name], rasterized=True)
        axis.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal")
    return figure


def curve_panels(
    panels: Mapping[str, Mapping[str, Curve]],
    x_label: str,
    y_label: str,
    log: str = "",
    bands: Mapping[str, Mapping[str, Curve]] | None = None,
) -> Figure:
    """Lines by name in panels that share their labels and one legend.

    Args:
        bands: low and high ends of the intervals of lines, by panel and name.
    """
    figure, axes = _panels(list(panels), 4.6, 3.4, 2)
    palette = plot.colours(dict.fromkeys(name for lines in panels.values() for name in lines))
    for axis, (title, lines) in zip(axes, panels.items(), strict=True):
        for name, (x, y) in lines.items():
            if bands is not None:
                axis.fill_between(x, *bands[title][name], color=palette[name], alpha=0.15, linewidth=0)
            marker = "o" if len(x) <= 30 else ""
            axis.plot(x, y, color=palette[name], marker=marker, markersize=4, linewidth=1.5, label=text.figure(name))
        logarithmic(axis, log)
        axis.set_xlabel(x_label, fontsize=9, color=plot.INK)
        axis.set_ylabel(y_label, fontsize=9, color=plot.INK)
    handles = {h.get_label(): h for axis in axes for h in axis.get_lines()}
    figure.legend(
        list(handles.values()),
        list(handles),
        loc="outside lower center",
        ncols=min(2 * min(2, len(panels)), len(handles)),  # each panel is as wide as two names
        fontsize=9,
        frameon=False,
    )
    return figure
