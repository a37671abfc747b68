"""A training configuration for what an audit found, with a reason for each choice."""

from __future__ import annotations

from typing import Any

from ..objective.auto import NOISY, REPLACED
from ..training.config import ObjectiveConfig, TrainConfig
from .look import Audit

DUPLICATED = 0.005  # share of near duplicates from which on they are mentioned
MATTERS = 0.02  # share of noisy items or outliers from which on the regularizer is recommended
WORTH = 0.02  # std from which on noise is; what resizing keeps of less is below the texture of clean images
SMALL = 12  # sides below this are for an MLP


def recommend(base: TrainConfig, found: Audit, cuda: bool) -> tuple[TrainConfig, list[str]]:
    """What to train with, and why.

    Args:
        base: says what to read; everything else is chosen here.
        cuda: whether there is a GPU to train on.
    """
    values: dict[str, Any] = {name: getattr(base, name) for name in (*TrainConfig.READING, "out", "data", "corrupt")}
    share, std = found.noise_share, found.noise_std
    vectors = len(found.item_shape) == 1
    outliers = len(found.outliers.why) / found.items
    noisy = std if std is not None and share >= MATTERS and std >= WORTH else None
    far = vectors and outliers >= MATTERS
    pixels = found.replaced.mean() if found.replaced.mean() >= REPLACED else 0.0
    if noisy is not None or far or pixels:
        values["objective"] = ObjectiveConfig("auto")
        seen = [] if noisy is None else [f"{share:.0%} of the items carry noise of std {noisy:.2g}"]
        seen += [f"{outliers:.0%} of the items lie far from the others"] if far else []
        seen += [f"{pixels:.1%} of the pixels look replaced"] if pixels else []
        files = found.files is not None and bool(found.files.remains.any())
        where = ", or from the noise in the files, whichever is more" if files else ""
        ways = ["It learns from the other pixels."] if pixels else []
        if noisy is not None or far:
            ways.append(
                "It learns low noise from clean images where there are enough, or takes gate and strength from the directions in which "
                f"the data vary least{where}."
            )
        reasons = [
            f"objective auto: {', and '.join(seen)}. {' '.join(ways)}",
            "Train with --objective.name ddpm, too: sampled with --stop_ratio near the noise, early stopping is the baseline that costs nothing.",
        ]
    else:
        values["objective"] = ObjectiveConfig("ddpm")
        unseen = (
            "noise cannot be distinguished from content here"
            if found.estimate is None
            else "there is no noise worth a regularizer"
        )
        reasons = [f"objective ddpm: {unseen}, and on clean data the regularizer costs detail."]
    size, why = _size(found.item_shape, found.items, cuda)
    return TrainConfig(**values, **size), [*reasons, why, *_by_hand(found)]


def _by_hand(found: Audit) -> list[str]:
    """What no objective mends."""
    out, hit, extra = [], len(found.most_replaced), found.duplicates.extra
    if len(found.sharper) >= NOISY * found.items:
        out.append(
            f"{len(found.sharper) / found.items:.0%} of the images are sharper than the others, which may be blurred or compressed: train with "
            "--trusted and a folder of 20 or more sharp ones."
        )
    if hit >= MATTERS * found.items and found.replaced.mean() < REPLACED:
        out.append(f"Look at the {hit:,} images with replaced pixels: they are too few for auto to treat them apart.")
    if extra >= DUPLICATED * found.items:
        out.append(f"Leave out the {extra:,} near duplicates: what occurs often is memorized first.")
    if found.broken:
        out.append(f"skip_broken: {len(found.broken):,} of the files cannot be read.")
    return out


def _size(shape: tuple[int, ...], items: int, cuda: bool) -> tuple[dict[str, Any], str]:
    """Network, steps, batch size and further options, and why."""
    usual: dict[str, Any] = {"decay": "cosine", "lr": 1e-3, "ema": 0.995}
    if len(shape) == 1:
        return usual | {
            "net": "mlp:width=128,depth=3",
            "steps": 4000,
            "batch_size": 256,
        }, "net mlp: the items are vectors."
    least, most = min(shape[1:]), max(shape[1:])
    if least < SMALL or least % 4 or most % 4:
        small = {"net": "mlp:width=256,depth=3,residual=true", "steps": 2500, "batch_size": 128}
        return usual | small, "net mlp: the images are small, or no multiple of four."
    if cuda and least % 8 == 0 and most % 8 == 0:
        net, steps = "cifar10" if most <= 32 else "celeba64", max(20_000, min(200_000, 4 * items))
        large = {"net": net, "steps": steps, "batch_size": 128, "lr": 1e-4, "warmup": 2000, "ema": 0.9999}
        large |= {"precision": "bf16", "channels_last": True, "save_every": 5000}
        return large, f"net {net} and {steps:,} steps: there is a GPU, and {items:,} images."
    tiny = {"net": "tiny:channels=16,multipliers=1-2-4,head_dim=64", "steps": 1000, "batch_size": 64}
    why = "the net of recipes/cifar10-cpu.yaml and 1,000 steps: a first look on a CPU; a GPU allows net cifar10 and far more steps."
    return usual | tiny, why
