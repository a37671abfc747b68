"""What is wrong with the images of a set, looked at one by one."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .estimate import Gauge, noise_alone
from .pixels import replaced_share


class CorruptionFound(NamedTuple):
    """What is wrong with images one by one.

    Args:
        share: of the images that hold Gaussian noise.
        std: of it, root mean square over them.
        alone: share of the images that are noise and nothing else.
        replaced: share of all pixels that look replaced.
        looked: whether noise was looked for.
        sharper: share of the images that are sharper than the others.
    """

    share: float
    std: float
    alone: float
    replaced: float
    looked: bool = True
    sharper: float = 0.0

    @classmethod
    def of(cls, gauge: Gauge | None, x: Float[Tensor, "n *item"], indices: Int[Tensor, "n"]) -> CorruptionFound:
        """In items ``x`` with these indices in their set.

        Args:
            gauge: of the noise of single items; None where it is not to be looked for.
        """
        stds = torch.zeros(len(x)) if gauge is None else gauge.stds(x, indices)
        alone = noise_alone(x, stds)
        noisy = (stds > 0) & ~alone
        std = float(stds[noisy].double().square().mean().sqrt()) if noisy.any() else 0.0
        replaced, sharper = float(replaced_share(x).mean()), 0.0 if gauge is None else gauge.sharper
        return cls(
            float(noisy.double().mean()), std, float(alone.double().mean()), replaced, gauge is not None, sharper
        )
