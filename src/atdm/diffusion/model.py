"""A model: a network with its process, its clipping and its autoencoder, without which its outputs mean nothing."""

from __future__ import annotations

import dataclasses
import json
import logging
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..errors import UserError, first_line
from ..files import atomic, require_sealed, seal
from ..nets import call, class_conditioning, device_of, fits, item_shape, open_net, weights_hash
from ..nets.checks import halvings
from .conditioning import Guided, in_turn
from .folder import CLASSES, class_names, index_of, pipeline_folder, scheduler_of
from .latent import Latents
from .process import Process, States
from .sampling import sample
from .schedulers import own_ways, pipeline_scheduler, require_signal
from .steps import Sampling, asked


@dataclass(frozen=True, eq=False)
class Model:
    """A network and what it needs to be one: of a run folder, of any pipeline of diffusers, or of your own.

    Examples:
        >>> model = Model.from_pretrained("runs/digits")
        >>> images = model.sample(16, steps=20, seed=0)

    Args:
        net: any ``net(x, t, **conditioning)``.
        process: how noise is mixed in, and what the network predicts.
        clip_sample: whether its samples are clipped to [-1, 1] at every step.
        latents: the autoencoder whose latents the network works on; None: pixels or vectors.
        shape: of what the network works on, where its own configuration does not say.
        conditioning: passed to the network at every call, such as ``{"class_labels": torch.tensor([3])}``; labels of several
            classes are those of the items in turn.
        classes: the names of the classes it knows; it has one label more, for no class.
        conditioned_on: what it is given, in words, for records of how samples were made.
    """

    net: Callable[..., Any]
    process: Process
    clip_sample: bool = False
    latents: Latents | None = None
    shape: tuple[int, ...] | None = None
    conditioning: Mapping[str, Any] = field(default_factory=dict)
    classes: tuple[str, ...] = ()
    conditioned_on: str | None = None

    def __repr__(self) -> str:
        size = (
            f" of {sum(p.numel() for p in self.net.parameters()):,} parameters"
            if isinstance(self.net, nn.Module)
            else ""
        )
        latent = "" if self.latents is None else ", of latents"
        return f"Model({type(self.net).__name__}{size}{latent}, {self.process})"

    @classmethod
    def from_pretrained(
        cls, source: str | Path, *, pixels: bool = False, label: int | str | None = None, guidance: float = 1.0
    ) -> Model:
        """Open a run folder, the folder of a diffusers pipeline, or one on the Hub.

        Of a network with learned variances (Nichol & Dhariwal 2021) it takes the half that predicts the mean.

        Args:
            pixels: refuse a model of latents.
            label: the class to model, of a network that is conditioned on classes: its name or number, or ``all``, each
                in turn; None: those of a network that atdm trained together, by its label for no class.
            guidance: scale of classifier-free guidance towards that class (:class:`Guided`); 1: none.

        Raises:
            UserError: nothing is there, or a pipeline that atdm cannot run: says what it is and what was expected.
        """
        folder = pipeline_folder(source)
        index = index_of(folder)
        logging.getLogger(__name__).info("opening %s", folder)
        latent = "vqvae" in index  # the word of LDMPipeline
        if pixels and latent:
            raise UserError(
                f"{source} is a latent diffusion model, and this works on pixels. Expected a model of pixels; train, sample, "
                "evaluate, show, report and export take latent ones."
            )
        require_sealed(folder)
        process, clip = _process_of(scheduler_of(folder, index, source), source)
        net = open_net(folder, source, process.time(torch.tensor([process.steps - 1])))
        names = class_names(folder)
        conditioning = class_conditioning(net, source, label, names)
        latents = Latents.load(folder) if latent else None
        given = None if label is None else f"class {label}"
        model = cls(net.eval(), process, clip, latents, conditioning=conditioning, classes=names, conditioned_on=given)
        return model if guidance == 1 else model.guided(guidance)

    def guided(self, scale: float) -> Model:
        """The same with classifier-free guidance towards its class.

        Raises:
            UserError: it has no class to go to, or no label for none to go away from.
        """
        if not self.classes or self.conditioned_on is None:
            raise UserError(
                f"The guidance is {scale:g}, and {'no class is named' if self.classes else 'the network has no label for no class'}. "
                "Expected a label of a model that was trained with class_labels true, or guidance 1."
            )
        null = {"class_labels": torch.tensor([len(self.classes)])}
        return dataclasses.replace(
            self, net=Guided(self.net, null, scale), conditioned_on=f"{self.conditioned_on}, guidance {scale:g}"
        )

    @property
    def bare(self) -> Any:
        """The network itself, without guidance."""
        return self.net.model if isinstance(self.net, Guided) else self.net

    @property
    def net_shape(self) -> tuple[int, ...]:
        """The shape of what the network works on.

        Raises:
            UserError: neither ``shape`` nor the network's configuration says it.
        """
        if self.shape is not None:
            return self.shape
        if not isinstance(self.net, nn.Module) or not hasattr(self.net, "config"):
            raise UserError("The network does not say what items it is for. Expected Model(..., shape=(3, 32, 32)).")
        shape, config = item_shape(self.net), dict(self.net.config)  # type: ignore[arg-type]
        if len(shape) == 1 and "block_out_channels" in config:
            raise UserError(
                "The network does not say how large its images are (sample_size is null). Expected a size: --image_size 32, "
                "or from Python dataclasses.replace(model, shape=(3, 32, 32))."
            )
        if not fits(self.net, shape):
            raise UserError(
                f"The network's images are {shape[-1]}x{shape[-2]} (sample_size), and it can run only on sides divisible by "
                f"{halvings(config)}. Expected the sample_size that it was trained with."
            )
        return shape

    @property
    def item_shape(self) -> tuple[int, ...]:
        """The shape of the items it models, as :meth:`sample` returns them: ``(d,)`` or ``(channels, height, width)``."""
        return self.net_shape if self.latents is None else self.latents.image_shape(self.net_shape)

    @property
    def channels(self) -> int:
        """Of its images, or the numbers of its vectors, also where the size of the images is open."""
        if self.shape is not None or self.latents is not None:
            return self.item_shape[0]
        return int(item_shape(self.net)[0])  # type: ignore[arg-type]

    @property
    def hash(self) -> str:
        """16 hex digits of the SHA-256 of the network's weights; of a function without weights an empty text."""
        return weights_hash(self.bare) if isinstance(self.bare, nn.Module) else ""

    @property
    def device(self) -> torch.device:
        return device_of(self.net)

    def to(self, device: torch.device | str) -> Model:
        """The same on ``device``; the network and the autoencoder are moved, not copied."""
        for module in (self.net, self.latents and self.latents.vae):
            if isinstance(module, nn.Module):
                module.to(device)
        moved = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in self.conditioning.items()}
        return dataclasses.replace(self, conditioning=moved)

    def for_items(self, shape: tuple[int, ...], name: str, data: str) -> Model:
        """The model for items of ``shape``, which a network for images of any size takes from there.

        Args:
            name, data: what sentences call the model and the items.

        Raises:
            UserError: it is for items of another shape.
        """
        config: Mapping[str, Any] = getattr(self.net, "config", {})
        if self.shape is None and self.latents is None and "sample_size" in config and config["sample_size"] is None:
            if not isinstance(self.net, nn.Module) or not fits(self.net, shape):
                raise UserError(
                    f"{name} is for images of {config['in_channels']} channels whose sides it can halve "
                    f"{len(config['block_out_channels']) - 1} times, and those of {data} are {list(shape)}."
                )
            return dataclasses.replace(self, shape=tuple(shape))
        if list(self.item_shape) != list(shape):
            hint = f" --image_size {self.item_shape[-1]} crops images." if len(self.item_shape) == 3 else ""
            raise UserError(
                f"{name} is for items of shape {list(self.item_shape)}, and those of {data} are {list(shape)}. "
                f"Expected the same shape.{hint}"
            )
        return self

    def output(self, x: States, t: Tensor, **conditioning: Any) -> States:
        """What the network says at ``x_t`` and the timesteps t (0 .. T-1)."""
        return call(self.net, x, self.process.time(t), **{**self._conditions(len(x)), **conditioning})

    def eps(self, x: States, t: Tensor, **conditioning: Any) -> States:
        """The noise it predicts in ``x_t``."""
        return self.process.to_eps(self.output(x, t, **conditioning), x, t)

    def denoised(self, x: States, t: Tensor, **conditioning: Any) -> States:
        """``D(x_t, t)``, not clipped."""
        return self.process.to_x0(self.output(x, t, **conditioning), x, t)

    def score(self, x: States, t: Tensor, **conditioning: Any) -> States:
        """``grad log p_t(x_t) = -eps / sigma_t``."""
        return self.process.score(self.eps(x, t, **conditioning), t)

    def sampling(self, sampling: Sampling | None = None, preserving: str = "ddim") -> Sampling:
        """``sampling`` with the defaults of this model: see :meth:`Sampling.resolved`."""
        return (sampling or Sampling()).resolved(self.process, self.clip_sample, preserving)

    def sample(self, n: int, sampling: Sampling | None = None, **options: Any) -> Float[Tensor, "n *item"]:
        """``n`` samples, on the CPU; of latents the images they decode to.

        Args:
            sampling: how; its fields can be given by name as well, as in ``steps=20``.
            options: of :func:`atdm.diffusion.sampling.sample`, such as ``seed``, ``batch_size``, ``hook`` and ``conditioning``.
        """
        how = self.sampling(asked(sampling, options))
        options["conditioning"] = {**self._conditions(n), **(options.get("conditioning") or {})}
        drawn = sample(self.net, self.process, n, self.net_shape, how, **options)
        return drawn if self.latents is None else self.latents.decode(drawn)

    def _conditions(self, count: int) -> dict[str, Any]:
        """What the network is given beside x and t for so many items."""
        given = dict(self.conditioning)
        labels = given.get("class_labels")
        if isinstance(labels, Tensor) and labels.dim() == 1 and len(labels) > 1:
            given["class_labels"] = in_turn(labels, count)
        return given

    def save_pretrained(self, folder: str | Path) -> None:
        """Write it as the folder of a diffusers pipeline, whole or not at all.

        It is a ``DDPMPipeline``, of EDM and of networks that know classes a ``ConsistencyModelPipeline``: that one scales
        what the network sees, and passes ``class_labels``. Names of classes are in ``classes.json``. Their own
        ``__call__`` samples what diffusers has a word for; a network that predicts a score needs :meth:`sample`. With
        ``latents`` it is an ``LDMPipeline``, which decodes what it draws, and whose sampler is ddim: it gives no generator
        to the steps.
        """
        with atomic(Path(folder)) as scratch:
            self.write(scratch)

    def write(self, folder: Path) -> None:
        """:meth:`save_pretrained` into a folder that is already a scratch folder of :func:`atdm.files.atomic`.

        The parts write themselves, and their names the index, byte for byte what the pipeline's ``save_pretrained`` writes:
        importing that class means importing every model of diffusers.
        """
        net: Any = self.bare
        net.to(memory_format=torch.contiguous_format)  # all that safetensors writes
        scheduler = pipeline_scheduler(self.process, self.clip_sample, deterministic=self.latents is not None)
        parts = {"scheduler": scheduler, "unet": net} | ({} if self.latents is None else {"vqvae": self.latents.vae})
        index: dict[str, Any] = {"_class_name": self.pipeline_class, "_diffusers_version": version("diffusers")}
        for name, part in parts.items():
            part.save_pretrained(folder / name)
            library = type(part).__module__
            index[name] = ["diffusers" if library.startswith("diffusers.") else library, type(part).__name__]
        if self.classes:
            names = {"names": self.classes, "no_class": len(self.classes)}
            (folder / CLASSES).write_text(json.dumps(names, indent=1, ensure_ascii=False), encoding="utf-8")
        (folder / "model_index.json").write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")
        seal(folder)

    @property
    def pipeline_class(self) -> str:
        """The pipeline of diffusers that opens what :meth:`save_pretrained` writes."""
        if self.latents is not None:
            return "LDMPipeline"
        return "ConsistencyModelPipeline" if self.process.family == "edm" or self.classes else "DDPMPipeline"


def _process_of(scheduler: Any, source: str | Path) -> tuple[Process, bool]:
    """The process of a pipeline's scheduler, and whether it clips; a step is taken to see that it can follow its options."""
    try:
        process = Process.from_scheduler(scheduler)
        require_signal(process)
        clip = bool(scheduler.config.get("clip_sample", False))
        how = Sampling(steps=1).resolved(process, clip)
        sample(lambda x, t: torch.zeros_like(x), process, 1, (1, 2, 2), how)
    except UserError as problem:
        raise UserError(f"The scheduler of {source} cannot be used. {problem.sentence}") from problem
    except Exception as problem:  # torch and diffusers each raise their own
        raise UserError(
            f"The scheduler of {source} cannot be used: {first_line(problem)}. Expected options that diffusers can follow."
        ) from problem
    if apart := own_ways(scheduler, process.family):
        warnings.warn(
            f"The scheduler of {source} has {', '.join(apart)}, which atdm's samplers do not follow: they space their steps "
            "evenly from the last timestep. From Python, sampler= takes the scheduler as it is.",
            stacklevel=3,
        )
    return process, clip


def load_pipeline(folder: Path | str, *, latent: bool = False) -> tuple[nn.Module, Process, bool]:
    """The network, the process and the clipping of :meth:`Model.from_pretrained`, for those who want them apart.

    Args:
        latent: open also a network that works on latents; :meth:`Latents.load` opens its autoencoder.

    Raises:
        UserError: as :meth:`Model.from_pretrained`.
    """
    model: Any = Model.from_pretrained(folder, pixels=not latent)
    return model.net, model.process, model.clip_sample


def require_finite(x: Float[Tensor, "n *item"], what: str, some: bool = False) -> None:
    """Refuse items that are not finite.

    Args:
        what: they are called in the sentence.
        some: one finite item is enough.

    Raises:
        UserError: says how many are not finite.
    """
    broken = int((~x.flatten(1).isfinite()).any(1).sum())
    if broken and not (some and broken < len(x)):
        raise UserError(
            f"{broken} of the {len(x)} {what} are not finite: the model diverges under this sampler. Expected a model that "
            "has converged, or another sampler or more steps."
        )
