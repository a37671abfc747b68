"""The way back from noisy items: what is drawn, of Gaussian data, has variances in closed form."""

import pytest
import torch

from atdm.diffusion.backward import backward, timesteps_of
from atdm.diffusion.process import Process
from helpers import LINEAR, STDS, TURN, Gaussian, Ideal, S, seeded

N = 8000
PROCESSES = {
    "linear": LINEAR,
    "v": Process.linear(prediction="v_prediction"),
    "cosine": Process.cosine(),
    "flow": Process.flow(),
    "edm": Process.edm(),
}


def test_the_timestep_is_the_nearest():
    t = timesteps_of(LINEAR, torch.tensor([0.0, 0.1, 0.2, 1e9]))
    ratios = LINEAR.ratio(torch.arange(LINEAR.steps))
    assert t[0] == 0
    assert t[3] == LINEAR.steps - 1
    for found, std in zip(t[1:3].tolist(), (0.1, 0.2), strict=True):
        assert abs(ratios[found] - std) == (ratios - std).abs().min()


@pytest.mark.parametrize("name", PROCESSES)
def test_from_every_level_the_ideal_network_comes_back_to_clean_data(name):
    process, generator = PROCESSES[name], seeded()
    ideal, times = Ideal(process), process.time(torch.arange(process.steps))

    def net(x, time):  # the ideal network is given t itself
        return ideal(x, torch.searchsorted(times, time))

    stds = torch.tensor([0.1, 0.4, 1.5]).repeat_interleave(N)
    y = S * torch.randn(3 * N, 1, generator=generator) + stds[:, None] * torch.randn(3 * N, 1, generator=generator)
    drawn = backward(net, process, y, stds, evaluations=40, generator=generator)
    assert (drawn.reshape(3, N).std(1) / S - 1).abs().max() < 0.03
    # The posterior mean, which restoring gives, would have less: S^2 / sqrt(S^2 + s^2).
    mean = S**2 / (S**2 + 1.5**2) * y[-N:]
    assert mean.std() < 0.5 * drawn[-N:].std()
    # Given y the draws vary as the posterior does.
    rest = (drawn - S**2 / (S**2 + stds[:, None] ** 2) * y).reshape(3, N).std(1)
    posterior = (S * stds / torch.hypot(torch.tensor(S), stds)).reshape(3, N)[:, 0]
    assert torch.allclose(rest, posterior, rtol=0.05)


@pytest.mark.parametrize("s", [0.1, 0.5])
def test_a_round_moves_every_variance_by_the_share_of_the_closed_form(s):
    """The network believes in other variances c_0 than those c of the data: (c_0 / (c_0 + s^2))^2 of the error goes."""
    generator, believed, true = seeded(), STDS.square(), 2.5 * STDS.square()
    x = (true.sqrt() * torch.randn(N, len(STDS), generator=generator)) @ TURN.T
    y = x + s * torch.randn(x.shape, generator=generator)
    drawn = backward(Gaussian(), LINEAR, y, torch.full((N,), s), evaluations=40, generator=generator)
    expected = believed + (believed / (believed + s**2)).square() * (true - believed)
    # The way ends at the lowest level of the process, 0.01, which shrinks the direction of std 0.05 by 5 %.
    assert torch.allclose((drawn @ TURN).std(0), expected.sqrt(), rtol=0.08)


def test_the_draws_are_those_of_the_generator(generator):
    y, stds = torch.randn(8, 4, generator=generator), torch.linspace(0.05, 2, 8)
    one, two, other = (
        backward(Gaussian(), LINEAR, y, stds, evaluations=5, generator=seeded(seed)) for seed in (1, 1, 2)
    )
    assert torch.equal(one, two)
    assert not torch.equal(one, other)
