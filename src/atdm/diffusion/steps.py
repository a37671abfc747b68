"""How a model is sampled, in one object: :class:`Sampling`, and the timesteps that it goes through."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..errors import UserError, expect, first_line
from .process import Process
from .schedulers import FAMILY_SAMPLERS, adopt, build_scheduler, default_sampler

MAX_SIGNAL_AT_START = 0.1  # largest alpha_t at which starting from pure noise is still sampling


@dataclass(frozen=True)
class Sampling:
    """How a model is sampled.

    Args:
        sampler: a name in :data:`~atdm.diffusion.schedulers.FAMILY_SAMPLERS` (of the process's family), or a diffusers
            scheduler (used as a copy); None: ddim, or euler of flows and EDM.
        steps: of the sampler from T-1 to the data, also where ``start_ratio`` omits some of them; a step of heun
            evaluates the network twice.
        start_ratio: begin at the first of the steps whose ``sigma_t/alpha_t`` is not above it, from N(0, I) as if it were
            the last timestep of the process; None: begin at T-1.
        stop_ratio: stop at the first t with ``sigma_t/alpha_t`` below it, and return the denoised state there; None: go on
            to the end.
        clip_sample: clip the denoised item to [-1, 1] at every step, for images; only ddpm, ddim and heun (of
            variance-preserving processes) can. None: as the model says, which is no of a network without a pipeline.

    Raises:
        UserError: a level that is not positive, or one to begin at below the one to stop at.
    """

    sampler: Any = None
    steps: int = 50
    start_ratio: float | None = None
    stop_ratio: float | None = None
    clip_sample: bool | None = None

    def __post_init__(self) -> None:
        start, stop = self.start_ratio, self.stop_ratio
        expect(start is None or start > 0, "start_ratio", start, "a noise level sigma_t/alpha_t > 0")
        expect(stop is None or stop >= 0, "stop_ratio", stop, "a noise level sigma_t/alpha_t >= 0")
        if start is not None and stop is not None and start < stop:
            raise UserError(
                f"Sampling begins at the noise level {start:g}, below {stop:g}, where it stops. "
                "Expected a start_ratio above the stop_ratio."
            )

    def resolved(self, process: Process, clip_sample: bool = False, preserving: str = "ddim") -> Sampling:
        """The same with nothing left open: what None stands for, for ``process``.

        Args:
            clip_sample: what the model says of clipping.
            preserving: the sampler of variance-preserving processes, where none is named.
        """
        return dataclasses.replace(
            self,
            sampler=default_sampler(process, preserving) if self.sampler is None else self.sampler,
            clip_sample=clip_sample if self.clip_sample is None else self.clip_sample,
        )

    def scheduler_for(self, process: Process) -> tuple[Any, list[int]]:
        """A scheduler of diffusers with its steps set, and the timestep of ``process`` at each evaluation of the network.

        All steps from T-1 on: :class:`~atdm.diffusion.solver.Solver` omits those above ``start_ratio``.

        Raises:
            UserError: a sampler or number of steps that cannot work.
        """
        sampling = self.resolved(process)
        if isinstance(sampling.sampler, str):
            scheduler = build_scheduler(sampling.sampler, process, bool(sampling.clip_sample))
            strided = FAMILY_SAMPLERS[process.family][sampling.sampler].strided
            return scheduler, set_timesteps(scheduler, process, self.steps, strided)
        return self._given(process)

    def _given(self, process: Process) -> tuple[Any, list[int]]:
        """:meth:`scheduler_for` of a scheduler of diffusers, of which a copy takes a step to see that it can."""
        try:
            scheduler, tried = (adopt(self.sampler, process) for _ in range(2))
            timesteps = set_timesteps(scheduler, process, self.steps, False)
            set_timesteps(tried, process, self.steps, False)
            with torch.random.fork_rng(devices=[]):
                if hasattr(tried, "scale_model_input"):
                    tried.scale_model_input(torch.zeros(1, 1, 2, 2), tried.timesteps[0])
                tried.step(torch.zeros(1, 1, 2, 2), tried.timesteps[0], torch.zeros(1, 1, 2, 2))
        except UserError:
            raise
        except Exception as problem:  # diffusers raises what each class does
            raise UserError(
                f"{type(self.sampler).__name__} cannot be used as a sampler: {first_line(problem)}. Expected a scheduler of "
                "diffusers whose step takes the network's output, the timestep and the state."
            ) from problem
        return scheduler, timesteps

    def last_ratio(self, process: Process) -> float:
        """``sigma_t/alpha_t`` where the network is evaluated last.

        The sample is the denoised state there, but of lms, pndm and deis, which extrapolate from earlier steps, and of
        ddpm-unrespaced, which does not get there. Noise below that level is so taken away in one go: a sampler of few steps stops early by itself.

        Raises:
            UserError: a sampler or number of steps that cannot work.
        """
        _, timesteps = self.scheduler_for(process)
        ratios: list[float] = process.ratio(torch.tensor(timesteps)).tolist()
        return next((r for r in ratios if self.stop_ratio is not None and r < self.stop_ratio), ratios[-1])

    def as_dict(self) -> dict[str, Any]:
        """For JSON; a scheduler is called by its class."""
        sampler = self.sampler if isinstance(self.sampler, str | None) else type(self.sampler).__name__
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)} | {"sampler": sampler}


def asked(sampling: Sampling | None, options: dict[str, Any]) -> Sampling:
    """``sampling`` with the fields of it that are among ``options``, which are taken out of there."""
    found = {f.name: options.pop(f.name) for f in dataclasses.fields(Sampling) if f.name in options}
    return dataclasses.replace(sampling or Sampling(), **found)


def set_timesteps(scheduler: Any, process: Process, steps: int, strided: bool) -> list[int]:
    """Set the steps of ``scheduler``, and tell the timestep of ``process`` at each evaluation of the network.

    Those of flows and of EDM are spread evenly over the table from its last entry to its first, as diffusers spreads
    them, but at the nearest entries.

    Raises:
        UserError: a number of steps that cannot work.
    """
    possible = f"1 to {process.steps}, the timesteps of the process"
    expect(1 <= steps <= process.steps, "The number of sampling steps", steps, possible)
    if process.family != "vp":
        return _set_sigmas(scheduler, process, steps)
    if strided and process.steps % steps:
        # Equal strides of T // steps cannot reach both ends; counted from 0 they at least end where step() believes.
        scheduler.register_to_config(timestep_spacing="leading")
    scheduler.set_timesteps(steps)  # kept on the CPU, where looking a timestep up does not wait for an accelerator
    timesteps = scheduler.timesteps
    if not torch.equal(timesteps, timesteps.round()):
        raise UserError(
            f"{type(scheduler).__name__} goes through fractional timesteps. Expected whole ones, as with "
            'timestep_spacing="trailing" and no Karras or like spacing; DPMSolverMultistepScheduler rounds them.'
        )
    signal = float(process.alphas[int(timesteps[0])])
    if signal > max(MAX_SIGNAL_AT_START, float(process.alphas[-1])):
        divisors = [d for d in range(1, process.steps + 1) if process.steps % d == 0]
        near = [max(d for d in divisors if d < steps), min(d for d in divisors if d > steps)]
        raise UserError(
            f"With {steps} steps of {process.steps // steps} timesteps {type(scheduler).__name__} would start at "
            f"t = {int(timesteps[0])}, where {signal:.0%} of the signal is left. Expected a divisor of {process.steps} "
            f"such as {' or '.join(map(str, near))}, or a sampler with uneven steps such as dpm-solver++."
        )
    return [int(t) for t in timesteps]


def _set_sigmas(scheduler: Any, process: Process, steps: int) -> list[int]:
    shifts = {"mu": 0.0} if scheduler.config.get("use_dynamic_shifting") else {}
    with np.errstate(all="ignore"):  # of levels that are replaced below
        scheduler.set_timesteps(steps, **shifts)
    timesteps = torch.linspace(process.steps - 1, 0, steps, dtype=torch.float64).round().long()
    sigmas = process.sigmas[timesteps] if process.family == "flow" else process.ratio(timesteps)
    repeats = torch.tensor([1, *[scheduler.order] * (steps - 1)])  # Heun comes back to all levels but the first
    timesteps, sigmas = timesteps.repeat_interleave(repeats), sigmas.float().repeat_interleave(repeats)
    last = scheduler.sigmas[-1:]  # 0, or what final_sigmas_type says
    scheduler.timesteps = process.time(timesteps).float()
    scheduler.sigmas = torch.cat([sigmas, last])
    return timesteps.tolist()
