"""What the options of an objective meant when a file was written: those of version 1 in today's words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import UserError

RENAMED = "Until November 2026 (version 2 of these options) the weight over_radius was called published"


def in_todays_words(objective: Mapping[str, Any]) -> dict[str, Any]:
    """The options of an objective that a run stored, as they are called today."""
    if not _ambiguous(objective):
        return {**objective, "version": 2}
    return {**objective, "weight": objective["weight"].replace("published", "over_radius", 1), "version": 2}


def require_version(values: Any, where: str, name: str | None = None) -> None:
    """Refuse options of a file that may mean by the weight ``published`` what it was before version 2.

    Args:
        name: of the objective, where another than the file's is asked for.

    Raises:
        UserError: says how to name either.
    """
    objective = values.get("objective") if isinstance(values, Mapping) else None
    if isinstance(objective, Mapping) and _ambiguous({**objective, **({"name": name} if name else {})}):
        raise UserError(
            f"{where} has the weight {objective['weight']} and does not say of which version. {RENAMED}. Expected "
            "version: 2 beside it for the published formula, or over_radius for what it was."
        )


def _ambiguous(objective: Mapping[str, Any]) -> bool:
    perturbs = str(objective.get("name", "robust_adv")).startswith(("robust_", "inv_"))
    return perturbs and "version" not in objective and str(objective.get("weight")).startswith("published")
