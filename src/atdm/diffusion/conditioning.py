"""Class and text conditioning: dropping it in training, and guidance without a classifier in sampling.

Source: Ho & Salimans 2022, Classifier-Free Diffusion Guidance (arXiv 2207.12598), algorithms 1 and 2.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UserError, expect, require_known
from ..nets import call
from .process import States, per_item


def drop_conditioning(
    conditioning: Mapping[str, Tensor],
    null: Mapping[str, Tensor],
    probability: float,
    generator: torch.Generator | None = None,
) -> dict[str, Tensor]:
    """``conditioning`` in which rows are replaced by ``null``, each with ``probability``: all tensors at the same rows.

    Drop before the objective is called: its clean and perturbed passes, and the attack, then see the same rows dropped.

    Examples:
        >>> kept = drop_conditioning({"encoder_hidden_states": text}, {"encoder_hidden_states": empty}, 0.1, generator)
        >>> loss = objective(unet, latents, **kept).loss.mean()

    Args:
        conditioning: by the network's keyword, tensors with one row per sample.
        null: for each of them what stands for nothing, in the shape of a row: the embedding of an empty prompt, or the
            index after the last class.
        probability: of dropping a row, such as 0.1.
        generator: seeds which items; default: torch's global generator.

    Raises:
        UserError: a probability outside [0, 1], tensors of different length, or one without its ``null``.
    """
    expect(0 <= probability <= 1, "The probability of dropping the conditioning", probability, "a number in [0, 1]")
    for name in conditioning:
        require_known("null conditioning", name, null)
    lengths = {len(value) for value in conditioning.values()}
    if len(lengths) > 1:
        raise UserError(f"The conditioning has {sorted(lengths)} rows. Expected one row per sample in every tensor.")
    count = lengths.pop() if lengths else 0
    dropped = torch.rand(count, generator=generator, device=generator.device if generator else "cpu") < probability
    return {
        name: torch.where(per_item(dropped.to(value.device), value), null[name].to(value), value)
        for name, value in conditioning.items()
    }


def in_turn(value: Tensor, count: int) -> Tensor:
    """``value`` with one row per sample: its own rows in turn, where there are fewer."""
    if len(value) == count:
        return value
    return value[torch.arange(count, device=value.device) % len(value)]


def of_items(value: Any, items: Tensor | slice, count: int) -> Any:
    """The conditioning of these ``items`` of ``count``; anything without one row per item is passed on as it is."""
    if isinstance(value, Tensor) and value.dim() > 0 and len(value) == count:
        return value[items.to(value.device) if isinstance(items, Tensor) else items]
    if isinstance(value, dict):
        return {k: of_items(v, items, count) for k, v in value.items()}
    return value


class Guided(nn.Module):
    """A conditional network with guidance: ``out(null) + scale (out(c) - out(null))``, for :func:`atdm.diffusion.sampling.sample`.

    Args:
        model: trained with :func:`drop_conditioning`.
        null: as there.
        scale: 1 is the conditional network itself; more follows the condition at the price of variety.
    """

    def __init__(self, model: Callable[..., Any], null: Mapping[str, Tensor], scale: float) -> None:
        super().__init__()
        self.model, self.null, self.scale = model, dict(null), scale

    @property
    def config(self) -> Any:
        """Of the network, which says what items it is for."""
        return self.model.config  # type: ignore[attr-defined]

    def forward(self, x: States, t: Tensor, **conditioning: Any) -> States:
        """The guided output; the two passes are one batch."""
        conditioning = {k: in_turn(v, len(x)) if k in self.null else v for k, v in conditioning.items()}
        empty = {k: v.to(conditioning[k]).expand_as(conditioning[k]) for k, v in self.null.items()}
        both = {k: torch.cat([v, empty[k]]) if k in empty else v for k, v in conditioning.items()}
        given, nothing = call(self.model, torch.cat([x, x]), torch.cat([t, t]), **both).chunk(2)
        return nothing + self.scale * (given - nothing)
