"""U-Nets for images: presets over diffusers' ``UNet2DModel``.

Sources: Nichol & Dhariwal 2021 (Improved DDPM, arXiv 2102.09672; hyperparameters of its published code) for ``cifar10``
and, as its 64x64 ImageNet network, ``celeba64``. ``tiny`` and ``digits`` are ours, for CPUs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import UserError, expect

if TYPE_CHECKING:
    from diffusers import UNet2DModel

MOST_LAYERS = 1000  # of one kind: more take minutes to be made only to be too large


@dataclass(frozen=True)
class UNet:
    """The options of a U-Net; calling it with an item shape ``(channels, height, width)`` builds the network.

    Args:
        channels: channels of the first level.
        multipliers: channels of each level as multiples of ``channels``; every level but the first halves the side.
        blocks: residual blocks in each level.
        attention: sides at which self-attention is applied, such as ``16-8`` (none: only in the middle).
        head_dim: channels of an attention head.
        dropout: in the residual blocks.
        scale_shift: the time embedding scales and shifts the normalized activations, else it is added (Nichol 2021).
    """

    channels: int = 128
    multipliers: str = "1-2-2-2"
    blocks: int = 2
    attention: str | None = "16-8"
    head_dim: int = 64
    dropout: float = 0.0
    scale_shift: bool = True

    def __call__(self, item_shape: tuple[int, ...], classes: int | None = None) -> UNet2DModel:
        """A freshly initialized network for images of ``item_shape``.

        Args:
            classes: how many class labels it can be given; None: none.

        Raises:
            UserError: the items are not images, or their sides cannot be halved as often as there are levels.
        """
        multipliers = _numbers(self.multipliers, "multipliers")
        attention = _numbers(self.attention, "attention") if self.attention else []
        if len(item_shape) != 3:
            raise UserError(
                f"A U-Net needs images (channels, height, width); the items have shape {item_shape}. "
                "For vectors use the network 'mlp'."
            )
        colors, *sides = item_shape
        halvings = 2 ** (len(multipliers) - 1)
        if any(side % halvings for side in sides):
            raise UserError(
                f"Images of {sides[0]}x{sides[1]} pixels do not fit a U-Net of {len(multipliers)} levels: "
                f"both sides must be divisible by {halvings}. Use fewer multipliers, or another image size."
            )
        if min(self.channels, self.blocks, self.head_dim) < 1:
            raise UserError("channels, blocks and head_dim of a U-Net must be at least 1.")
        if self.blocks > MOST_LAYERS:
            raise UserError(f"The U-Net has {self.blocks} blocks in each level. Expected at most {MOST_LAYERS}.")
        expect(0 <= self.dropout < 1, "The dropout of the network", self.dropout, "a number in [0, 1)")
        widths = [self.channels * m for m in multipliers]
        attends = [sides[0] >> level in attention for level in range(len(multipliers))]
        heads = [w for w, a in zip(widths, attends, strict=True) if a] + widths[-1:]
        if any(w % min(self.head_dim, w) for w in heads):
            raise UserError(
                f"head_dim {self.head_dim} does not divide the channels of an attention level ({heads}). "
                f"Expected a divisor such as {math.gcd(*heads)}."
            )

        from diffusers import UNet2DModel

        return UNet2DModel(
            sample_size=sides[0] if sides[0] == sides[1] else (sides[0], sides[1]),
            in_channels=colors,
            out_channels=colors,
            layers_per_block=self.blocks,
            block_out_channels=tuple(widths),
            down_block_types=tuple("AttnDownBlock2D" if a else "DownBlock2D" for a in attends),
            up_block_types=tuple("AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attends)),
            attention_head_dim=min(self.head_dim, *heads),
            norm_num_groups=math.gcd(32, self.channels),
            dropout=self.dropout,
            resnet_time_scale_shift="scale_shift" if self.scale_shift else "default",
            num_class_embeds=classes,
        )


@dataclass(frozen=True)
class DigitsUNet(UNet):
    """0.4 million parameters for 8x8 images."""

    channels: int = 24
    multipliers: str = "1-2"
    blocks: int = 1
    attention: str | None = "4"
    head_dim: int = 24


@dataclass(frozen=True)
class TinyUNet(UNet):
    """0.6 million parameters for 16x16 and 32x32 images on a CPU."""

    channels: int = 24
    multipliers: str = "1-2-2"
    blocks: int = 1
    attention: str | None = None
    head_dim: int = 24


@dataclass(frozen=True)
class Cifar10UNet(UNet):
    """The unconditional CIFAR-10 network of Improved DDPM: 3 blocks a level, attention at 16 and 8, dropout 0.3."""

    blocks: int = 3
    dropout: float = 0.3


@dataclass(frozen=True)
class CelebA64UNet(UNet):
    """The 64x64 network of Improved DDPM: channel multipliers 1, 2, 3, 4, 3 blocks a level, attention at 16 and 8."""

    multipliers: str = "1-2-3-4"
    blocks: int = 3


def _numbers(text: str, option: str) -> list[int]:
    try:
        numbers = [int(part) for part in text.split("-")]
    except ValueError:
        numbers = []
    if not numbers or min(numbers) < 1:
        raise UserError(
            f"Cannot read {option} '{text}' of a U-Net. Expected whole numbers joined by '-', such as 1-2-2."
        )
    return numbers
