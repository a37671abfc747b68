"""The forward process ``x_t = alpha_t x_0 + sigma_t eps`` and the conversions between what networks predict.

Source: Ho et al. 2020 (DDPM), Nichol & Dhariwal 2021 (cosine), Salimans & Ho 2022 (v); METHOD notation of
arXiv 2505.21742, section 2. ``eps ~ N(0, I)``; radii elsewhere in atdm are in *noise units*, that is in units of ``eps``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .errors import UserError, unknown

Prediction = Literal["epsilon", "sample", "v_prediction"]


@dataclass(frozen=True)
class Process:
    """A discrete forward process with timesteps ``0 .. T-1``; larger t is noisier.

    Args:
        alphas: ``alpha_t``, the factor on the data.
        sigmas: ``sigma_t``, the standard deviation of the noise.
        prediction: what the network predicts, in diffusers' words: ``epsilon``, ``sample`` (x_0) or ``v_prediction``.
        schedule: diffusers' name of the beta schedule, kept so that a scheduler can be written back.
    """

    alphas: Float[Tensor, "T"]
    sigmas: Float[Tensor, "T"]
    prediction: Prediction = "epsilon"
    schedule: dict[str, Any] = field(default_factory=dict)
    _tables: dict[torch.device, tuple[Tensor, Tensor]] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.prediction not in get_args(Prediction):
            raise unknown("prediction", self.prediction, get_args(Prediction))
        if not bool(((self.sigmas[1:] / self.alphas[1:]) >= (self.sigmas[:-1] / self.alphas[:-1])).all()):
            raise UserError("The noise-to-signal ratio sigma_t/alpha_t must not decrease with t.")

    @classmethod
    def linear(
        cls, steps: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02, prediction: Prediction = "epsilon"
    ) -> Process:
        """Variance preserving with linear betas (Ho 2020); the betas scale with 1000/steps to keep the end point."""
        scale = 1000 / steps
        betas = torch.linspace(beta_start * scale, beta_end * scale, steps, dtype=torch.float64)
        schedule = {"beta_schedule": "linear", "beta_start": beta_start * scale, "beta_end": beta_end * scale}
        return cls._from_betas(betas, prediction, schedule)

    @classmethod
    def cosine(cls, steps: int = 1000, prediction: Prediction = "epsilon") -> Process:
        """Variance preserving with ``abar(u) = cos^2(pi/2 (u + 0.008) / 1.008)`` and betas capped at 0.999 (Nichol 2021)."""
        u = torch.arange(steps + 1, dtype=torch.float64) / steps
        abar = torch.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2
        betas = (1 - abar[1:] / abar[:-1]).clamp(max=0.999)
        return cls._from_betas(betas, prediction, {"beta_schedule": "squaredcos_cap_v2"})

    @classmethod
    def from_scheduler(cls, scheduler: Any) -> Process:
        """The process a diffusers scheduler was built for (any with ``alphas_cumprod``).

        Raises:
            UserError: the scheduler has no variance-preserving table (flow-matching and EDM schedulers).
        """
        abar = getattr(scheduler, "alphas_cumprod", None)
        if abar is None:
            raise UserError(
                f"{type(scheduler).__name__} has no alphas_cumprod. "
                "Expected a variance-preserving scheduler such as DDPMScheduler."
            )
        config = scheduler.config
        keys = ("beta_schedule", "beta_start", "beta_end", "trained_betas", "rescale_betas_zero_snr")
        schedule = {k: config[k] for k in keys if config.get(k) is not None}
        return cls._from_abar(abar.double(), config.get("prediction_type", "epsilon"), schedule)

    @classmethod
    def _from_betas(cls, betas: Tensor, prediction: Prediction, schedule: dict[str, Any]) -> Process:
        return cls._from_abar(torch.cumprod(1 - betas, 0), prediction, schedule)

    @classmethod
    def _from_abar(cls, abar: Tensor, prediction: Prediction, schedule: dict[str, Any]) -> Process:
        return cls(abar.sqrt().float(), (1 - abar).sqrt().float(), prediction, schedule)

    @property
    def steps(self) -> int:
        """T, the number of timesteps."""
        return len(self.alphas)

    def scheduler_config(self, clip_sample: bool) -> dict[str, Any]:
        """The keyword arguments with which diffusers' schedulers rebuild this process."""
        return {
            "num_train_timesteps": self.steps,
            "prediction_type": self.prediction,
            "clip_sample": clip_sample,
            **self.schedule,
        }

    def alpha(self, t: Int[Tensor, "batch"], like: Float[Tensor, "batch *dims"] | None = None) -> Tensor:
        """``alpha_t``, shaped to broadcast against ``like`` (or ``[batch]``)."""
        return self._gather(0, t, like)

    def sigma(self, t: Int[Tensor, "batch"], like: Float[Tensor, "batch *dims"] | None = None) -> Tensor:
        """``sigma_t``, shaped to broadcast against ``like`` (or ``[batch]``)."""
        return self._gather(1, t, like)

    def ratio(self, t: Int[Tensor, "batch"]) -> Float[Tensor, "batch"]:
        """``sigma_t / alpha_t``: the noise level of the rescaled state ``x_t / alpha_t``, in data units."""
        return self.sigma(t) / self.alpha(t)

    def timestep_at(self, ratio: float) -> int:
        """The first timestep whose ``sigma_t/alpha_t`` reaches ``ratio``: the inverse of :meth:`ratio` (T if none does)."""
        return int(torch.searchsorted((self.sigmas / self.alphas).contiguous(), ratio))

    def mix(
        self, x0: Float[Tensor, "batch *dims"], eps: Float[Tensor, "batch *dims"], t: Int[Tensor, "batch"]
    ) -> Float[Tensor, "batch *dims"]:
        """``x_t = alpha_t x_0 + sigma_t eps``."""
        return self.alpha(t, x0) * x0 + self.sigma(t, x0) * eps

    def target(
        self, x0: Float[Tensor, "batch *dims"], eps: Float[Tensor, "batch *dims"], t: Int[Tensor, "batch"]
    ) -> Float[Tensor, "batch *dims"]:
        """What the network should output for ``x_t = mix(x0, eps, t)``."""
        if self.prediction == "epsilon":
            return eps
        if self.prediction == "sample":
            return x0
        return self.alpha(t, x0) * eps - self.sigma(t, x0) * x0

    def to_eps(
        self, output: Float[Tensor, "batch *dims"], x_t: Float[Tensor, "batch *dims"], t: Int[Tensor, "batch"]
    ) -> Float[Tensor, "batch *dims"]:
        """The noise prediction that the network's ``output`` at ``x_t`` amounts to."""
        if self.prediction == "epsilon":
            return output
        alpha, sigma = self.alpha(t, x_t), self.sigma(t, x_t)
        if self.prediction == "sample":
            return (x_t - alpha * output) / sigma
        return alpha * output + sigma * x_t

    def denoised(
        self, eps: Float[Tensor, "batch *dims"], x_t: Float[Tensor, "batch *dims"], t: Int[Tensor, "batch"]
    ) -> Float[Tensor, "batch *dims"]:
        """``D(x_t, t) = (x_t - sigma_t eps) / alpha_t``."""
        return (x_t - self.sigma(t, x_t) * eps) / self.alpha(t, x_t)

    def score(self, eps: Float[Tensor, "batch *dims"], t: Int[Tensor, "batch"]) -> Float[Tensor, "batch *dims"]:
        """``grad log p_t(x_t) = -eps / sigma_t`` (Song 2021)."""
        return -eps / self.sigma(t, eps)

    def _gather(self, which: int, t: Tensor, like: Tensor | None) -> Tensor:
        if t.device not in self._tables:
            self._tables[t.device] = (self.alphas.to(t.device), self.sigmas.to(t.device))
        values = self._tables[t.device][which][t]
        return values if like is None else values.reshape(-1, *[1] * (like.dim() - 1))


PROCESSES: dict[str, Callable[..., Process]] = {"linear": Process.linear, "cosine": Process.cosine}
