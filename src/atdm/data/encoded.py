"""The latents of a source: images encoded once, after the corruption."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..diffusion.latent import AT_ONCE, Latents
from ..errors import UserError
from ..files import Sums
from .decode import Progress
from .items import write_items
from .source import Source


class Encoded:
    """The items of a source as latents (the modes of their posteriors), encoded when they are asked for.

    Args:
        source: images; what is done to them must be the same in every epoch, for latents are encoded once.

    Raises:
        UserError: the autoencoder does not take the images, or they change from epoch to epoch.
    """

    def __init__(self, source: Source, latents: Latents) -> None:
        changing = {
            "flip": source.flip,
            "crop random": source.window is not None,
            "corrupt_fresh": source.fresh and bool(source.corruption),
        }
        if any(changing.values()):
            named = " and ".join(name for name, is_set in changing.items() if is_set)
            raise UserError(
                f"With an autoencoder each image is encoded once, so it cannot change from epoch to epoch: {named}. "
                "Expected no flip, a crop of center or none, and a corruption that is fixed to the item."
            )
        self.source, self.latents = source, latents
        self.item_shape = latents.shape_of(source.item_shape)

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, indices: Int[Tensor, "b"]) -> Float[Tensor, "b latent h w"]:
        return torch.cat([self.latents.encode(self.source[part]).cpu() for part in indices.split(AT_ONCE)])

    def save(self, path: Path, progress: Progress | None = None) -> Sums:
        """Write all latents to an .npy file, a few at a time, and return their checksums.

        Args:
            progress: called with how many are done, and of how many.

        Raises:
            UserError: a latent is not finite.
        """

        def parts() -> Iterator[np.ndarray]:
            for indices in torch.arange(len(self)).split(AT_ONCE):
                z = self[indices]
                if not bool(z.isfinite().all()):
                    raise UserError(
                        f"The autoencoder makes latents that are not finite of the items {int(indices[0])} to "
                        f"{int(indices[-1])}. Expected one whose weights work in float32."
                    )
                yield z.numpy().astype("<f4")
                if progress:
                    progress(int(indices[-1]) + 1, len(self))

        return write_items(path, parts())
