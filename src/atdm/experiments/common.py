"""What the reproductions share: a training job, its samples and rows, claims that are judged by numbers, and files.

An experiment is a module with ``jobs(scale, seeds, data)``, ``work(job, tell)``, which runs in a process of its own and
returns an :class:`Outcome`, and ``findings(scale, outcomes)``, which makes figures, tables and claims of them.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .. import __version__, metrics, plot, report
from ..config import ObjectiveConfig
from ..corrupt import corrupt
from ..data import Dataset, load
from ..data.items import Floats
from ..errors import unknown
from ..files import atomic
from ..levels import truth_levels
from ..nets import build_net, weights_hash
from ..objective import Loss
from ..process import PROCESSES, Process
from ..sample import sample_paths
from ..source import Source
from ..spec import build
from ..train import Settings, State, Step, fit
from . import SCALES, entry, module_of
from .pool import Progress, Tell, work_through, workers

Row = dict[str, Any]


# --- what is trained --------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Recipe:
    """Data, network, training and sampling: what the methods of an experiment have in common.

    Args:
        data: spec of the data set.
        net: spec of the network.
        samples: drawn from each model.
        sampling_steps: of ``sampler``.
        image_size: as of :func:`atdm.data.load`.
        features: feature spaces in which images are measured.
        clip_sample: clip denoised images at every sampling step: U-Nets need it while they are far from converged.
        step_seconds: of a ddpm step on one core, roughly: for the progress bar.
    """

    data: str
    net: str
    settings: Settings
    samples: int
    sampling_steps: int
    sampler: str = "ddpm"
    process: str = "linear"
    image_size: int | None = None
    features: str = "pixels"
    clip_sample: bool = False
    step_seconds: float = 0.003


@dataclass(frozen=True)
class Method:
    """An objective with its constants, as figures and tables call it."""

    label: str
    objective: ObjectiveConfig = field(default_factory=lambda: ObjectiveConfig("ddpm"))

    def fitted(self, x: Tensor) -> Method:
        """With ``auto`` replaced by what it chooses for training data ``x``."""
        return dataclasses.replace(self, objective=self.objective.fitted(x))

    def build(self, process: Process, seed: int) -> Loss:
        return self.objective.build(process, seed)


def published(
    name: str, lam: float = 0.3, label: str | None = None, omega: float = 2.0, floor: str = "8/255"
) -> Method:
    """An objective with the published radius and weight."""
    config = ObjectiveConfig(name, f"published:omega={omega:g},floor={floor}", f"published:lam={lam:g}")
    return Method(label or name, config)


def recommended(
    gate: float | None, k: float, r: float, label: str = "robust_adv recommended", name: str = "robust_adv"
) -> Method:
    """The gated relative push along the l2 gradient (METHOD section 9)."""
    push: dict[str, Any] = {"norm": "l2", "steps": 1, "kappa": math.inf, "gate": gate}
    return Method(label, ObjectiveConfig(name, f"constant:r={r:g}", f"relative:k={k:g}", **push))


DDPM = Method("ddpm")
AUTO = Method("robust_adv auto", ObjectiveConfig("auto"))


@dataclass(frozen=True)
class Job:
    """One training and what is measured of it.

    Args:
        condition: the dirt, as figures and tables call it.
        corruption: spec of the dirt.
        options: what else the experiment needs to know.
    """

    recipe: Recipe
    method: Method
    condition: str
    corruption: str
    seed: int = 0
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def label(self) -> str:
        return self.method.label

    @property
    def settings(self) -> Settings:
        return dataclasses.replace(self.recipe.settings, seed=self.seed)

    @property
    def cost(self) -> float:
        """Seconds on one core, roughly."""
        auto = self.method.objective.name == "auto"  # what it chooses is not known yet
        floor = 1.3 if auto else self.method.build(Process.linear(), 0).passes()["floor_over_ddpm"]
        return 1 + 1.3 * self.settings.steps * self.recipe.step_seconds * floor

    def __str__(self) -> str:
        return f"{self.label}, {self.condition}"


def by_scale(scale: str, smoke: Any, cpu: Any, paper: Any) -> Any:
    """The one for this scale."""
    choices = {"smoke": smoke, "cpu": cpu, "paper": paper}
    if scale not in choices:
        raise unknown("scale", scale, SCALES)
    return choices[scale]


@dataclass
class Trained:
    """A trained network (its averaged weights) and the data it learned from."""

    job: Job
    net: nn.Module
    process: Process
    dataset: Dataset
    dirty: Tensor
    seconds: float


def process_of(job: Job) -> Process:
    """The forward process of a job."""
    return build("process", job.recipe.process, PROCESSES)


def open_data(job: Job) -> Dataset:
    """The clean data of a job."""
    return load(job.recipe.data, seed=job.seed, image_size=job.recipe.image_size)


def train(
    job: Job,
    tell: Tell,
    dataset: Dataset | None = None,
    watch: Callable[[Step], None] | None = None,
) -> Trained:
    """Train a job's network on its corrupted data, on a GPU where there is one.

    Args:
        tell: hears the share of the training that is done.
        dataset: clean data, where it is not what the recipe names.
        watch: sees every step.
    """
    dataset = dataset or open_data(job)
    process = process_of(job)
    dirty, truth = corrupt(dataset.x, job.corruption, job.seed)
    job = dataclasses.replace(job, method=job.method.fitted(dirty))
    source = Source(Floats(dirty), std=truth_levels(truth))
    torch.manual_seed(job.seed)
    net = build_net(job.recipe.net, dataset.item_shape).to("cuda" if torch.cuda.is_available() else "cpu")
    state = State.create(net, job.settings)
    begin = time.perf_counter()
    for step in fit(job.method.build(process, job.seed), state, source, job.settings):
        if step.index % 20 == 0:
            tell(step.index / job.settings.steps)
        if watch is not None:
            watch(step)
    return Trained(job, state.ema.eval(), process, dataset, dirty, time.perf_counter() - begin)


def paths(trained: Trained, tell: Tell, keep: Sequence[int] = (), n: int | None = None, **options: Any) -> Tensor:
    """The states before the steps in ``keep``, then the samples: ``[kept + 1, n, *item]``.

    Args:
        tell: hears the share of the sampling that is done.
        options: instead of the recipe's; see :func:`atdm.sample.sample_paths`.
    """
    recipe = trained.job.recipe
    how: dict[str, Any] = {"sampler": recipe.sampler, "steps": recipe.sampling_steps, "clip_sample": recipe.clip_sample}
    how["batch_size"] = 1024 if len(trained.dataset.item_shape) == 3 else 4096
    return sample_paths(
        trained.net,
        trained.process,
        n or recipe.samples,
        trained.dataset.item_shape,
        keep=keep,
        seed=trained.job.seed,
        progress=lambda done, total: tell(done / total),
        **(how | options),
    )


def draw(trained: Trained, tell: Tell = lambda share: None, n: int | None = None, **options: Any) -> Tensor:
    """Samples ``[n, *item]``."""
    return paths(trained, tell, (), n, **options)[-1]


def part(tell: Tell, begin: float, end: float) -> Tell:
    """``tell`` for a piece of the work that goes from ``begin`` to ``end``."""
    return lambda share: tell(begin + (end - begin) * share)


# --- what is measured -------------------------------------------------------------------------------------------------
def reference_of(dataset: Dataset) -> Tensor:
    """The clean items that samples are compared with: held-out ones where there are any."""
    return dataset.x if dataset.test is None else dataset.test


def row(trained: Trained, drawn: Tensor | None, values: Mapping[str, Any], /, **about: Any) -> Row:
    """A row of ``numbers.json``: values, and how they came about.

    Args:
        drawn: the samples that were measured; None where the network itself was.
        about: of the provenance, such as another sampler or number of steps.
    """
    job = trained.job
    reference = reference_of(trained.dataset)
    made = {
        "checkpoint": weights_hash(trained.net),
        "weights": "ema",
        "objective": dataclasses.asdict(job.method.objective),
        "training_steps": job.settings.steps,
        "batch_size": job.settings.batch_size,
        "net": job.recipe.net,
        "corrupt": job.corruption,
        "sampler": job.recipe.sampler if drawn is not None else None,
        "steps": job.recipe.sampling_steps if drawn is not None else None,
        "clip_sample": job.recipe.clip_sample,
        "samples": len(drawn) if drawn is not None else None,
        "reference": trained.dataset.spec,
        "reference_hash": metrics.content_hash(reference),
        "reference_items": len(reference),
        "seconds": trained.seconds,
    }
    return {"method": job.label, "condition": job.condition, "seed": job.seed, **values, **made, **about}


def evaluate(trained: Trained, samples: Tensor) -> Row:
    """Everything that is known of samples: :func:`atdm.metrics.evaluate_samples`, and the spread along the support."""
    truth, reference = trained.dataset.truth, reference_of(trained.dataset)
    features, seed = trained.job.recipe.features, trained.job.seed
    values: Row = dict(metrics.evaluate_samples(samples, reference, truth, features, seed=seed))
    finite = samples[samples.flatten(1).isfinite().all(1)]
    if hasattr(truth, "spread") and len(finite) > 1:
        values["spread"] = truth.spread(finite)
    return values


def mean_over_seeds(rows: Iterable[Row], key: str, **where: Any) -> float:
    """The mean of ``key`` over the rows that agree with ``where``; nan where there are none."""
    found = [float(r[key]) for r in rows if all(r.get(k) == v for k, v in where.items()) and r.get(key) is not None]
    return statistics.fmean(found) if found else math.nan


def cell(rows: Iterable[Row], key: str, **where: Any) -> Any:
    """A cell of a table: the value, or mean and standard deviation over the seeds; None where nothing was measured."""
    found = [float(r[key]) for r in rows if all(r.get(k) == v for k, v in where.items()) and r.get(key) is not None]
    if not found:
        return None
    return found[0] if len(found) == 1 else (statistics.fmean(found), statistics.stdev(found))


def values_of(rows: Iterable[Row], key: str) -> list[Any]:
    """The different values of ``key``, in the order of the rows."""
    return list(dict.fromkeys(r[key] for r in rows))


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


# --- what is said -----------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Claim:
    """A statement that numbers bear out or do not.

    Args:
        statement: what is published or expected.
        holds: whether the numbers say so.
        measured: the numbers, as a clause.
    """

    statement: str
    holds: bool
    measured: str


def number(value: float) -> str:
    """Three significant digits."""
    return f"{value:.3g}" if math.isfinite(value) else "not finite"


def at_most(statement: str, value: float, than: float, share: float, names: tuple[str, str], unit: str = "") -> Claim:
    """The claim that ``value`` is at most ``share`` times ``than``."""
    ratio = value / than if than else math.nan
    unit = f" {unit}" if unit else ""
    measured = f"{names[0]} {number(value)}{unit}, {names[1]} {number(than)}{unit}: {number(ratio)} times"
    return Claim(statement, bool(ratio <= share), measured)


@dataclass
class Findings:
    """What an experiment found.

    Args:
        lead: what was done and what is published, in a paragraph that holds whatever the numbers are.
        claims: judged by the numbers.
        rows: the numbers.
        figures: by file name; caption and figure.
        tables: for the report.
        notes: paragraphs that were made from the numbers and are no claims.
    """

    lead: str
    claims: list[Claim]
    rows: list[Row]
    figures: dict[str, tuple[str, plot.Figure]]
    tables: list[report.Table]
    notes: list[str] = field(default_factory=list)

    def paragraph(self, scale: str) -> str:
        """The comparison as Markdown: what agrees and what does not."""
        parts = [self.lead]
        if scale == "smoke":
            parts.append(
                "**At scale smoke the networks are hardly trained**: this shows that everything runs, and the comparison "
                "below means nothing."
            )
        for heading, holds in (("Agrees", True), ("Does not agree", False)):
            chosen = [f"- {c.statement} ({c.measured})." for c in self.claims if c.holds is holds]
            if chosen:
                parts.append("\n".join([f"**{heading}:**", "", *chosen]))
        return "\n\n".join([*parts, *self.notes]) + "\n"


@dataclass
class Outcome:
    """What came of a job: rows, and tensors for the figures by name."""

    job: Job
    rows: list[Row]
    tensors: dict[str, Any] = field(default_factory=dict)


def first_seed(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """The outcomes that figures show."""
    return [o for o in outcomes if o.job.seed == outcomes[0].job.seed]


# --- files ------------------------------------------------------------------------------------------------------------
def run(
    name: str, out: Path, scale: str = "cpu", seeds: Sequence[int] = (0,), data: str | None = None
) -> Iterator[Progress]:
    """Do an experiment and write figures, ``numbers.json``, ``paragraph.md`` and ``report.html`` to the folder ``out``.

    Yields:
        ``(done, all, label)``, done and all in rough seconds of one core.

    Raises:
        UserError: an unknown name or scale, or data that cannot be used.
    """
    module, about, begin = module_of(name), entry(name), (time.perf_counter(), _cpu_seconds())
    todo = module.jobs(scale, seeds, data)
    outcomes = yield from work_through(module.work, todo)
    total = sum(job.cost for job in todo)
    yield total, total, "figures"
    found: Findings = module.findings(scale, outcomes)
    provenance = {
        "experiment": name,
        "scale": scale,
        "seeds": list(seeds),
        "atdm": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "jobs": len(todo),
        "workers": workers(len(todo)),
        "data": data,
        "seconds in all": round(time.perf_counter() - begin[0], 1),
        "cpu seconds": round(_cpu_seconds() - begin[1], 1),
    }
    write(found, name, about.summary, scale, provenance, out)
    yield total, total, "report"


def _cpu_seconds() -> float:
    """Of this process and of those it started that ended."""
    used = os.times()
    return used.user + used.system + used.children_user + used.children_system


def write(found: Findings, name: str, summary: str, scale: str, provenance: Mapping[str, Any], out: Path) -> None:
    """Write what was found."""
    for title, (_, figure) in found.figures.items():
        for kind in ("png", "svg"):
            plot.save(figure, out / f"{title}.{kind}")
    claims = [dataclasses.asdict(c) for c in found.claims]
    numbers = {
        "rows": finite(found.rows),
        "claims": claims,
        "tables": finite([{"columns": t.columns, "rows": t.rows, "caption": t.caption} for t in found.tables]),
        "figures": {title: caption for title, (caption, _) in found.figures.items()},
        "provenance": provenance,
    }
    for file, text in (("numbers.json", json.dumps(numbers, indent=1)), ("paragraph.md", found.paragraph(scale))):
        with atomic(out / file) as scratch:
            scratch.write_text(text, encoding="utf-8")
    judged = report.Table(
        ["published or expected", "agrees", "measured"],
        [[c.statement, c.holds, c.measured] for c in found.claims],
        "Judged by the numbers of this run." if scale != "smoke" else "At scale smoke this means nothing.",
    )
    sections = [
        report.Section("Comparison", "\n\n".join(found.notes), [], [judged] if found.claims else []),
        report.Section("Figures", "", [*found.figures.values()]),
        report.Section("Numbers", "", [], found.tables),
    ]
    report.render(f"atdm reproduce {name}: {summary}", found.lead, sections, provenance, out / "report.html")


def finite(value: Any) -> Any:
    """JSON has no numbers that are not finite: they become null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {k: finite(v) for k, v in value.items()}
    return [finite(v) for v in value] if isinstance(value, list | tuple) else value
