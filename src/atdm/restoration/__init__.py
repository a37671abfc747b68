"""Restoration: training images denoised by the model that was trained on them, each at its own noise level, untouched where clean."""

from .denoise import Restoration, gauge, restore

__all__ = ["Restoration", "gauge", "restore"]
