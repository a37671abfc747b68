"""A training job of an experiment: recipe, method, the network that comes of it, and its samples."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ...corruption import corrupt
from ...corruption.levels import truth_levels
from ...data import Dataset, load
from ...data.items import Floats
from ...data.source import Source
from ...diffusion.process import PROCESSES, Process
from ...diffusion.sampling import sample_paths, sample_stops
from ...nets import build_net
from ...objective import Loss
from ...pool import Tell
from ...spec import build
from ...training.config import ObjectiveConfig, Settings
from ...training.train import State, Step, fit

HELD_OUT = 0.1


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
        floor = 1.3 if self.method.objective.automatic else self.method.objective.cost(Process.linear())
        return 1 + 1.3 * self.settings.steps * self.recipe.step_seconds * floor

    def __str__(self) -> str:
        return f"{self.label}, {self.condition}"


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


def open_held_out(job: Job) -> Dataset:
    """The clean images of a job, a tenth held out where the set itself holds out none."""
    limit = job.options.get("limit")
    data = load(job.recipe.data, seed=job.seed, image_size=job.recipe.image_size, limit=limit)
    if data.test is not None:
        return data
    x = data.x[torch.randperm(len(data.x), generator=torch.Generator().manual_seed(job.seed))]
    kept = len(x) - max(2, round(HELD_OUT * len(x)))
    return dataclasses.replace(data, items=Floats(x[:kept]), held_out=Floats(x[kept:]), window=None)


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
    first = job.method.objective.first_step(job.settings.steps)
    settings = dataclasses.replace(job.settings, regularize_from=first)
    source = Source(Floats(dirty), std=truth_levels(truth))
    torch.manual_seed(job.seed)
    net = build_net(job.recipe.net, dataset.item_shape).to("cuda" if torch.cuda.is_available() else "cpu")
    state = State.create(net, settings)
    begin = time.perf_counter()
    for step in fit(job.method.build(process, job.seed), state, source, settings):
        if step.index % 20 == 0:
            tell(step.index / settings.steps)
        if watch is not None:
            watch(step)
    return Trained(job, state.ema.eval(), process, dataset, dirty, time.perf_counter() - begin)


def paths(trained: Trained, tell: Tell, keep: Sequence[int] = (), n: int | None = None, **options: Any) -> Tensor:
    """The states before the steps in ``keep``, then the samples: ``[kept + 1, n, *item]``.

    Args:
        tell: hears the share of the sampling that is done.
        options: instead of the recipe's; see :func:`atdm.diffusion.sampling.sample`.
    """
    return _sampled(sample_paths, trained, tell, n, keep=keep, **options)


def draw_stops(trained: Trained, tell: Tell, stops: Sequence[float | None]) -> Tensor:
    """Samples for each noise level at which to stop, None: to the end; ``[stops, n, *item]``, all of the same trajectories."""
    return _sampled(sample_stops, trained, tell, None, stops=stops)


def draw(trained: Trained, tell: Tell = lambda share: None, n: int | None = None, **options: Any) -> Tensor:
    """Samples ``[n, *item]``."""
    return paths(trained, tell, (), n, **options)[-1]


def _sampled(way: Callable[..., Tensor], trained: Trained, tell: Tell, n: int | None, **options: Any) -> Tensor:
    recipe = trained.job.recipe
    how: dict[str, Any] = {"sampler": recipe.sampler, "steps": recipe.sampling_steps, "clip_sample": recipe.clip_sample}
    how["batch_size"] = 1024 if len(trained.dataset.item_shape) == 3 else 4096
    return way(
        trained.net,
        trained.process,
        n or recipe.samples,
        trained.dataset.item_shape,
        seed=trained.job.seed,
        progress=lambda done, total: tell(done / total),
        **(how | options),
    )
