"""Training: ``fit`` is a generator of :class:`Step` records. It owns no files and prints nothing.

All randomness is a function of (seed, step), so a run that resumes at a step is the run that never stopped, and
each process draws the randomness of the *global* batch and keeps its own rows, so two processes train like one.
"""

from __future__ import annotations

import hashlib
import math
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..data.items import Floats
from ..data.source import Source, feed, flow, indexed, workers_for
from ..diffusion.conditioning import drop_conditioning
from ..errors import UserError
from ..noise import Gauge
from ..objective import Loss, Objective, Terms
from .callbacks import Callback
from .config import Settings
from .state import State
from .update import Part, Update

if TYPE_CHECKING:
    from accelerate import Accelerator


CHECK_EVERY = 50  # steps between looks at the loss on an accelerator: each look waits for it


class Diverged(UserError):
    """The loss is no longer a number."""


@dataclass(frozen=True)
class Step:
    """One optimizer step: what happened, and the state after it. Tensors stay on the device until :meth:`summary`."""

    index: int  # optimizer steps done
    terms: Terms  # of this process's last micro-batch, detached
    gradient_norm: Tensor
    lr: float
    samples: int  # of the global batch
    seconds: float
    state: State
    train_steps: int  # T of the process
    steps: int  # optimizer steps to be made in all
    stop: bool = False  # a callback ends the training here

    def summary(self) -> dict[str, float]:
        """Scalars for a log: each term in all and by timestep quartile (q0 is the least noisy)."""
        terms = self.terms
        quartile = (4 * terms.t) // self.train_steps
        out = {
            "loss": terms.loss.mean().item(),
            "denoise": terms.denoise.mean().item(),
            "gradient_norm": self.gradient_norm.item(),
            "lr": self.lr,
            "samples_per_second": self.samples / self.seconds,
        }
        perturbed = bool(terms.perturbed.any())
        if perturbed:
            chosen = terms.perturbed
            out |= {
                "regularizer": (terms.weight * terms.regularizer).mean().item(),
                "share_pushed": chosen.float().mean().item(),
                "share_at_radius": terms.at_radius[chosen].mean().item(),
                "radius": terms.radius[chosen].mean().item(),
                "delta_rms": terms.delta_rms[chosen].mean().item(),
                "weight": terms.weight[chosen].mean().item(),
                "weight_max": terms.weight[chosen].max().item(),
            }
        for q in range(4):
            in_quartile = quartile == q
            if in_quartile.any():
                out[f"denoise/q{q}"] = terms.denoise[in_quartile].mean().item()
                if perturbed:
                    out[f"regularizer/q{q}"] = (terms.weight * terms.regularizer)[in_quartile].mean().item()
        return out


def generator_of(device: torch.device | str, *key: object) -> torch.Generator:
    """A generator whose randomness is a function of ``key`` alone."""
    return torch.Generator(device).manual_seed(seed_of(*key))


def seed_of(*key: object) -> int:
    """A seed that is a function of ``key`` alone."""
    digest = hashlib.sha256("/".join(map(str, key)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


class Order:
    """The order of the data: every item once per epoch, shuffled anew each epoch, addressed by step."""

    def __init__(self, items: int, batch_size: int, seed: int) -> None:
        self.items, self.batch_size, self.seed = items, batch_size, seed
        self._epochs: dict[int, Tensor] = {}

    def __getitem__(self, step: int) -> Tensor:
        first = step * self.batch_size
        epochs = range(first // self.items, (first + self.batch_size - 1) // self.items + 1)
        self._epochs = {e: self._epochs[e] if e in self._epochs else self._permutation(e) for e in epochs}
        indices = torch.cat([self._epochs[e] for e in epochs])
        begin = first - epochs[0] * self.items
        return indices[begin : begin + self.batch_size]

    def epochs(self, step: int) -> Tensor:
        """The epoch each item of the step is in."""
        return (step * self.batch_size + torch.arange(self.batch_size)) // self.items

    def _permutation(self, epoch: int) -> Tensor:
        return torch.randperm(self.items, generator=generator_of("cpu", self.seed, "order", epoch))


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
    micro = settings.batch_size // settings.accumulate // world
    if micro * settings.accumulate * world != settings.batch_size:
        raise UserError(
            f"A batch of {settings.batch_size} does not split over {world} processes with {settings.accumulate} "
            f"micro-batches each. Expected a multiple of {world * settings.accumulate}."
        )
    model, _ = accelerator.prepare(state.model, state.optimizer)
    update = Update(model, state.optimizer, accelerator, settings.grad_clip, settings.compile)
    plain = Objective("ddpm", objective.process)
    first = max(settings.regularize_from, round(getattr(objective, "start", 0.0) * settings.steps))
    if objective.levels_from == "truth" and not isinstance(data, Source):
        raise UserError(
            f"{type(objective).__name__} needs the noise level of each item, and a tensor tells none. "
            "Expected Source(Floats(data), std=levels)."
        )
    source = (data if isinstance(data, Source) else Source(Floats(data))).prepared()
    if objective.levels_from == "trusted" and source.least is None:
        raise UserError(
            "omni needs the level from which on each item is as good as a trusted one. Expected trusted images (--trusted "
            "FOLDER), or Source(items, least=atdm.noise.least_levels(items, trusted).stds)."
        )
    objective.require_items(source.item_shape)
    gauge = _gauge(source) if objective.levels_from == "items" else None
    order = Order(len(source), settings.batch_size, settings.seed)
    mine = torch.arange(settings.batch_size).reshape(settings.accumulate, world, micro)[:, rank].flatten()
    steps = range(state.step, settings.steps)
    pin = device.type == "cuda"
    if source.stream is None:
        helpers = workers_for(source, device, world) if workers is None else workers
        batches = indexed(feed(source, order, mine, steps, helpers, pin), order, mine, steps)
    else:
        batches = flow(source, len(mine), rank, world, state.place_of(rank, world), workers or None, pin)
    state.ema.to(device)
    clock = time.perf_counter()
    while state.step < settings.steps:
        step = state.step
        loss_of = objective if step >= first else plain
        for group in state.optimizer.param_groups:
            group["lr"] = settings.lr_at(step)
        taken = next(batches)  # the rows of this process
        batch = taken.x.to(device, non_blocking=True)
        levels: list[Tensor | None] = [None] * settings.accumulate
        if loss_of.levels_from is not None:
            known = _known(loss_of, source, gauge, batch, taken.rows, taken.epochs)
            levels = [*known.to(device, non_blocking=True).split(micro)]
        labels = [
            {k: v.to(device) for k, v in _labels(source, order, settings, step, part).items()}
            for part in mine.split(micro)
        ]
        draws = loss_of.draw(
            (settings.batch_size, *source.item_shape),
            device,
            generator_of(device, settings.seed, "noise", step),
            generator_of(device, settings.seed, "push", step),
            generator_of("cpu", settings.seed, "timesteps", step) if device.type != "cpu" else None,
        )
        for replay in range(loss_of.replays):
            draws = loss_of.next_draws(draws) if replay else draws
            parts = [
                Part(x0, draws[slice((i * world + rank) * micro, (i * world + rank + 1) * micro)], levels[i], labels[i])
                for i, x0 in enumerate(batch.split(micro))
            ]
            terms, norm = update(loss_of, parts, seed_of(settings.seed, "dropout", step, rank) + replay)
            state.average(settings.ema_at(step))
        state.step += 1
        state.places = {} if taken.position is None else {rank: taken.position}
        if device.type == "cpu" or state.step % CHECK_EVERY == 0 or state.step == settings.steps:
            # fp16 scales its steps down when a gradient overflows; only a loss that does is lost.
            watched = norm if accelerator.scaler is None else terms.loss.mean()
            if not math.isfinite(float(watched)):
                raise Diverged(
                    f"The loss is not a number at step {state.step}. Try a smaller lr or a smaller regularizer."
                )
        seconds = time.perf_counter() - clock
        lr, size, T = settings.lr_at(step), settings.batch_size, objective.process.steps
        made = Step(state.step, _detach(terms), norm, lr, size, seconds, state, T, settings.steps)
        if callbacks:
            wishes = [bool(each.on_step(made)) for each in callbacks]  # all hear of the step
            made = replace(made, stop=anyone(accelerator, any(wishes)))
        yield made
        if made.stop:
            return
        clock = time.perf_counter()


def _labels(source: Source, order: Order, settings: Settings, step: int, mine: Tensor) -> dict[str, Tensor]:
    """What the network is given of these rows of a step's batch: their classes, some of them withheld for guidance."""
    if source.classes is None:
        return {}
    found = {"class_labels": source.classes.of[order[step]]}
    none = {"class_labels": torch.tensor(len(source.classes.names))}
    dropped = drop_conditioning(found, none, settings.label_dropout, generator_of("cpu", settings.seed, "labels", step))
    return {name: values[mine] for name, values in dropped.items()}


def anyone(accelerator: Any, wish: bool) -> bool:
    """Whether any process wishes to stop: all must stop after the same step."""
    if accelerator.num_processes == 1:
        return wish
    return bool(accelerator.reduce(torch.tensor(float(wish), device=accelerator.device)).item())


def _known(
    loss: Loss, source: Source, gauge: Gauge | None, batch: Tensor, indices: Tensor, epochs: Tensor
) -> Float[Tensor, "b"]:
    """The noise levels of a batch, from where its loss wants them."""
    if loss.levels_from == "truth":
        return source.levels(indices, epochs)
    if loss.levels_from == "trusted" and source.least is not None:
        return source.least[indices]
    found = gauge.stds(batch, indices) if gauge else torch.zeros(len(batch))
    return found.masked_fill(source.vouched(indices).to(found.device), 0)


def _gauge(source: Source) -> Gauge | None:
    """What estimates the noise of the items; None, said aloud, where it cannot be known from content."""
    try:
        return source.gauge()
    except UserError as problem:
        warnings.warn(f"{problem} All items count as clean.", stacklevel=3)
        return None


def _detach(terms: Terms) -> Terms:
    values: dict[str, Any] = {k: v.detach() for k, v in vars(terms).items()}
    return Terms(**values)
