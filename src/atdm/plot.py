"""Pictures of what was measured: pure functions from tensors and numbers to matplotlib figures.

No global state: figures are made without pyplot and have no window. Colours belong to names (Okabe & Ito's palette,
safe for colour-blind readers), so that an objective looks the same in every figure of a report.
"""

from __future__ import annotations

import base64
import io
import math
import os
import statistics
import tempfile
from collections.abc import Iterable, Mapping, Sequence, Sized
from pathlib import Path
from typing import Any, Literal

import matplotlib
import matplotlib.cm
import matplotlib.colors
import matplotlib.patches
import matplotlib.ticker
import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, ListedColormap, LogNorm, Normalize
from matplotlib.figure import Figure
from torch import Tensor

from .errors import UserError
from .metrics import METRICS
from .metrics import metric as metric_entry
from .metrics.exact import HasDistance
from .perturb import PublishedRadius, PublishedWeight
from .process import Process
from .sample import grid

COLOURS: dict[str, str] = {
    "ddpm": "#4d4d4d",
    "inv_adv": "#d55e00",
    "inv_rand": "#e69f00",
    "robust_rand": "#56b4e9",
    "robust_adv": "#0072b2",
    "early stop": "#009e73",
    "input_perturbation": "#a6761d",
    "pseudo_huber": "#8b3a8b",
    "ambient": "#117733",
    "ambient_blind": "#6b8e23",
    "sure": "#5b7083",
    "free": "#c2185b",
}
OTHER_COLOURS = ("#cc79a7", "#8c6d31", "#7b6fd0", "#2f7f7f", "#b8a400", "#a03050")
INK, FAINT = "#222222", "#dddddd"
DISTANCE = ListedColormap(matplotlib.colormaps["plasma"](np.linspace(0, 0.86, 256)), "distance")  # its end is too pale
DPI = 140
MOST_PICTURE = 5.0  # inches of height for the samples of a run
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
Log = Literal["", "x", "y", "xy"]


def colours(names: Iterable[str]) -> dict[str, str]:
    """A colour for each name: the fixed one of the objective it is or begins with, or else the next free one."""
    found: dict[str, str] = {}
    free = 0
    for name in dict.fromkeys(names):
        own = [key for key in COLOURS if name == key or name.startswith((f"{key} ", f"{key},", f"{key}:"))]
        if own and COLOURS[own[0]] not in found.values():
            found[name] = COLOURS[own[0]]
        else:
            found[name] = OTHER_COLOURS[free % len(OTHER_COLOURS)]
            free += 1
    return found


# --- frames -----------------------------------------------------------------------------------------------------------
def _figure(width: float, height: float, rows: int = 1, columns: int = 1, **options: Any) -> tuple[Figure, list[Any]]:
    """A figure in inches and its axes, row by row."""
    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    axes = figure.subplots(rows, columns, squeeze=False, **options)
    return figure, list(axes.flat)


def _drop(axes: list[Any], n: int) -> list[Any]:
    """The first ``n`` axes, after the rest were taken out of the figure."""
    for axis in axes[n:]:
        axis.remove()
    return axes[:n]


def _dress(axis: Axes, x_label: str = "", y_label: str = "", title: str = "", log: str = "") -> None:
    axis.spines[["top", "right"]].set_visible(False)
    axis.spines[["left", "bottom"]].set_color("#888888")
    axis.tick_params(colors=INK, labelsize=9, color="#888888")
    axis.set_axisbelow(True)
    axis.grid(color=FAINT, linewidth=0.6)
    axis.set_xlabel(x_label, fontsize=10, color=INK)
    axis.set_ylabel(y_label, fontsize=10, color=INK)
    _head(axis, title)
    for side, edge in (("x", axis.xaxis), ("y", axis.yaxis)):
        if side in log:
            axis.set(**{f"{side}scale": "log"})
            low, high = sorted(axis.get_xlim() if side == "x" else axis.get_ylim())
            subs = (1, 2, 5) if high / low < 300 else (1,)
            edge.set_major_locator(matplotlib.ticker.LogLocator(subs=subs))
            edge.set_major_formatter(matplotlib.ticker.StrMethodFormatter("{x:g}"))
            edge.set_minor_formatter(matplotlib.ticker.NullFormatter())


def _head(axis: Any, title: str, **options: Any) -> None:
    axis.set_title(title, fontsize=10.5, color=INK, loc=options.pop("loc", "left"), **options)


def _legend(axis: Any, **options: Any) -> None:
    axis.legend(fontsize=9, frameon=False, labelcolor=INK, **options)


def _need(panels: Sized, what: str) -> None:
    if not panels:
        raise UserError(f"There are no {what} to draw. Expected at least one.")


def _array(x: Tensor) -> np.ndarray:
    return x.detach().float().cpu().numpy()


# --- the push ---------------------------------------------------------------------------------------------------------
def ray(process: Process, omegas: Sequence[float], floor: float = 8 / 255) -> Figure:
    """How far the push reaches beside the DDPM ray ``sigma_t`` (figure 2c of arXiv 2505.21742), its radius and weight.

    Args:
        omegas: slopes; each gives the largest radius ``r(t) = sigma_t^omega + floor``.
        floor: the smallest radius, in noise units.
    """
    _need(omegas, "slopes")
    t = torch.arange(process.steps)
    sigma, one = process.sigma(t), torch.ones(process.steps)
    weight = PublishedWeight()
    figure, (state, radius, factor) = _figure(11, 3.4, 1, 3)
    state.plot(t, sigma, color=INK, linestyle="--", label="DDPM ray $\\sigma_t$")
    shades = matplotlib.colormaps["viridis"](np.linspace(0, 0.85, len(omegas)))
    for omega, shade in zip(omegas, shades, strict=True):
        r = PublishedRadius(omega, floor, beta="one")(process, t, one)
        style = {"color": shade, "label": f"$\\omega$ = {omega:g}"}
        state.plot(t, sigma * r, **style)
        radius.plot(t, r, **style)
        factor.plot(t, weight(r, r), **style)
    _dress(state, "timestep t", "state units", "Reach of the push, $\\sigma_t\\, r(t)$")
    _dress(radius, "timestep t", "noise units", "Radius $r(t) = \\sigma_t^{\\,\\omega}$ + floor")
    _dress(factor, "timestep t", "", f"Weight $\\lambda_t = {weight.lam:g}\\sqrt{{3}}\\,/\\,r(t)$", log="y")
    _legend(state)
    return figure


# --- points and fields ------------------------------------------------------------------------------------------------
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
    _need(panels, "panels")
    first = _finite(next(iter(panels.values())))
    low, high = limits or _cube(first)
    figure, axes = _panels3d(len(panels), (low, high), _view(first))
    norm, palette = _distance_norm(panels.values(), truth), colours(panels)
    for axis, (name, x) in zip(axes, panels.items(), strict=False):
        inside = _finite(x)
        inside = inside[((inside >= low) & (inside <= high)).all(1)]
        outside = len(x) - len(inside)
        _head(axis, name + _outside(outside, len(x)), loc="center", y=0.98)
        shown = inside[:most]
        colour: dict[str, Any] = {"color": palette[name]}
        if truth is not None:
            colour = {"c": _array(truth.distance(shown)), "cmap": DISTANCE, "norm": norm}
        axis.scatter(*_array(shown).T, s=3, linewidths=0, alpha=0.7, depthshade=False, rasterized=True, **colour)
    if truth is not None:
        _bar(figure, axes, norm, DISTANCE, "distance from the support (data units)")
    return figure


def trajectories3d(
    panels: Mapping[str, Float[Tensor, "_ _ 3"]],
    truth: HasDistance | None = None,
    limits: tuple[float, float] | None = None,
    most: int = 60,
) -> Figure:
    """Reverse trajectories in 3-D: a thin line an item from its grey start to a dot at its end.

    Args:
        panels: states ``[steps, n, 3]`` by the name of the objective.
        truth: colours the ends by their distance from the support, and sets the view if it can be sampled.
        limits: of every axis; default: what holds 99 % of the states of each panel. Lines are cut there.
        most: items drawn in a panel.
    """
    _need(panels, "panels")
    ends = {name: x[-1] for name, x in panels.items()}
    if limits is None:
        states = torch.cat([_finite(x.flatten(0, 1)).abs().flatten()[:1_000_000] for x in panels.values()])
        reach = 1.1 * states.quantile(0.995).item() if len(states) else 1.0
        limits = (-reach, reach)
    low, high = limits
    sampled = getattr(truth, "sample", None)
    support = sampled(2000, torch.Generator().manual_seed(0)) if sampled else _finite(next(iter(ends.values())))
    figure, axes = _panels3d(len(panels), limits, _view(support))
    norm, palette = _distance_norm(ends.values(), truth), colours(panels)
    for axis, (name, x) in zip(axes, panels.items(), strict=False):
        paths = x[:, :most].float().clone()
        paths[~((paths >= low) & (paths <= high)).all(2)] = math.nan
        for path in _array(paths).swapaxes(0, 1):
            axis.plot(*path.T, color=palette[name], linewidth=0.6, alpha=0.45)
        axis.scatter(*_array(paths[0]).T, s=5, color="#999999", linewidths=0, alpha=0.8, depthshade=False)
        end = paths[-1][paths[-1].isfinite().all(1)]
        colour: dict[str, Any] = {"color": palette[name]}
        if truth is not None:
            colour = {"c": _array(truth.distance(end)), "cmap": DISTANCE, "norm": norm}
        axis.scatter(*_array(end).T, s=16, linewidths=0.4, edgecolors="white", depthshade=False, zorder=3, **colour)
        _head(axis, name, loc="center", y=0.98)
    if truth is not None:
        _bar(figure, axes, norm, DISTANCE, "distance of the end from the support (data units)")
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
    if x.shape[1] == 3:
        figure, axes = _panels3d(1, _cube(base), _view(base))
    else:
        figure, axes = _figure(5, 4.6)
        _dress(axes[0], "$x_1$", "$x_2$")
        axes[0].set_aspect("equal")
        axes[0].set(xlim=_cube(base), ylim=_cube(base))
    low, high = _cube(base)
    for name, cloud, colour in clouds:
        points = _finite(cloud)
        points = points[((points >= low) & (points <= high)).all(1)]
        outside = len(cloud) - len(points)
        options = {"depthshade": False} if x.shape[1] == 3 else {}
        label = name + _outside(outside, len(cloud))
        axes[0].scatter(
            *_array(points[:most]).T,
            s=5,
            color=colour,
            alpha=0.6,
            linewidths=0,
            label=label,
            rasterized=True,
            **options,
        )
    figure.legend(loc="outside lower center", ncols=2, fontsize=9, frameon=False, markerscale=2)
    return figure


def score_fields(fields: Mapping[str, tuple[Float[Tensor, "_ 2"], Float[Tensor, "_ 2"]]], title: str = "") -> Figure:
    """Vector fields side by side: arrows of one length along each vector, coloured by its magnitude on a shared scale.

    Args:
        fields: points and vectors by name, the ground truth first. The first one sets the scale.
    """
    _need(fields, "fields")
    magnitudes = [_array(v.norm(dim=1)) for _, v in fields.values()]
    finite = magnitudes[0][np.isfinite(magnitudes[0]) & (magnitudes[0] > 0)]
    low, high = (np.quantile(finite, [0.02, 0.98]).tolist()) if len(finite) else (0.0, 1.0)
    norm = LogNorm(low, high) if low > 0 and high / low > 20 else Normalize(0, high)
    columns = min(4, len(fields))
    rows = math.ceil(len(fields) / columns)
    figure, axes = _figure(2.9 * columns + 0.9, 3.0 * rows + 0.3, rows, columns, sharex=True, sharey=True)
    for axis, (name, (at, vectors)), size in zip(axes, fields.items(), magnitudes, strict=False):
        unit = _array(vectors) / np.maximum(size, 1e-12)[:, None]
        x = _array(at)
        span = max(np.ptp(x[:, 0]), np.ptp(x[:, 1]), 1e-6)
        per_unit = math.sqrt(max(len(x), 1)) / span * 1.15  # arrows a little shorter than a cell of a square lattice
        size = np.clip(size, norm.vmin, None)
        arrows = {"angles": "xy", "scale_units": "xy", "scale": per_unit, "pivot": "mid"}
        arrows |= {"units": "xy", "width": 0.13 / per_unit, "headwidth": 3, "headlength": 3.2, "headaxislength": 2.8}
        axis.quiver(x[:, 0], x[:, 1], unit[:, 0], unit[:, 1], size, cmap=DISTANCE, norm=norm, **arrows)
        _dress(axis, title=name)
        axis.grid(False)
        axis.set_aspect("equal")
    _bar(figure, _drop(axes, len(fields)), norm, DISTANCE, "magnitude (1 / data units)")
    if title:
        figure.suptitle(title, fontsize=11.5, color=INK)
    return figure


def _outside(n: int, of: int) -> str:
    """What a title says about points that are not drawn."""
    percent = float(f"{100 * n / of:.2g}")
    return f" ({percent:g} % outside)" if n else ""


def _finite(x: Tensor) -> Tensor:
    return x[x.isfinite().all(1)].float().cpu()


def _cube(x: Tensor) -> tuple[float, float]:
    """One range for all axes that holds nearly all of ``x`` with a margin."""
    if not len(x):
        return -1.0, 1.0
    low, high = np.quantile(_array(x), [0.0005, 0.9995]).tolist()
    margin = 0.08 * max(high - low, 1e-3)
    return low - margin, high + margin


def _view(x: Tensor) -> tuple[float, float]:
    """Elevation and azimuth (degrees) that look almost along the flattest plane of ``x``: what lies off it shows."""
    if len(x) < 3:
        return 20.0, -60.0
    _, _, directions = np.linalg.svd(_array(x - x.mean(0)), full_matrices=False)
    normal = directions[2]
    if math.hypot(normal[0], normal[1]) < 0.1:
        return 8.0, -60.0
    return 12.0, math.degrees(math.atan2(-normal[0], normal[1])) + 14


def _panels3d(n: int, limits: tuple[float, float], view: tuple[float, float]) -> tuple[Figure, list[Any]]:
    columns = n if n <= 4 else math.ceil(n / math.ceil(n / 4))
    rows = math.ceil(n / columns)
    width = {1: 4.6, 2: 3.8, 3: 3.3}.get(columns, 2.6)
    figure, axes = _figure(width * columns + 0.9, (width + 0.2) * rows, rows, columns, subplot_kw={"projection": "3d"})
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
    return figure, _drop(axes, n)


def _distance_norm(clouds: Iterable[Tensor], truth: HasDistance | None) -> Normalize:
    """From the support to the distance that 98 % of the points of the typical cloud stay below."""
    if truth is None:
        return Normalize(0, 1)
    distances = [truth.distance(_finite(x)).quantile(0.98).item() for x in clouds if len(_finite(x))]
    return Normalize(0, max(statistics.median_high(distances), 1e-6) if distances else 1)


def _bar(figure: Figure, axes: list[Any], norm: Normalize, colormap: Colormap, label: str) -> None:
    shown = matplotlib.cm.ScalarMappable(norm, colormap)
    bar = figure.colorbar(shown, ax=axes, extend="max", shrink=0.75, aspect=25, pad=0.02)
    bar.set_label(label, fontsize=9, color=INK)
    bar.ax.tick_params(labelsize=8, colors=INK)
    bar.outline.set_visible(False)


# --- numbers ----------------------------------------------------------------------------------------------------------
def curves(
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    x_label: str,
    y_label: str,
    log: Log = "",
    title: str = "",
) -> Figure:
    """Lines by name, ``(x, y)`` each.

    Args:
        log: which axes are logarithmic.
    """
    _need(series, "series")
    figure, (axis,) = _figure(6.4, 3.8)
    palette = colours(series)
    for name, (x, y) in series.items():
        marker = "o" if len(x) <= 30 else ""
        axis.plot(x, y, label=name, color=palette[name], marker=marker, markersize=4, linewidth=1.6)
    _dress(axis, x_label, y_label, title, log)
    if len(series) > 1:
        figure.legend(loc="outside right upper", fontsize=9, frameon=False, labelcolor=INK)
    return figure


def scatter_tradeoff(
    points: Sequence[tuple[str, str, float, float]],
    x_label: str,
    y_label: str,
    log: Log = "",
    title: str = "",
) -> Figure:
    """One measure against another: a marker a run, joined within its group in the order given.

    Args:
        points: ``(label, group, x, y)``, such as ``("lam 0.3", "robust_adv", noise, frechet)``.
    """
    _need(points, "points")
    figure, (axis,) = _figure(6.8, 4.4)
    groups = list(dict.fromkeys(group for _, group, _, _ in points))
    palette = colours(groups)
    for i, group in enumerate(groups):
        members = [p for p in points if p[1] == group]
        x, y = [p[2] for p in members], [p[3] for p in members]
        style = {"color": palette[group], "marker": MARKERS[i % len(MARKERS)], "markeredgecolor": "white"}
        axis.plot(x, y, label=group, markersize=8, linewidth=1, alpha=0.9, **style)
    _dress(axis, x_label, y_label, title, log)
    axis.margins(0.1)
    _annotate(axis, points, palette)
    figure.legend(loc="outside right upper", fontsize=9, frameon=False, labelcolor=INK)
    return figure


def _annotate(axis: Axes, points: Sequence[tuple[str, str, float, float]], palette: Mapping[str, str]) -> None:
    """Write the labels beside their markers, leaving out those that would lie on another."""
    axis.autoscale_view()
    taken: list[np.ndarray] = []
    ends = [i for i, p in enumerate(points) if {_group(points, i - 1), _group(points, i + 1)} != {p[1]}]
    for i in dict.fromkeys([*ends, *range(len(points))]):  # the ends of a line say most
        label, group, x, y = points[i]
        at = axis.transData.transform((x, y)) * 72 / axis.figure.dpi  # in points, the unit of type
        size = np.array([4.5 * len(label) + 4, 10])
        if label and all((abs(at - other) > size).any() for other in taken):
            taken.append(at)
            place: dict[str, Any] = {"xytext": (5, 5), "textcoords": "offset points"}
            axis.annotate(label, (x, y), fontsize=7.5, color=palette[group], **place)


def _group(points: Sequence[tuple[str, str, float, float]], i: int) -> str | None:
    return points[i][1] if 0 <= i < len(points) else None


def bars(
    rows: Sequence[Mapping[str, Any]], metric: str, keys: Sequence[str] = ("objective",), title: str = ""
) -> Figure:
    """A metric as bars: the mean over the rows that agree in ``keys`` (the seeds), and its standard deviation.

    Args:
        rows: flat rows, with ``{"metric": metric, "value": ...}`` or ``{metric: value}`` among their keys.
        keys: one key gives a bar each; with two the first one makes clusters and the second one the bars in a cluster.

    Raises:
        UserError: no row has a finite value of the metric.
    """
    if len(keys) not in (1, 2):
        raise UserError(f"Bars have {len(keys)} keys. Expected one or two, such as objective.")
    values: dict[tuple[str, str], list[float]] = {}
    for row in rows:
        value = row.get(metric, row.get("value") if row.get("metric") == metric else None)
        if value is not None and math.isfinite(value):
            values.setdefault((str(row[keys[0]]), str(row[keys[-1]])), []).append(value)
    _need(values, f"values of '{metric}'")
    clusters = list(dict.fromkeys(cluster for cluster, _ in values))
    names = list(dict.fromkeys(name for _, name in values))
    per_cluster = len(names) if len(keys) == 2 else 1
    figure, (axis,) = _figure(min(11, max(4.0, 1.5 + 0.75 * len(clusters) * (per_cluster + 0.4))), 3.6)
    palette, width = colours(names), 0.8 / per_cluster
    for (cluster, name), found in values.items():
        offset = (names.index(name) - (per_cluster - 1) / 2) * width if per_cluster > 1 else 0
        at, mean = clusters.index(cluster) + offset, statistics.fmean(found)
        axis.bar(at, mean, 0.92 * width, color=palette[name], label=name if cluster == clusters[0] else None)
        spread = statistics.stdev(found) if len(found) > 1 else 0.0
        if spread:
            axis.errorbar(at, mean, spread, color=INK, capsize=3, linewidth=1)
        top = max(mean + spread, 0.0)
        note = {"xytext": (0, 3), "textcoords": "offset points", "ha": "center", "fontsize": 8.5, "color": INK}
        axis.annotate(f"{mean:.{3 if per_cluster < 4 else 2}g}", (at, top), **note)
    _dress(axis, "", _metric_label(metric), title)
    axis.grid(axis="x", visible=False)
    axis.set_xticks(range(len(clusters)), clusters)
    if max(map(len, clusters)) * len(clusters) > 9 * figure.get_figwidth():
        axis.tick_params(axis="x", labelrotation=25)
    axis.margins(y=0.12)
    if per_cluster > 1:
        handles = [matplotlib.patches.Patch(color=palette[name], label=name) for name in names]
        figure.legend(handles=handles, loc="outside upper center", ncols=min(6, len(names)), fontsize=9, frameon=False)
    return figure


def _metric_label(name: str) -> str:
    """Name, unit and the good direction of a metric, as far as they are known."""
    if name not in METRICS and not name.startswith("frechet_"):
        return name.replace("_", " ")
    entry = metric_entry(name)
    good = {"lower": "lower is better", "higher": "higher is better", "one": "one is best"}[entry.better]
    unit = f" ({entry.unit})" if entry.unit else ""
    return f"{name.replace('_', ' ')}{unit}\n{good}"


def damage(models: Mapping[str, Sequence[Mapping[str, Any]]], measures: Sequence[str], title: str = "") -> Figure:
    """Measures against the budget of an attack: a panel each, the mean over seeds and its bootstrap interval as a band.

    Args:
        models: rows of :func:`atdm.attack.summarize` by the name of the model.
        measures: which of them to draw.

    Raises:
        UserError: none of the measures was taken.
    """
    kept = [m for m in measures if any(row["measure"] == m for rows in models.values() for row in rows)]
    _need(kept, f"values of {', '.join(measures)}")
    columns = min(3, len(kept))
    rows_of_panels = math.ceil(len(kept) / columns)
    figure, axes = _figure(3.9 * columns, 3.3 * rows_of_panels, rows_of_panels, columns)
    palette = colours(models)
    for axis, measure in zip(axes, kept, strict=False):
        for name, rows in models.items():
            of = sorted((row for row in rows if row["measure"] == measure), key=lambda row: row["budget"])
            x = [row["budget"] for row in of]
            low, high = ([row[end] for row in of] for end in ("low", "high"))
            axis.fill_between(x, low, high, color=palette[name], alpha=0.18, linewidth=0)
            axis.plot(x, [row["mean"] for row in of], color=palette[name], marker="o", markersize=4, label=name)
        _dress(axis, "budget (noise units)", "", _metric_label(measure))
        axis.set_ylim(bottom=min(0, axis.get_ylim()[0]))
    _drop(axes, len(kept))
    if len(models) > 1:
        handles = [matplotlib.patches.Patch(color=palette[name], label=name) for name in models]
        figure.legend(handles=handles, loc="outside lower center", ncols=min(6, len(models)), fontsize=9, frameon=False)
    if title:
        figure.suptitle(title, fontsize=11.5, color=INK)
    return figure


def image_grids(panels: Mapping[str, Float[Tensor, "_ _ _ _"]], columns: int = 8) -> Figure:
    """Grids of images in [-1, 1] side by side, every pixel a square.

    Args:
        columns: of each grid.
    """
    _need(panels, "images")
    grids = {name: grid(x.detach().float().cpu(), columns).permute(1, 2, 0).numpy() for name, x in panels.items()}
    across = min(4, len(grids))
    down = math.ceil(len(grids) / across)
    height, width = (max(picture.shape[side] for picture in grids.values()) for side in (0, 1))
    inches = min(11 / across, max(2.7, width / DPI))
    figure, axes = _figure(across * inches, down * (inches * height / width + 0.35), down, across)
    for axis, (name, picture) in zip(axes, grids.items(), strict=False):
        axis.imshow(picture, interpolation="nearest")
        axis.set_axis_off()
        _head(axis, name)
    _drop(axes, len(grids))
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


# --- a run ------------------------------------------------------------------------------------------------------------
def run_curves(
    log: Sequence[Mapping[str, Any]], picture: Shaped[np.ndarray, "height width *rgb"] | None = None, caption: str = ""
) -> Figure:
    """What a run logged against its steps: loss terms, their timestep quartiles, gradient norm, and the push.

    Panels whose numbers were not logged are left out (ddpm does not push).

    Args:
        log: records with ``step`` and scalars such as ``loss``, ``denoise/q0`` or ``delta_rms``.
        picture: bytes of a picture of samples, to go below.
        caption: of the picture.

    Raises:
        UserError: there is nothing to draw.
    """
    quarters = [f"q{q}" for q in range(4)]
    terms = {"loss": ("loss", INK), "denoise": ("denoising", COLOURS["robust_adv"])}
    terms["regularizer"] = ("weight × regularizer", COLOURS["inv_adv"])
    shades = [matplotlib.colors.to_hex(c) for c in matplotlib.colormaps["viridis"](np.linspace(0, 0.85, 4))]
    names = ["q0, least noisy", "q1", "q2", "q3, noisiest"]
    reach = {"radius": ("radius", INK), "delta_rms": ("rms of the push", COLOURS["robust_adv"])}
    plans: list[tuple[str, str, str, dict[str, tuple[str, str]]]] = [
        ("Loss terms", "mean over the batch", "y", terms),
        ("Denoising by timestep", "", "y", _keyed("denoise", quarters, names, shades)),
        ("Regularizer by timestep", "", "y", _keyed("regularizer", quarters, names, shades)),
        ("Gradient norm", "", "y", {"gradient_norm": ("", INK)}),
        ("Size of the push", "noise units", "", reach),
        ("Share of the push at its radius", "", "", {"share_at_radius": ("", INK)}),
        ("Weight $\\lambda_t$", "", "", {"weight": ("", INK)}),
        ("Speed", "samples / s", "", {"samples_per_second": ("", INK)}),
    ]
    kept = [(plan, lines) for plan in plans if (lines := _lines(log, plan[3]))]
    _need(kept, "numbers in the log")
    columns = min(3 if len(kept) != 4 else 2, len(kept))
    rows = math.ceil(len(kept) / columns)
    width, height = 3.7 * columns, 2.7 * rows
    if picture is None:
        figure, axes = _figure(width, height, rows, columns)
    else:
        below = min(width * picture.shape[0] / picture.shape[1], MOST_PICTURE) + 0.3
        figure = Figure(figsize=(width, height + below), layout="constrained", facecolor="white")
        parts: Any = figure.subfigures(2, 1, height_ratios=[height, below])
        axes = list(parts[0].subplots(rows, columns, squeeze=False).flat)
        shown = parts[1].subplots()
        shown.imshow(picture, cmap="gray", vmin=0, vmax=255)
        shown.set_axis_off()
        _head(shown, caption)
    for axis, ((title, unit, scale, _), lines) in zip(axes, kept, strict=False):
        for label, colour, steps, numbers in lines:
            axis.plot(steps, numbers, color=colour, linewidth=1.2, label=label, marker="" if len(steps) > 1 else "o")
        positive = all(number > 0 for *_, numbers in lines for number in numbers)
        _dress(axis, "step", unit, title, scale if positive else "")
        axis.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(5, integer=True))
        axis.xaxis.set_major_formatter(matplotlib.ticker.EngFormatter(sep=""))
        if any(label for label, *_ in lines):
            low, high = axis.get_ylim()  # room for the legend above the lines
            top = high * (high / low) ** 0.4 if axis.get_yscale() == "log" else high + 0.4 * (high - low)
            axis.set_ylim(low, top)
            _legend(axis, ncols=2, handlelength=1.2, columnspacing=1, loc="upper right")
    _drop(axes, len(kept))
    return figure


def _keyed(term: str, keys: list[str], names: list[str], shades: list[str]) -> dict[str, tuple[str, str]]:
    return {f"{term}/{key}": (name, shade) for key, name, shade in zip(keys, names, shades, strict=True)}


def _lines(
    log: Sequence[Mapping[str, Any]], plan: Mapping[str, tuple[str, str]]
) -> list[tuple[str, str, list[float], list[float]]]:
    """Label, colour, steps and values of each key of ``plan`` that was logged and is finite somewhere."""
    lines = []
    for key, (label, colour) in plan.items():
        found = [(record["step"], record[key]) for record in log if record.get(key) is not None and "step" in record]
        found = [(step, value) for step, value in found if math.isfinite(value)]
        if found:
            lines.append((label, colour, [s for s, _ in found], [v for _, v in found]))
    return lines


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
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
        whole = Path(folder) / path.name
        whole.write_bytes(_bytes(figure, kind))
        os.replace(whole, path)
    return path


def data_uri(figure: Figure, dpi: int = DPI) -> str:
    """The figure as a PNG inside a ``data:`` address, for pages without other files."""
    return "data:image/png;base64," + base64.b64encode(_bytes(figure, "png", dpi)).decode()


def _bytes(figure: Figure, kind: str, dpi: int = DPI) -> bytes:
    buffer = io.BytesIO()
    # The same figure gives the same bytes: no date, and identifiers that are not random.
    with matplotlib.rc_context({"svg.hashsalt": "atdm"}):
        figure.savefig(buffer, format=kind, dpi=dpi, metadata={"Date": None} if kind == "svg" else {"Software": None})
    return buffer.getvalue()
