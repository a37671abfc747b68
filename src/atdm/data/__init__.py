"""Data sets by spec. Images are float32 in [-1, 1], channels first; vectors are in their own units."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from .. import spec as specs
from ..errors import UserError, nearest
from . import images
from .subspace import Subspace
from .toy import TOYS, Toy

DIGITS_HELD_OUT = 297


@dataclass(frozen=True)
class Dataset:
    """Clean data, and what is known of its truth.

    Args:
        x: the items, ``[-1, 1]`` for images.
        kind: vectors or images.
        spec: what was asked for.
        truth: the distribution (toys) or the subspace (projected images) the data come from.
        test: clean items kept apart from training; None where there are none.
        notes: sentences on what was converted or skipped on reading.
    """

    x: Float[Tensor, "n *item"]
    kind: Literal["vector", "image"]
    spec: str
    truth: Any = None
    test: Float[Tensor, "m *item"] | None = None
    notes: tuple[str, ...] = ()

    @property
    def item_shape(self) -> tuple[int, ...]:
        return tuple(self.x.shape[1:])


@dataclass(frozen=True)
class Digits:
    """scikit-learn's 1,797 handwritten digits, 8x8; ``subspace=k`` projects them onto their first k principal directions."""

    subspace: int | None = None


@dataclass(frozen=True)
class Folder:
    path: str


@dataclass(frozen=True)
class Parquet:
    path: str
    column: str | None = None


@dataclass(frozen=True)
class Npz:
    """Items as ``atdm corrupt`` or ``atdm sample`` wrote them: the float array ``samples`` (or the only one there)."""

    path: str


@dataclass(frozen=True)
class Hub:
    name: str
    split: str = "train"
    column: str | None = None


@dataclass(frozen=True)
class Torchvision:
    name: str
    root: str = "data"
    split: str = "train"
    download: bool = False


DATASETS: dict[str, Any] = {
    **TOYS,
    "digits": Digits,
    "folder": Folder,
    "parquet": Parquet,
    "npz": Npz,
    "hub": Hub,
    "torchvision": Torchvision,
}


PATHS: dict[str, Any] = {"folder": Folder, "parquet": Parquet, "npz": Npz}


def load(
    spec: str, *, seed: int = 0, image_size: int | None = None, limit: int | None = None, skip_broken: bool = False
) -> Dataset:
    """The data set a spec names: ``plane:n=5000``, ``digits:subspace=16``, a folder, ``photos/*.parquet``, ``hub:name=...``.

    Args:
        seed: of the draws of a toy and of the held-out split of the digits.
        image_size: side to resize and crop images to; None keeps their size.
        limit: use so many items; of images a choice by ``seed``, for files are often sorted by class.
        skip_broken: leave unreadable images out instead of stopping.

    Raises:
        UserError: the spec is unknown or what it names cannot be read.
    """
    if limit is not None and limit < 2:
        raise UserError(f"limit is {limit}. Expected at least 2 items, or none.")
    if image_size is not None and image_size < 1:
        raise UserError(f"image_size is {image_size}. Expected a positive number of pixels.")
    source = _source(spec)
    if isinstance(source, Toy):
        if image_size is not None:
            raise UserError(f"image_size is {image_size}, but {spec} holds vectors. Expected none.")
        points = source.sample(source.n, torch.Generator().manual_seed(seed))
        test = source.sample(min(source.n, 10_000), torch.Generator().manual_seed(seed + 1_000_003))
        return Dataset(points[:limit], "vector", spec, source, test)
    if isinstance(source, Digits):
        return _digits(source, spec, seed, image_size, limit)
    if isinstance(source, Npz):
        return _npz(source, spec, seed, image_size, limit)
    held_out: list[images.Item] = []
    if isinstance(source, Folder):
        items = images.from_folder(Path(source.path).expanduser())
    elif isinstance(source, Parquet):
        items, held_out = images.from_parquet(str(Path(source.path).expanduser()), source.column)
    elif isinstance(source, Hub):
        items = images.from_hub(source.name, source.split, source.column)
    else:
        items = images.from_torchvision(source.name, source.root, source.split, source.download)
    x, notes = images.read(items, image_size, limit, skip_broken, seed)
    held: Tensor | None = None
    if held_out:
        held, more = images.read(held_out, image_size, limit, skip_broken, seed)
        notes += tuple(f"Held out: {note}" for note in more)
        if held.shape[1:] != x.shape[1:]:
            raise UserError(
                f"Items are {list(x.shape[1:])}, held-out items {list(held.shape[1:])}. Expected one shape."
            )
    if len(x) < 2:
        raise UserError(f"{spec} holds {len(x)} image. Expected at least 2.")
    return Dataset(x, "image", spec, test=held, notes=notes)


def _source(spec: str) -> Any:
    name, _, rest = spec.partition(":")
    if name in PATHS and rest and not rest.startswith("path="):
        return PATHS[name](rest)  # a path may hold the commas and equals signs that options are made of
    path = Path(spec).expanduser()
    if spec.partition(":")[0] not in DATASETS:
        if path.is_dir() and not any(path.rglob("*.parquet")):
            return Folder(spec)
        if path.is_dir() or ".parquet" in spec:
            return Parquet(spec)
        if path.suffix == ".npz":
            return Npz(spec)
        if path.is_file():
            raise UserError(f"{spec} is a file. Expected a folder of images, a .parquet or an .npz file.")
        if "/" in spec or "." in spec:
            raise UserError(
                f"There is no folder {spec}. Expected a folder of images, a parquet file, or a name. {nearest(spec, DATASETS)}"
            )
    return specs.build("data set", spec, DATASETS)


def _digits(source: Digits, spec: str, seed: int, image_size: int | None, limit: int | None) -> Dataset:
    from sklearn.datasets import load_digits

    if image_size not in (None, 8):
        raise UserError(f"The digits are 8x8; image_size is {image_size}. Expected 8 or none.")
    x = torch.from_numpy(load_digits().images).float().div(8).sub(1).unsqueeze(1)
    x = x[torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))]
    train, test = x[:-DIGITS_HELD_OUT], x[-DIGITS_HELD_OUT:]
    if source.subspace is None:
        return Dataset(train[:limit], "image", spec, test=test)
    truth = Subspace.fit(train, source.subspace)
    return Dataset(truth.project(train)[:limit], "image", spec, truth, truth.project(test))


def _npz(source: Npz, spec: str, seed: int, image_size: int | None, limit: int | None) -> Dataset:
    path = Path(source.path).expanduser()
    try:
        with np.load(path, allow_pickle=False) as file:
            name = "samples" if "samples" in file.files or len(file.files) != 1 else file.files[0]
            x = torch.from_numpy(file[name])
    except FileNotFoundError:
        raise UserError(f"There is no file {path}. Expected an .npz that atdm corrupt or atdm sample wrote.") from None
    except (OSError, ValueError, KeyError, EOFError, TypeError, AttributeError, zipfile.BadZipFile) as problem:
        raise UserError(f"{path} holds no array 'samples'. Expected an .npz that atdm corrupt wrote.") from problem
    shape = list(x.shape)
    if not (x.is_floating_point() and (x.dim() == 2 or (x.dim() == 4 and shape[1] in (1, 3)))):
        raise UserError(
            f"{path} holds {x.dtype} of shape {shape}. Expected floats, [n, d] or [n, 1 or 3 channels, height, width]."
        )
    if len(x) < 2:
        raise UserError(f"{path} holds {len(x)} item. Expected at least 2.")
    if not bool(x.isfinite().all()):
        raise UserError(f"{path} holds values that are not finite. Expected numbers.")
    if image_size is not None and [image_size] * 2 != shape[2:]:
        raise UserError(f"image_size is {image_size}, but {path} holds items of shape {shape[1:]}. Expected none.")
    if limit is not None and limit < len(x):
        x = x[torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))[:limit].sort().values]
    return Dataset(x.float(), "vector" if x.dim() == 2 else "image", spec)
