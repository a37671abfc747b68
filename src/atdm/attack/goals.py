"""What an attack on the trajectory raises: one value per item, of what the network shows after the perturbation.

A goal sees the *image* (``D(x_t, t)`` through one step, the sample through the rest of the sampler) or the predicted
noise *eps*, and may compare it with what the same random numbers give without any perturbation.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import ClassVar, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from ..diffusion.process import PerItem, States
from ..errors import UserError
from ..metrics import FEATURES, FeatureSpace
from ..metrics.exact import HasSupport, support_distance
from ..spec import build


@runtime_checkable
class Goal(Protocol):
    """A goal of an attack.

    Args:
        sees: the ``image`` or the predicted noise ``eps``.
        beside: ``clean`` compares with the trajectory that was never perturbed, ``here`` with the present state without
            this perturbation; both see the same random numbers. ``none`` compares with nothing.
    """

    sees: ClassVar[str] = "image"
    beside: ClassVar[str] = "none"

    def fit(self, reference: Tensor, truth: object | None, /) -> Goal:
        """The goal for this data: a clean reference ``[n, *item]``, and what is known exactly (or None)."""
        return self

    def __call__(self, seen: Tensor, beside: Tensor | None, /) -> Tensor:
        """One value per item, larger where the attack got further."""
        ...


class _Moved(Goal):
    """How far what is seen moves (mean square over an item's coordinates)."""

    def __call__(self, seen: States, beside: States | None) -> Tensor:
        if beside is None:
            raise UserError("This goal compares with what was never perturbed. Expected what is seen beside it.")
        return (seen - beside).square().flatten(1).mean(1)


@dataclass(frozen=True)
class Denoised(_Moved):
    """Move the image away from that of the trajectory that was never perturbed."""

    beside: ClassVar[str] = "clean"


@dataclass(frozen=True)
class Prediction(_Moved):
    """Break the reverse step: ``||eps(x_t + sigma_t delta) - eps(x_t)||^2``, what adversarial training ascends."""

    sees: ClassVar[str] = "eps"
    beside: ClassVar[str] = "here"


@dataclass(frozen=True)
class Target(Goal):
    """Pull the image to one item of the reference (minus the mean square distance from it).

    Args:
        item: its index.
    """

    item: int = 0
    image: Tensor | None = field(default=None, compare=False, repr=False)

    def fit(self, reference: Float[Tensor, "n *item"], truth: object | None) -> Target:
        """Aim at ``reference[item]``.

        Raises:
            UserError: there is no such item.
        """
        if not 0 <= self.item < len(reference):
            raise UserError(f"The target is item {self.item} of the reference. Expected 0 to {len(reference) - 1}.")
        return replace(self, image=reference[self.item])

    def __call__(self, seen: States, beside: Tensor | None) -> PerItem:
        if self.image is None:
            raise UserError("The goal 'target' has no image. Expected one, from fit() or Target(image=...).")
        return -(seen - self.image.to(seen)).square().flatten(1).mean(1)


@dataclass(frozen=True)
class Distance(Goal):
    """Move the image away from the data, by its exact distance from their support (data units)."""

    truth: object | None = field(default=None, compare=False, repr=False)

    def fit(self, reference: Float[Tensor, "n *item"], truth: object | None) -> Distance:
        """With the distance that ``truth`` knows.

        Raises:
            UserError: it knows none, or none that can be differentiated.
        """
        if not isinstance(truth, HasSupport):
            raise UserError(
                "The goal 'distance' needs data of a known support. Expected a toy or a subspace, or features."
            )
        try:
            with torch.enable_grad():
                smooth = support_distance(reference[:2].clone().requires_grad_(), truth).requires_grad
        except RuntimeError:  # it goes through numpy
            smooth = False
        if not smooth:
            raise UserError(
                f"The distance of {type(truth).__name__} cannot be differentiated. Expected another goal, such as features."
            )
        return replace(self, truth=truth)

    def __call__(self, seen: States, beside: Tensor | None) -> PerItem:
        if not isinstance(self.truth, HasSupport):
            raise UserError("The goal 'distance' has no truth. Expected one, from fit() or Distance(truth=...).")
        return support_distance(seen.cpu(), self.truth).to(seen)


@dataclass(frozen=True)
class FeatureDistance(Goal):
    """Move the image away from the data: mean square distance to the nearest reference item in a feature space.

    Args:
        space: a name of ``FEATURES``.
        most: reference items to compare with, the first so many.
    """

    space: str = "pixels"
    most: int = 2000
    fn: Callable[[Tensor], Tensor] | None = field(default=None, compare=False, repr=False)
    points: Tensor | None = field(default=None, compare=False, repr=False)

    def fit(self, reference: Float[Tensor, "n *item"], truth: object | None) -> FeatureDistance:
        """The space and the features of the reference.

        Raises:
            UserError: the space is unknown, or has several rows for an item.
        """
        space: FeatureSpace = build("feature space", self.space, FEATURES).fit(reference)
        with torch.no_grad():
            points = torch.cat([space.fn(part).float() for part in reference[: self.most].split(256)])
        if len(points) != min(self.most, len(reference)):
            raise UserError(
                f"The feature space '{self.space}' has several rows for an item. Expected one, as in pixels."
            )
        return replace(self, fn=space.fn, points=points)

    def __call__(self, seen: States, beside: Tensor | None) -> PerItem:
        if self.fn is None or self.points is None:
            raise UserError("The goal 'features' has no reference. Expected fit() to give it one.")
        found, points = self.fn(seen).float(), self.points.to(seen.device)
        with torch.no_grad():
            nearest = points[torch.cdist(found, points).argmin(1)]
        return (found - nearest).square().mean(1)


GOALS: dict[str, Callable[..., Goal]] = {
    "denoised": Denoised,
    "prediction": Prediction,
    "target": Target,
    "distance": Distance,
    "features": FeatureDistance,
}
