"""The consistency term: what is asked of a network below the noise of its data, against the closed forms of Gaussian data."""

import dataclasses

import pytest
import torch

from atdm.diffusion.process import Process
from atdm.objective import Ambient, AmbientConsistent, Objective

N, VARIANCE, LEVEL = 100_000, 0.25, 0.5


def noisy(generator):
    return VARIANCE**0.5 * torch.randn(N, 1, generator=generator) + LEVEL * torch.randn(N, 1, generator=generator)


class Denoiser:
    """``D(x_t, t) = c / (c + r^2) x_t / alpha_t`` at the level r of each timestep: of Gaussian data of variance c the mean of x_0."""

    def __init__(self, process, variance, below=None):
        self.process, self.variance, self.below = process, variance, variance if below is None else below

    def __call__(self, x, t):
        r = self.process.ratio(t)
        c = torch.where(r < LEVEL, self.below, self.variance)
        denoised = (c / (c + r**2)).unsqueeze(1) * x / self.process.alpha(t, x)
        return (x - self.process.alpha(t, x) * denoised) / self.process.sigma(t, x)


def loss_of(process, generator, hops=2, share=0.5):
    """The loss, items, and draws that lead to a timestep at this share of the way down to 0."""
    objective = AmbientConsistent(process, hops=hops, known=True, seed=1)
    x = noisy(generator)
    draws = objective.draw(x.shape, generator=generator)
    return objective, x, dataclasses.replace(draws, beta=torch.full((N,), share))


def errors(objective, net, x, draws):
    """The consistency term in its standard errors."""
    term = objective(net, x, draws=draws, levels=torch.full((N,), LEVEL)).regularizer.double()
    return float(term.mean() / (term.std() / N**0.5))


@pytest.mark.parametrize("process", [Process.linear(), Process.cosine()], ids=["linear", "cosine"])
@pytest.mark.parametrize("hops", [1, 2, 4])
@pytest.mark.parametrize("share", [0.2, 0.4])
def test_the_clean_denoiser_is_consistent_and_others_are_not(process, hops, share, generator):
    found = [
        errors(objective, Denoiser(process, VARIANCE, below), x, draws)
        for below in (VARIANCE, 0.5 * VARIANCE, VARIANCE + LEVEL**2)
        for objective, x, draws in [loss_of(process, generator, hops, share)]
    ]
    assert abs(found[0]) < 3.5
    assert min(found[1:]) > 10


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
def test_the_optimum_below_the_noise_of_the_data_is_the_clean_denoiser(share, generator):
    """The best multiple of the state at the drawn timestep, with the clean denoiser above, is that of clean data."""
    process = Process.linear()
    objective, x, draws = loss_of(process, generator, 1, share)
    levels = torch.full((N,), LEVEL)
    truth, first = Denoiser(process, VARIANCE), int(process.timestep_at(LEVEL))
    last = torch.tensor([int((1 - share) * first)])
    r = process.ratio(last)

    def loss(a):
        def net(x, t):
            x0 = a * x / process.alpha(t, x)
            return torch.where(
                (t == last).unsqueeze(1), (x - process.alpha(t, x) * x0) / process.sigma(t, x), truth(x, t)
            )

        return objective(net, x, draws=draws, levels=levels).regularizer.double().mean()

    low, middle, high = (float(loss(a)) for a in (0.0, 0.5, 1.0))
    best = 0.5 + 0.5 * (low - high) / (2 * (low - 2 * middle + high))
    assert best == pytest.approx(float(VARIANCE / (VARIANCE + r**2)), rel=0.02)


def test_training_on_noise_alone_finds_what_ambient_does_not(generator):
    process, x = Process.linear(), noisy(generator)
    levels = torch.full((512,), LEVEL)
    ends = {}
    for objective in (Ambient(process), AmbientConsistent(process, weight=1.0, known=True)):
        logs = torch.tensor([0.7, 0.7], requires_grad=True)  # of the variances above and below the level
        optimizer = torch.optim.Adam([logs], lr=0.02)
        for _ in range(400):
            variances = logs.exp()
            batch = x[torch.randint(N, (512,), generator=generator)]
            draws = objective.draw(batch.shape, generator=generator)
            objective(Denoiser(process, *variances), batch, draws=draws, levels=levels).loss.mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        ends[type(objective)] = logs.exp().tolist()
    assert ends[Ambient][0] == pytest.approx(VARIANCE, rel=0.1)
    assert ends[Ambient][1] > 6 * VARIANCE  # as it was
    assert ends[AmbientConsistent] == pytest.approx([VARIANCE] * 2, rel=0.15)


def test_gradients_reach_the_two_last_predictions_alone(generator):
    process = Process.linear()
    objective, x, draws = loss_of(process, generator, hops=3)
    seen = []

    def net(x, t):
        seen.append((torch.is_grad_enabled(), t.clone()))
        return 0.5 * x

    objective(net, x, draws=draws, levels=torch.full((N,), LEVEL))
    assert [able for able, _ in seen] == [False] * 5 + [True] * 3
    first = process.timestep_at(LEVEL)
    last = first // 2
    path = [first + (last - first) * k // 3 for k in (1, 2)]
    assert [int(t[0]) for _, t in seen[:7]] == [first, *path, *path, last, last]


def test_items_that_are_clean_are_ddpms(generator):
    process, x = Process.linear(), torch.randn(64, 3, generator=generator)
    objective, plain = AmbientConsistent(process, known=True), Objective("ddpm", process)
    draws = objective.draw(x.shape, generator=generator)
    terms = objective(lambda x, t: 0.3 * x, x, draws=draws, levels=torch.zeros(64))
    assert torch.equal(terms.loss, plain(lambda x, t: 0.3 * x, x, draws=draws).loss)


def test_what_is_estimated_needs_items_that_show_it():
    assert AmbientConsistent(Process.linear(), known=True).levels_from == "truth"
    assert AmbientConsistent(Process.linear()).levels_from == "items"
