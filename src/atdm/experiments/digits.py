"""What the experiments on handwritten digits share."""

from __future__ import annotations

import math
from typing import Any

from ..objective.auto import GATE, LENGTH
from ..training.config import ObjectiveConfig
from . import by_scale
from .runner.jobs import AUTO, RECOMMENDED, Job, ddpm_job, recommended

NOISE = {"noise 0.1": "gaussian:share=0.9,std=0.1", "noise 0.2": "gaussian:share=0.9,std=0.2"}
DIMENSIONS = {"smoke": 64, "cpu": 64, "paper": 3 * 32 * 32}
CIFAR = "torchvision:name=CIFAR10,download=true"


def gated(scale: str, std: float = 0.2) -> dict[str, Any]:
    """Gate, relative weight and radius of the recommended setting: by the rule of ``auto``, at k 5.

    Args:
        std: of the noise that the gate follows, data units.
    """
    return {"gate": GATE * std, "k": 5, "r": LENGTH / math.sqrt(DIMENSIONS[scale])}


def base(scale: str, steps: int = 2500, samples: int = 600, sampling_steps: int = 250) -> Job:
    """Digits of 8x8 pixels; at the scale of the paper CIFAR-10 with the network of Improved DDPM."""
    net = "mlp:width=256,depth=3,residual=true,skip=true"
    cpu = ddpm_job("digits", net, steps, 128, samples, sampling_steps, lr=3e-3, decay="cosine", ema=0.995)
    paper = ddpm_job(CIFAR, "cifar10", 200_000, 128, 10_000, 1000, lr=2e-4, warmup=5000, ema=0.9999)
    return by_scale(
        scale,
        ddpm_job("digits", "mlp:width=32", 30, 32, 64, 10, warmup=5),
        cpu.but(step_seconds=0.008),
        paper.but(features="inception"),
    )


def recommended_for(scale: str, data: str | None) -> dict[str, ObjectiveConfig]:
    """The recommended setting, by what tables call it: for digits as their noise asks, for images of one's own ``auto``."""
    if data is None:
        return {RECOMMENDED: recommended(**gated(scale))}
    return {f"{AUTO}, k 5": ObjectiveConfig("auto:k=5")}


def photos(data: str, steps: int, samples: int, sampling_steps: int) -> Job:
    """Images of one's own at 16x16, in the place of digits: a residual MLP learns them in minutes."""
    net = "mlp:width=512,depth=3,residual=true,skip=true"
    base = ddpm_job(data, net, steps, 128, samples, sampling_steps, lr=2e-3, decay="cosine", ema=0.995)
    return base.but(image_size=16, step_seconds=0.03)


def residual_key(row: dict[str, Any]) -> str:
    """The measure of residual noise that these data have: exact where the support is known, or some pixels never vary."""
    return next((k for k in ("off_support_rms", "never_varying_noise") if k in row), "noise_std")


def frechet_key(row: dict[str, Any]) -> str:
    """The Frechet distance that was measured, by its feature space."""
    return next(k for k in row if k.startswith("frechet_"))
