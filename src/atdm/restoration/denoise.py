"""Items denoised in one evaluation of a model, each at the timestep of its own noise."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..data.decode import Progress
from ..data.source import Source
from ..diffusion.backward import timesteps_of
from ..diffusion.model import Model, require_finite
from ..diffusion.process import per_item
from ..errors import UserError
from ..nets.passes import evaluating
from ..noise import noise_stds

BATCH = 256


@torch.no_grad()
def restore(
    model: Model,
    x: Float[Tensor, "n *item"],
    stds: Float[Tensor, "n"] | None = None,
    *,
    batch_size: int = BATCH,
) -> Float[Tensor, "n *item"]:
    """Noisy items denoised by ``model``, each at its own noise level; items without noise come back as they are.

    Of ``y = x_0 + s n`` the scaled item ``alpha_t y`` is a state ``x_t`` wherever ``sigma_t / alpha_t = s``, so the denoised
    ``D(alpha_t y, t)`` is the model's ``E[x_0 | y]``: no other estimate has a smaller squared error, and a draw from the
    posterior, which a reverse process makes, has twice as large a one.

    Examples:
        >>> cleaned = restore(Model.from_pretrained("runs/photos"), images)

    Args:
        x: images in [-1, 1], where the restored ones are clipped to, or vectors.
        stds: noise std of each item, data units, 0 where it is clean; None: estimated (:func:`atdm.noise.noise_stds`).

    Returns:
        the items, on the CPU.

    Raises:
        UserError: a model of latents, or noise that cannot be distinguished from content.
    """
    if model.latents is not None:
        raise UserError("Restoring works on pixels, and this is a latent diffusion model. Expected a model of pixels.")
    stds = (noise_stds(x) if stds is None else stds).cpu()
    out = x.detach().cpu().clone()
    with evaluating(model.net):
        for indices in torch.nonzero(stds > 0)[:, 0].split(batch_size):
            if not len(indices):  # what split makes of none; not every network takes an empty batch
                break
            t = timesteps_of(model.process, stds[indices])
            y = out[indices].to(model.device)
            where = t.to(model.device)
            made = model.denoised(per_item(model.process.alpha(where), y) * y, where).float().cpu()
            out[indices] = (made.clamp(-1, 1) if x.dim() == 4 else made).to(out.dtype)
    require_finite(out, "restored items")
    return out


def gauge(source: Source, progress: Progress = lambda done, total: None) -> Float[Tensor, "n"]:
    """The estimated noise std of every item of ``source``, 0 where it looks clean; as ``ambient_blind`` estimates it.

    Args:
        progress: called with how many items were looked at, and of how many.

    Raises:
        UserError: noise cannot be distinguished from content in such data.
    """
    found, seen = source.gauge(), []
    for indices in torch.arange(len(source)).split(BATCH):
        seen.append(found.stds(source[indices], indices))
        progress(int(indices[-1]) + 1, len(source))
    return torch.cat(seen)


@dataclass(frozen=True)
class Restoration:
    """The items of a source by index, restored when they are asked for.

    Args:
        stds: noise std of each item, 0 where it stays as it is.
    """

    source: Source
    model: Model
    stds: Float[Tensor, "n"]

    @property
    def item_shape(self) -> tuple[int, ...]:
        return self.source.item_shape

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, indices: Int[Tensor, "b"]) -> Float[Tensor, "b *item"]:
        return restore(self.model, self.source[indices], self.stds[indices])
