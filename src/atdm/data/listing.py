"""Encoded images by index, wherever they are; and which files a path names."""

from __future__ import annotations

import errno
import glob
import hashlib
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from ..errors import UserError
from ..text import one_line
from .classes import Classes


@dataclass(frozen=True)
class Listing:
    """Encoded images by index, read one at a time and from any thread.

    Args:
        count: how many.
        name: what to call image i in messages.
        content: the encoded bytes of image i, or a PIL image.
        key: identifies the images' content, so that what was decoded once is found again.
        notes: sentences on what was left out.
        whole: the set that these are a part of: one scale holds for all its images.
        broken: names of files of many images that could not be read, or not to their end.
        labelled: looks up the class of each image; None where its source knows of no classes.
    """

    count: int
    name: Callable[[int], str]
    content: Callable[[int], Any]
    key: str
    notes: tuple[str, ...] = ()
    whole: Listing | None = None
    broken: tuple[str, ...] = ()
    labelled: Callable[[], Classes] | None = None

    @property
    def all(self) -> Listing:
        """The whole set."""
        return self.whole or self

    def without(self, broken: Sequence[str]) -> list[int]:
        """The indices of the images that are not called so."""
        names = {*broken}
        return [i for i in range(self.count) if not names or self.name(i) not in names]


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


def _part(listing: Listing, indices: list[int], *facts: object) -> Listing:
    labelled = listing.labelled and (lambda: listing.labelled()[indices])  # type: ignore[misc]
    return replace(
        listing,
        count=len(indices),
        name=lambda index: listing.name(indices[index]),
        content=lambda index: listing.content(indices[index]),
        key=key_of(listing.key, *facts),
        whole=listing.all,
        labelled=labelled,
    )


def joined(first: Listing, second: Listing) -> Listing:
    """The images of both, one listing after the other."""

    def either(one: Callable[[int], Any], other: Callable[[int], Any]) -> Callable[[int], Any]:
        return lambda index: one(index) if index < first.count else other(index - first.count)

    name, content = either(first.name, second.name), either(first.content, second.content)
    return Listing(first.count + second.count, name, content, key_of(first.key, second.key), whole=first.whole)


def of_one_set(first: Listing, second: Listing | None) -> tuple[Listing, Listing | None]:
    """Both, as parts of the set that they are together."""
    if second is None:
        return first, None
    whole = joined(first, second)
    return replace(first, whole=whole), replace(second, whole=whole)


# --- keys -------------------------------------------------------------------------------------------------------------
def key_of(*facts: object) -> str:
    """A hash of what is known of a listing."""
    return hashlib.sha256(repr(facts).encode("utf-8", "surrogatepass")).hexdigest()


def stamp(file: str) -> tuple[str, int, int, int]:
    """What changes when a file changes: its place, size and times, of which nobody sets the second; zeros where it cannot be reached."""
    try:
        status = os.stat(file)
        return os.path.realpath(file), status.st_size, status.st_mtime_ns, status.st_ctime_ns
    except OSError:
        return file, 0, 0, 0


# --- files ------------------------------------------------------------------------------------------------------------
def matching(pattern: str) -> list[str]:
    """The files that a path, a glob or a range such as ``train-{000..012}.tar`` names, sorted."""
    pattern = os.path.expanduser(pattern)
    if os.path.exists(pattern):  # brackets and braces may be part of a name
        return [pattern]
    return sorted({f for one in numbered(pattern) for f in ([one] if os.path.exists(one) else glob.glob(one))})


def numbered(pattern: str) -> list[str]:
    """A range such as ``a-{08..11}.tar`` written out."""
    found = re.search(r"\{(\d+)\.\.(\d+)\}", pattern)
    if not found:
        return [pattern]
    first, last = found.groups()
    numbers = [str(n).zfill(len(first)) for n in range(int(first), int(last) + 1)]
    return [p for n in numbers for p in numbered(pattern[: found.start()] + n + pattern[found.end() :])]


def by_split(files: Iterable[str]) -> tuple[list[str], list[str], tuple[str, ...]]:
    """Files to use, those held out (named test*), and a note on those left out (named val*)."""
    named: dict[str, list[str]] = {"test": [], "val": [], "": []}
    for file in files:
        base = os.path.basename(file).lower()
        named[next(word for word in named if base.startswith(word))].append(file)
    train, test, other = named[""], named["test"], named["val"]
    if not train:  # somebody asked for just these
        return [*test, *other], [], ()
    return train, test, tuple(left_out("files named val*", other))


def left_out(what: str, names: list[str]) -> list[str]:
    """A note that counts what was left out, says what it is and names the first few; none where there is nothing."""
    if not names:
        return []
    more = ", ..." if len(names) > 3 else ""
    return [f"{len(names)} left out ({what}): {', '.join(map(one_line, names[:3]))}{more}"]


def others(endings: Counter[str]) -> list[str]:
    """A note on files that are no images, by their endings."""
    if not endings:
        return []
    kinds = ", ".join(f"{count} {one_line(ending) or 'without ending'}" for ending, count in endings.most_common(5))
    more = ", ..." if len(endings) > 5 else ""
    return [f"{sum(endings.values())} left out (no images): {kinds}{more}"]


def require_file(path: str | os.PathLike[str]) -> None:
    """Refuse a pipe or a device, of which reading may never end; what is not there is for who opens it.

    Raises:
        UserError: it is one, or a folder.
    """
    if os.path.exists(path) and not os.path.isfile(path):
        raise UserError(f"{os.fspath(path)} is no file but a folder, a pipe or a device. Expected a file.")


def require_handles(problem: BaseException) -> None:
    """Stop where too many files are open, which says nothing about the file that was to be read.

    Raises:
        UserError: it is so.
    """
    if isinstance(problem, OSError) and problem.errno in (errno.EMFILE, errno.ENFILE):
        raise UserError(
            "Too many files are open at once. Expected a higher limit, as of 'ulimit -n 4096'."
        ) from problem
