"""Where images come from: folders, tar files, parquet files, the Hub and torchvision. Nothing is decoded here."""

from __future__ import annotations

import glob
import hashlib
import os
import re
import tarfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..errors import UserError, nearest

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")


@dataclass(frozen=True)
class Listing:
    """Encoded images by index, read one at a time and from any thread.

    Args:
        count: how many.
        name: what to call image i in messages.
        content: the encoded bytes of image i, or a PIL image.
        key: identifies the images' content, so that what was decoded once is found again.
    """

    count: int
    name: Callable[[int], str]
    content: Callable[[int], Any]
    key: str


def split(listing: Listing, n: int | None, seed: int) -> tuple[Listing, Listing | None]:
    """``n`` of the images, and those left out; all of them, and None, where there are no more.

    Args:
        n: how many, chosen by ``seed``: files are often sorted by class.
    """
    if n is None or n >= listing.count:
        return listing, None
    order = torch.randperm(listing.count, generator=torch.Generator().manual_seed(seed))
    chosen, rest = (part.sort().values.tolist() for part in (order[:n], order[n:]))
    return _part(listing, chosen, n, seed, "chosen"), _part(listing, rest, n, seed, "left out")


def _part(listing: Listing, rows: list[int], *facts: object) -> Listing:
    def name(index: int) -> str:
        return listing.name(rows[index])

    def content(index: int) -> Any:
        return listing.content(rows[index])

    return Listing(len(rows), name, content, _key(listing.key, *facts))


def joined(first: Listing, second: Listing) -> Listing:
    """The images of both, one listing after the other."""

    def place(index: int) -> tuple[Listing, int]:
        return (first, index) if index < first.count else (second, index - first.count)

    def name(index: int) -> str:
        listing, own = place(index)
        return listing.name(own)

    def content(index: int) -> Any:
        listing, own = place(index)
        return listing.content(own)

    return Listing(first.count + second.count, name, content, _key(first.key, second.key))


def _key(*facts: object) -> str:
    return hashlib.sha256(repr(facts).encode()).hexdigest()


def _stamp(files: Iterable[str]) -> Iterator[tuple[str, int, int]]:
    """What changes when a file changes: its place, size and time."""
    for file in files:
        status = os.stat(file)
        yield os.path.realpath(file), status.st_size, status.st_mtime_ns


def from_folder(path: Path) -> Listing:
    """Each image file below ``path`` (flat or in class subfolders), sorted; hidden files are no images.

    Raises:
        UserError: no such folder, or no image in it.
    """
    if not path.is_dir():
        raise UserError(f"There is no folder {path}. Expected a folder of images ({', '.join(SUFFIXES)}).")
    found: list[tuple[str, ...]] = []
    for folder, folders, files in os.walk(path):
        folders[:] = [name for name in folders if not name.startswith(".")]
        parts = Path(folder).relative_to(path).parts
        found += [(*parts, f) for f in files if f.lower().endswith(SUFFIXES) and not f.startswith(".")]
    names = [os.path.join(*parts) for parts in sorted(found) if os.path.isfile(os.path.join(path, *parts))]
    if not names:
        raise UserError(f"The folder {path} holds no image. Expected files ending in {', '.join(SUFFIXES)}.")
    key = _key("folder", *_stamp(os.path.join(path, name) for name in names))
    return Listing(len(names), names.__getitem__, lambda i: (path / names[i]).read_bytes(), key)


def from_tars(pattern: str, column: str | None) -> Listing:
    """The images of tar files in the webdataset layout (samples are files of one name up to the first dot).

    The files are indexed once and then read at any place, so an epoch is shuffled over all of them.

    Args:
        pattern: a file, a glob, or a range of numbers such as ``train-{000..012}.tar``.
        column: what follows the first dot of the images to take; needed where a sample has several images.

    Raises:
        UserError: no such file, a compressed or broken one, or no image of that column.
    """
    files = sorted({f for one in _numbered(os.path.expanduser(pattern)) for f in glob.glob(one)})
    if not files:
        raise UserError(f"There is no tar file at {pattern}. Expected a .tar file, a glob or a range {{000..012}}.tar.")
    entries: list[tuple[int, str, int, int]] = []
    columns: Counter[str] = Counter()
    for number, file in enumerate(files):
        try:
            with tarfile.open(file, "r:") as tar:
                for member in tar:
                    kind = _kind(member.name)
                    if not member.isfile() or os.path.basename(member.name).startswith("."):
                        continue
                    if (kind == column) if column else f".{kind}".lower().endswith(SUFFIXES):
                        columns[kind] += 1
                        entries.append((number, member.name, member.offset_data, member.size))
        except (tarfile.TarError, OSError) as problem:
            raise UserError(
                f"Cannot read the tar file {file}: {problem}. Expected a whole, uncompressed .tar file."
            ) from problem
    if not entries:
        wanted = f"no file NAME.{column}" if column else f"no file ending in {', '.join(SUFFIXES)}"
        raise UserError(f"The tar files {pattern} hold {wanted}. Expected images.")
    samples = {(number, name[: len(name) - len(_kind(name)) - 1]) for number, name, _, _ in entries}
    if len(samples) < len(entries):
        raise UserError(
            f"The samples of {pattern} have several images. Expected column=NAME, one of {', '.join(sorted(columns))}."
        )

    def content(index: int) -> bytes:
        number, _, offset, size = entries[index]
        with open(files[number], "rb") as file:
            file.seek(offset)
            return file.read(size)

    def name(index: int) -> str:
        return f"{files[entries[index][0]]}/{entries[index][1]}"

    return Listing(len(entries), name, content, _key("tars", column, *_stamp(files)))


def _kind(name: str) -> str:
    """The column of a file in a webdataset: all after the first dot."""
    return os.path.basename(name).partition(".")[2]


def _numbered(pattern: str) -> list[str]:
    """``a-{08..11}.tar`` written out."""
    found = re.search(r"\{(\d+)\.\.(\d+)\}", pattern)
    if not found:
        return [pattern]
    first, last = found.groups()
    numbers = [str(n).zfill(len(first)) for n in range(int(first), int(last) + 1)]
    return [p for n in numbers for p in _numbered(pattern[: found.start()] + n + pattern[found.end() :])]


def from_parquet(pattern: str, column: str | None) -> tuple[Listing, Listing | None]:
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

    def table(part: list[str]) -> Listing:
        try:
            rows = datasets.load_dataset("parquet", data_files=part, split="train")
        except Exception as problem:  # datasets raises its own and pyarrow's
            raise UserError(f"Cannot read parquet from {pattern}: {problem}") from problem
        return _from_table(rows, column, pattern if len(part) > 1 else part[0], _key("parquet", *_stamp(part)))

    return table(train), table(test) if test else None


def from_hub(name: str, split: str, column: str | None) -> Listing:
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
    return _from_table(table, column, name, _key("hub", name, split, table._fingerprint))


def _from_table(table: Any, column: str | None, where: str, key: str) -> Listing:
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

    return Listing(len(table), lambda i: f"{where}[{i}]", cell, _key(key, column))


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
            f"torchvision's {name} is not at {root}: {problem}. Expected it there, or download=true (LSUN: see torchvision)."
        ) from problem

    key = _key("torchvision", name, os.path.realpath(root), split, len(found))
    return Listing(len(found), lambda i: f"{name}[{i}]", lambda i: found[i][0], key)
