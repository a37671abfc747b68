"""The demonstration: a tilted plane and handwritten digits, dirty, learned by plain DDPM and by the robust objectives."""

from __future__ import annotations

import json
import multiprocessing
import platform
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .. import __version__, metrics, plot
from ..checkpoint import atomic, weights_hash
from ..corrupt import corrupt
from ..data import Dataset, load
from ..nets import build_net, call
from ..objective import Objective
from ..perturb import ConstantRadius, Perturbation, PublishedRadius, PublishedWeight, RelativeWeight
from ..process import Process
from ..report import Section, Table, render
from ..sample import sample, sample_paths
from ..train import Settings, State, fit

COLUMNS = ("experiment", "corruption", "objective", "setting", "off_support_rms", "spread", "frechet_pixels", "seconds")
NOISE = "gaussian:share=0.9,std=0.2"
OUTLIERS = "outliers:share=0.1"


@dataclass(frozen=True)
class Experiment:
    """One data set and how long a network is trained on it."""

    data: str
    net: str
    settings: Settings
    samples: int
    sampling_steps: int
    gate: float  # sigma_t/alpha_t below which the recommended setting pushes
    k: float  # strength of the recommended setting
    radius: float  # noise units
    stop: float  # noise level at which the early-stopped DDPM stops


# The recommended values follow METHOD section 9: gate at the noise level where the data's own directions are decided.
_MLP = "mlp:width=384,depth=3,residual=true"
_DIGITS = Settings(2500, 128, decay="cosine", ema=0.995)
EXPERIMENTS = {
    "plane": Experiment(
        "plane:n=10000",
        "mlp",
        Settings(4000, 256, decay="cosine", ema=0.995),
        samples=4000,
        sampling_steps=250,
        gate=0.4,
        k=5,
        radius=3,
        stop=0.3,
    ),
    "digits": Experiment("digits", _MLP, _DIGITS, 1000, 250, gate=0.2, k=5, radius=1, stop=0.2),
    "digits-subspace": Experiment("digits:subspace=16", _MLP, _DIGITS, 1000, 250, gate=0.25, k=10, radius=1, stop=0.2),
}


@dataclass(frozen=True)
class Job:
    """One training."""

    experiment: str
    corruption: str
    corrupt: str
    objective: str
    setting: str = "published"
    seed: int = 0
    scale: float = 1.0


@dataclass
class Outcome:
    """What came of a job; tensors for the figures."""

    job: Job
    rows: list[dict[str, Any]]
    samples: dict[str, Tensor]  # by setting
    paths: Tensor | None = None
    scores: tuple[Tensor, Tensor] | None = None


def jobs(seed: int, scale: float) -> list[Job]:
    """The demonstration's trainings, the longest first."""
    plane = [
        Job("plane", name, spec, objective, setting, seed, scale)
        for name, spec in (("outliers", OUTLIERS), ("inlier noise", NOISE))
        for objective, setting in (
            ("inv_adv", "published"),
            ("robust_adv", "published"),
            ("robust_rand", "published"),
            ("robust_adv", "recommended"),
            ("ddpm", "published"),
        )
    ]
    digits = [
        Job(name, "noise", NOISE, objective, setting, seed, scale)
        for name in ("digits", "digits-subspace")
        for objective, setting in (("robust_adv", "published"), ("robust_adv", "recommended"), ("ddpm", "published"))
    ]
    return digits + plane


def objective_of(job: Job, process: Process) -> Objective:
    """The objective of a job: the published constants, or the gated relative l_2 push of METHOD section 9."""
    if job.setting == "published":
        return Objective(job.objective, process, PublishedRadius(), PublishedWeight(), seed=job.seed)
    e = EXPERIMENTS[job.experiment]
    push = Perturbation("l2", 1, float("inf"))
    return Objective(job.objective, process, ConstantRadius(e.radius), RelativeWeight(e.k), push, e.gate, seed=job.seed)


def work(job: Job) -> Outcome:
    """Train, sample and measure one job on one thread."""
    torch.set_num_threads(1)
    e, process = EXPERIMENTS[job.experiment], Process.linear()
    dataset = load(e.data, seed=job.seed)
    dirty, _ = corrupt(dataset.x, job.corrupt, job.seed)
    torch.manual_seed(job.seed)
    settings = Settings(**{**vars(e.settings), "seed": job.seed, "steps": max(50, round(e.settings.steps * job.scale))})
    state = State.create(build_net(e.net, dataset.item_shape), settings)
    begin = time.perf_counter()
    for _step in fit(objective_of(job, process), state, dirty, settings):
        pass
    seconds = time.perf_counter() - begin
    net = state.ema.eval()
    out = Outcome(job, [], {})
    for setting, stop in (
        ((job.setting, None), ("early stop", e.stop)) if job.objective == "ddpm" else ((job.setting, None),)
    ):
        drawn = sample(
            net,
            process,
            e.samples,
            dataset.item_shape,
            sampler="ddpm",
            steps=e.sampling_steps,
            seed=job.seed,
            stop_ratio=stop,
        )
        out.samples[setting] = drawn
        out.rows.append(row(job, setting, drawn, dataset, net, seconds, e, settings.steps))
    if job.experiment == "plane":
        keep = list(range(0, e.sampling_steps, 5))
        out.paths = sample_paths(
            net, process, 60, dataset.item_shape, keep=keep, sampler="ddpm", steps=e.sampling_steps, seed=job.seed
        )
        out.scores = score_field(net, process, dataset)
    return out


def row(
    job: Job, setting: str, drawn: Tensor, dataset: Dataset, net: nn.Module, seconds: float, e: Experiment, steps: int
) -> dict[str, Any]:
    """One row of ``summary.json``."""
    reference = dataset.test if dataset.test is not None else dataset.x
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
        "training_steps": steps,
        "sampler": "ddpm",
        "sampling_steps": e.sampling_steps,
        "samples": len(drawn),
        "reference": e.data,
        "reference_hash": metrics.content_hash(reference),
        "corrupt": job.corrupt,
    }


FIELD_T = 120  # sigma/alpha is about 0.3: the data's outline shows and the noise still matters


def field_points(dataset: Dataset) -> Tensor:
    """A grid on the plane through the first in-plane direction and the normal."""
    line = torch.linspace(-1.5, 1.5, 17)
    u, w = torch.meshgrid(line, line, indexing="ij")
    return torch.stack([u.flatten(), w.flatten()], 1)


def score_field(net: nn.Module | None, process: Process, dataset: Dataset) -> tuple[Tensor, Tensor]:
    """Scores at :func:`field_points`, of the network or (None) of the truth, within that plane."""
    axes = dataset.truth.axes[[0, 2]]
    local = field_points(dataset)
    x = local @ axes
    t = torch.full((len(x),), FIELD_T)
    if net is None:
        score = dataset.truth.score(x, process.alphas[FIELD_T].item(), process.sigmas[FIELD_T].item())
    else:
        with torch.no_grad():
            score = process.score(process.to_eps(call(net, x, t), x, t), t)
    return local, score @ axes.T


def run(out: Path, seed: int = 0, scale: float = 1.0) -> Iterator[tuple[int, int, str]]:
    """Do every job on the machine's cores, then write ``report.html`` and ``summary.json``; yields (done, total, label)."""
    todo = jobs(seed, scale)
    workers = max(1, min(len(todo), (torch.get_num_threads() or 1), 8))
    outcomes: list[Outcome] = []
    begin = time.perf_counter()
    yield 0, len(todo) + 1, "training"
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        waiting = [pool.submit(work, job) for job in todo]
        for done in as_completed(waiting):
            outcome = done.result()
            outcomes.append(outcome)
            j = outcome.job
            yield len(outcomes), len(todo) + 1, f"{j.experiment}, {j.corruption}, {j.objective} ({j.setting})"
    outcomes.sort(key=lambda o: todo.index(o.job))
    provenance = {
        "atdm": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "workers": workers,
        "seed": seed,
        "scale": scale,
        "process": "linear, T = 1000",
        "seconds in all": time.perf_counter() - begin,
    }
    write(out, outcomes, provenance)
    yield len(todo) + 1, len(todo) + 1, "report"


def write(out: Path, outcomes: list[Outcome], provenance: dict[str, Any]) -> None:
    """The report page and the numbers."""
    rows = [r for o in outcomes for r in o.rows]
    with atomic(out / "summary.json") as scratch:
        scratch.write_text(json.dumps({"rows": rows, "provenance": provenance}, indent=1))
    lead = (
        "A diffusion model learns whatever its data hold, dirt included. Equivariant adversarial training adds one term: "
        "push the noisy state by delta, and the predicted noise must move by delta. Below, a plain DDPM and the robust "
        "objectives learn the same dirty data and are measured against the truth that was kept aside."
    )
    process = Process.linear()
    sections = [plane_section(outcomes, c) for c in ("outliers", "inlier noise")]
    sections += [digits_section(outcomes, e) for e in ("digits", "digits-subspace")]
    sections.append(cost_section(outcomes, process))
    sections.append(
        Section(
            "How far the state is pushed",
            "The published radius follows the noise schedule: large while the state is noise, small while content forms. "
            "The recommended setting pushes with one radius, but only at the low noise levels where the data's own "
            "directions are already decided and only the dirt is open, and only along the directions in which the "
            "prediction changes most.",
            [
                (
                    "The perturbation ray for several omega beside the DDPM ray sigma_t.",
                    plot.ray(process, [1.0, 2.0, 4.0]),
                )
            ],
        )
    )
    render("atdm demo: learning what dirty data mean", lead, sections, provenance, out / "report.html")


def cost_section(outcomes: list[Outcome], process: Process) -> Section:
    """What each objective costs: passes counted, the floor they imply, and seconds measured in this run."""
    cells = []
    for experiment in EXPERIMENTS:
        own = [o for o in outcomes if o.job.experiment == experiment]
        mean = {n: _mean([o.rows[0]["seconds"] for o in own if named(o) == n]) for n in dict.fromkeys(map(named, own))}
        for o in {named(o): o for o in own}.values():
            p = objective_of(o.job, process).passes()
            passes = [p["forwards"], p["backwards"], p["input_backwards"], p["floor_over_ddpm"]]
            cells.append([experiment, named(o), *passes, mean[named(o)] / mean["ddpm"]])
    columns = ["data", "objective", "forwards", "backwards", "input backwards", "floor", "measured"]
    caption = (
        "Per training step and sample. Floor and measured are relative to ddpm; a gate pushes only some timesteps."
    )
    text = (
        "A forward pass counts 1, a backward pass 2 and a backward pass to the input alone 1: their sum over ddpm's is the "
        "floor. What was measured can lie below it, since the optimizer and the averaging of a step cost the same for all, "
        "or above it, where a gate leaves too few rows to fill a pass. "
        "The trainings of this demonstration share the machine's cores, so read the measured ratios as rough."
    )
    return Section("What it costs", text, [], [Table(columns, cells, caption)])


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def named(o: Outcome, setting: str | None = None) -> str:
    """The label of an objective and setting in figures and tables."""
    setting = setting or o.job.setting
    return o.job.objective if setting == "published" else f"{o.job.objective} {setting}"


def plane_section(outcomes: list[Outcome], corruption: str) -> Section:
    """The plane under one corruption."""
    chosen = [o for o in outcomes if o.job.experiment == "plane" and o.job.corruption == corruption]
    chosen.sort(
        key=lambda o: (
            ["ddpm", "inv_adv", "robust_rand", "robust_adv"].index(o.job.objective)
            + 0.5 * (o.job.setting != "published")
        )
    )
    e = EXPERIMENTS["plane"]
    dataset = load(e.data, seed=chosen[0].job.seed)
    dirty, _ = corrupt(dataset.x, chosen[0].job.corrupt, chosen[0].job.seed)
    panels = {"training data": dirty} | {named(o, s): x for o in chosen for s, x in o.samples.items()}
    fields = {"truth": score_field(None, Process.linear(), dataset)} | {
        named(o): o.scores for o in chosen if o.scores is not None
    }
    rows = [r | {"label": named(o, r["setting"])} for o in chosen for r in o.rows]
    table = Table(
        ["objective", "off the plane (rms)", "spread in it", "sliced W2", "diverged", "training"],
        [
            [
                r["label"],
                r.get("off_support_rms"),
                r.get("spread"),
                r.get("sliced_wasserstein"),
                r["diverged_share"],
                r["seconds"],
            ]
            for r in rows
        ],
        "Distances to the true plane; the true spread is 0.577.",
        best={"off the plane (rms)": "lower", "sliced W2": "lower"},
        units={
            "off the plane (rms)": "data units",
            "spread in it": "data units",
            "sliced W2": "data units",
            "training": "s",
        },
    )
    text = (
        f"Points of a square patch of a plane in 3-D, with {chosen[0].job.corrupt}. A good model puts its samples on the plane "
        "(small distance) and covers the patch (spread 0.577). 'published' constants move a low-dimensional toy little, "
        f"because lambda_t c is at most 0.52 there; the recommended setting (gate {e.gate}, k = {e.k:g}, r = {e.radius:g}, l_2) "
        "is the same for both kinds of dirt. 'early stop' is the free rival: the plain DDPM, stopped at noise level "
        f"{e.stop} and denoised once."
    )
    figures = [
        (
            "Training data and samples, coloured by their distance from the true plane.",
            plot.points3d(panels, dataset.truth),
        ),
        (
            "Reverse trajectories of 60 samples.",
            plot.trajectories3d({named(o): o.paths for o in chosen if o.paths is not None}, dataset.truth),
        ),
        (
            "The score in the plane of one in-plane direction (across) and the normal (up), truth first.",
            plot.score_fields(fields),
        ),
        ("Distance from the plane.", plot.bars(rows, "off_support_rms", ("label",))),
    ]
    return Section(f"A plane with {corruption}", text, figures, [table])


def digits_section(outcomes: list[Outcome], experiment: str) -> Section:
    """Digits, raw or on a subspace."""
    chosen = [o for o in outcomes if o.job.experiment == experiment]
    chosen.sort(key=lambda o: (o.job.objective != "ddpm", o.job.setting != "published"))
    e = EXPERIMENTS[experiment]
    dataset = load(e.data, seed=chosen[0].job.seed)
    dirty, _ = corrupt(dataset.x, chosen[0].job.corrupt, chosen[0].job.seed)
    panels = {"clean": dataset.x[:36], "training data": dirty[:36]}
    panels |= {named(o, s): x[:36] for o in chosen for s, x in o.samples.items()}
    rows = [r | {"label": named(o, r["setting"])} for o in chosen for r in o.rows]
    linear = experiment == "digits-subspace"
    dirt = "off_support_rms" if linear else "never_varying_noise"
    table = Table(
        ["objective", "residual noise", "Frechet distance (pixels)", *(["spread"] if linear else []), "training"],
        [
            [r["label"], r.get(dirt), r["frechet_pixels"], *([r.get("spread")] if linear else []), r["seconds"]]
            for r in rows
        ],
        "Residual noise is measured "
        + ("off the subspace, per coordinate." if linear else "on the pixels that never vary in clean digits."),
        best={"residual noise": "lower", "Frechet distance (pixels)": "lower"},
        units={"training": "s"},
    )
    text = (
        (
            "Digits projected onto their first 16 principal directions, with noise in all 64 pixels: the exact error is the distance to the subspace. "
            if linear
            else "Real handwritten digits. "
        )
        + "Nine in ten training images carry Gaussian noise of standard deviation 0.2. The recommended setting here has "
        f"gate {e.gate}, k = {e.k:g}, r = {e.radius:g}: the gate lies near the noise that is to go."
    )
    figures = [
        ("Clean data, what training saw, and samples.", plot.image_grids(panels, columns=6)),
        ("Residual noise.", plot.bars(rows, dirt, ("label",))),
    ]
    return Section("Handwritten digits, linearized" if linear else "Handwritten digits", text, figures, [table])
