"""Numbers with how they were made, and when two of them may be compared."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Shaped
from torch import Tensor

from ..diffusion.steps import Sampling
from ..errors import UserError
from ..files import misfit, read_json, shown
from .catalog import WITHOUT_REFERENCE, label, metric, split_name

# Kinds of references: the first two can be trusted.
TRUSTED, TRUTH = "trusted set", "clean truth"
CLEANEST, TRAINING = "cleanest training data", "training data"


@dataclasses.dataclass(frozen=True)
class Score:
    """One measured number.

    Args:
        metric: its name, a key of ``METRICS`` and for feature spaces the space's name.
        value: the number.
        features: feature space it was measured in, or None.
        features_hash: of the network's weights, or None without a network.
        preprocessing: of the images before the network.
        settings: constants of the measure that change its value, such as the number of neighbours.
        details: more that was measured on the way, such as the distances at several sample counts.
    """

    metric: str
    value: float
    features: str | None = None
    features_hash: str | None = None
    preprocessing: str | None = None
    settings: str | None = None
    details: dict[str, Any] | None = None


@dataclasses.dataclass(frozen=True)
class Provenance:
    """How the samples behind a number were made and what they were compared with.

    Args:
        samples: how many.
        reference: what they were compared with, as :class:`ReferenceSet` says it: its spec, or that it is training data.
        reference_hash: :func:`content_hash` of it.
        reference_kind: of :class:`ReferenceSet`; None where nobody said.
        model: the run, pipeline or file of samples, as given.
        conditioned_on: the class that it was given, and the guidance; None: none.
        checkpoint: hash of the weights, or None for samples of unknown origin.
        weights: ``ema`` or ``raw``; ``pipeline`` for those of a foreign pipeline, None where that is unknown.
        sampling: how the samples were drawn, resolved; None for samples of unknown origin.
        last_ratio: noise level at which the network was evaluated last, as :meth:`Sampling.last_ratio` says.
        seed: of the sampling.
    """

    samples: int
    reference: str
    reference_hash: str
    model: str | None = None
    checkpoint: str | None = None
    weights: str | None = None
    sampling: Sampling | None = None
    last_ratio: float | None = None
    seed: int | None = None
    reference_kind: str | None = None
    conditioned_on: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """Flat: the fields of ``sampling`` beside the others, None where nothing is known of it."""
        flat = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "sampling"}
        how = dict.fromkeys(f.name for f in dataclasses.fields(Sampling))
        return flat | (how if self.sampling is None else self.sampling.as_dict())


@dataclasses.dataclass(frozen=True)
class Result:
    """One number and how it came about: a row of ``metrics.json`` and ``summary.json``."""

    score: Score
    provenance: Provenance

    def as_dict(self) -> dict[str, Any]:
        """A flat row for JSON, where a value that is not finite becomes null."""
        score = dataclasses.asdict(self.score)
        name, value = score.pop("metric"), score.pop("value")
        head = {"metric": name, "label": label(name), "value": value if math.isfinite(value) else None}
        return {**head, **self.provenance.as_dict(), **score}


def content_hash(x: Shaped[Tensor, "..."]) -> str:
    """16 hex digits of the SHA-256 of a tensor's type, shape and bytes."""
    digest = hashlib.sha256(f"{x.dtype} {tuple(x.shape)} ".encode())
    digest.update(x.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def over_seeds(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mean and std of each metric over the sampling seeds of one model, in order; the std of one seed is None."""
    values: dict[str, list[float]] = {}
    for row in rows:
        values.setdefault(row["metric"], []).append(math.nan if row["value"] is None else row["value"])
    out = []
    for name, found in values.items():
        kept = torch.tensor(found, dtype=torch.float64)
        mean, std = kept.mean().item(), kept.std().item() if len(found) > 1 else math.nan
        out.append(
            {
                "metric": name,
                "label": label(name),
                "mean": mean if math.isfinite(mean) else None,
                "std": std if math.isfinite(std) else None,
                "seeds": len(found),
            }
        )
    return out


# --- comparing --------------------------------------------------------------------------------------------------------

# What must be equal for numbers to be ranked, and what it is called. Checkpoints, objectives and seeds may differ: they are
# what is compared, and so is an early stop, which is a baseline to a trained model.
ALIKE = {
    "weights": "averaged or raw weights",
    "sampler": "sampler",
    "steps": "steps",
    "start_ratio": "noise level at which sampling begins",
    "clip_sample": "clipping while sampling",
    "samples": "number of samples",
    "reference_hash": "reference",
    "features": "feature space",
    "features_hash": "weights of the feature network",
    "preprocessing": "preprocessing",
    "settings": "settings of the measure",
}


@dataclasses.dataclass(frozen=True)
class Difference:
    """One way in which two sources made a metric differently."""

    metric: str
    field: str
    values: dict[str, Any]

    @property
    def word(self) -> str:
        """The difference in plain words."""
        return f"different {ALIKE[self.field]}" if self.field in ALIKE else "reference that nobody vouches for"


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Sources side by side.

    Args:
        table: for each source and metric its mean and std over seeds.
        differences: what was made differently or against training data, metrics that one source alone has left out.
        ranks: for each metric made alike the rank of each source, from 1; equal values share one.
    """

    table: dict[str, dict[str, dict[str, Any]]]
    differences: list[Difference]
    ranks: dict[str, dict[str, int]]


def compare(sources: dict[str, list[dict[str, Any]]]) -> Comparison:
    """Put the rows of named sources side by side, and rank those made alike.

    An unknown value equals no other: samples of unknown origin are not ranked. Nor is by numbers taken against training
    data as they are: the model that learned their noise would come first.
    """
    table = {name: {entry["metric"]: entry for entry in over_seeds(rows)} for name, rows in sources.items()}
    names = list(dict.fromkeys(metric_name for found in table.values() for metric_name in found))
    differences, ranks = [], {}
    for name in names:
        having = [source for source in sources if name in table[source]]
        if len(having) < 2 or metric(name).better == "none":
            continue
        found = _differences(name, {source: sources[source] for source in having})
        differences += found
        if not found:
            ranks[name] = _ranked(name, {source: table[source][name]["mean"] for source in having})
    return Comparison(table, differences, ranks)


def _differences(name: str, sources: dict[str, list[dict[str, Any]]]) -> list[Difference]:
    out = []
    for field in ALIKE:
        values = {
            source: sorted({_known(row, field) for row in rows if row["metric"] == name}, key=str)
            for source, rows in sources.items()
        }
        first = next(iter(values.values()))
        if any(found != first or len(found) != 1 for found in values.values()) or first == ["unknown"]:
            shown = {s: found[0] if len(found) == 1 else " and ".join(map(str, found)) for s, found in values.items()}
            out.append(Difference(name, field, shown))
    doubted = {
        source: row["reference"]
        for source, rows in sources.items()
        for row in rows
        if row["metric"] == name and not may_rank(row.get("reference_kind"), name)
    }
    return [*out, *([Difference(name, "reference_kind", doubted)] if doubted else [])]


def may_rank(kind: str | None, name: str) -> bool:
    """Whether a metric taken against this kind of reference ranks models: against training data those do that need none."""
    measure, _ = split_name(name)
    if kind not in (CLEANEST, TRAINING) or measure in WITHOUT_REFERENCE:
        return True
    return kind == CLEANEST and measure == "precision"


def _known(row: dict[str, Any], field: str) -> Any:
    """The value of a field; where it is missing, ``none`` if that is an answer and ``unknown`` if it is not."""
    value = row.get(field)
    if value is None:
        return "unknown" if field in ("weights", "sampler", "steps", "samples", "reference_hash") else "none"
    return value


def _ranked(name: str, means: dict[str, float | None]) -> dict[str, int]:
    better = metric(name).better

    def badness(mean: float | None) -> float:
        if mean is None:
            return math.inf
        return {"lower": mean, "higher": -mean, "one": abs(math.log(mean)) if mean > 0 else math.inf}[better]

    bad = {source: badness(mean) for source, mean in means.items()}
    return {source: 1 + sum(other < value for other in bad.values()) for source, value in bad.items()}


# --- files ------------------------------------------------------------------------------------------------------------


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSON file that ``atdm evaluate --out`` wrote, or of a run folder's ``metrics.json``.

    Raises:
        UserError: there is none, or it holds no such rows.
    """
    file = path / "metrics.json" if path.is_dir() else path
    if not file.is_file():
        how = f"Make it with: atdm evaluate {path} --out {file}" if path.is_dir() else "Expected a file of results."
        raise UserError(f"There is no file {file}. {how}")
    expected = "rows of results, as atdm evaluate writes them"
    rows = read_json(file, {"rows": list}, expected)["rows"]
    wanted: dict[str, Any] = {"metric": str, "value": (float, type(None)), "samples": int, "reference_hash": str}
    for number, row in enumerate(rows):
        if wrong := misfit(row, wanted) if isinstance(row, dict) else f"it holds {shown(row)}":
            raise UserError(f"Cannot read {file}: row {number}: {wrong}. Expected {expected}.")
    if not rows:
        raise UserError(f"Cannot read {file}: it has no rows. Expected {expected}.")
    return rows
