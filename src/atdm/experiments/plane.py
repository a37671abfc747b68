"""What the experiments on the plane in 3-D share: its dirt, its recipe and its methods."""

from __future__ import annotations

from typing import Any

from ..training.config import Settings
from . import by_scale
from .runner.training import DDPM, Method, Recipe, published, recommended

OUTLIERS = ("10 % outliers", "outliers:share=0.1")
NOISE = ("noise on 90 %", "gaussian:share=0.9,std=0.2")
CLEAN = ("clean", "none")
GATED: dict[str, Any] = {"gate": 0.5, "k": 5, "r": 3}  # the recommended setting, for every kind of dirt


def short(condition: str) -> str:
    """A condition as a part of a file's name."""
    return {OUTLIERS[0]: "outliers", NOISE[0]: "noise", CLEAN[0]: "clean"}[condition]


def recipe(scale: str) -> Recipe:
    """Points of a square patch of a tilted plane."""
    return by_scale(
        scale,
        Recipe("plane:n=500", "mlp:width=32", Settings(40, 64, warmup=10), 200, 20),
        Recipe("plane:n=10000", "mlp", Settings(4000, 256, decay="cosine", ema=0.995), 4000, 500),
        Recipe("plane:n=100000", "mlp:width=256,depth=4", Settings(40_000, 1024, decay="cosine"), 20_000, 1000),
    )


def methods() -> list[Method]:
    """The published comparison, and the recommended setting beside it."""
    names = ("inv_adv", "robust_rand", "robust_adv")
    return [DDPM, *(published(name) for name in names), recommended(**GATED)]
