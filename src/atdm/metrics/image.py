"""Measures of images, without a network: residual noise and closeness to clean images.

Images are ``[n, c, h, w]`` in [-1, 1]; a noise std is in that scale.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ..errors import UserError

# E|z| <= 0.6745 half of the time for z ~ N(0, 1): the median absolute deviation in units of the std.
NORMAL_MAD = 0.6744897501960817
SIDE = 7  # of the windows of SSIM, pixels


def residual_noise_std(x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n"]:
    """Noise std of each image: median ``|HH| / 0.6745`` of its finest wavelet details (Donoho & Johnstone 1994).

    The median over an image's channels and positions ignores the few details that edges leave. Haar, at every shift
    and without padding: its 2x2 support keeps the most details of a small image (49 of 8x8), so it varies least from
    image to image there, and on 32x32 photographs it is within 2 % of db2. On flat images it is unbiased within 1 %
    from 16x16 up; on 8x8 grayscale its mean is about 2 % high and one image's value varies by 20 %. Content finer than
    two pixels reads as noise (clean 8x8 digits: 0.28), so compare with the value of the reference.

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


def ssim(x: Float[Tensor, "n c h w"], y: Float[Tensor, "n c h w"], data_range: float = 2.0) -> Float[Tensor, "n"]:
    """Structural similarity of each pair, 1 for equal images (Wang 2004): uniform 7x7 windows and sample covariances.

    As ``skimage.metrics.structural_similarity`` has it by default: means over all whole windows and channels.

    Raises:
        UserError: the images are smaller than 7x7.
    """
    if min(x.shape[2:]) < SIDE:
        raise UserError(f"SSIM of {x.shape[2]}x{x.shape[3]} images. Expected {SIDE}x{SIDE} or larger.")
    x, y = x.double(), y.double()
    mean = lambda a: nn.functional.avg_pool2d(a, SIDE, 1)  # noqa: E731
    u, v, sample = mean(x), mean(y), SIDE**2 / (SIDE**2 - 1)
    xx, yy, xy = (sample * (mean(a * b) - mean(a) * mean(b)) for a, b in ((x, x), (y, y), (x, y)))
    c, d = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    found = (2 * u * v + c) * (2 * xy + d) / ((u**2 + v**2 + c) * (xx + yy + d))
    return found.flatten(1).mean(1).float()


def nearest_psnr(
    x: Float[Tensor, "n *dims"], reference: Float[Tensor, "m *dims"], data_range: float = 2.0, batch: int = 512
) -> Float[Tensor, "n"]:
    """PSNR in dB of each sample to its nearest neighbour in the clean ``reference``.

    Closeness to clean images, not quality alone: it grows with the size of the reference, and a copy scores infinity.
    """
    clean = reference.flatten(1)
    nearest = torch.cat([torch.cdist(part, clean).argmin(1) for part in x.flatten(1).split(batch)])
    return psnr(x, reference[nearest], data_range)


def _median(x: Float[Tensor, "n m"]) -> Float[Tensor, "n"]:
    """Row medians; torch's median is the lower of the middle two, which is biased for few values."""
    return (x.median(1).values - (-x).median(1).values) / 2
