"""A job of an experiment: a training, the model that comes of it, and its samples."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ...data import Dataset, load
from ...data.items import Floats
from ...diffusion.model import Model
from ...diffusion.process import Process
from ...diffusion.sampling import sample_paths, sample_stops
from ...diffusion.schedulers import build_scheduler
from ...diffusion.steps import Sampling, asked
from ...pool import Tell
from ...training import run as runs
from ...training.config import ObjectiveConfig, TrainConfig
from ...training.parts import Parts, build
from ...training.train import State, fit

HELD_OUT = 0.1


@dataclass(frozen=True, kw_only=True)
class Job:
    """One training and what is measured of it.

    Args:
        config: of the training. Without ``out`` the model is kept in memory; with it training goes on in that run folder.
        samples: drawn from the model.
        sampling: how.
        features: feature spaces in which images are measured.
        step_seconds: of a ddpm step on one core, roughly: for the progress bar.
        label: the objective, as figures and tables call it.
        condition: the corruption, likewise.
        options: what else the experiment needs to know.
    """

    config: TrainConfig
    samples: int
    sampling: Sampling = field(default_factory=lambda: Sampling("ddpm"))
    features: str = "pixels"
    step_seconds: float = 0.003
    label: str = "ddpm"
    condition: str = "clean"
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def seed(self) -> int:
        """Of data, corruption, training and sampling."""
        return self.config.seed

    @property
    def cost(self) -> float:
        """Seconds on one core, roughly."""
        objective = self.config.objective
        floor = 1.3 if objective.automatic else objective.cost(Process.linear())
        return 1 + 1.3 * self.config.steps * self.step_seconds * floor

    def __str__(self) -> str:
        return f"{self.label}, {self.condition}"

    def but(self, **own: Any) -> Job:
        """The job with some of its own fields, or of its configuration's, changed."""
        names = {f.name for f in dataclasses.fields(self)}
        config = dataclasses.replace(self.config, **{k: v for k, v in own.items() if k not in names})
        return dataclasses.replace(self, **({"config": config} | {k: v for k, v in own.items() if k in names}))


def ddpm_job(data: str, net: str, steps: int, batch_size: int, samples: int, sampling_steps: int, **own: Any) -> Job:
    """A job of plain ddpm on clean data that keeps its model in memory.

    Args:
        own: further fields of the job and of its configuration.
    """
    config = TrainConfig(out="", data=data, net=net, steps=steps, batch_size=batch_size, objective=DDPM)
    return Job(config=config, samples=samples, sampling=Sampling("ddpm", sampling_steps)).but(**own)


def grid(
    base: Job, objectives: Mapping[str, ObjectiveConfig], corruptions: Mapping[str, str], seeds: Sequence[int]
) -> list[Job]:
    """Every objective under every corruption with every seed.

    Args:
        objectives, corruptions: by what figures and tables call them.
    """
    return [
        base.but(label=label, objective=objective, condition=condition, corrupt=corrupt, seed=seed)
        for seed in seeds
        for condition, corrupt in corruptions.items()
        for label, objective in objectives.items()
    ]


def grids(
    plans: Iterable[tuple[Job, Mapping[str, ObjectiveConfig], Mapping[str, str]]], seeds: Sequence[int]
) -> list[Job]:
    """The jobs of every :func:`grid`, seed by seed."""
    plans = [*plans]
    return [job for seed in seeds for plan in plans for job in grid(*plan, [seed])]


# --- objectives -------------------------------------------------------------------------------------------------------
RECOMMENDED = "robust_adv recommended"
AUTO = "auto"
DDPM = ObjectiveConfig("ddpm")


def published(name: str, lam: float = 0.3, omega: float = 2.0, floor: str = "8/255") -> ObjectiveConfig:
    """An objective with the published radius and weight."""
    return ObjectiveConfig(name, f"published:omega={omega:g},floor={floor}", f"published:lam={lam:g}")


def recommended(gate: float | None, k: float, r: float, name: str = "robust_adv") -> ObjectiveConfig:
    """The gated relative regularizer along the l2 gradient (docs/method.md)."""
    return ObjectiveConfig(
        name, f"constant:r={r:g}", f"relative:k={k:g}", norm="l2", steps=1, kappa=math.inf, gate=gate
    )


# --- training and sampling --------------------------------------------------------------------------------------------
@dataclass
class Trained:
    """A trained network (its averaged weights) and the data it learned from.

    Args:
        config: of the training, with what ``auto`` chose as its objective.
        dataset: the clean data.
        corrupted: what training saw.
        sampling: how the job draws samples, with nothing left open.
    """

    job: Job
    config: TrainConfig
    net: nn.Module
    process: Process
    sampling: Sampling
    dataset: Dataset
    corrupted: Tensor
    seconds: float

    @property
    def model(self) -> Model:
        """The network as a model of the data."""
        clip = bool(self.sampling.clip_sample)
        return Model(self.net, self.process, clip, shape=tuple(self.dataset.item_shape))


def open_held_out(job: Job) -> Dataset:
    """The clean images of a job, a tenth held out where the set itself holds out none."""
    data = load(job.config.data, **job.config.reading())
    if data.test is not None:
        return data
    x = data.x[torch.randperm(len(data.x), generator=torch.Generator().manual_seed(job.seed))]
    kept = len(x) - max(2, round(HELD_OUT * len(x)))
    return dataclasses.replace(data, items=Floats(x[:kept]), held_out=Floats(x[kept:]), window=None)


def prepare(job: Job, dataset: Dataset | None = None, trusted: Dataset | None = None) -> Parts:
    """What the configuration of a job stands for, on a GPU where there is one.

    Args:
        dataset, trusted: clean data and trusted items, where they are not what the configuration names.
    """
    parts = build(job.config, dataset=dataset, trusted=trusted)
    parts.net.to("cuda" if torch.cuda.is_available() else "cpu")
    return dataclasses.replace(parts, source=parts.source.prepared())


def train(
    job: Job, tell: Tell, parts: Parts | None = None, watch: Callable[[Trained, int], None] | None = None
) -> Trained:
    """Train a job's network on its corrupted data.

    Args:
        tell: hears the share of the training that is done.
        parts: of :func:`prepare`, where they are there already.
        watch: sees the network as it is after every so many steps.
    """
    parts = parts or prepare(job)
    process, config, source = parts.objective.process, parts.config, parts.source
    net, steps = parts.net, runs.train(job.config, parts=parts)
    if not config.out:
        state = State.create(parts.net, config)
        net, steps = state.ema, fit(parts.objective, state, source, config)
    sampling = job.sampling.resolved(process, parts.clip)
    trained = Trained(job, config, net, process, sampling, parts.dataset, source.first(len(source)), 0.0)
    begin = time.perf_counter()
    for step in steps:
        if step.index % 20 == 0:
            tell(step.index / config.steps)
        if watch is not None:
            watch(trained, step.index)
    trained.seconds = time.perf_counter() - begin
    if config.out:  # what was there already made no step
        trained.net = Model.from_pretrained(config.out).net  # type: ignore[assignment]
    trained.net.eval()
    return trained


def paths(trained: Trained, tell: Tell, keep: Sequence[int] = (), n: int | None = None, **options: Any) -> Tensor:
    """The states before the steps in ``keep``, then the samples: ``[kept + 1, n, *item]``.

    Args:
        tell: hears the share of the sampling that is done.
        options: fields of the sampling that differ from the job's.
    """
    return _sampled(sample_paths, trained, tell, n, keep=keep, **options)


def samples_at_stops(trained: Trained, tell: Tell, stops: Sequence[float | None]) -> Tensor:
    """Samples for each noise level at which to stop, None: to the end; ``[stops, n, *item]``, all of the same trajectories."""
    return _sampled(sample_stops, trained, tell, None, stops=stops)


def samples_of(trained: Trained, tell: Tell = lambda share: None, n: int | None = None, **options: Any) -> Tensor:
    """Samples ``[n, *item]``."""
    return paths(trained, tell, (), n, **options)[-1]


def sampling_of(trained: Trained, options: dict[str, Any]) -> Sampling:
    """How the samples of a model are drawn, with the fields that are in ``options``; some samplers cannot clip."""
    found = asked(trained.sampling, options)
    able = "clip_sample" in build_scheduler(found.sampler, trained.process).config
    return dataclasses.replace(found, clip_sample=bool(found.clip_sample) and able)


def _sampled(way: Callable[..., Tensor], trained: Trained, tell: Tell, n: int | None, **options: Any) -> Tensor:
    job, shape, sampling = trained.job, trained.dataset.item_shape, sampling_of(trained, options)
    how: dict[str, Any] = {"seed": job.seed, "batch_size": 1024 if len(shape) == 3 else 4096}
    how["progress"] = lambda done, total: tell(done / total)
    return way(trained.net, trained.process, n or job.samples, shape, sampling, **how, **options)
