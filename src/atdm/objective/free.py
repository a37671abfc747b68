"""Free adversarial training with a fixed radius: one backward pass moves the weights and the perturbation, batch by batch."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..diffusion.process import PerItem, States, Timesteps, per_item
from ..errors import UserError, expect
from .terms import Baseline, Draws, Predict, Terms, counted, item_mean


@dataclass(frozen=True)
class Free(Baseline):
    """``max over ||delta|| <= radius of ||eps_theta(x_t + delta, t) - (eps + delta / sigma_t)||^2`` (Wang, ICLR 2025, arXiv 2502.17099).

    Each batch is replayed: the perturbation starts at zero, so the first replay is a ddpm step; every backward pass then
    gives the gradient for a step of the weights and for a step of delta, ``delta + step g / ||g||`` (Shafahi 2019). The
    target's delta is a constant for both gradients. One training step is all the replays of a batch, each with its own
    optimizer step and average; under another loop than ``fit`` call :meth:`next_draws` between backward passes.

    Args:
        radius: of the ball, as a root mean square over dimensions, in units of the state x_t; in the authors' CIFAR-10 script: 0.1.
        step: l2 length of a step of delta, in units of the state; there: 0.1, with which two steps do not reach the radius.
        replays: optimizer steps on each batch; there: 3.
    """

    radius: float = 0.1
    step: float = 0.1
    replays: int = 3

    def __post_init__(self) -> None:
        for name, value in (("radius", self.radius), ("step", self.step)):
            expect(value > 0, f"{name} of free adversarial training", value, "a number > 0, such as 0.1")
        expect(self.replays >= 1, "replays of free adversarial training", self.replays, "an integer >= 1, such as 3")

    def passes(self) -> dict[str, float]:
        return counted(self.replays, self.replays)

    def draw_extra(
        self, t: Timesteps, shape: tuple[int, ...], device: torch.device, generator: torch.Generator
    ) -> dict[str, Tensor]:
        return {"delta": torch.zeros(shape, device=device, requires_grad=True)}

    def next_draws(self, draws: Draws) -> Draws:
        """delta moved along the gradient that the last backward pass left on it, and projected onto the ball."""
        delta, gradient = draws.need("delta").detach(), draws.need("delta").grad
        if gradient is None:
            raise UserError(
                "Free adversarial training was replayed without a backward pass. Expected one before next_draws()."
            )
        scaled = gradient / per_item(gradient.abs().flatten(1).amax(1).clamp_min(1e-30), gradient)  # squares underflow
        delta = delta + self.step * scaled / per_item(scaled.flatten(1).norm(dim=1).clamp_min(1e-12), scaled)
        length = delta.flatten(1).norm(dim=1)
        bound = self.radius * math.sqrt(delta[0].numel())
        delta = delta * per_item((bound / length.clamp_min(1e-12)).clamp_max(1), delta)
        return replace(draws, delta=delta.requires_grad_())

    def terms(self, predict: Predict, x0: States, t: Timesteps, draws: Draws, levels: PerItem | None) -> Terms:
        process, delta = self.process, draws.need("delta")
        in_noise = delta.detach() / process.sigma(t, delta)
        output = predict(process.mix(x0, draws.noise, t) + delta, t)
        plain = Terms.unperturbed(t, self.denoising(output, x0, draws.noise + in_noise, t))
        rms = item_mean(delta.detach().square()).sqrt()
        return replace(
            plain,
            perturbed=rms > 0,
            radius=self.radius / process.sigma(t),
            delta_rms=rms / process.sigma(t),
            at_radius=(rms >= 0.999 * self.radius).float(),
        )
