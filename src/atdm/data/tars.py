"""The images of tar files in the webdataset layout: indexed once and then read at any place."""

from __future__ import annotations

import os
import posixpath
import re
import shlex
import tarfile
from collections import Counter, defaultdict
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from ..errors import UserError, first_line
from .folders import LISTED
from .listing import Listing, key_of, left_out, matching, others, require_file, require_handles, stamp
from .pixels import suffixes

ALL = "*"
LINKS = 40  # from one to the next, as Linux follows them
# How compressed files begin, and what unpacks them.
COMPRESSED = {
    b"\x1f\x8b": "gunzip",
    b"BZh": "bunzip2",
    b"\xfd7zXZ": "unxz",
    b"\x28\xb5\x2f\xfd": "unzstd",
    b"PK\x03\x04": "unzip",
}


class _Entry(NamedTuple):
    file: str
    name: str
    offset: int
    size: int


def from_tars(pattern: str | list[str], column: str | None, skip_broken: bool = False) -> Listing:
    """The images of tar files (in a webdataset the files of a sample share their name up to the first dot).

    Args:
        pattern: a file, a glob, a range of numbers such as ``train-{000..012}.tar``, or files.
        column: what follows the first dot of the images to take, ``*`` for each; needed where a sample has several images.
        skip_broken: of a damaged tar file take what is before the damage, instead of stopping.

    Raises:
        UserError: no such file, a compressed or broken one, or no image of that column.
    """
    files = matching(pattern) if isinstance(pattern, str) else pattern
    where = pattern if isinstance(pattern, str) else os.path.dirname(files[0])
    if not files:
        raise UserError(f"There is no tar file at {where}. Expected a .tar file, a glob or a range {{000..012}}.tar.")
    members: list[_Entry] = []
    left: dict[str, list[str]] = {}
    broken: list[str] = []
    for file in files:
        require_file(file)
        whole, problem = _index(file, left)
        members += whole
        if problem is not None:
            if not skip_broken:
                raise UserError(
                    f"Cannot read the tar file {file}: {first_line(problem)}. Expected a whole, uncompressed .tar file.",
                    "--skip_broken true takes what is before the damage.",
                ) from problem
            broken.append(file)
    damage = left_out("what is behind the damage in tar files", broken)
    entries = [entry for entry in members if _wanted(entry.name, column)]
    if not entries:
        wanted = f"no file NAME.{column}" if column else f"no file ending in {LISTED}"
        raise UserError(f"The tar files {where} hold {wanted}.{''.join(f' {d}.' for d in damage)} Expected images.")
    if column != ALL:
        _require_one_each(entries, where)
    rest = Counter(os.path.splitext(entry.name.lower())[1] for entry in members)
    rest.subtract(os.path.splitext(entry.name.lower())[1] for entry in entries)

    def content(index: int) -> bytes:
        entry = entries[index]
        with open(entry.file, "rb") as file:
            file.seek(entry.offset)
            return file.read(entry.size)

    def name(index: int) -> str:
        return f"{entries[index].file}/{entries[index].name}"

    notes = (*damage, *(note for what, names in left.items() for note in left_out(what, names)), *others(+rest))
    return Listing(len(entries), name, content, key_of("tars", column, *map(stamp, files)), notes, broken=tuple(broken))


def _index(file: str, left: dict[str, list[str]]) -> tuple[list[_Entry], Exception | None]:
    """The files in a tar file, in order, as far as it is whole, and what is wrong then.

    Links become what they lead to, of members of one name the last counts, and names that cannot be had go to ``left``.
    """
    plain: dict[str, tarfile.TarInfo] = {}
    found: dict[str, str] = {}  # the name of a member, and of that which holds its bytes
    replaced = left.setdefault("followed by another of the same name", [])
    try:
        _walk(file, plain, found, replaced)
        problem = None
    except Exception as caught:  # tarfile raises its own and those of what it reads by
        require_handles(caught)
        _require_uncompressed(file)
        problem = caught
    entries = []
    for name, target in found.items():
        for _ in range(LINKS):
            target = found.get(target, target)
        if target in plain:
            entries.append(_Entry(file, name, plain[target].offset_data, plain[target].size))
        else:
            left.setdefault("links that lead to nothing, special and sparse files", []).append(
                f"{Path(file).name}/{name}"
            )
    return entries, problem


def _walk(file: str, plain: dict[str, tarfile.TarInfo], found: dict[str, str], replaced: list[str]) -> None:
    """Put the members of a tar file into ``plain`` and ``found``, one by one."""
    with tarfile.open(file, "r:") as tar:
        for member in tar:
            name = posixpath.normpath(member.name)
            if member.isdir() or posixpath.basename(name).startswith("."):
                continue
            target = name
            if member.islnk():
                target = posixpath.normpath(member.linkname)
            elif member.issym():
                target = posixpath.normpath(posixpath.join(posixpath.dirname(name), member.linkname))
            elif member.isreg() and not member.issparse():
                plain[name] = member
            if name in found:
                replaced.append(f"{Path(file).name}/{name}")
            found[name] = target
        end = tar.offset
    with open(file, "rb") as handle:
        handle.seek(end)
        while block := handle.read(1 << 20):
            if block.strip(b"\0"):
                raise ValueError("behind its end there is more: it is damaged, or several files were joined")


def _require_uncompressed(file: str) -> None:
    """Refuse a compressed file with the command that unpacks it.

    Raises:
        UserError: it is one.
    """
    with suppress(OSError), open(file, "rb") as handle:
        head = handle.read(6)
        if command := next((word for mark, word in COMPRESSED.items() if head.startswith(mark)), None):
            raise UserError(
                f"The tar file {file} is compressed. Expected an uncompressed one, of which images are read at any place: "
                f"{command} {shlex.quote(file)}"
            )


def _kinds(base: str) -> tuple[str, str]:
    """Which column a file is of: all after its first dot, or the words at its end, for a name may hold dots, too."""
    parts = base.split(".")
    words = len(parts)
    while words > 1 and re.fullmatch(r"[A-Za-z_][\w-]*", parts[words - 1]):
        words -= 1
    return ".".join(parts[1:]), ".".join(parts[words:])


def _wanted(name: str, column: str | None) -> bool:
    base = posixpath.basename(name)
    return base.lower().endswith(suffixes()) if column in (None, ALL) else column in _kinds(base)


def _require_one_each(entries: list[_Entry], where: str) -> None:
    """Refuse samples with several images. A dot in a name alone makes no sample of it: columns recur from sample to sample.

    Raises:
        UserError: names the columns to choose from.
    """
    for reading in (0, 1):
        samples: defaultdict[tuple[str, str], set[str]] = defaultdict(set)
        for entry in entries:
            kind = _kinds(posixpath.basename(entry.name))[reading]
            samples[entry.file, entry.name.removesuffix(f".{kind}")].add(kind)
        several = [kinds for kinds in samples.values() if len(kinds) > 1]
        recurring = {kind for kind, count in Counter(k for kinds in several for k in kinds).items() if count > 1}
        if len(recurring) > 1 and (reading == 1 or len(several) == len(samples)):
            raise UserError(
                f"The samples of {where} have several images. Expected column=NAME, one of "
                f"{', '.join(sorted({k for kinds in samples.values() for k in kinds}))}, or column={ALL} for each image."
            )
