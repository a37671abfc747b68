"""Feature spaces: named maps from items to numbers, in which samples and a reference are compared.

Those here need no network; those of networks are in :mod:`.networks` and join the same registry.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..errors import UserError
from .distances import Moments, Normal


@dataclass(frozen=True)
class FeatureSpace:
    """A named map from items to features ``[rows, d]``; what it is travels with every number measured in it.

    Args:
        name: how results call it, as in ``frechet_pixels``.
        fn: any callable on a batch of items, or a network, which is put in evaluation mode. It may return several rows
            for each item, if it is not a network.
        preprocessing: what happens to an item before the network sees it.
        weights: hash of the network's weights, or None where there are none.
        classes: from features to class logits, where the network has some.
    """

    name: str
    fn: Callable[[Tensor], Tensor]
    preprocessing: str = "none"
    weights: str | None = None
    classes: Callable[[Tensor], Tensor] | None = None

    def __post_init__(self) -> None:
        if isinstance(self.fn, nn.Module):
            self.fn.eval()

    def fit(self, reference: Float[Tensor, "m *dims"]) -> FeatureSpace:
        """Itself: nothing in it depends on the reference."""
        return self

    @torch.no_grad()
    def features(
        self, x: Float[Tensor, "n *dims"], batch: int = 128, accelerator: Any = None
    ) -> Float[Tensor, "rows d"]:
        """The features of all items, in order, on the CPU.

        Args:
            batch: items at a time.
            accelerator: an ``accelerate.Accelerator`` whose processes hold the same ``x``: each maps its share of the
                batches, and all get all features. Batches are the same as in one process, hence so are features.
        """
        where = accelerator.device if accelerator is not None else torch.device("cpu")
        if isinstance(self.fn, nn.Module):
            self.fn.to(where)
        parts = x.split(batch)
        if accelerator is None or accelerator.num_processes == 1:
            return torch.cat([self.fn(part.to(where)).cpu() for part in parts])
        rank, world = accelerator.process_index, accelerator.num_processes
        share = -(-len(parts) // world)
        mine = [self.fn(part.to(where)) for part in parts[rank * share : (rank + 1) * share]]
        return gather_items(torch.cat(mine) if mine else None, self.fn(parts[0][:1].to(where)), accelerator).cpu()

    @torch.no_grad()
    def logits(self, features: Float[Tensor, "n d"]) -> Float[Tensor, "n classes"]:
        """Class logits of features, on the CPU.

        Raises:
            UserError: the network knows no classes.
        """
        if self.classes is None or not isinstance(self.fn, nn.Module):
            raise UserError(f"The feature space '{self.name}' knows no classes.")
        weight = next(self.fn.parameters(), features)
        return self.classes(features.to(weight.device)).cpu()

    @torch.no_grad()
    def moments(self, x: Float[Tensor, "n *dims"], batch: int = 512) -> Moments:
        """Mean and unbiased covariance of the features in float64, accumulated over batches of items.

        Raises:
            UserError: there are fewer than two rows of features.
        """
        count = 0
        pivot = total = square = torch.zeros(())
        for part in x.split(batch):
            features = self.fn(part).double()
            if count == 0:  # sums about a point inside the data do not cancel
                pivot = features.mean(0)
                total = torch.zeros_like(pivot)
                square = torch.zeros_like(pivot).diag()
            features = features - pivot
            count += len(features)
            total = total + features.sum(0)
            square = square + features.T @ features
        if count < 2:
            raise UserError(f"A covariance needs two rows of features. Got {count}.")
        mean = total / count
        return Moments(pivot + mean, (square - count * torch.outer(mean, mean)) / (count - 1))

    def distance(self, x: Float[Tensor, "n *dims"], reference: Float[Tensor, "m *dims"], batch: int = 512) -> float:
        """Squared Frechet distance between samples and reference in this space.

        Its bias is positive and of order ``d / n``: compare values at equal sample counts.
        """
        return self.normal(x, batch).frechet(self.normal(reference, batch))

    @torch.no_grad()
    def normal(self, x: Float[Tensor, "n *dims"], batch: int = 512) -> Normal:
        """Fitted to the features: to all at once where they are fewer than what one of them holds, as the covariance is larger."""
        one = self.fn(x[:1])
        if len(one) * len(x) > one.shape[1]:
            return Normal(*self.moments(x, batch))
        return Normal.fitted(torch.cat([self.fn(part) for part in x.split(batch)]))


def gather_items(mine: Tensor | None, like: Tensor, accelerator: Any) -> Tensor:
    """The rows of all processes, in the order of processes, on each of them; a process may have none.

    Args:
        mine: rows of this process.
        like: a row, for a process that has none.
    """
    mine = like[:0] if mine is None else mine
    counts = accelerator.gather(torch.tensor([len(mine)], device=accelerator.device)).tolist()
    padded = torch.zeros(max(counts), *like.shape[1:], dtype=like.dtype, device=accelerator.device)
    padded[: len(mine)] = mine
    every = accelerator.gather(padded).split(max(counts))
    return torch.cat([items[:count] for items, count in zip(every, counts, strict=True)])


@runtime_checkable
class Features(Protocol):
    """What makes a feature space, knowing the reference and never the samples."""

    def fit(self, reference: Tensor, /) -> FeatureSpace: ...


def pixels() -> FeatureSpace:
    """All values, flattened. Sees everything that two moments see; needs more images than values."""
    return FeatureSpace("pixels", lambda x: x.flatten(1))


@dataclass(frozen=True)
class PcaFeatures:
    """Coordinates along the reference's principal directions: layout and large strokes, from few images.

    Blind to what lies off these directions, most noise included. The distance does not depend on the basis chosen
    within their span. The space is named by the number of directions in use, at most the rank of the reference.

    Args:
        directions: how many to keep.
    """

    directions: int = 32

    def fit(self, reference: Float[Tensor, "m *dims"]) -> FeatureSpace:
        """Projection onto the directions of largest variance of the ``reference``.

        Raises:
            UserError: no direction is asked for, or the reference has no variance.
        """
        variance, basis = pixels().normal(reference).axes
        rank = int((variance > variance[-1] * 1e-10).sum())
        if self.directions < 1 or rank == 0:
            raise UserError(f"Cannot keep {self.directions} of {rank} principal directions. Expected at least one.")
        kept = min(self.directions, rank)
        top = basis[:, -kept:]
        return FeatureSpace(f"pca{kept}", lambda x: x.flatten(1).double() @ top)


@dataclass(frozen=True)
class PatchFeatures:
    """Every patch of every image, pooled: noise and texture, from few images, as a patch has few values.

    Blind to where a patch sits, hence to layout.

    Args:
        size: side of a patch in pixels.
    """

    size: int = 4

    def fit(self, reference: Float[Tensor, "m c h w"]) -> FeatureSpace:
        """The space, whatever the reference.

        Raises:
            UserError: a patch does not fit into the images.
        """
        if not 1 <= self.size <= min(reference.shape[2:]):
            h, w = reference.shape[2:]
            raise UserError(f"Patches of size {self.size} do not fit {h}x{w} images. Expected 1 to {min(h, w)}.")
        return FeatureSpace(
            f"patches{self.size}", lambda x: nn.functional.unfold(x, self.size).transpose(1, 2).flatten(0, 1)
        )
