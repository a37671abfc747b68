"""Diffusers' schedulers by name, for each family of processes."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch

from ..errors import UserError, unknown
from .process import CLIPPING, TABLES, Process

NATIVE = {
    "vp": ("epsilon", "sample", "v_prediction"),
    "flow": ("flow",),
    "edm": ("edm", "v_prediction"),
}  # predictions that diffusers' schedulers of the family take

FOLLOWED: dict[str, tuple[str, ...]] = {
    "vp": (
        *TABLES,
        *CLIPPING,
        "clip_sample",
        "num_train_timesteps",
        "prediction_type",
        "timestep_spacing",
        "variance_type",
    ),
    "flow": ("num_train_timesteps", "shift", "stochastic_sampling"),
    "edm": ("sigma_min", "sigma_max", "sigma_data", "sigma_schedule", "rho", "num_train_timesteps", "prediction_type"),
}  # what atdm takes from a pipeline's scheduler, or says of all of them: the spacing


class Sampler(NamedTuple):
    """A diffusers scheduler.

    Args:
        scheduler: its class name.
        options: of its constructor.
        strided: its step always goes from t to ``t - T // steps``.
        predictions: what it may be given, the first in place of all others.
        note: what to know of one that does not do what its family does.
    """

    scheduler: str
    options: Mapping[str, Any] = {}
    strided: bool = False
    predictions: tuple[str, ...] = NATIVE["vp"]
    note: str = ""


SAMPLERS: dict[str, Sampler] = {
    "ddpm": Sampler("DDPMScheduler"),
    "ddpm-unrespaced": Sampler(
        "UnrespacedDDPMScheduler",
        note="With fewer steps than timesteps, each step still takes away the noise of one timestep only (its own beta_t), "
        "as an implementation does that forgets to respace the betas: to study that error, not to sample with.",
    ),
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
FROM_PURE_NOISE = ("ddpm", "ddim", "ddpm-unrespaced")  # begin also where alpha_t is 0
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


def require_signal(process: Process, name: str | None = None) -> None:
    """Refuse what cannot begin at pure noise, of a process that ends there (Lin et al. 2024, arXiv 2305.08891).

    Args:
        name: of a sampler; None: whether any can.

    Raises:
        UserError: the network predicts the noise, which says nothing about the data there; or the sampler divides by alpha_t.
    """
    if process.family != "vp" or float(process.alphas[-1]) > 0:
        return
    if process.prediction in ("epsilon", "score"):
        raise UserError(
            "The process ends at pure noise (zero terminal signal-to-noise ratio), where a network that predicts "
            f"'{process.prediction}' says nothing about the data. Expected one that predicts v_prediction or sample."
        )
    if name is not None and name not in FROM_PURE_NOISE:
        raise UserError(
            f"The sampler '{name}' works with sigma_t/alpha_t, which is infinite at the last timestep of this process (zero "
            f"terminal signal-to-noise ratio). Expected {' or '.join(FROM_PURE_NOISE[:2])}."
        )


def build_scheduler(name: str, process: Process, clip_sample: bool = False) -> Any:
    """The diffusers scheduler called ``name`` for ``process``; ``set_timesteps`` then spaces its steps evenly from T-1.

    Where it has no word for the prediction of the process, it expects another: :class:`~atdm.diffusion.solver.Solver` converts.

    Args:
        clip_sample: clip the denoised image at every step, to [-1, 1] or what the process's ``schedule`` says; only ddpm,
            ddim and heun (of variance-preserving processes) can.

    Raises:
        UserError: an unknown name, or a process the scheduler cannot follow.
    """
    import diffusers

    from . import unrespaced

    samplers = FAMILY_SAMPLERS[process.family]
    if name not in samplers:
        of_family = "" if process.family == "vp" else f" of a process of the family {process.family}"
        raise unknown(f"sampler{of_family}", name, samplers)
    require_signal(process, name)
    sampler = samplers[name]
    known = process.prediction in sampler.predictions
    expected = process if known else _predicting(process, sampler.predictions[0])
    kind = getattr(unrespaced if hasattr(unrespaced, sampler.scheduler) else diffusers, sampler.scheduler)
    config = {"timestep_spacing": "trailing", **sampler.options, **expected.scheduler_config(clip_sample)}
    accepted = inspect.signature(kind.__init__).parameters
    scheduler = kind(**{key: value for key, value in config.items() if key in accepted})
    check_process(scheduler, expected)
    return scheduler


def own_ways(scheduler: Any, family: str) -> list[str]:
    """The options of a diffusers ``scheduler``, other than its class has them, that atdm's own samplers do not follow.

    They say how it spaces its steps and solves them, such as ``use_karras_sigmas`` and ``solver_order``.
    """
    accepted = inspect.signature(type(scheduler).__init__).parameters
    config = scheduler.config
    return [n for n in accepted if n in config and n not in FOLLOWED[family] and config[n] != accepted[n].default]


def adopt(scheduler: Any, process: Process) -> Any:
    """A fresh copy of a diffusers ``scheduler``, for ``process``.

    Raises:
        UserError: it has other tables, or expects another prediction than the network's, for which it has a word; or it
            is of a flow and spaces its steps by more than its shift.
    """
    check_process(scheduler, process)
    if process.family == "flow" and (apart := own_ways(scheduler, "flow")):
        raise UserError(
            f"{type(scheduler).__name__} has {', '.join(apart)}, which goes between the timesteps of the process. "
            "Expected one that only shifts its levels (shift)."
        )
    copied = type(scheduler).from_config(scheduler.config)
    expected = Process.from_scheduler(scheduler).prediction
    if expected not in NATIVE[process.family]:  # written into the scheduler of a pipeline by atdm
        words = _predicting(process, NATIVE[process.family][0]).scheduler_config(clip_sample=False)
        copied.register_to_config(prediction_type=words.get("prediction_type", process.family))
    return copied


def expected_by(scheduler: Any, process: Process) -> Process:
    """``process`` in terms of the prediction that ``scheduler`` expects."""
    return _predicting(process, Process.from_scheduler(scheduler).prediction)


def _predicting(process: Process, prediction: str) -> Process:
    return process if process.prediction == prediction else dataclasses.replace(process, prediction=prediction)


def pipeline_scheduler(process: Process, clip_sample: bool, deterministic: bool = False) -> Any:
    """The scheduler that a diffusers pipeline of a network for ``process`` holds; :meth:`Process.from_scheduler` reads it.

    Of a variance-preserving process it is that of ``ddpm``, or of ``ddim`` where no noise may enter on the way. A prediction that diffusers has no word for is written down all the same: its pipelines then refuse to sample.
    """
    import diffusers

    name = default_sampler(process, "ddim" if deterministic else "ddpm")
    config = process.scheduler_config(clip_sample)
    kind = getattr(diffusers, FAMILY_SAMPLERS[process.family][name].scheduler)
    accepted = inspect.signature(kind.__init__).parameters
    # The spacing of atdm's samplers: DDPMPipeline then takes the same steps.
    config = {"timestep_spacing": "trailing", **config} if process.family == "vp" else config
    scheduler = kind(**{key: value for key, value in config.items() if key in accepted})
    # What this scheduler does not ask for, a sampler may: the prediction of a flow, set_alpha_to_one of ddim.
    scheduler.register_to_config(**{key: value for key, value in config.items() if key not in accepted})
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
