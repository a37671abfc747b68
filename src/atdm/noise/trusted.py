"""From which noise level on an item is as good as a trusted one, whatever is wrong with it (Ambient Diffusion Omni, Daras 2025).

Noise hides differences. A classifier that knows the noise level tells noisy states ``x + sigma z`` of trusted items from those of
the others, and an item's level is the least one at which it no longer can: its probability of being trusted, averaged over z,
exceeds 0.5 - 0.05 with both classes alike in weight (the paper's rule, with the margin of its code).

The paper trains a U-Net on thousands of trusted images. A few hundred are learned by heart by any network, so the classifier here
is logistic regression on fixed features, fitted at each level with the strongest ridge that predicts held-out items as well as any
does (a coin, where none is better), and each item is judged by a classifier that has not seen it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

MARGIN = 0.05  # of the probability below one half
GRID = 20  # noise levels
LOW, HIGH = 0.02, 20.0  # the first and the last, standard deviations of the data
WINDOW = 3  # levels over which probabilities are averaged, as the paper averages over neighbours
RIDGES = (10.0, 1.0, 1e-1, 1e-2)
ERRORS = 1.0  # standard errors by which a weaker ridge must predict better
LEARNED = 2048  # untrusted items that a classifier learns from at most
DRAWS = 4  # noisy states of each trusted item that it learns from
JUDGED = 2  # of each item that is judged
AT_ONCE = 512


@dataclass(frozen=True)
class Levels:
    """What was found.

    Args:
        stds: the noise level of each item from which on it is as good as a trusted one, data units: 0 where it always is,
            inf where it never is.
        grid: the levels that were looked at.
        seconds: that it took.
    """

    stds: Float[Tensor, "n"]
    grid: Float[Tensor, "levels"]
    seconds: float

    def explain(self) -> str:
        """What was found, as a sentence."""
        always, never = (100 * float(part.double().mean()) for part in (self.stds == 0, self.stds.isinf()))
        between = self.stds[(self.stds > 0) & self.stds.isfinite()]
        half = f", half of the others from {float(between.median()):.2g} on" if len(between) else ""
        return (
            f"Of {len(self.stds):,} items {always:.0f} % are as good as trusted ones at every noise level{half}, "
            f"{never:.0f} % at none ({self.seconds:.0f} s)."
        )


def least_levels(
    items: Any,
    trusted: Float[Tensor, "m *item"],
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Levels:
    """From which noise level on each of ``items`` cannot be distinguished from trusted ones.

    Args:
        items: of length n, and indexed by a tensor of indices: a tensor ``[n, *item]``, or what reads items from disk.
        progress: called with how many levels are done, and of how many.
    """
    begin, generator = time.perf_counter(), torch.Generator().manual_seed(seed)
    sample = torch.randperm(len(items), generator=generator)[: 2 * LEARNED]
    fold, trusted_fold = (torch.randperm(n, generator=generator) % 2 == 0 for n in (len(items), len(trusted)))
    few = items[sample]
    view = _View.of(torch.cat([few, trusted]), generator)
    scale = float(torch.cat([few, trusted]).std()) or 1.0
    grid = torch.logspace(math.log10(LOW * scale), math.log10(HIGH * scale), GRID)
    chances = torch.zeros(GRID, len(items))
    for k, sigma in enumerate(grid.tolist()):
        judges = _Judges.fit(view, sigma, (few, fold[sample]), (trusted, trusted_fold), generator)
        for indices in torch.arange(len(items)).split(AT_ONCE):
            chances[k, indices] = judges.chances(items[indices], fold[indices], generator)
        if progress:
            progress(k + 1, GRID)
    return Levels(first_level(chances, grid), grid, time.perf_counter() - begin)


def first_level(chances: Float[Tensor, "levels n"], grid: Float[Tensor, "levels"]) -> Float[Tensor, "n"]:
    """The paper's ``t_min = inf {t: c(x_t, t) > 0.5 - margin}``, as a noise level.

    Args:
        chances: probability of being trusted, averaged over the noise.

    Returns:
        0 where the first level will do, inf where none will.
    """
    side = WINDOW // 2
    padded = F.pad(chances.T.unsqueeze(1), (side, side), mode="replicate")
    good = F.avg_pool1d(padded, WINDOW, 1).squeeze(1) > 0.5 - MARGIN
    levels = torch.cat([grid.new_zeros(1), grid[1:], grid.new_full((1,), math.inf)])
    return levels[torch.where(good.any(1), good.double().argmax(1), len(grid))]


# --- the classifier ---------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class _View:
    """Fixed features: principal coordinates and their squares; of images, seen at 8x8, and what 4x4 filters respond.

    Args:
        mean, axes, stds: principal ones of the items; so many ``pixels`` were averaged for each number.
        filters: principal directions of 4x4 patches, for images.
        turns, shifts: of random rectified units, for vectors.
    """

    mean: Tensor
    axes: Tensor
    stds: Tensor
    pixels: float
    filters: Tensor | None
    turns: Tensor
    shifts: Tensor

    @classmethod
    def of(cls, x: Tensor, generator: torch.Generator) -> _View:
        flat, filters, most = _coarse(x), None, 64
        mean, axes, variances = _principal(flat)
        if x.dim() == 4:
            sides = (min(4, x.shape[2]), min(4, x.shape[3]))
            patches = F.unfold(x[:256], sides, stride=2).permute(0, 2, 1).flatten(0, 1)
            filters = _principal(patches)[1].T.reshape(-1, x.shape[1], *sides)
        axes, variances = axes[:, :most], variances[:most]
        units = 0 if filters is not None else 2 * most
        turns = torch.randn(axes.shape[1], units, generator=generator) / math.sqrt(axes.shape[1])
        shifts = torch.randn(units, generator=generator)
        pixels = math.prod(x.shape[1:]) / flat.shape[1]
        return cls(mean, axes, variances.clamp_min(0).sqrt(), pixels, filters, turns, shifts)

    def __call__(self, x: Tensor, sigma: float) -> Float[Tensor, "n features"]:
        """Of states with noise of ``sigma``."""
        z = (_coarse(x) - self.mean) @ self.axes / torch.hypot(self.stds, torch.tensor(sigma / math.sqrt(self.pixels)))
        parts = [z, z.square(), F.relu(z @ self.turns + self.shifts)]
        if self.filters is not None:
            found = F.conv2d(x, self.filters, stride=max(1, min(x.shape[2:]) // 16))
            energy = found.square().mean((2, 3)) + 1e-9
            local = found[:, :-1].square().mean(1).flatten(1) + 1e-9
            parts += [
                energy.log(),
                found.abs().mean((2, 3)) / energy.sqrt(),
                found.mean((2, 3)) / energy.sqrt(),
                torch.stack([local.amin(1).log(), local.amax(1).log(), local.log().mean(1)], 1),
            ]
        return torch.cat(parts, 1).double()


def _coarse(x: Tensor) -> Float[Tensor, "n d"]:
    if x.dim() == 4:
        height, width = (min(8, side) for side in x.shape[2:])
        x = F.adaptive_avg_pool2d(x, (height, width))
    return x.flatten(1)


def _principal(x: Float[Tensor, "n d"]) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, principal directions as columns, and variances, from the largest on."""
    mean = x.mean(0)
    variances, axes = torch.linalg.eigh((x - mean).T @ (x - mean) / len(x))
    return mean, axes.flip(1), variances.flip(0)


@dataclass(frozen=True)
class _Judges:
    """Two classifiers at one noise level, each fitted to one half of the items, for the other.

    Args:
        weights: of the features and a constant, by the fold of the items that they are for; zero where held-out items are
            predicted no better than by a coin.
    """

    view: _View
    sigma: float
    mean: Tensor
    std: Tensor
    weights: dict[bool, Tensor]

    @classmethod
    def fit(
        cls,
        view: _View,
        sigma: float,
        bad: tuple[Tensor, Bool[Tensor, "n"]],
        good: tuple[Tensor, Bool[Tensor, "m"]],
        generator: torch.Generator,
    ) -> _Judges:
        """From untrusted and trusted items, each with its fold."""
        worse, folds = bad
        better, better_folds = good[0].repeat(DRAWS, *[1] * (good[0].dim() - 1)), good[1].repeat(DRAWS)
        raw = [view(_noisy(x, sigma, generator), sigma) for x in (worse, better)]
        mean, std = raw[1].mean(0), torch.cat(raw).std(0) + 1e-9
        features = torch.cat([_with_constant((part - mean) / std) for part in raw])
        label = torch.cat([torch.zeros(len(worse)), torch.ones(len(better))]).double()
        halves = torch.cat([folds, better_folds])
        coin = {half: features.new_zeros(features.shape[1]) for half in (True, False)}
        fitted, scores = [coin], [features.new_zeros(len(features))]
        for ridge in RIDGES:
            fitted.append({half: _logistic(features, label, halves != half, ridge, fitted[-1][half]) for half in coin})
            scores.append(torch.where(halves, features @ fitted[-1][True], features @ fitted[-1][False]))
        return cls(view, sigma, mean, std, fitted[_plainest(torch.stack(scores), label, len(better) // DRAWS)])

    def chances(self, x: Tensor, folds: Bool[Tensor, "b"], generator: torch.Generator) -> Float[Tensor, "b"]:
        """The probability that each item is trusted, were there as many of either kind; averaged over the noise."""
        total = torch.zeros(len(x), dtype=torch.float64)
        for _ in range(JUDGED):
            features = _with_constant((self.view(_noisy(x, self.sigma, generator), self.sigma) - self.mean) / self.std)
            total += torch.where(folds, features @ self.weights[True], features @ self.weights[False]).sigmoid()
        return (total / JUDGED).float()


def _plainest(scores: Float[Tensor, "k n"], label: Float[Tensor, "n"], trusted: int) -> int:
    """The first of the classifiers, from a coin on, that the best one does not beat for sure.

    Args:
        scores: of held-out items, of the trusted ones, which come last, for each of their noisy states.
    """
    losses = F.softplus(torch.where(label > 0, -scores, scores))
    worse = losses[:, label == 0]
    better = losses[:, label > 0].unflatten(1, (-1, trusted)).mean(1)
    mean = worse.mean(1) + better.mean(1)
    best = int(mean.argmin())
    error = torch.hypot(*((part - part[best]).std(1) / math.sqrt(part.shape[1]) for part in (worse, better)))
    return int((mean - mean[best] <= ERRORS * error).double().argmax())


def _noisy(x: Tensor, sigma: float, generator: torch.Generator) -> Tensor:
    return x + sigma * torch.randn(x.shape, generator=generator)


def _with_constant(features: Tensor) -> Tensor:
    return torch.cat([features, features.new_ones(len(features), 1)], 1)


def _logistic(
    features: Float[Tensor, "n d"], label: Float[Tensor, "n"], use: Bool[Tensor, "n"], ridge: float, start: Tensor
) -> Float[Tensor, "d"]:
    """Logistic regression with both classes alike in weight, by Newton's method; the constant, last, is free."""
    x, y, theta = features[use], label[use], start
    share = torch.where(y > 0, 0.5 / y.sum(), 0.5 / (1 - y).sum())
    penalty = torch.full_like(theta, ridge)
    penalty[-1] = 1e-9
    for _ in range(12):
        p = (x @ theta).sigmoid()
        gradient = x.T @ (share * (p - y)) + penalty * theta
        curvature = (x * (share * (p * (1 - p)).clamp_min(1e-9))[:, None]).T @ x + torch.diag(penalty)
        step = torch.linalg.solve(curvature, gradient)
        length = float(step.norm())
        theta = theta - step * min(1.0, 5 / max(length, 1e-12))
        if length < 1e-3:
            break
    return theta
