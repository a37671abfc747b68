"""Score vector fields against the truth, their error over t, and how smooth the models are (figure 2b)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from .. import metrics, plot
from ..data import load
from ..diffusion.model import Model
from ..diffusion.process import Process
from ..pool import Tell, part
from ..report import Row
from . import by_scale, plane
from .runner.findings import Claim, Findings, Outcome, by_condition
from .runner.jobs import DDPM, RECOMMENDED, Job, grid, published, recommended, train
from .runner.rows import means, number, row, table_of
from .smoothness import Smoothness, as_model, below, smoothness

FIELD_T = 120  # sigma/alpha is about 0.4: the data's outline shows and the noise still matters
ERROR_T = (20, 50, 100, 150, 200, 300, 400, 600, 800, 999)
LATE = 0.5  # noise level below which the data's own directions are decided
LEAD = (
    "The published figure draws score vector fields beside the truth: ddpm's is bent by the corruption, that of robust_adv "
    "is smoother and closer to the truth. Here the truth is known in closed form, so the error is exact, and smoothness "
    "is measured along trajectories of the probability flow, for the truth as well."
)


def jobs(scale: str, seeds: Sequence[int], data: str | None) -> list[Job]:
    """ddpm and robust_adv on both kinds of corruption, and on clean data."""
    objectives = {"ddpm": DDPM, "robust_adv": published("robust_adv"), RECOMMENDED: recommended(**plane.GATED)}
    conditions = [plane.OUTLIERS] if scale == "smoke" else [plane.OUTLIERS, plane.NOISE, plane.CLEAN]
    options = {"n": by_scale(scale, 16, 256, 2048)}
    return grid(plane.base(scale).but(options=options), objectives, dict(conditions), seeds)


def work(job: Job, tell: Tell) -> Outcome:
    """Train, then measure the score and how smooth it is."""
    trained = train(job, part(tell, 0, 0.9))
    process, truth, device = trained.process, trained.dataset.truth, next(trained.net.parameters()).device

    def score(x: Tensor, t: Tensor) -> Tensor:
        x, t = x.to(device), t.to(device)
        return trained.model.score(x, t).cpu()

    n = job.options["n"]
    generator = torch.Generator().manual_seed(job.seed)
    errors = metrics.score_error(score, truth, process, ERROR_T, 16 * n, generator=generator).tolist()
    found = smoothness(trained.model, n, 100, job.seed)
    rows = [row(trained, None, _values(found, errors), sampler="ddim", steps=100, samples=n)]
    rows += [
        row(trained, None, {"t": t, "score_error": e}, samples=16 * n) for t, e in zip(ERROR_T, errors, strict=True)
    ]
    tensors: dict[str, Any] = {"field": field(score, truth), "gain": (found.levels, found.gain), "errors": errors}
    if job.label == "ddpm":
        ideal = smoothness(Model(as_model(truth, process), process, shape=(3,)), n, 100, job.seed)
        tensors["truth"] = (ideal.levels, ideal.gain)
        no_network = dict.fromkeys(("checkpoint", "weights", "objective", "training_steps", "net", "seconds"))
        of_truth = row(trained, None, _values(ideal, [0.0]), sampler="ddim", steps=100, samples=n, **no_network)
        rows.append(of_truth | {"method": "truth"})
    return Outcome(job, rows, tensors)


def _values(found: Smoothness, errors: Sequence[float]) -> Row:
    return {
        "mean_score_error": sum(errors) / len(errors),
        "jacobian_gain_late": below(found.gain, found.levels, LATE),
        "jacobian_gain": sum(found.gain) / len(found.gain),
        "lyapunov": found.lyapunov,
        "turning": found.turning,
    }


def field(score: Callable[[Tensor, Tensor], Tensor], truth: Any) -> tuple[Tensor, Tensor]:
    """Points of the plane through an in-plane direction and the normal, and there the score within it."""
    line = torch.linspace(-1.5, 1.5, 17)
    u, w = torch.meshgrid(line, line, indexing="ij")
    local, axes = torch.stack([u.flatten(), w.flatten()], 1), truth.axes[[0, 2]]
    with torch.no_grad():
        found = score(local @ axes, torch.full((len(local),), FIELD_T))
    return local, found @ axes.T


def findings(scale: str, outcomes: Sequence[Outcome]) -> Findings:
    """Fields, errors over t, Jacobians along trajectories."""
    rows = [r for o in outcomes for r in o.rows]
    process, truth = Process.linear(), load(outcomes[0].job.config.data).truth
    ideal = field(lambda x, t: truth.score(x, process.alphas[FIELD_T].item(), process.sigmas[FIELD_T].item()), truth)
    summaries, levels = [r for r in rows if "lyapunov" in r], process.ratio(torch.tensor(ERROR_T)).tolist()
    claims: list[Claim] = []
    figures, notes = {}, []
    for condition, chosen in by_condition(outcomes):
        short = plane.short(condition)
        figures[f"field-{short}"] = (
            f"{condition}: scores at t = {FIELD_T} in the plane of an in-plane direction (across) and the normal (up).",
            plot.score_fields({"truth": ideal} | {o.job.label: o.tensors["field"] for o in chosen}),
        )
        errors = {o.job.label: (levels, o.tensors["errors"]) for o in chosen}
        figures[f"error-{short}"] = (
            f"{condition}: relative error of the score where the clean data's states are.",
            plot.curves(errors, "noise level sigma/alpha", "relative error of the score", "xy"),
        )
        gains = {"truth": next(o.tensors["truth"] for o in chosen if "truth" in o.tensors)}
        gains |= {o.job.label: o.tensors["gain"] for o in chosen}
        figures[f"jacobian-{short}"] = (
            f"{condition}: how far the predicted noise moves for a unit of noise (spectral norm), along DDIM trajectories.",
            plot.curves(gains, "noise level sigma/alpha", "gain of the prediction", "x"),
        )
        of = means(summaries, condition=condition)
        claims += _claims(of, condition)
        notes.append(
            f"{condition}: the truth itself has Lyapunov exponent {number(of('truth', 'lyapunov'))}, turning "
            f"{number(of('truth', 'turning'))} and late gain {number(of('truth', 'jacobian_gain_late'))}."
        )
    columns = {
        "score error, mean over t": "mean_score_error",
        "Lyapunov": "lyapunov",
        "turning (rad)": "turning",
        "gain, all t": "jacobian_gain",
        f"gain, late (< {LATE:g})": "jacobian_gain_late",
    }
    table = table_of(
        summaries,
        {"corruption": "condition", "objective": "method"},
        columns,
        "Along 100 DDIM steps. Lyapunov: log of the largest stretching of the flow. Gain: spectral norm of sigma_t d eps/d x.",
    )
    return Findings(LEAD, claims, rows, figures, [table], notes)


def _claims(of: Callable[[str, str], float], condition: str) -> Iterator[Claim]:
    """Whose score and gain are closer to the truth's, and which model is the smoother one."""
    plain = of("ddpm", "mean_score_error")
    true_gain = of("truth", "jacobian_gain_late")
    for method in ("robust_adv", RECOMMENDED):
        if condition != "clean":
            yield Claim(
                f"{condition}: the score of {method} is closer to the truth than ddpm's",
                of(method, "mean_score_error") < plain,
                f"relative error, mean over t: {number(of(method, 'mean_score_error'))}, ddpm {number(plain)}",
            )
            gain = of(method, "jacobian_gain_late")
            yield Claim(
                f"{condition}: the late gain of {method} is closer to the truth's than ddpm's is",
                abs(gain - true_gain) < abs(of("ddpm", "jacobian_gain_late") - true_gain),
                f"{number(gain)}, ddpm {number(of('ddpm', 'jacobian_gain_late'))}, truth {number(true_gain)}",
            )
        measures = ("lyapunov", "turning", "jacobian_gain_late")
        smoother = [key for key in measures if of(method, key) < of("ddpm", key)]
        yield Claim(
            f"{condition}: {method} is the smoother model",
            len(smoother) == len(measures),
            f"Lyapunov exponent {number(of(method, 'lyapunov'))}, ddpm {number(of('ddpm', 'lyapunov'))}; turning "
            f"{number(of(method, 'turning'))}, ddpm {number(of('ddpm', 'turning'))}; gain below noise level {LATE:g} "
            f"{number(of(method, 'jacobian_gain_late'))}, ddpm {number(of('ddpm', 'jacobian_gain_late'))}",
        )
