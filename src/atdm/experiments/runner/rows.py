"""Rows of ``numbers.json``: what is measured of a job and how it came about; their means over seeds, and tables of them."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor

from ... import metrics, report
from ...nets import weights_hash
from ...pool import Tell
from ...report import Row
from .jobs import Trained, samples_at_stops, sampling_of


def row(trained: Trained, drawn: Tensor | None, values: Mapping[str, Any], /, **about: Any) -> Row:
    """A row of ``numbers.json``: values, and how they came about (:class:`atdm.metrics.Provenance`, and the training).

    Args:
        drawn: the samples that were measured; None where the network itself was.
        about: of the provenance, such as another sampler or number of steps than the job's.
    """
    job, config, reference = trained.job, trained.config, trained.dataset.reference
    sampling = sampling_of(trained, about) if drawn is not None else None
    made = metrics.Provenance(
        len(drawn) if drawn is not None else 0,
        trained.dataset.spec,
        metrics.content_hash(reference),
        reference_kind=metrics.TRUTH,  # corruption is atdm's own, or data that are known
        model=config.out or None,
        checkpoint=weights_hash(trained.net),
        weights="ema",
        sampling=sampling,
        last_ratio=sampling.last_ratio(trained.process) if sampling else None,
        seed=job.seed,
    )
    training = {
        "objective": dataclasses.asdict(config.objective),
        "training_steps": config.steps,
        "batch_size": config.batch_size,
        "net": config.net,
        "corrupt": config.corrupt,
        "reference_items": len(reference),
        "seconds": trained.seconds,
    }
    head = {"method": job.label, "condition": job.condition}
    return {**head, **values, **made.as_dict(), **training, **about}


def evaluate(trained: Trained, samples: Tensor) -> Row:
    """Everything that is known of samples: :func:`atdm.metrics.evaluate_samples`, and the spread along the support."""
    truth, reference = trained.dataset.truth, trained.dataset.reference
    values: Row = dict(metrics.evaluate_samples(samples, reference, truth, trained.job.features, seed=trained.job.seed))
    finite = samples[samples.flatten(1).isfinite().all(1)]
    if hasattr(truth, "spread") and len(finite) > 1:
        values["spread"] = truth.spread(finite)
    return values


def rows_at_stops(
    trained: Trained, tell: Tell, stops: Mapping[str, float], more: Row
) -> tuple[list[Row], dict[str, Tensor]]:
    """A row and samples of the job, and of each method of ``stops``, whose sampling stops at a noise level.

    Args:
        more: what else the rows say.
    """
    every: dict[str, float | None] = {trained.job.label: None, **stops}
    drawn = dict(zip(every, samples_at_stops(trained, tell, [*every.values()]), strict=True))
    rows = [
        row(trained, x, evaluate(trained, x) | more, stop_ratio=every[label]) | {"method": label}
        for label, x in drawn.items()
    ]
    return rows, drawn


def number(value: float) -> str:
    """Three significant digits."""
    return f"{value:.3g}" if math.isfinite(value) else "not finite"


def mean_over_seeds(rows: Iterable[Row], key: str, **where: Any) -> float:
    """The mean of ``key`` over the rows that agree with ``where``; nan where there are none."""
    found = [float(r[key]) for r in rows if all(r.get(k) == v for k, v in where.items()) and r.get(key) is not None]
    return statistics.fmean(found) if found else math.nan


def means(rows: Sequence[Row], key: str = "", **where: Any) -> Callable[..., float]:
    """:func:`mean_over_seeds` of the rows that agree with ``where``, by method and key; ``key`` is the one of most interest."""
    return lambda method, key=key: mean_over_seeds(rows, key, method=method, **where)


def cell(rows: Iterable[Row], key: str, **where: Any) -> Any:
    """A cell of a table: the value, or mean and standard deviation over seeds that differ; None where nothing was measured."""
    found = [float(r[key]) for r in rows if all(r.get(k) == v for k, v in where.items()) and r.get(key) is not None]
    if not found:
        return None
    return found[0] if len(set(found)) == 1 else (statistics.fmean(found), statistics.stdev(found))


def values_of(rows: Iterable[Row], key: str) -> list[Any]:
    """The different values of ``key``, in the order of the rows."""
    return list(dict.fromkeys(r[key] for r in rows))


def by_value(rows: Iterable[Row], key: str) -> dict[Any, list[Row]]:
    """The rows that have each value of ``key``, in their order."""
    found: dict[Any, list[Row]] = {}
    for r in rows:
        found.setdefault(r[key], []).append(r)
    return found


def table_of(
    rows: Sequence[Row],
    by: Mapping[str, str],
    columns: Mapping[str, str],
    caption: str = "",
    best: Mapping[str, report.Better] | None = None,
) -> report.Table:
    """A table with a line for every combination of the keys ``by`` that occurs.

    Args:
        by, columns: heading to the key of a row.
    """
    combinations = list(dict.fromkeys(tuple(r[k] for k in by.values()) for r in rows))
    lines = [
        [*line, *(cell(rows, key, **dict(zip(by.values(), line, strict=True))) for key in columns.values())]
        for line in combinations
    ]
    return report.Table([*by, *columns], lines, caption, best or {})
