"""Encoded images of many shards, read in turn: tar and parquet files, here or behind a URL, and data sets on the Hub.

Hugging Face ``datasets`` reads the shards. Its own shuffle buffer is lost when a run resumes, so the order is made here: shards
come in an order drawn for the epoch, a few of them in turn fill a block, and the block is shuffled. Where a block began and how
much of it was taken says exactly how reading goes on.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..errors import UserError, first_line
from .folders import search
from .images import image_column, quietly
from .listing import by_split, matching, numbered, require_file
from .named import Hub, Parquet, Webdataset

IN_TURN = 8  # shards that are open at once
LOOKED_AT = 16  # shards that a sample is taken from
AT_ONCE = 32  # rows of a parquet file that are read together
KEY_BITS = 57  # of an item's key: what corruption can count with


class Item(NamedTuple):
    """An encoded image: the hash of its bytes, what to call it, and its bytes; None where its cell is empty."""

    key: int
    name: str
    content: bytes | None

    @property
    def encoded(self) -> bytes:
        """The bytes; a ValueError where there are none."""
        if self.content is None:
            raise ValueError("the cell is empty")
        return self.content


class Position(NamedTuple):
    """Where a process goes on: the epoch, the block, how many of its images were taken, and each open shard."""

    epoch: int = 0
    block: int = 0
    taken: int = 0
    begun: int = 0  # shards of the epoch that were opened
    turn: int = 0
    open: tuple[
        tuple[int, int], ...
    ] = ()  # of each open shard its place in the order, and how many of its rows were read

    def text(self) -> str:
        """As JSON."""
        return json.dumps(self)

    @classmethod
    def read(cls, text: str) -> Position:
        """From :meth:`text`."""
        found = dict(zip(cls._fields, json.loads(text), strict=True))
        return cls(**found | {"open": tuple((at, read) for at, read in found["open"])})


@dataclass(frozen=True)
class Shards:
    """The shards of a set.

    Args:
        table: of ``datasets``, streamed.
        column: of the encoded images.
        where: what to call the set.
        notes: sentences on what was left out.
    """

    table: Any
    column: str
    where: str
    notes: tuple[str, ...] = ()

    @property
    def count(self) -> int:
        """How many shards there are."""
        return int(self.table.num_shards)

    def blocks(
        self, seed: int, size: int, position: Position, process: int = 0, processes: int = 1, in_turn: int = IN_TURN
    ) -> Iterator[tuple[Position, list[Item]]]:
        """Blocks of shuffled items, epoch after epoch, each with the position that it begins at.

        Args:
            seed: of the order.
            size: items of a block, the last of an epoch may have fewer.
            position: where to begin; the first block is a whole one, whatever was taken of it.
            process, processes: of how many this is which. Each has its own shards, or of fewer shards than processes its own items.
            in_turn: how many shards fill a block in turn.

        Raises:
            UserError: a shard cannot be read, or there is no item.
        """
        while True:
            order = _random(seed, position.epoch).permutation(self.count)
            mine = order[process::processes] if self.count >= processes else order
            part = (process, processes) if self.count < processes else (0, 1)
            readers = _Readers(self, [int(shard) for shard in mine], part, position, in_turn)
            for block in count(position.block):
                here = readers.position(position.epoch, block)
                if not (items := readers.take(size)):
                    break
                chosen = _random(seed, position.epoch, block + 1).permutation(len(items))
                yield here, [items[i] for i in chosen]
            if block == 0:
                raise UserError(
                    f"{self.where} holds no image for process {process + 1} of {processes}. Expected at least one for each."
                )
            position = Position(position.epoch + 1)

    def sample(self, size: int, seed: int) -> list[Item]:
        """The first items of a few shards chosen by ``seed``, so many in all."""
        _, items = next(self.blocks(seed, size, Position(), in_turn=LOOKED_AT))
        return items


def _random(*key: int) -> np.random.Generator:
    return np.random.default_rng([abs(part) * 2 + (part < 0) for part in key])


@dataclass
class _Reader:
    """One open shard: its place in the order of the epoch, how many rows of it were read, and those that follow."""

    at: int
    read: int
    rows: Iterator[dict[str, Any]]


class _Readers:
    """The open shards of an epoch."""

    def __init__(
        self, shards: Shards, order: list[int], part: tuple[int, int], position: Position, in_turn: int
    ) -> None:
        self.shards, self.order, self.part = shards, order, part
        self.begun, self.turn = position.begun, position.turn
        self.open = [self._reader(at, read) for at, read in position.open]
        if not position.begun:
            for slot in range(in_turn):
                self._next(slot)

    def position(self, epoch: int, block: int) -> Position:
        """Where the next item is."""
        return Position(epoch, block, 0, self.begun, self.turn, tuple((each.at, each.read) for each in self.open))

    def take(self, count: int) -> list[Item]:
        """So many items, of the open shards in turn; fewer at the end of the epoch."""
        found: list[Item] = []
        while len(found) < count and self.open:
            self.turn %= len(self.open)
            reader = self.open[self.turn]
            shard = self.order[reader.at]
            try:
                row = next(reader.rows, None)
            except Exception as problem:  # datasets raises its own, and those of what it reads by
                raise UserError(
                    f"Cannot read shard {shard} of {self.shards.where}: {first_line(problem)}. Expected a whole one."
                ) from problem
            if row is None:
                del self.open[self.turn]
                self._next(self.turn)
                continue
            reader.read += 1
            found.append(_item(row, self.shards.column, f"{self.shards.where}, shard {shard}"))
            self.turn += 1
        return found

    def _next(self, slot: int) -> None:
        """Open the next shard, if there is one."""
        if self.begun < len(self.order):
            self.open.insert(slot, self._reader(self.begun, 0))
            self.begun += 1

    def _reader(self, at: int, read: int) -> _Reader:
        table = self.shards.table.shard(num_shards=self.shards.count, index=self.order[at])
        process, processes = self.part
        return _Reader(at, read, islice(table.skip(read * processes) if read else table, process, None, processes))


def _item(row: dict[str, Any], column: str, where: str) -> Item:
    cell, path = row[column], None
    if isinstance(cell, dict):
        cell, path = cell["bytes"], cell["path"]
        if cell is None and path:
            with contextlib.suppress(FileNotFoundError):  # a shard may hold the name alone
                cell = Path(path).read_bytes()
    key = int.from_bytes(hashlib.blake2b(cell or b"", digest_size=8).digest(), "big") >> (64 - KEY_BITS)
    return Item(key, f"{row.get('__url__', where)}/{path or f'{key:x}'}", cell)


def open_shards(source: Parquet | Webdataset | Hub) -> tuple[Shards, Shards | None]:
    """The shards that a spec with ``streaming=true`` names: those to use, and those held out.

    Raises:
        UserError: there are none, they cannot be read, or hold no column of images.
    """
    if isinstance(source, Hub):
        about = f"'{source.name}' (split {source.split}) from the Hub"
        return _opened(source.column, source.name, about, (), path=source.name, split=source.split), None
    kind, where = ("parquet", source.path) if isinstance(source, Parquet) else ("webdataset", source.path)
    if isinstance(source, Webdataset) and source.column == "*":
        raise UserError("A stream has one image a sample. Expected column=NAME, not column=*.")
    train, test, notes = by_split(_files(where, kind))
    how: dict[str, Any] = {"path": kind, "split": "train"} | ({"batch_size": AT_ONCE} if kind == "parquet" else {})

    def table(files: list[str], notes: tuple[str, ...]) -> Shards:
        literal = [file if "://" in file else glob.escape(file) for file in files]
        return _opened(source.column, where, f"{kind} from {where}", notes, data_files=literal, **how)

    return table(train, notes), table(test, ()) if test else None


def _files(where: str, kind: str) -> list[str]:
    if "://" in where:
        return numbered(where)
    path = Path(where).expanduser()
    files = matching(where)
    if path.is_dir():
        tree = search(path)
        files = [str(path / name) for name in sorted(tree.parquet if kind == "parquet" else tree.tars)]
    if not files:
        raise UserError(f"There is no {kind} file at {where}. Expected a file, a folder of them, a glob or a range.")
    for file in files:
        require_file(file)
    return files


def _opened(column: str | None, where: str, about: str, notes: tuple[str, ...], **how: Any) -> Shards:
    import datasets

    try:
        with quietly():
            table = datasets.load_dataset(streaming=True, **how)
            features = table.features or next(iter(table.take(1)))
    except Exception as problem:  # datasets, huggingface_hub, fsspec and pyarrow each raise their own
        raise UserError(
            f"Cannot stream {about}: {first_line(problem)}. Expected whole shards whose samples have the same columns."
        ) from problem
    column = image_column(features, column, where)
    if isinstance(features[column], datasets.Image):
        table = table.cast_column(column, datasets.Image(decode=False))
    kept = [name for name in (column, "__url__") if name in features]
    logging.getLogger("datasets").debug("%s: %d shards", where, table.num_shards)
    return Shards(table.select_columns(kept), column, where, notes)
