"""Low-dimensional distributions whose truth is known: distance to the support, and density and score where exact.

The noised marginal is that of ``x_t = alpha x_0 + sigma eps``, with one alpha and sigma for all or one per sample. It is
computed in float64 and given in the type of ``x``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import UserError, expect

Level = float | Float[Tensor, ""] | Float[Tensor, "n"]  # alpha or sigma: of all samples, or one per sample

PLANE_AXES = ((0.8, 0.0, 0.6), (-0.36, 0.8, 0.48), (-0.48, -0.6, 0.64))  # two in-plane directions and the normal


@dataclass(frozen=True)
class Toy:
    """A distribution with a known support.

    Args:
        n: how many training points a data set of it has.
    """

    n: int = 10_000

    def __post_init__(self) -> None:
        expect(self.n >= 2, "n of the toy", self.n, "at least 2 points")

    @property
    def true_spread(self) -> float:
        """The exact value of :meth:`spread`."""
        return self.spread(self.sample(200_000, torch.Generator().manual_seed(0)))

    def sample(self, n: int, generator: torch.Generator) -> Float[Tensor, "n d"]:
        """``n`` exact draws (data units)."""
        raise UserError(f"{type(self).__name__} cannot be sampled.")

    def distance(self, x: Float[Tensor, "n d"]) -> Float[Tensor, "n"]:
        """Euclidean distance to the support (data units)."""
        raise UserError(f"{type(self).__name__} has no support.")

    def spread(self, x: Float[Tensor, "n d"]) -> float:
        """Root mean square over directions of the standard deviation (data units)."""
        return x.var(0, correction=0).mean().sqrt().item()


@dataclass(frozen=True)
class Plane(Toy):
    """Uniform on the square patch [-1, 1]^2 of a tilted plane through the origin of 3-D space."""

    @property
    def axes(self) -> Float[Tensor, "3 3"]:
        """Rows: two in-plane directions and the normal, orthonormal."""
        return torch.tensor(PLANE_AXES)

    @property
    def true_spread(self) -> float:
        return 1 / math.sqrt(3)

    def sample(self, n: int, generator: torch.Generator) -> Float[Tensor, "n d"]:
        return (2 * torch.rand(n, 2, generator=generator) - 1) @ self.axes[:2]

    def distance(self, x: Float[Tensor, "n d"]) -> Float[Tensor, "n"]:
        """Distance to the (unbounded) plane: the size of the normal component."""
        return (x @ self.axes[2].to(x)).abs()

    def spread(self, x: Float[Tensor, "n d"]) -> float:
        """Root mean square of the two in-plane standard deviations."""
        return (x @ self.axes[:2].T.to(x)).var(0, correction=0).mean().sqrt().item()

    def log_density(self, x: Float[Tensor, "n d"], alpha: Level, sigma: Level) -> Float[Tensor, "n"]:
        """Log density of the noised marginal: uniform * Gaussian in the plane, Gaussian off it."""
        a, s = _columns(x, alpha, sigma)
        u = x.double() @ self.axes.to(x.device).double().T
        inside = _log_box(u[:, :2], a, s).sum(1, keepdim=True) - 2 * (2 * a).log()
        normal = -0.5 * (u[:, 2:] / s) ** 2 - (s * math.sqrt(2 * math.pi)).log()
        return (inside + normal).squeeze(1).to(x.dtype)

    def score(self, x: Float[Tensor, "n d"], alpha: Level, sigma: Level) -> Float[Tensor, "n d"]:
        """Gradient of :meth:`log_density`."""
        a, s = _columns(x, alpha, sigma)
        axes = self.axes.to(x.device).double()
        u = x.double() @ axes.T
        low, high = (u[:, :2] - a) / s, (u[:, :2] + a) / s
        log_mass = _log_box(u[:, :2], a, s)
        log_phi = lambda z: -0.5 * z**2 - 0.5 * math.log(2 * math.pi)  # noqa: E731
        inside = ((log_phi(high) - log_mass).exp() - (log_phi(low) - log_mass).exp()) / s
        local = torch.cat([inside, -u[:, 2:] / s**2], 1)
        return (local @ axes).to(x.dtype)


def _columns(x: Tensor, *levels: Level) -> tuple[Tensor, ...]:
    """Noise levels as float64 columns that broadcast over the coordinates of ``x``."""
    return tuple(torch.as_tensor(level, dtype=torch.float64, device=x.device).reshape(-1, 1) for level in levels)


def _log_box(u: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """``log[Phi((u + alpha)/sigma) - Phi((u - alpha)/sigma)]``, stable in both tails (symmetric in u)."""
    u = -u.abs()
    high = torch.special.log_ndtr((u + alpha) / sigma)
    low = torch.special.log_ndtr((u - alpha) / sigma)
    return high + torch.log1p(-(low - high).exp())


@dataclass(frozen=True)
class GaussianMixture(Toy):
    """Gaussians of standard deviation ``std`` on a circle in 2-D.

    Args:
        modes: how many.
        radius: of the circle.
        std: of each mode.
        imbalance: weight of the first mode over that of the last, in geometric steps between; 1 is balanced.
    """

    modes: int = 8
    radius: float = 1.0
    std: float = 0.05
    imbalance: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.modes < 1 or self.std <= 0 or self.imbalance <= 0:
            raise UserError(
                f"The mixture has modes={self.modes}, std={self.std}, imbalance={self.imbalance}. Expected all above 0."
            )

    @property
    def centres(self) -> Float[Tensor, "modes 2"]:
        angle = 2 * math.pi * torch.arange(self.modes) / self.modes
        return self.radius * torch.stack([angle.cos(), angle.sin()], 1)

    @property
    def weights(self) -> Float[Tensor, "modes"]:
        """True mass of each mode."""
        position = torch.arange(self.modes) / max(1, self.modes - 1)
        return (-position * math.log(self.imbalance)).softmax(0)

    def sample(self, n: int, generator: torch.Generator) -> Float[Tensor, "n d"]:
        mode = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        return self.centres[mode] + self.std * torch.randn(n, 2, generator=generator)

    def distance(self, x: Float[Tensor, "n d"]) -> Float[Tensor, "n"]:
        """Distance to the nearest centre."""
        return torch.cdist(x, self.centres.to(x)).amin(1)

    def mode_mass(self, x: Float[Tensor, "n d"]) -> Float[Tensor, "modes"]:
        """Share of the samples within 4 std of each centre; what lies farther belongs to no mode."""
        distance, mode = torch.cdist(x, self.centres.to(x)).min(1)
        return torch.bincount(mode[distance <= 4 * self.std], minlength=self.modes) / len(x)

    def log_density(self, x: Float[Tensor, "n d"], alpha: Level, sigma: Level) -> Float[Tensor, "n"]:
        """Log density of the noised marginal, a mixture of Gaussians of variance ``alpha^2 std^2 + sigma^2``."""
        return self._log_joint(x, *_columns(x, alpha, sigma)).logsumexp(1).to(x.dtype)

    def score(self, x: Float[Tensor, "n d"], alpha: Level, sigma: Level) -> Float[Tensor, "n d"]:
        """Gradient of :meth:`log_density`."""
        a, s = _columns(x, alpha, sigma)
        centre = self._log_joint(x, a, s).softmax(1) @ self.centres.to(x.device).double()
        return ((a * centre - x) / (a**2 * self.std**2 + s**2)).to(x.dtype)

    def _log_joint(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """Log of mass times density for each sample and mode."""
        variance = alpha**2 * self.std**2 + sigma**2
        offset = x.double().unsqueeze(1) - alpha.unsqueeze(2) * self.centres.to(x.device).double()
        log_kernel = -offset.square().sum(2) / (2 * variance) - (2 * math.pi * variance).log()
        return self.weights.to(x.device).double().log() + log_kernel


@dataclass(frozen=True)
class _Curve(Toy):
    """A support traced by one or more curves; the distance is exact to 1e-4 by a dense table."""

    def curve(self) -> Float[np.ndarray, "points d"]:
        """Points along the support, 1e-4 apart or closer."""
        raise UserError(f"{type(self).__name__} has no curve.")

    def distance(self, x: Float[Tensor, "n d"]) -> Float[Tensor, "n"]:
        from scipy.spatial import cKDTree

        points = self.curve()
        found, _ = cKDTree(points).query(x.double().numpy()[:, : points.shape[1]])
        return torch.as_tensor(found, dtype=x.dtype)


@dataclass(frozen=True)
class Moons(_Curve):
    """Two interleaving half circles of radius 1, centred on the origin."""

    def sample(self, n: int, generator: torch.Generator) -> Float[Tensor, "n d"]:
        angle = math.pi * torch.rand(n, generator=generator)
        lower = torch.rand(n, generator=generator) < 0.5
        x = torch.where(lower, 1 - angle.cos(), angle.cos()) - 0.5
        y = torch.where(lower, 0.5 - angle.sin(), angle.sin()) - 0.25
        return torch.stack([x, y], 1)

    def curve(self) -> Float[np.ndarray, "points d"]:
        angle = np.linspace(0, math.pi, 40_000)
        upper = np.stack([np.cos(angle) - 0.5, np.sin(angle) - 0.25], 1)
        return np.concatenate([upper, np.stack([0.5 - np.cos(angle), 0.25 - np.sin(angle)], 1)])


@dataclass(frozen=True)
class SwissRoll(_Curve):
    """A rolled-up sheet in 3-D, uniform in roll angle and height, scaled to about [-1, 1]."""

    TURNS = (1.5 * math.pi, 4.5 * math.pi)

    def sample(self, n: int, generator: torch.Generator) -> Float[Tensor, "n d"]:
        low, high = self.TURNS
        angle = low + (high - low) * torch.rand(n, generator=generator)
        height = 2 * torch.rand(n, generator=generator) - 1
        roll = angle / high
        return torch.stack([roll * angle.cos(), roll * angle.sin(), height], 1)

    def curve(self) -> Float[np.ndarray, "points d"]:
        low, high = self.TURNS
        angle = np.linspace(low, high, 100_000)
        return np.stack([angle / high * np.cos(angle), angle / high * np.sin(angle)], 1)

    def distance(self, x: Float[Tensor, "n d"]) -> Float[Tensor, "n"]:
        """Distance to the sheet, which ends at heights -1 and 1."""
        beyond = (x[:, 2].abs() - 1).clamp(min=0)
        return (super().distance(x).square() + beyond.square()).sqrt()


TOYS: dict[str, Any] = {"plane": Plane, "mixture": GaussianMixture, "moons": Moons, "swiss_roll": SwissRoll}
