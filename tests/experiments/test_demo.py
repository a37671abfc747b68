"""The demonstration: what it trains, what its report says; and, by name, the order that the paper claims."""

from __future__ import annotations

import json

import pytest
import torch

from atdm.cli import main
from atdm.experiments import demo, entry, module_of
from atdm.experiments.runner.jobs import AUTO


@pytest.mark.parametrize("thorough", [False, True])
def test_every_data_set_and_corruption_has_its_plain_ddpm_the_published_method_and_auto(thorough):
    todo = [job for job in demo.jobs("cpu", [0, 1], None, thorough) if not isinstance(job, demo.Cost)]
    assert {job.seed for job in todo} == {0, 1}
    places = {(job.options["set"], job.condition, job.seed) for job in todo}
    for place in places:
        labels = [job.label for job in todo if (job.options["set"], job.condition, job.seed) == place]
        assert {"ddpm", "robust_adv", AUTO} <= set(labels)
        assert len(set(labels)) == len(labels)
    shown = {(name, condition) for name in (demo.PLANE, demo.DIGITS) for condition in ("noise on 90 %", "clean")}
    more = {(demo.PLANE, "10 % outliers"), *((demo.SUBSPACE, condition) for condition in demo.CONDITIONS)}
    assert {place[:2] for place in places} == (shown | more if thorough else shown)
    costs = [job.cost for job in todo]
    assert costs == sorted(costs, reverse=True)


def test_it_has_a_name_of_its_own_beside_the_published_results():
    assert module_of("demo") is demo
    assert "toys and digits" in entry("demo").summary


def test_a_quick_demo_ends_with_numbers_and_a_report(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    with pytest.raises(SystemExit) as end:
        main(["demo", "--quick", "--out", str(tmp_path / "demo")])
    assert end.value.code == 0
    assert "The report is" in capsys.readouterr().out
    numbers = json.loads((tmp_path / "demo" / "numbers.json").read_text())
    assert {r["method"] for r in numbers["rows"]} == {"ddpm", demo.EARLY, "robust_adv", AUTO}
    for row in numbers["rows"]:
        assert row["checkpoint"]
        assert row["reference_hash"]
        assert row[demo.KEYS[row["set"]]] > 0
        assert (row["stop_ratio"] is not None) == (row["method"] == demo.EARLY)
    captions = [table["columns"] for table in numbers["tables"]]
    assert ["objective", "counted", "measured", "rounds"] in captions
    page = (tmp_path / "demo" / "report.html").read_text()
    for title in ("A plane, noise on 90 %", "Handwritten digits, clean", "What a training step costs"):
        assert f">{title}</a>" in page
    assert "http" not in page.replace("http://www.w3.org", "").split("</style>")[1].split("data:image")[0]


@pytest.mark.slow
def test_published_constants_order_the_objectives_on_the_plane_with_outliers():
    todo = demo.jobs("cpu", [0], None, thorough=True)
    off = {}
    for job in (j for j in todo if (j.condition, j.options.get("set")) == ("10 % outliers", demo.PLANE)):
        off[job.label] = demo.work(job, lambda share: None).rows[0]["off_support_rms"]
    assert off["robust_adv"] < off["robust_rand"] <= off["ddpm"] < off["inv_adv"]
