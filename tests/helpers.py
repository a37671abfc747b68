"""What tests share: ideal networks of Gaussian data, seeded generators, and the command line in process."""

from contextlib import suppress
from importlib import import_module

import torch
from torch import nn

from atdm.cli import main
from atdm.cli.parser import make_parser
from atdm.diffusion.process import Process
from atdm.errors import UserError

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


class _Parsed(Exception):
    """A command got past its parser."""


def parsed(words, monkeypatch):
    """The parser of a command, and what it makes of the words (None: it refuses them); the command does no more."""
    module, found = import_module(f"atdm.cli.{words[0]}"), []

    def make(*command):
        parser = make_parser(*command)
        parse = parser.parse_args

        def stop(*args, **options):
            try:
                found.append((parser, parse(*args, **options)))
            except UserError:
                found.append((parser, None))
            raise _Parsed

        parser.parse_args = stop
        return parser

    with monkeypatch.context() as patch, suppress(_Parsed):
        patch.setattr(module, "make_parser", make)
        module.run(words[1:])
    return found[0]
