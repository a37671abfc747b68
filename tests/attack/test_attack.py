"""Attacks against closed forms of linear-Gaussian models, the promises about noise, and every registered part."""

import math

import pytest
import torch
from torch import nn

from atdm.attack import (
    ATTACKS,
    GOALS,
    Denoised,
    Prediction,
    Replay,
    Search,
    Target,
    TrajectoryAttack,
    Victim,
    damage_curve,
    fgsm,
    random,
    summarize,
)
from atdm.data import load
from atdm.data.toy import Moons, Plane
from atdm.diffusion.model import Model
from atdm.diffusion.sampling import sample, trajectory
from atdm.diffusion.schedulers import SAMPLERS
from atdm.diffusion.steps import Sampling
from atdm.errors import UserError
from atdm.metrics.exact import support_distance
from atdm.nets import build_net
from atdm.objective.perturb import BALLS
from atdm.spec import build
from helpers import LINEAR, STDS, STOCHASTIC, TURN, D, Gaussian, Ideal, seeded


def linear_map(steps, begin):
    """The matrix from the state before evaluation ``begin`` to the sample, by pushing it along each axis."""
    columns = []
    zero = torch.zeros(1, D)
    for axis in torch.eye(D):
        hook = lambda i, t, x, axis=axis: x + axis if i == begin else x  # noqa: E731
        *_, last = trajectory(Gaussian(), LINEAR, (1, D), generator=seeded(), steps=steps, x_T=zero, hook=hook)
        columns.append(last.next[0])
    return torch.stack(columns, 1)


def attacked(search, goal, budget=0.5, n=32, through="step", at=(8,), steps=10, sampler="ddim"):
    hook = TrajectoryAttack(search, goal, budget, at=at, through=through, keep=True)
    sample(Gaussian(), LINEAR, n, (D,), hook=hook, steps=steps, sampler=sampler)
    return hook


@pytest.mark.parametrize("search", [Search(200, "l2"), Search(60, "l2", kappa=math.inf)], ids=["pgd", "power"])
def test_the_strongest_l2_push_on_the_reverse_step_is_found(search):
    """eps = A x: the push moves it by A sigma delta, most along the direction of least variance."""
    hook = attacked(search, Prediction())
    (push,) = hook.perturbations[0]
    alpha, sigma = LINEAR.alphas[push.t], LINEAR.sigmas[push.t]
    singular = sigma / (alpha**2 * STDS**2 + sigma**2)
    strongest = (singular.max() * sigma * 0.5) ** 2  # mean square over coordinates, as the radius is 0.5 sqrt(d)
    assert 0.99 <= push.gain / float(strongest) <= 1.0001
    cosine = (push.delta @ TURN[:, 3]).abs() / push.delta.norm(dim=1)
    assert cosine.median() > 0.99
    assert push.excess <= 1.0001


@pytest.mark.parametrize("begin", [0, 5])
def test_the_strongest_l2_push_through_the_whole_sampler_is_found(begin):
    hook = attacked(Search(30, "l2"), Denoised(), through="rest", at=(begin,))
    (push,) = hook.perturbations[0]
    _, singular, directions = torch.linalg.svd(linear_map(10, begin))
    strongest = (singular[0] * LINEAR.sigmas[push.t] * 0.5) ** 2
    assert 0.99 <= push.gain / float(strongest) <= 1.0001
    assert ((push.delta @ directions[0]).abs() / push.delta.norm(dim=1)).median() > 0.99


def test_the_gain_through_the_rest_is_the_damage():
    """A single attacked step of a deterministic sampler: what the attack foresees is what happens."""
    model = Gaussian()
    hook = TrajectoryAttack(Search(5), Denoised(), 0.5, at=[4], through="rest")
    bad = sample(model, LINEAR, 170, (D,), hook=hook, steps=10)
    good = sample(model, LINEAR, 170, (D,), steps=10)
    rows = hook.perturbations[0][0]
    assert rows.gain == pytest.approx(float((bad - good).square().mean()), rel=0.05)  # the last block is computed whole


@pytest.mark.parametrize("through", ["step", "rest"])
def test_a_movement_has_no_gradient_at_delta_zero(through):
    """J = ||f(x + delta) - f(x)||^2 is flat at delta = 0: the random start is required."""
    goal = Denoised() if through == "rest" else Prediction()
    stuck = attacked(fgsm(start="zero"), goal, through=through).perturbations[0][0]
    assert (stuck.idle, stuck.gain, stuck.used) == (1.0, 0.0, 0.0)
    free = attacked(fgsm(), goal, through=through).perturbations[0][0]
    assert free.idle == 0
    assert free.gain > 0


@pytest.mark.parametrize("norm", BALLS)
@pytest.mark.parametrize("name", ATTACKS)
def test_every_attack_stays_in_the_ball_and_later_ones_are_stronger(name, norm):
    hook = attacked(build("attack", f"{name}:norm={norm}", ATTACKS), Prediction(), at=None)
    assert [p.index for p in hook.perturbations[0]] == list(range(10))
    assert all(0 < p.excess <= 1.0001 for p in hook.perturbations[0])
    gain = sum(p.gain for p in hook.perturbations[0])
    blind = sum(p.gain for p in attacked(random(norm=norm), Prediction(), at=None).perturbations[0])
    assert gain > 1.2 * blind or name == "random"
    wider = attacked(build("attack", f"{name}:norm={norm},restarts=4", ATTACKS), Prediction())
    assert (
        wider.perturbations[0][0].gain
        >= attacked(build("attack", f"{name}:norm={norm}", ATTACKS), Prediction()).perturbations[0][0].gain
    )


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_can_be_attacked(sampler):
    """Through the rest the damage to the sample is more than that of random pushes, on every sampler."""
    truth = Plane()

    def damage(search):
        victim = Victim(
            Model(Skewed(truth), LINEAR, shape=(3,)),
            GOALS["distance"]().fit(truth.sample(9, seeded()), truth),
            64,
            {7, 8},
            "rest",
            Sampling(sampler, 10),
        )
        return victim.damage(victim.attack(search, 0.5, 0)[0], victim.sample(0))

    draws = 4 if sampler in STOCHASTIC else 1
    assert damage(Search(3, draws=draws)) > max(0.005, 1.5 * damage(random()))


class Skewed(nn.Module):
    """The ideal network for a Gaussian that is thin, not flat, across the plane."""

    def __init__(self, truth):
        super().__init__()
        self.axes, self.stds = truth.axes, torch.tensor([0.6, 0.6, 0.2])

    def forward(self, x, t):
        alpha, sigma = LINEAR.alpha(t, x), LINEAR.sigma(t, x)
        return (sigma / (alpha**2 * self.stds**2 + sigma**2) * (x @ self.axes.T)) @ self.axes


@pytest.mark.parametrize("sampler", ["ddim", "ddpm", "euler-ancestral"])
def test_noise_is_common_so_that_an_idle_attack_changes_nothing(sampler):
    options = {"sampler": sampler, "steps": 10, "seed": 3}
    clean = sample(Ideal(), LINEAR, 200, (3,), **options)
    for hook in (
        TrajectoryAttack(Search(2), Denoised(), 0.0),
        TrajectoryAttack(Search(2, draws=2), Denoised(), 0.7, at=[], through="rest"),
    ):
        assert torch.equal(sample(Ideal(), LINEAR, 200, (3,), hook=hook, **options), clean)
    late = TrajectoryAttack(Search(2, draws=2), Denoised(), 1e-3, through="rest")
    moved = sample(Ideal(), LINEAR, 200, (3,), hook=late, **options) - clean
    assert 0 < moved.abs().max() < 0.02


def test_an_item_is_attacked_alike_in_every_batch():
    def run(batch_size):
        hook = TrajectoryAttack(Search(3, restarts=2, draws=2), Denoised(), 0.5, through="rest", seed=4)
        return sample(Ideal(), LINEAR, 400, (3,), hook=hook, steps=5, sampler="ddpm", batch_size=batch_size), hook

    (whole, one), (parts, three) = run(1024), run(170)
    assert torch.allclose(whole, parts, atol=1e-4)
    assert (len(one.perturbations), len(three.perturbations)) == (1, 3)


def test_expectation_over_the_noise_ahead_is_stronger_than_one_draw():
    """Pulled to a target through a noisy sampler, the single-draw gradient follows noise that does not come back."""

    class Fork(nn.Module):
        """The ideal network for two points, -1 and 1: where a sample ends is the noise's choice until late."""

        def forward(self, x, t):
            alpha, sigma = LINEAR.alpha(t, x), LINEAR.sigma(t, x)
            return (x - alpha * torch.tanh(alpha * x / sigma**2)) / sigma

    def gain(draws):
        hook = TrajectoryAttack(
            Search(1, draws=draws, kappa=1), Target(image=torch.ones(1)), 0.6, at=[3], through="rest"
        )
        end = sample(Fork(), LINEAR, 1024, (1,), hook=hook, steps=10, sampler="ddpm")
        assert hook.perturbations[0][0].drew
        return float((end > 0).float().mean())

    clean = float((sample(Fork(), LINEAR, 1024, (1,), steps=10, sampler="ddpm") > 0).float().mean())
    assert clean == pytest.approx(0.5, abs=0.06)
    assert gain(8) > gain(1) > clean


@pytest.mark.parametrize("name", GOALS)
def test_every_goal_is_raised_and_does_damage(name):
    truth = Plane()
    reference = truth.sample(300, seeded())
    torch.manual_seed(0)
    model = build_net("mlp:width=16", (3,))
    goal = build("goal", name, GOALS).fit(reference, truth)
    victim = Victim(Model(model, LINEAR, shape=(3,)), goal, n=100, sampling=Sampling(steps=10))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    damage = []
    for budget in (0.0, 0.3, 1.0):
        samples, hook = victim.attack(Search(5), budget, 0)
        damage.append(victim.damage(samples, victim.sample(0)))
        assert all(push.idle == 0 for push in hook.perturbations[0])
    assert damage[0] == 0
    assert 0 < damage[1] < damage[2]
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert model.training


def test_goals_are_the_measures_of_the_metrics():
    truth = Plane()
    reference, x = truth.sample(50, seeded()), torch.randn(20, 3, generator=seeded(1))
    assert torch.equal(GOALS["distance"]().fit(reference, truth)(x, None), support_distance(x, truth))
    nearest = torch.cdist(x, reference).amin(1).square() / 3
    assert torch.allclose(GOALS["features"]().fit(reference, None)(x, None), nearest, atol=1e-5)
    aimed = build("goal", "target:item=7", GOALS).fit(reference, None)
    assert torch.allclose(aimed(x, None), -(x - reference[7]).square().mean(1))


def test_a_transferred_attack_repeats_the_pushes():
    victim = Victim(
        Model(Gaussian(), LINEAR, shape=(D,)), Denoised(), n=300, sampling=Sampling(steps=5), batch_size=130
    )
    samples, hook = victim.attack(Search(2), 0.5, 0, keep=True)
    assert torch.allclose(victim.sample(0, Replay(hook)), samples, atol=1e-6)
    with pytest.raises(UserError, match="fewer batches"):
        sample(Gaussian(), LINEAR, 600, (D,), hook=Replay(hook), steps=5, batch_size=130)
    with pytest.raises(UserError, match="keep=True"):
        victim.sample(0, Replay(victim.attack(Search(1), 0.5, 0)[1]))


def test_the_damage_curve_has_paired_and_exact_numbers():
    truth = Plane()
    reference = truth.sample(500, seeded())
    goal = GOALS["distance"]().fit(reference, truth)
    victim = Victim(Model(Skewed(truth), LINEAR, shape=(3,)), goal, 200, sampling=Sampling(steps=10))
    budgets = [0.0, 0.2, 0.5]
    points = list(damage_curve(victim, Search(3), budgets, [0, 1], reference, truth))
    rows = [point.row for point in points]
    assert [(row["seed"], row["budget"]) for row in rows] == [(s, b) for s in (0, 1) for b in budgets]
    assert rows[0]["damage"] == rows[0]["moved_rms"] == 0
    assert rows[0]["used"] is None
    clean = victim.sample(1)
    for point in points[3:]:
        assert point.row["off_support_rms"] == pytest.approx(
            float(truth.distance(point.samples).square().mean().sqrt())
        )
        expected = (truth.distance(point.samples) - truth.distance(clean)).mean()
        assert point.row["damage"] == pytest.approx(float(expected), abs=1e-6)
        assert point.row["moved_rms"] == pytest.approx(float((point.samples - clean).square().mean().sqrt()), rel=1e-5)
    table = {(s["budget"], s["measure"]): s for s in summarize(rows)}
    of = [row["damage"] for row in rows if row["budget"] == 0.5]
    assert table[0.5, "damage"]["mean"] == pytest.approx(sum(of) / 2)
    assert min(of) - 1e-9 <= table[0.5, "damage"]["low"] <= table[0.5, "damage"]["high"] <= max(of) + 1e-9


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Search(norm="l3"), "Unknown norm 'l3'"),
        (lambda: Search(steps=-1), "an integer >= 0"),
        (lambda: Search(restarts=0), "restarts of the attack is 0"),
        (lambda: build("attack", "pdg", ATTACKS), "Did you mean 'pgd'"),
        (lambda: build("attack", "pgd:stps=3", ATTACKS), "Did you mean 'steps'"),
        (lambda: build("goal", "denoise", GOALS), "Did you mean 'denoised'"),
        (lambda: TrajectoryAttack(Search(), Denoised(), -1.0), "budget of the attack is -1"),
        (lambda: TrajectoryAttack(Search(), Denoised(), 1.0, through="all"), "Unknown way through"),
        (lambda: TrajectoryAttack(Search(), Prediction(), 1.0, through="rest"), "sees the image"),
        (lambda: Target(item=9).fit(torch.zeros(3, 2), None), "Expected 0 to 2"),
        (lambda: GOALS["distance"]().fit(torch.zeros(3, 2), None), "known support"),
        (lambda: GOALS["distance"]().fit(Moons().sample(3, seeded()), Moons()), "cannot be differentiated"),
        (lambda: GOALS["features"]("patches").fit(load("digits").x[:9], None), "several rows"),
        (lambda: Target()(torch.zeros(1, 2), None), "has no image"),
        (
            lambda: list(
                damage_curve(
                    Victim(Model(Ideal(), LINEAR, shape=(2,)), Denoised()), Search(), [], [0], torch.zeros(2, 2)
                )
            ),
            "at least one of each",
        ),
    ],
)
def test_mistakes_are_told(make, message):
    with pytest.raises(UserError, match=message):
        make()
