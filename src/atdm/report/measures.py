"""Which measures the page shows, and what they are worth by what the samples were compared with."""

from __future__ import annotations

from collections.abc import Sequence

from .. import metrics
from .lab import ModelOutcome
from .page import Row

NOTED = ("off_support_rms", "outlier_share", "spread_ratio", "mode_mass_error", "never_varying_noise", "noise_std")


def measures(rows: Sequence[Row]) -> list[str]:
    """The measures that tables show: exact ones where there are any, residual noise, and a distance to the reference."""
    exact = [k for k in NOTED if k in rows[0]]
    if "never_varying_noise" in exact:  # exact where the estimate is not
        exact = [k for k in exact if k != "noise_std"]
    return [*exact, next((k for k in rows[0] if k.startswith("frechet_")), "sliced_wasserstein")]


def ranks(outcomes: Sequence[ModelOutcome], measure: str) -> bool:
    """Whether a measure tells which model is better, by what the samples were compared with."""
    kinds = {row.get("reference_kind") for o in outcomes for row in o.rows}
    return metrics.metric(measure).better != "none" and all(metrics.may_rank(kind, measure) for kind in kinds)


def against(outcomes: Sequence[ModelOutcome]) -> str:
    """What the samples were compared with, and what it is worth."""
    rows = [row for o in outcomes for row in o.rows]
    doubted = next((r for r in rows if r.get("reference_kind") == metrics.TRAINING), None)
    if doubted:
        return f"{doubted['reference']}. {metrics.LEFT_TO_DO} No column that depends on them is shaded"
    return " and ".join(dict.fromkeys(f"{r['reference']} ({r['reference_kind']})" for r in rows))
