"""The losses of other papers, by name."""

from __future__ import annotations

from .ambient import Ambient, AmbientBlind, Omni
from .consistent import AmbientConsistent
from .free import Free
from .huber import PseudoHuber
from .input_perturbation import InputPerturbation
from .masked import Masked
from .sfbd import Sfbd
from .sure import Sure
from .terms import Baseline

BASELINES: dict[str, type[Baseline]] = {
    "input_perturbation": InputPerturbation,
    "pseudo_huber": PseudoHuber,
    "masked": Masked,
    "ambient": Ambient,
    "ambient_blind": AmbientBlind,
    "ambient_consistent": AmbientConsistent,
    "omni": Omni,
    "sfbd": Sfbd,
    "sure": Sure,
    "free": Free,
}
