"""What samples are compared with, and how far it can be trusted: training data are not clean because nobody looked."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ..data import Dataset
from ..data.source import Source
from ..errors import UserError
from .results import CLEANEST, TRAINING, TRUSTED, TRUTH, content_hash

CLEANEST_SHARE = 0.25  # of the training data, by the noise that the audit finds
LEFT_TO_DO = (
    "What learns their noise comes out ahead, so the numbers rank nothing. Expected a few trusted images, --reference FOLDER. "
    "Without any, go by noise_std, which needs no reference, or by precision against the least noisy items, --reference cleanest."
)


@dataclass(frozen=True, eq=False)
class ReferenceSet:
    """Items that samples are compared with.

    Args:
        items: the items.
        data: spec of where they come from.
        kind: ``trusted set`` (a person vouches for it), ``clean truth`` (before a corruption that atdm made, or data that are
            known), ``cleanest training data`` (by audit) or ``training data`` (as they are).
        noisy: share of the items that holds noise, by audit; None: nobody looked, or noise cannot be distinguished from content.
    """

    items: Float[Tensor, "m *item"]
    data: str
    kind: str
    noisy: float | None = None

    @classmethod
    def trusted(cls, dataset: Dataset) -> ReferenceSet:
        """All of a set that a person vouches for."""
        return cls(dataset.x, dataset.spec, TRUSTED)

    @classmethod
    def of(cls, dataset: Dataset, corrupted: bool) -> ReferenceSet:
        """What a model that learned from ``dataset`` is compared with: its held-out items, else all.

        Args:
            corrupted: atdm corrupted them for training, so that these are the truth.
        """
        known = dataset.files is None and dataset.stored is None  # toys and digits
        if corrupted or known or dataset.spec.startswith("torchvision:"):
            return cls(dataset.reference, dataset.spec, TRUTH)
        return cls(dataset.reference, dataset.spec, TRAINING, _noisy_share(dataset))

    @classmethod
    def cleanest(cls, dataset: Dataset) -> ReferenceSet:
        """The quarter of the training data in which the least noise is found.

        Raises:
            UserError: noise cannot be distinguished from content in such data.
        """
        stds = torch.cat([*_stds(_source(dataset))])
        kept = stds.argsort(stable=True)[: max(2, round(CLEANEST_SHARE * len(stds)))].sort().values
        return cls(dataset.x[kept], dataset.spec, CLEANEST, float((stds[kept] > 0).double().mean()))

    def __str__(self) -> str:
        if self.kind in (TRUSTED, TRUTH):
            return self.data
        if self.noisy is None:
            return f"{self.kind}, noise not distinguished from content"
        found = f"noise on ~{100 * self.noisy:.0f} % of them" if round(100 * self.noisy) else "no noise found"
        return f"{self.kind}, {found} (audit)"

    def as_dict(self) -> dict[str, str]:
        """For a :class:`Provenance`."""
        return {"reference": str(self), "reference_hash": content_hash(self.items), "reference_kind": self.kind}

    @property
    def warning(self) -> str | None:
        """What is to be said where numbers against it are shown; None: nothing."""
        return None if self.kind in (TRUSTED, TRUTH) else f"Compared with {self}. {LEFT_TO_DO}"


def _source(dataset: Dataset) -> Source:
    return Source(dataset.items, window=dataset.window, files=dataset.files)


def _stds(source: Source) -> Iterator[Float[Tensor, "b"]]:
    gauge = source.gauge()
    for indices in torch.arange(len(source)).split(512):
        yield gauge.stds(source[indices], indices)


def _noisy_share(dataset: Dataset) -> float | None:
    """As ``atdm audit`` finds it, by the files where these tell."""
    source = _source(dataset)
    try:
        gauge = source.gauge()
    except UserError:
        return None
    if gauge.files is None or not gauge.files.hidden.any():
        return gauge.noise.share
    return float((torch.cat([*_stds(source)]) > 0).double().mean())
