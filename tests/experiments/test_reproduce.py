"""Reproductions: everything runs at scale smoke and says how it was made; closed forms for what is new in them."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from PIL import Image

from atdm import pool
from atdm.cli import main
from atdm.data import load
from atdm.diffusion.model import Model
from atdm.diffusion.process import Process
from atdm.errors import UserError
from atdm.experiments import EXPERIMENTS, attacks, folder_of, module_of
from atdm.experiments.runner import reproduce, stored
from atdm.experiments.runner.findings import Claim, Findings, Outcome, at_most
from atdm.experiments.runner.jobs import RECOMMENDED, Job, recommended
from atdm.experiments.runner.page import index, page_of, write_pages
from atdm.experiments.runner.rows import cell, mean_over_seeds, table_of
from atdm.files import save_tensors
from atdm.metrics import Provenance
from atdm.pool import part
from helpers import atdm

PROVENANCE = {*Provenance(1, "", "").as_dict(), "corrupt", "objective", "training_steps"}


# --- everything, once -------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def smoke(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("reproduce")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(out)  # the runs of images go there, and none is there already
        patch.setattr(torch, "get_num_threads", lambda: 1)
        patch.setattr("atdm.plot.base.DPI", 60)  # small pictures, soon drawn
        with pytest.raises(SystemExit) as end:
            main(["reproduce", "all", "--scale", "smoke", "--out", str(out), "--pages", str(out / "pages"), "--json"])
    assert end.value.code == 0
    assert sorted(f.name for f in out.iterdir() if (f / "report.html").is_file()) == sorted(EXPERIMENTS)
    return out


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_smoke_writes_figures_numbers_a_paragraph_and_a_report(smoke, name):
    folder = smoke / name
    numbers = json.loads((folder / "numbers.json").read_text())
    assert numbers["rows"]
    assert numbers["claims"]
    assert numbers["provenance"]["scale"] == "smoke"
    assert numbers["figures"]
    for title in numbers["figures"]:
        with Image.open(folder / f"{title}.png") as image:
            assert min(image.size) > 100
        assert "<svg" in (folder / f"{title}.svg").read_text()
    page = (folder / "report.html").read_text()
    assert page.count("data:image/png;base64,") == len(numbers["figures"])
    assert "http" not in page.replace("http://www.w3.org", "").split("</style>")[1].split("data:image")[0]


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_what_every_training_found_is_kept_and_gives_the_same_findings(smoke, name):
    module, numbers = module_of(name), json.loads((smoke / name / "numbers.json").read_text())
    todo = module.jobs("smoke", [0], None)
    assert stored.kept(smoke / name / "jobs", todo) == len(todo)
    outcomes = [stored.read(stored.path_of(smoke / name / "jobs", job), job) for job in todo]
    if outcomes:
        found = module.findings("smoke", outcomes)
        assert [*found.figures] == [*numbers["figures"]]
        assert [vars(claim) for claim in found.claims] == numbers["claims"]


@pytest.mark.parametrize("name", [name for name in EXPERIMENTS if name not in ("ray", "audit")])
def test_every_row_says_how_it_was_made(smoke, name):
    rows = json.loads((smoke / name / "numbers.json").read_text())["rows"]
    for row in rows:
        assert set(row) >= PROVENANCE
    hashes = {(r["method"], r["condition"]): r["checkpoint"] for r in rows if r["checkpoint"]}
    assert len(hashes) >= 2
    assert all(re.fullmatch("[0-9a-f]{16}", h) for h in hashes.values())


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_the_paragraph_says_what_the_claims_say(smoke, name):
    numbers = json.loads((smoke / name / "numbers.json").read_text())
    text = (smoke / name / "paragraph.md").read_text()
    assert "the comparison below means nothing" in text
    agrees, _, denies = text.partition("**Does not agree:**")
    for claim in numbers["claims"]:
        assert f"- {claim['statement']} ({claim['measured']})." in (agrees if claim["holds"] else denies)


def test_every_experiment_has_a_page_with_small_pictures_and_its_json(smoke):
    index = (smoke / "pages" / "README.md").read_text()
    for name in EXPERIMENTS:
        page = (smoke / "pages" / f"{name}.md").read_text()
        record = json.loads((smoke / "pages" / f"{name}.json").read_text())
        assert f"# {name}\n" in page
        assert page == page_of(name, record)
        assert record["claims"] == json.loads((smoke / name / "numbers.json").read_text())["claims"]
        assert f"]({name}.md) | {EXPERIMENTS[name].summary} |" in index
        pictures = re.findall(r"\]\((images/[^)]+)\)", page)
        assert pictures
        for picture in pictures:
            assert os.path.getsize(smoke / "pages" / picture) < 150_000


@pytest.mark.parametrize(
    ("data", "seeds", "words"),
    [
        (None, [0], "--scale cpu"),
        ("plane", [0, 1, 2], "--scale cpu --data plane --seeds 0,1,2"),
        ("/home/me/photos", [4], "--scale cpu --data DATA --seed 4"),
        ("subspace:/home/me/photos", [0], "--scale cpu --data subspace:DATA"),
    ],
)
def test_the_page_tells_the_command_but_no_place_on_the_machine(tmp_path, data, seeds, words):
    place = folder_of("baselines", data)
    (tmp_path / place).mkdir()
    made = {"scale": "cpu", "seeds": seeds, "data": data, "jobs": 5, "cpu seconds of all jobs": 7.0}
    made |= {"experiment": "baselines", "device": "cpu", "atdm": "0", "torch": "2"}
    numbers = {"figures": {}, "tables": [], "claims": [], "provenance": made}
    (tmp_path / place / "numbers.json").write_text(json.dumps(numbers))
    (tmp_path / place / "paragraph.md").write_text("What was found.")
    assert write_pages(tmp_path, tmp_path / "pages") == [place]
    page = (tmp_path / "pages" / f"{place}.md").read_text()
    assert f"\natdm reproduce baselines {words} --pages results\n" in page
    assert "5 trainings in 7 seconds" in page
    for file in (tmp_path / "pages").iterdir():
        assert "/home" not in file.read_text()


@pytest.mark.parametrize(
    ("data", "folder"),
    [
        (None, "baselines"),
        ("plane", "baselines-plane"),
        ("/home/me/my photos/", "baselines-my-photos"),
        ("subspace:../butterflies", "baselines-subspace-butterflies"),
        ("photos/*.parquet", "baselines-photos"),
        ("torchvision:name=CIFAR10,root=data", "baselines-torchvision-CIFAR10"),
        ("..", "baselines-data"),
    ],
)
def test_results_of_other_data_have_a_folder_of_their_own(data, folder):
    assert folder_of("baselines", data) == folder


def test_the_published_data_of_an_experiment_are_named_once():
    assert folder_of("butterflies", "data/butterflies") == folder_of("butterflies", None) == "butterflies"


def numbers_of(name="baselines"):
    made = {"experiment": name, "scale": "cpu", "seeds": [0], "data": None, "jobs": 1, "cpu seconds of all jobs": 1.0}
    made |= {"device": "cpu", "atdm": "0", "torch": "2"}
    table = {"columns": ["a", "b"], "rows": [["x", [1.0, 0.1]], [None, 3]], "caption": "c"}
    claim = {"statement": "s", "holds": True, "measured": "m"}
    return {"figures": {}, "tables": [table], "claims": [claim], "provenance": made}


def changed(path, value):
    """The numbers with another ``value`` at a path of keys."""
    numbers = numbers_of()
    place = numbers
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return json.dumps(numbers).encode()


DAMAGES = {
    "empty": b"",
    "half": json.dumps(numbers_of()).encode()[:99],
    "no UTF-8": b"\xff\xfe" + json.dumps(numbers_of()).encode(),
    "list": b"[1]",
    "no keys": b"{}",
    "deep": b"[" * 100_000,
    "provenance": changed(["provenance"], {}),
    "experiment": changed(["provenance", "experiment"], 3),
    "seconds": changed(["provenance", "cpu seconds of all jobs"], "7"),
    "no seeds": changed(["provenance", "seeds"], []),
    "seeds": changed(["provenance", "seeds"], ["0"]),
    "figures": changed(["figures"], {"a": 1}),
    "claims": changed(["claims"], [3]),
    "claim": changed(["claims", 0, "holds"], "yes"),
    "tables": changed(["tables"], [None]),
    "columns": changed(["tables", 0, "columns"], 2),
    "rows": changed(["tables", 0, "rows"], [3]),
    "row": changed(["tables", 0, "rows", 0], ["x"]),
    "cell": changed(["tables", 0, "rows", 0, 1], {"a": 1}),
    "pair": changed(["tables", 0, "rows", 0, 1], ["a", "b"]),
    "three": changed(["tables", 0, "rows", 0, 1], [1, 2, 3]),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_numbers_are_one_sentence_and_write_nothing(tmp_path, capsys, damage):
    place = tmp_path / "out" / "baselines"
    place.mkdir(parents=True)
    (place / "paragraph.md").write_text("What was found.")
    (place / "numbers.json").write_bytes(DAMAGES[damage])
    code, _, err = atdm(capsys, "reproduce", "--out", f"{tmp_path}/out", "--pages", f"{tmp_path}/pages")
    assert code == 2
    assert err.startswith(f"atdm: Cannot read {place / 'numbers.json'}: ")
    assert err.count("\n") == 1
    assert len(err) < 600
    assert not (tmp_path / "pages").exists()


@pytest.mark.parametrize("file", ["paragraph.md", "pages/old.json", "pages/baselines.json"])
def test_other_damaged_text_beside_results(tmp_path, capsys, file):
    """Of a page that is written anew the old JSON does not matter."""
    place = tmp_path / "baselines"
    (tmp_path / "pages").mkdir()
    place.mkdir()
    (place / "numbers.json").write_text(json.dumps(numbers_of()))
    (place / "paragraph.md").write_text("What was found.")
    damaged = (tmp_path if "/" in file else place) / file
    damaged.write_bytes(b"\xff\xfe{")
    code, _, err = atdm(capsys, "reproduce", "--out", str(tmp_path), "--pages", f"{tmp_path}/pages")
    if file == "pages/baselines.json":
        assert code == 0, err
        assert "| [baselines](baselines.md) |" in (tmp_path / "pages" / "README.md").read_text()
    else:
        assert (code, err.count("\n")) == (2, 1)
        assert err.startswith(f"atdm: Cannot read {damaged}: it is not text in UTF-8")


def test_pages_of_experiments_of_another_version_come_last():
    record = {"summary": "s", "command": "c", "claims": []}
    records = {name: {**record, "experiment": name, "heading": name} for name in ("gone", "baselines")}
    assert re.findall(r"\((\w+)\.md\) \|", index(records)) == ["baselines", "gone"]


def test_a_damaged_outcome_is_measured_again(tmp_path):
    """Whatever its JSON is."""
    path = tmp_path / "kept.safetensors"
    for header in (
        {"rows": "[1", "found": "{}"},
        {"rows": "[]"},
        {"rows": "[" * 100_000, "found": "{}", "seconds": "1"},
    ):
        save_tensors({"x": torch.zeros(2)}, path, header)
        assert stored.read(path, None) is None
    for found in ('{"tensor": "9"}', "3", "[]", '{"items": 3}', '{"items": [[[], 1]]}'):
        save_tensors({"x": torch.zeros(2)}, path, {"rows": "[]", "found": found, "seconds": "1.0"})
        assert stored.read(path, None) is None, found


def test_the_index_shows_every_result_in_the_order_of_the_experiments_and_keeps_other_pages(tmp_path):
    def result(folder, name, data, agree):
        made = {
            "experiment": name,
            "scale": "cpu",
            "seeds": [0],
            "data": data,
            "jobs": 1,
            "cpu seconds of all jobs": 1.0,
        }
        made |= {"device": "cpu", "atdm": "0", "torch": "2"}
        claims = [{"statement": "s", "holds": holds, "measured": "m"} for holds in agree]
        place = folder / folder_of(name, data)
        place.mkdir(parents=True)
        numbers = {"figures": {}, "tables": [], "claims": claims, "provenance": made}
        (place / "numbers.json").write_text(json.dumps(numbers))
        (place / "paragraph.md").write_text("What was found.")

    pages = tmp_path / "pages"
    result(tmp_path / "one", "baselines", "plane", [True, False, True])
    result(tmp_path / "one", "baselines", None, [])
    assert write_pages(tmp_path / "one", pages) == ["baselines", "baselines-plane"]
    first = (pages / "baselines.md").read_text()
    result(tmp_path / "two", "ray", None, [True])
    assert write_pages(tmp_path / "two", pages) == ["ray"]
    assert (pages / "baselines.md").read_text() == first
    shown = re.findall(
        r"^\| \[(.*?)\]\((.*?)\) \| .* \| (.*?) \| `.*` \|$", (pages / "README.md").read_text(), re.MULTILINE
    )
    expected = [
        ("ray", "ray.md", "1 of 1"),
        ("baselines", "baselines.md", "0 of 0"),
        ("baselines, plane", "baselines-plane.md", "2 of 3"),
    ]
    assert shown == expected


@pytest.mark.parametrize("name", EXPERIMENTS)
@pytest.mark.parametrize("scale", ["cpu", "paper"])
def test_larger_scales_compare_ddpm_with_the_rest_under_the_same_corruption(name, scale):
    todo = module_of(name).jobs(scale, [0, 1], None)
    if name in ("ray", "audit"):  # train nothing
        return

    def alike(job):
        return job.condition, job.seed, job.config.data, job.config.process, job.config.image_size

    for job in todo:
        same = [j for j in todo if alike(j) == alike(job)]
        assert [j.label for j in same].count("ddpm") == 1
        assert len({j.label for j in same}) == len(same)
        # One of the methods of "trusted" learns from the trusted items alone.
        assert {j.config.corrupt for j in same} <= {job.config.corrupt, *(["none"] if name == "trusted" else [])} or (
            name == "trusted" and job.config.corrupt == "none"
        )


# --- what a user can get wrong ----------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["trajectorys"], "Did you mean 'trajectories'"),
        (["ray", "--scale", "gpu"], "Valid: cpu, paper, smoke"),
        (["ray", "--seeds", "x"], "Expected integers"),
        (["trajectories", "--data", "digits"], "Expected no --data, or one of readings, butterflies"),
        (["--pages", "pages", "--out", "nothing"], "holds no results"),
    ],
)
def test_mistakes_are_told(words, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        main(["reproduce", *words])
    assert end.value.code == 2
    assert said in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_without_a_name_the_experiments_are_listed(capsys):
    with pytest.raises(SystemExit):
        main(["reproduce"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [*EXPERIMENTS]


# --- closed forms -----------------------------------------------------------------------------------------------------
def gaussian_eps(process: Process, variances):
    """The ideal network for Gaussian data of these variances: ``sigma x / (alpha^2 s^2 + sigma^2)``."""
    s2 = torch.tensor(variances)

    def eps(x, t):
        a, s = process.alpha(t, x), process.sigma(t, x)
        return s * x / (a**2 * s2 + s**2)

    return eps


def test_smoothness_of_a_gaussian_is_its_closed_form():
    from atdm.experiments.smoothness import smoothness

    process, variances = Process.linear(), (0.25, 0.01)
    found = smoothness(Model(gaussian_eps(process, variances), process, shape=(2,)), n=32, steps=200)
    t = torch.arange(999, -1, -5)
    a, s = process.alpha(t).double(), process.sigma(t).double()
    assert found.gain == pytest.approx((s**2 / (a**2 * 0.01 + s**2)).tolist(), rel=1e-4)  # the narrower direction
    # One step scales a direction by alpha'/alpha (1 - sigma g) + sigma' g, g = sigma/(alpha^2 s^2 + sigma^2).
    a_next, s_next = torch.cat([a[1:], torch.ones(1)]), torch.cat([s[1:], torch.zeros(1)])
    g = s / (a**2 * 0.25 + s**2)
    assert found.lyapunov == pytest.approx((a_next / a * (1 - s * g) + s_next * g).log().sum().item(), abs=1e-4)
    assert found.lyapunov == pytest.approx(math.log(0.5), abs=0.05)  # noise of std 1 becomes data of std 0.5


def test_isotropic_trajectories_are_straight_and_others_turn():
    from atdm.experiments.smoothness import smoothness

    process = Process.linear()
    straight = smoothness(Model(gaussian_eps(process, (0.25, 0.25)), process, shape=(2,)), n=32, steps=50)
    assert straight.turning == pytest.approx(0, abs=1e-3)
    assert smoothness(Model(gaussian_eps(process, (0.25, 0.01)), process, shape=(2,)), n=32, steps=50).turning > 0.1


def test_jacobian_of_the_true_score_is_its_finite_difference(generator):
    from atdm.experiments.smoothness import as_model, jacobian

    process, plane = Process.linear(), load("plane:n=10").truth
    model = as_model(plane, process)
    x, t = plane.sample(8, generator), torch.full((8,), 150)
    found = jacobian(Model(model, process), x, t)
    for j in range(3):
        step = 1e-2 * torch.eye(3)[j]
        difference = (model(x + step, t) - model(x - step, t)) / 2e-2
        assert torch.allclose(found[:, :, j], difference, atol=2e-3)


@pytest.mark.parametrize(("k", "expected"), [(0.0, 0.5), (3.0, 0.25)])
def test_predicted_spread_is_the_true_one_over_the_root_of_one_plus_k(k, expected):
    from atdm.experiments.mixture import predicted_std

    objective = recommended(None, k, 1).build(Process.linear(), 0)
    assert predicted_std(objective, 0.5, "ddpm", 1000) == pytest.approx(expected, rel=0.03)


def test_spread_within_modes_ignores_where_the_modes_are(generator):
    from atdm.experiments.mixture import std_within

    truth = load("mixture:n=10").truth
    x = truth.sample(20_000, generator)
    assert std_within(truth, x) == pytest.approx(0.05, rel=0.02)
    outliers = 4 * torch.rand(200, 2, generator=generator) + 2
    assert std_within(truth, torch.cat([x, outliers])) == pytest.approx(0.05, rel=0.02)


def test_linearized_photos_lie_on_the_subspace_and_held_out_ones_too():
    butterflies = module_of("butterflies")
    job = butterflies.jobs("smoke", [0], None)[0]
    data = butterflies.linearized(job)
    assert data.truth.basis.shape == (8, 64)
    assert data.truth.residual_rms(data.x) == pytest.approx(0, abs=1e-5)
    assert data.truth.residual_rms(data.test) == pytest.approx(0, abs=1e-5)
    assert butterflies.quality(data.truth, data.x + 0.1 * torch.randn(data.x.shape)) == pytest.approx(26.3, abs=0.6)


def test_a_sweep_shares_the_setting_it_has_in_common_with_another():
    strength = module_of("strength")
    todo = strength.jobs("cpu", [0], None)
    places = [(job.condition, *place) for job in todo for place in job.options["places"]]
    wanted = {
        ("noise 0.2", sweep, value) for sweep, settings in strength.sweeps("cpu").items() for value, _ in settings
    }
    assert wanted <= set(places)
    assert len(places) == len(set(places))
    shared = [job for job in todo if len(job.options["places"]) > 1 and job.condition == "noise 0.2"]
    assert sorted({s for s, _ in job.options["places"]} for job in shared if job.config.objective.gate) == [
        {"every", "k", "radius", "gate"}
    ]


def test_the_front_holds_what_nothing_beats_in_both_numbers():
    points = [
        ("a", "s", 1.0, 0.5),
        ("b", "s", 1.1, 0.2),
        ("c", "s", 1.2, 0.3),
        ("d", "s", 1.0, 0.6),
        ("e", "t", 1.1, 0.2),
    ]
    assert [p[0] for p in module_of("strength").front(points)] == ["a", "b", "e"]


def test_auto_is_held_against_a_push_in_every_step_and_against_clean_ddpm(monkeypatch):
    """Rows of all settings at cpu scale, made up: auto leaves 1 % more noise at a tenth more cost, and 20 % more on clean data."""
    strength = module_of("strength")
    outcomes = []
    for job in strength.jobs("cpu", [0], None):
        dirt, cost, far = (0.2, 1.0, 1.0) if job.label == "ddpm" else (0.1, 1.3, 1.05)
        if "auto" in job.label:
            dirt, cost, far = 0.101, 1.1, 1.2
        made = {"condition": job.condition, "never_varying_noise": dirt, "frechet_pixels": far, "cost": cost, "seed": 0}
        made |= {"method": job.label, "sliced_wasserstein": 0.0, "seconds": 1.0}
        rows = [{**made, "sweep": sweep, "value": value} for sweep, value in job.options["places"]]
        outcomes.append(Outcome(job, rows, {"samples": torch.zeros(4, 1, 8, 8), "corrupted": torch.zeros(4, 1, 8, 8)}))
    drawn, real = [], strength.plot.scatter_tradeoff
    monkeypatch.setattr(strength.plot, "scatter_tradeoff", lambda p, *labels: drawn.append(p) or real(p, *labels))
    found = strength.findings("cpu", outcomes)
    along = [value for value, sweep, *_ in drawn[0] if sweep == "gate"]
    assert along == ["0.1", "0.2", "0.4", "0.8"], "a curve runs along its dial"
    holds = {claim.statement: claim.holds for claim in found.claims}
    assert holds[
        "auto:k=5 costs at most 1.2 times ddpm and keeps at most 1.05 times the noise of the regularizer in every step"
    ]
    assert not holds["on clean digits every setting along auto stays within 1.1 times ddpm's Frechet distance"]
    assert holds["on clean digits every setting along k stays within 1.1 times ddpm's Frechet distance"]
    assert "auto k 2 (1.1 times, 0.101)" in found.notes[0]
    assert list(found.figures)[:3] == ["recommended", "cost", "penalty"]


# --- judging ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("value", "holds"), [(0.5, True), (0.7, False), (math.nan, False)])
def test_a_claim_is_judged_by_its_numbers(value, holds):
    claim = at_most("a is small", value, 1.0, 0.6, ("a", "b"))
    assert claim.holds is holds


def test_the_comparison_follows_the_claims():
    found = Findings("Lead.", [Claim("up", True, "1 > 0"), Claim("down", False, "1 > 0")], [], {}, [], ["Note."])
    text = found.paragraph()
    assert text == "Lead.\n\n**Agrees:**\n\n- up (1 > 0).\n\n**Does not agree:**\n\n- down (1 > 0).\n\nNote.\n"
    found.provenance = {"scale": "smoke"}
    assert "hardly trained" in found.paragraph()


def test_an_attack_on_points_is_judged_at_the_budgets_of_points_alone():
    errors = {"ddpm": {0.0: 0.1, 0.3: 0.4}, "robust_adv": {0.0: 0.1, 0.3: 0.2}}
    rows = [
        {"condition": "plane", "attack": "pgd", "method": method, "budget": budget, "off_support_rms": error}
        for method, curve in errors.items()
        for budget, error in curve.items()
    ]
    rows += [{"condition": "digits", "attack": "pgd", "method": method, "budget": 0.001} for method in errors]
    found = [*attacks._claims(rows, "plane", "off_support_rms", "pgd", ["robust_adv"])]
    assert all(claim.holds for claim in found)
    assert found[0].measured == "by 0.0333 to 0.133, ddpm by 0.1 to 0.2"


def test_cells_are_the_mean_and_the_standard_deviation_over_seeds():
    rows = [{"m": "a", "v": 1.0}, {"m": "a", "v": 3.0}, {"m": "b", "v": None}]
    assert mean_over_seeds(rows, "v", m="a") == 2
    assert math.isnan(mean_over_seeds(rows, "v", m="b"))
    assert cell(rows, "v", m="a") == (2, pytest.approx(math.sqrt(2)))
    table = table_of(rows, {"method": "m"}, {"value": "v"})
    assert [line[0] for line in table.rows] == ["a", "b"]
    assert table.rows[1][1] is None


# --- purification -----------------------------------------------------------------------------------------------------
def test_labels_are_those_of_scikit_learn():
    from sklearn.datasets import load_digits

    known, x = load_digits(), load("digits", seed=3).x[:300]
    found = module_of("purification").labels(x)
    images = torch.from_numpy(known.images).float() / 8 - 1
    for image, label in zip(x[:, 0], found.tolist(), strict=True):
        assert (images[known.target == label] == image).flatten(1).all(1).any()


def test_the_same_seed_gives_the_same_classifier_and_it_has_learned():
    purification, data = module_of("purification"), load("digits")
    state = torch.get_rng_state()
    one, two = (purification.classifier_of(data, 150, 0) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert (one(data.test).argmax(1) == purification.labels(data.test)).float().mean() > 0.9


def test_the_gain_over_ddpm_is_paired_item_by_item():
    purification = module_of("purification")
    todo = [job for seed in (0, 1) for job in purification.jobs("smoke", [seed], None)]
    right = {"ddpm": [0.0, 0.5, 1.0, 0.0], "other": [0.5, 1.0, 1.0, 0.0]}
    outcomes = [
        Outcome(job, [], {"right": {purification.MAIN: {"pgd_adaptive": torch.tensor(values)}}})
        for job in todo
        for values in [right["ddpm" if job.label == "ddpm" else "other"]]
    ]
    more, low, high = purification.gained(outcomes, "clean", RECOMMENDED, "pgd_adaptive")
    assert more == pytest.approx(0.25)
    assert 0 < low < more < high <= 0.5


# --- jobs -------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Task:
    value: int
    cost: float = 1.0


def square(task: Task, tell: pool.Tell) -> int:
    tell(0.5)
    if task.value < 0:
        raise UserError(f"{task.value} is negative. Expected more.")
    return task.value**2


def forever(task: Task, tell: pool.Tell) -> int:
    if task.value < 0:
        raise UserError("negative")
    for i in range(60_000):
        tell(i / 60_000)
        time.sleep(0.01)
    return 0


@pytest.mark.parametrize("cores", [1, 2])
def test_jobs_give_their_results_in_order_and_progress_only_grows(monkeypatch, cores):
    monkeypatch.setattr(torch, "get_num_threads", lambda: cores)
    told = []
    assert pool.work_through(square, [Task(2), Task(3, 2.0)], lambda *step: told.append(step)) == [4, 9]
    done = [d for d, _, _ in told]
    assert done == sorted(done)
    assert (told[-1][0], told[-1][1]) == (3, 3)
    assert pool.work_through(square, []) == []


@pytest.mark.parametrize("cores", [1, 2])
def test_a_failed_job_ends_the_run_and_stops_the_others(monkeypatch, cores):
    monkeypatch.setattr(torch, "get_num_threads", lambda: cores)
    begin = time.perf_counter()
    with pytest.raises(UserError, match="negative"):
        pool.work_through(forever, [Task(-1), Task(1), Task(2)])
    assert time.perf_counter() - begin < 300  # of 600 seconds


def test_workers_end_with_a_process_that_was_killed(tmp_path):
    """Also while they are busy, or wait for a job."""
    (tmp_path / "tasks.py").write_text(
        "import os, time\n"
        "from dataclasses import dataclass\n"
        "from pathlib import Path\n"
        "@dataclass\n"
        "class Task:\n"
        "    seconds: float\n"
        "    cost: float = 1.0\n"
        "def work(task, tell):\n"
        "    Path(str(os.getpid())).touch()\n"
        "    while sum(f.name.isdigit() for f in Path().iterdir()) < 2:\n"  # each worker has one
        "        time.sleep(0.05)\n"
        "    time.sleep(task.seconds)\n"
    )
    (tmp_path / "main.py").write_text(
        "import torch\n"
        "from atdm.pool import work_through\n"
        "from tasks import Task, work\n"
        "if __name__ == '__main__':\n"
        "    torch.set_num_threads(2)\n"
        "    work_through(work, [Task(0), Task(600)])\n"
    )
    process = subprocess.Popen([sys.executable, "main.py"], cwd=tmp_path)
    try:
        until(lambda: len([f for f in tmp_path.iterdir() if f.name.isdigit()]) == 2)
    finally:
        process.kill()
        process.wait()
    until(lambda: not any(Path(f"/proc/{f.name}").exists() for f in tmp_path.iterdir() if f.name.isdigit()))


def until(true, seconds=120):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_progress_of_a_part_lies_within_it():
    heard = []
    part(heard.append, 0.2, 0.6)(0.5)
    assert heard == [pytest.approx(0.4)]


def test_a_job_trains_on_its_own_dirt_with_its_own_seed():
    from atdm.experiments.runner.jobs import samples_of, train

    plane = module_of("trajectories").plane
    jobs = [plane.base("smoke").but(corrupt=plane.OUTLIERS[1], seed=seed) for seed in (0, 0, 1)]
    trained = [train(job, lambda share: None) for job in jobs]
    assert torch.equal(trained[0].corrupted, trained[1].corrupted)
    assert torch.equal(samples_of(trained[0]), samples_of(trained[1]))
    assert not torch.equal(trained[0].corrupted, trained[2].corrupted)
    outside = (trained[0].corrupted != trained[0].dataset.x).any(1).float().mean()
    assert outside == pytest.approx(0.1, abs=0.05)


# --- outcomes that are kept -------------------------------------------------------------------------------------------
def small_job(**own) -> Job:
    return module_of("trajectories").plane.base("smoke").but(**own)


def test_an_outcome_comes_back_as_it_was_kept(tmp_path, generator):
    job, done = small_job(), []
    tensors = {"x": torch.randn(3, 4, generator=generator).T, "whole": torch.arange(3)}
    plain = {"curve": [[1, 0.1 + 0.2, math.inf], (True, None, "a")], "by": {0.5: {("a", 1): torch.ones(2)}}, "no": {}}
    rows = [{"noise": 0.1 + 0.2, "spread": math.nan, "stop_ratio": None, "about": {"n": 3}}]

    def do(job: Job, tell) -> Outcome:
        done.append(job)
        return Outcome(job, rows, tensors | plain)

    first = stored.work(do, tmp_path, job, lambda share: None)
    again = stored.work(do, tmp_path, job, lambda share: None)
    assert len(done) == 1
    assert again.job == job
    assert again.seconds == first.seconds > 0
    assert repr(again.rows) == repr(rows)
    for name, x in tensors.items():
        assert torch.equal(again.tensors[name], x)
        assert again.tensors[name].dtype == x.dtype
    assert {name: repr(again.tensors[name]) for name in plain} == {name: repr(value) for name, value in plain.items()}
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:-4])  # damaged: done again, and mended
    stored.work(do, tmp_path, job, lambda share: None)
    stored.work(do, tmp_path, job, lambda share: None)
    assert len(done) == 2


@pytest.mark.parametrize(
    "own",
    [
        {"seed": 1},
        {"corrupt": "gaussian:share=0.9,std=0.2"},
        {"objective": recommended(0.5, 5, 3)},
        {"options": {"a": 1}},
    ],
)
def test_another_job_is_another_outcome(own):
    assert stored.name_of(small_job()) == stored.name_of(small_job())
    assert stored.name_of(small_job(**own)) != stored.name_of(small_job())


def test_an_option_that_is_added_keeps_the_outcomes_that_are_there():
    old = dataclasses.make_dataclass("Job", [("steps", int)])
    new = dataclasses.make_dataclass("Job", [("steps", int), ("extra", list, dataclasses.field(default_factory=list))])
    assert stored.name_of(old(3)) == stored.name_of(new(3)) != stored.name_of(new(3, [1]))
    assert stored.name_of(old(3)) != stored.name_of(old(4))


def test_an_outcome_of_other_objects_is_refused(tmp_path):
    with pytest.raises(TypeError, match="holds a object"):
        stored.write(Outcome(small_job(), [], {"found": [object()]}), tmp_path / "x.safetensors")
    assert not any(tmp_path.iterdir())


def test_an_experiment_goes_on_and_takes_in_more_seeds(tmp_path, monkeypatch):
    monkeypatch.setattr(pool, "workers", lambda jobs: 1)
    module, done = module_of("parameterizations"), []
    work = module.work

    def count(job: Job, tell) -> Outcome:
        if len(done) == 2 and interrupted:
            raise KeyboardInterrupt
        done.append(job)
        return work(job, tell)

    def kept() -> list[Outcome]:
        todo = module.jobs("smoke", [0], None)
        return [stored.read(stored.path_of(tmp_path / "parameterizations" / "jobs", job), job) for job in todo]

    monkeypatch.setattr(module, "work", count)
    interrupted = True
    with pytest.raises(KeyboardInterrupt):
        reproduce.run("parameterizations", tmp_path, "smoke")
    interrupted = False
    reproduce.run("parameterizations", tmp_path, "smoke")
    numbers = json.loads((tmp_path / "parameterizations" / "numbers.json").read_text())
    first, took = numbers["rows"], numbers["provenance"]["cpu seconds of all jobs"]
    assert done == module.jobs("smoke", [0], None)
    assert numbers["provenance"]["of them kept from before"] == 2
    assert took == pytest.approx(sum(o.seconds for o in kept()), abs=0.1)
    reproduce.run("parameterizations", tmp_path, "smoke", seeds=(0, 1))
    assert done == module.jobs("smoke", [0, 1], None)
    both = json.loads((tmp_path / "parameterizations" / "numbers.json").read_text())["rows"]
    assert both[: len(first)] == first
    assert {r["seed"] for r in both} == {0, 1}
