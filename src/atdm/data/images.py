"""Images from folders, parquet files, the Hub and torchvision, decoded to ``uint8`` and given as floats in [-1, 1]."""

from __future__ import annotations

import glob
import io
import struct
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import UserError, nearest

if TYPE_CHECKING:
    from PIL.Image import Image

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
# A name for messages, and what gives the encoded bytes or a PIL image. Called late, so that one bad file can be skipped.
Item = tuple[str, Callable[[], Any]]

# What Pillow's decoders raise on damaged files, beside DecompressionBombError.
UNREADABLE = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    TypeError,
    LookupError,
    OverflowError,
    struct.error,
    zlib.error,
)

GRAY_MODES = ("1", "L", "I", "I;16", "I;16B", "I;16L", "F", "LA")


def from_folder(path: Path) -> list[Item]:
    """Each image file below ``path`` (flat or in class subfolders), sorted; hidden files are no images.

    Raises:
        UserError: no such folder, or no image in it.
    """
    if not path.is_dir():
        raise UserError(f"There is no folder {path}. Expected a folder of images ({', '.join(SUFFIXES)}).")
    found = sorted(f for f in path.rglob("*") if f.suffix.lower() in SUFFIXES and f.is_file())
    files = [f for f in found if not any(part.startswith(".") for part in f.relative_to(path).parts)]
    if not files:
        raise UserError(f"The folder {path} holds no image. Expected files ending in {', '.join(SUFFIXES)}.")
    return [(str(f.relative_to(path)), f.read_bytes) for f in files]


def from_parquet(pattern: str, column: str | None) -> tuple[list[Item], list[Item]]:
    """The images of parquet files (a file, a folder or a glob) in the Hugging Face layout: those to use, those held out.

    Among several files those named test* are held out and those named val* left out.

    Raises:
        UserError: no such file, or no image column.
    """
    import datasets

    path = Path(pattern)
    files = sorted(map(str, path.rglob("*.parquet") if path.is_dir() else map(Path, glob.glob(pattern))))
    if not files:
        raise UserError(f"There is no parquet file at {pattern}. Expected a .parquet file, a folder of them or a glob.")
    test = [f for f in files if Path(f).name.lower().startswith("test")]
    train = [f for f in files if f not in test and not Path(f).name.lower().startswith("val")]
    if not train:  # somebody asked for just these
        train, test = files, []

    def table(part: list[str]) -> list[Item]:
        try:
            rows = datasets.load_dataset("parquet", data_files=part, split="train")
        except Exception as problem:  # datasets raises its own and pyarrow's
            raise UserError(f"Cannot read parquet from {pattern}: {problem}") from problem
        return _from_table(rows, column, pattern if len(part) > 1 else part[0])

    return table(train), table(test) if test else []


def from_hub(name: str, split: str, column: str | None) -> list[Item]:
    """Each image of a data set on the Hugging Face Hub.

    Raises:
        UserError: it cannot be reached or has no such split or image column.
    """
    import datasets

    try:
        table = datasets.load_dataset(name, split=split)
    except Exception as problem:  # datasets, huggingface_hub and requests each raise their own
        raise UserError(
            f"Cannot load '{name}' (split {split}) from the Hub: {problem}. "
            "Expected a data set name such as uoft-cs/cifar10 and a connection, or local parquet files."
        ) from problem
    return _from_table(table, column, name)


def _from_table(table: Any, column: str | None, where: str) -> list[Item]:
    import datasets

    features = table.features

    def holds_images(feature: Any) -> bool:
        return isinstance(feature, datasets.Image) or (isinstance(feature, dict) and "bytes" in feature)

    if column is None:
        images = [k for k, f in features.items() if holds_images(f)]
        if len(images) != 1:
            raise UserError(
                f"{where} has {len(images)} image columns. Expected column=NAME, one of {', '.join(features)}."
            )
        column = images[0]
    elif column not in features:
        raise UserError(f"{where} has no column '{column}'. {nearest(column, features)}")
    elif not holds_images(features[column]):
        raise UserError(f"The column '{column}' of {where} holds no images. Expected one of bytes and path.")
    table = table.select_columns([column])
    if isinstance(features[column], datasets.Image):
        table = table.cast_column(column, datasets.Image(decode=False))

    def cell(index: int) -> bytes:
        item = table[index][column]
        if item is None:
            raise ValueError("the cell is empty")
        return item["bytes"] or Path(item["path"]).read_bytes()

    return [(f"{where}[{i}]", partial(cell, i)) for i in range(len(table))]


def from_torchvision(name: str, root: str, split: str, download: bool) -> list[Item]:
    """Each image of CIFAR10, CelebA, LSUN (bedroom) or FashionMNIST.

    Raises:
        UserError: not one of these, or not there (says how to get it).
    """
    from torchvision import datasets

    train = split == "train"
    makers: dict[str, Any] = {
        "CIFAR10": lambda: datasets.CIFAR10(root, train, download=download),
        "FashionMNIST": lambda: datasets.FashionMNIST(root, train, download=download),
        "CelebA": lambda: datasets.CelebA(root, split, download=download),
        "LSUN": lambda: datasets.LSUN(root, [f"bedroom_{split}"]),
    }
    if name not in makers:
        raise UserError(f"Unknown torchvision data set '{name}'. {nearest(name, makers)}")
    try:
        found = makers[name]()
    except Exception as problem:  # torchvision raises RuntimeError, OSError, ImportError and lmdb's own
        raise UserError(
            f"torchvision's {name} is not at {root}: {problem}. Expected it there, or download=true (LSUN: see torchvision)."
        ) from problem

    def image(index: int) -> Any:
        return found[index][0]

    return [(f"{name}[{i}]", partial(image, i)) for i in range(len(found))]


def read(
    items: Sequence[Item], size: int | None, limit: int | None, skip_broken: bool, seed: int = 0
) -> tuple[Float[Tensor, "n c h w"], tuple[str, ...]]:
    """Decode, convert, resize and crop images.

    Args:
        items: what there is.
        size: side after resizing the shorter side (antialiased) and a centre crop; None keeps the images' own size.
        limit: use so many of them, chosen by ``seed``: files are often sorted by class.
        skip_broken: leave out what cannot be decoded.

    Returns:
        Images in [-1, 1], all gray if every one is and else RGB, and sentences on what was converted or skipped.

    Raises:
        UserError: an unreadable image, mixed sizes without ``size``, or no image left.
    """
    from PIL.Image import DecompressionBombError

    decoded: list[Image] = []
    notes: Counter[str] = Counter()
    broken: list[str] = []
    if limit is not None and limit < len(items):
        chosen = torch.randperm(len(items), generator=torch.Generator().manual_seed(seed))[:limit]
        items = [items[i] for i in sorted(chosen.tolist())]
    for name, content in items:
        try:
            decoded.append(_decode(content(), size, notes))
        except (*UNREADABLE, DecompressionBombError) as problem:
            if not skip_broken:
                raise UserError(
                    f"Cannot read the image {name}: {problem}. Expected a whole image file; --skip_broken true leaves such files out."
                ) from problem
            broken.append(name)
    if not decoded:
        raise UserError(f"No image could be read ({len(broken)} broken). Expected at least one.")
    sizes = Counter(image.size for image in decoded)
    if len(sizes) > 1:
        shown = ", ".join(f"{w}x{h} ({n})" for (w, h), n in sizes.most_common(4))
        raise UserError(f"The images have {len(sizes)} different sizes: {shown}. Expected one size, or --image_size N.")
    gray = all(image.mode == "L" for image in decoded)
    if not gray and (mixed := sum(image.mode == "L" for image in decoded)):
        notes["converted from gray to RGB"] += mixed
    arrays = np.stack([np.asarray(image if gray else image.convert("RGB")) for image in decoded])
    x = torch.from_numpy(arrays.reshape(len(arrays), *arrays.shape[1:3], -1)).permute(0, 3, 1, 2)
    sentences = [f"{count} images were {what}." for what, count in sorted(notes.items())]
    if broken:
        more = ", ..." if len(broken) > 3 else ""
        sentences.append(f"{len(broken)} unreadable images were skipped: {', '.join(broken[:3])}{more}")
    return x.float().div_(127.5).sub_(1).contiguous(), tuple(sentences)


def _decode(content: Any, size: int | None, notes: Counter[str]) -> Image:
    """A PIL image of mode L or RGB."""
    from PIL import Image, ImageOps

    image = Image.open(io.BytesIO(content)) if isinstance(content, bytes) else content
    if getattr(image, "n_frames", 1) > 1:
        notes["animated (the first frame was taken)"] += 1
        image.seek(0)
    image.load()
    image = ImageOps.exif_transpose(image)
    mode = image.mode
    if mode in ("I;16", "I;16B", "I;16L", "I", "F"):
        values = np.asarray(image, dtype=np.float64)
        if not np.isfinite(values).all() or values.min() < 0 or (mode == "I" and values.max() > 65535):
            raise ValueError(f"pixels from {values.min():g} to {values.max():g}, not 0 to 65535")
        top = 65535.0 if mode != "F" else max(1.0, float(values.max()))
        image = Image.fromarray(np.round(values.clip(0, top) / top * 255).astype(np.uint8))
        notes["converted from 16 bits to 8"] += 1
    elif mode in ("RGBA", "LA", "PA") or (mode == "P" and "transparency" in image.info):
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image).convert("L" if mode == "LA" else "RGB")
        notes["laid on white where transparent"] += 1
    elif mode not in ("L", "RGB"):
        image = image.convert("L" if mode in GRAY_MODES else "RGB")
        notes[f"converted from {mode} to {image.mode}"] += 1
    return image if size is None else ImageOps.fit(image, (size, size), Image.Resampling.LANCZOS)
