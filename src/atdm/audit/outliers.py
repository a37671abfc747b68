"""Items unlike the rest: images by layout, brightness, contrast, structure and color, vectors by how alone they are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

SIDE = 16  # images are shrunk to this, over which noise averages out
DIRECTIONS = 10
JOINT = 4.0  # robust standard deviations beyond which the distance of an item is called unusual
SINGLE = 6.0  # the same of one quantity
NEIGHBOURS = 10
STEPS = 100  # at most, to the covariance of least determinant: a dozen are usual
FLAT = 0.03  # contrast and color below this are none
ALONE = "noise alone"
EMPTY = 0.02  # content over noise, as powers, below which an image is noise alone


@dataclass(frozen=True)
class OutlierScores:
    """How unusual each item is.

    Args:
        score: at 1 and above an item counts as an outlier.
        why: for each outlier, by index, what is unusual about it.
    """

    score: Float[np.ndarray, "n"]
    why: Mapping[int, str]

    @property
    def worst(self) -> list[int]:
        """The outliers, the most unusual first."""
        return sorted(self.why, key=lambda i: -self.score[i])


def shrink(x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c s t"]:
    """Images of at most 16x16 by averaging: what outliers and duplicates are recognized by."""
    return nn.functional.adaptive_avg_pool2d(x, (min(SIDE, x.shape[2]), min(SIDE, x.shape[3])))


def image_outliers(
    small: Float[Tensor, "n c s t"], noise: Float[np.ndarray, "n"], pooled: float = 1.0
) -> OutlierScores:
    """Outliers among shrunk images.

    The joint distance is Mahalanobis' over the first principal components and the quantities below, with a robust
    covariance (:func:`_robust_distances`).

    Args:
        noise: std of the noise in each shrunk image, which is no contrast.
        pooled: how many pixels became one.
    """
    luma = small.mean(1)
    flat = luma - luma.mean((1, 2), keepdim=True)
    white = torch.from_numpy(noise).float() ** 2
    variance = (flat.square().mean((1, 2)) - white / small.shape[1]).clamp(min=0)
    along = ((flat[:, 1:] * flat[:, :-1]).mean((1, 2)) + (flat[:, :, 1:] * flat[:, :, :-1]).mean((1, 2))) / 2
    smooth = (along / (variance + FLAT**2)).clamp(-0.99, 0.99)
    measured = {
        "brightness": luma.mean((1, 2)),
        "contrast": (variance + FLAT**2).log() / 2,
        "smoothness": smooth.atanh(),
    }
    if small.shape[1] == 3:
        color = ((small - luma[:, None]).square().mean((1, 2, 3)) - white * 2 / 3).clamp(min=0)
        measured["color"] = (color + FLAT**2).log() / 2
    layout = nn.functional.adaptive_avg_pool2d(small, 8).flatten(1).double().numpy()
    values = np.stack([v.double().numpy() for v in measured.values()], 1)
    single = _standard(values)
    every = np.concatenate([_standard(_components(layout)), single], 1)
    if len(every) > 5 * every.shape[1]:
        joint = _standard(np.cbrt(_robust_distances(every))[:, None])[:, 0]  # cube roots of chi^2 are near normal
    else:
        joint = np.zeros(len(every))
    power = along.clamp(min=0).double().numpy() / (noise**2 * pooled).clip(1e-12)
    empty = (power < EMPTY) & (noise > 0)
    score = np.maximum(np.maximum(joint / JOINT, np.abs(single).max(1) / SINGLE), np.where(empty, 2 - power / EMPTY, 0))
    names = list(measured)
    why = {}
    for i in np.flatnonzero(score >= 1):
        most = int(np.abs(single[i]).argmax())
        extreme = abs(single[i, most]) >= SINGLE
        side = "low" if single[i, most] < 0 else "high"
        why[int(i)] = ALONE if empty[i] else f"{side} {names[most]}" if extreme else "unusual layout"
    return OutlierScores(score, why)


def vector_outliers(x: Float[Tensor, "n d"]) -> OutlierScores:
    """Vectors far from their neighbours: distance to the tenth, against its median over all, whatever shape the data have."""
    from sklearn.neighbors import NearestNeighbors

    points = x.double().numpy()
    k = min(NEIGHBOURS, len(points) - 1)
    distance = NearestNeighbors(n_neighbors=k).fit(points).kneighbors()[0][:, -1]
    scale = np.median(distance[distance > 0]) if (distance > 0).any() else 1.0
    z = _standard(np.log(distance + 1e-3 * scale)[:, None])[:, 0]
    score = z / JOINT
    return OutlierScores(score, {int(i): "far from others" for i in np.flatnonzero(score >= 1)})


def _components(x: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n k"]:
    """Principal components and the log of what they leave, rows far out counting no more than typical ones."""
    centered = x - np.median(x, 0)
    length = np.linalg.norm(centered, axis=1)
    weighted = centered * np.minimum(1, np.median(length) / length.clip(1e-9))[:, None]
    _, basis = np.linalg.eigh(weighted.T @ weighted)
    scores = centered @ basis[:, -DIRECTIONS:]
    left = np.sqrt(np.maximum((centered**2).sum(1) - (scores**2).sum(1), 0) / x.shape[1])
    return np.column_stack([scores, np.log(left + 0.01)])


def _robust_distances(x: Float[np.ndarray, "n k"]) -> Float[np.ndarray, "n"]:
    """Squared Mahalanobis distances with the minimum covariance determinant (Rousseeuw & Van Driessen 1999).

    As there, all rows within the 97.5 % quantile of the distances from three quarters of them count in the end.
    """
    from scipy.stats import chi2

    distance = _mahalanobis(x, x[_least_determinant(x)])
    distance *= chi2.median(x.shape[1]) / np.median(distance)
    return _mahalanobis(x, x[distance < chi2.ppf(0.975, x.shape[1])])


def _least_determinant(x: Float[np.ndarray, "n k"]) -> Int[np.ndarray, "m"]:
    """Three quarters of the rows, chosen without chance such that the determinant of their covariance is small.

    The start is that of spatial signs (Visuri 2000; one of DetMCD's, Hubert 2012): directions from rows of length one, and
    robust stds along them. Steps to the three quarters of least distance follow until these stay.
    """
    z = _standard(x)
    unit = z / np.linalg.norm(z, axis=1, keepdims=True).clip(1e-12)
    distance = (_standard(z @ np.linalg.eigh(unit.T @ unit)[1]) ** 2).sum(1)
    kept, chosen = int(0.75 * len(x)), np.zeros(0, int)
    for _ in range(STEPS):
        before, chosen = chosen, np.sort(np.argpartition(distance, kept)[:kept])
        if np.array_equal(before, chosen):
            break
        distance = _mahalanobis(x, x[chosen])
    return chosen


def _mahalanobis(x: Float[np.ndarray, "n k"], of: Float[np.ndarray, "m k"]) -> Float[np.ndarray, "n"]:
    """Squared distances from the mean of some rows, over their covariance."""
    centered = x - of.mean(0)
    return ((centered @ np.linalg.pinv(np.cov(of.T), hermitian=True)) * centered).sum(1)


def _standard(values: Float[np.ndarray, "n k"]) -> Float[np.ndarray, "n k"]:
    """Robust standard deviations from the median."""
    centered = values - np.median(values, 0)
    return centered / (1.4826 * np.median(np.abs(centered), 0)).clip(1e-6)
