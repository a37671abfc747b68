"""Adversarial training for diffusion models (arXiv 2505.21742): the public names, imported when first used."""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_WHERE = {
    "Process": "process",
    "Objective": "objective",
    "Loss": "objective",
    "Terms": "objective",
    "Draws": "objective",
    "OBJECTIVES": "objective",
    "PublishedRadius": "perturb",
    "ConstantRadius": "perturb",
    "PublishedWeight": "perturb",
    "RelativeWeight": "perturb",
    "ConstantWeight": "perturb",
    "Perturbation": "perturb",
    "corrupt": "corruption",
    "load": "data",
    "build_net": "nets",
    "MLP": "nets.mlp",
    "sample": "sampling",
    "trajectory": "sampling",
    "TrajectoryAttack": "attack",
    "Purifier": "purify",
    "drop_conditioning": "conditioning",
    "Guided": "conditioning",
    "Latents": "latent",
    "fit": "train",
    "Settings": "train",
    "State": "train",
    "load_pipeline": "checkpoint",
    "UserError": "errors",
}
__all__ = [*_WHERE]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'atdm' has no attribute '{name}'")
    value = getattr(import_module(f"{__name__}.{_WHERE[name]}"), name)
    globals()[name] = value
    return value
