"""What the experiments on the plane in 3-D share: its corruption, its recipe and its methods."""

from __future__ import annotations

from typing import Any

from ..training.config import ObjectiveConfig
from . import by_scale
from .runner.jobs import DDPM, RECOMMENDED, Job, ddpm_job, published, recommended

OUTLIERS = ("10 % outliers", "outliers:share=0.1")
NOISE = ("noise on 90 %", "gaussian:share=0.9,std=0.2")
CLEAN = ("clean", "none")
GATED: dict[str, Any] = {"gate": 0.5, "k": 5, "r": 3}  # the recommended setting, for every kind of corruption


def short(condition: str) -> str:
    """A condition as a part of a file's name."""
    return {OUTLIERS[0]: "outliers", NOISE[0]: "noise", CLEAN[0]: "clean"}[condition]


def base(scale: str) -> Job:
    """Points of a square patch of a tilted plane."""
    return by_scale(
        scale,
        ddpm_job("plane:n=500", "mlp:width=32", 40, 64, 200, 20, warmup=10),
        ddpm_job("plane:n=10000", "mlp", 4000, 256, 4000, 500, decay="cosine", ema=0.995),
        ddpm_job("plane:n=100000", "mlp:width=256,depth=4", 40_000, 1024, 20_000, 1000, decay="cosine"),
    )


def objectives() -> dict[str, ObjectiveConfig]:
    """The published comparison, and the recommended setting beside it."""
    names = ("inv_adv", "robust_rand", "robust_adv")
    return {"ddpm": DDPM, **{name: published(name) for name in names}, RECOMMENDED: recommended(**GATED)}
