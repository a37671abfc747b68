"""What tests share: ideal networks of Gaussian data, seeded generators, and the command line in process."""

import torch
from torch import nn

from atdm.cli import main
from atdm.diffusion.process import Process

LINEAR = Process.linear()
UNRESPACED = "ddpm-unrespaced"  # does not reach the data, and is not meant to
STOCHASTIC = {"ddpm", "sde-dpm-solver++", "euler-ancestral", UNRESPACED}
S = 0.5  # standard deviation of the data of the ideal denoiser


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


D = 4
STDS = torch.tensor([1.0, 0.5, 0.2, 0.05])
TURN = torch.linalg.qr(torch.randn(D, D, generator=seeded(8)))[0]


class Ideal(nn.Module):
    """The ideal network for data N(0, S^2 I): eps = sigma x / (alpha^2 S^2 + sigma^2), written in any prediction."""

    def __init__(self, process=LINEAR):
        super().__init__()
        self.process = process
        self.calls = 0

    def forward(self, x, t, shift=None):
        self.calls += 1
        alpha, sigma = self.process.alpha(t, x), self.process.sigma(t, x)
        eps = sigma * x / (alpha**2 * S**2 + sigma**2)
        out = self.process.target((x - sigma * eps) / alpha, eps, t)
        return out if shift is None else out + shift.reshape(-1, *[1] * (x.dim() - 1))


class Gaussian(nn.Module):
    """The ideal network for data N(0, C), C of standard deviations STDS along the columns of TURN."""

    def forward(self, x, t):
        alpha, sigma = LINEAR.alpha(t, x), LINEAR.sigma(t, x)
        gain = sigma / (alpha**2 * STDS**2 + sigma**2)
        return (gain * (x @ TURN)) @ TURN.T


def atdm(capsys, *words):
    """Exit code, standard output and standard error of a command."""
    code = 0
    try:
        main(list(words))
    except SystemExit as end:
        code = end.code or 0
    out = capsys.readouterr()
    return code, out.out, out.err
