"""Training: ``fit`` is a generator of :class:`Step` records. It owns no files and prints nothing.

All randomness is a function of (seed, step), so a run that resumes at a step is the run that never stopped, and
each process draws the randomness of the *global* batch and keeps its own rows, so two processes train like one.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..data.source import Source
from ..errors import UserError
from ..objective import Loss, Objective, Terms
from . import rounds
from .batches import Order, RankShare, gauge_of, seed_of, source_for
from .callbacks import Callback
from .config import Settings
from .state import State, Step
from .update import Update

if TYPE_CHECKING:
    from accelerate import Accelerator


CHECK_EVERY = 50  # steps between looks at the loss on an accelerator: each look waits for it


class Diverged(UserError):
    """The loss is no longer a number."""


def fit(
    objective: Loss,
    state: State,
    data: Source | Tensor,
    settings: Settings,
    accelerator: Accelerator | None = None,
    workers: int | None = None,
    callbacks: Sequence[Callback] = (),
) -> Iterator[Step]:
    """Train ``state`` from where it is to ``settings.steps``, yielding a :class:`Step` after each optimizer step.

    Args:
        objective: the loss. One that replays batches makes as many optimizer steps in each step.
        state: changed in place.
        data: what training sees: a :class:`~atdm.data.source.Source`, or a tensor ``[n, *item]``.
        accelerator: devices, precision and processes; a plain one on this device when not given.
        workers: processes that prepare batches ahead (0: none); by default what the device and the data need.
        callbacks: their ``on_step`` sees each step before it is yielded, and may end the training; in every process as many.

    Raises:
        Diverged: the loss is not finite; ``state`` is then not worth saving.
    """
    from accelerate import Accelerator

    accelerator = accelerator or Accelerator(cpu=next(state.model.parameters()).device.type == "cpu")
    device, world, rank = accelerator.device, accelerator.num_processes, accelerator.process_index
    model = state.prepared(accelerator, settings.shard)
    update = Update(model, state.optimizer, accelerator, settings.grad_clip, settings.compile)
    plain = Objective("ddpm", objective.process)
    first = max(settings.regularize_from, round(getattr(objective, "start", 0.0) * settings.steps))
    source = source_for(objective, data)
    gauge = gauge_of(source) if objective.levels_from == "items" else None
    share = RankShare(
        source, settings, Order(len(source), settings.batch_size, settings.seed), device, world, rank, gauge
    )
    batches = rounds.batches(share, objective, state, workers, accelerator)
    clock = time.perf_counter()
    while state.step < settings.steps:
        step = state.step
        loss_of = objective.at(step, settings.steps) if step >= first else plain
        for group in state.optimizer.param_groups:
            group["lr"] = settings.lr_at(step)
        share, batch = next(batches)
        micro_batches, draws = share.micro_batches(loss_of, step, batch), share.draws(loss_of, step)
        for replay in range(loss_of.replays):
            draws = loss_of.next_draws(draws) if replay else draws
            terms, norm = update(loss_of, micro_batches, draws, seed_of(settings.seed, "dropout", step, rank) + replay)
            state.average(settings.ema_at(step))
        state.step += 1
        state.positions = {} if batch.position is None else {rank: batch.position}
        if device.type == "cpu" or state.step % CHECK_EVERY == 0 or state.step == settings.steps:
            # fp16 scales its steps down when a gradient overflows; only a loss that does is lost.
            _require_finite(norm if accelerator.scaler is None else terms.loss.mean(), state.step)
        seconds = time.perf_counter() - clock
        lr, size, T = settings.lr_at(step), settings.batch_size, objective.process.steps
        made = Step(state.step, _detach(terms), norm, lr, size, seconds, state, T, settings.steps)
        yield (made := _after_callbacks(made, callbacks, accelerator))
        if made.stop:
            return
        clock = time.perf_counter()


def _after_callbacks(made: Step, callbacks: Sequence[Callback], accelerator: Any) -> Step:
    """The step after all callbacks, of which every process has as many, heard of it."""
    if not callbacks:
        return made
    wishes = [bool(each.on_step(made)) for each in callbacks]
    return replace(made, stop=anyone(accelerator, any(wishes)))


def _require_finite(value: Tensor, step: int) -> None:
    if not math.isfinite(float(value)):
        raise Diverged(f"The loss is not a number at step {step}. Try a smaller lr or a smaller regularizer.")


def anyone(accelerator: Any, wish: bool) -> bool:
    """Whether any process wishes to stop: all must stop after the same step."""
    if accelerator.num_processes == 1:
        return wish
    return bool(accelerator.reduce(torch.tensor(float(wish), device=accelerator.device)).item())


def _detach(terms: Terms) -> Terms:
    values: dict[str, Any] = {k: v.detach() for k, v in vars(terms).items()}
    return Terms(**values)
