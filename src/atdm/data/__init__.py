"""Data sets by spec. Images are float32 in [-1, 1], channels first; vectors are in their own units."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from .. import memory
from .. import spec as specs
from ..errors import UserError, expect, nearest
from . import arrays, images
from .cache import read
from .classes import NEEDED, Classes
from .decode import Framing, Progress
from .files import Files
from .folders import TARS, elsewhere, from_folder, no_data, search
from .held_out import held_out_of, read_held_out
from .items import Floats, Items, Pixels, every
from .listing import Listing, split
from .named import DATASETS, PATHS, Digits, Directory, Folder, Hub, Npz, Parquet, Webdataset
from .pixels import MAX_PIXELS
from .shards import LOOKED_AT, open_shards
from .streaming import Stream, sampled
from .subspace import Subspace
from .tars import from_tars
from .toy import Toy

DIGITS_HELD_OUT = 297


@dataclass(frozen=True)
class Stored:
    """Where items of an .npz are: the file, how many it holds, and which of them these are."""

    path: Path
    items: int
    indices: Int[Tensor, "n"]


@dataclass(frozen=True)
class Dataset:
    """Clean data, and what is known of its truth.

    Args:
        items: the items by index; they may be on disk. Images are in [-1, 1].
        kind: vectors or images.
        spec: what was asked for.
        truth: the distribution (toys) or the subspace (projected images) the data come from.
        held_out: clean items kept apart from training; None where there are none.
        notes: sentences on what was converted or skipped on reading.
        broken: names of the unreadable images that were skipped.
        window: side of the random windows training cuts from ``items``; None where it takes them whole.
        stored: the .npz they come from, beside which may lie the truth about it; None for other sources.
        files: the image files they were decoded from; None where there are none.
        labelled: looks up the classes of the items; None where their source knows of none.
        stream: what training reads, of which the items are a sample; None: the items are all there is.
        keys: of the items of a sample, which corruption goes by.
    """

    items: Items
    kind: Literal["vector", "image"]
    spec: str
    truth: Any = None
    held_out: Items | None = None
    notes: tuple[str, ...] = ()
    broken: tuple[str, ...] = ()
    window: int | None = None
    stored: Stored | None = None
    files: Files | None = None
    labelled: Callable[[], Classes] | None = field(default=None, compare=False)
    stream: Stream | None = field(default=None, compare=False)
    keys: Int[Tensor, "n"] | None = field(default=None, compare=False)

    @property
    def item_shape(self) -> tuple[int, ...]:
        """The shape of an item as training sees it."""
        shape = tuple(self.items.item_shape)
        return shape if self.window is None else (shape[0], self.window, self.window)

    @cached_property
    def classes(self) -> Classes:
        """The class of each item.

        Raises:
            UserError: the source knows of none, or not of all.
        """
        if self.labelled is None:
            raise UserError(f"{self.spec} knows of no classes. {NEEDED}")
        return self.labelled()

    @cached_property
    def x(self) -> Float[Tensor, "n *item"]:
        """All the items in memory, images cut to their central window; of a large data set take ``items``."""
        return every(self.items, self.window)

    @cached_property
    def test(self) -> Float[Tensor, "m *item"] | None:
        """All held-out items in memory, cut likewise."""
        return None if self.held_out is None else every(self.held_out, self.window)

    def some(self, count: int) -> Float[Tensor, "b *item"]:
        """So many items drawn at random, or all: what a look at the data is taken from."""
        from .source import Source

        return Source(self.items, window=self.window).some(count)

    def require_whole(self, what: str) -> None:
        """Refuse a stream where all items are needed.

        Args:
            what: needs them.

        Raises:
            UserError: it is a stream.
        """
        if self.stream is not None:
            raise UserError(
                f"{what} needs all items, and {self.spec} is read as a stream. Expected the data without streaming=true, "
                "or an .npz or a folder of a part of them."
            )

    @property
    def hidden_std(self) -> float:
        """As :attr:`atdm.data.source.Source.hidden_std`."""
        return 0.0 if self.files is None else self.files.hidden_std

    @property
    def reference(self) -> Float[Tensor, "m *item"]:
        """The clean items that samples are compared with: held-out ones where there are any, else all."""
        return self.x if self.test is None else self.test


def load(
    spec: str,
    *,
    seed: int = 0,
    image_size: int | None = None,
    crop: str = "center",
    limit: int | None = None,
    skip_broken: bool = False,
    cache: bool = True,
    max_pixels: int = MAX_PIXELS,
    hold_out: bool = True,
    progress: Progress | None = None,
) -> Dataset:
    """The data set a spec names: ``plane:n=5000``, ``digits:subspace=16``, a folder, ``photos/*.parquet``, ``hub:name=...``.

    Args:
        seed: of the draws of a toy and of the held-out split of the digits.
        image_size: side to resize and crop images to; None keeps their size.
        crop: how images become square: ``center``, ``random`` or ``none`` (:class:`~atdm.data.decode.Framing`).
        limit: use so many items; of images a choice by ``seed``, for files are often sorted by class. Up to as many of
            the other images are held out.
        skip_broken: leave unreadable images out instead of stopping.
        cache: keep decoded images in a file that is mapped, not in memory.
        max_pixels: an image of more counts as broken.
        hold_out: read held-out images, too; without them reading is quicker.
        progress: called while images are decoded, with how many are done and of how many.

    Raises:
        UserError: the spec is unknown or what it names cannot be read.
    """
    expect(limit is None or limit >= 2, "limit", limit, "at least 2 items, or none")
    expect(max_pixels >= 1, "max_pixels", max_pixels, "a positive number of pixels")
    expect(-(2**63) <= seed < 2**63, "seed", seed, "an integer of at most 63 bits")
    framing = Framing(image_size, crop)
    source = _source(spec)
    shadow = _shadow(spec)
    if isinstance(source, Toy):
        return replace(_toy(source, spec, seed, image_size, limit), notes=shadow)
    if isinstance(source, Digits):
        return replace(_digits(source, spec, seed, image_size, limit), notes=shadow)
    if isinstance(source, Npz):
        return _npz(source, spec, seed, image_size, limit)
    how: dict[str, Any] = {"skip_broken": skip_broken, "cache": cache, "max_pixels": max_pixels, "progress": progress}
    if getattr(source, "streaming", False):
        return _streamed(source, spec, seed, limit, framing, hold_out, how)
    return _decoded(source, spec, seed, limit, framing, hold_out, how)


def _decoded(
    source: Any, spec: str, seed: int, limit: int | None, framing: Framing, hold_out: bool, how: dict[str, Any]
) -> Dataset:
    """All the images of a source, or ``limit`` of them."""
    listing, held_out = _listed(source, how["skip_broken"])
    listing, rest = split(listing, limit, seed)
    items, notes, broken = read(listing, framing, **how)
    if len(items) < 2:
        said = "".join(f" {note.rstrip('.')}." for note in (*notes, *listing.notes))
        raise UserError(f"{spec} holds {len(items) or 'no'} image.{said} Expected at least 2.")
    chosen = held_out_of(held_out, rest, limit, seed) if hold_out else None
    held, more = (None, ()) if not chosen else read_held_out(chosen, items, rest is None, framing, how)
    notes += more + listing.notes
    files = Files(listing, broken, framing, how["cache"])
    known = listing.labelled
    labelled = known and (lambda: known()[listing.without(broken)])
    everything = (*listing.broken, *broken)
    return Dataset(items, "image", spec, None, held, notes, everything, framing.window, files=files, labelled=labelled)


def is_streamed(spec: str) -> bool:
    """Whether a spec asks for a stream; the data need not be there."""
    try:
        return bool(getattr(_source(spec), "streaming", False))
    except UserError:
        return False


def _streamed(
    source: Any, spec: str, seed: int, limit: int | None, framing: Framing, hold_out: bool, how: dict[str, Any]
) -> Dataset:
    """A stream, and a sample of it that stands for the set."""
    shards, test = open_shards(source)
    count = min(source.sample, limit or source.sample)
    listing, (items, notes, broken), keys = sampled(shards, count, seed, framing, **how)
    if len(items) < 2:
        raise UserError(f"{spec} holds {len(items) or 'no'} image. Expected at least 2.")
    held = sampled(test, count, seed, framing, **how)[1].pixels if test and hold_out else None
    said = f"{spec} is a stream of {shards.count} shards: {len(items):,} images of up to {LOOKED_AT} of them stand for the set."
    shape = tuple(items.item_shape)
    if held is not None and tuple(held.item_shape) != shape:
        raise UserError(f"The items are {list(shape)}, held-out items {list(held.item_shape)}. Expected one shape.")
    return Dataset(
        items,
        "image",
        spec,
        held_out=held,
        notes=(said, *notes, *shards.notes),
        broken=broken,
        window=framing.window,
        files=Files(listing, broken, framing, how["cache"]),
        stream=Stream(shards, source.buffer, framing, shape, how["skip_broken"], how["max_pixels"]),
        keys=keys,
    )


def _listed(source: Any, skip_broken: bool) -> tuple[Listing, Listing | None]:
    """The images that a source names: those to use, and those it names as held out."""
    if isinstance(source, Directory):
        return images.from_directory(Path(source.path).expanduser(), skip_broken)
    if isinstance(source, Folder):
        path = Path(source.path).expanduser()
        return from_folder(path, search(path)), None
    if isinstance(source, Webdataset):
        return from_tars(source.path, source.column, skip_broken), None
    if isinstance(source, Parquet):
        return images.from_parquet(source.path, source.column, skip_broken, source.label)
    if isinstance(source, Hub):
        return images.from_hub(source.name, source.split, source.column, source.label), None
    return images.from_torchvision(source.name, source.root, source.split, source.download), None


def _shadow(spec: str) -> tuple[str, ...]:
    """A note where the name of a set is that of a file or folder, too."""
    name = spec.partition(":")[0]
    if name in PATHS or name not in DATASETS or not Path(name).exists():
        return ()
    return (f"'{name}' is the data set of that name, not the folder. The folder is ./{name}",)


def _source(spec: str) -> Any:
    name, _, rest = spec.partition(":")
    if not spec.strip() or (name in PATHS and not rest.removeprefix("path=")):
        raise UserError(
            f"The data set '{spec}' names nothing. Expected a folder of images, a file, or a name. {nearest(name, DATASETS)}"
        )
    if name in PATHS and rest and not rest.startswith("path="):
        return PATHS[name](rest)  # a path may hold the commas and equals signs that options are made of
    path = Path(spec).expanduser()
    if name not in DATASETS:
        if path.is_dir():
            return Directory(spec)
        if ".parquet" in path.name:
            return Parquet(spec)
        if ".tar" in path.name or path.name.endswith(TARS):
            return Webdataset(spec)
        if path.suffix in (".npz", ".npy"):
            return Npz(spec)
        if path.is_file():
            raise no_data(path)
        if "/" in spec or "." in spec:
            named = f"Expected a folder of images, a parquet file, or a name. {nearest(spec, DATASETS)}"
            raise UserError(f"There is no folder {spec}. {elsewhere(spec) or named}")
    return specs.build("data set", spec, DATASETS)


def _toy(source: Toy, spec: str, seed: int, image_size: int | None, limit: int | None) -> Dataset:
    if image_size is not None:
        raise UserError(f"image_size is {image_size}, but {spec} holds vectors. Expected none.")
    memory.require(8.0 * source.n * 3, f"{source.n:,} points", "Expected a smaller n.")
    points = source.sample(source.n, torch.Generator().manual_seed(seed))
    test = source.sample(min(source.n, 10_000), torch.Generator().manual_seed(seed + 1_000_003))
    return Dataset(Floats(points[:limit]), "vector", spec, source, Floats(test))


def _digits(source: Digits, spec: str, seed: int, image_size: int | None, limit: int | None) -> Dataset:
    from sklearn.datasets import load_digits

    expect(image_size in (None, 8), "The digits are 8x8; image_size", image_size, "8 or none")
    x = torch.from_numpy(load_digits().images).float().div(8).sub(1).unsqueeze(1)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    targets, names = torch.from_numpy(load_digits().target)[order], tuple("0123456789")
    x, labelled = x[order], lambda: Classes(targets[:-DIGITS_HELD_OUT][:limit], names)
    train, test = x[:-DIGITS_HELD_OUT], x[-DIGITS_HELD_OUT:]
    if source.subspace is None:
        return Dataset(Floats(train[:limit]), "image", spec, held_out=Floats(test), labelled=labelled)
    truth = Subspace.fit(train, source.subspace)
    return Dataset(
        Floats(truth.project(train)[:limit]), "image", spec, truth, Floats(truth.project(test)), labelled=labelled
    )


def _npz(source: Npz, spec: str, seed: int, image_size: int | None, limit: int | None) -> Dataset:
    path = Path(source.path).expanduser()
    x, notes = arrays.read(path)
    if len(x) < 2:
        raise UserError(f"{path} holds {len(x) or 'no'} item. Expected at least 2.")
    if image_size is not None and [image_size] * 2 != list(x.shape[2:]):
        raise UserError(
            f"image_size is {image_size}, but {path} holds items of shape {list(x.shape[1:])}. Expected none."
        )
    total, indices = len(x), torch.arange(len(x))
    if limit is not None and limit < total:
        indices = torch.randperm(total, generator=torch.Generator().manual_seed(seed))[:limit].sort().values
        x = x[indices.numpy()]
    items = Pixels(x) if x.dtype == np.uint8 else Floats(torch.from_numpy(x))
    stored = Stored(path, total, indices)
    return Dataset(items, "vector" if x.ndim == 2 else "image", spec, notes=notes, stored=stored)
