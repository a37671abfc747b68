"""Statistics of references, computed once: a file in the user's cache for each reference and feature network."""

from __future__ import annotations

import hashlib
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..data.cache import cache_folder
from ..errors import UserError
from ..files import Damaged, atomic, load_tensors, save_tensors
from .distances import Moments, moments
from .features import FeatureSpace
from .results import content_hash

KEPT = 10_000  # features kept for measures that look at neighbours and pairs; moments are those of all


@dataclass(frozen=True)
class Reference:
    """What is compared with: moments of all features, and the features of up to ``KEPT`` items."""

    moments: Moments
    features: Float[Tensor, "m d"]


def reference(space: FeatureSpace, x: Float[Tensor, "m *dims"], accelerator: Any = None) -> Reference:
    """The statistics of ``x`` in ``space``, from the cache where the network's weights are known by a hash.

    The key is the content of ``x``, the weights and the preprocessing. A file that cannot be read is made anew, and one
    that cannot be written is not missed.
    """
    if space.weights is None:
        return _compute(space, x, accelerator)
    key = "\n".join([content_hash(x), space.name, space.weights, space.preprocessing])
    path = cache_folder() / f"reference-{hashlib.sha256(key.encode()).hexdigest()[:32]}.safetensors"
    found = _read(path)
    if _everywhere(found is not None, accelerator) and found is not None:
        return found
    made = _compute(space, x, accelerator)
    if accelerator is None or accelerator.is_main_process:
        _write(path, made)
    return made


def _compute(space: FeatureSpace, x: Tensor, accelerator: Any) -> Reference:
    features = space.features(x, accelerator=accelerator)
    kept = torch.randperm(len(features), generator=torch.Generator().manual_seed(0))[:KEPT]
    return Reference(moments(features), features[kept])


def _everywhere(wish: bool, accelerator: Any) -> bool:
    """Whether all processes say so: they compute together or not at all."""
    if accelerator is None or accelerator.num_processes == 1:
        return wish
    return bool(accelerator.gather(torch.tensor([int(wish)], device=accelerator.device)).min().item())


def _read(path: Path) -> Reference | None:
    try:
        found = load_tensors(path)
        return Reference(Moments(found["mean"], found["covariance"]), found["features"])
    except (FileNotFoundError, Damaged, KeyError):
        return None


def _write(path: Path, made: Reference) -> None:
    tensors = {"mean": made.moments.mean, "covariance": made.moments.covariance, "features": made.features}
    try:
        with atomic(path) as scratch:
            save_tensors({name: value.cpu().contiguous() for name, value in tensors.items()}, scratch)
    except UserError as problem:
        warnings.warn(f"The statistics of the reference were not cached: {problem}", stacklevel=2)
