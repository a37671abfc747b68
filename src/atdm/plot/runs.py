"""What a run logged."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import matplotlib.colors
import matplotlib.ticker
import numpy as np
from jaxtyping import Shaped
from matplotlib.figure import Figure

from .base import COLOURS, INK, MOST_PICTURE, dress, drop, frame, head, legend, need


def run_curves(
    log: Sequence[Mapping[str, Any]], picture: Shaped[np.ndarray, "height width *rgb"] | None = None, caption: str = ""
) -> Figure:
    """What a run logged against its steps: loss terms, their timestep quartiles, gradient norm, and the perturbation.

    Panels whose numbers were not logged are left out (ddpm does not perturb).

    Args:
        log: records with ``step`` and scalars such as ``loss``, ``denoise/q0`` or ``delta_rms``.
        picture: bytes of a picture of samples, to go below.
        caption: of the picture.

    Raises:
        UserError: there is nothing to draw.
    """
    terms = {"loss": ("loss", INK), "denoise": ("denoising", COLOURS["robust_adv"])}
    terms["regularizer"] = ("weight × regularizer", COLOURS["inv_adv"])
    shades = [matplotlib.colors.to_hex(c) for c in matplotlib.colormaps["viridis"](np.linspace(0, 0.85, 4))]
    quarters = dict(zip(["q0, least noisy", "q1", "q2", "q3, noisiest"], shades, strict=True))
    reach = {"radius": ("radius", INK), "delta_rms": ("rms of the perturbation", COLOURS["robust_adv"])}
    plans: list[tuple[str, str, str, dict[str, tuple[str, str]]]] = [
        ("Loss terms", "mean over the batch", "y", terms),
        ("Denoising by timestep", "", "y", _by_quarter("denoise", quarters)),
        ("Regularizer by timestep", "", "y", _by_quarter("regularizer", quarters)),
        ("Gradient norm", "", "y", {"gradient_norm": ("", INK)}),
        ("Size of the perturbation", "noise units", "", reach),
        ("Share of the perturbation at its radius", "", "", {"share_at_radius": ("", INK)}),
        ("Weight $\\lambda_t$", "", "", {"weight": ("", INK)}),
        ("Speed", "samples / s", "", {"samples_per_second": ("", INK)}),
    ]
    kept = [(plan, lines) for plan in plans if (lines := _lines(log, plan[3]))]
    need(kept, "numbers in the log")
    columns = min(3 if len(kept) != 4 else 2, len(kept))
    figure, axes = _framed((math.ceil(len(kept) / columns), columns), picture, caption)
    for axis, ((title, unit, scale, _), lines) in zip(axes, kept, strict=False):
        for label, colour, steps, numbers in lines:
            axis.plot(steps, numbers, color=colour, linewidth=1.2, label=label, marker="" if len(steps) > 1 else "o")
        positive = all(number > 0 for *_, numbers in lines for number in numbers)
        dress(axis, "step", unit, title, scale if positive else "")
        axis.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(5, integer=True))
        axis.xaxis.set_major_formatter(matplotlib.ticker.EngFormatter(sep=""))
        if any(label for label, *_ in lines):
            low, high = axis.get_ylim()  # room for the legend above the lines
            top = high * (high / low) ** 0.4 if axis.get_yscale() == "log" else high + 0.4 * (high - low)
            axis.set_ylim(low, top)
            legend(axis, ncols=2, handlelength=1.2, columnspacing=1, loc="upper right")
    drop(axes, len(kept))
    return figure


def _framed(panels: tuple[int, int], picture: Any, caption: str) -> tuple[Figure, list[Any]]:
    """A figure with so many rows and columns of axes, above the picture if there is one."""
    rows, columns = panels
    width, height = 3.7 * columns, 2.7 * rows
    if picture is None:
        return frame(width, height, rows, columns)
    below = min(width * picture.shape[0] / picture.shape[1], MOST_PICTURE) + 0.3
    figure = Figure(figsize=(width, height + below), layout="constrained", facecolor="white")
    parts: Any = figure.subfigures(2, 1, height_ratios=[height, below])
    axes = list(parts[0].subplots(rows, columns, squeeze=False).flat)
    shown = parts[1].subplots()
    shown.imshow(picture, cmap="gray", vmin=0, vmax=255)
    shown.set_axis_off()
    head(shown, caption)
    return figure, axes


def _by_quarter(term: str, quarters: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    return {f"{term}/q{q}": line for q, line in enumerate(quarters.items())}


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
