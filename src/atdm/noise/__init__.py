"""How much Gaussian noise each item of a set holds, from the items alone, and which share of the set is noisy."""

from .estimate import Gauge, NoiseEstimate, estimate_noise, noise_levels, noise_stds
from .trusted import Levels, least_levels

__all__ = ["Gauge", "Levels", "NoiseEstimate", "estimate_noise", "least_levels", "noise_levels", "noise_stds"]
