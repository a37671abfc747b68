"""A small feature network, trained by one command on clean images without labels: metrics for any data, offline.

Two aims, neither with labels. Content: two crops of an image shall be nearer each other than to other images (SimCLR, Chen
2020). Corruption: the std of noise added to an image shall be readable from its features; so they distinguish clean from noisy.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..data.items import to_uint8
from ..errors import UserError
from ..files import atomic, load_tensors, misfit, save_tensors, tensor_metadata
from .features import FeatureSpace
from .networks import NetworkFeatures, space_of
from .results import content_hash
from .weights import fitting

WIDTHS = (16, 32, 64, 128)
TEMPERATURE = 0.2
NOISE = 0.4  # largest std that the features learn to tell
STD_VARIANCE = 1 / 12  # of the uniform share of it: what guessing gives is a loss of 1
KIND = "atdm small features"


class SmallNetwork(nn.Module):
    """Four convolutional stages; the features are the spatial means of each, texture and noise before layout.

    Args:
        channels: of the images, 1 or 3.
        size: side to resize to.
    """

    num_features = sum(WIDTHS)

    def __init__(self, channels: int, size: int) -> None:
        super().__init__()
        self.channels, self.size = channels, size
        self.preprocessing = f"8 bits; bicubic antialiased to {size}; [-1, 1]"
        stages, before = [], channels
        for index, width in enumerate(WIDTHS):
            first = nn.Conv2d(before, width, 3, stride=1 if index == 0 else 2, padding=1)
            more = [nn.SiLU(), nn.Conv2d(width, width, 3, padding=1)] if index > 1 else []
            stages.append(nn.Sequential(first, *more, nn.GroupNorm(4, width, affine=True), nn.SiLU()))
            before = width
        self.stages = nn.ModuleList(stages)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d"]:
        if x.shape[1] != self.channels:
            raise UserError(f"These features were trained on {self.channels} channels; the images have {x.shape[1]}.")
        x = to_uint8(x).float() / 127.5 - 1
        if x.shape[2:] != (self.size, self.size):
            x = nn.functional.interpolate(x, (self.size, self.size), mode="bicubic", antialias=True).clamp(-1, 1)
        return self.stagewise(x)

    def stagewise(self, x: Float[Tensor, "n c s s"]) -> Float[Tensor, "n d"]:
        """The features of images of the right size."""
        means = []
        for stage in self.stages:
            x = stage(x)
            means.append(x.mean((2, 3)))
        return torch.cat(means, 1)


def new_small(images: Float[Tensor, "n c h w"], seed: int = 0) -> SmallNetwork:
    """An untrained network for images like these.

    Raises:
        UserError: too few images, or none that are square.
    """
    if len(images) < 64 or images.shape[2] != images.shape[3] or images.shape[2] < 8:
        raise UserError(
            f"Cannot train features on images {list(images.shape)}. "
            "Expected 64 or more square images of 8x8 or larger; --image_size crops."
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return SmallNetwork(images.shape[1], images.shape[2])


def train_small(
    network: SmallNetwork,
    images: Float[Tensor, "n c h w"],
    steps: int = 300,
    batch: int = 128,
    lr: float = 2e-3,
    seed: int = 0,
) -> Iterator[tuple[int, float]]:
    """Train on clean images in [-1, 1]; yields each step's number (from 1) and its loss.

    Raises:
        UserError: no steps are asked for.
    """
    if steps < 1 or batch < 2:
        raise UserError(f"Asked for {steps} steps of {batch} images. Expected at least 1 step, of 2 images.")
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = nn.Sequential(nn.Linear(network.num_features, 128), nn.SiLU(), nn.Linear(128, 64))
        level = nn.Linear(network.num_features, 1)
    parameters = [*network.parameters(), *head.parameters(), *level.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=1e-4)
    rise = 0.1 if steps > 10 else 0.35  # its end at the first step, as 0.1 of 10 would be, is refused by torch
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=max(2, steps), pct_start=rise)
    batch = min(batch, len(images))
    for step in range(1, steps + 1):
        chosen = images[torch.randperm(len(images), generator=generator)[:batch]]
        views = torch.cat([_augment(chosen, generator), _augment(chosen, generator)])
        std = torch.rand(batch, 1, generator=generator)
        noise = NOISE * std[:, :, None, None] * torch.randn(chosen.shape, generator=generator)
        features, noisy = network.stagewise(torch.cat([views, chosen + noise])).split([2 * batch, batch])
        z = nn.functional.normalize(head(features), dim=1)
        alike = (z @ z.T / TEMPERATURE).fill_diagonal_(-torch.inf)
        partner = torch.arange(2 * batch).roll(batch)
        loss = nn.functional.cross_entropy(alike, partner) + (level(noisy) - std).square().mean() / STD_VARIANCE
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        yield step, loss.item()
    network.requires_grad_(False).eval()


def _augment(x: Tensor, generator: torch.Generator) -> Tensor:
    """Crops of 50 to 100 % of the side, of random place, brightness and contrast. Not mirrored: digits would not bear it."""

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(len(x), generator=generator)

    scale = uniform(0.5, 1.0)
    theta = torch.zeros(len(x), 2, 3)
    theta[:, 0, 0] = theta[:, 1, 1] = scale
    theta[:, :, 2] = torch.stack([(1 - scale) * uniform(-1, 1) for _ in range(2)], 1)
    grid = nn.functional.affine_grid(theta, list(x.shape), align_corners=False)
    x = nn.functional.grid_sample(x, grid, padding_mode="reflection", align_corners=False)
    return x * uniform(0.7, 1.3)[:, None, None, None] + uniform(-0.2, 0.2)[:, None, None, None]


def save_small(network: SmallNetwork, path: Path, notes: dict[str, object]) -> None:
    """Write weights and how they came about as safetensors, atomically.

    Raises:
        UserError: the file cannot be written.
    """
    about = {"kind": KIND, "channels": network.channels, "size": network.size, **notes}
    with atomic(path) as scratch:
        save_tensors(network.state_dict(), scratch, {"about": json.dumps(about)})


def small_file(
    path: Path, images: Float[Tensor, "n c h w"], trained_on: str, steps: int = 300, batch: int = 128, seed: int = 0
) -> Iterator[tuple[int, float]]:
    """Train a new network and write it to ``path``, with what it learned from; yields as :func:`train_small` does.

    Args:
        trained_on: where the images come from, in words or as a spec.

    Raises:
        UserError: see :func:`new_small`, :func:`train_small` and :func:`save_small`.
    """
    network = new_small(images, seed)
    yield from train_small(network, images, steps, batch, seed=seed)
    about = {"trained_on": trained_on, "images": len(images), "images_hash": content_hash(images)}
    save_small(network, path, {**about, "steps": steps, "seed": seed})


@dataclass(frozen=True)
class Small(NetworkFeatures):
    """The small network that ``atdm features`` trains.

    Args:
        file: what that command wrote.
    """

    file: str

    def load(self) -> FeatureSpace:
        path = Path(self.file).expanduser()
        if not path.is_file():
            raise UserError(
                f"There is no file {path} with small features. Make it with: atdm features --data CLEAN --out {path}"
            )
        try:
            weights, about = load_tensors(path), json.loads(tensor_metadata(path).get("about", "{}"))
        except ValueError as problem:  # Damaged among them
            raise UserError(f"Cannot read small features from {path}: {problem}") from problem
        wanted = {"kind": str, "channels": int, "size": int}
        if not isinstance(about, dict) or misfit(about, wanted) or about["kind"] != KIND:
            raise UserError(f"{path} holds no small features. Expected a file that atdm features wrote.")
        network = SmallNetwork(about["channels"], about["size"])
        fitting(path, "small", lambda: network.load_state_dict(weights))
        return space_of("Small", network.requires_grad_(False))
