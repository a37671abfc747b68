"""How much Gaussian noise each item holds (standard deviation, data units), as its corruption says."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from . import Corruption, Gaussian, Truth, item_generator


def drawn_levels(parts: tuple[Corruption, ...], seed: int, indices: list[int], epochs: list[int]) -> Float[Tensor, "b"]:
    """The noise that the Gaussian parts of a corruption add to these items in these epochs; other parts count for nothing.

    As :func:`~atdm.corruption.corrupt_items` draws it, without damaging anything.
    """
    variance = np.zeros(len(indices))
    for number, part in enumerate(parts):
        if not isinstance(part, Gaussian):
            continue
        for row, (index, epoch) in enumerate(zip(indices, epochs, strict=True)):
            rng = item_generator(seed, index, number, epoch)
            if rng.random() < part.share:
                variance[row] += part.draw((), rng)["std"] ** 2
    return torch.from_numpy(np.sqrt(variance)).float()


def truth_levels(truth: Truth) -> Float[Tensor, "n"]:
    """The noise that a truth file tells of, item by item."""
    variance = np.zeros(truth.touched.shape[1])
    for part, values in truth.details.items():
        if part.split("_")[0] == "gaussian":
            variance += np.nan_to_num(values["std"]) ** 2
    return torch.from_numpy(np.sqrt(variance)).float()
