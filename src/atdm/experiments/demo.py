"""The demonstration: a tilted plane and handwritten digits, dirty, learned by plain DDPM and by the robust objectives.

By default one seed and what a colleague should see in five minutes. Thorough runs add clean data and a range of
strengths and stopping levels, which is what the published tables of this project come from.
"""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .. import __version__, metrics
from ..corruption import corrupt
from ..data import Dataset, load
from ..diffusion.process import Process
from ..diffusion.sampling import sample_paths
from ..files import atomic
from ..nets import build_net, call, weights_hash
from ..objective import Objective
from ..objective.perturb import ConstantRadius, Perturbation, PublishedRadius, PublishedWeight, RelativeWeight
from ..pool import Progress, Tell, work_through, workers
from ..training.config import Settings
from ..training.train import State, fit

CORRUPTIONS = {"outliers": "outliers:share=0.1", "noise": "gaussian:share=0.9,std=0.2", "clean": "none"}


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """One data set, how long a network is trained on it and how it is sampled.

    Args:
        data, net: specs.
        samples, sampling_steps: how many are drawn, and how.
        step_seconds: of a ddpm step on one core, roughly.
        gate, k, radius: the recommended setting (METHOD section 9): gate at the noise level where the data's own
            directions are decided, strength of the relative weight, radius in noise units.
        stop: noise level at which the early-stopped DDPM stops.
    """

    data: str
    net: str
    settings: Settings
    samples: int
    sampling_steps: int
    step_seconds: float
    gate: float
    k: float
    radius: float
    stop: float


_MLP = "mlp:width=256,depth=3,residual=true"
_DIGITS = Settings(2500, 128, decay="cosine", ema=0.995)
EXPERIMENTS = {
    "plane": Experiment(
        data="plane:n=10000",
        net="mlp",
        settings=Settings(4000, 256, decay="cosine", ema=0.995),
        samples=4000,
        sampling_steps=1000,  # at 250 a ddpm sampler alone shrinks the spread by 4 %, on clean data too
        gate=0.5,
        k=5,
        radius=3,
        stop=0.3,
        step_seconds=0.003,
    ),
    "digits": Experiment(
        data="digits",
        net=_MLP,
        settings=_DIGITS,
        samples=1000,
        sampling_steps=250,
        gate=0.2,
        k=5,
        radius=1,
        stop=0.2,
        step_seconds=0.008,
    ),
    "digits-subspace": Experiment(
        data="digits:subspace=16",
        net=_MLP,
        settings=_DIGITS,
        samples=1000,
        sampling_steps=250,
        gate=0.3,
        k=10,
        radius=1,
        stop=0.2,
        step_seconds=0.008,
    ),
}
STOPS = (0.1, 0.2, 0.3, 0.5)  # of a thorough run
STRENGTHS = {"published": (3.0, 10.0), "recommended": (1.0, 2.0, 15.0)}  # lambda and k, beside the setting's own


@dataclass(frozen=True)
class Job:
    """One training.

    Args:
        setting: ``published`` constants or ``recommended``, the gated relative l_2 push.
        strength: lambda (published) or k (recommended) instead of the setting's own.
        scale: of the numbers of training steps, sampling steps and samples; below 1 only to see that everything works.
        stops: noise levels at which a ddpm's sampling is also stopped.
    """

    experiment: str
    corruption: str
    objective: str
    setting: str = "published"
    strength: float | None = None
    seed: int = 0
    scale: float = 1.0
    stops: tuple[float, ...] = ()

    def __str__(self) -> str:
        return f"{self.experiment} {self.corruption} {self.objective}"

    @property
    def label(self) -> str:
        """The ``setting`` of its rows."""
        letter = {"published": "lambda", "recommended": "k"}[self.setting]
        return self.setting if self.strength is None else f"{self.setting}, {letter} {self.strength:g}"

    @property
    def settings(self) -> Settings:
        """How it is trained."""
        own = EXPERIMENTS[self.experiment].settings
        return replace(own, seed=self.seed, steps=max(50, round(own.steps * self.scale)))

    @property
    def sampling_steps(self) -> int:
        """A divisor of T."""
        return EXPERIMENTS[self.experiment].sampling_steps if self.scale >= 1 else 50

    @property
    def samples(self) -> int:
        """How many are drawn."""
        return round(EXPERIMENTS[self.experiment].samples * min(1, max(0.1, self.scale)))

    @property
    def path_t(self) -> list[int]:
        """Timesteps at which trajectories are kept for the figures of points: sigma/alpha from 1.2 to 0."""
        if self.experiment != "plane":
            return []
        return list(range(300, 0, -max(6, Process.linear().steps // self.sampling_steps)))

    @property
    def training_cost(self) -> float:
        """Seconds on one core, roughly."""
        floor = objective_of(self, Process.linear()).passes()["floor_over_ddpm"]
        return self.settings.steps * EXPERIMENTS[self.experiment].step_seconds * floor

    @property
    def cost(self) -> float:
        """Seconds on one core with sampling, roughly."""
        return self.training_cost + 8 * min(1, self.scale)


@dataclass
class Outcome:
    """What came of a job; tensors for the figures."""

    job: Job
    rows: list[dict[str, Any]]
    samples: dict[str, Tensor]  # by setting
    ratios: list[float]  # noise levels of the trajectories' states; 0 for the samples
    paths: Tensor
    scores: tuple[Tensor, Tensor] | None = None


def jobs(seeds: Sequence[int], scale: float, thorough: bool) -> list[Job]:
    """The demonstration's trainings, the longest first; clean digits and other strengths for the first seed only."""
    todo: list[Job] = []

    def add(experiment: str, corruption: str, objective: str, setting: str = "published", **own: Any) -> None:
        if objective == "ddpm":
            own["stops"] = STOPS if thorough else (EXPERIMENTS[experiment].stop,)
        todo.append(Job(experiment, corruption, objective, setting, scale=scale, **own))

    for seed in seeds:
        first = thorough and seed == seeds[0]
        for corruption in ("outliers", "noise", *(["clean"] if thorough else [])):
            dirty = corruption != "clean"
            for objective in (*(["inv_adv", "robust_rand", "robust_adv"] if dirty else []), "ddpm"):
                add("plane", corruption, objective, seed=seed)
            add("plane", corruption, "robust_adv", "recommended", seed=seed)
        for experiment in ("digits", "digits-subspace"):
            for corruption in ("noise", *(["clean"] if first else [])):
                add(experiment, corruption, "robust_adv", seed=seed)
                add(experiment, corruption, "ddpm", seed=seed)
                add(experiment, corruption, "robust_adv", "recommended", seed=seed)
        for setting, strengths in STRENGTHS.items() if first else ():
            for strength in strengths:
                add("digits", "noise", "robust_adv", setting, strength=strength, seed=seed)
    return sorted(todo, key=lambda job: -job.cost)


def objective_of(job: Job, process: Process) -> Objective:
    """The objective of a job."""
    if job.setting == "published":
        weight = PublishedWeight() if job.strength is None else PublishedWeight(job.strength)
        return Objective(job.objective, process, PublishedRadius(), weight, seed=job.seed)
    e = EXPERIMENTS[job.experiment]
    push, k = Perturbation("l2", 1, float("inf")), e.k if job.strength is None else job.strength
    return Objective(job.objective, process, ConstantRadius(e.radius), RelativeWeight(k), push, e.gate, seed=job.seed)


def work(job: Job, tell: Tell = lambda share: None) -> Outcome:
    """Train, sample and measure one job; ``tell`` hears the share that is done."""
    e, process, settings = EXPERIMENTS[job.experiment], Process.linear(), job.settings
    dataset = load(e.data, seed=job.seed)
    dirty, _ = corrupt(dataset.x, CORRUPTIONS[job.corruption], job.seed)
    torch.manual_seed(job.seed)
    state = State.create(build_net(e.net, dataset.item_shape), settings)
    training = job.training_cost / job.cost  # share of the work
    begin = time.perf_counter()
    for step in fit(objective_of(job, process), state, dirty, settings):
        if step.index % 50 == 0:
            tell(training * step.index / settings.steps)
    seconds = time.perf_counter() - begin
    net = state.ema.eval()

    stride = process.steps // job.sampling_steps  # the sampler's step i is at timestep T - 1 - stride i
    ratios = process.ratio(torch.arange(process.steps - 1, -1, -stride)).tolist()
    stops = {stop: next(i for i, ratio in enumerate(ratios) if ratio < stop) for stop in job.stops}
    places = sorted({*(round((process.steps - 1 - t) / stride) for t in job.path_t), *stops.values()})
    states = sample_paths(
        net,
        process,
        job.samples,
        dataset.item_shape,
        keep=places,
        batch_size=4096,
        seed=job.seed,
        sampler="ddpm",
        steps=job.sampling_steps,
        progress=lambda done, total: tell(training + (1 - training) * done / total),
    )
    out = Outcome(job, [], {job.label: states[-1]}, [*(ratios[i] for i in places), 0.0], states)
    for stop, i in stops.items():
        name = "early stop" if stop == e.stop else f"early stop {stop:g}"
        out.samples[name] = denoise(net, process, states[places.index(i)], process.steps - 1 - stride * i)
    out.rows = [row(job, name, drawn, dataset, net, seconds) for name, drawn in out.samples.items()]
    if job.experiment == "plane":
        out.scores = score_field(net, process, dataset)
    return out


def denoise(net: nn.Module, process: Process, x: Tensor, t: int) -> Tensor:
    """What sampling returns that stops at ``t``."""
    rows = torch.full((len(x),), t)
    with torch.no_grad():
        return process.denoised(process.to_eps(call(net, x, rows), x, rows), x, rows)


def row(job: Job, setting: str, drawn: Tensor, dataset: Dataset, net: nn.Module, seconds: float) -> dict[str, Any]:
    """One row of ``summary.json``."""
    e = EXPERIMENTS[job.experiment]
    reference = dataset.reference
    values: dict[str, Any] = metrics.evaluate_samples(drawn, reference, dataset.truth, seed=job.seed)
    values.setdefault("off_support_rms", None)
    finite = drawn[drawn.flatten(1).isfinite().all(1)]
    if dataset.truth is not None:
        values["spread"] = dataset.truth.spread(finite)
        values["true_spread"] = getattr(dataset.truth, "true_spread", None) or dataset.truth.spread(reference)
    return {
        "experiment": job.experiment,
        "corruption": job.corruption,
        "objective": job.objective,
        "setting": setting,
        "seed": job.seed,
        **values,
        "seconds": seconds,
        "checkpoint": weights_hash(net),
        "weights": "ema",
        "training_steps": job.settings.steps,
        "sampler": "ddpm",
        "sampling_steps": job.sampling_steps,
        "samples": len(drawn),
        "reference": e.data,
        "reference_hash": metrics.content_hash(reference),
        "corrupt": CORRUPTIONS[job.corruption],
    }


FIELD_T = 120  # sigma/alpha is about 0.3: the data's outline shows and the noise still matters


def score_field(net: nn.Module | None, process: Process, dataset: Dataset) -> tuple[Tensor, Tensor]:
    """Points of the plane through the first in-plane direction and the normal, and there the scores within it.

    Args:
        net: whose scores; None for the truth.
    """
    line = torch.linspace(-1.5, 1.5, 17)
    u, w = torch.meshgrid(line, line, indexing="ij")
    local = torch.stack([u.flatten(), w.flatten()], 1)
    axes = dataset.truth.axes[[0, 2]]
    x = local @ axes
    t = torch.full((len(x),), FIELD_T)
    if net is None:
        score = dataset.truth.score(x, process.alphas[FIELD_T].item(), process.sigmas[FIELD_T].item())
    else:
        with torch.no_grad():
            score = process.score(process.to_eps(call(net, x, t), x, t), t)
    return local, score @ axes.T


def run(
    out: Path, seeds: Sequence[int] = (0,), scale: float = 1.0, thorough: bool = False, progress: Progress = print
) -> list[dict[str, Any]]:
    """Do every job on the machine's cores, then write ``report.html`` and ``summary.json``; returns its rows."""
    from . import demo_report

    todo, begin = jobs(seeds, scale, thorough), time.perf_counter()
    outcomes = work_through(work, todo, progress)
    provenance = {
        "atdm": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "workers": workers(len(todo)),
        "seeds": list(seeds),
        "scale": scale,
        "process": "linear, T = 1000",
        "seconds in all": round(time.perf_counter() - begin, 1),
    }
    rows = [r for o in outcomes for r in o.rows]
    with atomic(out / "summary.json") as scratch:
        scratch.write_text(json.dumps({"rows": rows, "provenance": provenance}, indent=1))
    demo_report.write(out, outcomes, provenance)
    return rows
