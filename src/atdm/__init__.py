"""Adversarial training for diffusion models (arXiv 2505.21742): the public names, imported when first used."""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_WHERE = {
    "Process": "diffusion.process",
    "Objective": "objective",
    "Loss": "objective",
    "Terms": "objective",
    "Draws": "objective",
    "OBJECTIVES": "objective",
    "PublishedRadius": "objective.perturb",
    "ConstantRadius": "objective.perturb",
    "PublishedWeight": "objective.perturb",
    "RelativeWeight": "objective.perturb",
    "ConstantWeight": "objective.perturb",
    "Perturbation": "objective.perturb",
    "corrupt": "corruption",
    "load": "data",
    "build_net": "nets",
    "MLP": "nets.mlp",
    "Model": "diffusion.model",
    "Sampling": "diffusion.steps",
    "sample": "diffusion.sampling",
    "trajectory": "diffusion.sampling",
    "TrajectoryAttack": "attack",
    "Purifier": "attack.purify",
    "restore": "restoration",
    "drop_conditioning": "diffusion.conditioning",
    "Guided": "diffusion.conditioning",
    "Latents": "diffusion.latent",
    "fit": "training.train",
    "Settings": "training.config",
    "State": "training.train",
    "Callback": "training.callbacks",
    "load_pipeline": "diffusion.model",
    "UserError": "errors",
}
__all__ = [*_WHERE]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'atdm' has no attribute '{name}'")
    try:
        value = getattr(import_module(f"{__name__}.{_WHERE[name]}"), name)
    except ModuleNotFoundError as problem:
        from .errors import missing

        raise missing(problem) or problem from problem
    globals()[name] = value
    return value
