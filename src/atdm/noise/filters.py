"""How noisy each image is, by the energy in those directions of small patches in which the whole set holds least.

Natural images fill few directions of a patch: neighbouring pixels agree, and so do the color channels. White noise fills
all alike. The principal components of patches with the smallest variance over the set (Liu 2013, Chen 2015, who take
those of one image) therefore hold noise and next to no content, whatever the images are; for photographs in color they
are fine color patterns. Within an image a low quantile over its places excludes texture and edges.

Images are ``[n, c, h, w]`` in [-1, 1]; a noise std is in that scale.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ..errors import UserError

SIDE = {3: 5, 1: 7}  # of the patches, by channels: 75 and 49 values
MOST = {3: 16, 1: 6}  # directions
FEWEST = 3
NEAR = 1.25  # directions whose std is within this of the smallest hold as little
QUANTILE = 0.2  # over places: textured places count for nothing until they are four fifths of an image
PATCHES = 300_000  # enough for 75 x 75 covariances
LEAST = 12  # pixels of a side
WINDOW = 128  # pixels of a side that are looked at
THIN = 12  # dimensions from which on whole items are looked at
TRIAL = 200  # images of pure noise that calibrate


@dataclass(frozen=True)
class Probe:
    """Filters that see noise and little else.

    Args:
        filters: orthonormal patches.
        gain: what the raw level of pure noise of std 1 is.
        tau: std over images of the log of the level of pure noise: how well one image tells its noise.
    """

    filters: Float[Tensor, "k c s s"]
    gain: float
    tau: float

    @classmethod
    def fit(cls, x: Float[Tensor, "n c h w"]) -> Probe:
        """Filters for a set, which may be noisy already: white noise raises all directions alike and changes none.

        Raises:
            UserError: the images are too small.
        """
        _, c, h, w = x.shape
        if min(h, w) < LEAST:
            raise UserError(f"Cannot estimate the noise of {h}x{w} images. Expected {LEAST}x{LEAST} or larger.")
        variance, basis = torch.linalg.eigh(_covariance(x))
        std = variance[1:].clamp(min=0).sqrt()
        kept = int((std <= NEAR * std[0]).sum().clamp(FEWEST, MOST[c]))
        filters = basis[:, 1 : 1 + kept].T.float().reshape(kept, c, SIDE[c], SIDE[c]).contiguous()
        noise = torch.randn(TRIAL, c, h, w, generator=torch.Generator().manual_seed(0))
        raw = cls(filters, 1.0, 0.0).levels(noise)
        return cls(filters, raw.mean().item(), raw.log().std().item())

    def levels(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n"]:
        """Level of each image: the root of the summed squares of its noise std and of its content in these directions.

        Where files of 8 bits end, at black and white, noise is clipped and looks smaller: places within two levels of
        either are left out, but an eighth is kept.
        """
        out = []
        size = self.filters.shape[-1]
        for part in x.split(64):
            energy = nn.functional.conv2d(part, self.filters.to(x.device)).square().mean(1).flatten(1)
            level = _quantile(energy).sqrt() / self.gain
            extreme = nn.functional.avg_pool2d(part, size, 1).abs().amax(1).flatten(1)
            limit = 1 - 2 * level
            out.append(level)
            if not len(near := (extreme > limit[:, None]).any(1).nonzero()[:, 0]):
                continue
            energy, extreme = energy[near], extreme[near]
            limit = torch.maximum(limit[near], _quantile(extreme, q=0.125))
            out[-1][near] = _quantile(energy, extreme <= limit[:, None]).sqrt() / self.gain
        return torch.cat(out)


def rise(noisy: Float[Tensor, "n c h w"], clean: Float[Tensor, "m c h w"]) -> float:
    """By how much the variance in which images differ from others grows from thin directions to thicker ones.

    The difference along the third sixth of directions, in the order of the variance of the others, over that along the first. Of white
    noise it is 1, of noise that was compressed or resized with its image up to 2.8, in gray up to 2.2. Of images that are
    sharper than the others it is 9 or more, in gray 3.1 or more (CIFAR-10, CelebA and bedrooms, JPEG and blur).
    """
    variance, basis = torch.linalg.eigh(_covariance(clean))
    more = ((basis.T @ _covariance(noisy) @ basis).diagonal() - variance)[1:]
    sixth = len(more) // 6
    return float(more[2 * sixth : 3 * sixth].mean() / more[:sixth].mean().clamp_min(1e-12))


def _covariance(x: Float[Tensor, "n c h w"]) -> Float[Tensor, "d d"]:
    """Of patches without their mean, which is the direction of variance zero; up to a factor that is the same for all sets of a size."""
    n, c, h, w = x.shape
    side, places = SIDE[c], (h - SIDE[c] + 1) * (w - SIDE[c] + 1)
    some = x[spread(n, max(2, PATCHES // places))]
    covariance = torch.zeros(c * side * side, c * side * side, dtype=torch.float64)
    for part in some.split(64):
        patches = nn.functional.unfold(part, side).transpose(1, 2).flatten(0, 1)
        patches = patches - patches.mean(1, keepdim=True)
        covariance += (patches.T @ patches).double()
    return covariance / len(some)


def spread(n: int, most: int) -> Int[Tensor, "b"]:
    """At most so many of n indices, evenly spread."""
    return torch.linspace(0, n - 1, min(n, most)).long()


def _quantile(
    x: Float[Tensor, "n m"], use: Bool[Tensor, "n m"] | None = None, q: float = QUANTILE
) -> Float[Tensor, "n"]:
    """Row quantiles of the values in use (None: all)."""
    if use is None:
        count = torch.full((len(x), 1), x.shape[1], device=x.device)
    else:
        count, x = use.sum(1, keepdim=True), x.masked_fill(~use, torch.inf)
    ordered = x.sort(1).values if x.is_cuda else torch.from_numpy(np.sort(x.numpy(), 1))  # ten times as fast as torch's
    return ordered.gather(1, ((count - 1) * q).round().long())[:, 0]


def central(x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c s t"]:
    """The part of large images that is looked at."""
    top, left = (max(0, (side - WINDOW) // 2) for side in x.shape[2:])
    return x[:, :, top : top + WINDOW, left : left + WINDOW]
