"""Images of which some pixels were replaced: salt and pepper, missing pixels, blank patches. No such corruption is Gaussian noise."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

STEP = 1 / 127.5  # of 8 bits, in [-1, 1]
JUMP = 0.15  # smallest step to the pixels around
BEYOND = 5.0  # in stds of what the other pixels differ from those around them
RATE = 0.008  # share of the pixels from which on an image counts: corners and thin lines look replaced, too
BLANK = 0.03  # the same of mid-gray areas


def replaced_share(x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n"]:
    """Share of the pixels of each image that look replaced: 0 where it is no larger than in clean images.

    These are pixels that are black, white or mid-gray in all channels and far from the median of the pixels around them,
    and areas that are mid-gray all over.
    """
    out = torch.zeros(len(x))
    for indices in torch.arange(len(x)).split(256):
        part = x[indices]
        luma = part.mean(1)
        neutral = part.amax(1) - part.amin(1) < STEP / 2
        middle = neutral & (luma.abs() < STEP)
        extreme = neutral & ((luma.abs() - 1).abs() < STEP / 2)
        some = torch.nonzero((middle | extreme).flatten(1).float().mean(1) >= RATE)[:, 0]
        if len(some):
            out[indices[some]] = _share(luma[some], middle[some], middle[some] | extreme[some])
    return out


def _share(luma: Tensor, middle: Tensor, special: Tensor) -> Float[Tensor, "n"]:
    n, h, w = luma.shape
    around = nn.functional.unfold(nn.functional.pad(luma[:, None], (1, 1, 1, 1), mode="reflect"), 3)
    off = (luma - around.median(1).values.view(n, h, w)).abs().flatten(1)
    usual = 1.4826 * off.masked_fill(special.flatten(1), torch.nan).nanmedian(1, keepdim=True).values
    lone = (special.flatten(1) & (off > JUMP + BEYOND * usual.nan_to_num(0.0))).float().mean(1)
    whole = nn.functional.avg_pool2d(middle[:, None].float(), 3, 1).eq(1).flatten(1).float().sum(1) / (h * w)
    return torch.where(lone >= RATE, lone, 0.0) + torch.where(whole >= BLANK, whole, 0.0)
