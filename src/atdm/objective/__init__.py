"""Training losses by name: ours (denoising with equivariance), its ablations, and baselines of other papers on the same path."""

from .ambient import Ambient, AmbientBlind, Omni
from .baselines import BASELINES
from .consistent import AmbientConsistent
from .equivariance import Objective
from .free import Free
from .huber import PseudoHuber
from .input_perturbation import InputPerturbation
from .kinds import ASCENTS, KINDS
from .masked import Masked
from .sfbd import Sfbd
from .sure import Sure
from .terms import Baseline, Draws, Loss, Terms

OBJECTIVES: dict[str, type[Loss]] = {**dict.fromkeys(KINDS, Objective), **BASELINES}

__all__ = [
    "ASCENTS",
    "BASELINES",
    "KINDS",
    "OBJECTIVES",
    "Ambient",
    "AmbientBlind",
    "AmbientConsistent",
    "Baseline",
    "Draws",
    "Free",
    "InputPerturbation",
    "Loss",
    "Masked",
    "Objective",
    "Omni",
    "PseudoHuber",
    "Sfbd",
    "Sure",
    "Terms",
]
