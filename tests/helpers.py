"""What tests share: ideal networks of Gaussian data, seeded generators, the command line in process, and the pages of the documentation."""

import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from functools import cache
from importlib import import_module
from pathlib import Path

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


class Warm:
    """A process that has everything imported and forks one for each command, which then starts at once.

    Args:
        environment: of the commands, beside that of the tests.
    """

    CODE = """
import atexit, gc, importlib, json, os, sys, threading
for name in sys.argv[1:]:
    importlib.import_module(name)
from atdm.cli import main
importlib.import_module("diffusers").DDPMPipeline
def leave(code):  # without taking all that was imported down, which copies it first
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and not thread.daemon:
            thread.join()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code or 0)
gc.freeze()
for line in sys.stdin:
    order = json.loads(line)
    children = []
    for rank in order["ranks"]:
        child = os.fork()
        if not child:
            os.environ.update(rank | {"ATDM_PARENT": str(os.getppid())} if rank else {})
            for stream, file in ((1, order["out"]), (2, order["err"])):
                os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
            try:
                exec(order["before"], {})
                main(order["words"])
            except SystemExit as end:
                leave(end.code)
            leave(0)
        children.append(child)
    print(json.dumps(children), flush=True)
    print(json.dumps([os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]), flush=True)
"""
    MODULES = (
        "atdm.cli.train",
        "atdm.cli.evaluate",
        "atdm.cli.export",
        "atdm.cli.sample",
        "atdm.training.run",
        "atdm.training.share",
        "atdm.plot.samples",
        "accelerate",
        "matplotlib.pyplot",
        "torch.utils.tensorboard",
        "sklearn.datasets",
        "jsonargparse",
        "docstring_parser",
        "huggingface_hub.repocard",
        "ot",
    )

    def __init__(self, folder, **environment):
        threads = {"OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg"}
        self.process = subprocess.Popen(
            [sys.executable, "-c", self.CODE, *self.MODULES],
            env=os.environ | threads | environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.out, self.err = folder / "out", folder / "err"
        self.running = []

    def begin(self, words, before="", ranks=1, copies=1):
        """The processes of ``atdm`` with ``words``, once Python code was executed in them.

        Args:
            ranks: processes of one run.
            copies: processes that know nothing of each other.
        """
        if self.running:  # an earlier test failed before the end of its command
            for pid in self.running:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self.end()
        for file in (self.out, self.err):
            file.unlink(missing_ok=True)
        common = {
            "WORLD_SIZE": str(ranks),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(_free_port()),
            "ACCELERATE_USE_CPU": "true",
        }
        each = [{**common, "RANK": str(r), "LOCAL_RANK": str(r), "LOCAL_WORLD_SIZE": str(ranks)} for r in range(ranks)]
        order = {
            "words": [str(word) for word in words],
            "before": before,
            "ranks": each if ranks > 1 else [{}] * copies,
            "out": str(self.out),
            "err": str(self.err),
        }
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        self.running = json.loads(self.process.stdout.readline())
        return self.running

    def end(self):
        """Their exit codes, and what they wrote to standard error."""
        codes = json.loads(self.process.stdout.readline())
        self.running = []
        return codes, self.err.read_text()

    def __call__(self, words, before=""):
        """Exit code and standard error of one command."""
        self.begin(words, before)
        codes, err = self.end()
        return codes[0], err

    def succeeds(self, words, before="", ranks=1):
        """Standard output of a command that ends well, or of Python code alone."""
        self.begin(words, before if words else f"{before}\nraise SystemExit", ranks)
        codes, err = self.end()
        assert not any(codes), err
        return self.out.read_text()

    def close(self):
        """End it, and whatever still runs of what it began."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def _free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


# --- pages of the documentation ---------------------------------------------------------------------------------------
ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted((ROOT / "docs").rglob("*.md"))
NOTEBOOKS = sorted((ROOT / "docs" / "tutorials").glob("*.ipynb"))
FRONT = [ROOT / name for name in ("README.md", "CONTRIBUTING.md")]
WRITTEN = [*FRONT, *PAGES, *NOTEBOOKS]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def name_of(file: Path) -> str:
    return file.relative_to(ROOT).as_posix()


@cache
def text_of(file: Path) -> str:
    """The Markdown of a page, or of the cells of a notebook, whose code becomes fenced blocks."""
    text = file.read_text(encoding="utf-8")
    if file.suffix != ".ipynb":
        return text
    cells = [(cell["cell_type"], "".join(cell["source"])) for cell in json.loads(text)["cells"]]
    return "\n\n".join(source if kind == "markdown" else f"```python\n{source}\n```" for kind, source in cells)


def blocks(file: Path, language: str) -> list[str]:
    return [code for found, code in FENCE.findall(text_of(file)) if found == language]


def commands(file: Path) -> list[list[str]]:
    """The words of every ``atdm`` command on a page, also behind ``accelerate launch`` and in a notebook."""
    code = "\n".join(
        [*blocks(file, "bash"), *re.findall(r"^\s*!(.*)$", "\n".join(blocks(file, "python")), re.MULTILINE)]
    )
    lines = re.findall(r"^(?:accelerate launch .*?\$\(which atdm\)|atdm)\s+([^\n&]*)", code, re.MULTILINE)
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def pictures(n, noisy=0, side=16, std=0.2):
    """Smooth images in color of which the first hold noise."""
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(n, 3, 3, 3, generator=generator) * 1.6 - 0.8
    x = torch.nn.functional.interpolate(corners, size=side, mode="bicubic", align_corners=True)
    x = x + 0.01 * torch.randn(x.shape, generator=generator)
    x[:noisy] += std * torch.randn(x[:noisy].shape, generator=generator)
    return x[torch.randperm(n, generator=generator)]
