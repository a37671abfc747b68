"""Which share of a set is noisy, and how much: a mixture over the levels of its images.

The level of an image is ``s = sqrt(t^2 + sigma^2)``, t what its content holds in the directions measured and sigma its
noise, times an estimation error of known size. Clean images have sigma = 0. Over the set ``log t`` has one hump (a
two-piece normal, John 1982), the same for clean and noisy images; ``log sigma`` of the noisy ones is normal, often of
width 0 since one process made them all noisy alike. Expectation maximization, on a grid of log levels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

STEP = 0.05  # of the grid, in log units
LOW, HIGH = np.log(0.003), np.log(2.0)
SEEN = 0.035  # smallest noise std that is called noise: texture and the levels of JPEG and blur come up to it
ROUNDING = 1 / 255  # levels below the step of 8 bits are all alike
COARSE = (0.1, 0.45)  # widths of log sigma
FINE = (0.0, 0.1, 0.2, 0.45)
SPARED = 20.0  # log likelihood that a unit of width must earn: alike is the simpler story
NARROWEST, WIDEST = 0.15, 1.0  # sides of the hump of content
SPREAD = 0.7  # of the log of the usual level of clean sets, over sets
STRENGTH = 0.05  # of what is usual, in images per image of the set
BACKGROUND = 0.01  # share of images that follow no law
ROUNDS = 40

GRID = np.arange(LOW, HIGH, STEP)
SIGMAS = np.exp(GRID[np.log(SEEN) <= GRID])


@dataclass(frozen=True)
class Noise:
    """What the levels of a set say about its noise.

    Args:
        share: of images that are noisy.
        std: of the noise among them (median); None where no image is noisy.
        width: std of the log of the noise std among them; 0 where all are noisy alike.
        content: the level of a typical clean image of the set: noise much below it cannot be measured.
        gain: log likelihood per image over that of a clean set.
        chance: how likely an image of each level of the grid is noisy.
        sigma: the noise std of an image of each level of the grid, were it noisy.
        unit: data units of a level of 1 on the grid.
    """

    share: float
    std: float | None
    width: float
    content: float
    gain: float
    chance: Float[np.ndarray, "levels"]
    sigma: Float[np.ndarray, "levels"]
    unit: float = 1.0

    def stds(self, levels: Float[np.ndarray, "n"]) -> Float[np.ndarray, "n"]:
        """The noise std of images of these levels; 0 where they are more likely clean."""
        logs = _logs(levels / self.unit)
        each = np.exp(np.interp(logs, GRID, np.log(self.sigma))) * self.unit
        return np.where(self.chance[_grid_indices(logs)] > 0.5, each, 0.0)

    def over(self, share: float) -> Noise:
        """The same for a larger set, of which the images looked at were this share and the others are not noisy."""
        return replace(self, share=self.share * share)

    def none(self) -> Noise:
        """The same for a set in which what looks like noise is none."""
        return replace(self, share=0.0, std=None, width=0.0, chance=np.zeros(len(GRID)))

    def scaled(self, unit: float) -> Noise:
        """The same for data of which the levels were divided by ``unit``."""
        std = None if self.std is None else self.std * unit
        return replace(self, std=std, content=self.content * unit, unit=self.unit * unit)


class _Model(NamedTuple):
    score: float  # log likelihood and log priors
    sigma: int  # which of SIGMAS
    width: float
    share: float
    content: Float[np.ndarray, "contents"]


def fit(levels: Float[np.ndarray, "n"], tau: float, usual: float) -> Noise:
    """The mixture for the ``levels`` of a set.

    Args:
        tau: std of the log of the level of an image of pure noise.
        usual: the level that clean sets of this kind have; decides where the levels alone cannot.
    """
    nearest = _grid_indices(_logs(levels))
    error = round(max(float(np.hypot(tau, 0.015)), 0.6 * STEP), 3)
    counts = np.bincount(nearest, minlength=len(GRID)).astype(float)
    em = _Em(counts, error, float(np.log(usual)))
    null = em.run([(0, 0.0)], noisy=False)
    coarse = em.run([(index, width) for width in COARSE for index in range(0, len(SIGMAS), 2)])
    near = range(max(0, coarse.sigma - 2), min(len(SIGMAS), coarse.sigma + 3))
    best = em.run([(index, width) for width in FINE for index in near])
    gain = (best.score - null.score) / len(levels)
    if best.score - null.score < 2 * np.log(len(levels)):
        return Noise(0.0, None, 0.0, _median(GRID, null.content), gain, np.zeros(len(GRID)), np.exp(GRID))
    kernels, clean = _kernels(error)
    given = kernels @ best.content  # of levels, for each sigma
    noisy = best.share * _weights(best.sigma, best.width) @ given
    posterior = noisy / (noisy + (1 - best.share) * _background(clean @ best.content)).clip(1e-300)
    each = _weights(best.sigma, max(best.width, 0.1))[:, None] * given
    log_sigma = (np.log(SIGMAS) @ each) / each.sum(0).clip(1e-300)
    noisy = counts * posterior
    order = np.argsort(log_sigma)
    return Noise(
        share=float(noisy.sum() / len(levels)),
        std=_median(log_sigma[order], noisy[order]),
        width=best.width,
        content=_median(GRID, best.content),
        gain=gain,
        chance=posterior,
        sigma=np.exp(log_sigma),
    )


def _logs(levels: Float[np.ndarray, "n"]) -> Float[np.ndarray, "n"]:
    return np.log(np.hypot(levels, ROUNDING))


def _grid_indices(logs: Float[np.ndarray, "n"]) -> Int[np.ndarray, "n"]:
    """The nearest points of the grid."""
    return np.clip(np.round((logs - LOW) / STEP), 0, len(GRID) - 1).astype(int)


def _median(logs: Float[np.ndarray, "m"], weights: Float[np.ndarray, "m"]) -> float:
    """Of the exponential, between the values of a histogram."""
    total = np.cumsum(weights) - weights / 2
    return float(np.exp(np.interp(weights.sum() / 2, total, logs)))


@cache
def _kernels(error: float) -> tuple[Float[np.ndarray, "sigmas levels contents"], Float[np.ndarray, "levels contents"]]:
    """Probability of each level given each content: for each sigma, and for a clean image."""

    def one(sigma: float) -> Float[np.ndarray, "levels contents"]:
        center = 0.5 * np.log(np.exp(2 * GRID) + sigma**2)
        density = np.exp(-0.5 * ((GRID[:, None] - center) / error) ** 2)
        return density / density.sum(0).clip(1e-300)

    return np.stack([one(sigma) for sigma in SIGMAS]), one(0.0)


def _weights(index: int, width: float) -> Float[np.ndarray, "sigmas"]:
    if width == 0:
        return np.eye(len(SIGMAS))[index]
    weights = np.exp(-0.5 * (np.log(SIGMAS / SIGMAS[index]) / width) ** 2)
    return weights / weights.sum()


def _background(density: Float[np.ndarray, "*laws levels"]) -> Float[np.ndarray, "*laws levels"]:
    return (1 - BACKGROUND) * density + BACKGROUND / len(GRID)


class _Em:
    """Fits by expectation maximization to a histogram of log levels, of which only those that occur are looked at."""

    def __init__(self, counts: Float[np.ndarray, "levels"], error: float, usual: float) -> None:
        (there,) = np.nonzero(counts)
        kernels, clean = _kernels(error)
        self.counts, self.kernels, self.clean = counts[there], kernels[:, there], clean[there]
        self.usual = usual

    def run(self, laws: Sequence[tuple[int, float]], noisy: bool = True) -> _Model:
        """The best of some laws of sigma (which of SIGMAS, and width), each with its own share and hump of content."""
        kernel = np.tensordot(np.stack([_weights(*law) for law in laws]), self.kernels, 1)
        share = np.full((len(laws), 1), 0.5 if noisy else 0.0)
        start = np.full((len(laws), 1), self.usual), np.full((len(laws), 1), 0.5), np.full((len(laws), 1), 0.5)
        content, prior = _two_piece(*start), np.zeros(len(laws))
        for _ in range(ROUNDS):
            noisy = (kernel @ content[:, :, None])[:, :, 0]
            ratio = self.counts / ((1 - share) * _background(content @ self.clean.T) + share * noisy).clip(1e-300)
            from_clean = (1 - share) * (1 - BACKGROUND) * (ratio @ self.clean)
            found = content * (from_clean + share * (ratio[:, None] @ kernel)[:, 0])
            share = share * (noisy * ratio).sum(1, keepdims=True) / self.counts.sum()
            content, prior = self._hump(found)
        noisy = (kernel @ content[:, :, None])[:, :, 0]
        mixed = (1 - share) * _background(content @ self.clean.T) + share * noisy
        score = np.log(mixed.clip(1e-300)) @ self.counts + prior - SPARED * np.array([width for _, width in laws])
        best = int(score.argmax())
        return _Model(float(score[best]), *laws[best], float(share[best, 0]), content[best])

    def _hump(
        self, weights: Float[np.ndarray, "laws contents"]
    ) -> tuple[Float[np.ndarray, "laws contents"], Float[np.ndarray, "laws"]]:
        """The likeliest two-piece normal for contents of these weights (John 1982), and its log prior."""
        total = weights.sum(1, keepdims=True).clip(1e-12)
        left, right = _squares(weights), _squares(weights[:, ::-1])[:, ::-1]
        both = np.cbrt(left) + np.cbrt(right)
        lower = np.sqrt(np.cbrt(left) ** 2 * both / total).clip(NARROWEST, WIDEST)
        upper = np.sqrt(np.cbrt(right) ** 2 * both / total).clip(NARROWEST, WIDEST)
        prior = -0.5 * STRENGTH * self.counts.sum() * ((GRID - self.usual) / SPREAD) ** 2
        score = -total * np.log(lower + upper) - 0.5 * (left / lower**2 + right / upper**2) + prior
        best = score.argmax(1)[:, None]
        sides = (np.take_along_axis(side, best, 1) for side in (lower, upper))
        return _two_piece(GRID[best], *sides), prior[best[:, 0]]


def _squares(weights: Float[np.ndarray, "laws m"]) -> Float[np.ndarray, "laws m"]:
    """For each point of the grid the weighted squared distances of all that is below it."""
    at = np.arange(weights.shape[1]) * STEP
    zero, one, two = (np.cumsum(weights * at**k, axis=1) for k in range(3))
    return (at**2 * zero - 2 * at * one + two).clip(min=0)


def _two_piece(
    mode: Float[np.ndarray, "laws 1"], lower: Float[np.ndarray, "laws 1"], upper: Float[np.ndarray, "laws 1"]
) -> Float[np.ndarray, "laws contents"]:
    density = np.exp(-0.5 * ((GRID - mode) / np.where(mode > GRID, lower, upper)) ** 2)
    return density / density.sum(1, keepdims=True)
