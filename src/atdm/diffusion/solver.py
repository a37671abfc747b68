"""A sampler on its way through one batch: one network evaluation at a time, with copies that look ahead.

Nothing here switches gradients off, so a rollout can be differentiated; :func:`atdm.diffusion.sampling.trajectory` does.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..errors import UserError
from ..nets import call
from .process import Process, States
from .schedulers import expected_by
from .steps import Sampling


@dataclass(frozen=True)
class SamplingStep:
    """One network evaluation of a trajectory.

    Args:
        index: counts the evaluations from 0 (Heun makes two a step).
        count: evaluations of a trajectory that is not stopped early.
        t: the timestep.
        x: the state the network saw, after the hook.
        next: the state after the step; of the last step, the sample.
        evaluation: what the network said, converted where it is asked for.
    """

    index: int
    count: int
    t: int
    x: States
    next: States
    evaluation: Evaluation

    @property
    def eps(self) -> States:
        """The noise the network predicted."""
        return self.evaluation.eps

    @property
    def denoised(self) -> States:
        """``D(x, t)``, clipped as the sampler clips it."""
        return self.evaluation.denoised


class Evaluation:
    """An evaluation of the network, and what its output amounts to: most steps of most samplers need neither.

    Args:
        output: of the network.
        rows: the timestep of each item.
        clipped: as the sampler clips a denoised state.
    """

    def __init__(
        self, process: Process, output: Tensor, x: Tensor, t: Tensor, clipped: Callable[[Tensor], Tensor]
    ) -> None:
        self.process, self.output, self.x, self.t, self._clipped = process, output, x, t, clipped

    @cached_property
    def eps(self) -> Tensor:
        """The noise that was predicted."""
        return self.process.to_eps(self.output, self.x, self.t)

    @cached_property
    def raw(self) -> Tensor:
        """``D(x, t)``, not clipped."""
        return self.process.to_x0(self.output, self.x, self.t)

    @cached_property
    def denoised(self) -> Tensor:
        """``D(x, t)``, clipped as the sampler clips it."""
        return self._clipped(self.raw)


class Solver:
    """Where a sampler is: the scheduler and what it remembers, the timesteps, and the state of the batch.

    :meth:`begin` places the batch.

    Args:
        shape: ``[batch, *item]``.
        sampling: how; the step at which it stops returns the denoised state, and is the last.
        generators: generators that share the batch, for the noise of stochastic samplers; each serves as many consecutive
            items.
        conditioning: passed to the model.

    Raises:
        UserError: a sampler or number of steps that cannot work.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        process: Process,
        shape: tuple[int, ...],
        sampling: Sampling,
        generators: Sequence[torch.Generator],
        device: torch.device,
        conditioning: Mapping[str, Any] | None = None,
    ) -> None:
        self.model, self.process, self.shape, self.sampling = model, process, shape, sampling
        self.generators, self.device, self.conditioning = list(generators), device, dict(conditioning or {})
        self.scheduler, self.visits = sampling.scheduler_for(process)
        self.expected = expected_by(self.scheduler, process)  # the process, as the scheduler takes outputs
        # Those of the scheduler, on the CPU, where reading one does not wait.
        self.timesteps: list[Tensor] = list(self.scheduler.timesteps)
        self._draws = "generator" in inspect.signature(self.scheduler.step).parameters
        self.index = 0
        self.skipped = False
        self.state = self.x = torch.empty(0)
        if sampling.start_ratio is not None:
            self._skip_to(sampling.start_ratio)

    @property
    def t(self) -> int:
        """The timestep of the next evaluation."""
        return self.visits[self.index]

    @property
    def done(self) -> bool:
        return self.index >= len(self.timesteps)

    def _skip_to(self, ratio: float) -> None:
        """Leave out the steps from more noise than ``sigma_t/alpha_t = ratio``.

        Raises:
            UserError: no step is left.
        """
        ratios = self.process.sigmas / self.process.alphas
        timesteps = sorted(set(self.visits), reverse=True)
        kept = [t for t in timesteps if float(ratios[t]) <= ratio * (1 + 1e-6)]
        if not kept:
            raise UserError(
                f"No step of the sampler starts at a noise level of {ratio:g} or below: its last is at "
                f"sigma_t/alpha_t = {float(ratios[timesteps[-1]]):.3g}. Expected more steps, or a higher level."
            )
        if len(kept) == len(timesteps):
            return
        same = [i for i, t in enumerate(self.visits) if t == kept[0]]
        begin = same[-1]  # Heun's second visit of a timestep begins a step
        if hasattr(self.scheduler, "ets"):  # PNDM takes its second timestep twice, wherever it begins
            self.visits = [*kept[:2], *kept[1:]]
            self.timesteps = [torch.tensor(t) for t in self.visits]
        else:
            if hasattr(self.scheduler, "set_begin_index"):
                self.scheduler.set_begin_index(begin)
            self.timesteps, self.visits = self.timesteps[begin:], self.visits[begin:]
        self.skipped = True

    def begin(self, x: States) -> None:
        """Place the batch at the first timestep, in the coordinates the network sees (pure noise, if none was skipped)."""
        x = x.to(self.device)
        if self.skipped:
            self.state, self.x = x / self._scale(), x
        else:
            self.state = x * getattr(self.scheduler, "init_noise_sigma", 1.0)  # flow matching has none
            self.x = self._network_input(self.state)

    def move(self, x: States) -> None:
        """Go on from ``x``, in the coordinates the network sees, instead of the present state."""
        self.state, self.x = self.state + (x - self.x) / self._scale(), x

    def fork(self, generators: Sequence[torch.Generator] | None = None) -> Solver:
        """A copy at the same place that shares the network.

        Args:
            generators: of the copy's noise; default: copies of this one's, so that both see the same noise.
        """
        copied = copy.copy(self)
        copied.scheduler = copy.copy(self.scheduler)
        for name, value in vars(self.scheduler).items():
            if isinstance(value, list):  # what multistep samplers remember; they replace tensors and write into lists
                setattr(copied.scheduler, name, list(value))
        copied.generators = [g.clone_state() for g in self.generators] if generators is None else list(generators)
        return copied

    def predict(self, x: States, checkpointed: bool = False) -> Evaluation:
        """The evaluation of the network at ``x`` and the present t.

        Args:
            checkpointed: on the way back compute it again, instead of keeping its intermediate values.
        """
        t = torch.tensor(self.t, device=self.device).expand(self.shape[0])
        times = self.process.time(t)
        if checkpointed and torch.is_grad_enabled() and x.requires_grad:
            output: Tensor = checkpoint(
                call, self.model, x, times, use_reentrant=False, preserve_rng_state=False, **self.conditioning
            )
        else:
            output = call(self.model, x, times, **self.conditioning)
        return Evaluation(self.process, output, x, t, self._clipped)

    def step(self, checkpointed: bool = False) -> SamplingStep:
        """Evaluate the network and go on to the next state."""
        x, t, index = self.x, self.t, self.index
        evaluation = self.predict(x, checkpointed)
        output = evaluation.output
        if self.expected is not self.process:
            output = self.expected.target(evaluation.raw, evaluation.eps, evaluation.t)
        count, stop = len(self.timesteps), self.sampling.stop_ratio
        if stop is not None and float(self.process.sigmas[t] / self.process.alphas[t]) < stop:
            self.state = self.x = evaluation.denoised
            self.timesteps, self.visits = self.timesteps[: index + 1], self.visits[: index + 1]
        else:
            # A scheduler draws from each generator the noise of one row: make a row of the items that share a generator.
            g = len(self.generators)
            blocked = self.shape if g == 1 else (g, self.shape[0] // g, *self.shape[1:])
            randomness = {"generator": self.generators[0] if g == 1 else self.generators} if self._draws else {}
            stepped = self.scheduler.step(
                output.reshape(blocked), self.timesteps[index], self.state.reshape(blocked), **randomness
            )
            self.state = self.x = stepped.prev_sample.reshape(self.shape)
        self.index += 1
        if not self.done:
            self.x = self._network_input(self.state)
        return SamplingStep(index, count, t, x, self.x, evaluation)

    def finish(self, checkpointed: bool = True) -> States:
        """All the steps that are left; the sample."""
        while not self.done:
            self.step(checkpointed)
        return self.x

    def _clipped(self, denoised: Tensor) -> Tensor:
        """As the scheduler clips it."""
        config = self.scheduler.config
        if config.get("thresholding") and hasattr(self.scheduler, "_threshold_sample"):
            return self.scheduler._threshold_sample(denoised)
        reach = config.get("clip_sample_range") or 1.0
        return denoised.clamp(-reach, reach) if self.sampling.clip_sample else denoised

    def _scale(self) -> Tensor:
        """What the network's coordinates are of the scheduler's, at the present t."""
        return self._network_input(torch.ones((), device=self.device))

    def _network_input(self, state: Tensor) -> Tensor:
        """A state of the scheduler as the network sees it, at the present t."""
        if not hasattr(self.scheduler, "scale_model_input"):  # flow matching
            return state
        return self.scheduler.scale_model_input(state, self.timesteps[self.index])
