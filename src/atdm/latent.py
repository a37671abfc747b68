"""Latent diffusion: an autoencoder of diffusers in front, so that process, push and objective work on its latents.

Source: Rombach et al. 2022 (arXiv 2112.10752), section 3.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from .errors import UserError, first_line


class Latents:
    """Images in [-1, 1] to the latents a diffusion model learns, and back.

    The latents are ``scaling_factor (z - shift_factor)`` with both factors from the autoencoder's configuration: about
    unit variance, so radius and strength mean what they do for images. Nothing here trains the autoencoder.

    >>> latents = Latents.load("stabilityai/sd-vae-ft-mse")
    >>> loss = objective(unet, latents.encode(images, generator)).loss.mean()
    >>> images = latents.decode(sample(unet, process, 16, latents.shape_of((3, 256, 256))))

    Args:
        vae: a diffusers ``AutoencoderKL``; it is put in evaluation mode and its parameters are frozen.
    """

    def __init__(self, vae: Any) -> None:
        self.vae: Any = vae.eval().requires_grad_(False)
        config: Any = self.vae.config
        self.scale = float(config["scaling_factor"])
        self.shift = float(config.get("shift_factor") or 0.0)

    @classmethod
    def load(cls, source: str | Path, subfolder: str | None = None) -> Latents:
        """From a folder or a name on the Hub.

        Raises:
            UserError: no autoencoder opens there.
        """
        from diffusers import AutoencoderKL

        try:
            return cls(AutoencoderKL.from_pretrained(source, subfolder=subfolder))
        except Exception as problem:  # diffusers, safetensors and the Hub client each raise their own
            reason = first_line(problem)
            raise UserError(
                f"Cannot load an autoencoder from '{source}': {reason} "
                "Expected a folder or Hub name of a diffusers AutoencoderKL."
            ) from problem

    @torch.no_grad()
    def encode(
        self, images: Float[Tensor, "batch channels height width"], generator: torch.Generator | None = None
    ) -> Float[Tensor, "batch latent h w"]:
        """A draw from the posterior of each image; without a ``generator`` its mode."""
        posterior = self.vae.encode(images.to(self.vae.device, self.vae.dtype)).latent_dist
        z = posterior.mode() if generator is None else posterior.sample(generator)
        return self.scale * (z - self.shift).float()

    @torch.no_grad()
    def decode(
        self, latents: Float[Tensor, "batch latent h w"], batch_size: int = 64
    ) -> Float[Tensor, "batch channels height width"]:
        """The images, ``batch_size`` at a time, on the device of ``latents``."""
        z = latents / self.scale + self.shift
        parts = [self.vae.decode(part.to(self.vae.device, self.vae.dtype)).sample for part in z.split(batch_size)]
        return torch.cat(parts).float().to(latents.device)

    def shape_of(self, image_shape: tuple[int, int, int]) -> tuple[int, int, int]:
        """The shape of the latents of images ``(channels, height, width)``.

        Raises:
            UserError: the sides are not divisible by what the autoencoder divides them by.
        """
        factor = 2 ** (len(self.vae.config["block_out_channels"]) - 1)
        _, height, width = image_shape
        if height % factor or width % factor:
            raise UserError(
                f"The autoencoder divides sides by {factor}; the images have {height}x{width} pixels. "
                f"Expected sides divisible by {factor}."
            )
        return (self.vae.config["latent_channels"], height // factor, width // factor)
