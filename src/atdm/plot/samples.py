"""Samples as pictures and files."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from ..data.items import to_uint8
from ..errors import UserError
from ..files import atomic, require_writable


def grid(x: Float[Tensor, "n channels height width"], columns: int | None = None) -> UInt8[Tensor, "rgb H W"]:
    """The images (in [-1, 1]) in rows of ``columns`` (default: a square) with white lines between them."""
    from torchvision.utils import make_grid

    _check_images(x)
    return make_grid(to_uint8(x), nrow=columns or math.ceil(math.sqrt(len(x))), padding=1, pad_value=255)


def save_samples(x: Float[Tensor, "n *item"], path: str | Path) -> Path:
    """Write samples: ``NAME.npz`` (float32 array ``samples``), ``NAME.png`` (grid) or ``NAME`` (folder of PNGs).

    The file or folder appears whole or not at all.

    Raises:
        UserError: another ending, items that are not images for PNG, a folder that holds something, or a failed write.
    """
    path = Path(path)
    check_target(path, tuple(x.shape[1:]))
    x = x.detach().float().cpu()
    if path.suffix != ".npz":
        _check_images(x)
    with atomic(path) as scratch:
        if path.suffix == ".npz":
            np.savez(scratch, samples=x.numpy())
        elif path.suffix == ".png":
            save_picture(grid(x), scratch)
        else:
            scratch.mkdir()
            digits = len(str(len(x) - 1))
            for i, image in enumerate(to_uint8(x)):
                save_picture(image, scratch / f"{i:0{digits}d}.png")
    return path


def check_target(path: Path, item_shape: tuple[int, ...]) -> None:
    """Whether samples of ``item_shape`` can go to ``path``, to be asked before they are drawn.

    Raises:
        UserError: as :func:`save_samples`.
    """
    if path.suffix not in (".npz", ".png", ""):
        raise UserError(
            f"Cannot write samples to '{path}'. Expected NAME.npz, NAME.png for a grid, or NAME for a folder of PNGs."
        )
    if path.suffix != ".npz":
        _check_images(torch.empty(1, *item_shape, device="meta"))
    if path.suffix == "" and path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UserError(f"'{path}' is already there. Expected a new name or an empty folder.")
    if path.suffix and path.is_dir():
        raise UserError(f"'{path}' is a folder. Expected the name of a file.")
    require_writable(path)


def save_picture(image: UInt8[Tensor, "channels height width"], file: Path) -> None:
    """Write one picture, of the format that the ending says."""
    from PIL import Image

    pixels = image.squeeze(0) if len(image) == 1 else image.permute(1, 2, 0)
    Image.fromarray(pixels.numpy()).save(file)


def _check_images(x: Tensor) -> None:
    if x.dim() != 4 or x.shape[1] not in (1, 3) or len(x) == 0:
        raise UserError(
            f"Items of shape {list(x.shape[1:])} are not pictures. Expected [1 or 3 channels, height, width]; "
            "write other data to NAME.npz."
        )
