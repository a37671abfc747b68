"""What each number means: which way is better, its unit, and a sentence for tables and reports."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

from ..errors import unknown
from .distances import class_score, frechet, frechet_extrapolated, kernel_distance, neighbours
from .exact import (
    diverged_share,
    mode_mass_error,
    off_support_rms,
    outlier_share,
    score_error,
    sliced_wasserstein,
    spread_ratio,
    wasserstein,
)
from .image import nearest_psnr, never_varying_noise, noise_std


@dataclasses.dataclass(frozen=True)
class Metric:
    """What a number means.

    Args:
        function: what computes it.
        better: ``lower``, ``higher``, or ``one`` where the truth is a ratio of one.
        unit: data units, dB, ...; empty for a plain ratio or share.
        meaning: one sentence for reports and tables.
    """

    function: Callable[..., Any]
    better: Literal["lower", "higher", "one"]
    unit: str
    meaning: str


METRICS: dict[str, Metric] = {
    "diverged_share": Metric(
        diverged_share, "lower", "", "Share of samples that are not finite or lie far outside the range of the data."
    ),
    "off_support_rms": Metric(
        off_support_rms, "lower", "data units", "Root mean square distance of the samples from the true support."
    ),
    "outlier_share": Metric(outlier_share, "lower", "", "Share of samples farther from the support than a threshold."),
    "spread_ratio": Metric(
        spread_ratio, "one", "", "Spread along the support over the true spread: below one, variety was lost."
    ),
    "mode_mass_error": Metric(
        mode_mass_error, "lower", "", "Share of probability mass that sits in the wrong mode (total variation)."
    ),
    "sliced_wasserstein": Metric(
        sliced_wasserstein,
        "lower",
        "data units",
        "Distance to clean data: the 2-Wasserstein distance of 1-D projections, rms over directions.",
    ),
    "wasserstein": Metric(
        wasserstein,
        "lower",
        "data units",
        "Exact 2-Wasserstein distance to clean data: the cost of moving one onto it.",
    ),
    "score_error": Metric(
        score_error, "lower", "", "Relative error of the model's score against the analytic score, mean over t."
    ),
    "noise_std": Metric(
        noise_std,
        "lower",
        "data units",
        "Noise left in a typical sample, by its finest wavelet details; fine content counts too.",
    ),
    "noise_std_reference": Metric(
        noise_std, "lower", "data units", "The same estimate on the clean reference: what content alone contributes."
    ),
    "never_varying_noise": Metric(
        never_varying_noise,
        "lower",
        "data units",
        "Noise on the pixels that never vary in clean data, where it is exact.",
    ),
    "nearest_psnr": Metric(
        nearest_psnr,
        "higher",
        "dB",
        "Closeness of a typical sample to its nearest clean image; very high values are copies.",
    ),
    "frechet": Metric(
        frechet,
        "lower",
        "feature units squared",
        "Distance between Gaussians fitted to features of samples and clean data.",
    ),
    "frechet_extrapolated": Metric(
        frechet_extrapolated,
        "lower",
        "feature units squared",
        "The same distance extrapolated to infinitely many samples: without their finite-sample bias.",
    ),
    "kernel": Metric(
        kernel_distance,
        "lower",
        "",
        "Unbiased kernel distance (MMD) between features of samples and clean data; fit for few samples.",
    ),
    "precision": Metric(neighbours, "higher", "", "Share of samples that lie among clean data, by nearest neighbours."),
    "recall": Metric(
        neighbours, "higher", "", "Share of clean data that lie among the samples, by nearest neighbours."
    ),
    "density": Metric(
        neighbours, "one", "", "How many clean neighbourhoods a sample lies in, relative to what is expected."
    ),
    "coverage": Metric(neighbours, "higher", "", "Share of clean data that have a sample in their neighbourhood."),
    "class_score": Metric(
        class_score, "higher", "", "Sureness and variety of the classes seen in the samples; blind to the clean data."
    ),
}


class Family(NamedTuple):
    """How the numbers of one measure are called in tables: in Inception's features, and in any others."""

    inception: str
    other: str


# Measures taken in a feature space: their names end in that of the space. FID, KID and IS are those of Inception alone.
FAMILIES: dict[str, Family] = {
    "frechet_extrapolated": Family("FID-infinity", "FD-infinity"),
    "frechet": Family("FID", "FD"),
    "kernel": Family("KID", "KD"),
    "precision": Family("precision", "precision"),
    "recall": Family("recall", "recall"),
    "density": Family("density", "density"),
    "coverage": Family("coverage", "coverage"),
    "class_score": Family("IS", "IS"),
}
BARE = ("FID", "FID-infinity", "KID", "IS")


def split_name(name: str) -> tuple[str, str | None]:
    """``frechet_pixels`` is (``frechet``, ``pixels``); a metric without a feature space is (itself, None)."""
    for family in FAMILIES:
        if name.startswith(f"{family}_") and name not in METRICS:
            return family, name.removeprefix(f"{family}_")
    if name.startswith("score_error_t"):
        return "score_error", None
    return name, None


def metric(name: str) -> Metric:
    """The entry of ``METRICS`` for a measured ``name``; ``frechet_SPACE`` says which features were compared.

    Raises:
        UserError: there is no such metric.
    """
    key, space = split_name(name)
    if key not in METRICS:
        raise unknown("metric", name, METRICS)
    found = METRICS[key]
    if space is not None:
        return dataclasses.replace(found, meaning=f"{found.meaning.removesuffix('.')} (feature space: {space}).")
    if key != name:
        at = name.removeprefix("score_error_t")
        return dataclasses.replace(found, meaning=found.meaning.replace("mean over t", f"at t = {at}"))
    return found


def label(name: str) -> str:
    """What tables call a metric: ``FD-EfficientNetLite0``, and ``FID`` in Inception's features only."""
    key, space = split_name(name)
    if space is None:
        return name
    title = FAMILIES[key].inception if space == "Inception" else FAMILIES[key].other
    return title if title in BARE and space == "Inception" else f"{title}-{space}"
