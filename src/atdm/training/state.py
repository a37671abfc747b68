"""What training changes, as tensors by name: what a checkpoint holds; and the record of one step of it."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..errors import UserError
from ..objective import Terms
from .config import Settings
from .sharding import load_whole, local, shard, split_like, whole
from .update import checkpoint_activations

if TYPE_CHECKING:
    from accelerate import Accelerator


@dataclass
class State:
    """What training changes: with the settings and the data it determines all that follows."""

    model: nn.Module
    ema: nn.Module
    optimizer: torch.optim.AdamW
    step: int = 0  # optimizer steps done
    positions: dict[int, str] = field(default_factory=dict)  # of a stream, where each process goes on
    denoised: Tensor | None = None  # of a loss in rounds, the noisy items as its round sees them

    @classmethod
    def create(cls, model: nn.Module, settings: Settings) -> State:
        """Fresh state around ``model``, whose weights the average starts from.

        Raises:
            UserError: gradient checkpointing is asked of a network without it.
        """
        if settings.channels_last:
            model.to(memory_format=torch.channels_last)
        ema = copy.deepcopy(model).eval().requires_grad_(False)
        if settings.gradient_checkpointing:
            checkpoint_activations(model)
        if settings.shard:
            model, ema = shard(model), shard(ema)
        optimizer = torch.optim.AdamW(
            model.parameters(), lr=settings.lr, weight_decay=settings.weight_decay, fused=True
        )
        return cls(model.train(), ema, optimizer)

    def tensors(self, keep: bool = True) -> dict[str, Tensor]:
        """Every tensor of the state by name, for a checkpoint; of a split one whole, and all processes call it at once.

        Args:
            keep: otherwise nothing is kept: this process only gives its part.
        """
        named = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        named |= {f"ema.{k}": v for k, v in self.ema.state_dict().items()}
        names: dict[Tensor, str] = {p: n for n, p in self.model.named_parameters()}
        for parameter, values in self.optimizer.state.items():
            named |= {f"optimizer.{key}.{names[parameter]}": v for key, v in values.items()}
        for process, position in self.positions.items():
            named[f"stream.{process}"] = torch.frombuffer(bytearray(position.encode()), dtype=torch.uint8)
        if self.denoised is not None:
            named["denoised"] = self.denoised
        found = ((name, whole(value)) for name, value in named.items())
        return {name: value for name, value in found if keep}

    def prepared(self, accelerator: Accelerator, split: bool) -> nn.Module:
        """The network as it is trained, with the average on its device; the parts of a split one are there already."""
        if split:
            return self.model
        self.ema.to(accelerator.device)
        model: nn.Module = accelerator.prepare(self.model, self.optimizer)[0]
        return model

    def gather(self, accelerator: Accelerator) -> None:
        """Learn from all processes where they are in a stream; all call it at once."""
        if self.positions and accelerator.num_processes > 1:
            from accelerate.utils import gather_object

            self.positions = dict(gather_object([*self.positions.items()]))

    def position_of(self, process: int, processes: int) -> str | None:
        """Where a process goes on in a stream; None: at the beginning.

        Raises:
            UserError: the state is that of another number of processes.
        """
        if self.step and len(self.positions) != processes:
            raise UserError(
                f"The run was saved by {len(self.positions)} processes that share a stream, and now there are {processes}. "
                f"Expected {len(self.positions)}, or another --out."
            )
        return self.positions.get(process)

    def restore(self, named: dict[str, Tensor], step: int) -> None:
        """Take over the tensors of :meth:`tensors`, saved after ``step`` optimizer steps."""
        for part, module in (("model.", self.model), ("ema.", self.ema)):
            load_whole(module, {k[len(part) :]: v for k, v in named.items() if k.startswith(part)})
        parameters = dict(self.model.named_parameters())
        for entry in (k for k in named if k.startswith("optimizer.")):
            _, key, name = entry.split(".", 2)
            value = named[entry].clone()
            if key != "step":  # in the memory format of the parameter, as the optimizer itself makes them
                empty = torch.empty_like(parameters[name], requires_grad=False)
                value = empty.copy_(split_like(named[entry], empty))
            self.optimizer.state[parameters[name]][key] = value
        positions = {k.removeprefix("stream."): v for k, v in named.items() if k.startswith("stream.")}
        self.positions = {int(k): bytes(v.tolist()).decode() for k, v in positions.items()}
        self.step, self.denoised = step, named.get("denoised")

    @torch.no_grad()
    def average(self, decay: float) -> None:
        """``ema <- decay ema + (1 - decay) model``."""
        kept, now, buffers = self._pairs
        torch._foreach_lerp_(kept, now, 1 - decay)
        for target, source in buffers:
            target.copy_(source)

    @cached_property
    def _pairs(self) -> tuple[list[Tensor], list[Tensor], list[tuple[Tensor, Tensor]]]:
        """The parameters of the average and of the model, and their buffers: walking the modules takes time."""
        buffers = list(zip(self.ema.buffers(), self.model.buffers(), strict=True))
        kept, now = ([local(p.detach()) for p in each.parameters()] for each in (self.ema, self.model))
        return kept, now, buffers


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
                "share_perturbed": chosen.float().mean().item(),
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
