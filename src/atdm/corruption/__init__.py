"""Corruption with a known truth: seeded corruptions, pure per item, that record which items they touched and how."""

from .apply import (
    PLACES,
    corrupt,
    corrupt_items,
    describe_corruption,
    item_generator,
    parse_corruption,
    require_shape,
    truth_of,
)
from .kinds import CORRUPTIONS, Corruption, Gaussian
from .truth import Truth

__all__ = [
    "CORRUPTIONS",
    "PLACES",
    "Corruption",
    "Gaussian",
    "Truth",
    "corrupt",
    "corrupt_items",
    "describe_corruption",
    "item_generator",
    "parse_corruption",
    "require_shape",
    "truth_of",
]
