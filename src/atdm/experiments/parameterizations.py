"""One objective, whatever the network predicts: the plane with noise, for every prediction and process."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from .. import plot
from ..diffusion.process import PROCESSES
from ..diffusion.schedulers import default_sampler
from ..pool import Tell, part
from ..spec import build
from . import by_scale, plane
from .runner.findings import Claim, Findings, Outcome, at_most
from .runner.jobs import DDPM, RECOMMENDED, Job, grids, recommended, samples_of, train
from .runner.rows import evaluate, means, number, row, table_of, values_of

WRITTEN = {
    "noise (epsilon)": "linear",
    "image (sample)": "linear:prediction=sample",
    "v": "linear:prediction=v_prediction",
    "score": "linear:prediction=score",
    "rectified flow": "flow",
    "EDM": "edm:sigma_data=0.58",
}
CONDITIONS = [plane.NOISE, plane.CLEAN]


def jobs(scale: str, seeds: Sequence[int], data: str | None) -> list[Job]:
    """ddpm and the recommended regularizer with the same constants for every way to write the network."""
    base, objectives = plane.base(scale), {"ddpm": DDPM, RECOMMENDED: recommended(**plane.GATED)}
    plans = []
    for condition, corruption in by_scale(scale, CONDITIONS[:1], CONDITIONS, CONDITIONS):
        for name in by_scale(scale, ["v", "rectified flow"], [*WRITTEN], [*WRITTEN]):
            sampler = default_sampler(build("process", WRITTEN[name], PROCESSES), base.sampling.sampler)
            sampling = dataclasses.replace(base.sampling, sampler=sampler)
            job = base.but(process=WRITTEN[name], sampling=sampling, options={"written": name})
            plans.append((job, objectives, {condition: corruption}))
    return grids(plans, seeds)


def work(job: Job, tell: Tell) -> Outcome:
    """Train, sample, measure."""
    trained = train(job, part(tell, 0, 0.8))
    samples = samples_of(trained, part(tell, 0.8, 1))
    values = evaluate(trained, samples) | {"written": job.options["written"], "process": job.config.process}
    return Outcome(job, [row(trained, samples, values)])


def findings(scale: str, outcomes: Sequence[Outcome]) -> Findings:
    """Off the plane and spread in it, by what the network predicts."""
    rows = [r for o in outcomes for r in o.rows]
    claims, figures = [], {}
    (plain, regularized), names = values_of(rows, "method"), values_of(rows, "written")
    for condition in values_of(rows, "condition"):
        of = {w: means(rows, "off_support_rms", condition=condition, written=w) for w in names}
        ratios = {w: of[w](regularized) / of[w](plain) for w in names}
        for w in names if condition != plane.CLEAN[0] else ():
            statement = f"{condition}, {w}: at most 0.6 times plain training's distance off the plane"
            claims.append(at_most(statement, of[w](regularized), of[w](plain), 0.6, (regularized, "plain")))
        statement = (
            f"{condition}: the same constants mean the same in every parameterization (ratios within a factor of two)"
        )
        measured = ", ".join(f"{w} {number(r)}" for w, r in ratios.items()) + " times plain"
        claims.append(Claim(statement, max(ratios.values()) <= 2 * min(ratios.values()), measured))
        turns = {plain: "plain", regularized: "regularized"}
        points = [(turn, w, of[w](m), of[w](m, "spread")) for w in names for m, turn in turns.items()]
        figures[f"off-plane-{plane.short(condition)}"] = (
            f"{condition}: distance off the plane and spread in it (truth 0.577), by what the network predicts, from plain training to the regularizer.",
            plot.scatter_tradeoff(points, "off the plane (rms)", "spread in the plane"),
        )
    table = table_of(
        rows,
        {"training data": "condition", "network predicts": "written", "objective": "method"},
        {"off the plane": "off_support_rms", "spread": "spread", "sliced W2": "sliced_wasserstein"},
        f"The regularizer has gate {plane.GATED['gate']:g}, k {plane.GATED['k']:g}, r {plane.GATED['r']:g} everywhere. ddpm stands for plain "
        "training. Sampler: ddpm, and euler for rectified flow and EDM.",
    )
    lead = (
        "No published counterpart: the paper trains networks that predict noise. The rule is the same for all (equivariance of "
        "eps is invariance of the denoised image), and the perturbation is measured in eps units, so that gate, k and r need not be "
        "chosen anew."
    )
    return Findings(lead, claims, rows, figures, [table])
