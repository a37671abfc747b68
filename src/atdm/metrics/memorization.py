"""How close samples come to training images, beside how close held-out images do.

A high similarity to a training image means little by itself: two photographs of one scene have it too. What held-out
images of the same source have is the background, and only what exceeds it was memorized.
Source: Somepalli 2023 (nearest neighbours by cosine similarity of features), Carlini 2023.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import normalize

from ..errors import UserError, expect
from ..spec import build
from .features import Features, FeatureSpace
from .measure import FEATURES


@dataclass(frozen=True)
class Memorization:
    """Nearest training neighbours of samples and of held-out items.

    Args:
        similarity: of each sample to its nearest training item, cosine.
        background: the same of each held-out item.
        nearest: index of each sample's nearest training item.
        threshold: similarity above which a pair counts as near-duplicate: a quantile of the background.
        space: the feature space.
    """

    similarity: Float[Tensor, "n"]
    background: Float[Tensor, "m"]
    nearest: Int[Tensor, "n"]
    threshold: float
    space: str

    @property
    def near_duplicate_share(self) -> float:
        """Share of samples closer to a training item than the threshold."""
        return (self.similarity > self.threshold).double().mean().item()

    @property
    def background_share(self) -> float:
        """Share of held-out items above the threshold: what ``near_duplicate_share`` is without memorization."""
        return (self.background > self.threshold).double().mean().item()

    def pairs(self, k: int = 16) -> Int[Tensor, "pairs 2"]:
        """The closest pairs, at most ``k``: index of the sample, index of the training item; the closest first."""
        order = self.similarity.argsort(descending=True)[:k]
        return torch.stack([order, self.nearest[order]], 1)

    def as_dict(self) -> dict[str, Any]:
        """The numbers, for JSON."""
        return {
            "space": self.space,
            "similarity_mean": self.similarity.double().mean().item(),
            "background_mean": self.background.double().mean().item(),
            "similarity_max": self.similarity.max().item(),
            "background_max": self.background.max().item(),
            "threshold": self.threshold,
            "near_duplicate_share": self.near_duplicate_share,
            "background_share": self.background_share,
            "samples": len(self.similarity),
            "held_out": len(self.background),
        }


def memorization(
    samples: Float[Tensor, "n *item"],
    train: Float[Tensor, "k *train"],
    held_out: Float[Tensor, "m *held"],
    features: str | Features = "pixels",
    quantile: float = 0.99,
    centre: bool = True,
) -> Memorization:
    """Cosine similarity of each sample to its nearest training item, beside that of held-out items.

    Args:
        train: what the model was trained on, as it saw it.
        held_out: items of the same source that it did not see, dirtied alike.
        features: a spec of ``FEATURES`` or a space of your own, with one row for an item; fitted to ``train``.
        quantile: of the background, which gives the threshold. It rests on ``(1 - quantile) m`` items: with 300 held
            out, a near-duplicate share of up to three times the background's can be chance at 0.99.
        centre: take angles about the mean of the training features. Pixels and PCA need it, as all images share a mean;
            published DINOv2 similarities do without.

    Raises:
        UserError: shapes that do not match, too few items, a bad quantile, or a space with several rows for an item.
    """
    if not train.shape[1:] == samples.shape[1:] == held_out.shape[1:]:
        raise UserError(
            f"Samples are {list(samples.shape[1:])}, training items {list(train.shape[1:])} and held-out items "
            f"{list(held_out.shape[1:])}. Expected items of one shape."
        )
    if min(len(samples), len(train), len(held_out)) < 2:
        raise UserError("Expected two or more samples, training items and held-out items.")
    expect(0 < quantile < 1, "The quantile of the background", quantile, "a number between 0 and 1")
    space = (build("feature space", features, FEATURES) if isinstance(features, str) else features).fit(train)
    points = _features(space, train)
    mean = points.mean(0) if centre else torch.zeros_like(points[0])
    points = normalize(points - mean)
    similarity, nearest = _nearest(normalize(_features(space, samples) - mean), points)
    background, _ = _nearest(normalize(_features(space, held_out) - mean), points)
    return Memorization(similarity, background, nearest, background.quantile(quantile).item(), space.name)


def _features(space: FeatureSpace, x: Tensor) -> Tensor:
    features = space.features(x.detach().float()).float()
    if len(features) != len(x):
        raise UserError(f"The feature space '{space.name}' has several rows for an item. Expected one, as in pixels.")
    return features


def _nearest(x: Tensor, points: Tensor, batch: int = 512) -> tuple[Tensor, Tensor]:
    """Similarity and index of the nearest of ``points``; items that are not finite are near to none."""
    best = [(part.nan_to_num() @ points.T).max(1) for part in x.split(batch)]
    return torch.cat([b.values for b in best]).clamp(-1, 1), torch.cat([b.indices for b in best])
