"""Attacks on the sampling trajectory, the damage they do, and sanity checks of them."""

from .checks import Finding, check_seeds, doubt
from .curve import PAIRED, Attacked, Victim, bootstrap, damage_curve, summarize
from .goals import GOALS, Denoised, Distance, FeatureDistance, Goal, Prediction, Target
from .hook import Replay, StepPerturbation, TrajectoryAttack
from .search import ATTACKS, Search, fgsm, random

__all__ = [
    "ATTACKS",
    "GOALS",
    "PAIRED",
    "Attacked",
    "Denoised",
    "Distance",
    "FeatureDistance",
    "Finding",
    "Goal",
    "Prediction",
    "Replay",
    "Search",
    "StepPerturbation",
    "Target",
    "TrajectoryAttack",
    "Victim",
    "bootstrap",
    "check_seeds",
    "damage_curve",
    "doubt",
    "fgsm",
    "random",
    "summarize",
]
