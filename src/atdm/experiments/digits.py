"""What the experiments on handwritten digits share."""

from __future__ import annotations

from typing import Any

from . import by_scale
from .runner.jobs import Job, ddpm_job

NOISE = {"noise 0.1": "gaussian:share=0.9,std=0.1", "noise 0.2": "gaussian:share=0.9,std=0.2"}
GATED: dict[str, Any] = {"gate": 0.4, "k": 5, "r": 0.625}  # what objective auto chooses for noise of std 0.2
CIFAR = "torchvision:name=CIFAR10,download=true"


def base(scale: str, steps: int = 2500, samples: int = 600, sampling_steps: int = 250) -> Job:
    """Digits of 8x8 pixels; at the scale of the paper CIFAR-10 with the network of Improved DDPM."""
    net = "mlp:width=256,depth=3,residual=true,skip=true"
    paper = ddpm_job(CIFAR, "cifar10", 200_000, 128, 10_000, 1000, lr=2e-4, warmup=5000, ema=0.9999)
    return by_scale(
        scale,
        ddpm_job("digits", "mlp:width=32", 30, 32, 64, 10, warmup=5),
        ddpm_job("digits", net, steps, 128, samples, sampling_steps, lr=3e-3, decay="cosine", ema=0.995).but(
            step_seconds=0.008
        ),
        paper.but(features="inception"),
    )


def dirt_key(row: dict[str, Any]) -> str:
    """The measure of residual noise that these data have: exact where some pixels never vary."""
    return "never_varying_noise" if "never_varying_noise" in row else "noise_std"


def frechet_key(row: dict[str, Any]) -> str:
    """The Frechet distance that was measured, by its feature space."""
    return next(k for k in row if k.startswith("frechet_"))
