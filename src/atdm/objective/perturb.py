"""Perturbations of the noisy state: how far (radius), how much it counts (weight), and in which direction.

All radii are in *noise units*: ``delta`` is added to ``eps``, so the state moves by ``sigma_t delta``.
Source: arXiv 2505.21742, section 4 (radius, weight, FGSM with random start); Goodfellow 2015, Wong 2020, Madry 2018.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..diffusion.process import Process
from ..errors import UserError, unknown


def _require(ok: bool, what: str, value: float, expected: str) -> None:
    if not ok:
        raise UserError(f"{what} is {value}. Expected {expected}.")


def _per_item(values: Tensor, like: Tensor) -> Tensor:
    return values.reshape(-1, *[1] * (like.dim() - 1))


# --- how far -----------------------------------------------------------------------------------------------------------
@runtime_checkable
class Radius(Protocol):
    """The radius of the ball at each timestep, in noise units."""

    def __call__(
        self, process: Process, t: Int[Tensor, "batch"], beta: Float[Tensor, "batch"]
    ) -> Float[Tensor, "batch"]:
        """``r_beta(t)`` for ``beta`` in (0, 1]; ``beta = 1`` gives the largest radius used at t."""
        ...


@dataclass(frozen=True)
class PublishedRadius:
    """``r_beta(t) = beta sigma_t^omega + floor`` (METHOD section 3 of arXiv 2505.21742): large in noise, small in content.

    Args:
        omega: slope of the ray.
        floor: smallest radius, keeps the term alive near t = 0.
        beta: ``uniform`` draws beta ~ U(0, 1] per sample, ``one`` fixes it to 1.
    """

    omega: float = 2.0
    floor: float = 8 / 255
    beta: Literal["uniform", "one"] = "uniform"

    def __post_init__(self) -> None:
        _require(self.omega >= 0, "omega of the radius", self.omega, "a number >= 0")
        _require(self.floor > 0, "floor of the radius", self.floor, "a number > 0, such as 8/255")

    def __call__(
        self, process: Process, t: Int[Tensor, "batch"], beta: Float[Tensor, "batch"]
    ) -> Float[Tensor, "batch"]:
        ray = process.sigma(t) ** self.omega
        return (ray * beta if self.beta == "uniform" else ray) + self.floor


@dataclass(frozen=True)
class ConstantRadius:
    """The same radius ``r`` at every t."""

    r: float = 1.0

    def __post_init__(self) -> None:
        _require(self.r > 0, "r of the radius", self.r, "a number > 0")

    def __call__(
        self, process: Process, t: Int[Tensor, "batch"], beta: Float[Tensor, "batch"]
    ) -> Float[Tensor, "batch"]:
        return torch.full_like(beta, self.r)


RADII: dict[str, type] = {"published": PublishedRadius, "constant": ConstantRadius}


# --- how much it counts ------------------------------------------------------------------------------------------------
@runtime_checkable
class Weight(Protocol):
    """The factor ``lambda_t`` on the regularizer."""

    def __call__(self, r: Float[Tensor, "batch"], delta: Float[Tensor, "batch *dims"]) -> Float[Tensor, "batch"]:
        """``lambda_t`` for perturbations ``delta`` found in balls of radius ``r``."""
        ...


@dataclass(frozen=True)
class PublishedWeight:
    """``lambda_t = lam sqrt(3) / r``: lam over the standard deviation of a uniform on [-r, r]."""

    lam: float = 0.3

    def __post_init__(self) -> None:
        _require(self.lam >= 0, "lam of the weight", self.lam, "a number >= 0")

    def __call__(self, r: Float[Tensor, "batch"], delta: Float[Tensor, "batch *dims"]) -> Float[Tensor, "batch"]:
        return self.lam * math.sqrt(3) / r


@dataclass(frozen=True)
class RelativeWeight:
    """``lambda_t = k / mean(delta^2)``: k times the *relative* equivariance residual.

    With this weight the linear-Gaussian optimum shrinks the variance of a pushed direction by ``1 / (1 + k)`` at any radius.
    """

    k: float = 5.0

    def __post_init__(self) -> None:
        _require(self.k >= 0, "k of the weight", self.k, "a number >= 0")

    def __call__(self, r: Float[Tensor, "batch"], delta: Float[Tensor, "batch *dims"]) -> Float[Tensor, "batch"]:
        return self.k / delta.square().flatten(1).mean(1).clamp_min(1e-12)


@dataclass(frozen=True)
class ConstantWeight:
    """The same ``lambda_t = value`` at every t."""

    value: float = 1.0

    def __post_init__(self) -> None:
        _require(self.value >= 0, "value of the weight", self.value, "a number >= 0")

    def __call__(self, r: Float[Tensor, "batch"], delta: Float[Tensor, "batch *dims"]) -> Float[Tensor, "batch"]:
        return torch.full_like(r, self.value)


WEIGHTS: dict[str, type] = {"published": PublishedWeight, "relative": RelativeWeight, "constant": ConstantWeight}


# --- in which direction ------------------------------------------------------------------------------------------------
@runtime_checkable
class Ball(Protocol):
    """A norm ball; balls of every norm have the same root mean square size r, so that radii compare."""

    def start(self, shape: tuple[int, ...], generator: torch.Generator | None, device: torch.device) -> Tensor:
        """A point uniform in the ball of radius 1 for each item of ``shape``."""
        ...

    def direction(self, gradient: Float[Tensor, "batch *dims"]) -> Float[Tensor, "batch *dims"]:
        """The point of the unit ball that goes furthest along ``gradient`` (zero where the gradient is)."""
        ...

    def project(self, delta: Float[Tensor, "batch *dims"], r: Float[Tensor, "batch"]) -> Float[Tensor, "batch *dims"]:
        """The nearest point of the ball of radius ``r``."""
        ...

    def used(self, delta: Float[Tensor, "batch *dims"], r: Float[Tensor, "batch"]) -> Float[Tensor, "batch"]:
        """The share of the constraint that binds: 1 where all of ``delta`` lies on the boundary."""
        ...


class LInf:
    """``[-r, r]^d``."""

    def start(self, shape: tuple[int, ...], generator: torch.Generator | None, device: torch.device) -> Tensor:
        return 2 * torch.rand(shape, generator=generator, device=device) - 1

    def direction(self, gradient: Float[Tensor, "batch *dims"]) -> Float[Tensor, "batch *dims"]:
        return gradient.sign()

    def project(self, delta: Float[Tensor, "batch *dims"], r: Float[Tensor, "batch"]) -> Float[Tensor, "batch *dims"]:
        bound = _per_item(r, delta)
        return torch.minimum(torch.maximum(delta, -bound), bound)

    def used(self, delta: Float[Tensor, "batch *dims"], r: Float[Tensor, "batch"]) -> Float[Tensor, "batch"]:
        return (delta.abs() >= 0.999 * _per_item(r, delta)).flatten(1).float().mean(1)


class L2:
    """The Euclidean ball of radius ``r sqrt(d)``: a point on its surface has root mean square r."""

    def start(self, shape: tuple[int, ...], generator: torch.Generator | None, device: torch.device) -> Tensor:
        d = math.prod(shape[1:])
        towards = torch.randn(shape, generator=generator, device=device)
        length = torch.rand(shape[0], generator=generator, device=device) ** (1 / d)
        return self.direction(towards) * _per_item(length, towards)

    def direction(self, gradient: Float[Tensor, "batch *dims"]) -> Float[Tensor, "batch *dims"]:
        # Scaled by the largest entry first: squares of tiny gradients underflow.
        scaled = gradient / _per_item(gradient.abs().flatten(1).amax(1).clamp_min(1e-30), gradient)
        rms = scaled.square().flatten(1).mean(1).sqrt()
        return scaled / _per_item(rms.clamp_min(1e-12), gradient)

    def project(self, delta: Float[Tensor, "batch *dims"], r: Float[Tensor, "batch"]) -> Float[Tensor, "batch *dims"]:
        rms = delta.square().flatten(1).mean(1).sqrt()
        return delta * _per_item((r / rms.clamp_min(1e-12)).clamp_max(1), delta)

    def used(self, delta: Float[Tensor, "batch *dims"], r: Float[Tensor, "batch"]) -> Float[Tensor, "batch"]:
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
        if self.norm not in BALLS:
            raise unknown("norm", self.norm, BALLS)
        _require(self.steps >= 0, "steps of the perturbation", self.steps, "an integer >= 0")
        _require(self.kappa > 0, "kappa of the perturbation", self.kappa, "a number > 0 (inf: full steps)")

    @property
    def ball(self) -> Ball:
        return BALLS[self.norm]

    def start(
        self, shape: tuple[int, ...], generator: torch.Generator | None = None, device: torch.device | str = "cpu"
    ) -> Tensor:
        """A uniform point of the *unit* ball for each item of ``shape = [batch, *dims]``."""
        return self.ball.start(shape, generator, torch.device(device))

    def step(
        self,
        delta: Float[Tensor, "batch *dims"],
        gradient: Float[Tensor, "batch *dims"],
        r: Float[Tensor, "batch"],
    ) -> Float[Tensor, "batch *dims"]:
        """One projected ascent step; items without a gradient stay where they are."""
        direction = self.ball.direction(gradient)
        if math.isinf(self.kappa):
            moves = (gradient != 0).flatten(1).any(1)
            return torch.where(_per_item(moves, delta), _per_item(r, delta) * direction, delta)
        return self.project(delta + self.kappa * _per_item(r, delta) * direction, r)

    def project(self, delta: Float[Tensor, "batch *dims"], r: Float[Tensor, "batch"]) -> Float[Tensor, "batch *dims"]:
        """The nearest point of the ball of radius ``r``."""
        return self.ball.project(delta, r)

    def find(
        self,
        gain: Callable[[Tensor], Float[Tensor, "batch"]],
        start: Float[Tensor, "batch *dims"],
        r: Float[Tensor, "batch"],
    ) -> Float[Tensor, "batch *dims"]:
        """Ascend ``gain(delta)`` from ``r start``. Only delta is differentiated: parameters' ``.grad`` stay untouched."""
        delta = (_per_item(r, start) * start).detach()
        for _ in range(self.steps):
            with torch.enable_grad():
                delta.requires_grad_(True)
                (gradient,) = torch.autograd.grad(gain(delta).sum(), delta)
            delta = self.step(delta.detach(), gradient, r)
        return delta
