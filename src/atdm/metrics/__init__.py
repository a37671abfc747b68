"""How good samples are, as numbers that say how they were made.

Examples:
    >>> evaluate_samples(samples, reference, truth=toy)
{'diverged_share': 0.0, 'off_support_rms': 0.05, ...}

Measures against a known truth are in :mod:`.exact`, those of single images in :mod:`.image`, distances between sets of
features in :mod:`.distances`, feature spaces in :mod:`.features`, :mod:`.networks` and :mod:`.small`, what may be
compared with what in :mod:`.results`.
"""

from .catalog import METRICS, Metric, label, metric
from .distances import (
    Moments,
    class_score,
    frechet,
    frechet_distance,
    frechet_extrapolated,
    kernel_distance,
    neighbours,
)
from .exact import (
    diverged_share,
    mode_mass_error,
    off_support_rms,
    outlier_share,
    score_error,
    sliced_wasserstein,
    spread_ratio,
    wasserstein,
)
from .features import Features, FeatureSpace, gather_items
from .image import nearest_psnr, never_varying, never_varying_noise, noise_std, psnr, residual_noise_std, ssim
from .measure import FEATURES, evaluate_samples, in_space, measure, require, score_errors
from .memorization import Memorization, memorization
from .reference import LEFT_TO_DO, ReferenceSet
from .results import (
    TRAINING,
    TRUTH,
    Comparison,
    Difference,
    Provenance,
    Result,
    Score,
    compare,
    content_hash,
    may_rank,
    over_seeds,
    read_rows,
)
from .small import small_file

__all__ = [
    "FEATURES",
    "LEFT_TO_DO",
    "METRICS",
    "TRAINING",
    "TRUTH",
    "Comparison",
    "Difference",
    "FeatureSpace",
    "Features",
    "Memorization",
    "Metric",
    "Moments",
    "Provenance",
    "ReferenceSet",
    "Result",
    "Score",
    "class_score",
    "compare",
    "content_hash",
    "diverged_share",
    "evaluate_samples",
    "frechet",
    "frechet_distance",
    "frechet_extrapolated",
    "gather_items",
    "in_space",
    "kernel_distance",
    "label",
    "may_rank",
    "measure",
    "memorization",
    "metric",
    "mode_mass_error",
    "nearest_psnr",
    "neighbours",
    "never_varying",
    "never_varying_noise",
    "noise_std",
    "off_support_rms",
    "outlier_share",
    "over_seeds",
    "psnr",
    "read_rows",
    "require",
    "residual_noise_std",
    "score_error",
    "score_errors",
    "sliced_wasserstein",
    "small_file",
    "spread_ratio",
    "ssim",
    "wasserstein",
]
