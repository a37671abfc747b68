"""DDPM through a subset of the timesteps as if it were all of them; apart from the schedulers, as diffusers is slow to import."""

from __future__ import annotations

from diffusers import DDPMScheduler
from torch import Tensor


class UnrespacedDDPMScheduler(DDPMScheduler):
    """Each of fewer steps from t goes to t-1 by the one-step ``beta_t`` of training (Ho 2020, algorithm 2).

    A stride takes away the noise of one timestep only, so less is removed than the network expects: the error of an
    implementation that does not recompute the betas for its subset (Nichol & Dhariwal 2021, section 4, recomputes them).
    """

    def previous_timestep(self, timestep: int | Tensor) -> int | Tensor:
        """t-1, whatever the next evaluation is at."""
        return timestep - 1
