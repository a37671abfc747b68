"""Pictures of what was measured: pure functions from tensors and numbers to matplotlib figures.

No global state: figures are made without pyplot and have no window. Colours belong to names (Okabe & Ito's palette,
safe for colour-blind readers), so that an objective looks the same in every figure of a report.
"""

from matplotlib.figure import Figure

from .base import COLOURS, DISTANCE, DPI, FAINT, INK, colours, data_uri, save
from .images import image_grids, pairs
from .lines import bars, curves, damage, ray, scatter_tradeoff
from .points import points3d, scatter, score_fields, trajectories
from .runs import run_curves

__all__ = [
    "COLOURS",
    "DISTANCE",
    "DPI",
    "FAINT",
    "INK",
    "Figure",
    "bars",
    "colours",
    "curves",
    "damage",
    "data_uri",
    "image_grids",
    "pairs",
    "points3d",
    "ray",
    "run_curves",
    "save",
    "scatter",
    "scatter_tradeoff",
    "score_fields",
    "trajectories",
]
