"""Items by index: floats in memory, or floats and ``uint8`` pixels that stay on disk until they are asked for."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped, UInt8
from torch import Tensor

from ..errors import UserError, first_line
from ..files import Damaged, Sums

AT_ONCE = 2**27  # bytes of items that are checked when their file is opened
AGAIN = "Remove that file, and the same command makes it again."


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


class Joined:
    """The items of two sets, one after the other.

    Raises:
        UserError: their shapes differ.
    """

    def __init__(self, first: Items, second: Items) -> None:
        self.item_shape = tuple(first.item_shape)
        if tuple(second.item_shape) != self.item_shape:
            raise UserError(
                f"Items of shape {list(second.item_shape)} cannot join those of {list(self.item_shape)}. Expected one shape."
            )
        self.first, self.second = first, second

    def __len__(self) -> int:
        return len(self.first) + len(self.second)

    def __getitem__(self, indices: Int[Tensor, "b"]) -> Float[Tensor, "b *item"]:
        later = indices >= len(self.first)
        x = torch.empty(len(indices), *self.item_shape)
        x[~later] = self.first[indices[~later]]
        x[later] = self.second[indices[later] - len(self.first)]
        return x


class _Kept:
    """An array in memory or mapped from an .npy file; of a file, items are checked as they are read, where it has checksums."""

    def __init__(self, array: np.ndarray | Path) -> None:
        self.path = array if isinstance(array, Path) else None
        self.array = _opened(array) if isinstance(array, Path) else array
        self.item_shape = tuple(self.array.shape[1:])
        self._sums = None if self.path is None else Sums.load(self.path, len(self.array))

    def __reduce__(self) -> tuple[type[_Kept], tuple[np.ndarray | Path]]:
        return type(self), (self.path or self.array,)

    def __len__(self) -> int:
        return len(self.array)

    def kept(self, indices: Int[Tensor, "b"]) -> np.ndarray:
        """These items as they are kept.

        Raises:
            Damaged: one is not as it was written.
        """
        numbers = indices.numpy()
        items = self.array[numbers]
        if self._sums is not None and self.path is not None:
            self._sums.require(items, numbers, self.path)
        return items

    def sums(self) -> np.ndarray:
        """The CRC-32 of each item."""
        return Sums.of(self.array).values if self._sums is None else self._sums.values

    def require_whole(self) -> None:
        """Check all items of a file that is read in a moment; those of a larger one are checked when they are read.

        Raises:
            Damaged: one is not as it was written.
        """
        if self.array.nbytes <= AT_ONCE:
            for indices in torch.arange(len(self)).split(64):
                self.kept(indices)


class Mapped(_Kept):
    """Floats mapped from an .npy file, which another process then maps for itself."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        if self.array.dtype != np.float32:
            raise Damaged(f"{path} is damaged: it holds {self.array.dtype}. {AGAIN}")

    def __getitem__(self, indices: Int[Tensor, "b"]) -> Float[Tensor, "b *item"]:
        return torch.from_numpy(self.kept(indices))


class Pixels(_Kept):
    """Images as ``uint8``, in memory or mapped from an .npy file, which another process then maps for itself."""

    def __init__(self, pixels: UInt8[np.ndarray, "n c h w"] | Path) -> None:
        super().__init__(pixels)
        if self.array.dtype != np.uint8 or self.array.ndim != 4:
            raise Damaged(f"{pixels} is damaged: it holds {self.array.dtype} of {self.array.shape}. {AGAIN}")

    def __getitem__(self, indices: Int[Tensor, "b"]) -> Float[Tensor, "b *item"]:
        return torch.from_numpy(self.kept(indices)).float().div_(127.5).sub_(1)


def _opened(path: Path) -> np.ndarray:
    """The array of an .npy file, mapped.

    Raises:
        Damaged: it is none.
        FileNotFoundError: there is no such file.
    """
    try:
        return np.load(path, mmap_mode="r")
    except FileNotFoundError:
        raise
    except Exception as problem:  # a header is Python, and may be damaged into any other
        raise Damaged(f"{path} is damaged: {first_line(problem)}. {AGAIN}") from problem


def write_header(file: Any, kind: str, shape: tuple[int, ...]) -> None:
    """The first bytes of an .npy file of items, for which numpy takes as much room whatever their number."""
    np.lib.format.write_array_header_1_0(file, {"descr": kind, "fortran_order": False, "shape": shape})


def write_items(path: Path, parts: Iterable[Shaped[np.ndarray, "k *item"]]) -> Sums:
    """Write items to an .npy file and see them onto the disk, a few at a time: how many there are is known only at the end.

    Returns:
        Their checksums.
    """
    sums: list[np.ndarray] = []
    with open(path, "wb") as file:
        for part in parts:
            if not sums:
                write_header(file, part.dtype.str, (0, *part.shape[1:]))
            file.write(part.tobytes())
            sums.append(Sums.of(part).values)
        whole = Sums(np.concatenate(sums))
        file.seek(0)
        write_header(file, part.dtype.str, (len(whole.values), *part.shape[1:]))
        file.flush()
        os.fsync(file.fileno())
    return whole


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
