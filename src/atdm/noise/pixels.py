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
    0.03  # the same of mid-gray areas, and of mid-gray pixels that are SPIKE times as many as those of any other shade
)
SPIKE = 4.0
BINS = 128  # of shades
SHADES = 24  # that a photo has at least, or one in FEW pixels; drawings have fewer
FEW = 4
DRAWN = 0.5  # share of black and white in an image without color from which on it is drawn, too


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
    areas that are mid-gray all over, and all mid-gray pixels of images that have far more of them than of any other shade. In drawings
    nothing looks replaced: images of few shades, or mostly black and white.
    """
    middle, extreme = _special(x)
    special, luma = middle | extreme, x.mean(1, keepdim=True)
    shades = _shades(luma, ~special)
    plain = shades.sum(1)
    photo = _images((shades > 0).sum(1) >= (plain / FEW).clamp(max=SHADES))
    photo &= ~(_at_least(extreme, DRAWN) & _at_least(_neutral(x), 1.0))
    spike = _images(middle.flatten(1).sum(1) > SPIKE * shades.amax(1))
    off = (luma - around(luma).median(2).values).abs().flatten(1)
    usual = 1.4826 * off.masked_fill(special.flatten(1), torch.nan).nanmedian(1, keepdim=True).values
    lone = special & (off > JUMP + BEYOND * usual.nan_to_num(0.0)).view_as(luma)
    inside = nn.functional.avg_pool2d(middle.float(), 3, 1, 1).eq(1)  # of areas: all pixels around are mid-gray, too
    area = nn.functional.max_pool2d(inside.float(), 3, 1, 1).bool() & _at_least(inside, BLANK)
    return photo & ((lone & _at_least(lone, RATE)) | area | (middle & spike & _at_least(middle, BLANK)))


def around(x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c 9 h w"]:
    """The 3x3 pixels around each pixel, itself among them; beyond the edges the image is mirrored."""
    n, c, h, w = x.shape
    return nn.functional.unfold(nn.functional.pad(x, (1, 1, 1, 1), mode="reflect"), 3).view(n, c, 9, h, w)


def _special(x: Tensor) -> tuple[Bool[Tensor, "n 1 h w"], Bool[Tensor, "n 1 h w"]]:
    """The pixels that are mid-gray, and those that are black or white, in all channels alike."""
    luma, neutral = x.mean(1, keepdim=True), _neutral(x)
    return neutral & (luma.abs() < STEP), neutral & ((luma.abs() - 1).abs() < STEP / 2)


def _neutral(x: Tensor) -> Bool[Tensor, "n 1 h w"]:
    """The pixels that are alike in all channels."""
    return x.amax(1, keepdim=True) - x.amin(1, keepdim=True) < STEP / 2


def _shades(luma: Float[Tensor, "n 1 h w"], use: Bool[Tensor, "n 1 h w"]) -> Float[Tensor, "n bins"]:
    """How many of the pixels in use have each shade."""
    shade = ((luma + 1) * (BINS / 2)).long().clamp(0, BINS - 1).flatten(1)
    return luma.new_zeros(len(luma), BINS).scatter_add(1, shade, use.flatten(1).to(luma))


def _images(chosen: Bool[Tensor, "n"]) -> Bool[Tensor, "n 1 1 1"]:
    return chosen[:, None, None, None]


def _at_least(chosen: Bool[Tensor, "n 1 h w"], share: float) -> Bool[Tensor, "n 1 1 1"]:
    return chosen.float().mean((1, 2, 3), keepdim=True) >= share
