"""Near duplicates: images that show the same, whatever their noise, compression, brightness or mirroring."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

ALIKE = 0.15  # root mean square difference over contrast below which two images show the same
CANDIDATE = 0.95  # correlation of 8x8 thumbnails from which a pair is looked at
NEIGHBOURS = 5  # pairs looked at for each image
PLAIN = 0.05  # contrast below which images are too plain to tell
BLOCK = 1024


class Pair(NamedTuple):
    """Two items, how far apart they are (root mean square difference over contrast, noise taken off), and whether one is mirrored."""

    first: int
    second: int
    distance: float
    mirrored: bool


@dataclass(frozen=True)
class Duplicates:
    """Pairs, the closest first, and the groups of items they join."""

    pairs: list[Pair]
    groups: list[list[int]]

    @property
    def extra(self) -> int:
        """Items that could go without losing any content."""
        return sum(len(group) - 1 for group in self.groups)


def image_duplicates(small: Float[Tensor, "n c s t"], noise: Float[np.ndarray, "n"]) -> Duplicates:
    """Near duplicates among shrunk images.

    Args:
        noise: std of the noise in each shrunk image.
    """
    flat = small - small.mean((1, 2, 3), keepdim=True)
    white = torch.from_numpy(noise).float() ** 2
    contrast = (flat.square().mean((1, 2, 3)) - white).clamp(min=0).sqrt()
    side = min(8, *small.shape[2:])
    thumbs = nn.functional.adaptive_avg_pool2d(flat.mean(1, keepdim=True), side)
    found: dict[tuple[int, int], Pair] = {}
    for mirrored in (False, True):
        other = thumbs.flip(-1) if mirrored else thumbs
        for i, j in _candidates(_unit(thumbs), _unit(other)):
            if min(contrast[i], contrast[j]) < PLAIN:
                continue
            image = flat[j].flip(-1) if mirrored else flat[j]
            left = (flat[i] - image).square().mean() - white[i] - white[j]
            distance = float(left.clamp(min=0).sqrt() / (contrast[i] * contrast[j]).sqrt())
            key = (min(i, j), max(i, j))
            if distance < ALIKE and (key not in found or distance < found[key].distance):
                found[key] = Pair(*key, round(distance, 4), mirrored)
    return _grouped(list(found.values()))


def vector_duplicates(x: Float[Tensor, "n d"]) -> Duplicates:
    """Vectors that are equal."""
    _, inverse = np.unique(x.numpy(), axis=0, return_inverse=True)
    groups: dict[int, list[int]] = {}
    for i, which in enumerate(inverse.reshape(-1).tolist()):
        groups.setdefault(which, []).append(i)
    return _grouped([Pair(group[0], other, 0.0, False) for group in groups.values() for other in group[1:]])


def _unit(thumbs: Float[Tensor, "n _ s t"]) -> Float[Tensor, "n d"]:
    rows = thumbs.flatten(1)
    return rows / rows.norm(dim=1, keepdim=True).clamp(min=1e-6)


def _candidates(rows: Float[Tensor, "n d"], others: Float[Tensor, "n d"]) -> list[tuple[int, int]]:
    """For each row the most alike others, without itself."""
    out = []
    k = min(NEIGHBOURS, len(rows) - 1)
    for at in range(0, len(rows), BLOCK):
        likeness = rows[at : at + BLOCK] @ others.T
        likeness[torch.arange(len(likeness)), torch.arange(at, at + len(likeness))] = -1
        values, indices = likeness.topk(k, dim=1)
        for row, column in (values >= CANDIDATE).nonzero().tolist():
            out.append((at + row, int(indices[row, column])))
    return out


def _grouped(pairs: list[Pair]) -> Duplicates:
    parent: dict[int, int] = {}

    def root(i: int) -> int:
        while parent.setdefault(i, i) != i:
            i = parent[i]
        return i

    for pair in pairs:
        first, second = sorted((root(pair.first), root(pair.second)))
        parent[second] = first
    groups: dict[int, list[int]] = {}
    for i in sorted(parent):
        groups.setdefault(root(i), []).append(i)
    return Duplicates(
        sorted(pairs, key=lambda pair: (pair.distance, pair.first, pair.second)),
        sorted(groups.values(), key=lambda group: (-len(group), group)),
    )
