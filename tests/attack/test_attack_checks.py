"""Every sanity check passes on an honest attack, and fails on one that deserves it."""

import dataclasses

import pytest
import torch
from torch import nn

from atdm.attack import (
    Denoised,
    Prediction,
    Search,
    StepPerturbation,
    Victim,
    bootstrap,
    check_seeds,
    doubt,
    fgsm,
    random,
)
from atdm.attack.checks import check_budget, check_converged, check_expectation, check_gradient, check_stronger
from atdm.diffusion.model import Model
from atdm.diffusion.steps import Sampling
from atdm.objective import perturb
from helpers import LINEAR, STDS, D, Gaussian


def victim(model=None, goal=None, **options):
    sampling = Sampling(options.pop("sampler", "ddim"), 10)
    return Victim(Model(model or Gaussian(), LINEAR, shape=(D,)), goal or Denoised(), 64, sampling=sampling, **options)


def findings(*args, **options):
    return {finding.name: finding for finding in doubt(*args, **options)}


class Hidden(nn.Module):
    """The same predictions, with a gradient multiplied by ``factor``: 0 masks it, -1 misleads."""

    def __init__(self, factor):
        super().__init__()
        self.honest, self.factor = Gaussian(), factor

    def forward(self, x, t):
        out = self.honest(x, t)
        return out.detach() + self.factor * (out - out.detach()) if self.factor else out.detach()


def test_an_honest_attack_raises_no_doubt():
    found = findings(victim(at={8}), Search(20, "l2"), 0.5, undefended=victim(at={8}))
    assert set(found) == {
        "gradient",
        "budget respected",
        "budget used",
        "expectation",
        "steps not weaker",
        "converged",
        "random not stronger",
        "restarts not weaker",
        "transfer from undefended not stronger",
        "transfer to undefended",
    }
    assert all(finding.ok for finding in found.values()), found
    assert found["transfer from undefended not stronger"].value == pytest.approx(1)
    assert found["random not stronger"].value < 0.8


def test_a_masked_gradient_is_found_out():
    found = findings(victim(Hidden(0), Prediction()), Search(5, "l2"), 0.5, undefended=victim(Gaussian(), Prediction()))
    assert not found["gradient"].ok
    assert found["gradient"].value == 1
    assert "no gradient" in found["gradient"].says
    assert not found["budget used"].ok
    assert not found["transfer from undefended not stronger"].ok
    assert found["transfer from undefended not stronger"].value > 1.1


def test_a_misleading_gradient_is_found_out():
    """It descends: random is stronger, more steps are weaker, and what it finds does not transfer."""
    model = Hidden(-1.0)
    found = findings(
        victim(model, Prediction(), at={8}),
        Search(5, "l2", kappa=0.3),
        0.5,
        undefended=victim(Gaussian(), Prediction(), at={8}),
    )
    assert found["gradient"].ok
    for name in (
        "random not stronger",
        "steps not weaker",
        "transfer from undefended not stronger",
        "transfer to undefended",
    ):
        assert not found[name].ok, found[name]


def test_a_start_without_gradient_is_found_out():
    found = findings(victim(goal=Prediction()), fgsm(start="zero"), 0.5)
    assert not found["gradient"].ok


def test_an_attack_that_leaves_its_budget_or_does_not_use_it_is_found_out(monkeypatch):
    short = findings(victim(goal=Prediction()), Search(1, "l2", kappa=1e-3), 0.5)
    assert not short["budget used"].ok
    assert not short["random not stronger"].ok or short["random not stronger"].value == pytest.approx(1, abs=0.05)

    class Leaking(perturb.L2):
        def project(self, delta, r):
            return super().project(delta, 1.5 * r)

    monkeypatch.setitem(perturb.BALLS, "leaking", Leaking())
    leak = findings(victim(goal=Prediction()), Search(5, "leaking"), 0.5)
    assert not leak["budget respected"].ok
    assert leak["budget respected"].value == pytest.approx(1.5, abs=1e-3)


def test_an_attack_that_stops_early_is_found_out():
    found = findings(victim(at={8}), Search(1, kappa=0.3), 0.5)
    assert not found["converged"].ok
    assert "lower bound" in found["converged"].says


def test_one_draw_of_the_noise_ahead_is_found_out():
    one = findings(victim(sampler="ddpm", through="rest", at={7}), Search(2), 0.5)
    assert not one["expectation"].ok
    four = findings(victim(sampler="ddpm", through="rest", at={7}), Search(2, draws=4), 0.5)
    assert four["expectation"].ok
    assert findings(victim(through="rest", at={7}), Search(2), 0.5)["expectation"].ok  # ddim draws nothing


def test_restarts_that_weaken_are_found_out():
    assert check_stronger("restarts", 1.0, 0.97).ok
    finding = check_stronger("restarts", 1.0, 0.9)
    assert (finding.name, finding.ok) == ("restarts not weaker", False)
    assert "0.90 times" in finding.says


def test_random_attacks_have_no_gradient_to_check():
    found = findings(victim(goal=Prediction()), random(norm="l2"), 0.5)
    assert "gradient" not in found
    assert found["budget respected"].ok


def test_too_few_seeds_are_found_out():
    assert not check_seeds([1.0]).ok
    assert not check_seeds([1.0, 1.01]).ok
    assert not check_seeds([0.1, 1.0, 3.0]).ok
    assert check_seeds([1.0, 1.05, 0.97]).ok


def test_the_bootstrap_covers_the_mean():
    """Its interval is that of the normal approximation, and holds the truth about as often as it should."""
    x = torch.randn(400, generator=torch.Generator().manual_seed(0)).double() + 2
    low, high = bootstrap(x.tolist())
    half = 1.96 * float(x.std()) / 20
    assert low == pytest.approx(float(x.mean()) - half, abs=0.01)
    assert high == pytest.approx(float(x.mean()) + half, abs=0.01)
    many = torch.randn(200, 30, generator=torch.Generator().manual_seed(1)).double()
    covered = sum(low <= 0 <= high for low, high in (bootstrap(row.tolist(), draws=500) for row in many))
    assert 0.88 <= covered / 200 <= 0.98


def test_findings_are_rows_of_json():
    push = StepPerturbation(0, 9, gain=1.0, used=1.0, excess=1.0, idle=0.5, drew=True)
    assert check_gradient([push]).as_dict() == {
        "name": "gradient",
        "ok": False,
        "value": 0.5,
        "says": check_gradient([push]).says,
    }
    assert not check_expectation([push], Search()).ok
    assert check_expectation([dataclasses.replace(push, drew=False)], Search()).ok
    assert [f.ok for f in check_budget([dataclasses.replace(push, excess=1.2, used=0.1)])] == [False, False]
    assert check_converged(0.0, 1.0).as_dict()["value"] is None  # infinitely more
    assert len(STDS) == D
