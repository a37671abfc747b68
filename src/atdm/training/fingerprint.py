"""Whether the data of a run are those it began with."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..data import Dataset
from ..data.classes import Classes
from ..data.items import Pixels, every
from ..errors import UserError, first_line
from ..files import Sums, atomic

FILE = "data.npz"
MIX = 0x9E3779B1  # spreads small numbers over 32 bits


@dataclass(frozen=True)
class Fingerprint:
    """The CRC-32 of each item as it was read, before anything was done to it."""

    sums: np.ndarray
    item_shape: tuple[int, ...]
    classes: tuple[str, ...] = ()  # their names, where the network is given them

    @classmethod
    def of(cls, dataset: Dataset, classes: Classes | None = None) -> Fingerprint | None:
        """The fingerprint of data that come from files; None of data that are drawn from a seed, which cannot change.

        Args:
            classes: that the network is given, which are a part of the data then.
        """
        if isinstance(dataset.items, Pixels):
            sums = dataset.items.sums()
        elif dataset.stored is not None:
            sums = Sums.of(every(dataset.items).numpy()).values
        else:
            return None
        if classes is not None:
            sums = sums ^ (classes.of.numpy() * MIX % 2**32).astype("<u4")
        return cls(sums, tuple(dataset.items.item_shape), () if classes is None else classes.names)

    @classmethod
    def load(cls, run: Path, file: str = FILE) -> Fingerprint | None:
        """That of the data that the run began with; None of runs that keep none.

        Args:
            file: where it is kept.

        Raises:
            UserError: it cannot be read.
        """
        path = run / file
        if not path.is_file():
            return None
        try:
            with np.load(path, allow_pickle=False) as found:
                names = tuple(map(str, found["classes"])) if "classes" in found else ()
                return cls(found["crc32"].astype("<u4"), tuple(map(int, found["item_shape"])), names)
        except Exception as problem:  # zipfile, zlib and numpy each raise their own
            raise UserError(
                f"Cannot read {path}: {first_line(problem)}. Expected what atdm train wrote; without that file the data are "
                "taken as they are."
            ) from problem

    def save(self, run: Path, file: str = FILE) -> None:
        """Keep it in a run folder."""
        with atomic(run / file) as scratch:
            classes = np.array(self.classes, dtype=str)
            np.savez(scratch, crc32=self.sums, item_shape=self.item_shape, classes=classes)

    def differs(self, now: Fingerprint) -> str | None:
        """What is different of data whose fingerprint is ``now``; None: nothing."""
        if self.item_shape != now.item_shape:
            return f"their items were of shape {list(self.item_shape)} and are of {list(now.item_shape)}"
        if np.array_equal(self.sums, now.sums):
            pairs = zip(self.classes, now.classes, strict=False)
            return next((f"their class {was} is called {name}" for was, name in pairs if was != name), None)
        before, after = Counter(self.sums.tolist()), Counter(now.sums.tolist())
        gone, new = (before - after).total(), (after - before).total()
        if not gone and not new:
            return "they are the same items in another order"
        shared = min(len(self.sums), len(now.sums))
        first = int(np.flatnonzero(np.append(self.sums[:shared] != now.sums[:shared], True))[0])
        return f"of {len(self.sums):,} items {gone:,} are gone and {new:,} are new, the first at place {first}"


def require_same_data(
    dataset: Dataset, run: Path, goes_on: bool, latent: bool, file: str = FILE, classes: Classes | None = None
) -> tuple[Fingerprint | None, tuple[str, ...]]:
    """The fingerprint of the data of a run, and a note if they changed and it ``goes_on`` all the same.

    Args:
        latent: the run keeps what its data were encoded to, so it cannot go on with others.
        file: where the fingerprint is kept.
        classes: of the items, which the network is given; None: it is given none.

    Raises:
        UserError: they are not the data that the run began with; says what changed.
    """
    now, before = Fingerprint.of(dataset, classes), Fingerprint.load(run, file)
    if now is None or before is None or (changed := before.differs(now)) is None:
        return now, ()
    said = f"The data {dataset.spec} are not those that {run} began with: {changed}."
    if latent or not goes_on:
        how = "" if latent else ", or --changed_data true, which goes on with what is there now"
        raise UserError(f"{said} Expected the same data, or another --out{how}.")
    return now, (f"{said} Training goes on with what is there now.",)
