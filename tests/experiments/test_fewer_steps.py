"""Fewer steps: what each protocol does, and when numbers show the published pattern."""

import pytest
import torch

from atdm.diffusion.sampling import open_solver
from atdm.experiments import fewer_steps
from atdm.experiments.fewer_steps import PROTOCOLS, findings, jobs, sampling_of
from atdm.experiments.runner.findings import Outcome
from helpers import LINEAR, seeded


@pytest.mark.parametrize("count", [1000, 500, 300])
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_every_protocol_makes_so_many_evaluations(protocol, count):
    if protocol == "respaced, ddim" and count == 300:
        count = 250  # ddim strides evenly
    solver = open_solver(lambda x, t: x, LINEAR, (1, 1), sampling_of(protocol, count, LINEAR), generator=seeded())
    assert len(solver.visits) == count
    assert solver.visits[0] == (count - 1 if protocol == "begun late" else 999)


def rows(distances):
    """Of one job each: the distance at 1000 and 300 steps by protocol."""
    found = []
    for job in (j for j in jobs("cpu", [0], None) if j.options["set"] == "digits" and j.condition == "clean"):
        rows = []
        for protocol in PROTOCOLS:
            for count in (1000, 300) if protocol.startswith("respaced") else (300,):
                value = distances.get((job.label, protocol, count), 1.0)
                about = {"set": "digits", "condition": "clean", "method": job.label, "protocol": protocol, "seed": 0}
                rows.append({**about, "evaluations": count, "frechet_Small": value, "samples": 400})
        found.append(Outcome(job, rows))
    return found


def test_the_pattern_is_a_cliff_of_ddpm_that_robust_adv_is_spared(monkeypatch):
    monkeypatch.setattr(fewer_steps, "power_law", lambda dimensions: torch.tensor([0.5, 0.1]))
    cliff = {("ddpm", "begun late", 300): 9.0, ("robust_adv", "begun late", 300): 2.0}
    cliff |= {("ddpm", "not respaced", 300): 9.0, ("robust_adv", "not respaced", 300): 10.0}
    found = findings("cpu", rows(cliff))
    holds = {c.statement.split(", frechet")[0]: c.holds for c in found.claims}
    assert holds == {
        "digits, respaced": False,
        "digits, respaced, ddim": False,
        "digits, begun late": True,
        "digits, not respaced": False,  # a cliff, and robust_adv falls further
    }
    assert "is shown by**: digits, begun late" in found.notes[0]
    assert "None of the protocols" in findings("cpu", rows({})).notes[0]


def test_on_a_folder_of_images_cifar_10_joins(tmp_path):
    (tmp_path / "cifar10").mkdir()
    sets = [job.options["set"] for job in jobs("cpu", [0], str(tmp_path))]
    assert {name: sets.count(name) for name in sets} == {"plane": 6, "digits": 6, fewer_steps.CIFAR: 3}
    third = [job for job in jobs("cpu", [0], str(tmp_path)) if job.options["set"] == fewer_steps.CIFAR]
    assert len({job.config.out for job in third}) == 3
    assert {job.config.corrupt for job in third} == {"none"}
