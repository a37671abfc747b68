"""The files that images were decoded from: what their formats hide of their noise is measured in them, once."""

from __future__ import annotations

import json
import os
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import UserError
from ..files import read_json, write_text
from ..noise.blocks import Blocks, measure
from ..noise.files import FileNoise
from .cache import entry
from .decode import AT_ONCE, Framing, Progress
from .listing import Listing
from .pixels import MAX_PIXELS, formats, settings

VERSION = 2  # of what the cache holds


@dataclass(frozen=True)
class Files:
    """The files of the items of a data set, in their order.

    Args:
        listing: what there is.
        broken: names of those that were skipped.
        framing: how they were resized.
        cache: keep what was measured beside the decoded images.
    """

    listing: Listing
    broken: tuple[str, ...]
    framing: Framing
    cache: bool

    def noise(self, progress: Progress | None = None) -> FileNoise:
        """The noise of each.

        Args:
            progress: called with how many were read, and of how many.
        """
        path = entry([VERSION, self.listing.key, self.broken], ".files.json")
        try:
            kept = read_json(path, {"files": list, "crc32": int}, "what was measured")
            whole = kept["crc32"] == _sum(kept["files"])
        except UserError:
            whole = False
        if whole:
            found = [Blocks.from_json(row) for row in kept["files"]]
        else:
            found = self._measured(progress)
            if self.cache:
                with suppress(UserError):  # what cannot be kept is measured again
                    write_text(path, json.dumps({"files": found, "crc32": _sum(found)}))
        return FileNoise.of(found, np.array([self.framing.scale(file.size) for file in found]))

    @property
    def hidden_std(self) -> float:
        """Root mean square over all files of the noise that is seen in them, and that formats and resizing hide in their items."""
        return float(np.sqrt(np.mean(self.noise().remains ** 2)))

    @property
    def names(self) -> list[str]:
        """What each is called."""
        return [self.listing.name(i) for i in self.listing.without(self.broken)]

    def _measured(self, progress: Progress | None) -> list[Blocks]:
        indices = self.listing.without(self.broken)

        def one(index: int) -> Blocks:
            try:
                return measure(self.listing.content(index))
            except (
                Exception
            ):  # Pillow's decoders raise what they like; these files were decoded before, in another mode
                return Blocks("unreadable", (1, 1), None, False, (0.0, 0.0), 0)

        out: list[Blocks] = []
        formats()  # loads Pillow's decoders, which is not for threads
        with settings(MAX_PIXELS), ThreadPoolExecutor(min(32, os.cpu_count() or 1)) as pool:
            for at in range(0, len(indices), AT_ONCE):
                out += pool.map(one, indices[at : at + AT_ONCE])
                if progress:
                    progress(len(out), len(indices))
        return out


def _sum(facts: list[Any]) -> int:
    return zlib.crc32(json.dumps(facts).encode())
