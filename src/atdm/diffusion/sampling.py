"""Sampling through diffusers' schedulers: trajectories, and seeded batches of samples.

States are given in the coordinates the network sees, ``x_t = alpha_t x_0 + sigma_t eps``, also for the schedulers that
carry ``x_0 + (sigma_t/alpha_t) eps`` inside (Euler, Heun, those of EDM).
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..errors import UserError
from .process import Process
from .schedulers import adopt, build_scheduler, default_sampler, place, strided
from .solver import Solver, Step

Hook = Callable[[int, int, Tensor], Tensor]

BLOCK_NUMBERS = 512  # about as many numbers as torch.randn draws in the time of its own call
SEEDS_APART = 1_000_000  # blocks of one seed before it meets the next
GATHERED_ROWS = 4096  # rows summed over processes at a time


@runtime_checkable
class LooksAhead(Protocol):
    """A hook that is told of the solver at the beginning of each batch, whose forks show it the rest of the trajectory."""

    def attach(self, solver: Solver) -> None: ...

    def __call__(self, index: int, t: int, x: Tensor) -> Tensor: ...


@contextlib.contextmanager
def evaluating(model: Callable[..., Any]) -> Iterator[None]:
    """Evaluation mode; afterwards every submodule is back in the mode it was in."""
    modes = [(m, m.training) for m in model.modules()] if isinstance(model, nn.Module) else []
    for module, _ in modes:
        module.training = False
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def trajectory(
    model: Callable[..., Any],
    process: Process,
    shape: tuple[int, ...],
    *,
    generator: torch.Generator | Sequence[torch.Generator],
    sampler: Any = None,
    steps: int = 50,
    x_T: Float[Tensor, "batch *dims"] | None = None,
    hook: Hook | None = None,
    stop_ratio: float | None = None,
    clip_sample: bool = False,
    conditioning: Mapping[str, Any] | None = None,
    device: torch.device | str | None = None,
) -> Iterator[Step]:
    """Sample a batch and yield every step; the last step's ``next`` is the sample.

    >>> *_, last = trajectory(unet, process, (16, 3, 32, 32), generator=torch.Generator().manual_seed(0))
    >>> images = last.next

    Args:
        model: any ``model(x, t, **conditioning)``; it is in evaluation mode until the iterator ends.
        shape: ``[batch, *item]``.
        generator: the source of x_T and of the noise of stochastic samplers. g generators share the batch: each serves
            batch/g consecutive items.
        sampler: a name in :data:`~atdm.diffusion.schedulers.SAMPLERS` (that of the process's family), or a diffusers scheduler (used as a copy);
            default: ddim, or euler of flows and EDM.
        steps: of the sampler; a step of heun evaluates the network twice.
        x_T: the state to start from, instead of noise.
        hook: ``hook(index, t, x)`` returns the state to use instead of x. The multistep samplers (dpm-solver++, unipc,
            pndm, deis, lms) also remember earlier states, and unipc's corrector undoes a part of the change. A hook
            that :class:`LooksAhead` is told of the solver.
        stop_ratio: stop at the first t with ``sigma_t/alpha_t`` below it, and return the denoised state there.
        clip_sample: see :func:`build_scheduler`.
        device: where to sample; default: where the model's parameters are.

    Raises:
        UserError: a sampler or number of steps that cannot work.
    """
    solver = open_solver(
        model,
        process,
        shape,
        generator=generator,
        sampler=sampler,
        steps=steps,
        stop_ratio=stop_ratio,
        clip_sample=clip_sample,
        conditioning=conditioning,
        device=device,
    )
    if x_T is None:
        rows = shape[0] // len(solver.streams)
        noise = [torch.randn((rows, *shape[1:]), generator=g, device=g.device) for g in solver.streams]
        x_T = torch.cat([n.to(solver.device) for n in noise])
    solver.begin(x_T)
    if isinstance(hook, LooksAhead):
        hook.attach(solver)
    with evaluating(model):
        while not solver.done:
            with torch.no_grad():  # closed before each yield: the caller keeps its own mode
                if hook is not None:
                    solver.move(hook(solver.index, solver.t, solver.x))
                step = solver.step()
            yield step


def open_solver(
    model: Callable[..., Any],
    process: Process,
    shape: tuple[int, ...],
    *,
    generator: torch.Generator | Sequence[torch.Generator],
    sampler: Any = None,
    steps: int = 50,
    stop_ratio: float | None = None,
    clip_sample: bool = False,
    conditioning: Mapping[str, Any] | None = None,
    device: torch.device | str | None = None,
) -> Solver:
    """What :func:`trajectory` goes through, for those who want to steer it or to differentiate it.

    Raises:
        UserError: a sampler or number of steps that cannot work.
    """
    sampler = default_sampler(process) if sampler is None else sampler
    named = isinstance(sampler, str)
    scheduler = build_scheduler(sampler, process, clip_sample) if named else adopt(sampler, process)
    levels = place(scheduler, process, steps, named and strided(sampler, process))
    streams = [generator] if isinstance(generator, torch.Generator) else list(generator)
    if shape[0] % len(streams):
        raise UserError(
            f"{len(streams)} generators cannot share a batch of {shape[0]}. Expected a divisor of the batch size."
        )
    return Solver(
        model,
        process,
        scheduler,
        levels,
        shape,
        streams,
        _device(model, device),
        stop_ratio=stop_ratio,
        clip_sample=clip_sample,
        conditioning=conditioning,
    )


def sample(
    model: Callable[..., Any],
    process: Process,
    n: int,
    item_shape: tuple[int, ...],
    *,
    batch_size: int = 1024,
    sampler: Any = None,
    steps: int = 50,
    seed: int = 0,
    hook: Hook | None = None,
    stop_ratio: float | None = None,
    clip_sample: bool = False,
    conditioning: Mapping[str, Any] | None = None,
    device: torch.device | str | None = None,
    progress: Callable[[int, int], None] | None = None,
    accelerator: Any = None,
) -> Float[Tensor, "n *item"]:
    """``n`` samples, on the CPU.

    The noise of item i (x_T and that of every step) is a function of ``seed``, i and ``item_shape`` alone: see
    :func:`generators`. It depends neither on ``n`` nor on the batch size nor on the device: samples agree up to the
    rounding of the network. A batch is a whole number of blocks.

    Args:
        conditioning: passed to the model; tensors with ``n`` rows are cut into batches.
        progress: called with (network evaluations done, all of them) after every step.
        accelerator: an ``accelerate.Accelerator`` whose processes share the batches; each gets all samples, the same
            to the bit as one process. More than ``n / processes`` in a batch leaves processes idle.
        others: see :func:`trajectory`.
    """
    return sample_paths(
        model,
        process,
        n,
        item_shape,
        keep=(),
        batch_size=batch_size,
        seed=seed,
        conditioning=conditioning,
        progress=progress,
        accelerator=accelerator,
        sampler=sampler,
        steps=steps,
        hook=hook,
        stop_ratio=stop_ratio,
        clip_sample=clip_sample,
        device=device,
    )[-1]


def sample_paths(
    model: Callable[..., Any],
    process: Process,
    n: int,
    item_shape: tuple[int, ...],
    *,
    keep: Sequence[int],
    **options: Any,
) -> Float[Tensor, "kept n *item"]:
    """The states before the steps whose indices are in ``keep``, then the samples: those :func:`sample` gives.

    Args:
        keep: indices of steps, from 0.
        options: of :func:`sample`.

    Raises:
        UserError: no samples are asked for, or a kept index that no step has.
    """

    last = 0

    def kept(step: Step) -> Iterator[tuple[int, Tensor]]:
        nonlocal last
        last = step.index
        return ((slot, step.x) for slot, index in enumerate(keep) if index == step.index)

    paths, written = _collect(model, process, n, item_shape, len(keep) + 1, kept, **options)
    if not all(written[:-1]):
        raise UserError(f"Cannot keep the steps {list(keep)}. Expected indices from 0 to {last}.")
    return paths


def sample_stops(
    model: Callable[..., Any],
    process: Process,
    n: int,
    item_shape: tuple[int, ...],
    *,
    stops: Sequence[float | None],
    **options: Any,
) -> Float[Tensor, "stops n *item"]:
    """For each of ``stops`` the samples that :func:`sample` gives with that ``stop_ratio``, all from one pass.

    Args:
        stops: noise levels ``sigma_t/alpha_t``; None: to the end.
        options: of :func:`sample`.
    """
    levels = (process.sigmas / process.alphas).tolist()

    def stopped(step: Step) -> Iterator[tuple[int, Tensor]]:
        return ((s, step.denoised) for s, stop in enumerate(stops) if stop is not None and levels[step.t] < stop)

    last = None if None in stops else min(stop for stop in stops if stop is not None)
    return _collect(model, process, n, item_shape, len(stops), stopped, stop_ratio=last, **options)[0]


def _collect(
    model: Callable[..., Any],
    process: Process,
    n: int,
    item_shape: tuple[int, ...],
    slots: int,
    pick: Callable[[Step], Iterable[tuple[int, Tensor]]],
    *,
    batch_size: int = 1024,
    seed: int = 0,
    conditioning: Mapping[str, Any] | None = None,
    progress: Callable[[int, int], None] | None = None,
    accelerator: Any = None,
    **options: Any,
) -> tuple[Float[Tensor, "slots n *item"], list[bool]]:
    """What ``pick`` first finds for each slot along the trajectories, the samples where it finds nothing; and where it found."""
    if n < 1 or batch_size < 1:
        raise UserError(f"Asked for {n} samples in batches of {batch_size}. Expected at least 1 of each.")
    block = block_size(item_shape)
    blocks = math.ceil(n / block)
    together = max(1, batch_size // block)  # blocks in a batch
    batches = range(math.ceil(blocks / together))
    # Whole batches are shared out: a batch cut in two would be rounded otherwise by the network.
    mine = batches[accelerator.process_index :: accelerator.num_processes] if accelerator is not None else batches
    found, written = torch.zeros(slots, n, *item_shape), [True] * slots
    for turn, batch in enumerate(mine):
        numbers = range(batch * together, min((batch + 1) * together, blocks))
        start, stop = numbers.start * block, min(numbers.stop * block, n)
        # The last block is drawn and computed whole, so that its noise does not depend on n.
        rows = torch.arange(start, numbers.stop * block).clamp(max=n - 1)
        steps = trajectory(
            model,
            process,
            (len(rows), *item_shape),
            generator=generators(seed, numbers),
            conditioning=None if conditioning is None else {k: _rows(v, rows, n) for k, v in conditioning.items()},
            **options,
        )
        written = [False] * slots
        for step in steps:
            for slot, x in pick(step):
                if not written[slot]:
                    found[slot, start:stop], written[slot] = x[: stop - start].cpu(), True
            if progress is not None:
                progress(turn * step.count + step.index + 1, len(mine) * step.count)
        for slot in (slot for slot in range(slots) if not written[slot]):
            found[slot, start:stop] = step.next[: stop - start].cpu()
    if accelerator is not None and accelerator.num_processes > 1:  # a sum with zeros, for each row has one owner
        for part in found.flatten(0, 1).split(GATHERED_ROWS):
            part.copy_(accelerator.reduce(part.to(accelerator.device), "sum"))
    return found, written


def block_size(item_shape: tuple[int, ...]) -> int:
    """How many consecutive items share a generator: an image has its own.

    Vectors share one in blocks of about ``BLOCK_NUMBERS`` numbers, because a generator for each 3-D point would cost
    more than the network.
    """
    return 1 if len(item_shape) == 3 else max(1, BLOCK_NUMBERS // max(1, math.prod(item_shape)))


def generators(seed: int, blocks: Iterable[int]) -> list[torch.Generator]:
    """The sources of noise of ``blocks`` of items: block b of ``seed`` has ``manual_seed(1_000_000 * seed + b)``.

    They live on the CPU, so that every device sees the same noise. The sum is a seed of its own for each of the first
    million blocks; torch uses its last 32 bits.

    >>> pipeline(batch_size=16, generator=generators(seed=0, blocks=range(16)))  # diffusers: the images of sample()
    """
    return [torch.Generator().manual_seed((SEEDS_APART * seed + block) % 2**32) for block in blocks]


def _rows(value: Any, rows: Tensor, n: int) -> Any:
    if isinstance(value, Tensor) and value.dim() > 0 and len(value) == n:
        return value[rows.to(value.device)]
    return value


def _device(model: Callable[..., Any], device: torch.device | str | None) -> torch.device:
    if device is not None:
        return torch.device(device)
    parameter = next(model.parameters(), None) if isinstance(model, nn.Module) else None
    return torch.device("cpu") if parameter is None else parameter.device
