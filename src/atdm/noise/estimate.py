"""Noise of a set and of each of its items: levels measured, and the mixture that tells noise from content."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ..errors import UserError
from . import mixture
from .files import FileNoise
from .filters import LEAST, THIN, Probe, central, rise, spread
from .mixture import Noise
from .pixels import replaced_share

USUAL = {3: 0.006, 1: 0.02}  # level of clean photographs by channels, as CIFAR-10 has it
THIN_USUAL = 0.01
COMMON_GAIN = 0.1  # log likelihood per image from which on gray noise in color images is believed
SAMPLE = 512  # images that the filters are fitted to
LOUD, BLOCKS = (
    0.3,
    4,
)  # noise std from which on an image may be nothing else, and blocks of a side by which that is judged
COMPARED = 30  # images on either side from which on noisy ones are compared with the others
SHARPER = {1: 2.6, 3: 5.0}  # rise (.filters) by channels above which what looks like noise is sharpness
EMPTY = 2.0  # variance of the means of blocks, over that of noise, below which there is nothing else


@dataclass(frozen=True)
class NoiseEstimate:
    """The noise of a set.

    Args:
        noise: its law: share, std, and the noise std by level.
        common: the noise is the same in all color channels, as after JPEG.
        levels: measured for each item, of its noise and of content that looks like it.
        stds: noise std of each item; 0 where it is more likely clean.
        sharper: images that are not noisy, but sharper than the others, which may be blurred or compressed: their indices, the
            sharpest first.
    """

    noise: Noise
    common: bool
    levels: Float[np.ndarray, "n"]
    stds: Float[np.ndarray, "n"]
    sharper: Int[np.ndarray, "k"] = field(default_factory=lambda: np.empty(0, int))


class Meter(ABC):
    """Measures the items of a set in one or more ways, and says what the levels mean."""

    @abstractmethod
    def levels(self, x: Float[Tensor, "n *item"], indices: Int[Tensor, "n"]) -> Float[Tensor, "ways n"]:
        """Level of each item, in each way.

        Args:
            indices: indices of the items in the set.
        """

    @abstractmethod
    def judge(self, levels: Float[Tensor, "ways n"], use: Bool[np.ndarray, "n"]) -> NoiseEstimate:
        """What the levels of a set say.

        Args:
            use: items that can be clean or carry Gaussian noise; the others are neither, and get no noise.
        """


@dataclass(frozen=True)
class PatchMeter(Meter):
    """Looks at patches of images with filters of the set, and at color images in gray, too."""

    probes: Sequence[Probe]

    @classmethod
    def fit(cls, sample: Float[Tensor, "n c h w"]) -> PatchMeter:
        """Filters for the set that ``sample`` is from, which may be noisy.

        Raises:
            UserError: the images are too small.
        """
        sample = central(sample)
        gray = [Probe.fit(sample.mean(1, keepdim=True))] if sample.shape[1] == 3 else []
        return cls([Probe.fit(sample), *gray])

    def levels(self, x: Float[Tensor, "n c h w"], indices: Int[Tensor, "n"]) -> Float[Tensor, "probes n"]:
        x = central(x)
        gray = [probe.levels(x.mean(1, keepdim=True)) for probe in self.probes[1:]]
        return torch.stack([self.probes[0].levels(x), *gray])

    def judge(self, levels: Float[Tensor, "probes n"], use: Bool[np.ndarray, "n"]) -> NoiseEstimate:
        each, use = levels.double().cpu().numpy(), use | ~use.any()  # all where none can
        found = [
            mixture.fit(row[use], probe.tau, USUAL[probe.filters.shape[1]]).over(float(use.mean()))
            for row, probe in zip(each, self.probes, strict=True)
        ]
        common = len(found) == 2 and found[0].std is None and found[1].std is not None and found[1].gain > COMMON_GAIN
        noise, row = found[int(common)], each[int(common)]
        return NoiseEstimate(noise, common, row, np.where(use, noise.stds(row), 0.0))


@dataclass(frozen=True)
class WholeMeter(Meter):
    """Looks at whole items along directions in which the set is thin: vectors, and images too small for patches.

    Each half of the set (even and odd indices) is measured along the directions that the other half gave: its own would look
    too thin.

    Args:
        means, bases: of the even and of the odd items; the directions are columns.
        tau: as a probe's.
        unit: what items are divided by: thresholds of noise are for data of std 0.5.
    """

    means: tuple[Float[Tensor, "d"], Float[Tensor, "d"]]
    bases: tuple[Float[Tensor, "d k"], Float[Tensor, "d k"]]
    tau: float
    unit: float

    @classmethod
    def fit(cls, x: Float[Tensor, "n *item"], indices: Int[Tensor, "n"]) -> WholeMeter | None:
        """Directions for a set; None where noise cannot be distinguished from content: too few items, or no thin direction."""
        flat = x.flatten(1)
        n, d = flat.shape
        if d < THIN or n < 8 * d:
            return None
        unit = 1.0 if x.dim() == 4 else max(2 * flat.std(0).square().mean().sqrt().item(), 1e-12)
        kept = d // 4
        means, bases = [], []
        for half in (0, 1):
            items = flat[indices % 2 == half] / unit
            mean = items.mean(0)
            variance, basis = torch.linalg.eigh((items - mean).double().T @ (items - mean).double() / len(items))
            std = variance.clamp(min=0).sqrt()
            if std[:kept].mean() > 0.5 * std.square().mean().sqrt():
                return None
            means.append(mean)
            bases.append(basis[:, :kept].float())
        return cls((means[0], means[1]), (bases[0], bases[1]), (2 * kept) ** -0.5, unit)

    def levels(self, x: Float[Tensor, "n *item"], indices: Int[Tensor, "n"]) -> Float[Tensor, "1 n"]:
        """Root mean square of each item along the thin directions of the other half."""
        even, odd = (
            ((x.flatten(1) / self.unit - mean.to(x.device)) @ basis.to(x.device)).square().mean(1).sqrt()
            for mean, basis in zip(self.means, self.bases, strict=True)
        )
        return torch.where(indices.to(x.device) % 2 == 0, odd, even)[None] * self.unit

    def judge(self, levels: Float[Tensor, "1 n"], use: Bool[np.ndarray, "n"]) -> NoiseEstimate:
        each, use = levels[0].double().cpu().numpy(), use | ~use.any()  # all where none can
        noise = mixture.fit(each[use] / self.unit, self.tau, THIN_USUAL).over(float(use.mean())).scaled(self.unit)
        return NoiseEstimate(noise, False, each, np.where(use, noise.stds(each), 0.0))


def median_above_zero(stds: Float[np.ndarray, "n"]) -> float | None:
    """The median of those above 0; None: there are none."""
    return float(np.median(stds[stds > 0])) if (stds > 0).any() else None


def by_patches(item_shape: Sequence[int]) -> bool:
    """Whether items of this shape are images large enough to be looked at in patches."""
    return len(item_shape) == 3 and min(item_shape[1:]) >= LEAST


def whole_estimate(x: Float[Tensor, "n *item"], use: Bool[np.ndarray, "n"] | None = None) -> NoiseEstimate | None:
    """The noise of vectors, and of images too small for patches; None where it cannot be distinguished from content.

    Args:
        use: as of :meth:`Meter.judge`, and the others would bend the directions that are thin; None: all.
    """
    use = np.ones(len(x), bool) if use is None else use
    indices, used = torch.arange(len(x)), torch.from_numpy(use)
    meter = WholeMeter.fit(x[used], indices[used])
    return None if meter is None else meter.judge(meter.levels(x, indices), use)


@dataclass(frozen=True)
class Gauge:
    """Tells the noise std of any item of a set of which it has seen some.

    Args:
        noise: the law of the set.
        way: which of the meter's levels it is for.
        files: what the files of the set show where its items hide it; None: there are no files.
        changed: as of :meth:`FileNoise.merged`.
        sharper: share of the images that are sharper than the others (:class:`NoiseEstimate`).
    """

    meter: Meter
    noise: Noise
    way: int
    files: FileNoise | None = None
    changed: bool = False
    sharper: float = 0.0

    @classmethod
    def fit(cls, x: Float[Tensor, "n *item"], indices: Int[Tensor, "n"] | None = None) -> Gauge:
        """From items of the set, clean and noisy ones in any mixture.

        Args:
            indices: their indices in the set, at random or all; None: they are the set.

        Raises:
            UserError: there is no telling noise from content in such data.
        """
        return _look(x, indices)[0]

    def stds(self, x: Float[Tensor, "n *item"], indices: Int[Tensor, "n"]) -> Float[Tensor, "n"]:
        """Std of the Gaussian noise of each item; 0 where it looks clean.

        Args:
            indices: indices of the items in the set.
        """
        levels = self.meter.levels(x, indices)[self.way].double().cpu().numpy()
        found = self.noise.stds(levels)
        if isinstance(self.meter, PatchMeter):
            found = found * (replaced_share(x) == 0).cpu().numpy()
        if self.files is not None:
            found = self.files.merged(found, indices.cpu().numpy(), self.changed)
        return torch.from_numpy(found).float().to(x.device)


def _look(x: Float[Tensor, "n *item"], indices: Int[Tensor, "n"] | None = None) -> tuple[Gauge, NoiseEstimate]:
    indices = torch.arange(len(x)) if indices is None else indices
    patches = by_patches(x.shape[1:])
    meter: Meter | None = PatchMeter.fit(x[spread(len(x), SAMPLE)]) if patches else WholeMeter.fit(x, indices)
    if meter is None:
        raise UserError(
            f"In {len(x)} items of shape {list(x.shape[1:])} noise cannot be distinguished from content. Expected images of "
            f"{LEAST}x{LEAST} or larger, or many items of many values that vary together."
        )
    use = (replaced_share(x) == 0).cpu().numpy() if patches else np.ones(len(x), bool)
    found = meter.judge(meter.levels(x, indices), use)
    if patches:
        found = without_sharper(found, use, x.__getitem__)
    return Gauge(meter, found.noise, int(found.common), sharper=len(found.sharper) / len(x)), found


def without_sharper(
    found: NoiseEstimate, use: Bool[np.ndarray, "n"], images: Callable[[Int[Tensor, "m"]], Float[Tensor, "m c h w"]]
) -> NoiseEstimate:
    """The estimate of images; without noise if those that look noisy are sharp ones among blurred or compressed ones.

    What sharp images have more of than the others is not white.

    Args:
        use: as of :meth:`Meter.judge`.
        images: gives those of these indices.
    """
    sides = np.flatnonzero(found.stds > 0), np.flatnonzero(use & (found.stds == 0))
    if min(map(len, sides)) < COMPARED:
        return found
    noisy, clean = (central(images(torch.from_numpy(side)[spread(len(side), SAMPLE)])).cpu() for side in sides)
    if found.common:
        noisy, clean = noisy.mean(1, keepdim=True), clean.mean(1, keepdim=True)
    if rise(noisy, clean) <= SHARPER[noisy.shape[1]]:
        return found
    sharpest = sides[0][np.argsort(-found.levels[sides[0]], kind="stable")]
    return replace(found, noise=found.noise.none(), stds=np.zeros(len(found.stds)), sharper=sharpest)


def noise_alone(x: Float[Tensor, "n *item"], stds: Float[Tensor, "n"]) -> Bool[Tensor, "n"]:
    """The images that are noise and nothing else: their 4x4 blocks differ no more than noise of their std makes them.

    Args:
        stds: of the noise of each, as estimated; images with less than 0.3 are none. Nor are vectors, and images below 12x12.
    """
    if not by_patches(x.shape[1:]):
        return torch.zeros(len(x), dtype=torch.bool, device=x.device)
    means = nn.functional.adaptive_avg_pool2d(x, BLOCKS).flatten(2)
    expected = stds.square() * BLOCKS**2 / (x.shape[2] * x.shape[3])
    return (stds >= LOUD) & (means.var(2).mean(1) < EMPTY * expected)


def estimate_noise(x: Float[Tensor, "n *item"]) -> NoiseEstimate:
    """The noise of a set that is in memory.

    Raises:
        UserError: there is no telling noise from content in such data.
    """
    return _look(x)[1]


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
