"""A multilayer perceptron with a time embedding, for vectors and for small images.

It is a diffusers model: ``save_pretrained`` writes safetensors, and ``DDPMPipeline.from_pretrained`` opens a pipeline
that holds one once ``atdm.nets.mlp`` is imported (diffusers imports no module just because a folder names it).
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.utils import SAFETENSORS_WEIGHTS_NAME, BaseOutput
from jaxtyping import Float, Int
from safetensors.torch import save_file
from torch import Tensor, nn

TIME_FEATURES = 32  # sines and cosines of t


@dataclass
class MLPOutput(BaseOutput):
    """What a pass returns, as a ``UNet2DOutput``: that one's module imports every transformer of diffusers, two seconds."""

    sample: Float[Tensor, "batch channels *sides"]


class MLP(ModelMixin, ConfigMixin):
    """``depth`` hidden layers of ``width`` units, each shifted by an embedding of t.

    Args:
        in_channels: channels of an image, or the dimension of a vector.
        sample_size: side of a square image, (height, width), or () for vectors; the item's shape is
            ``(in_channels, *sample_size)``, as diffusers' pipelines read it.
        residual: hidden layers become residual blocks of two layers.
        dropout: share of hidden units dropped in each layer.
        skip: add the input times a learned function of t to the output, so that noise off a low-dimensional support need
            not pass through ``width`` units.
        num_class_embeds: how many class labels it can be given, as of a ``UNet2DModel``; None: it knows no classes.
    """

    @register_to_config
    def __init__(
        self,
        in_channels: int,
        sample_size: int | Sequence[int] = (),
        width: int = 128,
        depth: int = 3,
        residual: bool = False,
        dropout: float = 0.0,
        skip: bool = False,
        num_class_embeds: int | None = None,
    ) -> None:
        super().__init__()
        sides = (sample_size, sample_size) if isinstance(sample_size, int) else tuple(sample_size)
        d = in_channels * math.prod(sides)
        frequencies = torch.exp(-math.log(10_000) * torch.arange(TIME_FEATURES // 2) / (TIME_FEATURES // 2))
        self.register_buffer("frequencies", frequencies, persistent=False)
        self.embed = nn.Sequential(nn.Linear(TIME_FEATURES, width // 2), nn.SiLU(), nn.Linear(width // 2, width))
        self.enter = nn.Linear(d, width)
        layer = _Residual if residual else _Plain
        self.layers = nn.ModuleList(layer(width, dropout) for _ in range(depth if residual else depth - 1))
        self.leave = nn.Linear(width, d)
        self.pass_through = nn.Linear(width, 1) if skip else None
        self.class_embedding = None if num_class_embeds is None else nn.Embedding(num_class_embeds, width)

    def forward(
        self,
        sample: Float[Tensor, "batch channels *sides"],
        timestep: int | float | Int[Tensor, "*batch"] | Float[Tensor, "*batch"],
        class_labels: Int[Tensor, "*rows"] | None = None,
        return_dict: bool = True,
    ) -> MLPOutput | tuple[Tensor]:
        """The prediction at ``sample`` (data units) and ``timestep`` (one for all, or one per item).

        Args:
            class_labels: of a network that knows classes, one for all or one per item.

        Raises:
            ValueError: they are missing, as diffusers' networks say it.
        """
        time = self.embed(self._features(timestep))
        if self.class_embedding is not None:
            if class_labels is None:
                raise ValueError("class_labels should be provided when doing class conditioning")
            time = time + self.class_embedding(class_labels.to(time.device))
        h = self.enter(sample.flatten(1)) + time
        for layer in self.layers:
            h = layer(h, time)
        output = self.leave(nn.functional.silu(h))
        if self.pass_through is not None:
            output = output + self.pass_through(nn.functional.silu(time)) * sample.flatten(1)
        output = output.reshape(sample.shape)
        return MLPOutput(sample=output) if return_dict else (output,)

    # ModelMixin's own look for hooks of offloading and sharding first, which imports peft and transformers for a second.

    def to(self, *args: Any, **kwargs: Any) -> MLP:
        """As of any module."""
        return nn.Module.to(self, *args, **kwargs)  # type: ignore[call-overload]

    def save_pretrained(self, save_directory: str | os.PathLike[str], **options: Any) -> None:
        """Write ``config.json`` and safetensors, byte for byte as any diffusers model does."""
        if options:
            ModelMixin.save_pretrained(self, save_directory, **options)
            return
        self.save_config(save_directory)
        weights = {name: value.contiguous() for name, value in self.state_dict().items()}
        save_file(weights, Path(save_directory) / SAFETENSORS_WEIGHTS_NAME, {"format": "pt"})

    def _features(self, timestep: int | float | Tensor) -> Float[Tensor, "rows features"]:
        t = torch.as_tensor(timestep, device=self.frequencies.device).reshape(-1)
        if len(t) > 1 and t.stride(0) == 0:  # one t expanded over the batch, as in sampling: embed it once
            t = t[:1]
        angles = t[:, None].to(self.frequencies.dtype) * self.frequencies
        return torch.cat([angles.sin(), angles.cos()], 1)


class _Plain(nn.Module):
    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, h: Tensor, time: Tensor) -> Tensor:
        return self.linear(self.dropout(nn.functional.silu(h))) + time


class _Residual(nn.Module):
    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.first = nn.Linear(width, width)
        self.second = nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, h: Tensor, time: Tensor) -> Tensor:
        inner = self.first(nn.functional.silu(h)) + time
        return h + self.second(self.dropout(nn.functional.silu(inner)))
