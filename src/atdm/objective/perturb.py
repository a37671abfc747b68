"""Perturbations of the noisy state: how far (radius), how much it counts (weight), and in which direction.

All radii are in *noise units*: ``delta`` is added to ``eps``, so the state moves by ``sigma_t delta``.
Source: arXiv 2505.21742 (radius, weight, FGSM with random start; what is known of its constants: docs/method.md);
Goodfellow 2015, Wong 2020, Madry 2018.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from ..diffusion.process import PerItem, Process, States, Timesteps, per_item
from ..errors import expect, require_known


# --- how far -----------------------------------------------------------------------------------------------------------
class Reach(NamedTuple):
    """How far the perturbations of a batch go, and where: all that a weight may look at. Only a :class:`Radius` makes one."""

    process: Process
    t: Timesteps
    beta: PerItem  # as drawn, in (0, 1]
    ray: PerItem  # beta r(t): the radius without its bias, noise units
    r: PerItem  # r_beta(t), the radius of the ball, noise units


class Radius(ABC):
    """The radius of the ball at each timestep, in noise units."""

    @abstractmethod
    def __call__(self, process: Process, t: Timesteps, beta: PerItem) -> PerItem:
        """``r_beta(t)`` for ``beta`` in (0, 1]; ``beta = 1`` gives the largest radius used at t."""

    def ray(self, process: Process, t: Timesteps, beta: PerItem) -> PerItem:
        """``r_beta(t)`` without its bias: of a radius that adds none, the radius itself."""
        return self(process, t, beta)

    def reach(self, process: Process, t: Timesteps, beta: PerItem) -> Reach:
        """Radius and ray together, for a :class:`Weight`."""
        return Reach(process, t, beta, self.ray(process, t, beta), self(process, t, beta))


@dataclass(frozen=True)
class PublishedRadius(Radius):
    """``r_beta(t) = beta r(t) + floor`` with ``r(t) = sigma_t^omega``: large in noise, small in content.

    From secondary sources, see docs/method.md.

    Args:
        omega: slope of the ray.
        floor: the bias, noise units; keeps the perturbation alive near t = 0.
        beta: ``uniform`` draws beta ~ U(beta_min, 1] per sample, ``one`` fixes it to 1.
        beta_min: smallest beta; 0 as published, where the published weight has no finite mean over beta.
    """

    omega: float = 2.0
    floor: float = 8 / 255
    beta: Literal["uniform", "one"] = "uniform"
    beta_min: float = 0.0

    def __post_init__(self) -> None:
        expect(self.omega >= 0, "omega of the radius", self.omega, "a number >= 0")
        expect(self.floor > 0, "floor of the radius", self.floor, "a number > 0, such as 8/255")
        expect(0 <= self.beta_min < 1, "beta_min of the radius", self.beta_min, "a number in [0, 1), such as 0.05")

    def ray(self, process: Process, t: Timesteps, beta: PerItem) -> PerItem:
        """``beta r(t)``."""
        slope = self.beta_min + (1 - self.beta_min) * beta if self.beta == "uniform" else torch.ones_like(beta)
        return process.sigma(t) ** self.omega * slope

    def __call__(self, process: Process, t: Timesteps, beta: PerItem) -> PerItem:
        return self.ray(process, t, beta) + self.floor


@dataclass(frozen=True)
class FlooredRadius(PublishedRadius):
    """``r_beta(t) = max(beta r(t), floor)``: the bias as a least radius."""

    def __call__(self, process: Process, t: Timesteps, beta: PerItem) -> PerItem:
        return self.ray(process, t, beta).clamp_min(self.floor)


@dataclass(frozen=True)
class ConstantRadius(Radius):
    """The same radius ``r`` at every t."""

    r: float = 1.0

    def __post_init__(self) -> None:
        expect(self.r > 0, "r of the radius", self.r, "a number > 0")

    def __call__(self, process: Process, t: Timesteps, beta: PerItem) -> PerItem:
        return torch.full_like(beta, self.r)


RADII: dict[str, type[Radius]] = {"published": PublishedRadius, "floored": FlooredRadius, "constant": ConstantRadius}


# --- how much it counts ------------------------------------------------------------------------------------------------
class Weight(ABC):
    """The factor ``lambda_t`` on the regularizer. What it shares with the radius (omega, beta) it is given by the radius."""

    @abstractmethod
    def __call__(self, reach: Reach, delta: States) -> PerItem:
        """``lambda_t`` for the perturbations ``delta`` found within ``reach``."""


@dataclass(frozen=True)
class PublishedWeight(Weight):
    """``lambda_t = lam sqrt(3) / (beta r(t))``: lam over the standard deviation of a uniform on ``[-beta r(t), beta r(t)]``.

    The bias of the radius has no part in it, so single samples with a tiny beta carry huge weights: clip gradients.
    From secondary sources, see docs/method.md.
    """

    lam: float = 0.3

    def __post_init__(self) -> None:
        expect(self.lam >= 0, "lam of the weight", self.lam, "a number >= 0")

    def __call__(self, reach: Reach, delta: States) -> PerItem:
        return self.lam * math.sqrt(3) / reach.ray


@dataclass(frozen=True)
class OverRadius(PublishedWeight):
    """``lambda_t = lam sqrt(3) / r_beta(t)``, the bias inside the weight: what atdm called published until November 2026."""

    def __call__(self, reach: Reach, delta: States) -> PerItem:
        return self.lam * math.sqrt(3) / reach.r


@dataclass(frozen=True)
class OverVariance(PublishedWeight):
    """``lambda_t = 3 lam / r_beta(t)^2``: lam over the variance of a uniform on ``[-r_beta(t), r_beta(t)]``."""

    def __call__(self, reach: Reach, delta: States) -> PerItem:
        return 3 * self.lam / reach.r.square()


@dataclass(frozen=True)
class RelativeWeight(Weight):
    """``lambda_t = k / mean(delta^2)``: k times the *relative* equivariance residual.

    With this weight the linear-Gaussian optimum shrinks the variance of a perturbed direction by ``1 / (1 + k)`` at any radius.
    """

    k: float = 5.0

    def __post_init__(self) -> None:
        expect(self.k >= 0, "k of the weight", self.k, "a number >= 0")

    def __call__(self, reach: Reach, delta: States) -> PerItem:
        return self.k / delta.square().flatten(1).mean(1).clamp_min(1e-12)


@dataclass(frozen=True)
class ConstantWeight(Weight):
    """The same ``lambda_t = value`` at every t."""

    value: float = 1.0

    def __post_init__(self) -> None:
        expect(self.value >= 0, "value of the weight", self.value, "a number >= 0")

    def __call__(self, reach: Reach, delta: States) -> PerItem:
        return torch.full_like(reach.r, self.value)


WEIGHTS: dict[str, type[Weight]] = {
    "published": PublishedWeight,
    "over_radius": OverRadius,
    "over_variance": OverVariance,
    "relative": RelativeWeight,
    "constant": ConstantWeight,
}


# --- in which direction ------------------------------------------------------------------------------------------------
@runtime_checkable
class Ball(Protocol):
    """A norm ball; balls of every norm have the same root mean square size r, so that radii compare."""

    def start(self, shape: tuple[int, ...], generator: torch.Generator | None, device: torch.device) -> Tensor:
        """A point uniform in the ball of radius 1 for each item of ``shape``."""
        ...

    def direction(self, gradient: States) -> States:
        """The point of the unit ball that goes furthest along ``gradient`` (zero where the gradient is)."""
        ...

    def project(self, delta: States, r: PerItem) -> States:
        """The nearest point of the ball of radius ``r``."""
        ...

    def used(self, delta: States, r: PerItem) -> PerItem:
        """The share of the constraint that binds: 1 where all of ``delta`` lies on the boundary."""
        ...


class LInf:
    """``[-r, r]^d``."""

    def start(self, shape: tuple[int, ...], generator: torch.Generator | None, device: torch.device) -> Tensor:
        return 2 * torch.rand(shape, generator=generator, device=device) - 1

    def direction(self, gradient: States) -> States:
        return gradient.sign()

    def project(self, delta: States, r: PerItem) -> States:
        bound = per_item(r, delta)
        return torch.minimum(torch.maximum(delta, -bound), bound)

    def used(self, delta: States, r: PerItem) -> PerItem:
        return (delta.abs() >= 0.999 * per_item(r, delta)).flatten(1).float().mean(1)


class L2:
    """The Euclidean ball of radius ``r sqrt(d)``: a point on its surface has root mean square r."""

    def start(self, shape: tuple[int, ...], generator: torch.Generator | None, device: torch.device) -> Tensor:
        d = math.prod(shape[1:])
        towards = torch.randn(shape, generator=generator, device=device)
        length = torch.rand(shape[0], generator=generator, device=device) ** (1 / d)
        return self.direction(towards) * per_item(length, towards)

    def direction(self, gradient: States) -> States:
        # Scaled by the largest entry first: squares of tiny gradients underflow.
        scaled = gradient / per_item(gradient.abs().flatten(1).amax(1).clamp_min(1e-30), gradient)
        rms = scaled.square().flatten(1).mean(1).sqrt()
        return scaled / per_item(rms.clamp_min(1e-12), gradient)

    def project(self, delta: States, r: PerItem) -> States:
        rms = delta.square().flatten(1).mean(1).sqrt()
        return delta * per_item((r / rms.clamp_min(1e-12)).clamp_max(1), delta)

    def used(self, delta: States, r: PerItem) -> PerItem:
        return (delta.square().flatten(1).mean(1).sqrt() >= 0.999 * r).float()


BALLS: dict[str, Ball] = {"linf": LInf(), "l2": L2()}


@dataclass(frozen=True)
class Perturbation:
    """Uniform in a ball, then ``steps`` ascent steps on a gain; 0 steps is randomized smoothing, 1 is FGSM, more is PGD.

    Args:
        norm: ``linf`` for ``[-r, r]^d`` or ``l2`` for the Euclidean ball of radius ``r sqrt(d)``.
        steps: gradient ascent steps.
        kappa: step length in radii: ``delta = project(delta + kappa r direction(grad))``. With ``inf`` the start is
            forgotten and delta lands on the boundary: for l2 that is one power iteration on ``J_eps^T J_eps`` a step.
    """

    norm: str = "linf"
    steps: int = 1
    kappa: float = 1.0

    def __post_init__(self) -> None:
        require_known("norm", self.norm, BALLS)
        expect(self.steps >= 0, "steps of the perturbation", self.steps, "an integer >= 0")
        expect(self.kappa > 0, "kappa of the perturbation", self.kappa, "a number > 0 (inf: full steps)")

    @property
    def ball(self) -> Ball:
        return BALLS[self.norm]

    def start(
        self, shape: tuple[int, ...], generator: torch.Generator | None = None, device: torch.device | str = "cpu"
    ) -> Tensor:
        """A uniform point of the *unit* ball for each item of ``shape = [batch, *dims]``."""
        return self.ball.start(shape, generator, torch.device(device))

    def step(self, delta: States, gradient: States, r: PerItem) -> States:
        """One projected ascent step; items without a gradient stay where they are."""
        direction = self.ball.direction(gradient)
        if math.isinf(self.kappa):
            moves = (gradient != 0).flatten(1).any(1)
            return torch.where(per_item(moves, delta), per_item(r, delta) * direction, delta)
        return self.ball.project(delta + self.kappa * per_item(r, delta) * direction, r)

    def find(self, gain: Callable[[Tensor], PerItem], start: States, r: PerItem) -> States:
        """Ascend ``gain(delta)`` from ``r start``. Only delta is differentiated: parameters' ``.grad`` stay untouched."""
        delta = (per_item(r, start) * start).detach()
        for _ in range(self.steps):
            with torch.enable_grad():
                delta.requires_grad_(True)
                (gradient,) = torch.autograd.grad(gain(delta).sum(), delta)
            delta = self.step(delta.detach(), gradient, r)
        return delta
