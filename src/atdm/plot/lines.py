"""Numbers: curves, bars, trade-offs, damage, and the radius of the perturbation."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import matplotlib.patches
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .. import text
from ..diffusion.process import Process
from ..errors import UserError
from ..metrics import METRICS
from ..metrics import metric as metric_entry
from ..objective.perturb import PublishedRadius, PublishedWeight
from .base import INK, MARKERS, Log, colours, dress, frame, legend, logarithmic, need, side_by_side, small_panels

Curve = tuple[Sequence[float], Sequence[float]]


def ray(process: Process, omegas: Sequence[float], floor: float = 8 / 255) -> Figure:
    """How far the perturbation reaches beside the DDPM ray ``sigma_t`` (figure 2c of arXiv 2505.21742), its radius and weight.

    Args:
        omegas: slopes; each gives the largest radius ``r(t) + floor``, ``r(t) = sigma_t^omega``, and the least weight.
        floor: the bias of the radius, in noise units.
    """
    need(omegas, "slopes")
    t = torch.arange(process.steps)
    sigma, one = process.sigma(t), torch.ones(process.steps)
    weight = PublishedWeight()
    figure, (state, radius, factor) = frame(11, 3.4, 1, 3)
    state.plot(t, sigma, color=INK, linestyle="--", label="DDPM ray $\\sigma_t$")
    shades = matplotlib.colormaps["viridis"](np.linspace(0, 0.85, len(omegas)))
    for omega, shade in zip(omegas, shades, strict=True):
        reach = PublishedRadius(omega, floor, beta="one").reach(process, t, one)
        style = {"color": shade, "label": f"$\\omega$ = {omega:g}"}
        state.plot(t, sigma * reach.r, **style)
        radius.plot(t, reach.r, **style)
        factor.plot(t, weight(reach, one), **style)
    dress(state, "timestep t", "state units", "Reach of the perturbation, $\\sigma_t\\, r_1(t)$")
    dress(radius, "timestep t", "noise units", "Radius $r_1(t) = \\sigma_t^{\\,\\omega}$ + floor")
    title = f"Weight $\\lambda_t = {weight.lam:g}\\sqrt{{3}}\\,/\\,\\sigma_t^{{\\,\\omega}}$"
    dress(factor, "timestep t", "", title, log="y")
    legend(state)
    return figure


def curves(
    series: Mapping[str, Curve],
    x_label: str,
    y_label: str,
    log: Log = "",
    title: str = "",
) -> Figure:
    """Lines by name, ``(x, y)`` each.

    Args:
        log: which axes are logarithmic.
    """
    need(series, "series")
    figure, (axis,) = frame(6.4, 3.8)
    palette = colours(series)
    for name, (x, y) in series.items():
        marker = "o" if len(x) <= 30 else ""
        axis.plot(x, y, label=text.figure(name), color=palette[name], marker=marker, markersize=4, linewidth=1.6)
    dress(axis, x_label, y_label, title, log)
    if len(series) > 1:
        legend(figure, loc="outside right upper")
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
    figure, axes = small_panels(list(panels), 4.6, 3.4, 2)
    palette = colours(dict.fromkeys(name for lines in panels.values() for name in lines))
    for axis, (title, lines) in zip(axes, panels.items(), strict=True):
        for name, (x, y) in lines.items():
            if bands is not None:
                axis.fill_between(x, *bands[title][name], color=palette[name], alpha=0.15, linewidth=0)
            marker = "o" if len(x) <= 30 else ""
            axis.plot(x, y, color=palette[name], marker=marker, markersize=4, linewidth=1.5, label=text.figure(name))
        logarithmic(axis, log)
        axis.set_xlabel(x_label, fontsize=9, color=INK)
        axis.set_ylabel(y_label, fontsize=9, color=INK)
    handles = {h.get_label(): h for axis in axes for h in axis.get_lines()}
    across = min(2 * min(2, len(panels)), len(handles))  # each panel is as wide as two names
    figure.legend(handles=[*handles.values()], loc="outside lower center", ncols=across, fontsize=9, frameon=False)
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
    need(points, "points")
    figure, (axis,) = frame(6.8, 4.4)
    groups = list(dict.fromkeys(group for _, group, _, _ in points))
    palette = colours(groups)
    for i, group in enumerate(groups):
        members = [p for p in points if p[1] == group]
        x, y = [p[2] for p in members], [p[3] for p in members]
        style = {"color": palette[group], "marker": MARKERS[i % len(MARKERS)], "markeredgecolor": "white"}
        axis.plot(x, y, label=text.figure(group), markersize=8, linewidth=1, alpha=0.9, **style)
    dress(axis, x_label, y_label, title, log)
    axis.margins(0.1)
    _annotate(axis, points, palette)
    legend(figure, loc="outside right upper")
    return figure


def _annotate(axis: Axes, points: Sequence[tuple[str, str, float, float]], palette: Mapping[str, str]) -> None:
    """Write the labels beside their markers, leaving out those that would lie on another."""
    axis.autoscale_view()
    taken: list[np.ndarray] = []
    groups = [None, *(group for _, group, _, _ in points), None]
    ends = [i for i in range(len(points)) if not groups[i] == groups[i + 1] == groups[i + 2]]
    for i in dict.fromkeys([*ends, *range(len(points))]):  # the ends of a line say most
        label, group, x, y = points[i]
        at = axis.transData.transform((x, y)) * 72 / axis.figure.dpi  # in points, the unit of type
        size = np.array([4.5 * len(label) + 4, 10])
        if label and all((abs(at - other) > size).any() for other in taken):
            taken.append(at)
            offset: dict[str, Any] = {"xytext": (5, 5), "textcoords": "offset points"}
            axis.annotate(text.figure(label), (x, y), fontsize=7.5, color=palette[group], **offset)


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
    need(values, f"values of '{metric}'")
    clusters = list(dict.fromkeys(cluster for cluster, _ in values))
    names = list(dict.fromkeys(name for _, name in values))
    per_cluster = len(names) if len(keys) == 2 else 1
    figure, (axis,) = frame(min(11, max(4.0, 1.5 + 0.75 * len(clusters) * (per_cluster + 0.4))), 3.6)
    palette, width = colours(names), 0.8 / per_cluster
    for (cluster, name), found in values.items():
        offset = (names.index(name) - (per_cluster - 1) / 2) * width if per_cluster > 1 else 0
        at, mean = clusters.index(cluster) + offset, statistics.fmean(found)
        axis.bar(at, mean, 0.92 * width, color=palette[name])
        spread = statistics.stdev(found) if len(found) > 1 else 0.0
        if spread:
            axis.errorbar(at, mean, spread, color=INK, capsize=3, linewidth=1)
        top = max(mean + spread, 0.0)
        note = {"xytext": (0, 3), "textcoords": "offset points", "ha": "center", "fontsize": 8.5, "color": INK}
        axis.annotate(f"{mean:.{3 if per_cluster < 4 else 2}g}", (at, top), **note)
    dress(axis, "", _metric_label(metric), title)
    axis.grid(axis="x", visible=False)
    axis.set_xticks(range(len(clusters)), [text.figure(cluster) for cluster in clusters])
    if max(map(len, clusters)) * len(clusters) > 9 * figure.get_figwidth():
        axis.tick_params(axis="x", labelrotation=25)
    axis.margins(y=0.12)
    if per_cluster > 1:
        handles = [matplotlib.patches.Patch(color=palette[name], label=text.figure(name)) for name in names]
        longest = 0.5 + 0.085 * max(map(len, names))  # inches of an entry
        across = max(1, min(6, len(names), int(figure.get_figwidth() / longest)))
        figure.legend(handles=handles, loc="outside upper center", ncols=across, fontsize=9, frameon=False)
    return figure


def _metric_label(name: str) -> str:
    """Name, unit and the good direction of a metric, as far as they are known."""
    if name not in METRICS and not name.startswith("frechet_"):
        return name.replace("_", " ")
    entry = metric_entry(name)
    good = {"lower": "lower is better", "higher": "higher is better", "one": "one is best", "none": ""}[entry.better]
    unit = f" ({entry.unit})" if entry.unit else ""
    return f"{name.replace('_', ' ')}{unit}\n{good}".rstrip()


APART = 1000  # times the damage of another: such lines share no linear axis


def damage(models: Mapping[str, Sequence[Mapping[str, Any]]], measures: Sequence[str], title: str = "") -> Figure:
    """Measures against the budget of an attack: a panel each, the mean over seeds and its bootstrap interval as a band.

    Args:
        models: rows of :func:`atdm.attack.summarize` by the name of the model.
        measures: which of them to draw.

    Raises:
        UserError: none of the measures was taken.
    """
    kept = [m for m in measures if any(row["measure"] == m for rows in models.values() for row in rows)]
    need(kept, f"values of {', '.join(measures)}")
    figure, axes = side_by_side(len(kept), min(3, len(kept)), 3.9, 3.3)
    palette = colours(models)
    for axis, measure in zip(axes, kept, strict=True):
        for name, rows in models.items():
            of = sorted((row for row in rows if row["measure"] == measure), key=lambda row: row["budget"])
            x = [row["budget"] for row in of]
            mean, low, high = ([row[key] for row in of] for key in ("mean", "low", "high"))
            axis.fill_between(x, low, high, color=palette[name], alpha=0.18, linewidth=0)
            axis.plot(x, mean, color=palette[name], marker="o", markersize=4, label=text.figure(name))
        dress(axis, "budget (noise units)", "", _metric_label(measure))
        axis.set_ylim(bottom=min(0, axis.get_ylim()[0]))
        tops = [top for line in axis.get_lines() if (top := float(max(line.get_ydata(), default=0))) > 0]
        if tops and max(tops) > APART * min(tops):
            axis.set_yscale("symlog", linthresh=min(tops))
            axis.set_ylim(bottom=0)
    if len(models) > 1:
        handles = [matplotlib.patches.Patch(color=palette[name], label=text.figure(name)) for name in models]
        figure.legend(handles=handles, loc="outside lower center", ncols=min(6, len(models)), fontsize=9, frameon=False)
    if title:
        figure.suptitle(text.figure(title), fontsize=11.5, color=INK)
    return figure
