"""Every claim on speed beside its peer, in turns, by one command.

python benchmarks/run.py                     # all rows, half an hour of one core
python benchmarks/run.py imports neighbours  # some of them
python benchmarks/run.py --write             # also write benchmarks/table.md

Processor time of one thread. Rows whose peer is not installed (pip install 'atdm[benchmark]') say so.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from _timing import interleaved

PAGE = Path(__file__).resolve().with_name("table.md")
ROOT = PAGE.parent.parent
TRAIN = "train --data plane:n=300 --objective ddpm --json"


class Row(NamedTuple):
    """A line of the table; seconds of ours and of the peer, or a ratio that was measured as one; the peer may be a goal."""

    what: str
    peer: str
    ours: float | None
    theirs: float | None
    ratio: float


def against(what: str, peer: str, taken: dict[str, float]) -> Row:
    return Row(what, peer, taken["atdm"], taken["peer"], taken["atdm"] / taken["peer"])


def child(*words: str, threads: int = 1) -> Callable[[], None]:
    """A Python process, whose processor time is that of this process's children."""
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}

    def run() -> None:
        subprocess.run([sys.executable, *words], env=environment, check=True, capture_output=True, cwd=ROOT)

    return run


def children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def imports(rounds: int) -> Iterator[Row]:
    """A training of one step with an MLP, beside what any training with torch imports."""
    floor = "import torch; torch.optim.AdamW(torch.nn.Linear(1, 1).parameters(), fused=True)"
    with tempfile.TemporaryDirectory() as folder:
        words = "train --data plane:n=60 --net mlp:width=8 --batch_size 8 --warmup 0 --steps 1 --threads 1 --json --out"
        turns = iter(range(1000))
        functions = {
            "atdm": lambda: child("-m", "atdm", *words.split(), f"{folder}/{next(turns)}")(),
            "torch": child("-c", "import torch"),
            "peer": child("-c", floor),
        }
        functions["atdm"]()  # fills the caches of the disk
        taken = interleaved(functions, rounds, clock=children)
    yield against("a training of one step, MLP", "import torch", taken | {"peer": taken["torch"]})
    yield against("a training of one step, MLP", "import torch and make an AdamW", taken)


def frechet(rounds: int) -> Iterator[Row]:
    from metrics import frechet_row

    for d in (768, 2048):
        yield against(f"Frechet distance, d {d}", "torchmetrics", frechet_row(d, 5000, rounds))


def neighbours(rounds: int) -> Iterator[Row]:
    from metrics import neighbours_row

    for d in (64, 768):
        taken = neighbours_row(d, 5000, rounds)
        if "peer" in taken:
            yield against(f"precision, recall, density, coverage, 5,000 items, d {d}", "prdc", taken)
        else:
            print("neighbours: prdc is not installed", file=sys.stderr)


def audits(rounds: int) -> Iterator[Row]:
    """An audit beside a robust covariance from random starts, which it does without."""
    from atdm.audit import audit
    from atdm.audit.outliers import shrink
    from atdm.data.items import Pixels
    from atdm.data.source import Source
    from audit import random_start, synthetic

    for n in (2000, 10_000, 50_000):
        source = Source(Pixels(synthetic(n).numpy()))
        small = torch.cat([shrink(source.items[rows]) for rows in torch.arange(n).split(1024)])
        functions = {"atdm": lambda source=source: audit(source), "peer": lambda small=small: random_start(small)}
        yield against(
            f"audit of {n:,} images",
            "scikit-learn's MinCovDet alone",
            interleaved(functions, 1 if n > 10_000 else rounds),
        )


def steps(rounds: int) -> Iterator[Row]:
    """Training steps: as atdm bench measures them, over the step of diffusers' own example or of ddpm."""
    from atdm.training.bench import EXAMPLE, HALF, Options, measure

    for net, batch in (("mlp", 256), ("digits", 64)):
        ratio = measure(Options(net, batch_size=batch, seconds=10.0 * rounds, threads=1, device="cpu"))["ratio"]
        example = ratio[EXAMPLE]
        yield Row(f"ddpm step, {net}", "diffusers' training example", None, None, 1 / example)
        yield Row(f"published robust_adv step, {net}", "ddpm step", None, None, ratio["robust_adv"])
        yield Row(f"published robust_adv, every 2, {net}", "ddpm step", None, None, ratio[HALF])
        yield Row(f"auto step, {net}", "ddpm step", None, None, ratio["auto"])


def floors(rounds: int) -> Iterator[Row]:
    """Training steps of ddpm beside the least that one can write by hand."""
    from floor import floor_row

    for net, batch in (("mlp", 256), ("digits", 64), ("tiny", 64)):
        yield against(f"ddpm step, {net}", "a step written by hand", floor_row(net, batch, 10 * rounds))


def threads(rounds: int) -> Iterator[Row]:
    """A training of a small network on as many threads as it chooses, beside one on all cores."""
    cores = os.cpu_count() or 1
    with tempfile.TemporaryDirectory() as folder:
        words = f"{TRAIN} --net mlp --batch_size 256 --steps 1500 --out".split()
        turns = iter(range(1000))
        functions = {
            "atdm": lambda: child("-m", "atdm", *words, f"{folder}/{next(turns)}", threads=cores)(),
            "peer": lambda: child(
                "-m", "atdm", *words, f"{folder}/{next(turns)}", f"--threads={cores}", threads=cores
            )(),
        }
        yield against(
            "a training of 1,500 steps, MLP", f"with --threads {cores}", interleaved(functions, rounds, children)
        )


def memory(rounds: int) -> Iterator[Row]:
    """What ``atdm bench`` says of auto's memory: its largest step, over ddpm's."""
    from atdm.training.bench import Options, measure

    peak = measure(Options("digits", seconds=1.0, threads=1, device="cpu"))["peak_memory"]
    yield Row(
        "tensors of auto, digits (MB)", "of ddpm", peak["auto"] / 1e6, peak["ddpm"] / 1e6, peak["auto"] / peak["ddpm"]
    )


def demo(rounds: int) -> Iterator[Row]:
    with tempfile.TemporaryDirectory() as folder:
        taken = interleaved({"atdm": child("-m", "atdm", "demo", "--out", folder, "--quiet", "true")}, 1, children)
    yield against("atdm demo", "the goal", taken | {"peer": 360.0})


def tests(rounds: int) -> Iterator[Row]:
    """The wait for ``make test`` on the wall."""
    import time

    begin = time.perf_counter()
    child("-m", "pytest", "-n", "2", "--dist", "loadfile")()
    yield against("make test, on the wall", "the goal", {"atdm": time.perf_counter() - begin, "peer": 300.0})


def sampling(rounds: int) -> Iterator[Row]:
    """Samples of an MLP beside the loop of diffusers' DDPMPipeline."""
    from diffusers import DDPMScheduler

    from atdm.diffusion.process import Process
    from atdm.diffusion.sampling import sample
    from atdm.nets import build_net

    net, process, n = build_net("mlp", (3,)), Process.linear(), 1024
    scheduler = DDPMScheduler(beta_schedule="linear", timestep_spacing="trailing", clip_sample=False)

    @torch.no_grad()
    def pipeline() -> None:
        scheduler.set_timesteps(100)
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(n, 3, generator=generator)
        for t in scheduler.timesteps:
            x = scheduler.step(net(x, t).sample, t, x, generator=generator).prev_sample

    functions = {
        "atdm": lambda: sample(net, process, n, (3,), sampler="ddpm", steps=100, batch_size=n),
        "peer": pipeline,
    }
    yield against("1,024 samples of an MLP in 100 steps", "diffusers' loop", interleaved(functions, 3 * rounds))


def bf16(rounds: int) -> Iterator[Row]:
    from atdm.nets import build_net
    from atdm.nets.speed import bf16_slowdown

    yield Row(
        "both passes through a convolution, bfloat16",
        "float32",
        None,
        None,
        bf16_slowdown(build_net("digits", (1, 8, 8))),
    )


def checkpoints(rounds: int) -> Iterator[Row]:
    """What a training waits for when a checkpoint of 40 million numbers is written, beside writing it."""
    import time

    from atdm.nets import build_net
    from atdm.training.checkpoint import Writer
    from atdm.training.config import Settings
    from atdm.training.train import State

    state = State.create(build_net("mlp:width=4096,depth=2", (3,)), Settings())
    with tempfile.TemporaryDirectory() as folder:
        writer, waits, wholes = Writer(Path(folder), 1), [], []
        for turn in range(1 + rounds):
            state.step = turn + 1
            begin = time.perf_counter()
            writer.save(state)
            waits.append(time.perf_counter() - begin)
            writer.wait()
            wholes.append(time.perf_counter() - begin)
    ours, theirs = min(waits), min(wholes)
    yield Row("a training's wait for a checkpoint", "writing it, on the wall", ours, theirs, ours / theirs)


ROWS: dict[str, Callable[[int], Iterator[Row]]] = {
    f.__name__: f
    for f in (
        imports,
        frechet,
        neighbours,
        audits,
        floors,
        steps,
        threads,
        memory,
        sampling,
        bf16,
        checkpoints,
        demo,
        tests,
    )
}


def table(rows: list[Row]) -> str:
    """The rows in Markdown, and how they were measured."""

    def cell(seconds: float | None) -> str:
        return "" if seconds is None else f"{seconds:.3g}"

    lines = ["| what | seconds | beside | seconds | ratio |", "|---|---:|---|---:|---:|"]
    lines += [f"| {r.what} | {cell(r.ours)} | {r.peer} | {cell(r.theirs)} | {r.ratio:.2f} |" for r in rows]
    load = f", load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    made = f"torch {torch.__version__}, Python {platform.python_version()}, {os.cpu_count()} cores{load}"
    return "\n".join([*lines, "", f"Processor time of one thread, medians; `python benchmarks/run.py`; {made}."])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("rows", nargs="*", default=[*ROWS], help=", ".join(ROWS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--write", action="store_true", help="write benchmarks/table.md")
    given = parser.parse_args()
    if unknown := [name for name in given.rows if name not in ROWS]:
        parser.error(f"unknown rows {', '.join(unknown)}; expected some of {', '.join(ROWS)}")
    torch.set_num_threads(1)
    found: list[Row] = []
    for name in given.rows:
        for row in ROWS[name](given.rounds):
            print(json.dumps({"row": name, **row._asdict()}), flush=True)
            found.append(row)
    print(table(found))
    if given.write:
        PAGE.write_text(f"# Measured by benchmarks/run.py\n\n{table(found)}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
