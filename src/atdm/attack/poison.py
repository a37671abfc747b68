"""Poisoned training data: adversarial noise that makes clean items hard for a diffusion model, within a small ball.

Source: Liang 2023 (AdvDM), Van Le 2023 (Anti-DreamBooth): projected ascent on the denoising loss of a surrogate,
``max_{|delta| <= r} E_{t, eps} || eps_theta(x_t) - eps ||^2`` at ``x_t = alpha_t (x + delta) + sigma_t eps``.

Unlike the corruption of :mod:`.corruption` it needs a model and hundreds of passes for an item, too much for workers that prepare
batches: a poisoned set is made once and then learned from.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from .. import spec as specs
from ..corruption import CORRUPTIONS, PLACES, Truth, item_generator
from ..data.items import Items
from ..diffusion.model import Model
from ..diffusion.process import Process
from ..errors import UserError, expect
from ..nets.passes import evaluating, frozen
from . import Search

OTHERS = (*CORRUPTIONS, "none", "poison")
MEASURED = ("loss_before", "loss_after", "moved_rms", "moved_max")
JUDGED = 64  # draws of (t, eps) that a loss in the truth is the mean over


@dataclass(frozen=True)
class Poison:
    """Adversarial noise against a surrogate.

    Args:
        model: run folder, diffusers pipeline folder or Hub name of the surrogate.
        share: probability that an item is touched.
        radius: of the l_inf ball, data units (in the scale of [-1, 1]: 16/255 is 8/255 of the pixel range).
        steps: of the ascent; 0 keeps uniform noise in the ball.
        draws: of (t, eps), which each gradient is the mean over; new ones in every step.
        label: the class that a surrogate is given which knows classes, by name or number.
    """

    model: str
    share: float = 1.0
    radius: float = 16 / 255
    steps: int = 20
    draws: int = 8
    label: str | None = None

    def __post_init__(self) -> None:
        expect(0 <= self.share <= 1, "share of the poison", self.share, "a number from 0 to 1")
        expect(0 < self.radius <= 2, "radius of the poison", self.radius, "a number above 0 and up to 2, data units")
        if self.label == "all":
            raise UserError("The poison is made against one class, or none. Expected a label by name or number.")
        if self.steps < 0 or self.draws < 1:
            raise UserError(
                f"The poison has {self.steps} steps of {self.draws} draws. Expected 0 or more steps and 1 or more draws."
            )


def parse_poison(spec: str) -> Poison | None:
    """The poison that a spec of ``atdm corrupt`` names: ``poison:model=runs/ddpm,share=0.5``. None: it names other corruption.

    Raises:
        UserError: an unknown option or a value out of range, or other corruption beside the poison.
    """
    parts = [part.strip() for part in spec.split("+")]
    if not any(part.partition(":")[0] == "poison" for part in parts):
        return None
    if not parts[0].startswith("poison") or any(part.partition(":")[0] in OTHERS for part in parts[1:]):
        raise UserError(
            "Poison is made against clean items and stands alone. Expected poison:... by itself; other corruption can be added "
            "to the poisoned set afterwards, as in train --data noisy/samples.npz --corrupt gaussian."
        )
    return specs.build("corruption", spec, {"poison": Poison})


def poison_item(
    x: Float[Tensor, "*item"], model: Model, how: Poison, seed: int, index: int
) -> tuple[Float[Tensor, "*item"], dict[str, float] | None]:
    """Item ``index`` as the poisoned set has it, and what was done to it (None: untouched).

    A function of (seed, index) alone, on one machine to the bit: an item is a batch of its own, made of its draws. Images
    stay in [-1, 1].

    Returns:
        The item, and ``loss_before``, ``loss_after`` (of the surrogate, over the same draws), ``moved_rms`` and
        ``moved_max`` (data units).
    """
    rng = item_generator(seed, index, PLACES - 1)  # other corruption under the same seed touches other items
    if rng.random() >= how.share:
        return x, None
    noise = torch.Generator().manual_seed(int(rng.integers(2**63)))
    process = model.process
    ahead, judged = _draws(how.draws, x.shape, process, noise), _draws(JUDGED, x.shape, process, noise)
    starts = torch.Generator().manual_seed(int(rng.integers(2**63)))
    clean = x[None].to(model.device)
    low, high = (clean.clamp(max=-1), clean.clamp(min=1)) if x.dim() == 3 else (None, None)

    def placed(delta: Tensor) -> Tensor:
        return clean + delta if low is None else (clean + delta).clamp(low, high)

    with frozen(model.net) as net, evaluating(model.net):
        surrogate = dataclasses.replace(model, net=net)

        def gain(delta: Tensor, draw_index: int | None) -> Tensor:
            fresh = ahead if draw_index is not None else _draws(how.draws, x.shape, process, noise)
            return _loss(surrogate, placed(delta), fresh)[None]

        search = Search(how.steps, "linf")
        found = search.run(gain, clean, [starts], torch.full((1,), how.radius, device=model.device))
        poisoned = placed(found.delta)
        with torch.no_grad():
            losses = [_loss(surrogate, item, judged).item() for item in (clean, poisoned)]
    moved = (poisoned - clean).cpu()
    measured = (*losses, moved.square().mean().sqrt().item(), moved.abs().max().item())
    return poisoned[0].cpu(), dict(zip(MEASURED, measured, strict=True))


def poison(
    items: Items,
    model: Model,
    how: Poison,
    seed: int = 0,
    *,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[Float[Tensor, "n *item"], Truth]:
    """A poisoned copy of clean items, and the truth about it.

    Args:
        model: the surrogate.
        progress: called with how many items are done and of how many.
    """
    poisoned, done = [], []
    for indices in torch.arange(len(items)).split(256):
        for index, x in zip(indices.tolist(), items[indices], strict=True):
            item, measured = poison_item(x, model, how, seed, index)
            poisoned.append(item)
            done.append(measured)
            progress(index + 1, len(items))
    values = {name: np.array([np.nan if found is None else found[name] for found in done]) for name in MEASURED}
    about = {"items": len(done), "parts": [dataclasses.asdict(how) | {"kind": "poison"}], "checkpoint": model.hash}
    touched = np.array([[measured is not None for measured in done]])
    return torch.stack(poisoned), Truth(touched, specs.describe("poison", how), seed, about, {"poison": values})


def _draws(
    count: int, shape: tuple[int, ...], process: Process, generator: torch.Generator
) -> tuple[Float[Tensor, "k *item"], Float[Tensor, "k"]]:
    """Noise, and timesteps spread evenly (one in each of ``count`` equal parts), so that few of them vary little."""
    shares = (torch.arange(count) + torch.rand(count, generator=generator)) / count
    return torch.randn((count, *shape), generator=generator), (shares * process.steps).clamp(max=process.steps - 1)


def _loss(model: Model, item: Float[Tensor, "1 *item"], draws: tuple[Tensor, Tensor]) -> Float[Tensor, ""]:
    """The denoising loss of one item, mean over draws and coordinates."""
    eps, t = draws[0].to(item), draws[1].long().to(item.device)
    x_t = model.process.mix(item.expand_as(eps), eps, t)
    return (model.eps(x_t, t) - eps).square().mean()
