import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from atdm.diffusion.process import Process
from atdm.errors import UserError
from atdm.objective.perturb import (
    BALLS,
    RADII,
    WEIGHTS,
    ConstantRadius,
    ConstantWeight,
    FlooredRadius,
    OverRadius,
    OverVariance,
    Perturbation,
    PublishedRadius,
    PublishedWeight,
    RelativeWeight,
)

PROCESS = Process.linear()


def size(delta, norm):
    """The size of delta in radii' units: the largest entry, or the root mean square."""
    flat = delta.flatten(1)
    return flat.abs().amax(1) if norm == "linf" else flat.square().mean(1).sqrt()


@settings(max_examples=60, deadline=None)
@given(
    norm=st.sampled_from(sorted(BALLS)),
    steps=st.integers(0, 4),
    kappa=st.sampled_from([0.1, 1.0, 2.5, math.inf]),
    r=st.floats(1e-3, 10),
    d=st.integers(1, 20),
    scale=st.sampled_from([1e-18, 1e-6, 1.0, 1e6]),
    seed=st.integers(0, 1000),
)
def test_every_perturbation_is_inside_its_ball(norm, steps, kappa, r, d, scale, seed):
    generator = torch.Generator().manual_seed(seed)
    perturbation = Perturbation(norm, steps, kappa)
    radius = torch.full((7,), r)
    towards = torch.randn(7, d, generator=generator) * scale
    start = perturbation.start((7, d), generator)
    assert (size(start, norm) <= 1 + 1e-5).all()
    delta = perturbation.find(lambda x: (x * towards).flatten(1).sum(1), start, radius)
    assert (size(delta, norm) <= r * (1 + 1e-5)).all()
    if steps and math.isinf(kappa):
        assert perturbation.ball.used(delta, radius).eq(1).all()
        best = towards.sign() if norm == "linf" else towards / towards.norm(dim=1, keepdim=True) * math.sqrt(d)
        torch.testing.assert_close(delta, r * best, rtol=1e-4, atol=1e-5 * r)


@pytest.mark.parametrize("norm", sorted(BALLS))
def test_start_is_uniform_in_the_ball(norm, generator):
    d = 3
    start = Perturbation(norm, 0).start((200_000, d), generator)
    # E[x_i^2]: 1/3 in the cube; d/(d+2) in the ball of radius sqrt(d).
    second = 1 / 3 if norm == "linf" else d / (d + 2)
    torch.testing.assert_close(start.square().mean(0), torch.full((d,), second), rtol=0.02, atol=0)
    torch.testing.assert_close(start.mean(0), torch.zeros(d), rtol=0, atol=0.01)
    # the share of the volume inside half the radius
    assert (size(start, norm) < 0.5).float().mean().item() == pytest.approx(0.5**d, rel=0.03)


@pytest.mark.parametrize("norm", sorted(BALLS))
def test_a_step_without_gradient_stays_and_with_one_ascends(norm):
    delta, r = torch.full((2, 4), 0.1), torch.ones(2)
    gradient = torch.stack([torch.zeros(4), torch.tensor([1.0, -2.0, 0.5, 0.0])])
    for kappa in (1.0, math.inf):
        moved = Perturbation(norm, 1, kappa).step(delta, gradient, r)
        torch.testing.assert_close(moved[0], delta[0])
        assert (moved[1] * gradient[1]).sum() > (delta[1] * gradient[1]).sum()


def test_projection_is_the_nearest_point(generator):
    r = torch.tensor([0.7])
    outside = 3 * torch.randn(1, 5, generator=generator)
    for norm, ball in BALLS.items():
        nearest = ball.project(outside, r)
        candidates = ball.start((20_000, 5), generator, torch.device("cpu")) * 0.7
        assert (outside - candidates).norm(dim=1).min() >= (outside - nearest).norm() - 1e-6, norm
        torch.testing.assert_close(ball.project(nearest, r), nearest)


def test_published_radius_and_weight_have_the_published_values():
    t = torch.tensor([0, 250, 999])
    sigma = PROCESS.sigmas[t]
    r = PublishedRadius()(PROCESS, t, torch.ones(3))
    torch.testing.assert_close(r, sigma**2 + 8 / 255)
    half = PublishedRadius()(PROCESS, t, torch.full((3,), 0.5))
    torch.testing.assert_close(half, 0.5 * sigma**2 + 8 / 255)
    torch.testing.assert_close(PublishedRadius(beta="one")(PROCESS, t, torch.full((3,), 0.5)), r)
    floored = FlooredRadius()(PROCESS, t, torch.full((3,), 0.5))
    torch.testing.assert_close(floored, torch.maximum(0.5 * sigma**2, torch.tensor(8 / 255)))


def test_published_weight_is_over_the_ray_and_knows_nothing_of_the_bias():
    t, beta = torch.tensor([0, 250, 999]), torch.tensor([1.0, 0.5, 0.1])
    ray = beta * PROCESS.sigmas[t] ** 2
    for floor in (1 / 255, 64 / 255):
        reach = PublishedRadius(floor=floor).reach(PROCESS, t, beta)
        torch.testing.assert_close(PublishedWeight()(reach, torch.zeros(3, 2)), 0.3 * math.sqrt(3) / ray)
        torch.testing.assert_close(OverRadius()(reach, torch.zeros(3, 2)), 0.3 * math.sqrt(3) / (ray + floor))
        torch.testing.assert_close(OverVariance()(reach, torch.zeros(3, 2)), 0.9 / (ray + floor) ** 2)
    # omega, beta and its lower bound are those of the radius
    reach = PublishedRadius(omega=1.0, beta_min=0.5).reach(PROCESS, t, beta)
    torch.testing.assert_close(reach.ray, (0.5 + 0.5 * beta) * PROCESS.sigmas[t])
    torch.testing.assert_close(PublishedWeight(lam=1.0)(reach, torch.zeros(3, 2)), math.sqrt(3) / reach.ray)
    # a radius without a bias is its own ray
    assert torch.equal(ConstantRadius(0.4).reach(PROCESS, t, beta).ray, torch.full((3,), 0.4))
    # 1/std of a uniform on [-r, r], as the formula is motivated
    uniform = (2 * torch.rand(100_000, generator=torch.Generator().manual_seed(0)) - 1) * 0.4
    weight = PublishedWeight(lam=1.0)(ConstantRadius(0.4).reach(PROCESS, t, beta), torch.zeros(3, 2))
    assert weight[0].item() == pytest.approx(1 / uniform.std().item(), rel=0.01)


def test_relative_weight_makes_lambda_c_the_dial(generator):
    delta = torch.randn(4, 3, 8, 8, generator=generator) * torch.tensor([0.1, 1, 3, 9]).reshape(4, 1, 1, 1)
    reach = ConstantRadius().reach(PROCESS, torch.arange(4), torch.ones(4))
    weight = RelativeWeight(k=5)(reach, delta)
    torch.testing.assert_close(weight * delta.square().flatten(1).mean(1), torch.full((4,), 5.0))


@pytest.mark.parametrize(("name", "maker"), sorted(RADII.items()))
def test_every_radius_is_positive_and_per_sample(name, maker):
    t = torch.arange(0, 1000, 37)
    r = maker()(PROCESS, t, torch.rand(len(t)) * 0.9 + 0.1)
    assert r.shape == t.shape
    assert (r > 0).all()


@pytest.mark.parametrize(("name", "maker"), sorted(WEIGHTS.items()))
def test_every_weight_is_nonnegative_and_scales_with_its_strength(name, maker):
    strength = {"relative": "k", "constant": "value"}.get(name, "lam")
    reach, delta = PublishedRadius().reach(PROCESS, torch.tensor([3, 500]), torch.tensor([0.5, 0.1])), torch.ones(2, 3)
    one, three = maker(**{strength: 1.0})(reach, delta), maker(**{strength: 3.0})(reach, delta)
    assert (one > 0).all()
    torch.testing.assert_close(3 * one, three)
    assert maker(**{strength: 0.0})(reach, delta).eq(0).all()
    with pytest.raises(UserError, match=strength):
        maker(**{strength: -1.0})


def test_mistakes_are_sentences():
    for make, words in [
        (lambda: Perturbation("l3"), "Did you mean 'l2'"),
        (lambda: Perturbation(steps=-1), "steps .* -1"),
        (lambda: Perturbation(kappa=0), "kappa"),
        (lambda: ConstantRadius(r=0), "Expected a number > 0"),
        (lambda: PublishedRadius(floor=0), "8/255"),
        (lambda: PublishedRadius(beta_min=1), "0.05"),
        (lambda: ConstantWeight(value=-1), "value"),
    ]:
        with pytest.raises(UserError, match=words):
            make()
