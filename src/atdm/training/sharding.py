"""Networks larger than one device: weights, average and optimizer split over the processes by torch's FSDP2.

accelerate starts the processes. It shards on accelerators alone, so ``fully_shard`` is called here, as accelerate itself calls it:
then two processes on a CPU train alike, over gloo.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..errors import UserError

if TYPE_CHECKING:
    from accelerate import Accelerator

    from ..objective import Loss
    from .config import TrainConfig


def require_shardable(config: TrainConfig, objective: Loss, accelerator: Accelerator) -> None:
    """Refuse what sharded training does not do.

    Raises:
        UserError: names it.
    """
    if accelerator.distributed_type.value == "FSDP":
        raise UserError(
            "accelerate is to shard (--use_fsdp), and atdm does so itself. Expected --shard true without it."
        )
    if not config.shard:
        return
    if accelerator.num_processes == 1:
        raise UserError(
            "shard splits a network over processes, and there is one. Expected accelerate launch --num_processes 2 or more."
        )
    asked = {
        f"precision {config.precision}": config.precision != "no",
        "compile": config.compile,
        "sample_every": config.sample_every > 0,
        "metrics": config.metrics != "none",
        "sfbd": config.objective.in_rounds,
    }
    for name in (name for name, is_set in asked.items() if is_set):
        raise UserError(f"shard and {name} do not go together. Expected one of them.")
    if objective.passes()["floor_over_ddpm"] > 1:
        raise UserError(
            f"The objective {config.objective.name} passes several times through a network whose weights it freezes, on some rows "
            "only, and the processes of a sharded one must pass alike. Expected ddpm, pseudo_huber, masked, input_perturbation, "
            "ambient or ambient_blind, or no shard."
        )


def shard(module: nn.Module) -> nn.Module:
    """Split the parameters of a network over all processes, in place: each block of its lists by itself, then what remains."""
    from torch.distributed.fsdp import fully_shard

    lists = [each for each in module.modules() if isinstance(each, nn.ModuleList)]
    for block in [block for blocks in lists for block in blocks]:
        if any(True for _ in block.children()) and not any(isinstance(m, nn.ModuleList) for m in block.modules()):
            fully_shard(block)
    fully_shard(module)
    return module


def whole(tensor: Tensor) -> Tensor:
    """A tensor with the parts of all processes, on the CPU; all call it at once. Of one that is not split itself."""
    found: Any = tensor
    return found.full_tensor().cpu() if _is_split(tensor) else tensor


def local(tensor: Tensor) -> Tensor:
    """The part of this process."""
    found: Any = tensor
    return found.to_local() if _is_split(tensor) else tensor


def split_like(tensor: Tensor, pattern: Tensor) -> Tensor:
    """A whole tensor, split as ``pattern`` is."""
    if not _is_split(pattern):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    split: Any = pattern
    return distribute_tensor(tensor.to(split.device), split.device_mesh, split.placements)


def load_whole(module: nn.Module, named: Mapping[str, Tensor]) -> None:
    """Put whole tensors into a network, which may be split."""
    patterns = module.state_dict()
    module.load_state_dict({k: split_like(v, patterns[k]) if k in patterns else v for k, v in named.items()})


def _is_split(tensor: Tensor) -> bool:
    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return False
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)
