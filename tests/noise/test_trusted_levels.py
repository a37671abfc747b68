"""From which noise level on items are as good as trusted ones: against Bayes-optimal classifiers and known corruptions."""

import math

import numpy as np
import pytest
import torch

from atdm.corruption import parse_corruption, truth_of
from atdm.data import load
from atdm.data.source import Source
from atdm.experiments.trusted import auc
from atdm.noise import Levels, least_levels
from atdm.noise.trusted import GRID, HIGH, LOW, MARGIN, first_level
from helpers import seeded

GRID_OF_ONE = torch.logspace(math.log10(LOW), math.log10(HIGH), GRID)


def bayes(x, s, tau, sigma):
    """Probability that ``x + sigma z`` is of N(0, s^2) and not of N(0, s^2 + tau^2), as many of either, averaged over z."""
    z, weight = np.polynomial.hermite_e.hermegauss(64)
    state = x[:, None, :] + sigma * torch.from_numpy(z)[None, :, None]
    a, b = s**2 + sigma**2, s**2 + tau**2 + sigma**2
    difference = (0.5 * state.square() * (1 / b - 1 / a) + 0.5 * math.log(b / a)).sum(-1)
    return (difference.sigmoid() * torch.from_numpy(weight / weight.sum())).sum(1)


def test_the_threshold_rule_on_bayes_optimal_probabilities_of_gaussians_in_one_dimension():
    x = torch.linspace(-6, 6, 49).double()[:, None]
    chances = torch.stack([bayes(x, 1.0, 2.0, sigma) for sigma in GRID_OF_ONE.tolist()])
    found = first_level(chances.float(), GRID_OF_ONE)
    padded = torch.cat([chances[:1], chances, chances[-1:]])
    for i in range(len(x)):
        mean = [float(padded[k : k + 3, i].mean()) for k in range(GRID)]
        first = next(k for k in range(GRID) if mean[k] > 0.5 - MARGIN)
        assert found[i] == (GRID_OF_ONE[first] if first else 0)
    # Where the wide density is below the narrow one the item is as good as trusted from the start; far out the later the farther.
    crossing = math.sqrt(2 * math.log(math.sqrt(5)) / (1 - 1 / 5))
    assert (found[x[:, 0].abs() < crossing] == 0).all()
    far = found[x[:, 0] >= crossing + 0.5]
    assert (far > 0).all()
    assert (far.diff() >= 0).all()


def test_the_rule_is_zero_where_the_first_level_will_do_and_inf_where_none_will():
    never, always, late = torch.zeros(GRID), torch.ones(GRID), torch.zeros(GRID)
    late[10:] = 1
    found = first_level(torch.stack([never, always, late], 1), GRID_OF_ONE)
    assert found.tolist() == [math.inf, 0, GRID_OF_ONE[10].item()]


def test_levels_grow_with_the_variance_that_is_added_and_are_near_the_bayes_optimal_ones():
    d, n, s = 12, 600, 1.0
    trusted, before = s * torch.randn(300, d, generator=seeded(1)), 0.0
    for tau in (1.5, 3.0, 6.0):
        x = math.hypot(s, tau) * torch.randn(n, d, generator=seeded(2))
        found = least_levels(x, trusted)
        ideal = first_level(
            torch.stack([bayes(x.double(), s, tau, v) for v in found.grid.tolist()]).float(), found.grid
        )
        middle, best = float(found.stds.median()), float(ideal.median())
        assert middle > before
        assert best / 2.5 < middle < 2.5 * best
        before = middle


def test_items_of_the_trusted_distribution_are_good_at_every_level():
    found = least_levels(torch.randn(800, 6, generator=seeded(3)), torch.randn(100, 6, generator=seeded(4)))
    assert float((found.stds == 0).double().mean()) > 0.9


@pytest.mark.parametrize(
    ("corruption", "least", "clean"),
    [
        ("gaussian:share=0.9,std=0.2", 0.93, 0.9),
        ("outliers:share=0.1", 0.95, 0.8),
        ("jpeg:share=0.9,quality=10", 0.93, 0.9),
        ("patch:share=0.5,size=0.4", 0.82, 0.7),
    ],
)
def test_corrupted_digits_have_higher_levels_than_untouched_ones(corruption, least, clean):
    digits = load("digits", limit=500)
    x = Source(digits.items, parse_corruption(corruption)).first(500)
    touched = torch.from_numpy(truth_of(corruption, 500, (1, 8, 8), 0).corrupted)
    steps = []
    found = least_levels(x, digits.test[:150], progress=lambda done, total: steps.append((done, total)))
    assert auc(found.stds, touched) > least
    assert float((found.stds[~touched] == 0).double().mean()) > clean
    assert float(found.stds[touched].median()) > 0.2
    assert steps[-1] == (GRID, GRID)


def test_levels_depend_on_the_seed_alone_and_say_what_was_found():
    x, trusted = torch.randn(60, 1, 8, 8, generator=seeded(5)), torch.randn(30, 1, 8, 8, generator=seeded(6)) + 1
    assert torch.equal(least_levels(x, trusted, 3).stds, least_levels(x, trusted, 3).stds)
    told = Levels(torch.tensor([0.0, 0.5, 0.7, math.inf]), GRID_OF_ONE, 2.0).explain()
    assert told == (
        "Of 4 items 25 % are as good as trusted ones at every noise level, half of the others from 0.5 on, 25 % at none (2 s)."
    )


def test_large_images_are_judged_too():
    x = torch.rand(40, 3, 64, 48, generator=seeded(7)) * 2 - 1
    assert len(least_levels(x, torch.zeros(20, 3, 64, 48)).stds) == 40
