"""Sampling through diffusers' schedulers: trajectories, and seeded batches of samples.

States are given in the coordinates the network sees, ``x_t = alpha_t x_0 + sigma_t eps``, also for the schedulers that
carry ``x_0 + (sigma_t/alpha_t) eps`` inside (Euler, Heun, those of EDM).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import UserError, unknown
from ..nets import device_of
from ..nets.passes import evaluating
from .conditioning import of_items
from .process import Process, States
from .solver import SamplingStep, Solver
from .steps import Sampling, asked

Hook = Callable[[int, int, Tensor], Tensor]

BLOCK_NUMBERS = 512  # about as many numbers as torch.randn draws in the time of its own call
SEEDS_APART = 1_000_000  # blocks of one seed before it meets the next
GATHERED_ROWS = 4096  # rows summed over processes at a time


@runtime_checkable
class LooksAhead(Protocol):
    """A hook that sees the solver at the beginning of each batch, whose forks show it the rest of the trajectory."""

    def attach(self, solver: Solver) -> None: ...

    def __call__(self, index: int, t: int, x: Tensor) -> Tensor: ...


def trajectory(
    model: Callable[..., Any],
    process: Process,
    shape: tuple[int, ...],
    sampling: Sampling | None = None,
    *,
    generator: torch.Generator | Sequence[torch.Generator],
    x_T: States | None = None,
    hook: Hook | None = None,
    **options: Any,
) -> Iterator[SamplingStep]:
    """Sample a batch and yield every step; the last step's ``next`` is the sample.

    Examples:
        >>> *_, last = trajectory(unet, process, (16, 3, 32, 32), generator=torch.Generator().manual_seed(0))
        >>> images = last.next

    Args:
        model: any ``model(x, t, **conditioning)``; it is in evaluation mode until the iterator ends.
        shape: ``[batch, *item]``.
        sampling: how; its fields can be given by name as well: ``sampler="ddpm", steps=250``.
        generator: the source of x_T and of the noise of stochastic samplers. g generators share the batch: each serves
            batch/g consecutive items.
        x_T: the state to start from, instead of noise.
        hook: ``hook(index, t, x)`` returns the state to use instead of x. The multistep samplers (dpm-solver++, unipc,
            pndm, deis, lms) also remember earlier states, and unipc's corrector undoes a part of the change. A hook
            that :class:`LooksAhead` sees the solver.
        options: ``conditioning``, passed to the model; ``device``, where to sample (default: where the model's
            parameters are); fields of ``sampling``.

    Raises:
        UserError: a sampler or number of steps that cannot work.
    """
    solver = open_solver(model, process, shape, sampling, generator=generator, **options)
    if x_T is None:
        share = shape[0] // len(solver.generators)
        noise = [torch.randn((share, *shape[1:]), generator=g, device=g.device) for g in solver.generators]
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
    sampling: Sampling | None = None,
    *,
    generator: torch.Generator | Sequence[torch.Generator],
    conditioning: Mapping[str, Any] | None = None,
    device: torch.device | str | None = None,
    **options: Any,
) -> Solver:
    """What :func:`trajectory` goes through, for those who want to steer it or to differentiate it.

    Raises:
        UserError: a sampler or number of steps that cannot work.
    """
    how = asked(sampling, options)
    if options:
        raise unknown("option of sampling", next(iter(options)), (f.name for f in dataclasses.fields(Sampling)))
    shared = [generator] if isinstance(generator, torch.Generator) else list(generator)
    if shape[0] % len(shared):
        raise UserError(
            f"{len(shared)} generators cannot share a batch of {shape[0]}. Expected a divisor of the batch size."
        )
    where = device_of(model) if device is None else torch.device(device)
    return Solver(model, process, shape, how, shared, where, conditioning)


def sample(
    model: Callable[..., Any],
    process: Process,
    n: int,
    item_shape: tuple[int, ...],
    sampling: Sampling | None = None,
    **options: Any,
) -> Float[Tensor, "n *item"]:
    """``n`` samples, on the CPU.

    Examples:
        >>> images = sample(unet, process, 16, (3, 32, 32), sampler="ddpm", steps=250, seed=0)

    The noise of item i (x_T and that of every step) is a function of ``seed``, i and ``item_shape`` alone: see
    :func:`generators`. It depends neither on ``n`` nor on the batch size nor on the device: samples agree up to the
    rounding of the network.

    Args:
        sampling: how; its fields can be given by name as well.
        options: ``seed``, ``batch_size`` and ``accelerator`` of :class:`Batches`; ``hook`` and ``device`` of
            :func:`trajectory`; ``conditioning``, passed to the model, whose tensors with ``n`` rows, also in dictionaries, are cut into batches;
            ``progress``, called with (network evaluations done, all of them) after every step.
    """
    return sample_paths(model, process, n, item_shape, sampling, keep=(), **options)[-1]


def sample_paths(
    model: Callable[..., Any],
    process: Process,
    n: int,
    item_shape: tuple[int, ...],
    sampling: Sampling | None = None,
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

    def kept(step: SamplingStep) -> Iterator[tuple[int, Tensor]]:
        nonlocal last
        last = step.index
        return ((slot, step.x) for slot, index in enumerate(keep) if index == step.index)

    slots = len(keep) + 1
    paths, written = _collect(model, process, n, item_shape, slots, kept, sampling=sampling, **options)
    if not all(written[:-1]):
        raise UserError(f"Cannot keep the steps {list(keep)}. Expected indices from 0 to {last}.")
    return paths


def sample_stops(
    model: Callable[..., Any],
    process: Process,
    n: int,
    item_shape: tuple[int, ...],
    sampling: Sampling | None = None,
    *,
    stops: Sequence[float | None],
    **options: Any,
) -> Float[Tensor, "stops n *item"]:
    """For each of ``stops`` the samples that :func:`sample` gives with that ``stop_ratio``, all from one pass.

    Args:
        stops: noise levels ``sigma_t/alpha_t``; None: to the end.
        options: of :func:`sample`.
    """
    ratios = (process.sigmas / process.alphas).tolist()

    def stopped(step: SamplingStep) -> Iterator[tuple[int, Tensor]]:
        return ((s, step.denoised) for s, stop in enumerate(stops) if stop is not None and ratios[step.t] < stop)

    last = None if None in stops else min(stop for stop in stops if stop is not None)
    how = dataclasses.replace(asked(sampling, options), stop_ratio=last)
    return _collect(model, process, n, item_shape, len(stops), stopped, sampling=how, **options)[0]


@dataclass(frozen=True)
class Batches:
    """Which samples are drawn, and in which batches: a whole number of blocks each.

    Args:
        n: how many.
        seed: of the noise.
        batch_size: items together, at least a block.
        accelerator: an ``accelerate.Accelerator`` whose processes share the batches; each gets all samples, the same
            to the bit as one process. More than ``n / processes`` in a batch keeps processes idle.

    Raises:
        UserError: no samples are asked for.
    """

    n: int
    item_shape: tuple[int, ...]
    seed: int = 0
    batch_size: int = 1024
    accelerator: Any = None

    def __post_init__(self) -> None:
        if self.n < 1 or self.batch_size < 1:
            raise UserError(f"Asked for {self.n} samples in batches of {self.batch_size}. Expected at least 1 of each.")

    def mine(self) -> list[tuple[int, range]]:
        """Of each batch of this process its first item, and its blocks.

        Whole batches are shared out: a batch cut in two would be rounded otherwise by the network.
        """
        block = block_size(self.item_shape)
        blocks = math.ceil(self.n / block)
        together = max(1, self.batch_size // block)
        found = [(b * block, range(b, min(b + together, blocks))) for b in range(0, blocks, together)]
        if self.accelerator is None:
            return found
        return found[self.accelerator.process_index :: self.accelerator.num_processes]

    def gather(self, found: Float[Tensor, "slots n *item"]) -> None:
        """Put into ``found`` what the other processes found: a sum with zeros, for each row has one owner."""
        if self.accelerator is not None and self.accelerator.num_processes > 1:
            for part in found.flatten(0, 1).split(GATHERED_ROWS):
                part.copy_(self.accelerator.reduce(part.to(self.accelerator.device), "sum"))


def _collect(
    model: Callable[..., Any],
    process: Process,
    n: int,
    item_shape: tuple[int, ...],
    slots: int,
    pick: Callable[[SamplingStep], Iterable[tuple[int, Tensor]]],
    *,
    conditioning: Mapping[str, Any] | None = None,
    progress: Callable[[int, int], None] | None = None,
    **options: Any,
) -> tuple[Float[Tensor, "slots n *item"], list[bool]]:
    """What ``pick`` first finds for each slot along the trajectories, the samples where it finds nothing; and where it found."""
    names = ("seed", "batch_size", "accelerator")
    batches = Batches(n, item_shape, **{name: options.pop(name) for name in names if name in options})
    block, mine = block_size(item_shape), batches.mine()
    found, written = torch.zeros(slots, n, *item_shape), [True] * slots
    for turn, (start, blocks) in enumerate(mine):
        stop = min(start + len(blocks) * block, n)
        # The last block is drawn and computed whole, so that its noise does not depend on n.
        indices = torch.arange(start, start + len(blocks) * block).clamp(max=n - 1)
        shape, noise = (len(indices), *item_shape), generators(batches.seed, blocks)
        given = of_items(conditioning, indices, n)
        steps = trajectory(model, process, shape, generator=noise, conditioning=given, **options)
        written = [False] * slots
        for step in steps:
            for slot, x in pick(step):
                if not written[slot]:
                    found[slot, start:stop], written[slot] = x[: stop - start].cpu(), True
            if progress is not None:
                progress(turn * step.count + step.index + 1, len(mine) * step.count)
        for slot in (slot for slot in range(slots) if not written[slot]):
            found[slot, start:stop] = step.next[: stop - start].cpu()
    batches.gather(found)
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

    Examples:
        >>> pipeline(batch_size=16, generator=generators(seed=0, blocks=range(16)))  # diffusers: the images of sample()
    """
    return [torch.Generator().manual_seed((SEEDS_APART * seed + block) % 2**32) for block in blocks]
