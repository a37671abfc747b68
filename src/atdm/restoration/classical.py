"""Denoisers that need no training, to compare with: non-local means, wavelets, and BM3D where it is installed.

Sources: Buades 2005 (non-local means), Chang 2000 (BayesShrink), Dabov 2007 and Mäkinen 2020 (BM3D), in the implementations of
scikit-image and of BM3D's authors. Each is given the noise std of each image. Images are in [-1, 1].
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import UserError

LEAST = 16  # pixels of a side, below which the library of BM3D crashes
BM3D = "BM3D"

Denoiser = Callable[[Any, float], Any]  # of an image [h, w] or [h, w, 3] in [0, 1] and its noise std


def denoisers(item_shape: tuple[int, ...]) -> Mapping[str, Denoiser]:
    """The denoisers for images of this shape by name: BM3D is among them where it is installed and takes such images.

    Raises:
        UserError: scikit-image is not installed, or the items are not images.
    """
    if len(item_shape) != 3:
        raise UserError(
            f"Items of shape {list(item_shape)} are no images, and the denoisers to compare with are for images."
        )
    if find_spec("skimage") is None:
        raise UserError(
            "Comparing with other denoisers needs scikit-image. Expected it installed: pip install scikit-image."
        )
    found: dict[str, Denoiser] = {"non-local means": _non_local_means, "wavelets": _wavelets}
    if find_spec("bm3d") is not None and min(item_shape[1:]) >= LEAST:
        found[BM3D] = _bm3d
    return found


def denoised(way: Denoiser, x: Float[Tensor, "n c h w"], stds: Float[Tensor, "n"]) -> Float[Tensor, "n c h w"]:
    """Images denoised one by one, clipped to [-1, 1]; those without noise as they are.

    Args:
        stds: noise std of each, in the scale of [-1, 1].
    """
    out = x.clone()
    for i in torch.nonzero(stds > 0)[:, 0].tolist():
        picture = ((x[i].double() + 1) / 2).permute(1, 2, 0).numpy()
        gray = picture.shape[2] == 1
        made = np.asarray(way(picture[:, :, 0] if gray else picture, float(stds[i]) / 2))
        restored = torch.from_numpy(made[:, :, None] if gray else made).permute(2, 0, 1)
        out[i] = (2 * restored - 1).clamp(-1, 1).to(x)
    return out


def _axis(picture: Any) -> int | None:
    return -1 if picture.ndim == 3 else None


def _non_local_means(picture: Any, std: float) -> Any:
    from skimage.restoration import denoise_nl_means

    # size, distance and h as scikit-image's own example of the slow, better mode has them
    size: dict[str, Any] = {"patch_size": 5, "patch_distance": 6, "fast_mode": False}
    return denoise_nl_means(picture, **size, h=0.6 * std, sigma=std, channel_axis=_axis(picture))


def _wavelets(picture: Any, std: float) -> Any:
    from skimage.restoration import denoise_wavelet

    axis = _axis(picture)
    return denoise_wavelet(picture, sigma=std, channel_axis=axis, convert2ycbcr=axis is not None, rescale_sigma=True)


def _bm3d(picture: Any, std: float) -> Any:
    import bm3d

    return (bm3d.bm3d_rgb if picture.ndim == 3 else bm3d.bm3d)(picture, std)
