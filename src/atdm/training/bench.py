"""Cost of a training step: every objective and the step of diffusers' own example, interleaved in one run.

Other programs share the machine, so a time alone says little. The contestants take turns, each turn is compared with
ddpm's turn of the same round, and the median over the rounds is the ratio. On a CPU the clock is the processor time of
this program, which does not run while another has the processor.
"""

from __future__ import annotations

import itertools
import math
import os
import platform
import random
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .. import __version__
from ..data.items import Floats
from ..data.source import Source
from ..diffusion.process import Process
from ..errors import UserError
from ..nets import build_net, call, count_parameters, flops
from ..nets.speed import threads
from ..objective import BASELINES, KINDS, Loss, Objective, auto
from ..objective.perturb import ConstantRadius, Perturbation, RelativeWeight
from .bench_options import Options
from .config import Settings
from .train import State, fit

if TYPE_CHECKING:
    from accelerate import Accelerator

AUTO, EXAMPLE = "auto", "diffusers"
HALF = "robust_adv, every 2"  # the published objective with its perturbation in one of two steps
TURN = 0.02  # seconds of ddpm in a turn, so that a clock's tick and a switch between contestants do not count
PEAKS = 10  # steps of auto of which the largest counts: a perturbation comes at random in one of every two
TWICE = 2  # perturbed steps on average in a turn of auto
MOST_ROUNDS = 200


def measure(options: Options, progress: Callable[[str], None] = lambda note: None) -> dict[str, Any]:
    """Measure every contestant; see :class:`Options`.

    Returns:
        ``ratio`` (a step's time over ddpm's) and ``floor`` (what the passes imply for it), of ``auto`` on average over a
        training, of which a part is ddpm's; ``passes`` of a step that may perturb; ``samples_per_second`` of such steps, by the
        wall; ``peak_memory`` (bytes of tensors: weights, average and optimizer, and the most that a step adds to them); and
        ``provenance``.
    """
    with threads(options.threads or torch.get_num_threads()):
        return _measured(options, progress)


def _measured(options: Options, progress: Callable[[str], None]) -> dict[str, Any]:
    begin = time.perf_counter()
    device = torch.device("cuda" if options.device != "cpu" and torch.cuda.is_available() else "cpu")
    objectives = _objectives(Process.linear(), options)
    loops = _loops(options, objectives, device)
    # In a turn a contestant makes as many steps as bring ddpm to TURN. The first steps of each are for warming up.
    progress("warming up")
    for loop in loops.values():
        _timed(loop, 1, device)
    sizes = {
        name: max(_peak(loop, device) for _ in range(PEAKS if name in (AUTO, HALF) else 1))
        for name, loop in loops.items()
    }
    turn = max(1, round(TURN / _timed(loops["ddpm"], 2, device)[0]))
    perturbed = TWICE * auto.EVERY * -(-turn // auto.EVERY)  # perturbed steps come at random
    turns = dict.fromkeys(loops, turn) | dict.fromkeys((AUTO, HALF), perturbed)
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in loops}
    order, shuffle = list(loops), random.Random(0)
    longest = 0.0
    while len(times["ddpm"]) < MOST_ROUNDS:
        since = time.perf_counter()
        if times["ddpm"] and since - begin + longest > options.seconds:
            break
        shuffle.shuffle(order)  # no contestant always runs after the same other
        for name in order:
            times[name].append(_timed(loops[name], turns[name], device))
        longest = max(longest, time.perf_counter() - since)
        progress(f"{len(times['ddpm'])} rounds")
    plain = times["ddpm"]
    passes = {name: objective.passes() for name, objective in objectives.items()}
    ratios = {n: statistics.median(a / b for (a, _), (b, _) in zip(t, plain, strict=True)) for n, t in times.items()}
    walls = {n: statistics.median(wall for _, wall in t) for n, t in times.items()}
    floors = {n: p.pop("floor_over_ddpm") for n, p in passes.items()}
    for costs in (ratios, floors):  # auto perturbs in the last part of the training only
        costs[AUTO] = 1 + (costs[AUTO] - 1) * (1 - auto.START)
    return {
        "ratio": ratios,
        "samples_per_second": {n: options.batch_size / wall for n, wall in walls.items()},
        "peak_memory": sizes,
        "floor": floors,
        "passes": passes,
        "provenance": _provenance(options, device, len(plain), turn, time.perf_counter() - begin),
    }


def _objectives(process: Process, options: Options) -> dict[str, Loss]:
    """Ours, ``auto`` and, if asked for, the baselines that can learn from items of that shape."""
    perturbation = Perturbation("l2", steps=1, kappa=math.inf)
    r = auto.LENGTH / math.sqrt(math.prod(options.item_shape()))
    objectives: dict[str, Loss] = {name: Objective(name, process) for name in KINDS}
    objectives[HALF] = Objective("robust_adv", process, every=2)
    objectives[AUTO] = Objective(
        "robust_adv",
        process,
        ConstantRadius(r),
        RelativeWeight(auto.K),
        perturbation,
        gate=options.gate,
        every=auto.EVERY,
    )
    for name, baseline in BASELINES.items() if options.baselines else ():
        with suppress(UserError):
            loss = baseline(process)
            loss.require_items(options.item_shape())
            objectives[name] = loss
    return objectives


@dataclass(frozen=True)
class _Loop:
    """An endless training loop, and the tensors it keeps from step to step."""

    steps: Iterator[Any]
    kept: Callable[[], Iterable[Tensor]]


def _loops(options: Options, objectives: dict[str, Loss], device: torch.device) -> dict[str, _Loop]:
    from accelerate import Accelerator

    def alone() -> Accelerator:  # its own gradient scaler for each
        return Accelerator(mixed_precision=options.precision, cpu=device.type == "cpu")

    shape = options.item_shape()
    data = torch.randn(8 * options.batch_size, *shape, generator=torch.Generator().manual_seed(0))
    switches = {name: getattr(options, name) for name in ("channels_last", "compile", "gradient_checkpointing")}
    levels = torch.full((len(data),), 0.2)
    source = Source(Floats(data), std=levels, least=levels, trusted=options.batch_size)
    settings = Settings(steps=10**9, batch_size=options.batch_size, lr=1e-4, **switches)

    def fresh() -> State:
        torch.manual_seed(0)
        return State.create(build_net(options.net, shape).to(device), settings)

    def loop(objective: Loss) -> _Loop:
        state = fresh()
        return _Loop(fit(objective, state, source, settings, alone()), lambda: state.tensors().values())

    loops = {name: loop(objective) for name, objective in objectives.items()}
    net = fresh().model
    if options.compile:
        net.compile()
    loops[EXAMPLE] = example(net, data, options.batch_size, alone())
    return loops


def example(net: nn.Module, data: Tensor, batch_size: int, accelerator: Accelerator) -> _Loop:
    """The training loop that diffusers shows for unconditional generation, with its default options.

    A loader, a scheduler that adds the noise, AdamW with a cosine learning rate, clipping, ``EMAModel``, and the loss
    read after each step. Written after the description of ``examples/unconditional_image_generation``.
    """
    from diffusers import DDPMScheduler
    from diffusers.optimization import get_scheduler
    from diffusers.training_utils import EMAModel
    from torch.utils.data import DataLoader, TensorDataset

    noising: Any = DDPMScheduler(num_train_timesteps=1000, beta_schedule="linear")
    average = EMAModel(net.parameters(), decay=0.9999, use_ema_warmup=True, inv_gamma=1.0, power=0.75)
    average.to(accelerator.device)
    plain = torch.optim.AdamW(net.parameters(), lr=1e-4, betas=(0.95, 0.999), weight_decay=1e-6, eps=1e-8)
    loader = DataLoader(TensorDataset(data), batch_size, shuffle=True, drop_last=True)
    rate = get_scheduler("cosine", optimizer=plain, num_warmup_steps=500, num_training_steps=10**6)
    model, optimizer, batches, rates = accelerator.prepare(net, plain, loader, rate)

    def steps() -> Iterator[float]:
        while True:
            for (clean,) in batches:
                noise = torch.randn(clean.shape, device=clean.device)
                t = torch.randint(0, 1000, (len(clean),), device=clean.device)
                with accelerator.accumulate(model):
                    prediction = call(model, noising.add_noise(clean, noise, t), t)
                    loss = nn.functional.mse_loss(prediction.float(), noise)
                    accelerator.backward(loss)
                    if accelerator.sync_gradients:
                        accelerator.clip_grad_norm_(model.parameters(), 1.0)
                    optimizer.step()
                    rates.step()
                    optimizer.zero_grad()
                if accelerator.sync_gradients:
                    average.step(model.parameters())
                yield loss.detach().item()

    def kept() -> list[Tensor]:
        moments = [v for values in plain.state.values() for v in values.values()]
        return [*net.state_dict().values(), *average.shadow_params, *moments]

    return _Loop(steps(), kept)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _timed(loop: _Loop, steps: int, device: torch.device) -> tuple[float, float]:
    """Seconds per step: of the processor on a CPU, else of the clock on the wall; and of the wall in any case."""
    _wait(device)
    spent, begin = time.process_time(), time.perf_counter()
    for _ in itertools.islice(loop.steps, steps):
        pass
    _wait(device)
    wall = (time.perf_counter() - begin) / steps
    return ((time.process_time() - spent) / steps if device.type == "cpu" else wall), wall


def _peak(loop: _Loop, device: torch.device) -> int:
    """Bytes of the tensors that a loop keeps, and the most that one step adds to them."""
    kept = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in loop.kept()}
    return sum(kept.values()) + (_added_on_cuda(loop, device) if device.type == "cuda" else _added_on_cpu(loop))


def _added_on_cuda(loop: _Loop, device: torch.device) -> int:
    _wait(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    next(loop.steps)
    _wait(device)
    return torch.cuda.max_memory_allocated(device) - before


def _added_on_cpu(loop: _Loop) -> int:
    from torch.profiler import ProfilerActivity, profile

    with _hushed(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        next(loop.steps)
    results: Any = profiler.profiler
    changes = (e.nbytes() for e in results.kineto_results.events() if e.name() == "[memory]")
    return max(itertools.accumulate(changes), default=0)


@contextmanager
def _hushed() -> Iterator[None]:
    """Without what torch's profiler writes to the standard error about its own start and stop."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _provenance(options: Options, device: torch.device, rounds: int, turn: int, seconds: float) -> dict[str, Any]:
    import accelerate
    import diffusers

    net = build_net(options.net, options.item_shape())
    return {
        **asdict(options),
        "shape": "x".join(map(str, options.item_shape())),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else _processor(),
        "threads": torch.get_num_threads(),
        "parameters": count_parameters(net),
        "flops_per_forward": flops(net, options.item_shape()) * options.batch_size,
        "clock": "processor" if device.type == "cpu" else "wall",
        "rounds": rounds,
        "steps_per_round": turn,
        "measured_seconds": seconds,
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "versions": {"atdm": __version__, "torch": torch.__version__, "diffusers": diffusers.__version__}
        | {"accelerate": accelerate.__version__},
    }


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
