"""Look before training: noise, outliers, near duplicates and broken files of a data set, and a recipe for what was found."""

from .look import Audit, audit
from .noise import Estimate, estimate_noise, noise_levels, noise_stds

__all__ = ["Audit", "Estimate", "audit", "estimate_noise", "noise_levels", "noise_stds"]
