"""Noisy items followed back to clean ones, each from the timestep of its own noise."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..nets import call
from ..nets.passes import evaluating
from .process import PerItem, Process, States, per_item


def timesteps_of(process: Process, stds: Float[Tensor, "n"]) -> Int[Tensor, "n"]:
    """The timesteps at which ``sigma_t / alpha_t`` is nearest to each noise std (data units)."""
    ratios = process.ratio(torch.arange(process.steps)).double()
    return torch.searchsorted((ratios[1:] + ratios[:-1]) / 2, stds.double().cpu())


@torch.no_grad()
def backward(
    model: Callable[..., Any],
    process: Process,
    y: States,
    stds: PerItem,
    *,
    evaluations: int,
    generator: torch.Generator,
    conditioning: Mapping[str, Any] | None = None,
) -> States:
    """Draws from ``p(x_0 | y)`` of items ``y = x_0 + s n``: the reverse process of ``model``, begun at the level s of each item.

    ``alpha_t y`` is a state ``x_t`` where ``sigma_t / alpha_t = s``. From level r to r' the state over alpha moves to
    ``D + (r'/r)^2 (x_t / alpha_t - D) + r' sqrt(1 - (r'/r)^2) z``, the posterior of ddpm written for any process, with D extrapolated
    from the step before to the middle of this one (DPM-Solver++ for the reverse SDE, Lu 2022, arXiv 2211.01095). The last evaluation
    is at t = 0, and its ``D`` the result.

    Args:
        y: on the device of the model.
        stds: s, data units, above 0.
        evaluations: of the network, at levels with the same ratio between each two, as near as there are timesteps.
        generator: of the noise, on the CPU, so that every device sees the same.
    """
    ways = torch.linspace(0, 1, evaluations, dtype=torch.float64)[:, None]
    s, end = stds.double().cpu(), process.ratio(torch.zeros(1, dtype=torch.long)).double()
    timesteps = [timesteps_of(process, s ** (1 - way) * torch.minimum(end, s) ** way).to(y.device) for way in ways]
    levels = [*(process.ratio(t) for t in timesteps[1:]), torch.zeros_like(stds, device=y.device)]
    state, last, r, before = y, y, stds.to(y.device), torch.zeros_like(stds, device=y.device)
    with evaluating(model):
        for t, level in zip(timesteps, levels, strict=True):
            x_t = process.alpha(t, state) * state
            denoised = process.to_x0(call(model, x_t, process.time(t), **(conditioning or {})), x_t, t)
            lower = torch.minimum(level, r)  # the first timestep may be a little above the level of the item
            step = (r / lower).log()
            ahead = torch.where(step.isfinite() & (before > 0), 0.5 * (step / before).clamp(max=1), 0)
            middle = denoised + per_item(ahead, y) * (denoised - last)
            kept, noise = (lower / r).square(), torch.randn(y.shape, generator=generator).to(y.device)
            state = middle + per_item(kept, y) * (state - middle) + per_item(lower * (1 - kept).sqrt(), y) * noise
            last, r, before = denoised, lower, torch.where(step > 0, step, before)
    return state
