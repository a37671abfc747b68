"""Radius and weight, one reading after the other: the linear-Gaussian optimum, what is sampled from it, and what is known of it."""

import math

import pytest
import torch
from torch import nn

from atdm.diffusion.process import Process
from atdm.diffusion.sampling import sample
from atdm.diffusion.steps import Sampling
from atdm.errors import UserError
from atdm.experiments.fewer_steps import sampling_of
from atdm.objective import Draws, Objective
from atdm.objective.perturb import ConstantRadius, Perturbation, PublishedRadius, RelativeWeight
from atdm.objective.theory import BETAS, READINGS, frechet, optimum, power_law, sampled_variance, shrinkage
from helpers import LINEAR

FEW = 100  # midpoints of beta
CORNER = Perturbation("linf", 1, math.inf)


def reading(name, kind, beta="uniform"):
    radius, weight = READINGS[name]
    radius += ("," if ":" in radius else ":") + f"beta={beta}"
    return Objective(kind, LINEAR, radius, weight, CORNER)


class Gains(nn.Module):
    """eps(x) = a x, one gain for each coordinate."""

    def __init__(self, a):
        super().__init__()
        self.a = nn.Parameter(a)

    def forward(self, x, t):
        return self.a * x


def least_squares(objective, std, t):
    """The gains that minimize the loss: it is quadratic in them, so two gradients tell where it is least."""
    generator = torch.Generator().manual_seed(0)
    batch = 1000 * FEW
    x0 = torch.randn(batch, len(std), generator=generator) * torch.tensor(std)
    draws = objective.draw(x0.shape, generator=generator)
    beta = ((torch.arange(FEW) + 0.5) / FEW).repeat(1000)  # the midpoints that the theory takes the mean over
    draws = Draws(torch.full((batch,), t), draws.noise, draws.beta if draws.beta is None else beta, draws.start)
    first, second = torch.full((len(std),), 0.5), torch.full((len(std),), 1.5)
    slopes = []
    for a in (first, second):
        model = Gains(a.clone())
        objective(model, x0, draws=draws).loss.mean().backward()
        slopes.append(model.a.grad.double())
    return first - slopes[0] * (second - first) / (slopes[1] - slopes[0])


@pytest.mark.parametrize("beta", ["uniform", "one"])
@pytest.mark.parametrize("kind", ["robust_rand", "robust_adv"])
@pytest.mark.parametrize("name", READINGS)
def test_the_loss_is_least_where_the_theory_says(name, kind, beta):
    std, objective = (1.0, 0.3), reading(name, kind, beta)
    for t in (20, 100, 300, 700):
        at = torch.tensor([t])
        expected = optimum(LINEAR, at, torch.tensor([std]).square(), shrinkage(objective, at, FEW))[0]
        torch.testing.assert_close(least_squares(objective, std, t), expected, rtol=0.02, atol=0)


def test_the_readings_differ_by_what_their_formulas_say():
    """lambda_t c of a corner at one beta, from the formulas as they are written."""
    t, beta, b, lam = torch.tensor([30, 400]), 0.3, 8 / 255, 0.3
    ray = beta * LINEAR.sigmas[t].double() ** 2
    raised = 0.05 + 0.95 * beta
    high = ray / beta * raised
    expected = {
        "published": lam * math.sqrt(3) / ray * (ray + b) ** 2,
        "bias inside the weight": lam * math.sqrt(3) * (ray + b),
        "bias as a least radius": lam * math.sqrt(3) * ray.clamp_min(b),
        "weight over the variance": 3 * lam + 0 * ray,
        "beta at least 0.05": lam * math.sqrt(3) / high * (high + b) ** 2,
    }
    assert expected.keys() == READINGS.keys()
    for name, value in expected.items():
        objective = reading(name, "robust_adv")
        reach = objective.radius.reach(LINEAR, t, torch.full((2,), beta))
        c = reach.r.square()
        torch.testing.assert_close((objective.weight(reach, reach.r[:, None]) * c).double(), value, rtol=1e-5, atol=0)


def test_the_default_objective_is_the_published_reading():
    default = Objective("robust_adv", LINEAR)
    named = reading("published", "robust_adv")
    assert (default.radius, default.weight) == (named.radius, named.weight)
    assert default.perturbation == Perturbation("linf", 1, 1.0)


def test_shrinkage_is_lambda_c():
    t = torch.tensor([10, 100, 900])
    gate = LINEAR.ratio(torch.tensor([100])).item() * 1.001
    push = Perturbation("l2", 1, math.inf)
    gated = Objective("robust_adv", LINEAR, ConstantRadius(3), RelativeWeight(5), push, gate)
    torch.testing.assert_close(shrinkage(gated, t), torch.tensor([5.0, 5, 0], dtype=torch.float64))
    # E[(r + b)^2 / r] = E[r] + 2 b + b^2 E[1/r], and the mean of 1/beta over n midpoints is about log(4 n) + 0.5772
    ray, b = LINEAR.sigmas[t].double() ** 2, 8 / 255
    mean = ray / 2 + 2 * b + b**2 * (math.log(4 * BETAS) + 0.5772) / ray
    adversarial = shrinkage(Objective("robust_adv", LINEAR), t)
    torch.testing.assert_close(adversarial, 0.3 * math.sqrt(3) * mean, rtol=1e-3, atol=0)
    torch.testing.assert_close(shrinkage(Objective("robust_rand", LINEAR), t), adversarial / 3)
    for name in ("ddpm", "inv_adv"):
        assert not shrinkage(Objective(name, LINEAR), t).any()


def test_the_mean_of_the_published_weight_has_no_end_and_beta_min_gives_it_one():
    t = torch.tensor([50])

    def mean(betas, **options):
        return shrinkage(Objective("robust_adv", LINEAR, PublishedRadius(**options)), t, betas).item()

    steps = [mean(10 * n) - mean(n) for n in (100, 1000, 10_000)]
    assert steps == pytest.approx([steps[0]] * 3, rel=0.01), "each tenth of the tail weighs the same"
    assert mean(100_000, beta_min=0.05) == pytest.approx(mean(1000, beta_min=0.05), rel=1e-3)


def test_sampled_variance_is_that_of_the_sampler():
    process, variance, every = Process.linear(100), torch.tensor([1.0, 0.1, 0.01]), torch.arange(100)
    lambda_c = shrinkage(Objective("robust_rand", process), every)
    gains = optimum(process, every, variance[None], lambda_c).float()
    n = 20_000
    drawn = sample(lambda x, t: gains[t] * x, process, n, (3,), batch_size=n, sampler="ddpm", steps=100, seed=0)
    expected = sampled_variance(process, variance, lambda_c)
    torch.testing.assert_close(drawn.var(0).double(), expected, rtol=0.03, atol=0)
    assert (expected < 0.9 * variance).any()


@pytest.mark.parametrize("name", ["ddpm", "ddpm-unrespaced"])
@pytest.mark.parametrize("start", [None, 1.0])
def test_sampled_variance_is_that_of_every_protocol(name, start):
    """Fewer steps, respaced or not, from T-1 or begun late from N(0, I)."""
    process, variance, every = Process.linear(100), torch.tensor([1.0, 0.1, 0.01]), torch.arange(100)
    lambda_c = shrinkage(Objective("robust_rand", process), every)
    gains = optimum(process, every, variance[None], lambda_c).float()
    n, how = 20_000, Sampling(name, 25, start_ratio=start)
    drawn = sample(lambda x, t: gains[t] * x, process, n, (3,), how, batch_size=n, seed=0)
    expected = sampled_variance(process, variance, lambda_c, how)
    torch.testing.assert_close(drawn.var(0).double(), expected, rtol=0.03, atol=0)
    full = sampled_variance(process, variance, lambda_c)
    assert ((expected / full - 1).abs().max() > 0.02) or name == "ddpm"


def test_only_ancestral_sampling_has_a_closed_form():
    with pytest.raises(UserError, match="no closed form for the sampler ddim"):
        sampled_variance(LINEAR, power_law(4), torch.zeros(1000), Sampling("ddim", 10))


# ddpm and published robust_adv on clean data at 500 and 300 of 1,000 steps.
FEWER = {
    "respaced": ((0.2, 23), (0.4, 22)),
    "begun late": ((154, 178), (318, 337)),
    "not respaced": ((216, 217), (420, 355)),
}


@pytest.mark.parametrize("protocol", FEWER)
def test_what_fewer_steps_do_under_each_protocol(protocol):
    """Respacing has no cliff. Of the two that have one, only the steps that keep their betas favour the robust model."""
    clean = power_law()
    for kind, place in (("ddpm", 0), ("robust_adv", 1)):
        lambda_c = shrinkage(Objective(kind, LINEAR), torch.arange(1000))
        for count, expected in zip((500, 300), FEWER[protocol], strict=True):
            drawn = sampled_variance(LINEAR, clean, lambda_c, sampling_of(protocol, count, LINEAR))
            assert frechet(drawn, clean).item() == pytest.approx(expected[place], rel=0.05, abs=0.05)


# ddpm, robust_rand and robust_adv as published, noise of std 0.2 on 90 % of the items, by the number of respaced steps.
NOISY = {1000: (31.6, 15.8, 10.8), 300: (27.5, 17.1, 13.6), 100: (20.4, 16.6, 18.2), 50: (15.6, 16.3, 23.2)}


def test_on_noisy_data_the_published_order_needs_many_sampling_steps():
    """The weight is largest at the lowest noise levels, which few steps do not visit; and few steps remove noise by themselves."""
    clean, every = power_law(), torch.arange(1000)
    for place, kind in enumerate(("ddpm", "robust_rand", "robust_adv")):
        lambda_c = shrinkage(Objective(kind, LINEAR), every)
        for count, expected in NOISY.items():
            drawn = sampled_variance(LINEAR, clean + 0.9 * 0.2**2, lambda_c, Sampling("ddpm", count))
            assert frechet(drawn, clean).item() == pytest.approx(expected[place], rel=0.02, abs=0.05)


# Squared Frechet distance to clean data: clean, noise of std 0.1 and of 0.2 on 90 % of the items.
TABLE = {
    (None, "ddpm"): (0.05, 3.1, 31.6),
    ("bias inside the weight", "robust_rand"): (1.1, 4.0, 31.9),
    ("bias inside the weight", "robust_adv"): (6.9, 9.6, 36.4),
    ("bias as a least radius", "robust_rand"): (1.0, 3.9, 31.9),
    ("bias as a least radius", "robust_adv"): (6.2, 8.9, 36.1),
    ("weight over the variance", "robust_rand"): (12.5, 12.2, 28.2),
    ("weight over the variance", "robust_adv"): (59.7, 56.4, 60.6),
    ("published", "robust_rand"): (6.4, 1.6, 15.8),
    ("published", "robust_adv"): (25.4, 16.4, 10.8),
    ("beta at least 0.05", "robust_rand"): (2.5, 2.3, 25.4),
    ("beta at least 0.05", "robust_adv"): (13.8, 8.9, 22.0),
}


def test_the_experiment_of_the_readings_makes_the_table():
    from atdm.experiments import readings

    found = readings.theory(power_law(), readings.shrinkages())
    lines = readings.theory_table(readings.NATURAL, 3072, found).rows
    made = {(None if line[0] == "ddpm" else line[0], line[1] or "ddpm"): line[2:5] for line in lines[: len(TABLE)]}
    assert made.keys() == TABLE.keys()
    for key, expected in TABLE.items():
        assert made[key] == pytest.approx(expected, rel=0.02, abs=0.05)
    order = {reading: claim.holds for reading, claim in zip(READINGS, readings.claims_of_theory(found), strict=True)}
    assert order == {name: name in ("published", "beta at least 0.05") for name in READINGS}


@pytest.mark.parametrize(("name", "kind"), TABLE)
def test_the_table_by_which_the_reading_was_chosen(name, kind):
    """An independent computation of the same table: natural spectrum i^-1.35, 3,072 directions, std 0.5, 1,000 DDPM steps."""
    objective = Objective(kind, LINEAR) if name is None else reading(name, kind)
    lambda_c = shrinkage(objective, torch.arange(1000))
    clean = power_law()
    noisy = torch.cat([clean + 0.9 * std**2 for std in (0, 0.1, 0.2)])
    drawn = sampled_variance(LINEAR, noisy, lambda_c).chunk(3)
    for found, expected in zip(drawn, TABLE[name, kind], strict=True):
        rounding = 0.005 if expected < 0.1 else 0.05
        assert frechet(found, clean).item() == pytest.approx(expected, rel=0.02, abs=rounding)
