"""The demonstration: what it trains, what its rows and report say; and, by name, the order that the paper claims."""

from __future__ import annotations

import json
import math

import pytest
import torch

from atdm.experiments import demo, demo_report


def test_every_data_set_and_corruption_has_its_plain_ddpm():
    todo = demo.jobs([0, 1], 1.0, thorough=True)
    for job in todo:
        twin = [j for j in todo if (j.experiment, j.corruption, j.seed) == (job.experiment, job.corruption, job.seed)]
        assert [j.objective for j in twin].count("ddpm") == 1
    assert {j.seed for j in todo} == {0, 1}
    assert {(j.experiment, j.corruption) for j in todo} == set(demo_report.TITLES)
    costs = [job.cost for job in todo]
    assert costs == sorted(costs, reverse=True)


def test_one_setting_for_every_kind_of_dirt_on_the_plane():
    from atdm.diffusion.process import Process

    recommended = [j for j in demo.jobs([0], 1.0, True) if j.experiment == "plane" and j.setting == "recommended"]
    assert {j.corruption for j in recommended} == {"outliers", "noise", "clean"}
    assert len({str(demo.objective_of(j, Process.linear())) for j in recommended}) == 1


def test_cells_are_the_mean_and_the_standard_deviation_over_seeds():
    rows = [{"spread": 1.0}, {"spread": 3.0}, {"spread": None}]
    mean, spread = demo_report.over_seeds(rows, "spread")
    assert mean == 2
    assert spread == pytest.approx(math.sqrt(2))
    assert demo_report.over_seeds(rows[:1], "spread") == 1.0
    assert demo_report.over_seeds(rows, "other") is None


def test_a_short_demo_ends_with_numbers_and_a_report(tmp_path, monkeypatch):
    chosen = [j for j in demo.jobs([0], 0.01, False) if (j.experiment, j.corruption) == ("plane", "outliers")]
    monkeypatch.setattr(demo, "jobs", lambda seeds, scale, thorough: chosen)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    told = []
    demo.run(tmp_path / "demo", [0], 0.01, progress=lambda *step: told.append(step))
    done = [d for d, _, _ in told]
    assert done[0] == 0
    assert done == sorted(done)
    assert done[-1] == told[-1][1]
    summary = json.loads((tmp_path / "demo" / "summary.json").read_text())
    assert {r["setting"] for r in summary["rows"]} == {"published", "recommended", "early stop"}
    for row in summary["rows"]:
        assert row["checkpoint"]
        assert row["reference_hash"]
        assert row["off_support_rms"] > 0
    page = (tmp_path / "demo" / "report.html").read_text()
    assert "A plane with 10 % outliers" in page
    assert "http" not in page.replace("http://www.w3.org", "").split("</style>")[1].split("data:image")[0]


@pytest.mark.slow
def test_published_constants_order_the_objectives_on_the_plane_with_outliers():
    off = {}
    for objective in ("ddpm", "inv_adv", "robust_rand", "robust_adv"):
        off[objective] = demo.work(demo.Job("plane", "outliers", objective)).rows[0]["off_support_rms"]
    assert off["robust_adv"] < off["robust_rand"] <= off["ddpm"] < off["inv_adv"]
