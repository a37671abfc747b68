"""Adversarial training for diffusion models (arXiv 2505.21742): the public names, imported when first used."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

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
    "State": "training.state",
    "Callback": "training.callbacks",
    "load_pipeline": "diffusion.model",
    "UserError": "errors",
}
__all__ = [*_WHERE]

if TYPE_CHECKING:  # for editors and type checkers, which run nothing
    from .attack import TrajectoryAttack as TrajectoryAttack
    from .attack.purify import Purifier as Purifier
    from .corruption import corrupt as corrupt
    from .data import load as load
    from .diffusion.conditioning import Guided as Guided
    from .diffusion.conditioning import drop_conditioning as drop_conditioning
    from .diffusion.latent import Latents as Latents
    from .diffusion.model import Model as Model
    from .diffusion.model import load_pipeline as load_pipeline
    from .diffusion.process import Process as Process
    from .diffusion.sampling import sample as sample
    from .diffusion.sampling import trajectory as trajectory
    from .diffusion.steps import Sampling as Sampling
    from .errors import UserError as UserError
    from .nets import build_net as build_net
    from .nets.mlp import MLP as MLP
    from .objective import OBJECTIVES as OBJECTIVES
    from .objective import Draws as Draws
    from .objective import Loss as Loss
    from .objective import Objective as Objective
    from .objective import Terms as Terms
    from .objective.perturb import ConstantRadius as ConstantRadius
    from .objective.perturb import ConstantWeight as ConstantWeight
    from .objective.perturb import Perturbation as Perturbation
    from .objective.perturb import PublishedRadius as PublishedRadius
    from .objective.perturb import PublishedWeight as PublishedWeight
    from .objective.perturb import RelativeWeight as RelativeWeight
    from .training.callbacks import Callback as Callback
    from .training.config import Settings as Settings
    from .training.state import State as State
    from .training.train import fit as fit

    restore: Any  # of a floor above modules that import this one


def __dir__() -> list[str]:
    return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})


if not TYPE_CHECKING:  # to which it would say that every name is there

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
