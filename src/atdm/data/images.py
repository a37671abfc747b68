"""Where images come from: folders, tar files, parquet files, the Hub and torchvision. Nothing is decoded here."""

from __future__ import annotations

import contextlib
import glob
import logging
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ..errors import UserError, first_line, nearest
from .classes import Classes, of_table
from .folders import from_folder, search
from .listing import Listing, by_split, key_of, left_out, matching, of_one_set, others, require_file, stamp
from .tars import from_tars

BYTES = ("binary", "large_binary", "binary_view")  # columns of parquet files that may hold images


def from_directory(path: Path, skip_broken: bool = False) -> tuple[Listing, Listing | None]:
    """What a folder holds: images, or else parquet or tar files; those to use, and those held out.

    Args:
        skip_broken: of damaged parquet and tar files take what can be read.

    Raises:
        UserError: nothing of the kind, or images beside parquet files with images.
    """
    tree = search(path)
    parquet, tars = ([str(path / name) for name in sorted(names)] for names in (tree.parquet, tree.tars))
    if tree.images and parquet and _image_columns(parquet[0]):
        raise UserError(f"{path} holds images and parquet files with images. Expected folder:{path} or parquet:{path}.")
    if tree.images or not (parquet or tars):
        return from_folder(path, tree), None
    beside = (*tree.notes, *others(tree.endings + Counter({".tar": len(tars)} if parquet else {})))
    if parquet:
        found, held_out = from_parquet(str(path), None, skip_broken)
        return _noted(found, beside), held_out
    train, test, notes = by_split(tars)
    held_out = from_tars(test, None, skip_broken) if test else None
    return of_one_set(_noted(from_tars(train, None, skip_broken), (*notes, *beside)), held_out)


def _noted(listing: Listing, notes: tuple[str, ...]) -> Listing:
    return replace(listing, notes=(*notes, *listing.notes))


def from_parquet(
    pattern: str, column: str | None, skip_broken: bool = False, label: str | None = None
) -> tuple[Listing, Listing | None]:
    """The images of parquet files (a file, a folder or a glob) in the Hugging Face layout: those to use, those held out.

    Among several files those named test* are held out and those named val* left out.

    Args:
        skip_broken: leave damaged files out instead of stopping.

    Raises:
        UserError: no such file, or no image column.
    """
    path = Path(pattern).expanduser()
    files = [str(path / name) for name in sorted(search(path).parquet)] if path.is_dir() else matching(pattern)
    if not files:
        raise UserError(f"There is no parquet file at {pattern}. Expected a .parquet file, a folder of them or a glob.")
    train, test, notes = by_split(files)

    def table(part: list[str]) -> Listing:
        for file in part:
            require_file(file)
        key = key_of("parquet", *map(stamp, part))
        try:
            rows = _rows(part, key)
        except Exception as problem:  # datasets raises its own and pyarrow's
            bad = [file for file in part if not _whole(file)] if skip_broken else []
            if not bad or len(bad) == len(part):
                raise UserError(
                    f"Cannot read parquet from {pattern}: {first_line(problem.__cause__ or problem)}. "
                    "Expected whole parquet files with the same columns.",
                    "--skip_broken true skips damaged ones.",
                ) from problem
            kept = table([file for file in part if file not in bad])
            notes = (*left_out("damaged parquet files", bad), *kept.notes)
            return replace(kept, notes=notes, broken=tuple(bad))
        where = pattern if len(part) > 1 else part[0]
        return _from_table(rows, column, where, key, label)

    return of_one_set(_noted(table(train), notes), table(test) if test else None)


def _rows(files: list[str], key: str) -> Any:
    """The rows, by a ``key`` of the files: what datasets prepares of them it finds again by their time alone."""
    import datasets

    with quietly():
        return datasets.load_dataset("parquet", key[:16], data_files=[*map(glob.escape, files)], split="train")


def _whole(file: str) -> bool:
    """Whether every row of a parquet file can be read."""
    import pyarrow.parquet

    try:
        for _ in pyarrow.parquet.ParquetFile(file).iter_batches():
            pass
    except Exception:  # pyarrow raises its own
        return False
    return True


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """datasets without the lines it prints of what it then raises, and without its bars."""
    import datasets

    logger, bars = logging.getLogger("datasets"), datasets.are_progress_bars_disabled()
    kept, logger.level = logger.level, logging.CRITICAL + 1
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        logger.level = kept
        if not bars:
            datasets.enable_progress_bars()


def _image_columns(file: str) -> list[str]:
    """The columns of a parquet file that may hold images; none where it cannot be read."""
    import datasets
    import pyarrow.parquet

    try:
        features = datasets.Features.from_arrow_schema(pyarrow.parquet.read_schema(file))
    except Exception:  # it is not asked for
        return []
    return [name for name, feature in features.items() if _holds_images(feature)]


def from_hub(name: str, split: str, column: str | None, label: str | None = None) -> Listing:
    """Each image of a data set on the Hugging Face Hub.

    Raises:
        UserError: it cannot be reached or has no such split or image column.
    """
    import datasets

    try:
        table = datasets.load_dataset(name, split=split)
    except Exception as problem:  # datasets, huggingface_hub and requests each raise their own
        raise UserError(
            f"Cannot load '{name}' (split {split}) from the Hub: {first_line(problem)}. "
            "Expected a data set name such as uoft-cs/cifar10 and a connection, or local parquet files."
        ) from problem
    return _from_table(table, column, name, key_of("hub", name, split, table._fingerprint), label)


def _holds_images(feature: Any) -> bool:
    import datasets

    if isinstance(feature, dict):
        feature = feature.get("bytes")
    return isinstance(feature, datasets.Image) or getattr(feature, "dtype", "") in BYTES


def image_column(features: Any, column: str | None, where: str) -> str:
    """The column of image files, given or found.

    Raises:
        UserError: there is none, there are several, or the given one holds none.
    """
    held = ", ".join(features)
    if column is None:
        images = [name for name, feature in features.items() if _holds_images(feature)]
        if not images:
            raise UserError(
                f"{where} has no column of images. Expected one of image files (bytes, or bytes and path) among {held}."
            )
        if len(images) > 1:
            raise UserError(
                f"{where} has {len(images)} image columns. Expected column=NAME, one of {', '.join(images)}."
            )
        return str(images[0])
    if column not in features:
        raise UserError(f"{where} has no column '{column}'. {nearest(column, features)}")
    if not _holds_images(features[column]):
        raise UserError(
            f"The column '{column}' of {where} holds no images. Expected one of image files (bytes, or bytes and path)."
        )
    return column


def _from_table(table: Any, column: str | None, where: str, key: str, label: str | None) -> Listing:
    import datasets

    features = table.features
    column = image_column(features, column, where)
    everything, table = table, table.select_columns([column])
    if isinstance(features[column], datasets.Image):
        table = table.cast_column(column, datasets.Image(decode=False))

    def cell(index: int) -> bytes:
        item = table[index][column]
        if isinstance(item, bytes):
            return item
        if item is None or not (item["bytes"] or item.get("path")):
            raise ValueError("the cell is empty")
        return item["bytes"] or Path(item["path"]).read_bytes()

    labelled = partial(of_table, everything, label, where)
    return Listing(len(table), lambda i: f"{where}[{i}]", cell, key_of(key, column), labelled=labelled)


def from_torchvision(name: str, root: str, split: str, download: bool) -> Listing:
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
            f"torchvision's {name} is not at {root}: {first_line(problem)}. Expected it there, or download=true (LSUN: see torchvision)."
        ) from problem

    key = key_of("torchvision", name, os.path.realpath(root), split, len(found))
    names = getattr(found, "classes", None)  # of those that are sorted into classes
    labelled = (lambda: Classes(torch.as_tensor(found.targets), tuple(names))) if names and name != "LSUN" else None
    return Listing(len(found), lambda i: f"{name}[{i}]", lambda i: found[i][0], key, labelled=labelled)
