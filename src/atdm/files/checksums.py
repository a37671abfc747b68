"""Damage that a disk, a cable or a copy does, found when a file is read.

Files of tensors and of items carry a CRC-32 of each tensor or item: it is computed from memory while they are written and
checked on what is read, so no file is read twice. Folders that other programs write carry ``SHA256SUMS``, which
``sha256sum -c`` checks too. Files of earlier versions carry none and are read as they are.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import UserError, first_line
from .writing import atomic

if TYPE_CHECKING:
    from torch import Tensor

SEAL = "SHA256SUMS"
KEY = "crc32"  # in the metadata of a file of tensors
ABOUT = "the metadata"  # stands among the names of the tensors


class Damaged(UserError):
    """A file is not as it was written."""


def save_tensors(tensors: Mapping[str, Tensor], path: Path, about: Mapping[str, str] | None = None) -> None:
    """Write contiguous tensors on the CPU as safetensors, with their checksums and ``about`` in its metadata."""
    import safetensors.torch

    sums = {name: _sum(name, value) for name, value in sorted(tensors.items())}
    if about:
        sums[ABOUT] = _sum_of_texts(about)
    safetensors.torch.save_file(dict(tensors), path, {**(about or {}), KEY: json.dumps(sums)})


def load_tensors(path: Path, prefix: str = "") -> dict[str, Tensor]:
    """The tensors of a safetensors file whose names begin with ``prefix``, checked where it carries checksums.

    Raises:
        Damaged: it cannot be read, or a tensor is not the one that was written.
        FileNotFoundError: there is no such file.
    """
    with _opened(path) as file:
        texts = file.metadata() or {}
        sums = json.loads(texts.pop(KEY, "null"))
        tensors = {name: file.get_tensor(name) for name in file.keys() if name.startswith(prefix)}  # noqa: SIM118
    if sums is not None:
        found = {name: _sum(name, value) for name, value in tensors.items()}
        sums = sums if isinstance(sums, dict) else {}
        if ABOUT in sums:  # not in those of earlier versions
            found[ABOUT] = _sum_of_texts(texts)
        wanted = {name: value for name, value in sums.items() if name.startswith(prefix) or name == ABOUT}
        if wrong := sorted(name for name in {*found, *wanted} if found.get(name) != wanted.get(name)):
            raise Damaged(f"{path} is damaged: the checksum of {wrong[0]} differs from the one it was written with.")
    return tensors


def tensor_metadata(path: Path) -> dict[str, str]:
    """What :func:`save_tensors` recorded ``about`` the tensors; the errors are those of :func:`load_tensors`."""
    with _opened(path) as file:
        return {k: v for k, v in (file.metadata() or {}).items() if k != KEY}


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """A safetensors file; whatever is wrong with it as it is read is damage."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            yield file
    except FileNotFoundError:
        raise
    except (OSError, SafetensorError, ValueError, TypeError, RuntimeError) as problem:
        raise Damaged(f"{path} is damaged: {first_line(problem)}.") from problem


def _sum(name: str, value: Tensor) -> int:
    import torch

    begin = zlib.crc32(f"{name} {value.dtype} {tuple(value.shape)}".encode())
    return zlib.crc32(value.contiguous().reshape(-1).view(torch.uint8).numpy().data, begin)


def _sum_of_texts(texts: Mapping[str, str]) -> int:
    return zlib.crc32(json.dumps(sorted(texts.items())).encode())


class Sums:
    """The CRC-32 of each item of an array that is too large to be checked at once, in a small file beside it."""

    def __init__(self, values: np.ndarray) -> None:
        self.values = values

    @classmethod
    def of(cls, items: np.ndarray) -> Sums:
        """The checksums of ``items`` ``[n, ...]``."""
        return cls(np.array([zlib.crc32(np.ascontiguousarray(item).data) for item in items], "<u4"))

    @staticmethod
    def file(path: Path) -> Path:
        """Where the checksums of the array file ``path`` are."""
        return path.with_suffix(".crc32")

    @classmethod
    def load(cls, path: Path, items: int) -> Sums | None:
        """The checksums beside the array file ``path``; None where there are none.

        Raises:
            Damaged: they are not those of so many items.
        """
        file = cls.file(path)
        if not file.is_file():
            return None
        raw = file.read_bytes()
        if len(raw) != 4 * items:
            raise Damaged(f"{file} is damaged: it holds {len(raw)} bytes. Expected 4 for each of {items} items.")
        return cls(np.frombuffer(raw, "<u4"))

    def save(self, path: Path) -> None:
        """Write them beside the array file ``path``."""
        with atomic(self.file(path)) as scratch:
            scratch.write_bytes(self.values.astype("<u4").tobytes())

    def require(self, items: np.ndarray, indices: np.ndarray, path: Path) -> None:
        """Check ``items``, the rows ``indices`` of the array file ``path``.

        Raises:
            Damaged: names the first that differs.
        """
        wrong = Sums.of(items).values != self.values[indices]
        if wrong.any():
            raise Damaged(
                f"{path} is damaged: item {int(indices[wrong.argmax()])} is not as it was written. "
                "Remove that file, and the same command makes it again."
            )


def seal(folder: Path) -> None:
    """Write the SHA-256 of every file of JSON and weights below ``folder`` to ``SHA256SUMS`` in it."""
    files = sorted(f for f in folder.rglob("*") if f.suffix in (".json", ".safetensors", ".bin"))
    lines = [f"{_sha256(file)}  {file.relative_to(folder).as_posix()}\n" for file in files]
    (folder / SEAL).write_text("".join(lines), encoding="utf-8")


def require_sealed(folder: Path) -> None:
    """Check the files of ``folder`` against its ``SHA256SUMS``, if it has one.

    Raises:
        Damaged: names the first that is missing or differs.
    """
    try:
        lines = (folder / SEAL).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return
    except (OSError, UnicodeDecodeError) as problem:
        raise Damaged(f"{folder / SEAL} is damaged: {first_line(problem)}.") from problem
    for line in lines:
        wanted, _, name = line.partition("  ")
        file = folder / name
        if not name or not file.is_file() or _sha256(file) != wanted:
            raise Damaged(
                f"{file} is not as it was written: its checksum differs from that in {folder / SEAL}. "
                f"Expected the file as exported; if you changed it on purpose, remove {SEAL}."
            )


def _sha256(path: Path) -> str:
    digest: Any = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            while part := file.read(1 << 20):
                digest.update(part)
    except OSError as problem:
        raise Damaged(f"Cannot read {path}: {problem.strerror}.") from problem
    return digest.hexdigest()
