"""Training losses by name: ours (denoising with equivariance), its ablations, and rivals of other papers on the same path."""

from .ambient import Ambient, AmbientBlind
from .equivariance import Objective
from .free import Free
from .huber import PseudoHuber
from .input_perturbation import InputPerturbation
from .kinds import ASCENTS, KINDS
from .sure import Sure
from .terms import Draws, Loss, Rival, Terms

RIVALS: dict[str, type[Rival]] = {
    "input_perturbation": InputPerturbation,
    "pseudo_huber": PseudoHuber,
    "ambient": Ambient,
    "ambient_blind": AmbientBlind,
    "sure": Sure,
    "free": Free,
}
OBJECTIVES: dict[str, type[Loss]] = {**dict.fromkeys(KINDS, Objective), **RIVALS}

__all__ = [
    "ASCENTS",
    "KINDS",
    "OBJECTIVES",
    "RIVALS",
    "Ambient",
    "AmbientBlind",
    "Draws",
    "Free",
    "InputPerturbation",
    "Loss",
    "Objective",
    "PseudoHuber",
    "Rival",
    "Sure",
    "Terms",
]
