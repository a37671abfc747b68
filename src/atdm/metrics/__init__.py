"""How good samples are, as numbers that say how they were made.

>>> evaluate_samples(samples, reference, truth=toy)
{'diverged_share': 0.0, 'off_support_rms': 0.05, ...}

Measures against a known truth are in :mod:`.exact`, those of images in :mod:`.image`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from jaxtyping import Shaped
from torch import Tensor

from ..errors import UserError, unknown
from ..spec import build
from .exact import (
    HasDistance,
    HasModes,
    HasResidual,
    HasSpread,
    diverged_share,
    mode_mass_error,
    off_support_rms,
    outlier_share,
    score_error,
    sliced_wasserstein,
    spread_ratio,
    wasserstein,
)
from .image import (
    FEATURES,
    Features,
    FeatureSpace,
    frechet,
    frechet_distance,
    nearest_psnr,
    never_varying,
    never_varying_noise,
    noise_std,
    psnr,
    residual_noise_std,
)

__all__ = [
    "FEATURES",
    "METRICS",
    "FeatureSpace",
    "Features",
    "Metric",
    "Provenance",
    "Result",
    "content_hash",
    "diverged_share",
    "evaluate_samples",
    "frechet",
    "frechet_distance",
    "metric",
    "mode_mass_error",
    "nearest_psnr",
    "never_varying_noise",
    "noise_std",
    "off_support_rms",
    "outlier_share",
    "psnr",
    "residual_noise_std",
    "score_error",
    "sliced_wasserstein",
    "spread_ratio",
    "wasserstein",
]


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
        score_error, "lower", "", "Relative error of the model's score against the analytic score at one timestep."
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
}


def metric(name: str) -> Metric:
    """The entry of ``METRICS`` for a measured ``name``; ``frechet_SPACE`` says which features were compared.

    Raises:
        UserError: there is no such metric.
    """
    key = "frechet" if name.startswith("frechet_") else name
    if key not in METRICS:
        raise unknown("metric", name, METRICS)
    found = METRICS[key]
    if key == name:
        return found
    space = name.removeprefix("frechet_")
    return dataclasses.replace(found, meaning=f"{found.meaning.removesuffix('.')} (feature space: {space}).")


@dataclasses.dataclass(frozen=True)
class Provenance:
    """How the samples behind a number were made and what they were compared with.

    Args:
        checkpoint: hash of the weights, or None for samples of unknown origin.
        weights: ``ema`` or ``raw``.
        sampler: name of the sampler.
        steps: network evaluations of a sample's trajectory as the sampler counts them.
        seed: of the sampling.
        samples: how many.
        reference: spec of the clean reference.
        reference_hash: :func:`content_hash` of it.
        features: feature space of the Frechet distance, or None.
    """

    samples: int
    reference: str
    reference_hash: str
    checkpoint: str | None = None
    weights: Literal["ema", "raw"] | None = None
    sampler: str | None = None
    steps: int | None = None
    seed: int | None = None
    features: str | None = None


@dataclasses.dataclass(frozen=True)
class Result:
    """One number and how it came about: a row of ``summary.json``."""

    metric: str
    value: float
    provenance: Provenance

    def as_dict(self) -> dict[str, Any]:
        """A flat row for JSON, where a value that is not finite becomes null."""
        value = self.value if math.isfinite(self.value) else None
        return {"metric": self.metric, "value": value, **dataclasses.asdict(self.provenance)}


def content_hash(x: Shaped[Tensor, "..."]) -> str:
    """16 hex digits of the SHA-256 of a tensor's type, shape and bytes."""
    digest = hashlib.sha256(f"{x.dtype} {tuple(x.shape)} ".encode())
    digest.update(x.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def evaluate_samples(
    samples: Shaped[Tensor, "n *dims"],
    reference: Shaped[Tensor, "m *same"],
    truth: object | None = None,
    features: str | Features = "pixels",
    seed: int = 0,
    outlier_threshold: float = 0.25,
) -> dict[str, float]:
    """Everything that can be said of ``samples`` beside a clean ``reference`` of the same shape of item.

    Samples that are not finite count in ``diverged_share`` and are left out of the rest; if all but one are such,
    nothing else is reported.

    Args:
        samples: vectors ``[n, d]`` or images ``[n, c, h, w]``.
        reference: clean items, of the same shape.
        truth: what is known exactly about the data, such as a toy or a subspace.
        features: a spec of ``FEATURES`` such as ``pca:directions=16``, or a space of your own (images only).
        seed: of the projections and of thinning.
        outlier_threshold: distance from the support that makes an outlier, in data units.

    Raises:
        UserError: samples and reference do not match or are too few, or the feature space is unknown.
    """
    _check(samples, reference)
    samples, reference = samples.detach().float().cpu(), reference.detach().float().cpu()
    values = {"diverged_share": diverged_share(samples, 10 * reference.abs().max().item())}
    samples = samples[samples.flatten(1).isfinite().all(1)]
    if len(samples) < 2:
        return values
    if isinstance(truth, (HasDistance, HasResidual)):
        values["off_support_rms"] = off_support_rms(samples, truth)
        values["outlier_share"] = outlier_share(samples, truth, outlier_threshold)
    if isinstance(truth, HasSpread):
        values["spread_ratio"] = spread_ratio(samples, truth, reference)
    if isinstance(truth, HasModes):
        values["mode_mass_error"] = mode_mass_error(samples, truth)
    values["sliced_wasserstein"] = sliced_wasserstein(samples, reference, generator=_seeded(seed))
    if samples.dim() == 4:
        return values | _of_images(samples, reference, features)
    return values | {"wasserstein": wasserstein(samples, reference, generator=_seeded(seed))}


def _of_images(samples: Tensor, reference: Tensor, features: str | Features) -> dict[str, float]:
    space = (build("feature space", features, FEATURES) if isinstance(features, str) else features).fit(reference)
    values = {
        f"frechet_{space.name}": space.distance(samples, reference),
        "nearest_psnr": nearest_psnr(samples, reference).median().item(),
    }
    if min(samples.shape[2:]) >= 8:
        values |= {"noise_std": noise_std(samples), "noise_std_reference": noise_std(reference)}
    if never_varying(reference).any():
        values["never_varying_noise"] = never_varying_noise(samples, reference)
    return values


def _check(samples: Tensor, reference: Tensor) -> None:
    if samples.dim() not in (2, 4):
        raise UserError(f"Cannot evaluate samples of shape {list(samples.shape)}. Expected [n, d] or [n, c, h, w].")
    if samples.shape[1:] != reference.shape[1:]:
        raise UserError(
            f"Samples are {list(samples.shape[1:])} and the reference is {list(reference.shape[1:])}. "
            "Expected items of the same shape."
        )
    if min(len(samples), len(reference)) < 2:
        raise UserError(
            f"Got {len(samples)} samples and {len(reference)} reference items. Expected two or more of each."
        )
    if not reference.isfinite().all():
        raise UserError("The reference holds values that are not finite. Expected clean data.")


def _seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
