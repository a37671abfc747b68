"""A training run in a folder: resumes, logs, checkpoints, measures and exports what a configuration stands for."""

from __future__ import annotations

import copy
import dataclasses
import json
import logging
import os
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from .. import metrics
from ..data.folders import require_apart
from ..diffusion.steps import Sampling
from ..errors import UserError
from ..files import Hold, require_writable, write_text
from ..nets.speed import bf16_slowdown, worth
from . import checkpoint, trackers, trusted
from .callbacks import Callback
from .config import ObjectiveConfig, TrainConfig
from .fingerprint import FILE as DATA
from .fingerprint import Fingerprint, require_same_data
from .log import Log
from .parts import Parts, build, with_latents_kept
from .pictures import grid_file, save_grid
from .sharding import require_shardable, whole
from .train import Diverged, State, Step, anyone, fit

if TYPE_CHECKING:
    from accelerate import Accelerator

LOG = logging.getLogger(__name__)


def train(
    config: TrainConfig,
    stop: Callable[[], bool] = lambda: False,
    notify: Callable[[str], None] = lambda note: None,
    progress: Callable[[int, int], None] | None = None,
    parts: Parts | None = None,
    callbacks: Sequence[Callback] = (),
) -> Iterator[Step]:
    """Run or resume ``config``, yielding each step; files are taken care of. Ends early, saved, once ``stop()`` says so.

    Args:
        stop: asked after each step, and while a grid of samples is drawn.
        notify: called with what was converted or skipped on reading the data, and with what of the run was damaged.
        progress: called while images are decoded, with how many are done and of how many.
        parts: of :func:`~atdm.training.parts.build`, where they are there already.
        callbacks: called with each step, and with what is logged, drawn and saved.

    Raises:
        UserError: bad configuration or data, a folder of another run or one that another process writes, a full disk, or
            a loss that is not a number.
    """
    from accelerate import Accelerator

    folder = Path(config.out)
    _require_folder(config, folder)
    spaces = metrics.require(config.metrics) if config.metrics != "none" else []
    tracking = trackers.require(config.log_with)
    accelerator = Accelerator(mixed_precision=config.precision, cpu=not torch.cuda.is_available())
    main = accelerator.is_main_process
    with Hold(folder, f"The run folder {folder}", "another --out") as hold:
        if main and folder.is_dir():
            hold.take()
        parts = parts or build(config, progress)
        data, changed = _same(config, parts, folder)
        for note in (*parts.notes, *changed, *restart_notes(os.environ)):
            notify(note)
        config = config.over(len(parts.source))
        require_shardable(parts.config, parts.objective, accelerator)
        # Of a sharded network there stays a whole one, on the CPU, to be exported.
        state = State.create(copy.deepcopy(parts.net) if config.shard else parts.net, parts.config)
        if main:
            folder.mkdir(parents=True, exist_ok=True)
            hold.take()
            _require_folder(config, folder)  # another process may have begun it meanwhile
            _begin(config, folder, parts, data)
        accelerator.wait_for_everyone()
        parts = with_latents_kept(parts, folder, accelerator.device, progress)
        _restore(folder, state, config.steps, notify)
        accelerator.wait_for_everyone()
        if main:
            checkpoint.tidy(folder, state.step, config.keep)
        # Closed before the folder is given up: what is being written is then whole.
        with (
            _logging(tracking if main else None, parts.config, state.step, callbacks) as listeners,
            closing(_Run(config, parts, state, spaces, accelerator, stop, notify, listeners).work()) as steps,
        ):
            for step in steps:
                hold.beat()
                yield step


def restart_notes(environment: Mapping[str, str]) -> list[str]:
    """What is to be said of the launcher: restarts of torchrun that share its store may wait for a process that has ended.

    The store holds the addresses of the processes that ended beside those of the new ones, and whoever comes first reads the old.
    """
    several = environment.get("WORLD_SIZE", "1") != "1" and environment.get("TORCHELASTIC_MAX_RESTARTS", "0") != "0"
    if not several or environment.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return []
    return [
        "After a restart processes may wait for half an hour for one that has ended, whose address torchrun keeps. "
        "Before torchrun --max_restarts, export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1."
    ]


def _restore(folder: Path, state: State, steps: int, notify: Callable[[str], None]) -> None:
    for note in checkpoint.restore(folder, state):
        notify(note)
    if state.step:
        notify(f"Training goes on from step {state.step} of {steps}.")


@contextmanager
def _logging(
    tracking: list[str] | None, config: TrainConfig, done: int, others: Sequence[Callback]
) -> Iterator[Sequence[Callback]]:
    """The log and the trackers of a run at step ``done`` before the ``others``; None: of a process that does not log."""
    if tracking is None:
        yield others
        return
    folder, options = Path(config.out), config.hyperparameters()
    with closing(Log(folder, done)) as log, closing(trackers.Trackers(tracking, folder, options, done)) as tracked:
        yield [log, tracked, *others]


def _precision(config: TrainConfig, net: nn.Module, device: torch.device) -> str | None:
    """A warning where a precision that is to save time costs it."""
    if config.precision != "bf16" or device.type != "cpu" or (times := bf16_slowdown(net)) <= 1:
        return None
    return (
        f"A layer takes {times:.2g} times as long in bfloat16 as in float32 on this processor, measured just now: "
        "--precision no is faster."
    )


def _require_folder(config: TrainConfig, folder: Path) -> None:
    if folder.is_file():
        raise UserError(f"{folder} is a file. Expected a run folder.")
    for spec in (config.data, config.trusted):
        require_apart(folder, spec)
    require_writable(folder)
    if (folder / "config.yaml").is_file():
        stored = checkpoint.read_config(folder)
        config.require_same(stored, str(folder), ObjectiveConfig(**checkpoint.read_objective(folder, stored)))


def _same(config: TrainConfig, parts: Parts, folder: Path) -> tuple[dict[str, Fingerprint | None], tuple[str, ...]]:
    """The fingerprints of data and trusted items by the files they are kept in, and a note if the run goes on with other data.

    Raises:
        UserError: they are not those that the run began with.
    """
    kept = parts.latents is not None or parts.levels is not None or parts.config.objective.in_rounds
    classes = parts.dataset.classes if config.class_labels else None
    data, changed = require_same_data(parts.dataset, folder, config.changed_data, kept, classes=classes)
    clean = parts.trusted
    vouched = None if clean is None else require_same_data(clean, folder, False, True, trusted.FILE)[0]
    return {DATA: data, trusted.FILE: vouched}, changed


def _begin(config: TrainConfig, folder: Path, parts: Parts, data: dict[str, Fingerprint | None]) -> None:
    """Write what is known before the first step.

    Args:
        data: fingerprints by the files they are kept in.
    """
    checkpoint.clean(folder)
    checkpoint.write_config(folder, config.as_dict())
    write_text(folder / "objective.json", json.dumps(dataclasses.asdict(parts.config.objective), indent=1))
    parts.truth.save(folder / "truth.npz")
    if parts.levels is not None:
        trusted.keep(parts.levels, folder)
    for file, fingerprint in data.items():
        if fingerprint is not None:
            fingerprint.save(folder, file)


@dataclass(frozen=True)
class _Run:
    """What is left of a run whose folder is ready.

    Args:
        config: with as many steps as its epochs make.
        spaces: in which samples are measured after training.
        stop, notify, callbacks: as of :func:`train`; the log and the trackers are among the last.
    """

    config: TrainConfig
    parts: Parts
    state: State
    spaces: list[metrics.Features]
    accelerator: Accelerator
    stop: Callable[[], bool]
    notify: Callable[[str], None]
    callbacks: Sequence[Callback]

    @property
    def folder(self) -> Path:
        return Path(self.config.out)

    def work(self) -> Generator[Step, None, None]:
        """The steps that are left and what follows them, with as many threads as they are worth."""
        config, parts, device = self.config, self.parts, self.accelerator.device
        each = config.batch_size // (config.accumulate * self.accelerator.num_processes)
        with worth(parts.net, tuple(parts.source.item_shape), each, config.threads) as note:
            for sentence in filter(None, (note, _precision(config, parts.net, device))):
                self.notify(sentence)
            yield from self._steps()
            if self.state.step == config.steps and not self._stopped():
                self._finish()

    def _stopped(self) -> bool:
        return anyone(self.accelerator, self.stop())

    def _draw(self, stop: Callable[[], bool]) -> None:
        save_grid(self.folder, self.parts, self.state, self.accelerator.device, stop, self.callbacks)

    def _draws(self) -> bool:
        step, every = self.state.step, self.config.sample_every
        return bool(every) and step > 0 and step % every == 0

    def _written(self, step: int, path: Path) -> None:
        LOG.info("saved %s", path)
        for each in self.callbacks:
            each.on_save(step, path)

    def _steps(self) -> Iterator[Step]:
        """The steps that are still to be made, logged and saved."""
        config, state, main = self.config, self.state, self.accelerator.is_main_process
        writer, saved = checkpoint.Writer(self.folder, config.keep, self._written), state.step
        # They hear of it in its step.
        waits = any(type(each).on_save is not Callback.on_save for each in self.callbacks)

        def save(whole: bool) -> int:
            if saved < state.step:
                state.gather(self.accelerator)
                if main:
                    writer.save(state)
                elif config.shard:
                    state.tensors(keep=False)
            if whole or waits:
                writer.wait()
            return state.step

        try:
            if main and self._draws() and not grid_file(self.folder, state.step).is_file():
                self._draw(self.stop)  # killed before it was drawn
            # As many in every process.
            stepwise = [each for each in self.callbacks if type(each).on_step is not Callback.on_step]
            source, objective = self.parts.source, self.parts.objective
            for step in fit(objective, state, source, self.parts.config, self.accelerator, config.workers, stepwise):
                last = step.index == config.steps
                if main and (step.index % config.log_every == 0 or last):
                    scalars = step.summary()
                    for each in self.callbacks:
                        each.on_log(step, scalars)
                ending = self._stopped() or step.stop
                if ending or last or step.index % config.save_every == 0:
                    saved = save(ending or last)
                if self._draws() and not ending:
                    if main:
                        self._draw(self.stop)
                    if ending := self._stopped():
                        saved = save(True)
                yield step
                if ending:
                    return
        except Diverged as problem:
            writer.wait()
            raise Diverged(f"{problem} The last good checkpoint is of step {saved}.") from problem
        finally:
            writer.wait()

    def _finish(self) -> None:
        """What follows the last step: the pipeline, a grid of samples, and numbers, with a warning where they rank nothing."""
        config, parts, ema, target = self.config, self.parts, self.state.ema, self.folder / "model"
        trained = {k: whole(v) for k, v in ema.state_dict().items()} if config.shard else {}
        if self.accelerator.is_main_process:
            if config.shard:
                parts.net.load_state_dict(trained)
                self.notify(f"Exporting the whole model to {target}; atdm sample draws from it.")
            else:
                self.notify(f"Exporting the model to {target} and drawing samples.")
            parts.model(parts.net if config.shard else ema).save_pretrained(target)
            LOG.info("exported %s", target)
            if not config.shard:
                self._draw(lambda: False)
        if config.metrics != "none":
            self._measure()
        self.accelerator.wait_for_everyone()

    def _measure(self) -> None:
        """Write what ``atdm evaluate`` measures, with its sampler, steps and seed; all processes take part."""
        config, parts, kind = self.config, self.parts, metrics.ReferenceSet
        self.notify(f"Drawing and measuring {config.metrics_samples} samples.")
        against = kind.trusted(parts.trusted) if parts.trusted else kind.of(parts.dataset, config.corrupt != "none")
        model = parts.model(self.state.ema)
        sampling = model.sampling(Sampling(steps=min(250, model.process.steps)), "ddpm")
        drawn = model.sample(config.metrics_samples, sampling, seed=0, batch_size=256, accelerator=self.accelerator)
        truth = parts.dataset.truth
        provenance = metrics.Provenance(
            len(drawn),
            **against.as_dict(),
            model=config.out,
            checkpoint=model.hash,
            weights="ema",
            sampling=sampling,
            last_ratio=sampling.last_ratio(model.process),
            seed=0,
        )
        scores = metrics.score_errors(model, truth)
        scores += metrics.measure(drawn, against.items, truth, self.spaces, accelerator=self.accelerator)
        rows = [metrics.Result(score, provenance).as_dict() for score in scores]
        if against.warning:
            self.notify(against.warning)
        if self.accelerator.is_main_process:
            found = {"rows": rows, "summary": metrics.over_seeds(rows)}
            write_text(self.folder / "metrics.json", json.dumps(found, indent=1))
