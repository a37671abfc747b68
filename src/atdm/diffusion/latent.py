"""Latent diffusion: an autoencoder of diffusers in front, so that process, perturbation and objective work on its latents.

Source: Rombach et al. 2022 (arXiv 2112.10752), section 3.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from .. import hub
from ..errors import UserError, first_line
from ..files import require_sealed

AT_ONCE = 16  # images through the autoencoder
INSIDE = ("vqvae", "vae")  # where pipelines of diffusers keep it: that of LDMPipeline, those of all others


class Latents:
    """Images in [-1, 1] to the latents a diffusion model learns, and back.

    The latents are ``scaling_factor (z - shift_factor)`` with both factors from the autoencoder's configuration: about
    unit variance, so radius and strength mean what they do for images. Nothing here trains the autoencoder.

    Examples:
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
        self.factor = 2 ** (len(config["block_out_channels"]) - 1)  # by which it divides sides

    @classmethod
    def load(cls, source: str | Path, subfolder: str | None = None) -> Latents:
        """From a folder or a name on the Hub, in safetensors; of a pipeline or a run its autoencoder.

        Args:
            subfolder: where in ``source`` it is; by default it is looked for.

        Raises:
            UserError: no autoencoder opens there.
        """
        path = Path(source) / "model" if (Path(source) / "model" / "model_index.json").is_file() else Path(source)
        where: Any = path if path.exists() else source
        if not path.exists() and not hub.is_name(source):
            raise UserError(
                f"There is no folder '{source}'. Expected a folder of a diffusers AutoencoderKL, or a Hub name such as "
                "stabilityai/sd-vae-ft-mse."
            )
        if subfolder is None and path.is_dir():
            require_sealed(path)
            subfolder = next((name for name in INSIDE if (path / name / "config.json").is_file()), None)
        try:
            return cls(_open(where, subfolder))
        except Exception as problem:  # diffusers, safetensors and the Hub client each raise their own
            raise UserError(
                f"Cannot load an autoencoder from '{source}': {first_line(problem)}. "
                "Expected a folder or Hub name of a diffusers AutoencoderKL, its weights in safetensors."
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
        self, latents: Float[Tensor, "batch latent h w"], batch_size: int = AT_ONCE
    ) -> Float[Tensor, "batch channels height width"]:
        """The images, ``batch_size`` at a time, on the device of ``latents``."""
        z = latents / self.scale + self.shift
        parts = (self.vae.decode(part.to(self.vae.device, self.vae.dtype)).sample for part in z.split(batch_size))
        return torch.cat([part.float().to(latents.device) for part in parts])

    def shape_of(self, image_shape: tuple[int, ...]) -> tuple[int, int, int]:
        """The shape of the latents of images ``(channels, height, width)``.

        Raises:
            UserError: not images, not as many channels as the autoencoder takes, or sides that are not divisible by
                what it divides them by.
        """
        wanted, factor = self.vae.config["in_channels"], self.factor
        if len(image_shape) != 3:
            raise UserError(
                f"The autoencoder is for images; the items have shape {list(image_shape)}. Expected images."
            )
        channels, height, width = image_shape
        if channels != wanted:
            raise UserError(f"The autoencoder takes images of {wanted} channels; these have {channels}.")
        if height % factor or width % factor:
            raise UserError(
                f"The autoencoder divides sides by {factor}; the images have {height}x{width} pixels. "
                f"Expected sides divisible by {factor}."
            )
        return (self.vae.config["latent_channels"], height // factor, width // factor)

    def image_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of the images that latents of ``shape`` decode to."""
        return (self.vae.config["out_channels"], *(self.factor * side for side in shape[1:]))


def _open(source: str | Path, subfolder: str | None) -> Any:
    """The ``AutoencoderKL`` there, or in the ``vae/`` of a pipeline on the Hub."""
    from diffusers import AutoencoderKL

    try:
        config = AutoencoderKL.load_config(source, subfolder=subfolder)
    except OSError:
        if subfolder is not None or Path(source).exists():
            raise
        return _open(source, "vae")
    if config.get("_class_name") != "AutoencoderKL":  # diffusers would make one of any configuration
        raise UserError(f"There is a {config.get('_class_name', 'model without a class name')}.")
    return AutoencoderKL.from_pretrained(source, subfolder=subfolder, use_safetensors=True)
