"""Images of which some pixels were replaced: salt and pepper, missing pixels, blank patches. No such corruption is Gaussian noise."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

STEP = 1 / 127.5  # of 8 bits, in [-1, 1]
JUMP = 0.15  # smallest step to the pixels around
BEYOND = 5.0  # in stds of what the other pixels differ from those around them
RATE = 0.008  # share of the pixels from which on an image counts: corners and thin lines look replaced, too
BLANK = (
    0.03  # the same of mid-gray areas, and of mid-gray pixels that are more than SPIKE times those that are nearly so
)
SPIKE = 4.0


def replaced_share(x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n"]:
    """Share of the pixels of each image that look replaced: 0 where it is no larger than in clean images."""
    out = torch.zeros(len(x))
    for indices in torch.arange(len(x)).split(256):
        part = x[indices]
        middle, extreme = _special(part)
        some = torch.nonzero((middle | extreme).flatten(1).float().mean(1) >= RATE)[:, 0]
        if len(some):
            out[indices[some]] = replaced_pixels(part[some]).flatten(1).float().mean(1).cpu()
    return out


def replaced_pixels(x: Float[Tensor, "n c h w"]) -> Bool[Tensor, "n 1 h w"]:
    """The pixels of each image that look replaced, where they are more than in clean images.

    These are pixels that are black, white or mid-gray in all channels and far from the median of the pixels around them,
    areas that are mid-gray all over, and all mid-gray pixels of images that have far more of them than of the next shades.
    """
    middle, extreme = _special(x)
    near = _neutral(x, 3 * STEP) & ~middle  # twice as many shades
    spike = _at_least(middle, BLANK) & (_mean(middle) > SPIKE * _mean(near) / 2)
    special, luma = middle | extreme, x.mean(1, keepdim=True)
    off = (luma - around(luma).median(2).values).abs().flatten(1)
    usual = 1.4826 * off.masked_fill(special.flatten(1), torch.nan).nanmedian(1, keepdim=True).values
    lone = special & (off > JUMP + BEYOND * usual.nan_to_num(0.0)).view_as(special)
    inside = nn.functional.avg_pool2d(middle.float(), 3, 1, 1).eq(1)  # of areas: all pixels around are mid-gray, too
    area = nn.functional.max_pool2d(inside.float(), 3, 1, 1).bool()
    return (lone & _at_least(lone, RATE)) | (area & _at_least(inside, BLANK)) | (middle & spike)


def around(x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c 9 h w"]:
    """The 3x3 pixels around each pixel, itself among them; beyond the edges the image is mirrored."""
    n, c, h, w = x.shape
    return nn.functional.unfold(nn.functional.pad(x, (1, 1, 1, 1), mode="reflect"), 3).view(n, c, 9, h, w)


def _special(x: Tensor) -> tuple[Bool[Tensor, "n 1 h w"], Bool[Tensor, "n 1 h w"]]:
    """The pixels that are mid-gray, and those that are black or white, in all channels alike."""
    return _neutral(x, STEP), _neutral(x - 1, STEP / 2) | _neutral(x + 1, STEP / 2)


def _neutral(x: Tensor, below: float) -> Bool[Tensor, "n 1 h w"]:
    """The pixels that are alike in all channels, and nearer to 0 than this."""
    alike = x.amax(1, keepdim=True) - x.amin(1, keepdim=True) < STEP / 2
    return alike & (x.mean(1, keepdim=True).abs() < below)


def _mean(chosen: Tensor) -> Tensor:
    return chosen.float().mean((1, 2, 3), keepdim=True)


def _at_least(chosen: Tensor, share: float) -> Tensor:
    return _mean(chosen) >= share
