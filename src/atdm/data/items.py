"""Items by index: floats in memory, or floats and ``uint8`` pixels that stay on disk until they are asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from ..errors import UserError


@runtime_checkable
class Items(Protocol):
    """A sequence of equally shaped items, read by many indices at once."""

    @property
    def item_shape(self) -> tuple[int, ...]:
        """The shape of one item."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, indices: Int[Tensor, "b"]) -> Float[Tensor, "b *item"]:
        """A copy of these items as floats, images in [-1, 1]."""
        ...


class Floats:
    """Items in memory.

    Raises:
        UserError: a value is not finite.
    """

    def __init__(self, x: Float[Tensor, "n *item"]) -> None:
        if not bool(x.isfinite().all()):
            raise UserError("The data hold values that are not finite. Expected numbers.")
        self.x = x.cpu()
        self.item_shape = tuple(x.shape[1:])

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, indices: Int[Tensor, "b"]) -> Float[Tensor, "b *item"]:
        return self.x[indices]


class Mapped:
    """Floats mapped from an .npy file, which another process then maps for itself."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.floats = np.load(path, mmap_mode="r")
        self.item_shape = tuple(self.floats.shape[1:])

    def __reduce__(self) -> tuple[type[Mapped], tuple[Path]]:
        return Mapped, (self.path,)

    def __len__(self) -> int:
        return len(self.floats)

    def __getitem__(self, indices: Int[Tensor, "b"]) -> Float[Tensor, "b *item"]:
        return torch.from_numpy(self.floats[indices.numpy()])


class Pixels:
    """Images as ``uint8``, in memory or mapped from an .npy file, which another process then maps for itself."""

    def __init__(self, pixels: UInt8[np.ndarray, "n c h w"] | Path) -> None:
        self.path = pixels if isinstance(pixels, Path) else None
        self.pixels = np.load(pixels, mmap_mode="r") if isinstance(pixels, Path) else pixels
        self.item_shape = tuple(self.pixels.shape[1:])

    def __reduce__(self) -> tuple[type[Pixels], tuple[np.ndarray | Path]]:
        return Pixels, (self.path or self.pixels,)

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, indices: Int[Tensor, "b"]) -> Float[Tensor, "b *item"]:
        return torch.from_numpy(self.pixels[indices.numpy()]).float().div_(127.5).sub_(1)


def every(items: Items, window: int | None = None) -> Float[Tensor, "n *item"]:
    """All items in memory; of images the central ``window``."""
    out = [items[torch.arange(at, min(at + 4096, len(items)))] for at in range(0, len(items), 4096)]
    x = torch.cat(out) if len(out) > 1 else out[0]
    if window is None:
        return x
    top, left = ((side - window) // 2 for side in x.shape[2:])
    return x[:, :, top : top + window, left : left + window].contiguous()


def to_uint8(x: Float[Tensor, "*shape"]) -> UInt8[Tensor, "*shape"]:
    """Images in [-1, 1] as bytes: -1 is 0, 1 is 255, rounded; what lies outside is clipped."""
    return ((x + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
