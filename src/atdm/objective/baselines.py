"""The losses of other papers, by name."""

from __future__ import annotations

from .ambient import Ambient, AmbientBlind, Omni
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
    "omni": Omni,
    "sfbd": Sfbd,
    "sure": Sure,
    "free": Free,
}
