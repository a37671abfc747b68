"""Diffusers' schedulers by name, for each family of processes, and the timesteps they go through."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch

from ..errors import UserError, unknown
from .process import Process

MAX_SIGNAL_AT_START = 0.1  # largest alpha_t at which starting from pure noise is still sampling

NATIVE = {
    "vp": ("epsilon", "sample", "v_prediction"),
    "flow": ("flow",),
    "edm": ("edm", "v_prediction"),
}  # predictions that diffusers' schedulers of the family take


class Sampler(NamedTuple):
    """A diffusers scheduler.

    Args:
        scheduler: its class name.
        options: of its constructor.
        strided: its step always goes from t to ``t - T // steps``.
        predictions: what it may be given, the first in place of all others.
    """

    scheduler: str
    options: Mapping[str, Any] = {}
    strided: bool = False
    predictions: tuple[str, ...] = NATIVE["vp"]


SAMPLERS: dict[str, Sampler] = {
    "ddpm": Sampler("DDPMScheduler"),
    "ddim": Sampler("DDIMScheduler", strided=True),
    "dpm-solver++": Sampler("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++"}),
    "sde-dpm-solver++": Sampler("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    "heun": Sampler("HeunDiscreteScheduler"),
    "euler": Sampler("EulerDiscreteScheduler"),
    "euler-ancestral": Sampler("EulerAncestralDiscreteScheduler", predictions=("epsilon", "v_prediction")),
    "lms": Sampler("LMSDiscreteScheduler"),
    "pndm": Sampler(
        "PNDMScheduler", {"skip_prk_steps": True, "set_alpha_to_one": True}, True, ("epsilon", "v_prediction")
    ),
    "unipc": Sampler("UniPCMultistepScheduler"),
    "deis": Sampler("DEISMultistepScheduler"),
}
FLOW_SAMPLERS: dict[str, Sampler] = {
    "euler": Sampler("FlowMatchEulerDiscreteScheduler", predictions=NATIVE["flow"]),
    "heun": Sampler("FlowMatchHeunDiscreteScheduler", predictions=NATIVE["flow"]),
}
EDM_SAMPLERS: dict[str, Sampler] = {
    "euler": Sampler("EDMEulerScheduler", predictions=NATIVE["edm"]),
    "dpm-solver++": Sampler("EDMDPMSolverMultistepScheduler", predictions=NATIVE["edm"]),
}
FAMILY_SAMPLERS: dict[str, dict[str, Sampler]] = {"vp": SAMPLERS, "flow": FLOW_SAMPLERS, "edm": EDM_SAMPLERS}


def default_sampler(process: Process, preserving: str = "ddim") -> str:
    """The sampler of those who name none: ``preserving`` of a variance-preserving process, else euler."""
    return preserving if process.family == "vp" else "euler"


def strided(name: str, process: Process) -> bool:
    """Whether steps of the sampler ``name`` always span ``T // steps`` timesteps."""
    return FAMILY_SAMPLERS[process.family][name].strided


def build_scheduler(name: str, process: Process, clip_sample: bool = False) -> Any:
    """The diffusers scheduler called ``name`` for ``process``; ``set_timesteps`` then spaces its steps evenly from T-1.

    Where it has no word for the prediction of the process, it expects another: :class:`~atdm.diffusion.solver.Solver` converts.

    Args:
        clip_sample: clip the denoised image to [-1, 1] at every step, for images; only ddpm, ddim and heun (of
            variance-preserving processes) can.

    Raises:
        UserError: an unknown name, or a process the scheduler cannot follow.
    """
    import diffusers

    samplers = FAMILY_SAMPLERS[process.family]
    if name not in samplers:
        raise unknown(
            "sampler" if process.family == "vp" else f"sampler of a process of the family {process.family}",
            name,
            samplers,
        )
    sampler = samplers[name]
    spoken = process.prediction if process.prediction in sampler.predictions else sampler.predictions[0]
    kind = getattr(diffusers, sampler.scheduler)
    config = {
        "timestep_spacing": "trailing",
        **_speaking(process, spoken).scheduler_config(clip_sample),
        **sampler.options,
    }
    accepted = inspect.signature(kind.__init__).parameters
    scheduler = kind(**{key: value for key, value in config.items() if key in accepted})
    check_process(scheduler, _speaking(process, spoken))
    return scheduler


def adopt(scheduler: Any, process: Process) -> Any:
    """A fresh copy of a diffusers ``scheduler``, for ``process``.

    Raises:
        UserError: it has other tables, or expects another prediction than the network's, for which it has a word.
    """
    check_process(scheduler, process)
    twin = type(scheduler).from_config(scheduler.config)
    spoken = Process.from_scheduler(scheduler).prediction
    if spoken not in NATIVE[process.family]:  # written into the scheduler of a pipeline by atdm
        words = _speaking(process, NATIVE[process.family][0]).scheduler_config(clip_sample=False)
        twin.register_to_config(prediction_type=words.get("prediction_type", process.family))
    return twin


def spoken_by(scheduler: Any, process: Process) -> Process:
    """``process`` in terms of the prediction that ``scheduler`` expects."""
    return _speaking(process, Process.from_scheduler(scheduler).prediction)


def _speaking(process: Process, prediction: str) -> Process:
    return process if process.prediction == prediction else dataclasses.replace(process, prediction=prediction)


def pipeline_scheduler(process: Process, clip_sample: bool, deterministic: bool = False) -> Any:
    """The scheduler that a diffusers pipeline of a network for ``process`` holds; :meth:`Process.from_scheduler` reads it.

    Of a variance-preserving process it is that of ``ddpm``, or of ``ddim`` where no noise may enter on the way. A prediction that diffusers has no word for is written down all the same: its pipelines then refuse to sample.
    """
    import diffusers

    preserving = "DDIMScheduler" if deterministic else "DDPMScheduler"
    names = {"vp": preserving, "flow": "FlowMatchEulerDiscreteScheduler", "edm": "EDMEulerScheduler"}
    config = process.scheduler_config(clip_sample)
    kind = getattr(diffusers, names[process.family])
    accepted = inspect.signature(kind.__init__).parameters
    # The spacing of atdm's samplers: DDPMPipeline then takes the same steps.
    config = {"timestep_spacing": "trailing", **config} if process.family == "vp" else config
    scheduler = kind(**{key: value for key, value in config.items() if key in accepted})
    if "prediction_type" in config:  # also of a flow, whose schedulers do not ask for it
        scheduler.register_to_config(prediction_type=config["prediction_type"])
    return scheduler


def check_process(scheduler: Any, process: Process) -> None:
    """Whether ``scheduler`` was built for ``process``.

    Raises:
        UserError: it has other tables, or expects another prediction that it and the network have a word for.
    """
    theirs = Process.from_scheduler(scheduler)
    ours = process.alphas.to(theirs.alphas)
    same = theirs.family == process.family and theirs.steps == process.steps
    if not same or not torch.allclose(theirs.alphas, ours, atol=1e-4):
        raise UserError(
            f"{type(scheduler).__name__} cannot follow this process: its alpha_t differ from those of the process. "
            "Expected a process built by Process.from_scheduler, or by name with a sampler of its family."
        )
    if theirs.prediction != process.prediction and process.prediction in NATIVE[process.family]:
        raise UserError(
            f"{type(scheduler).__name__} expects the prediction '{theirs.prediction}'; "
            f"the network predicts '{process.prediction}'."
        )


def place(scheduler: Any, process: Process, steps: int, strided: bool) -> list[int]:
    """Set the steps of ``scheduler``, and tell the timestep of ``process`` at each evaluation of the network.

    Those of flows and of EDM are spread evenly over the table from its last entry to its first, as diffusers spreads
    them, but at the nearest entries.

    Raises:
        UserError: a number of steps that cannot work.
    """
    if not 1 <= steps <= process.steps:
        raise UserError(
            f"The number of sampling steps is {steps}. Expected 1 to {process.steps}, the timesteps of the process."
        )
    if process.family != "vp":
        return _place_levels(scheduler, process, steps)
    if strided and process.steps % steps:
        # Equal strides of T // steps cannot reach both ends; counted from 0 they at least end where step() believes.
        scheduler.register_to_config(timestep_spacing="leading")
    scheduler.set_timesteps(steps)  # kept on the CPU, where looking a timestep up does not wait for an accelerator
    timesteps = scheduler.timesteps
    if not torch.equal(timesteps, timesteps.round()):
        raise UserError(
            f"{type(scheduler).__name__} goes through fractional timesteps. Expected whole ones, "
            'as with timestep_spacing="trailing".'
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


def last_ratio(sampler: str, process: Process, steps: int, stop_ratio: float | None = None) -> float:
    """``sigma_t/alpha_t`` where the network is evaluated last.

    The sample is the denoised state there, but of lms, pndm and deis, which extrapolate from earlier steps. Noise below that
    level is so taken away in one go: a sampler of few steps stops early by itself.

    Args:
        sampler, steps, stop_ratio: of :func:`atdm.diffusion.sampling.sample`.

    Raises:
        UserError: a sampler or number of steps that cannot work.
    """
    levels = place(build_scheduler(sampler, process), process, steps, strided(sampler, process))
    ratios: list[float] = process.ratio(torch.tensor(levels)).tolist()
    return next((r for r in ratios if stop_ratio is not None and r < stop_ratio), ratios[-1])


def _place_levels(scheduler: Any, process: Process, steps: int) -> list[int]:
    shifts = {"mu": 0.0} if scheduler.config.get("use_dynamic_shifting") else {}
    scheduler.set_timesteps(steps, **shifts)
    rows = torch.linspace(process.steps - 1, 0, steps, dtype=torch.float64).round().long()
    levels = process.sigmas[rows] if process.family == "flow" else process.ratio(rows)
    visits = torch.tensor([1, *[scheduler.order] * (steps - 1)])  # Heun comes back to all levels but the first
    rows, levels = rows.repeat_interleave(visits), levels.float().repeat_interleave(visits)
    last = scheduler.sigmas[-1:]  # 0, or what final_sigmas_type says
    scheduler.timesteps = process.time(rows).float()
    scheduler.sigmas = torch.cat([levels, last])
    return rows.tolist()
