"""The forward process ``x_t = alpha_t x_0 + sigma_t eps`` and the conversions between what networks predict.

Source: Ho et al. 2020 (DDPM), Nichol & Dhariwal 2021 (cosine), Liu et al. 2023 (rectified flow), Karras et al. 2022 (EDM);
Notation of arXiv 2505.21742, section 2. ``eps ~ N(0, I)``; radii elsewhere in atdm are in *noise units*, that is in units of ``eps``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from ..errors import UserError, expect, require_known
from .predictions import PREDICTIONS, require_levels

# Shapes: items, states or noise; a number for each item; the timestep of each item.
States = Float[Tensor, "batch *dims"]
PerItem = Float[Tensor, "batch"]
Timesteps = Int[Tensor, "batch"]
FAMILIES = ("vp", "flow", "edm")
MOST_STEPS = 1_000_000  # more make tables that take minutes
TABLES = ("beta_schedule", "beta_start", "beta_end", "trained_betas", "rescale_betas_zero_snr")
KNOWN = ("linear", "scaled_linear", "squaredcos_cap_v2")  # schedules that each scheduler of diffusers knows
CLIPPING = ("clip_sample_range", "thresholding", "dynamic_thresholding_ratio", "sample_max_value", "set_alpha_to_one")


@dataclass(frozen=True)
class Process:
    """A discrete forward process with timesteps ``0 .. T-1``; larger t is noisier.

    Args:
        alphas: ``alpha_t``, the factor on the data.
        sigmas: ``sigma_t``, the standard deviation of the noise.
        prediction: what the network predicts, a name in :data:`~atdm.diffusion.predictions.PREDICTIONS`.
        schedule: how diffusers' schedulers of the family rebuild the tables, beside the number of timesteps, and how far
            and in what way they clip; in their words.
        family: whose schedulers sample it: ``vp`` (variance preserving), ``flow`` or ``edm``.
        times: the network's time input at each timestep; default: t itself.
        chances: how often training draws each timestep (sums to 1); default: all alike.
        data_std: of the data, as v and EDM predictions assume it; 1 in variance-preserving processes.
    """

    alphas: Float[Tensor, "T"]
    sigmas: Float[Tensor, "T"]
    prediction: str = "epsilon"
    schedule: dict[str, Any] = field(default_factory=dict)
    family: str = "vp"
    times: Float[Tensor, "T"] | None = None
    chances: Float[Tensor, "T"] | None = None
    data_std: float = 1.0
    _tables: dict[torch.device, dict[str, Tensor]] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        require_known("prediction", self.prediction, PREDICTIONS)
        require_known("family of processes", self.family, FAMILIES)
        require_levels(self.alphas, self.sigmas)

    def __repr__(self) -> str:
        low, high = (self.sigmas / self.alphas)[[0, -1]].tolist()
        kind = self.schedule.get("beta_schedule", self.family)
        return (
            f"Process({kind}, {self.steps} timesteps, noise levels {low:.3g} to {high:.3g}, predicts {self.prediction})"
        )

    @classmethod
    def linear(
        cls, steps: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02, prediction: str = "epsilon"
    ) -> Process:
        """Variance preserving with linear betas (Ho 2020); the betas scale with 1000/steps to keep the end point."""
        _require_steps(steps)
        scale = 1000 / steps
        if not 0 <= beta_start * scale <= beta_end * scale < 1:
            raise UserError(
                f"The betas of linear with {steps} timesteps would go from {beta_start * scale:g} to {beta_end * scale:g}. "
                f"Expected them to grow between 0 and 1: more than {1000 * beta_end:g} steps, or a smaller beta_end."
            )
        betas = torch.linspace(beta_start * scale, beta_end * scale, steps, dtype=torch.float64)
        schedule = {"beta_schedule": "linear", "beta_start": beta_start * scale, "beta_end": beta_end * scale}
        return cls._from_abar(torch.cumprod(1 - betas, 0), prediction, schedule)

    @classmethod
    def cosine(cls, steps: int = 1000, prediction: str = "epsilon") -> Process:
        """Variance preserving with ``abar(u) = cos^2(pi/2 (u + 0.008) / 1.008)`` and betas capped at 0.999 (Nichol 2021)."""
        _require_steps(steps)
        u = torch.arange(steps + 1, dtype=torch.float64) / steps
        abar = torch.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2
        betas = (1 - abar[1:] / abar[:-1]).clamp(max=0.999)
        return cls._from_abar(torch.cumprod(1 - betas, 0), prediction, {"beta_schedule": "squaredcos_cap_v2"})

    @classmethod
    def flow(cls, steps: int = 1000, shift: float = 1.0, prediction: str = "flow") -> Process:
        """Rectified flow ``x_s = (1 - s) x_0 + s eps`` (Liu 2023) for s = 1/T .. 1; the network's time input is ``T s``, as diffusers does.

        Args:
            shift: moves the levels towards noise, ``s -> shift s / (1 + (shift - 1) s)`` (Esser 2024, eq. 23).

        Raises:
            UserError: a shift that is not positive, or a prediction that says nothing about x_0 at s = 1.
        """
        expect(shift > 0, "The shift of the flow", shift, "a number > 0, such as 1 or 3")
        _require_steps(steps)
        s = torch.arange(1, steps + 1, dtype=torch.float64) / steps
        s = shift * s / (1 + (shift - 1) * s)
        return cls._from_sigmas(s, prediction, {"shift": shift})

    @classmethod
    def _from_sigmas(cls, s: Tensor, prediction: str, schedule: dict[str, Any]) -> Process:
        if prediction in ("epsilon", "score"):
            raise UserError(
                f"A flow starts at pure noise, where '{prediction}' says nothing about the data. "
                "Expected the prediction flow, v_prediction or sample."
            )
        times = (s * len(s)).float()
        return cls((1 - s).float(), s.float(), prediction, schedule, "flow", times)

    @classmethod
    def edm(
        cls,
        steps: int = 1000,
        sigma_min: float = 0.002,
        sigma_max: float = 80.0,
        rho: float = 7.0,
        sigma_data: float = 0.5,
        p_mean: float = -1.2,
        p_std: float = 1.2,
        prediction: str = "edm",
    ) -> Process:
        """EDM (Karras 2022): noise levels ``sigma`` of x_0 + sigma eps, seen by the network as ``c_in (x_0 + sigma eps)``.

        The state is the preconditioned one, so ``alpha = c_in = 1/sqrt(sigma^2 + sigma_data^2)`` and ``sigma_t = c_in
        sigma``: at most 1, as in variance-preserving processes, and a perturbation moves the unscaled state by ``sigma delta``.
        The network's time input is ``c_noise = log(sigma)/4``. Levels are those of eq. 5; training draws ``log sigma`` from
        ``N(p_mean, p_std^2)``, and the weight ``1/c_out^2`` of the published loss is a squared error of F.

        Raises:
            UserError: levels or widths that are not positive and ordered, or a prediction that diffusers has no word for.
        """
        if not (0 < sigma_min < sigma_max and rho > 0 and sigma_data > 0 and p_std > 0):
            raise UserError(
                f"EDM has sigma_min {sigma_min}, sigma_max {sigma_max}, rho {rho}, sigma_data {sigma_data} and p_std "
                f"{p_std}. Expected 0 < sigma_min < sigma_max, and the others > 0."
            )
        if prediction == "epsilon":
            raise UserError(
                "Diffusers means EDM's F by 'epsilon'. Expected the prediction edm, v_prediction, sample, score or flow."
            )
        _require_steps(steps)
        ramp = torch.linspace(0, 1, steps, dtype=torch.float64)
        low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
        sigma = (low + ramp * (high - low)) ** rho
        c_in = (sigma.square() + sigma_data**2).rsqrt()
        middles = (sigma.log()[1:] + sigma.log()[:-1]) / 2
        below = torch.special.ndtr((middles - p_mean) / p_std)
        chances = below.diff(prepend=below.new_zeros(1), append=below.new_ones(1))
        schedule = {"sigma_min": sigma_min, "sigma_max": sigma_max, "rho": rho, "sigma_data": sigma_data}
        times = (sigma.log() / 4).float()
        return cls(
            c_in.float(), (c_in * sigma).float(), prediction, schedule, "edm", times, chances.float(), sigma_data
        )

    @classmethod
    def from_scheduler(cls, scheduler: Any) -> Process:
        """The process a diffusers scheduler was built for: variance preserving, flow matching or EDM.

        Of the last it takes the published ``p_mean`` and ``p_std``, which schedulers do not know.

        Raises:
            UserError: another kind of scheduler, or options of it that atdm has no table for.
        """
        config = scheduler.config
        if type(scheduler).__name__.startswith("FlowMatch"):
            fresh = type(scheduler).from_config(config)  # set_timesteps overwrites the levels of training
            keys = [k for k in config if not k.startswith("_") and k not in ("num_train_timesteps", "prediction_type")]
            if config.get("invert_sigmas"):
                raise UserError(f"{type(scheduler).__name__} inverts its levels. Expected invert_sigmas=False.")
            schedule = {k: config[k] for k in keys if k != "clip_sample"}
            return cls._from_sigmas(fresh.sigmas.double().flip(0), config.get("prediction_type", "flow"), schedule)
        if "sigma_data" in config and "sigma_schedule" in config:
            if config.get("sigma_schedule") != "karras" or "rho" not in config:
                raise UserError(
                    f"{type(scheduler).__name__} has the sigma_schedule '{config.get('sigma_schedule')}'. Expected 'karras'."
                )
            expected = {"epsilon": "edm"}.get(config["prediction_type"], config["prediction_type"])
            options = {k: config[k] for k in ("sigma_min", "sigma_max", "rho", "sigma_data")}
            return cls.edm(config["num_train_timesteps"], **options, prediction=expected)
        flow = config.get("use_flow_sigmas") or config.get("prediction_type") == "flow_prediction"
        if (abar := getattr(scheduler, "alphas_cumprod", None)) is None or flow:
            raise UserError(
                f"{type(scheduler).__name__} {'follows a flow' if flow else 'has no alphas_cumprod'}. Expected one that is variance preserving "
                "such as DDPMScheduler, for flow matching such as FlowMatchEulerDiscreteScheduler, or EDMEulerScheduler."
            )
        if config.get("rescale_betas_zero_snr"):
            abar = torch.cat([abar[:-1], torch.zeros_like(abar[-1:])])  # some schedulers keep a little signal there
        schedule = {k: config[k] for k in (*TABLES, *CLIPPING) if config.get(k) is not None}
        if schedule.get("beta_schedule", "linear") not in KNOWN and "trained_betas" not in schedule:
            schedule["trained_betas"] = scheduler.betas.tolist()
        if (kind := str(config.get("variance_type", ""))).startswith("fixed"):  # learned ones are not sampled from
            schedule["variance_type"] = kind.replace("large_log", "large")  # of the log diffusers takes the root
        return cls._from_abar(abar.double(), str(config.get("prediction_type", "epsilon")), schedule)

    @classmethod
    def _from_abar(cls, abar: Tensor, prediction: str, schedule: dict[str, Any]) -> Process:
        return cls(abar.sqrt().float(), (1 - abar).sqrt().float(), prediction, schedule)

    @property
    def steps(self) -> int:
        """T, the number of timesteps."""
        return len(self.alphas)

    def scheduler_config(self, clip_sample: bool) -> dict[str, Any]:
        """The keyword arguments with which diffusers' schedulers of the family rebuild this process."""
        config = {"num_train_timesteps": self.steps, **self.schedule}
        if self.family == "vp":
            return {**config, "prediction_type": self.prediction, "clip_sample": clip_sample}
        native = {"edm": "epsilon"} if self.family == "edm" else {}  # diffusers' word for F
        if self.prediction == self.family == "flow":  # its schedulers know nothing else, and take no word for it
            return config
        return {**config, "prediction_type": native.get(self.prediction, self.prediction)}

    def alpha(self, t: Timesteps, like: States | None = None) -> Tensor:
        """``alpha_t``, shaped to broadcast against ``like`` (or ``[batch]``)."""
        return self._gather("alpha", t, like)

    def sigma(self, t: Timesteps, like: States | None = None) -> Tensor:
        """``sigma_t``, shaped to broadcast against ``like`` (or ``[batch]``)."""
        return self._gather("sigma", t, like)

    def ratio(self, t: Timesteps) -> PerItem:
        """``sigma_t / alpha_t``: the noise level of the rescaled state ``x_t / alpha_t``, in data units."""
        return self.sigma(t) / self.alpha(t)

    def timestep_at(self, ratio: float) -> int:
        """The first timestep whose ``sigma_t/alpha_t`` reaches ``ratio``: the inverse of :meth:`ratio` (T if none does)."""
        return int(torch.searchsorted((self.sigmas / self.alphas).contiguous(), ratio))

    def mix(self, x0: States, eps: States, t: Timesteps) -> States:
        """``x_t = alpha_t x_0 + sigma_t eps``."""
        return self.alpha(t, x0) * x0 + self.sigma(t, x0) * eps

    def draw(self, n: int, generator: torch.Generator | None = None) -> Int[Tensor, "n"]:
        """``n`` timesteps as training meets them, on the device of ``generator``."""
        device = generator.device if generator else "cpu"
        if self.chances is None:
            return torch.randint(self.steps, (n,), generator=generator, device=device)
        bounds = self.chances.double().cumsum(0).to(device)
        u = torch.rand(n, generator=generator, device=device, dtype=torch.float64)
        return torch.searchsorted(bounds, u * bounds[-1], right=True).clamp(max=self.steps - 1)

    def share_below(self, ratio: float) -> float:
        """How much of training has a noise level ``sigma_t/alpha_t`` below ``ratio``."""
        t = self.timestep_at(ratio)
        return t / self.steps if self.chances is None else float(self.chances[:t].double().sum())

    def time(self, t: Timesteps) -> Timesteps | PerItem:
        """The network's time input at timesteps t: t itself, ``T s`` of a flow, ``log(sigma)/4`` of EDM."""
        return t if self.times is None else self._gather("time", t, None)

    def target(self, x0: States, eps: States, t: Timesteps) -> States:
        """What the network should output for ``x_t = mix(x0, eps, t)``: ``A_t x_0 + B_t eps``."""
        if self.prediction == "epsilon":
            return eps
        if self.prediction == "sample":
            return x0
        return self._gather("A", t, x0) * x0 + self._gather("B", t, x0) * eps

    def to_eps(self, output: States, x_t: States, t: Timesteps) -> States:
        """The noise prediction that the network's ``output`` at ``x_t`` amounts to."""
        if self.prediction == "epsilon":
            return output
        return self._gather("eps_out", t, x_t) * output + self._gather("eps_x", t, x_t) * x_t

    def to_x0(self, output: States, x_t: States, t: Timesteps) -> States:
        """The denoised ``D(x_t, t)`` that the network's ``output`` at ``x_t`` amounts to."""
        if self.prediction == "sample":
            return output
        return self._gather("x0_out", t, x_t) * output + self._gather("x0_x", t, x_t) * x_t

    def output_weight(self, t: Timesteps) -> PerItem:
        """What a squared error of the output counts in the loss: 1, and ``sigma_t^2`` of a score (Song 2021)."""
        return self._gather("output_weight", t, None)

    def eps_weight(self, t: Timesteps) -> PerItem:
        """What a squared error of eps counts in the loss: ``output_weight / (d eps / d out)^2``.

        A term in eps units with this factor stands to the denoising term as it does for a network that predicts eps.
        """
        return self._gather("eps_weight", t, None)

    def denoised(self, eps: States, x_t: States, t: Timesteps) -> States:
        """``D(x_t, t) = (x_t - sigma_t eps) / alpha_t``."""
        return (x_t - self.sigma(t, x_t) * eps) / self.alpha(t, x_t)

    def score(self, eps: States, t: Timesteps) -> States:
        """``grad log p_t(x_t) = -eps / sigma_t`` (Song 2021)."""
        return -eps / self.sigma(t, eps)

    def _gather(self, name: str, t: Tensor, like: Tensor | None) -> Tensor:
        table = self._on(t.device)[name]
        if like is None:
            return table[t]
        if t.dim() == 1 and len(t) > 1 and t.stride(0) == 0:  # expanded over the batch, as in sampling: looked up once
            return table[t[:1]].reshape(-1, *[1] * (like.dim() - 1)).expand(len(t), *[1] * (like.dim() - 1))
        return per_item(table[t], like)

    def _on(self, device: torch.device) -> dict[str, Tensor]:
        if device not in self._tables:
            tables = PREDICTIONS[self.prediction].tables(self.alphas.double(), self.sigmas.double(), self.data_std)
            tables |= {"alpha": self.alphas, "sigma": self.sigmas}
            if self.times is not None:
                tables["time"] = self.times
            self._tables[device] = {name: values.to(device, self.alphas.dtype) for name, values in tables.items()}
        return self._tables[device]


PROCESSES: dict[str, Callable[..., Process]] = {
    "linear": Process.linear,
    "cosine": Process.cosine,
    "flow": Process.flow,
    "edm": Process.edm,
}


def per_item(values: Shaped[Tensor, "batch"], like: Shaped[Tensor, "rows *dims"]) -> Tensor:
    """One value per item, shaped to broadcast against ``like``."""
    return values.reshape(-1, *[1] * (like.dim() - 1))


def _require_steps(steps: int) -> None:
    if not 1 <= steps <= MOST_STEPS:
        raise UserError(f"The process has {steps} timesteps. Expected at least 1, at most {MOST_STEPS:,}.")
