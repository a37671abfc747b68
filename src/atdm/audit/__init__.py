"""Look before training: noise, outliers, near duplicates and broken files of a data set, and a recipe for what was found."""

from .look import Audit, audit

__all__ = ["Audit", "audit"]
