"""The robustness laboratory: what can be said of a set of models, side by side and from the same random numbers.

Models are run folders or any diffusers pipelines. Each is one job: samples at several step counts, attacks on the
sampler, nearest training items, cost. :mod:`.sections` makes a page of the outcomes.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import memory, metrics
from ..attack import ATTACKS, GOALS, Finding, Victim, check_seeds, damage_curve, doubt, summarize
from ..corruption import parse_corruption
from ..data import Dataset, load
from ..data.source import Source
from ..diffusion.model import Model, require_finite
from ..diffusion.schedulers import default_sampler
from ..diffusion.steps import Sampling
from ..errors import UserError, expect
from ..metrics import Memorization, memorization
from ..nets import Unlabelled, count_parameters, flops
from ..pool import Tell, part
from ..spec import build
from ..training.checkpoint import read_config, read_objective
from ..training.config import ObjectiveConfig, TrainConfig
from ..training.log import read_log, training_seconds
from ..training.trusted import reference_for, reference_of
from .page import Row

SECOND = {"vp": "ddim", "flow": "heun", "edm": "dpm-solver++"}  # the sampler beside that of atdm sample
OTHER = 1_000_003  # seeds the corruption of held-out images, which must not be that of the training images
MOST_TRAINING = 5000  # training items among which nearest neighbours are looked for


@dataclass(frozen=True)
class Plan:
    """How much is measured of each model.

    Args:
        n: samples at each number of steps.
        steps: numbers of sampling steps.
        budgets: of the attack, noise units at each step.
        attack: on the trajectory of a deterministic sampler.
        attacked: samples under attack.
        attacked_steps: of their sampler.
        attack_seeds: of the sampling, for the intervals.
        features: feature space of the Frechet distance and of memorization.
        seed: first one of the sampling, shared by all models.
        label: the class, of models that know classes; see :meth:`Model.from_pretrained`.
    """

    n: int = 256
    steps: tuple[int, ...] = (5, 10, 25, 50, 100, 250)
    budgets: tuple[float, ...] = (0.0, 0.003, 0.01, 0.03)
    attack: str = "pgd:steps=3,norm=l2"
    attacked: int = 64
    attacked_steps: int = 25
    attack_seeds: int = 3
    features: str = "pixels"
    seed: int = 0
    label: str | None = None

    def __post_init__(self) -> None:
        for name in ("n", "attacked"):
            expect(getattr(self, name) >= 2, name, getattr(self, name), "2 or more samples")
        if not self.steps or min(self.steps) < 1:
            raise UserError(f"The numbers of steps are {list(self.steps)}. Expected one or more, of 1 or more.")
        if not self.budgets or min(self.budgets) < 0 or not any(self.budgets):
            raise UserError(f"The budgets are {list(self.budgets)}. Expected 0 or more, and one above 0.")
        build("attack", self.attack, ATTACKS)


@dataclass(frozen=True)
class ModelJob:
    """One model.

    Args:
        model: run folder, pipeline folder or Hub name.
        label: what figures and tables call it.
        data: spec of what samples are compared with, the same for all models.
        reading: how it is read; see :func:`atdm.data.load`.
        samplers: two of the family of its process, that of ``atdm sample`` first.
        config: of its run; None for a pipeline that somebody else made.
        undefended: a ddpm run on the same data, to transfer attacks from and to.
        cost: seconds on one core, roughly.
        trusted: a person vouches for the data.
    """

    model: str
    label: str
    plan: Plan
    data: str
    reading: Mapping[str, Any]
    samplers: tuple[str, str]
    config: Mapping[str, Any] | None = None
    undefended: str | None = None
    cost: float = 1.0
    trusted: bool = False

    def __str__(self) -> str:
        return self.label


@dataclass
class ModelOutcome:
    """What was found of one model.

    Args:
        rows: one per sampler and number of steps.
        samples: of each sampler, by name and number of steps: the first ones, for pictures.
        damage: rows of :func:`atdm.attack.summarize`.
        checks: sanity checks of the attack.
        copies: nearest training items, with the samples and the training items; None where they cannot be judged.
        facts: parameters, operations, training and seconds.
    """

    job: ModelJob
    rows: list[Row]
    samples: dict[tuple[str, int], Tensor]
    damage: list[dict[str, Any]]
    checks: list[Finding]
    copies: tuple[Memorization, Tensor, Tensor] | None
    facts: dict[str, Any] = field(default_factory=dict)


def jobs(
    models: Sequence[str],
    plan: Plan,
    data: str | None = None,
    reading: Mapping[str, Any] | None = None,
    trusted: bool = False,
) -> list[ModelJob]:
    """A job for each model, once it is known that all of them can be measured beside the same data.

    Args:
        data: what samples are compared with; default: the trusted images of the runs among ``models`` where all have the same, else
            their data before corruption.
        reading: how it is read: options of :func:`atdm.data.load`.
        trusted: a person vouches for ``data``.

    Raises:
        UserError: no data are known, or they differ from run to run or do not fit a model; a model cannot be opened.
    """
    if len(set(models)) < len(models):
        raise UserError("A model is named twice. Expected each once.")
    configs = {m: read_config(Path(m)) if (Path(m) / "config.yaml").is_file() else None for m in models}
    known = {m: c for m, c in configs.items() if c is not None}
    if data is not None:
        reading = {**(reading or {})}
    elif not known:
        raise UserError(
            f"{', '.join(models)}: no run of atdm that names its data. Expected --reference, a trusted set, or --data."
        )
    else:
        data, reading, trusted = reference_of(known)
    shape = load(data, **reading).item_shape
    drawn = 2 * len(plan.steps) * plan.n + plan.attacked
    size = 8.0 * drawn * math.prod(shape)
    memory.require(size, f"{drawn:,} samples of a model", "Expected a smaller --n or --attacked.")
    plain = next((m for m, c in known.items() if c["objective"]["name"] == "ddpm"), None)
    labels, todo = _labels(configs), []
    for m in models:
        model = _opened(m, shape, plan.label)
        samplers = (default_sampler(model.process, "ddpm"), SECOND[model.process.family])
        for sampler, steps in {*product(samplers, plan.steps), (None, plan.attacked_steps)}:
            Sampling(sampler, steps).scheduler_for(model.process)
        undefended, cost = plain if m != plain else None, _seconds(model, plan)
        job = ModelJob(m, labels[m], plan, data, reading, samplers, configs[m], undefended, cost, trusted)
        todo.append(job)
    return todo


def _labels(configs: Mapping[str, Mapping[str, Any] | None]) -> dict[str, str]:
    """The name of the folder, after the objective where it does not begin with it; the whole path of namesakes."""
    names = [Path(m).name for m in configs]
    labels = {}
    for model, config in configs.items():
        name = Path(model).name if names.count(Path(model).name) == 1 else model
        objective = config["objective"]["name"] if config else ""
        labels[model] = name if not objective or name.startswith(objective) else f"{objective}: {name}"
    return labels


def _seconds(model: Model, plan: Plan) -> float:
    """A guess from the operations, at 2e9 a second."""
    passes = 2 * sum(plan.steps) * plan.n
    search = build("attack", plan.attack, ATTACKS)
    rounds = plan.attack_seeds * len(plan.budgets) + 8
    passes += rounds * plan.attacked_steps * plan.attacked * (1 + 3 * search.steps * search.restarts)
    return 1 + _operations(model) * passes / 2e9


def _operations(model: Model) -> int:
    net: Any = model.net
    return flops(net, model.net_shape, **model.conditioning)


def work(job: ModelJob, tell: Tell) -> ModelOutcome:
    """Everything about one model."""
    dataset = load(job.data, **job.reading)
    model = _opened(job.model, dataset.item_shape, job.plan.label)
    rows, drawn, seconds = _qualities(job, model, dataset, part(tell, 0, 0.5))
    damage, checks = _attacked(job, model, dataset, part(tell, 0.5, 1))
    copies = _copies(job, drawn[job.samplers[0], max(job.plan.steps)])
    shown = {key: x[:64] if x.dim() == 4 else x for key, x in drawn.items()}
    return ModelOutcome(job, rows, shown, damage, checks, copies, _facts(job, model, seconds))


def _opened(source: str, shape: Sequence[int], label: str | None) -> Model:
    try:
        model = Model.from_pretrained(source, label=label)
    except Unlabelled:  # beside others that know classes
        model = Model.from_pretrained(source)
    model = model.for_items(tuple(shape), source, "the reference")
    return model.to("cuda" if torch.cuda.is_available() else "cpu")


def _qualities(
    job: ModelJob, model: Model, dataset: Dataset, tell: Tell
) -> tuple[list[Row], dict[tuple[str, int], Tensor], float]:
    """Rows and samples by sampler and number of steps; and the seconds of a sample at the most steps."""
    plan, config = job.plan, job.config or {}
    known = metrics.ReferenceSet.of(dataset, config.get("corrupt", "none") != "none") if not job.trusted else None
    against = known or reference_for(Path(job.model), config, dataset)
    reference = against.items
    compared: dict[str, Any] = {**against.as_dict(), "model": job.model, "checkpoint": model.hash}
    compared["conditioned_on"] = model.conditioned_on
    rows, drawn, seconds, done = [], {}, 0.0, 0
    total = len(job.samplers) * sum(plan.steps)

    def hear(i: int, _: int) -> None:
        tell((done + i) / total)

    for sampler in job.samplers:
        for steps in plan.steps:
            begin = time.perf_counter()
            sampling = model.sampling(Sampling(sampler, steps))
            x = model.sample(plan.n, sampling, seed=plan.seed, batch_size=256, progress=hear)
            require_finite(x, f"samples of {job.model} with the sampler {sampler} and {steps} steps", some=True)
            if steps == max(plan.steps):
                seconds = (time.perf_counter() - begin) / plan.n
            values = metrics.evaluate_samples(x, reference, dataset.truth, plan.features, plan.seed)
            made = metrics.Provenance(
                plan.n,
                sampling=sampling,
                last_ratio=sampling.last_ratio(model.process),
                seed=plan.seed,
                **compared,
            )
            rows.append({"label": job.label, **values, **made.as_dict()})
            drawn[sampler, steps] = x
            done += steps
    return rows, drawn, seconds


def _attacked(job: ModelJob, model: Model, dataset: Dataset, tell: Tell) -> tuple[list[dict[str, Any]], list[Finding]]:
    """The damage curve, and the sanity checks of the attack at its largest budget."""
    if model.latents is not None:  # the attack works on pixels
        return [], []
    plan, reference = job.plan, dataset.reference
    search, worst = build("attack", plan.attack, ATTACKS), max(plan.budgets)
    try:
        goal = build("objective of an attack", "distance", GOALS).fit(reference, dataset.truth)
    except UserError:  # the distance from these data is not known, or cannot be differentiated
        goal = build("objective of an attack", "denoised", GOALS)

    def victim(model: Model) -> Victim:
        sampling = model.sampling(Sampling(steps=plan.attacked_steps))
        return Victim(model, goal, plan.attacked, sampling=sampling, batch_size=256)

    of, rows, seeds = victim(model), [], range(plan.seed, plan.seed + plan.attack_seeds)
    total = len(seeds) * len(plan.budgets) + 8
    for point in damage_curve(of, search, plan.budgets, seeds, reference, dataset.truth, plan.features):
        rows.append(point.row)
        tell(len(rows) / total)
    other = None if job.undefended is None else victim(_opened(job.undefended, dataset.item_shape, plan.label))
    checks = doubt(of, search, worst, plan.seed, other)
    return summarize(rows), [*checks, check_seeds([r["damage"] for r in rows if r["budget"] == worst])]


def _copies(job: ModelJob, samples: Tensor) -> tuple[Memorization, Tensor, Tensor] | None:
    """Nearest training images, as the model saw them; those held out are dirtied alike. None without a background."""
    config = job.config
    if config is None:
        dataset, parts, seed = load(job.data, **job.reading), parse_corruption("none"), 0
    else:
        dataset = load(config["data"], **{k: config[k] for k in TrainConfig.READING if k in config})
        parts, seed = parse_corruption(config["corrupt"]), config["seed"]
    if dataset.kind != "image" or dataset.held_out is None or not bool(samples.isfinite().all()):
        return None
    seen = Source(dataset.items, parts, seed, window=dataset.window)
    unseen = Source(dataset.held_out, parts, seed + OTHER, window=dataset.window)
    training = seen.first(min(MOST_TRAINING, len(seen)))
    held_out = unseen.first(min(MOST_TRAINING, len(unseen)))
    return memorization(samples, training, held_out, job.plan.features), samples, training


def _facts(job: ModelJob, model: Model, seconds: float) -> dict[str, Any]:
    """What the model is and what it costs; training is known of runs only."""
    net: Any = model.net
    steps, operations = max(job.plan.steps), _operations(model)
    facts: dict[str, Any] = {
        "network": type(net).__name__,
        "parameters": count_parameters(net),
        "flops_per_evaluation": operations,
        "flops_per_sample": operations * steps,
        "seconds_per_sample": seconds,
        "sampling_steps": steps,
    }
    config = job.config
    if config is not None:
        chosen = ObjectiveConfig(**read_objective(Path(job.model), config))
        log = [r for r in read_log(Path(job.model)) if r.get("samples_per_second")]
        passes = chosen.build(model.process).passes() | {"floor_over_ddpm": chosen.cost(model.process)}
        facts |= {
            "objective": config["objective"]["name"],
            "corrupt": config["corrupt"],
            "training_steps": config["steps"],
            "batch_size": config["batch_size"],
            "passes": {k: v for k, v in passes.items() if k != "floor_over_ddpm"},
            "floor_over_ddpm": passes["floor_over_ddpm"],
            "flops_of_training": 3 * operations * passes["floor_over_ddpm"] * config["steps"] * config["batch_size"],
            "training_seconds": training_seconds(log, config["batch_size"]),
        }
    return facts
