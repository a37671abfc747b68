"""Images (or vectors) on a linear subspace: their reconstruction error is known in closed form."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import UserError


@dataclass(frozen=True)
class Subspace:
    """An affine subspace.

    Args:
        mean: a point of it, flattened.
        basis: orthonormal directions, one a row.
    """

    mean: Float[Tensor, "d"]
    basis: Float[Tensor, "k d"]

    @classmethod
    def fit(cls, x: Float[Tensor, "n *item"], k: int) -> Subspace:
        """The first ``k`` principal directions of ``x`` about its mean.

        Raises:
            UserError: the data have fewer directions than ``k``.
        """
        flat = x.flatten(1).double()
        most = min(flat.shape[1], len(flat) - 1)
        if not 1 <= k <= most:
            raise UserError(f"A subspace of dimension {k} does not exist in this data. Expected 1 to {most}.")
        mean = flat.mean(0)
        _, _, directions = torch.linalg.svd(flat - mean, full_matrices=False)
        return cls(mean.float(), directions[:k].float())

    def coordinates(self, x: Float[Tensor, "n *item"]) -> Float[Tensor, "n k"]:
        """Coordinates within the subspace, about its mean."""
        return (x.flatten(1) - self.mean) @ self.basis.T

    def project(self, x: Float[Tensor, "n *item"]) -> Float[Tensor, "n *item"]:
        """The nearest point of the subspace."""
        return (self.mean + self.coordinates(x) @ self.basis).reshape(x.shape)

    def residual(self, x: Float[Tensor, "n *item"]) -> Float[Tensor, "n"]:
        """Euclidean distance to the subspace."""
        return (x - self.project(x)).flatten(1).norm(dim=1)

    def residual_rms(self, x: Float[Tensor, "n *item"]) -> float:
        """Root mean square off the subspace per orthogonal coordinate: the std of noise that lies there."""
        off = len(self.mean) - len(self.basis)
        return (self.residual(x).double().square().mean() / max(1, off)).sqrt().item()

    def spread(self, x: Float[Tensor, "n *item"]) -> float:
        """Root mean square over the subspace's directions of the standard deviation within it."""
        return self.coordinates(x).var(0, correction=0).mean().sqrt().item()
