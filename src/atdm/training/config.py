"""The options of a training run, and the parts they stand for. Nothing heavy is imported until a part is built."""

from __future__ import annotations

import dataclasses
import math
import os
from dataclasses import dataclass, field
from typing import Any, Literal

from ..errors import UserError, expect, require_utf8, unknown
from ..memory import require_threads
from ..spec import build, parse_spec
from ..text import changed, dotted
from .reading import DataConfig
from .versions import RENAMED, in_todays_words

MOST_STEPS = 2.0**63

# Builders are annotated with Any: the option parser resolves annotations, and importing torch for --help is slow.


@dataclass(frozen=True)
class Settings:
    """How to optimize.

    Args:
        steps: optimizer steps.
        batch_size: samples per optimizer step, over all processes and micro-batches together.
        lr: peak learning rate of AdamW, reached after ``warmup`` steps and then constant or decayed to 0.
        warmup: steps of linear warm-up.
        decay: learning rate after the warm-up.
        weight_decay: AdamW's weight decay.
        grad_clip: largest gradient norm; 0 does not clip.
        ema: decay of the averaged weights; it grows to this value as (1 + step) / (10 + step).
        accumulate: micro-batches per optimizer step.
        regularize_from: first step with the regularizer; plain denoising before it.
        seed: seeds data, corruption, weights and training.
        channels_last: keep images and weights with the channels innermost; faster convolutions on many devices.
        compile: compile the network with torch.compile; where that fails, training says so and goes on without.
        gradient_checkpointing: compute activations again in the backward pass: less memory, more time; U-Nets only.
        label_dropout: share of the items whose class is withheld, which makes guidance possible; with class_labels.
        shard: split weights, average and optimizer over the processes (FSDP2), for networks larger than a device.
    """

    steps: int = 4000
    batch_size: int = 128
    lr: float = 1e-3
    warmup: int = 100
    decay: Literal["constant", "cosine"] = "constant"
    weight_decay: float = 0.0
    grad_clip: float = 1.0
    ema: float = 0.999
    accumulate: int = 1
    regularize_from: int = 0
    seed: int = 0
    channels_last: bool = False
    compile: bool = False
    gradient_checkpointing: bool = False
    label_dropout: float = 0.1
    shard: bool = False

    __repr__ = changed

    def __post_init__(self) -> None:
        for name, low in [("steps", 1), ("batch_size", 1), ("accumulate", 1), ("warmup", 0), ("regularize_from", 0)]:
            expect(getattr(self, name) >= low, name, getattr(self, name), f"an integer >= {low}")
        for name in ("lr", "weight_decay"):
            expect(0 <= getattr(self, name) < math.inf, name, getattr(self, name), "a finite number >= 0")
        expect(self.grad_clip >= 0, "grad_clip", self.grad_clip, "a number >= 0")
        expect(0 <= self.ema < 1, "ema", self.ema, "a decay in [0, 1), such as 0.999")
        expect(0 <= self.label_dropout <= 1, "label_dropout", self.label_dropout, "a share in [0, 1]")
        if self.batch_size % self.accumulate:
            raise UserError(
                f"A batch of {self.batch_size} does not split into {self.accumulate} equal micro-batches. "
                f"Expected batch_size to be a multiple, such as {self.accumulate * -(-self.batch_size // self.accumulate)}."
            )

    def lr_at(self, step: int) -> float:
        """The learning rate of optimizer step ``step`` (from 0)."""
        rise = min(1.0, (step + 1) / self.warmup) if self.warmup else 1.0
        fall = 0.5 * (1 + math.cos(math.pi * step / self.steps)) if self.decay == "cosine" else 1.0
        return self.lr * rise * fall

    def ema_at(self, step: int) -> float:
        """The decay of the average after optimizer step ``step``."""
        return min(self.ema, (1 + step) / (10 + step))


@dataclass(frozen=True)
class ObjectiveConfig:
    """The objective: which loss, and how its regularizer works.

    Args:
        name: auto (chosen from the data: ambient_blind, masked, or robust_adv with gate and strength; auto:k=5: the last, stronger),
            robust_adv (as published), ddpm, robust_rand, inv_rand or inv_adv; or a baseline with its constants, which like auto takes
            none of the options below: input_perturbation:gamma=0.1, pseudo_huber:c=0.1, masked, ambient, ambient_blind:exchange=true,
            ambient_consistent, omni and sfbd:pretrain=0.5,rounds=2 (by --trusted), sure, free:radius=0.1.
        radius: how far to perturb, in noise units: published:omega=2,floor=8/255,beta=uniform,beta_min=0, floored (its bias as
            a least radius) or constant:r=1.
        weight: how much it counts: published:lam=0.3, over_radius:lam=0.3 (the bias inside the weight), over_variance:lam=0.3,
            relative:k=5 or constant:value=1.
        norm: norm that bounds the perturbation: the largest element (linf), or the root mean square (l2).
        steps: ascent steps of the attack (1: FGSM with random start, more: PGD).
        kappa: step length in radii; inf takes full steps (with l2: power iterations).
        gate: perturb only where sigma_t/alpha_t is below this noise level (data units); null: everywhere.
        ascent: what the attack increases: how far the prediction moves, or the residual of the regularizer.
        detach_target: stop the gradient through the clean prediction in the target.
        every: apply the regularizer every N steps, scaled by N.
        start: share of the training before the regularizer is applied, or before a baseline's own loss; 0.5 makes the first half ddpm's.
        version: meaning of these options; in files without it the weight published was what over_radius is now.
    """

    name: str = "robust_adv"
    radius: str = "published"
    weight: str = "published"
    norm: Literal["linf", "l2"] = "linf"
    steps: int = 1
    kappa: float = 1.0
    gate: float | None = None
    ascent: Literal["prediction", "residual"] = "prediction"
    detach_target: bool = False
    every: int = 1
    start: float = 0.0
    version: Literal[2] = 2

    __repr__ = changed

    def __post_init__(self) -> None:
        expect(0 <= self.start < 1, "start", f"{self.start:g}", "a share of the training in [0, 1), such as 0.5")

    def first_step(self, steps: int) -> int:
        """The first of ``steps`` optimizer steps in which the regularizer may be applied."""
        return round(self.start * steps)

    def cost(self, process: Any) -> float:
        """Floor of the cost of a step over ddpm's, on average over the training."""
        regularized = self.build(process).passes()["floor_over_ddpm"]
        return 1 + (regularized - 1) * (1 - self.start)

    @property
    def changes(self) -> str:
        """What begins at a share of the training, in a word; empty if nothing does."""
        if self.in_rounds:
            return "rounds"
        late = float(parse_spec(self.name)[1].get("exchange_from", 0)) > 0
        return "regularizer" if self.start > 0 else "exchange" if late else ""

    @property
    def automatic(self) -> bool:
        """Whether the data are to choose."""
        return parse_spec(self.name)[0] == "auto"

    @property
    def in_rounds(self) -> bool:
        """Whether the data change from round to round."""
        return parse_spec(self.name)[0] == "sfbd"

    def fitted(self, x: Any, hidden: float = 0.0) -> ObjectiveConfig:
        """These options, with ``auto`` replaced by the regularizer that suits training data ``x`` (:mod:`atdm.objective.auto`).

        Args:
            hidden: noise of ``x`` that only its files show (:attr:`atdm.data.source.Source.hidden_std`).
        """
        if not self.automatic:
            return self
        from ..objective.auto import constants

        return ObjectiveConfig(**build("objective", self.name, {"auto": constants}, x=x, hidden=hidden))

    def build(self, process: Any, seed: int = 0) -> Any:
        """The objective for ``process``."""
        from ..objective import KINDS, OBJECTIVES, Objective
        from ..objective.perturb import Perturbation

        name, options = parse_spec(self.name)
        if self.automatic:
            raise UserError("The objective auto is chosen from training data. Expected fitted(x) before build().")
        if name not in OBJECTIVES:
            raise unknown("objective", name, [*OBJECTIVES, "auto"])
        if name not in KINDS:
            return build("objective", self.name, OBJECTIVES, process=process, seed=seed)
        if options:
            raise UserError(
                f"'{name}' takes its options one by one, as in --objective.{next(iter(options))}. Expected its name alone."
            )
        return Objective(
            name,
            process,
            self.radius,
            self.weight,
            Perturbation(self.norm, self.steps, self.kappa),
            self.gate,
            self.ascent,
            self.detach_target,
            self.every,
            seed,
        )


@dataclass(frozen=True, repr=False)  # that of Settings
class TrainConfig(Settings, DataConfig):
    """A training run: data, network, optimization, output.

    Args:
        out: run folder; training resumes when it holds a checkpoint of the same configuration.
        epochs: passes over the data, instead of steps.
        net: network, such as mlp:width=128, digits, tiny, cifar10 or celeba64; auto: mlp for vectors, tiny for images.
        init: start from this diffusers U-Net or pipeline (folder or Hub name) instead of a fresh network.
        vae: train on latents: encode the images once, after the corruption, by this frozen diffusers AutoencoderKL
            (folder or Hub name; of a pipeline its vae); samples are decoded. Null: on pixels.
        process: forward process: linear, cosine, flow or edm, with options such as cosine:prediction=v_prediction (epsilon,
            sample, v_prediction, score, flow or edm), flow:shift=3 or edm:sigma_data=0.5.
        objective: which loss, and how its regularizer works.
        precision: mixed precision; training warns where bf16 is slower.
        log_every: steps between log lines.
        log_with: trackers beside log.jsonl: tensorboard, wandb, mlflow; several, such as tensorboard+wandb; all that are
            installed (all); or none.
        save_every: steps between checkpoints.
        sample_every: steps between sample grids; 0: only at the end.
        metrics: feature spaces in which to measure samples after training, such as pixels+efficientnet-lite, for metrics.json;
            none: do not measure.
        metrics_samples: samples to draw for --metrics.
        clip_sample: clip the denoised image to [-1, 1] at every sampling step, here and in the exported pipeline; null: for U-Nets
            on pixels, but not with flow and edm, whose samplers cannot.
        changed_data: resume a run although its data have changed since it began.
        keep: checkpoints to keep.
        threads: CPU threads; 0: as many as speed up a step.
    """

    out: str = "runs/run"
    epochs: float | None = None
    net: str = "auto"
    init: str | None = None
    vae: str | None = None
    process: str = "linear"
    objective: ObjectiveConfig = field(
        default_factory=lambda: ObjectiveConfig("auto"), metadata={"unsaid": ObjectiveConfig()}
    )
    precision: Literal["no", "fp16", "bf16"] = "no"
    log_every: int = 50
    log_with: str = "tensorboard"
    save_every: int = 500
    sample_every: int = 0
    metrics: str = "none"
    metrics_samples: int = 1000
    clip_sample: bool | None = None
    changed_data: bool = False
    keep: int = 2
    threads: int = 0
    regularize_from: int = field(init=False, default=0)  # as the objective's start says; of auto once it has chosen

    def __post_init__(self) -> None:
        object.__setattr__(self, "out", os.path.expanduser(self.out))
        require_utf8("out", self.out)
        Settings.__post_init__(self)
        DataConfig.__post_init__(self)
        for name, low in {"log_every": 1, "save_every": 1, "sample_every": 0, "metrics_samples": 2, "keep": 1}.items():
            expect(getattr(self, name) >= low, name, getattr(self, name), f"an integer >= {low}")
        require_threads(self.threads)
        if self.epochs is not None:
            expect(self.epochs > 0, "epochs", f"{self.epochs:g}", "a number > 0, or null")
        object.__setattr__(self, "regularize_from", self.objective.first_step(self.steps))

    def over(self, items: int) -> TrainConfig:
        """The configuration with the steps that its epochs make of so many items.

        Raises:
            UserError: they are too many for an integer of 63 bits.
        """
        if self.epochs is None:
            return self
        steps = self.epochs * items / self.batch_size
        if steps >= MOST_STEPS:
            raise UserError(f"epochs is {self.epochs:g}, which makes {steps:.3g} steps. Expected a smaller number.")
        return dataclasses.replace(self, steps=max(1, math.ceil(steps)))

    @classmethod
    def unsaid(cls) -> TrainConfig:
        """What stored configurations mean by options that they do not say: the defaults of when they were written."""
        return cls(**{f.name: f.metadata["unsaid"] for f in dataclasses.fields(cls) if "unsaid" in f.metadata})

    # What may differ between a run folder and the command that resumes it: nothing that changes the weights.
    FREE = (
        *("out", "log_every", "log_with", "save_every", "sample_every", "metrics", "metrics_samples"),
        *("clip_sample", "changed_data", "keep", "threads", "shard", "steps", "epochs", "cache", "workers"),
    )
    # What says how the data are read, for whoever reads them again.
    READING = ("seed", "image_size", "crop", "limit", "skip_broken", "cache", "max_pixels")

    def reading(self) -> dict[str, Any]:
        """The options of :func:`atdm.data.load`."""
        return {name: getattr(self, name) for name in self.READING}

    def build_process(self) -> Any:
        """The forward process."""
        from ..diffusion.process import PROCESSES

        return build("process", self.process, PROCESSES)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, as written to ``config.yaml``."""
        values = dataclasses.asdict(self)
        return {f.name: values[f.name] for f in dataclasses.fields(self) if f.init}

    def hyperparameters(self) -> dict[str, bool | int | float | str]:
        """The same for trackers: without groups, and null as text."""
        return {name: "null" if value is None else value for name, value in dotted(self.as_dict()).items()}

    def require_same(self, stored: dict[str, Any], where: str, chosen: ObjectiveConfig) -> None:
        """Refuse to resume a run that another configuration made.

        Args:
            chosen: the objective of the run, of auto what it chose.

        Raises:
            UserError: names the first option that differs and both values.
        """
        longer = self.decay == "constant" and not (self.objective.changes or chosen.changes)
        free = set(self.FREE) if longer else set(self.FREE) - {"steps", "epochs"}
        if self.epochs is not None and self.epochs == stored.get("epochs"):
            free.add("steps")  # which they became when the data were there
        defaults = dotted(self.unsaid().as_dict())
        for key, value in dotted(self.as_dict()).items():
            before = dotted(stored).get(key, defaults[key])
            if key not in free and before != value:
                renamed = key == "objective.weight" and before == in_todays_words({"weight": value})["weight"]
                hint = f" {RENAMED}; --objective.weight {before} goes on with the run." if renamed else ""
                if key in ("steps", "epochs") and not longer:
                    hint = f" {self._fixed(chosen)}"
                raise UserError(
                    f"{where} belongs to another configuration: its {key} is {before}, this one's is {value}.{hint} "
                    "Expected the same options, or another --out."
                )

    def _fixed(self, chosen: ObjectiveConfig) -> str:
        """Why a run cannot be made longer."""
        if self.decay != "constant":
            return "The learning rate falls to 0 at the end, so a longer run has another one at every step."
        what = self.objective.changes or chosen.changes
        return (
            f"{self.objective.name} begins its {what} at a share of the steps, so a longer run begins later; "
            "--init with the model of a run goes on from its weights."
        )
