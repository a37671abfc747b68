"""Everything that can be said of samples beside a reference."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Shaped
from torch import Tensor, nn

from ..diffusion.model import Model
from ..errors import UserError
from ..spec import build
from . import cache
from .catalog import METRICS, MetricInputs
from .distances import SPLITS, SUBSET, class_score, frechet_distance, frechet_extrapolated, kernel_distance, moments
from .distances import neighbours as nearest_neighbours
from .exact import HasScore, score_error
from .features import Features, FeatureSpace, PatchFeatures, PcaFeatures, pixels
from .networks import DinoV2, EfficientNetLite, Inception, NetworkFeatures, Timm
from .onnx_network import Onnx
from .results import Score
from .small import Small

FEATURES: dict[str, Any] = {
    "pixels": pixels,
    "pca": PcaFeatures,
    "patches": PatchFeatures,
    "inception": Inception,
    "dinov2": DinoV2,
    "timm": Timm,
    "onnx": Onnx,
    "efficientnet-lite": EfficientNetLite,
    "small": Small,
}

NEIGHBOURS, NEIGHBOURS_DENSITY = 3, 5
FEW = 100  # samples below which pairs and neighbours of a network's features say nothing
SCORE_QUANTILES = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)


def require(features: str) -> list[Features]:
    """The feature spaces of ``pixels+efficientnet-lite``, loaded: call it before anything that takes long.

    Raises:
        UserError: a space is unknown, or its package or weights are missing: says what to fetch and how to give a file.
    """
    spaces = [build("feature space", part, FEATURES) for part in features.split("+")]
    for space in spaces:
        if isinstance(space, NetworkFeatures):
            _ = space.space
    return spaces


def evaluate_samples(
    samples: Shaped[Tensor, "n *dims"],
    reference: Shaped[Tensor, "m *same"],
    truth: object | None = None,
    features: str | Features | Sequence[Features] = "pixels",
    seed: int = 0,
    outlier_threshold: float = 0.25,
) -> dict[str, float]:
    """The values of :func:`measure` by name."""
    scores = measure(samples, reference, truth, features, seed, outlier_threshold)
    return {score.metric: score.value for score in scores}


def measure(
    samples: Shaped[Tensor, "n *dims"],
    reference: Shaped[Tensor, "m *same"],
    truth: object | None = None,
    features: str | Features | Sequence[Features] = "pixels",
    seed: int = 0,
    outlier_threshold: float = 0.25,
    accelerator: Any = None,
) -> list[Score]:
    """Everything that can be said of ``samples`` beside a clean ``reference`` of the same shape of item.

    Samples that are not finite count in ``diverged_share`` and are left out of the rest; if all but one are such,
    nothing else is reported.

    Args:
        samples: vectors ``[n, d]`` or images ``[n, c, h, w]``.
        reference: clean items, of the same shape.
        truth: what is known exactly about the data, such as a toy or a subspace.
        features: specs of ``FEATURES`` such as ``pca:directions=16``, joined by ``+``, or spaces of your own (images
            only). Networks are measured by more than the Frechet distance: see :func:`in_space`.
        seed: of the projections and of thinning.
        outlier_threshold: distance from the support that makes an outlier, in data units.
        accelerator: an ``accelerate.Accelerator`` whose processes all hold the same samples: they share the work of
            feature networks, and all get the scores that one process would get.

    Raises:
        UserError: samples and reference do not match or are too few, or the feature space is unknown.
    """
    _check(samples, reference)
    samples, reference = samples.detach().float().cpu(), reference.detach().float().cpu()
    finite = samples[samples.flatten(1).isfinite().all(1)]
    inputs = MetricInputs(samples, finite, reference, truth, seed, outlier_threshold)
    names = list(METRICS) if len(finite) > 1 else ["diverged_share"]
    found = {name: function(inputs) for name in names if (function := METRICS[name].function) is not None}
    scores = [Score(name, value) for name, value in found.items() if value is not None]
    if inputs.images and len(finite) > 1:
        wanted = require(features) if isinstance(features, str) else features
        spaces = [wanted] if isinstance(wanted, Features) else wanted
        scores += [s for space in spaces for s in in_space(space.fit(reference), finite, reference, accelerator)]
    return scores


def in_space(
    space: FeatureSpace,
    samples: Shaped[Tensor, "n *dims"],
    reference: Shaped[Tensor, "m *same"],
    accelerator: Any = None,
) -> list[Score]:
    """The Frechet distance in a feature space; in that of a network, from 100 samples on, also:

    the distance extrapolated to infinitely many samples, the kernel distance, precision, recall, density and coverage
    (against as many references as there are samples), and the class score where the network knows classes.
    """

    def score(name: str, value: float, settings: str | None = None, **details: Any) -> Score:
        full = f"{name}_{space.name}"
        about = (space.name, space.weights, space.preprocessing if space.weights else None)
        return Score(full, value, *about, settings, details or None)

    if not isinstance(space.fn, nn.Module):
        return [score("frechet", space.distance(samples, reference))]
    clean = cache.reference(space, reference, accelerator)
    found = space.features(samples, accelerator=accelerator)
    if min(len(found), len(clean.features)) < FEW:
        return [score("frechet", frechet_distance(*moments(found), *clean.moments))]
    infinite, at = frechet_extrapolated(found, clean.moments)
    scores = [score("frechet", at[len(found)])]
    scores.append(score("frechet_extrapolated", infinite, f"N from {min(at)} to {max(at)}", at=at))
    kernel = kernel_distance(found, clean.features)
    scores.append(score("kernel", kernel.value, f"subsets of {SUBSET}", std_over_subsets=kernel.std))
    few = min(len(found), len(clean.features))
    near = nearest_neighbours(found[:few], clean.features[:few], NEIGHBOURS, NEIGHBOURS_DENSITY)
    for name, value in near._asdict().items():
        k = NEIGHBOURS if name in ("precision", "recall") else NEIGHBOURS_DENSITY
        scores.append(score(name, value, f"k = {k}, {few} references"))
    if space.classes is not None:
        classes = class_score(space.logits(found))
        scores.append(score("class_score", classes.value, f"{SPLITS} splits", std_over_splits=classes.std))
    return scores


def score_errors(model: Model, truth: object, seed: int = 0) -> list[Score]:
    """Error of a model's score against the analytic one, at quantiles of t and their mean; empty where none is known."""
    if not isinstance(truth, HasScore):
        return []
    process = model.process

    def score_fn(x: Tensor, t: Tensor) -> Tensor:
        return model.score(x.to(model.device), t.to(model.device)).cpu()

    timesteps = [round(q * (process.steps - 1)) for q in SCORE_QUANTILES]
    generator = torch.Generator().manual_seed(seed)
    errors = score_error(score_fn, truth, process, timesteps, generator=generator).tolist()
    mean = Score("score_error", sum(errors) / len(errors), settings=f"mean over t = {timesteps}")
    return [mean, *(Score(f"score_error_t{t}", error) for t, error in zip(timesteps, errors, strict=True))]


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
        raise UserError("The reference holds values that are not finite. Expected numbers.")
