"""Networks by name: an MLP for vectors and small images, U-Nets for images."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .. import hub, memory, spec
from ..errors import UserError, expect, first_line
from ..files import require_sealed
from .checks import halvings, quiet, require_size, require_weights, try_out, variant
from .passes import evaluating
from .unet import MOST_LAYERS, CelebA64UNet, Cifar10UNet, DigitsUNet, TinyUNet


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

    def __call__(self, item_shape: tuple[int, ...], classes: int | None = None) -> nn.Module:
        """A freshly initialized network for items of ``item_shape``: ``(d,)`` or ``(channels, height, width)``."""
        if len(item_shape) not in (1, 3):
            raise UserError(
                "The network 'mlp' needs vectors (d,) or images (channels, height, width); "
                f"the items have shape {item_shape}."
            )
        if self.width < 2 or not 1 <= self.depth <= MOST_LAYERS:
            raise UserError(
                f"The MLP has width {self.width} and depth {self.depth}. "
                f"Expected a width of at least 2 and a depth from 1 to {MOST_LAYERS}."
            )
        expect(0 <= self.dropout < 1, "The dropout of the network", self.dropout, "a number in [0, 1)")

        from .mlp import MLP

        channels, *sides = item_shape
        size = sides[0] if sides and sides[0] == sides[1] else tuple(sides)
        return MLP(channels, size, self.width, self.depth, self.residual, self.dropout, self.skip, classes)


NETS: dict[str, type] = {
    "mlp": Perceptron,
    "digits": DigitsUNet,
    "tiny": TinyUNet,
    "cifar10": Cifar10UNet,
    "celeba64": CelebA64UNet,
}


def build_net(text: str, item_shape: tuple[int, ...], classes: int | None = None) -> nn.Module:
    """The network a spec such as ``mlp:width=64`` or ``cifar10:dropout=0.1`` names, for items of ``item_shape``.

    Args:
        classes: how many class labels it can be given; None: none.

    Raises:
        UserError: an unknown name or option, or a network that does not fit the shape or knows no classes.
    """
    maker = spec.build("network", text, NETS)
    if classes is not None:
        if "classes" not in inspect.signature(maker.__call__).parameters:
            raise UserError(f"The network {text} knows no classes. Expected another, or class_labels false.")
        maker = partial(maker, classes=classes)
    with torch.random.fork_rng(devices=[]), torch.device("meta"):  # its size, before memory is taken for it
        size = sum(4 * p.numel() for p in maker(tuple(item_shape)).parameters())
    memory.require(size, f"The network {text}", "Expected a smaller one.")
    return maker(tuple(item_shape))


def load_net(
    source: str | Path,
    item_shape: tuple[int, ...] | None = None,
    classes: int | None = None,
    time: Tensor | None = None,
) -> nn.Module:
    """An existing network: from a run folder, a diffusers pipeline folder, a model folder or a Hub name.

    Args:
        item_shape: if given, the shape of the items the network must fit.
        classes: how many class labels it must know; None: none.
        time: if given, a time ``[1]`` that it must take.

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
    net = open_net(folder, source, time)
    if classes is None:
        class_conditioning(net, source)
    elif net.config.get("num_class_embeds") != classes:  # type: ignore[union-attr,operator]
        raise UserError(
            f"The network of '{source}' knows {net.config.get('num_class_embeds') or 'no'} labels. "  # type: ignore[union-attr,operator]
            f"Expected {classes}: those of the classes, and one for none."
        )
    if item_shape is not None:
        _require_shape(net, item_shape, source)
    return net


def _require_shape(net: nn.Module, shape: tuple[int, ...], source: str | Path) -> None:
    if not fits(net, shape):
        raise UserError(
            f"The network of '{source}' is for items of shape {item_shape(net)}; the data have {tuple(shape)}."
        )


def open_net(folder: Path, source: str | Path, time: Tensor | None = None) -> nn.Module:
    """The network of a diffusers pipeline or model folder, as one of as many outputs as inputs.

    Of a network with learned variances it is the half that predicts the mean (Nichol & Dhariwal 2021, eq. 15).

    Args:
        source: what sentences call it.
        time: ``[1]``, at which it must run; None: 0.

    Raises:
        UserError: it cannot be read or run, is of another kind, or its weights are not whole or not finite.
    """
    from .mlp import MLP

    subfolder = "unet" if (folder / "unet" / "config.json").is_file() else None
    try:
        kind = class_of(MLP.load_config(folder, subfolder=subfolder).get("_class_name"), source)
        with quiet():
            how = {"subfolder": subfolder, "variant": variant(folder / (subfolder or ""))}
            net, loaded = kind.from_pretrained(folder, **how, output_loading_info=True)
    except UserError:
        raise
    except Exception as problem:  # diffusers, safetensors and the Hub client each raise their own
        reason = first_line(problem).partition(". If you want")[0]  # of what only Python code can do
        raise UserError(
            f"Cannot load a network from '{source}': {reason}. "
            "Expected a diffusers pipeline or model folder with config.json and weights, or a Hub name."
        ) from problem
    require_weights(net, source, loaded)
    require_size(net, source)
    _keep_mean(net, source)
    try_out(net, source, time)
    return net


def class_of(name: str | None, source: str | Path) -> Any:
    """The class of a saved network: diffusers' U-Net, the MLP, or one beside the class of a row of ``NETS``.

    Raises:
        UserError: it is of another kind.
    """
    modules = {"UNet2DModel": "diffusers", "MLP": f"{__name__}.mlp"}
    beside = [kind.__module__ for kind in NETS.values() if hasattr(import_module(kind.__module__), name or "")]
    if name is None or not (beside or name in modules):
        known = " or ".join([*modules, *(f"a network beside {kind}" for kind in dict.fromkeys(beside))])
        raise UserError(f"'{source}' holds a {name or 'model without a class name'}. Expected {known}.")
    return getattr(import_module(modules.get(name) or beside[0]), name)


def is_unet(net: nn.Module) -> bool:
    """Whether the network is one of convolutions at several resolutions, as diffusers configures them."""
    return "block_out_channels" in getattr(net, "config", {})


def _keep_mean(net: nn.Module, source: str | Path) -> None:
    """Cut off the outputs beyond the inputs: the last layer is linear, and its first half predicts the mean."""
    config: Any = net.config
    channels, outputs = config["in_channels"], config.get("out_channels", config["in_channels"])
    if outputs == channels:
        return
    unet: Any = net
    last = getattr(unet, "conv_out", None)
    if outputs != 2 * channels or last is None or any("Skip" in kind for kind in config.get("up_block_types", ())):
        raise UserError(
            f"The network of '{source}' has {outputs} output channels for {channels} inputs. Expected as many outputs as "
            "inputs, or twice as many where it also predicts variances."
        )
    last.weight, last.bias = (nn.Parameter(part.detach()[:channels].clone()) for part in (last.weight, last.bias))
    last.out_channels = channels
    unet.register_to_config(out_channels=channels)


class Unlabelled(UserError):
    """A network that knows no classes was to be given one."""


def class_conditioning(
    net: nn.Module, source: str | Path, label: int | str | None = None, names: Sequence[str] = ()
) -> dict[str, Tensor]:
    """What the network is to be given beside x and t: nothing, or the label of the class it is to model.

    Args:
        label: the class by name or number, or ``all``: each in turn; None: the label for no class, where one is known.
        names: of the classes, of a network that atdm trained; it has one label more, for no class.

    Raises:
        Unlabelled: there is a label, and the network knows no classes.
        UserError: it is conditioned on classes and there is no label, or one that it does not know.
    """
    config: Any = net.config
    labels, kind = config.get("num_class_embeds"), config.get("class_embed_type")
    if labels is None and kind is None:
        if label is not None:
            raise Unlabelled(f"The network of '{source}' knows no classes. Expected no label.")
        return {}
    if labels is None:
        raise UserError(
            f"The network of '{source}' is conditioned on an embedding (class_embed_type {kind}). "
            "Expected an unconditional network, or one of classes by number."
        )
    classes = len(names) or labels
    if label is None and not names:
        raise UserError(
            f"The network of '{source}' is conditioned on one of {classes} classes. Expected an unconditional network, or the "
            f"class where a command takes one: --label, from 0 to {classes - 1}, or all, each in turn."
        )
    if label == "all":
        return {"class_labels": torch.arange(classes)}
    if label is None:
        return {"class_labels": torch.tensor([classes])}
    number = _class_number(str(label), names)
    known = f" ({', '.join(names[:20])}{', ...' if len(names) > 20 else ''})" if names else ""
    expected = f"one of the {classes} classes of '{source}', from 0 to {classes - 1}{known}"
    expect(0 <= number < classes, "The label", label, expected)
    return {"class_labels": torch.tensor([number])}  # for all items of a batch


def _class_number(label: str, names: Sequence[str]) -> int:
    """The number of a class that is given by name or number; -1 where it is neither."""
    if label in names:
        return names.index(label)
    return int(label) if label.isdecimal() else -1


def fits(net: nn.Module, shape: Sequence[int]) -> bool:
    """Whether a diffusers model takes items of ``shape``: convolutions take any sides that they can halve."""
    config: Any = net.config
    if "block_out_channels" not in config:
        return tuple(shape) == item_shape(net)
    return (
        len(shape) == 3 and shape[0] == config["in_channels"] and not any(side % halvings(config) for side in shape[1:])
    )


def item_shape(net: nn.Module) -> tuple[int, ...]:
    """The shape of the items a diffusers model is for: ``(d,)`` or ``(channels, height, width)``."""
    config: Any = net.config
    size = config["sample_size"]
    return (config["in_channels"], *((size, size) if isinstance(size, int) else tuple(size or ())))


def device_of(model: Callable[..., Any]) -> torch.device:
    """Where the parameters of a network are; of a function, or where there are none, the CPU."""
    parameter = next(model.parameters(), None) if isinstance(model, nn.Module) else None
    return torch.device("cpu") if parameter is None else parameter.device


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
def flops(net: nn.Module, item_shape: tuple[int, ...], **conditioning: Any) -> int:
    """Floating point operations of a forward pass for one item (matrix products, convolutions; 2 per multiply-add)."""
    from torch.utils.flop_counter import FlopCounterMode

    parameter = next(net.parameters())
    x = torch.zeros(1, *item_shape, device=parameter.device, dtype=parameter.dtype)
    with evaluating(net), FlopCounterMode(display=False) as counter:
        call(net, x, torch.zeros(1, dtype=torch.long, device=x.device), **conditioning)
    return counter.get_total_flops()
