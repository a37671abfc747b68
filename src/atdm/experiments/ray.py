"""The perturbation ray for several omega beside the DDPM ray (figure 2c): no network, only the formulas."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch

from .. import plot, report
from ..diffusion.process import PROCESSES, Process
from ..objective.perturb import PublishedRadius, PublishedWeight
from ..pool import Tell
from ..report import Row
from .runner.findings import Claim, Findings, Outcome
from .runner.jobs import Job
from .runner.rows import number

OMEGAS = (0.5, 1.0, 2.0, 4.0)
AT = (0, 50, 100, 200, 300, 400, 500, 600, 700, 800, 900, 999)
CONTENT = 0.5  # below this noise level, in images of std 0.5, the content forms


def jobs(scale: str, seeds: Sequence[int], data: str | None) -> list[Job]:
    """Nothing is trained."""
    return []


def work(job: Job, tell: Tell) -> Outcome:
    """Nothing is trained."""
    return Outcome(job, [])


def findings(scale: str, outcomes: Sequence[Outcome]) -> Findings:
    """The ray, the radius and the weight of both schedules."""
    rows = [r for name, make in PROCESSES.items() for omega in OMEGAS for r in rays(name, make(), omega)]
    linear = {o: [r for r in rows if r["process"] == "linear" and r["omega"] == o] for o in OMEGAS}
    largest = {o: max(r["reach_over_ddpm"] for r in of) for o, of in linear.items()}
    content = Process.linear().timestep_at(CONTENT)
    forming = {o: rays("linear", Process.linear(), o, [content])[0] for o in OMEGAS}
    ordered = all(
        a["reach"] >= b["reach"]
        for before, after in itertools.pairwise(linear.values())
        for a, b in zip(before, after, strict=True)
    )
    two = forming[2.0]
    claims = [
        Claim(
            "a larger omega bends the ray down, and never reaches further at any timestep",
            ordered,
            ", ".join(f"omega {o:g}: reach {number(forming[o]['reach'])} at t = {content}" for o in OMEGAS),
        ),
        Claim(
            "all rays meet the DDPM ray where the state is noise",
            all(abs(v - 1) < 0.1 for v in largest.values()),
            f"at most {number(max(largest.values()))} times sigma_t",
        ),
        Claim(
            "at the published omega = 2 the perturbation is a small part of the noise while content forms",
            two["reach_over_ddpm"] < 0.5,
            f"at t = {content}, where sigma_t/alpha_t is {CONTENT:g}, it reaches {number(two['reach_over_ddpm'])} "
            f"times sigma_t, with lambda_t = {number(two['weight'])}",
        ),
    ]
    ends = [r["shrinkage"] for r in linear[2.0]]
    notes = [
        f"With lambda = {PublishedWeight().lam:g} and beta = 1, lambda_t c of a corner perturbation is {number(ends[-1])} at the noisy "
        f"end, {number(two['shrinkage'])} at t = {content}, and {number(ends[0])} at t = 0, where the bias is larger than "
        "r(t) and the weight does not know of it; for smaller beta the weight grows as 1/beta. For Gaussian data the perturbation "
        "divides variance by 1 + lambda_t c."
    ]
    keys = ["t", "sigma", "reach", "reach_over_ddpm", "radius", "weight", "shrinkage"]
    table = report.Table(
        ["omega", *keys],
        [[omega, *(r[k] for k in keys)] for omega, of in linear.items() for r in of],
        "Linear schedule, beta = 1. Reach in state units, radius in noise units, shrinkage is lambda_t c of a corner perturbation.",
    )
    lead = (
        "The perturbation moves the state by sigma_t r(t), with r(t) = beta sigma_t^omega + 8/255. The published figure draws this "
        "perturbation ray beside the DDPM ray sigma_t: omega bends it, so that the perturbation is large while the state is noise "
        "and small while content forms."
    )
    figures = {
        f"ray-{name}": (f"Reach, radius and weight beside the DDPM ray, {name} schedule.", plot.ray(make(), OMEGAS))
        for name, make in PROCESSES.items()
    }
    return Findings(lead, claims, rows, figures, [table], notes)


def rays(name: str, process: Process, omega: float, at: Sequence[int] = AT) -> list[Row]:
    """The ray at the timesteps ``at``."""
    t = torch.tensor([*at])
    reach, sigma = PublishedRadius(omega, beta="one").reach(process, t, torch.ones(len(t))), process.sigma(t)
    r, weight = reach.r, PublishedWeight()(reach, reach.r[:, None])
    return [
        {
            "process": name,
            "omega": omega,
            "t": step,
            "sigma": sigma[i].item(),
            "radius": r[i].item(),
            "reach": (sigma * r)[i].item(),
            "reach_over_ddpm": r[i].item(),
            "weight": weight[i].item(),
            "shrinkage": (weight * r.square())[i].item(),
        }
        for i, step in enumerate(at)
    ]
