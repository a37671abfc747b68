"""Measures of images, without a network: residual noise, closeness to clean images, and Frechet distances.

Images are ``[n, c, h, w]`` in [-1, 1]; a noise std is in that scale.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ..errors import UserError

# E|z| <= 0.6745 half of the time for z ~ N(0, 1): the median absolute deviation in units of the std.
NORMAL_MAD = 0.6744897501960817


def residual_noise_std(x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n"]:
    """Noise std of each image: median ``|HH| / 0.6745`` of its finest wavelet details (Donoho & Johnstone 1994).

    The median over an image's channels and positions ignores the few details that edges leave. Haar, at every shift
    and without padding: its 2x2 support keeps the most details of a small image (49 of 8x8), so it varies least from
    image to image there, and on 32x32 photographs it is within 2 % of db2. On flat images it is unbiased within 1 %
    from 16x16 up; on 8x8 grayscale its mean is about 2 % high and one image's value varies by 20 %. Content finer than
    two pixels reads as noise (clean 8x8 digits: 0.28), so compare with the value of the clean reference.

    Raises:
        UserError: the images are smaller than 8x8.
    """
    import pywt

    n, c, h, w = x.shape
    if min(h, w) < 8:
        raise UserError(f"Cannot estimate the noise of {h}x{w} images. Expected 8x8 or larger.")
    high = torch.tensor(pywt.Wavelet("haar").dec_hi, dtype=x.dtype, device=x.device)
    kernel = torch.outer(high, high)[None, None]
    details = nn.functional.conv2d(x.reshape(n * c, 1, h, w), kernel).reshape(n, -1).abs()
    return _median(details) / NORMAL_MAD


def noise_std(x: Float[Tensor, "n c h w"]) -> float:
    """The median over images of :func:`residual_noise_std`."""
    return _median(residual_noise_std(x)[None]).item()


def never_varying(reference: Float[Tensor, "m c h w"], threshold: float = 0.02) -> Bool[Tensor, "c h w"]:
    """The pixels whose std over the clean ``reference`` is below ``threshold``, such as the border of digits."""
    return reference.std(0) < threshold


def never_varying_noise(
    x: Float[Tensor, "n c h w"], reference: Float[Tensor, "m c h w"], threshold: float = 0.02
) -> float:
    """Root mean square of ``x - mean`` over the pixels that never vary in the clean ``reference``.

    An exact measure of residual noise where there are such pixels, as the truth there is known to within the
    ``threshold``. A sampler that clips to [-1, 1] hides half of the noise of a pixel at -1: compare only samples made
    alike.

    Raises:
        UserError: every pixel varies.
    """
    still = never_varying(reference, threshold)
    if not still.any():
        raise UserError(f"Every pixel of the reference varies by {threshold} or more. Expected some that do not.")
    return (x - reference.mean(0))[:, still].double().square().mean().sqrt().item()


def psnr(x: Float[Tensor, "n *dims"], y: Float[Tensor, "n *dims"], data_range: float = 2.0) -> Float[Tensor, "n"]:
    """Peak signal-to-noise ratio of each pair in dB: ``20 log10(data_range / rmse)``; infinite for equal images."""
    return 10 * (data_range**2 / (x - y).flatten(1).square().mean(1)).log10()


def nearest_psnr(
    x: Float[Tensor, "n *dims"], reference: Float[Tensor, "m *dims"], data_range: float = 2.0, batch: int = 512
) -> Float[Tensor, "n"]:
    """PSNR in dB of each sample to its nearest neighbour in the clean ``reference``.

    Closeness to clean images, not quality alone: it grows with the size of the reference, and a copy scores infinity.
    """
    clean = reference.flatten(1)
    nearest = torch.cat([torch.cdist(part, clean).argmin(1) for part in x.flatten(1).split(batch)])
    return psnr(x, reference[nearest], data_range)


Moments = tuple[Float[Tensor, "d"], Float[Tensor, "d d"]]


def frechet_distance(
    mu1: Float[Tensor, "d"], cov1: Float[Tensor, "d d"], mu2: Float[Tensor, "d"], cov2: Float[Tensor, "d d"]
) -> float:
    """Squared Frechet (2-Wasserstein) distance between two Gaussians (Dowson & Landau 1982).

    ``||mu1 - mu2||^2 + tr(C1 + C2 - 2 (C1^1/2 C2 C1^1/2)^1/2)``, in float64. The last trace is the sum of the singular
    values of ``C1^1/2 C2^1/2``: only symmetric roots are taken, so singular covariances are fine and none is complex.
    """
    mu1, cov1, mu2, cov2 = (a.double() for a in (mu1, cov1, mu2, cov2))
    cross = torch.linalg.svdvals(_root(cov1) @ _root(cov2)).sum()
    distance = (mu1 - mu2).square().sum() + cov1.trace() + cov2.trace() - 2 * cross
    return max(distance.item(), 0.0)  # rounding can leave -1e-15


def frechet(x: Float[Tensor, "n d"], y: Float[Tensor, "m e"]) -> float:
    """Squared Frechet distance between the Gaussians fitted to two sets of features.

    Raises:
        UserError: a set has fewer than two rows, or the numbers of features differ.
    """
    if x.shape[1] != y.shape[1]:
        raise UserError(f"Cannot compare {x.shape[1]} with {y.shape[1]} features. Expected the same number.")
    return FeatureSpace("features", _flatten).distance(x, y)


@dataclass(frozen=True)
class FeatureSpace:
    """A named map from items to features ``[rows, d]``; the name travels with every number measured in it.

    Args:
        name: how results call it, as in ``frechet_pixels``.
        fn: any callable on a batch of items, or a network, which is put in evaluation mode. It may return several rows
            for each item.
    """

    name: str
    fn: Callable[[Tensor], Tensor]

    def __post_init__(self) -> None:
        if isinstance(self.fn, nn.Module):
            self.fn.eval()

    def fit(self, reference: Float[Tensor, "m *dims"]) -> FeatureSpace:
        """Itself: nothing in it depends on the reference."""
        return self

    @torch.no_grad()
    def moments(self, x: Float[Tensor, "n *dims"], batch: int = 512) -> Moments:
        """Mean and unbiased covariance of the features in float64, accumulated over batches of items.

        Raises:
            UserError: there are fewer than two rows of features.
        """
        rows = 0
        pivot = total = square = torch.zeros(())
        for part in x.split(batch):
            features = self.fn(part).double()
            if rows == 0:  # sums about a point inside the data do not cancel
                pivot = features.mean(0)
                total = torch.zeros_like(pivot)
                square = torch.zeros_like(pivot).diag()
            features = features - pivot
            rows += len(features)
            total = total + features.sum(0)
            square = square + features.T @ features
        if rows < 2:
            raise UserError(f"A covariance needs two rows of features. Got {rows}.")
        mean = total / rows
        return pivot + mean, (square - rows * torch.outer(mean, mean)) / (rows - 1)

    def distance(self, x: Float[Tensor, "n *dims"], reference: Float[Tensor, "m *dims"], batch: int = 512) -> float:
        """Squared Frechet distance between samples and reference in this space.

        Its bias is positive and of order ``d / n``: compare values at equal sample counts.
        """
        return frechet_distance(*self.moments(x, batch), *self.moments(reference, batch))


@runtime_checkable
class Features(Protocol):
    """What makes a feature space, knowing the clean reference and never the samples."""

    def fit(self, reference: Tensor, /) -> FeatureSpace: ...


@dataclass(frozen=True)
class Pixels:
    """All values, flattened. Sees everything that two moments see; needs more images than values."""

    def fit(self, reference: Float[Tensor, "m *dims"]) -> FeatureSpace:
        """The space, whatever the reference."""
        return FeatureSpace("pixels", _flatten)


@dataclass(frozen=True)
class Pca:
    """Coordinates along the reference's principal directions: layout and large strokes, from few images.

    Blind to what lies off these directions, most noise included. The distance does not depend on the basis chosen
    within their span. The space is named by the number of directions in use, at most the rank of the reference.

    Args:
        directions: how many to keep.
    """

    directions: int = 32

    def fit(self, reference: Float[Tensor, "m *dims"]) -> FeatureSpace:
        """Projection onto the directions of largest variance of the ``reference``.

        Raises:
            UserError: no direction is asked for, or the reference has no variance.
        """
        _, covariance = FeatureSpace("pixels", _flatten).moments(reference)
        variance, basis = torch.linalg.eigh(covariance)
        rank = int((variance > variance[-1] * 1e-10).sum())
        if self.directions < 1 or rank == 0:
            raise UserError(f"Cannot keep {self.directions} of {rank} principal directions. Expected at least one.")
        kept = min(self.directions, rank)
        top = basis[:, -kept:]
        return FeatureSpace(f"pca{kept}", lambda x: x.flatten(1).double() @ top)


@dataclass(frozen=True)
class Patches:
    """Every patch of every image, pooled: noise and texture, from few images, as a patch has few values.

    Blind to where a patch sits, hence to layout.

    Args:
        size: side of a patch in pixels.
    """

    size: int = 4

    def fit(self, reference: Float[Tensor, "m c h w"]) -> FeatureSpace:
        """The space, whatever the reference.

        Raises:
            UserError: a patch does not fit into the images.
        """
        if not 1 <= self.size <= min(reference.shape[2:]):
            h, w = reference.shape[2:]
            raise UserError(f"Patches of size {self.size} do not fit {h}x{w} images. Expected 1 to {min(h, w)}.")
        return FeatureSpace(
            f"patches{self.size}", lambda x: nn.functional.unfold(x, self.size).transpose(1, 2).flatten(0, 1)
        )


FEATURES: dict[str, Callable[..., Features]] = {"pixels": Pixels, "pca": Pca, "patches": Patches}


def _root(cov: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh((cov + cov.T) / 2)
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.T


def _median(x: Float[Tensor, "n m"]) -> Float[Tensor, "n"]:
    """Row medians; torch's median is the lower of the middle two, which is biased for few values."""
    return (x.median(1).values - (-x).median(1).values) / 2


def _flatten(x: Tensor) -> Tensor:
    return x.flatten(1)
