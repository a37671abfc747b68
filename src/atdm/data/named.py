"""The names of data sets, and their options: the fields of a class each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..errors import expect
from .toy import TOYS


@dataclass(frozen=True)
class Digits:
    """scikit-learn's 1,797 handwritten digits, 8x8; ``subspace=k`` projects them onto their first k principal directions."""

    subspace: int | None = None


@dataclass(frozen=True)
class Directory:
    """A folder of images, or of parquet or tar files."""

    path: str


@dataclass(frozen=True)
class Folder:
    """A folder of images, whatever else is in it."""

    path: str


@dataclass(frozen=True, kw_only=True)
class Streamed:
    """What may be read as a stream.

    Args:
        streaming: read the shards in turn, without decoding all images first.
        buffer: images that are shuffled together.
        sample: images that stand for the set wherever all of it would be needed.
    """

    streaming: bool = False
    buffer: int = 1000
    sample: int = 2000

    def __post_init__(self) -> None:
        for name, low in (("buffer", 1), ("sample", 2)):
            expect(getattr(self, name) >= low, name, getattr(self, name), f"an integer >= {low}")


@dataclass(frozen=True)
class Parquet(Streamed):
    """Parquet files in the layout of Hugging Face ``datasets``; ``column`` where several hold images, ``label`` classes."""

    path: str
    column: str | None = None
    label: str | None = None


@dataclass(frozen=True)
class Webdataset(Streamed):
    """Uncompressed tar files in the webdataset layout; ``column`` where a sample has several images."""

    path: str
    column: str | None = None


@dataclass(frozen=True)
class Npz:
    """Items of an .npz or .npy file (:mod:`atdm.data.arrays`), such as ``atdm corrupt`` and ``atdm sample`` write."""

    path: str


@dataclass(frozen=True)
class Hub(Streamed):
    """A data set on the Hugging Face Hub, ``OWNER/NAME``."""

    name: str
    split: str = "train"
    column: str | None = None
    label: str | None = None


@dataclass(frozen=True)
class Torchvision:
    """A data set of torchvision in the folder ``root``; ``download`` fetches it."""

    name: str
    root: str = "data"
    split: str = "train"
    download: bool = False


DATASETS: dict[str, Any] = {
    **TOYS,
    "digits": Digits,
    "folder": Folder,
    "parquet": Parquet,
    "webdataset": Webdataset,
    "npz": Npz,
    "hub": Hub,
    "torchvision": Torchvision,
}


PATHS: dict[str, Any] = {"folder": Folder, "parquet": Parquet, "webdataset": Webdataset, "npz": Npz}
