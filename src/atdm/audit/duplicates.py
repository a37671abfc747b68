"""Near duplicates: images that show the same, whatever their noise, compression, brightness or mirroring."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree
from torch import Tensor, nn

ALIKE = 0.15  # root mean square difference over contrast below which two images show the same
CANDIDATE = 0.95  # correlation of 8x8 thumbnails from which a pair is looked at
NEIGHBOURS = 5  # pairs looked at for each image
PLAIN = 0.05  # contrast below which images are too plain to tell
SEARCHED = 16  # directions of the index
SEEN = 32  # nearest in the index of which the correlation is looked at
BLOCK = 4096


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
    images, mirrors = _unit(thumbs), _unit(thumbs.flip(-1))
    # Thumbnails and their mirror images differ most in these few directions: two that are alike are near along them.
    moment = (images.T @ images + mirrors.T @ mirrors).double()
    basis = torch.linalg.eigh(moment).eigenvectors[:, -SEARCHED:].float()
    use = torch.nonzero(contrast >= PLAIN)[:, 0]
    index = cKDTree((images[use] @ basis).double().numpy(), leafsize=64) if len(use) else None
    found: dict[tuple[int, int], Pair] = {}
    for mirrored in (False, True) if index is not None else ():
        for part in use.split(BLOCK):
            i, j = _candidates(images, (mirrors if mirrored else images), part, use, index, basis)
            image = flat[j].flip(-1) if mirrored else flat[j]
            left = (flat[i] - image).square().mean((1, 2, 3)) - white[i] - white[j]
            distance = left.clamp(min=0).sqrt() / (contrast[i] * contrast[j]).sqrt()
            for at in torch.nonzero(distance < ALIKE)[:, 0].tolist():
                key = (min(int(i[at]), int(j[at])), max(int(i[at]), int(j[at])))
                if key not in found or distance[at] < found[key].distance:
                    found[key] = Pair(*key, round(float(distance[at]), 4), mirrored)
    return _grouped(list(found.values()))


def vector_duplicates(x: Float[Tensor, "n d"]) -> Duplicates:
    """Vectors that are equal."""
    _, places, inverse = np.unique(x.numpy(), axis=0, return_index=True, return_inverse=True)
    first = places[inverse.reshape(-1)].tolist()
    return _grouped([Pair(first[i], i, 0.0, False) for i in range(len(x)) if first[i] != i])


def _unit(thumbs: Float[Tensor, "n _ s t"]) -> Float[Tensor, "n d"]:
    images = thumbs.flatten(1)
    return images / images.norm(dim=1, keepdim=True).clamp(min=1e-6)


def _candidates(
    images: Float[Tensor, "n d"],
    turned: Float[Tensor, "n d"],
    part: Int[Tensor, "b"],
    use: Int[Tensor, "m"],
    index: cKDTree,
    basis: Float[Tensor, "d k"],
) -> tuple[Int[Tensor, "pairs"], Int[Tensor, "pairs"]]:
    """Pairs of an item of ``part`` and one of those most alike to it, when turned.

    Unit vectors of correlation c are sqrt(2 - 2c) apart, and no farther along some directions: the index finds all within
    that, of which the correlation itself is then looked at.

    Args:
        index: the items in ``use`` along ``basis``.
    """
    near = index.query(
        (turned[part] @ basis).double().numpy(), k=SEEN + 1, distance_upper_bound=(2 - 2 * CANDIDATE) ** 0.5 + 1e-6
    )[1]
    i, slot = np.nonzero(near < len(use))
    first, second = part[torch.from_numpy(i)], use[torch.from_numpy(near[i, slot].astype(np.int64))]
    alike = torch.full(near.shape, -1.0)
    likeness = (turned[first] * images[second]).sum(1)
    alike[torch.from_numpy(i), torch.from_numpy(slot)] = torch.where(first == second, -1.0, likeness)
    columns = torch.full(near.shape, -1, dtype=torch.long)
    columns[torch.from_numpy(i), torch.from_numpy(slot)] = second
    values, best = alike.topk(min(NEIGHBOURS, near.shape[1]), dim=1)
    row, rank = (values >= CANDIDATE).nonzero(as_tuple=True)
    return part[row], columns[row, best[row, rank]]


def _grouped(pairs: list[Pair]) -> Duplicates:
    ends = np.array([(pair.first, pair.second) for pair in pairs]).reshape(-1, 2)
    items, place = np.unique(ends, return_inverse=True)
    graph = coo_array((np.ones(len(pairs)), tuple(place.reshape(-1, 2).T)), shape=(len(items), len(items)))
    groups: dict[int, list[int]] = {}
    for i, which in zip(items.tolist(), connected_components(graph)[1].tolist(), strict=True):
        groups.setdefault(which, []).append(i)
    return Duplicates(
        sorted(pairs, key=lambda pair: (pair.distance, pair.first, pair.second)),
        sorted(groups.values(), key=lambda group: (-len(group), group)),
    )
