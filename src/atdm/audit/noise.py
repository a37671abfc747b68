"""Noise of a set and of each of its items: levels measured, and the mixture that tells noise from content."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..errors import UserError
from . import mixture
from .levels import LEAST, Probe, central, thin_levels
from .mixture import Noise
from .pixels import replaced_share

USUAL = {3: 0.006, 1: 0.02}  # level of clean photographs by channels, as CIFAR-10 has it
THIN_USUAL = 0.01
COMMON_GAIN = 0.1  # log likelihood per image from which on gray noise in color images is believed
SAMPLE = 512  # images that the filters are fitted to


@dataclass(frozen=True)
class Estimate:
    """The noise of a set.

    Args:
        noise: share, std and what is known of each item.
        common: the noise is the same in all color channels, as after JPEG.
        levels: measured for each item, of its noise and of content that looks like it.
    """

    noise: Noise
    common: bool
    levels: Float[np.ndarray, "n"]

    @property
    def stds(self) -> Float[np.ndarray, "n"]:
        """Noise std of each item; 0 where it is more likely clean."""
        return np.where(self.noise.posterior > 0.5, self.noise.per_image, 0.0)


@dataclass(frozen=True)
class Meter:
    """Measures images of a set with filters of their own, and color images in gray, too."""

    probes: Sequence[Probe]

    @classmethod
    def fit(cls, sample: Float[Tensor, "n c h w"]) -> Meter:
        """Filters for the set that ``sample`` is from, which may be noisy.

        Raises:
            UserError: the images are too small.
        """
        sample = central(sample)
        gray = [Probe.fit(sample.mean(1, keepdim=True))] if sample.shape[1] == 3 else []
        return cls([Probe.fit(sample), *gray])

    def levels(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "probes n"]:
        """Level of each image, by each probe."""
        x = central(x)
        gray = [probe.levels(x.mean(1, keepdim=True)) for probe in self.probes[1:]]
        return torch.stack([self.probes[0].levels(x), *gray])

    def judge(self, levels: Float[Tensor, "probes n"], use: Bool[np.ndarray, "n"]) -> Estimate:
        """What the levels say.

        Args:
            use: images that can be clean or carry Gaussian noise; the others are neither, and get no noise.
        """
        rows = levels.double().numpy()
        found = [
            _fitted(row, probe.tau, USUAL[probe.filters.shape[1]], use)
            for row, probe in zip(rows, self.probes, strict=True)
        ]
        common = len(found) == 2 and found[0].std is None and found[1].std is not None and found[1].gain > COMMON_GAIN
        return Estimate(found[int(common)], common, rows[int(common)])


def _fitted(levels: Float[np.ndarray, "n"], tau: float, usual: float, use: Bool[np.ndarray, "n"]) -> Noise:
    """The mixture over the items in use."""
    noise = mixture.fit(levels[use] if use.any() else levels, tau, usual)
    if use.all() or not use.any():
        return noise
    posterior, each = np.zeros(len(levels)), np.zeros(len(levels))
    posterior[use], each[use] = noise.posterior, noise.per_image
    return replace(noise, share=float(noise.share * use.mean()), posterior=posterior, per_image=each)


def whole_estimate(x: Float[Tensor, "n *item"], use: Bool[np.ndarray, "n"] | None = None) -> Estimate | None:
    """The noise of vectors, and of images too small for patches; None where it cannot be told from content.

    Args:
        use: as of :meth:`Meter.judge`; None: all.
    """
    flat = x.flatten(1)
    scale = flat.std(0).square().mean().sqrt().item()
    unit = 1.0 if x.dim() == 4 else max(2 * scale, 1e-12)  # thresholds of noise are for data of std 0.5
    told = thin_levels(flat / unit)
    if told is None:
        return None
    found = _fitted(told[0], told[1], THIN_USUAL, np.ones(len(x), dtype=bool) if use is None else use)
    std = None if found.std is None else found.std * unit
    found = replace(found, std=std, per_image=found.per_image * unit, content=found.content * unit)
    return Estimate(found, False, told[0] * unit)


def estimate_noise(x: Float[Tensor, "n *item"]) -> Estimate:
    """The noise of a set that is in memory.

    Raises:
        UserError: there is no telling noise from content in such data.
    """
    if x.dim() == 4 and min(x.shape[2:]) >= LEAST:
        meter = Meter.fit(x[spread(len(x), SAMPLE)])
        return meter.judge(meter.levels(x), (replaced_share(x) == 0).numpy())
    found = whole_estimate(x)
    if found is None:
        raise UserError(
            f"In {len(x)} items of shape {list(x.shape[1:])} noise cannot be told from content. Expected images of "
            f"{LEAST}x{LEAST} or larger, or many items of many values that vary together."
        )
    return found


def noise_levels(images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n"]:
    """Level of each image of a set in [-1, 1]: the root of the squares of its noise std and of the texture that looks like it.

    Raises:
        UserError: the images are smaller than 12x12.
    """
    return Probe.fit(central(images[spread(len(images), SAMPLE)])).levels(central(images))


def noise_stds(x: Float[Tensor, "n *item"]) -> Float[Tensor, "n"]:
    """Std of the Gaussian noise of each item of a set: texture is taken off, and items that look clean have 0.

    Which items look clean depends on the set: texture differs between sets, and is alike within one.

    Raises:
        UserError: there is no telling noise from content in such data.
    """
    return torch.from_numpy(estimate_noise(x).stds).float()


def spread(n: int, most: int) -> Tensor:
    """At most so many of n indices, evenly spread."""
    return torch.linspace(0, n - 1, min(n, most)).long()
