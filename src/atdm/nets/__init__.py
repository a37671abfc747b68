"""Networks by name: an MLP for vectors and small images, U-Nets for images."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .. import hub, spec
from ..errors import UserError, first_line
from ..files import require_sealed
from .unet import CelebA64, Cifar10, Digits, Tiny


def call(model: Callable[..., Any], x: Tensor, t: Tensor, **conditioning: Any) -> Tensor:
    """``model(x, t, **conditioning)`` as a tensor; the model may return a tensor, a tuple or a diffusers output."""
    output = model(x, t, **conditioning)
    if isinstance(output, Tensor):
        return output
    return output[0] if isinstance(output, tuple | list) else output.sample


@dataclass(frozen=True)
class Perceptron:
    """The options of an :class:`~atdm.nets.mlp.MLP`; calling it with an item shape builds the network."""

    width: int = 128
    depth: int = 3
    residual: bool = False
    dropout: float = 0.0
    skip: bool = False

    def __call__(self, item_shape: tuple[int, ...]) -> nn.Module:
        """A freshly initialized network for items of ``item_shape``: ``(d,)`` or ``(channels, height, width)``."""
        if len(item_shape) not in (1, 3):
            raise UserError(
                "The network 'mlp' needs vectors (d,) or images (channels, height, width); "
                f"the items have shape {item_shape}."
            )
        if self.width < 2 or self.depth < 1:
            raise UserError(f"The MLP has width {self.width} and depth {self.depth}. Expected at least 2 and 1.")
        if not 0 <= self.dropout < 1:
            raise UserError(f"The dropout of the network is {self.dropout}. Expected a number in [0, 1).")

        from .mlp import MLP

        channels, *sides = item_shape
        size = sides[0] if sides and sides[0] == sides[1] else tuple(sides)
        return MLP(channels, size, self.width, self.depth, self.residual, self.dropout, self.skip)


NETS: dict[str, type] = {"mlp": Perceptron, "digits": Digits, "tiny": Tiny, "cifar10": Cifar10, "celeba64": CelebA64}


def build_net(text: str, item_shape: tuple[int, ...]) -> nn.Module:
    """The network a spec such as ``mlp:width=64`` or ``cifar10:dropout=0.1`` names, for items of ``item_shape``.

    Raises:
        UserError: an unknown name or option, or a network that does not fit the shape.
    """
    return spec.build("network", text, NETS)(tuple(item_shape))


def load_net(source: str | Path, item_shape: tuple[int, ...] | None = None) -> nn.Module:
    """An existing network: from a run folder, a diffusers pipeline folder, a model folder or a Hub name.

    Args:
        item_shape: if given, the shape of the items the network must fit.

    Raises:
        UserError: nothing is there, it cannot be read, or it does not fit ``item_shape``.
    """
    folder = Path(source)
    if not folder.is_dir():
        if not hub.is_name(source):
            raise UserError(
                f"There is no folder '{source}'. Expected a run folder, a diffusers pipeline or model folder, "
                "or a Hub name such as google/ddpm-cifar10-32."
            )
        folder = hub.fetch(str(source))
    if (folder / "model" / "model_index.json").is_file():  # a run folder of ours
        folder = folder / "model"
    require_sealed(folder)
    net = _load(folder, source, "unet" if (folder / "unet" / "config.json").is_file() else None)
    if item_shape is not None:
        _check_fits(net, tuple(item_shape), source)
    return net


def _load(folder: Path, source: str | Path, subfolder: str | None) -> nn.Module:
    from diffusers import UNet2DModel

    from .mlp import MLP

    classes: dict[str, Any] = {"UNet2DModel": UNet2DModel, "MLP": MLP}
    try:
        config = UNet2DModel.load_config(folder, subfolder=subfolder)
        name = config.get("_class_name")
        if name not in classes:
            raise UserError(
                f"'{source}' holds a {name or 'model without a class name'}. Expected {' or '.join(classes)}."
            )
        return classes[name].from_pretrained(folder, subfolder=subfolder)
    except UserError:
        raise
    except Exception as problem:  # diffusers, safetensors and the Hub client each raise their own
        reason = first_line(problem)
        raise UserError(
            f"Cannot load a network from '{source}': {reason} "
            "Expected a diffusers pipeline or model folder with config.json and weights, or a Hub name."
        ) from problem


def _check_fits(net: nn.Module, shape: tuple[int, ...], source: str | Path) -> None:
    config: Any = net.config
    channels = config["in_channels"]
    outputs = config.get("out_channels", channels)
    if outputs != channels:
        raise UserError(
            f"The network of '{source}' has {outputs} output channels for {channels} inputs (learned variances?). "
            "Expected as many outputs as inputs."
        )
    if "block_out_channels" in config:  # convolutions take any side they can halve
        halvings = 2 ** (len(config["block_out_channels"]) - 1)
        fits = len(shape) == 3 and shape[0] == channels and not any(s % halvings for s in shape[1:])
    else:
        fits = shape == item_shape(net)
    if not fits:
        raise UserError(f"The network of '{source}' is for items of shape {item_shape(net)}; the data have {shape}.")


def item_shape(net: nn.Module) -> tuple[int, ...]:
    """The shape of the items a diffusers model is for: ``(d,)`` or ``(channels, height, width)``."""
    config: Any = net.config
    size = config["sample_size"]
    return (config["in_channels"], *((size, size) if isinstance(size, int) else tuple(size or ())))


def require_shape(own: Sequence[int], model: str, shape: Sequence[int], data: str) -> None:
    """Refuse data that a diffusers model is not for.

    Args:
        own: shape of the model's items.
        model, data: what sentences call them.

    Raises:
        UserError: the model is for items of another shape.
    """
    if list(own) != list(shape):
        hint = f" --image_size {own[-1]} crops images." if len(own) == 3 else ""
        raise UserError(
            f"{model} is for items of shape {list(own)}, and those of {data} are {list(shape)}. Expected the same shape.{hint}"
        )


def count_parameters(net: nn.Module) -> int:
    """How many numbers the network learns."""
    return sum(p.numel() for p in net.parameters() if p.requires_grad)


def weights_hash(network: nn.Module) -> str:
    """16 hex digits of the SHA-256 of the named weights: which model made a number."""
    digest = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)} ".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


@torch.no_grad()
def flops(net: nn.Module, item_shape: tuple[int, ...]) -> int:
    """Floating point operations of a forward pass for one item (matrix products, convolutions; 2 per multiply-add)."""
    from torch.utils.flop_counter import FlopCounterMode

    parameter = next(net.parameters())
    x = torch.zeros(1, *item_shape, device=parameter.device, dtype=parameter.dtype)
    modes = [(module, module.training) for module in net.modules()]
    net.eval()
    try:
        with FlopCounterMode(display=False) as counter:
            call(net, x, torch.zeros(1, dtype=torch.long, device=x.device))
    finally:
        for module, training in modes:
            module.training = training
    return counter.get_total_flops()
