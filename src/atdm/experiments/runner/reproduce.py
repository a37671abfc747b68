"""Does an experiment: its jobs on the machine's cores, what was found, and files."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ...executors import open_executor
from ...pool import Progress, work_through, workers
from ...report import machine
from .. import entry, folder_of, module_of
from . import stored
from .findings import Findings, write


def run(
    name: str,
    out: Path,
    scale: str = "cpu",
    seeds: Sequence[int] = (0,),
    data: str | None = None,
    progress: Progress = lambda done, total, label: None,
    executor: str = "local",
) -> Findings:
    """Do an experiment and write figures, ``numbers.json``, ``paragraph.md`` and ``report.html`` to a folder in ``out``.

    Raises:
        UserError: an unknown name or scale, or data that cannot be used.
    """
    found = find(name, scale, seeds, data, out / name / "jobs", progress, executor)
    write(found, f"atdm reproduce {name}: {entry(name).summary}", out / folder_of(name, data))
    return found


def find(
    name: str,
    scale: str,
    seeds: Sequence[int],
    data: str | None,
    store: Path | None,
    progress: Progress = lambda done, total, label: None,
    executor: str = "local",
    **options: Any,
) -> Findings:
    """Do the jobs of an experiment and judge what they found.

    Args:
        store: what jobs have found is kept there (:mod:`.stored`), so a run that was interrupted goes on, and more seeds cost
            only themselves; None keeps nothing.
        executor: where the jobs run (:func:`~atdm.executors.open_executor`).
        options: of the experiment's own ``jobs``.

    Raises:
        UserError: an unknown name or scale, or data that cannot be used.
    """
    module, begin = module_of(name), time.perf_counter()
    todo = module.jobs(scale, seeds, data, **options)
    kept = stored.kept(store, todo) if store else 0
    work = partial(stored.work, module.work, store.resolve()) if store else module.work
    engine = open_executor(executor, store.resolve() if store else Path.cwd())
    outcomes = work_through(work, todo, progress, engine)
    total = sum(job.cost for job in todo)
    progress(total, total, "figures")
    found: Findings = module.findings(scale, outcomes)
    found.provenance = {
        "experiment": name,
        "scale": scale,
        "seeds": list(seeds),
        **machine(),
        "jobs": len(todo),
        "of them kept from before": kept,
        "workers": workers(len(todo)) if engine is None else executor,
        "data": data,
        "seconds of this run": round(time.perf_counter() - begin, 1),
        "cpu seconds of all jobs": round(sum(o.seconds for o in outcomes), 1),
    }
    return found
