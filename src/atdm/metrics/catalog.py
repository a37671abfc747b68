"""What each number means: which way is better, its unit, and a sentence for tables and reports."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from ..errors import unknown
from . import exact, image


@dataclasses.dataclass(frozen=True)
class MetricInputs:
    """What a metric is computed from.

    Args:
        drawn: all samples.
        samples: those that are finite.
        reference: clean items, of the same shape.
        truth: what is known exactly about the data, or None.
        seed: of what is drawn at random.
        outlier_threshold: distance from the support that makes an outlier, in data units.
    """

    drawn: Tensor
    samples: Tensor
    reference: Tensor
    truth: object | None
    seed: int
    outlier_threshold: float

    @property
    def images(self) -> bool:
        """Whether the items are images, and not vectors."""
        return self.samples.dim() == 4

    def generator(self) -> torch.Generator:
        """A fresh source of randomness, the same for every metric."""
        return torch.Generator().manual_seed(self.seed)


@dataclasses.dataclass(frozen=True)
class Metric:
    """What a number means.

    Args:
        function: what computes it, or says by None that it does not apply; None for what is measured in feature spaces
            (:func:`~atdm.metrics.measure.in_space`) or on the model itself.
        better: ``lower``, ``higher``, ``one`` where the truth is a ratio of one, or ``none`` of what says nothing on the samples.
        unit: data units, dB, ...; empty for a plain ratio or share.
        meaning: one sentence for reports and tables.
    """

    function: Callable[[MetricInputs], float | None] | None
    better: Literal["lower", "higher", "one", "none"]
    unit: str
    meaning: str


def _diverged(s: MetricInputs) -> float:
    return exact.diverged_share(s.drawn, 10 * s.reference.abs().max().item())


def _off_support(s: MetricInputs) -> float | None:
    return exact.off_support_rms(s.samples, s.truth) if isinstance(s.truth, exact.HasSupport) else None


def _outliers(s: MetricInputs) -> float | None:
    known = isinstance(s.truth, exact.HasSupport)
    return exact.outlier_share(s.samples, s.truth, s.outlier_threshold) if known else None  # type: ignore[arg-type]


def _spread(s: MetricInputs) -> float | None:
    return exact.spread_ratio(s.samples, s.truth, s.reference) if isinstance(s.truth, exact.HasSpread) else None


def _modes(s: MetricInputs) -> float | None:
    return exact.mode_mass_error(s.samples, s.truth) if isinstance(s.truth, exact.HasModes) else None


def _noise(x: Tensor) -> float | None:
    return image.noise_std(x) if x.dim() == 4 and min(x.shape[2:]) >= 8 else None


def _never_varying(s: MetricInputs) -> float | None:
    known = s.images and bool(image.never_varying(s.reference).any())
    return image.never_varying_noise(s.samples, s.reference) if known else None


METRICS: dict[str, Metric] = {
    "diverged_share": Metric(
        _diverged, "lower", "", "Share of samples that are not finite or lie far outside the range of the data."
    ),
    "off_support_rms": Metric(
        _off_support, "lower", "data units", "Root mean square distance of the samples from the true support."
    ),
    "outlier_share": Metric(_outliers, "lower", "", "Share of samples farther from the support than a threshold."),
    "spread_ratio": Metric(
        _spread, "one", "", "Spread along the support over the true spread: below one, variety was lost."
    ),
    "mode_mass_error": Metric(
        _modes, "lower", "", "Share of probability mass that sits in the wrong mode (total variation)."
    ),
    "sliced_wasserstein": Metric(
        lambda s: exact.sliced_wasserstein(s.samples, s.reference, generator=s.generator()),
        "lower",
        "data units",
        "Distance to the reference: the 2-Wasserstein distance of 1-D projections, rms over directions.",
    ),
    "wasserstein": Metric(
        lambda s: None if s.images else exact.wasserstein(s.samples, s.reference, generator=s.generator()),
        "lower",
        "data units",
        "Exact 2-Wasserstein distance to the reference: the cost of moving one onto it.",
    ),
    "score_error": Metric(
        None, "lower", "", "Relative error of the model's score against the analytic score, mean over t."
    ),
    "noise_std": Metric(
        lambda s: _noise(s.samples),
        "lower",
        "data units",
        "Noise left in a typical sample, by its finest wavelet details; fine content counts too.",
    ),
    "noise_std_reference": Metric(
        lambda s: _noise(s.reference),
        "none",
        "data units",
        "The same estimate on the reference: what its content and its own noise contribute.",
    ),
    "never_varying_noise": Metric(
        _never_varying,
        "lower",
        "data units",
        "Noise on the pixels that never vary in the reference, where it is exact.",
    ),
    "nearest_psnr": Metric(
        lambda s: image.nearest_psnr(s.samples, s.reference).median().item() if s.images else None,
        "higher",
        "dB",
        "Closeness of a typical sample to its nearest image of the reference; very high values are copies.",
    ),
    "frechet": Metric(
        None,
        "lower",
        "feature units squared",
        "Distance between Gaussians fitted to features of samples and reference.",
    ),
    "frechet_extrapolated": Metric(
        None,
        "lower",
        "feature units squared",
        "The same distance extrapolated to infinitely many samples: without their finite-sample bias.",
    ),
    "kernel": Metric(
        None,
        "lower",
        "",
        "Unbiased kernel distance (MMD) between features of samples and reference; fit for few samples.",
    ),
    "precision": Metric(None, "higher", "", "Share of samples that lie among the reference, by nearest neighbours."),
    "recall": Metric(None, "higher", "", "Share of the reference that lies among the samples, by nearest neighbours."),
    "density": Metric(
        None, "one", "", "How many neighbourhoods of the reference a sample lies in, relative to what is expected."
    ),
    "coverage": Metric(None, "higher", "", "Share of the reference that has a sample in its neighbourhood."),
    "class_score": Metric(
        None, "higher", "", "Sureness and variety of the classes seen in the samples; blind to the reference."
    ),
}


# Measures of samples alone, or against a truth that is known exactly.
WITHOUT_REFERENCE = (
    "noise_std",
    "class_score",
    "score_error",
    "off_support_rms",
    "outlier_share",
    "mode_mass_error",
    "diverged_share",
)


# Measures taken in a feature space: their names end in that of the space. What tables call them; longer names before shorter ones.
FAMILIES = {
    "frechet_extrapolated": "FD-infinity",
    "frechet": "FD",
    "kernel": "KD",
    "precision": "precision",
    "recall": "recall",
    "density": "density",
    "coverage": "coverage",
    "class_score": "IS",
}
# What they are called in Inception's features, and nowhere else.
INCEPTION = {"FD-infinity": "FID-infinity", "FD": "FID", "KD": "KID", "IS": "IS"}


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
    title = FAMILIES[key]
    return INCEPTION[title] if space == "Inception" and title in INCEPTION else f"{title}-{space}"
