"""Points, trajectories and vector fields: data in the plane and in space."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from typing import Any

import matplotlib
import matplotlib.cm
import matplotlib.ticker
import numpy as np
import torch
from jaxtyping import Float
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from torch import Tensor

from .. import text
from ..errors import UserError
from ..metrics.exact import HasDistance
from .base import COLOURS, DISTANCE, INK, array, balanced, colours, dress, frame, head, need, side_by_side, small_panels


def points2d(clouds: Mapping[str, Tensor]) -> Figure:
    """Clouds of points of the plane; the first one sets the frame, and titles say how many points lie outside."""
    first = next(iter(clouds.values()))
    reach = 1.15 * float(first[first.isfinite().all(1)].abs().max())
    figure, axes = small_panels(list(clouds), 2.6, 2.8, 4)
    palette = colours(clouds)
    for axis, (name, x) in zip(axes, clouds.items(), strict=True):
        inside = x[(x.abs() <= reach).all(1)]
        outside = 1 - len(inside) / len(x)
        if outside:
            axis.set_title(f"{name}\n({100 * outside:.2g} % outside)", fontsize=9.5, color=INK, loc="left")
        axis.scatter(*inside.numpy().T, s=3, linewidths=0, alpha=0.5, color=palette[name], rasterized=True)
        axis.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal")
    return figure


def points3d(
    panels: Mapping[str, Float[Tensor, "_ 3"]],
    truth: HasDistance | None = None,
    limits: tuple[float, float] | None = None,
    most: int = 3000,
) -> Figure:
    """Clouds of points in 3-D, seen along their support and coloured by the distance from it.

    Args:
        panels: training data first, then samples by name; the first one sets the view.
        truth: knows the distance; without it each panel has the colour of its name.
        limits: of every axis; default: what holds nearly all of the first panel. Titles say how many lie outside.
        most: points drawn in a panel.
    """
    need(panels, "panels")
    first = _finite(next(iter(panels.values())))
    low, high = limits or _cube(first)
    figure, axes = _panels3d(len(panels), (low, high), _view(first))
    palette = colours(panels)
    if truth is not None:
        # To the distance that 98 % of the points of the typical cloud stay below.
        distances = [truth.distance(found).quantile(0.98).item() for x in panels.values() if len(found := _finite(x))]
        norm = Normalize(0, max(statistics.median_high(distances), 1e-6) if distances else 1)
        _bar(figure, axes, norm, "distance from the support (data units)")
    for axis, (name, x) in zip(axes, panels.items(), strict=True):
        inside = _inside(x, low, high)
        head(axis, text.figure(name) + _outside(len(x) - len(inside), len(x)), loc="center", y=0.98)
        shown = inside[:most]
        colour: dict[str, Any] = {"color": palette[name]}
        if truth is not None:
            colour = {"c": array(truth.distance(shown)), "cmap": DISTANCE, "norm": norm}
        axis.scatter(*array(shown).T, s=3, depthshade=False, linewidths=0, alpha=0.7, rasterized=True, **colour)
    return figure


def trajectories(
    panels: Mapping[str, Float[Tensor, "_ _ d"]], truth: HasDistance | None = None, most: int = 24
) -> Figure:
    """Reverse trajectories in a cut across the support: a thin line an item from its grey start to a dot at its end.

    Across is the widest direction of the support, up the one in which it is flattest. The limits are those of a panel in the
    middle, so that one that diverges hides no other; titles say how many of the drawn items end outside.

    Args:
        panels: states ``[steps, n, d]`` by the name of the objective.
        truth: if it can be sampled, knows the support, which is drawn as a grey line; else the ends of the first panel are it.
        most: items drawn in a panel.
    """
    need(panels, "panels")
    sampled = getattr(truth, "sample", None)
    ends = _finite(next(iter(panels.values()))[-1])
    support = sampled(2000, torch.Generator().manual_seed(0)) if sampled else ends
    centre = support.mean(0)
    directions = torch.linalg.svd(support - centre, full_matrices=False).Vh[[0, -1]]
    flat = (support - centre) @ directions.T
    drawn = {name: (x[:, :most].float().cpu() - centre) @ directions.T for name, x in panels.items()}
    states = [found for x in drawn.values() if len(found := _finite(x.flatten(0, 1)))]
    each = torch.stack([x.abs().quantile(0.98, dim=0) for x in states] or [torch.ones(2)])
    reach = 1.1 * each.median(0).values
    figure, axes = side_by_side(len(panels), min(3, len(panels)), 3.6, 3.0, sharex=True, sharey=True)
    palette = colours(panels)
    for axis, (name, x) in zip(axes, drawn.items(), strict=True):
        axis.plot(flat[:, 0].aminmax(), (0, 0), color="#bbbbbb", linewidth=5, solid_capstyle="butt", zorder=1)
        for path in array(x).swapaxes(0, 1):
            axis.plot(*path.T, color=palette[name], linewidth=0.9, alpha=0.6, zorder=2)
        axis.scatter(*array(x[0]).T, s=8, color="#888888", linewidths=0, zorder=3)
        axis.scatter(*array(x[-1]).T, s=18, color=palette[name], linewidths=0.5, edgecolors="white", zorder=4)
        outside = int((~(x[-1].abs() <= reach).all(1)).sum())
        dress(axis, title=text.figure(name) + _outside(outside, x.shape[1]))
    axes[0].set(xlim=(-reach[0], reach[0]), ylim=(-reach[1], reach[1]))
    figure.supxlabel("along the support (data units)", fontsize=10, color=INK)
    figure.supylabel("off the support (data units)", fontsize=10, color=INK)
    return figure


def scatter(x: Float[Tensor, "n d"], reference: Float[Tensor, "m d"] | None = None, most: int = 4000) -> Figure:
    """Samples that are points of the plane or of space, over clean data in grey.

    Raises:
        UserError: points of another dimension.
    """
    if x.shape[1] not in (2, 3):
        raise UserError(f"Cannot draw points of {x.shape[1]} dimensions. Expected 2 or 3.")
    clouds = [("reference", reference, "#bbbbbb")] if reference is not None else []
    clouds.append(("samples", x, COLOURS["robust_adv"]))
    base = _finite(clouds[0][1])
    low, high = _cube(base)
    style: dict[str, Any] = {"s": 5, "alpha": 0.6, "linewidths": 0, "rasterized": True}
    if x.shape[1] == 3:
        figure, (axis,) = _panels3d(1, (low, high), _view(base))
        style["depthshade"] = False
    else:
        figure, (axis,) = frame(5, 4.6)
        dress(axis, "$x_1$", "$x_2$")
        axis.set(aspect="equal", xlim=(low, high), ylim=(low, high))
    for name, cloud, colour in clouds:
        points = _inside(cloud, low, high)
        label = name + _outside(len(cloud) - len(points), len(cloud))
        axis.scatter(*array(points[:most]).T, color=colour, label=label, **style)
    figure.legend(loc="outside lower center", ncols=2, fontsize=9, frameon=False, markerscale=2)
    return figure


def score_fields(fields: Mapping[str, tuple[Float[Tensor, "_ 2"], Float[Tensor, "_ 2"]]], title: str = "") -> Figure:
    """Vector fields side by side: arrows of one length along each vector, coloured by its magnitude on a shared scale.

    Args:
        fields: points and vectors by name, the ground truth first. The first one sets the scale.
    """
    need(fields, "fields")
    magnitudes = [array(v.norm(dim=1)) for _, v in fields.values()]
    finite = magnitudes[0][np.isfinite(magnitudes[0]) & (magnitudes[0] > 0)]
    low, high = (np.quantile(finite, [0.02, 0.98]).tolist()) if len(finite) else (0.0, 1.0)
    norm = LogNorm(low, high) if low > 0 and high / low > 20 else Normalize(0, high)
    figure, axes = side_by_side(len(fields), min(4, len(fields)), 2.9, 3.0, 0.9, 0.3, sharex=True, sharey=True)
    for axis, (name, (at, vectors)), size in zip(axes, fields.items(), magnitudes, strict=True):
        unit = array(vectors) / np.maximum(size, 1e-12)[:, None]
        x = array(at)
        span = max(np.ptp(x[:, 0]), np.ptp(x[:, 1]), 1e-6)
        per_unit = math.sqrt(max(len(x), 1)) / span * 1.15  # arrows a little shorter than a cell of a square lattice
        size = np.clip(size, norm.vmin, None)
        arrows = {"angles": "xy", "scale_units": "xy", "scale": per_unit, "pivot": "mid"}
        arrows |= {"units": "xy", "width": 0.13 / per_unit, "headwidth": 3, "headlength": 3.2, "headaxislength": 2.8}
        axis.quiver(x[:, 0], x[:, 1], unit[:, 0], unit[:, 1], size, cmap=DISTANCE, norm=norm, **arrows)
        dress(axis, title=text.figure(name))
        axis.grid(False)
        axis.set_aspect("equal")
    _bar(figure, axes, norm, "magnitude (1 / data units)")
    if title:
        figure.suptitle(title, fontsize=11.5, color=INK)
    return figure


def _outside(n: int, of: int) -> str:
    """What a title says about points that are not drawn."""
    percent = float(f"{100 * n / of:.2g}")
    return f" ({percent:g} % outside)" if n else ""


def _finite(x: Tensor) -> Tensor:
    return x[x.isfinite().all(1)].float().cpu()


def _inside(x: Tensor, low: float, high: float) -> Tensor:
    """The points whose coordinates all lie in a range."""
    points = _finite(x)
    return points[((points >= low) & (points <= high)).all(1)]


def _cube(x: Tensor) -> tuple[float, float]:
    """One range for all axes that holds nearly all of ``x`` with a margin."""
    if not len(x):
        return -1.0, 1.0
    low, high = np.quantile(array(x), [0.0005, 0.9995]).tolist()
    margin = 0.08 * max(high - low, 1e-3)
    return low - margin, high + margin


def _view(x: Tensor) -> tuple[float, float]:
    """Elevation and azimuth (degrees) that look almost along the flattest plane of ``x``: what lies off it shows."""
    if len(x) < 3:
        return 20.0, -60.0
    _, _, directions = np.linalg.svd(array(x - x.mean(0)), full_matrices=False)
    normal = directions[2]
    if math.hypot(normal[0], normal[1]) < 0.1:
        return 8.0, -60.0
    return 12.0, math.degrees(math.atan2(-normal[0], normal[1])) + 14


def _panels3d(n: int, limits: tuple[float, float], view: tuple[float, float]) -> tuple[Figure, list[Any]]:
    columns = balanced(n)
    width = {1: 4.6, 2: 3.8, 3: 3.3}.get(columns, 2.6)
    figure, axes = side_by_side(n, columns, width, width + 0.2, 0.9, subplot_kw={"projection": "3d"})
    for axis in axes:
        axis.set(xlim=limits, ylim=limits, zlim=limits)
        axis.set_box_aspect((1, 1, 1), zoom=1.05)
        axis.view_init(*view)
        axis.set_proj_type("ortho")
        axis.computed_zorder = False  # what is drawn later lies on top
        for edge in (axis.xaxis, axis.yaxis, axis.zaxis):
            edge.set_pane_color((1, 1, 1, 0))
            edge.line.set_color("#aaaaaa")
            edge._axinfo["grid"].update(color="#e6e6e6", linewidth=0.5)
            edge.set_major_locator(matplotlib.ticker.MaxNLocator(3))
        axis.tick_params(labelsize=7, colors="#666666", pad=-3)
    return figure, axes


def _bar(figure: Figure, axes: list[Any], norm: Normalize, label: str) -> None:
    shown = matplotlib.cm.ScalarMappable(norm, DISTANCE)
    bar = figure.colorbar(shown, ax=axes, extend="max", shrink=0.75, aspect=25, pad=0.02)
    bar.set_label(label, fontsize=9, color=INK)
    bar.ax.tick_params(labelsize=8, colors=INK)
    bar.outline.set_visible(False)
