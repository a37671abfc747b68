"""``objective: auto``: loss, gate and strength from the training data alone, without labels and without a validation set.

Images on which Gaussian noise is found are used above their noise level only (``ambient_blind``), and low noise is learned from the
others. Where pixels were replaced, only the others are learned from (``masked``).
Images in which neither is found are learned as they are (``ddpm``). Else the regularizer is applied. A perturbation inside a gate ``g``
shrinks what has a standard deviation up to about g (docs/method.md), and corruption shows where the data vary least: noise of std s
on a share p of the items shows as ``sqrt(p) s`` there, clean data nearly nothing. So the gate follows :func:`quiet_std`, and on
clean data it closes: what is left is ddpm.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from .. import spec
from ..diffusion.process import Process
from ..errors import UserError, expect
from ..noise import Gauge
from ..noise.estimate import by_patches
from ..noise.found import CorruptionFound
from .ambient import AmbientGauged
from .masked import Masked
from .perturb import Perturbation
from .terms import Loss

ITEMS = 4096  # that are looked at
FEWEST = 16  # of which something can be said
SIDE = 8  # of the patches in which images are looked at, pixels
QUIET = 0.1  # share of the directions that count as quiet
GATE = 2.0  # quiet stds
K = 2.0  # relative weight
LENGTH = 5.0  # of the perturbation, noise units, however many dimensions there are
EVERY = 2  # steps for one with the regularizer, and
START = 0.5  # of the training is ddpm's: the denoiser that is made to agree with itself should first be a good one
NOISY = 0.05  # share of the images from which on noise is believed
ALONE = 0.01  # share of images that are noise alone, likewise
CLEAN = 100  # images without noise, from which on low noise is learned from them alone
EXCHANGE_FROM = 0.25  # share of the training: a short one is else short of high noise
EVIDENCE = f"ambient_blind:exchange=true,exchange_from={EXCHANGE_FROM:g}"
REPLACED = 0.003  # share of all pixels that look replaced from which on they are believed to be: clean photos have a third of it
GOOD = 0.98  # share of items as good as trusted ones from which on there is nothing to keep out
STOP = 0.5  # of the gate: sampling that stops there returns the denoised state, without what the network errs below


def _of_files(images: Any) -> bool:
    """Whether these are items of ``atdm.load`` or a ``Source``, which know their files; asking costs no look at them."""
    return hasattr(type(images), "hidden_std")


def quiet_std(x: Float[Tensor, "n *item"], seed: int = 0) -> float:
    """Root mean square of the data along the tenth of directions in which they vary least, data units.

    The directions are principal ones of one half of the items, the mean square is taken over the other half, so that it is
    not the smallest by chance. Images are looked at in patches of 8x8 pixels, one at random in each channel, so that corruption
    that is alike in all channels counts.

    Args:
        seed: of the halves and the patches.

    Raises:
        UserError: fewer than 16 items.
    """
    if len(x) < FEWEST:
        raise UserError(
            f"There are {len(x)} items, too few to distinguish corruption from content. Expected at least {FEWEST}."
        )
    generator = torch.Generator().manual_seed(seed)
    x = x[torch.randperm(len(x), generator=generator)]
    vectors = _patches(x, generator) if x.dim() == 4 else x.flatten(1)
    first, second = vectors.double().tensor_split(2)
    mean = first.mean(0)
    _, directions = torch.linalg.eigh((first - mean).T @ (first - mean))  # from the least on
    quiet = directions[:, : max(1, round(QUIET * vectors.shape[1]))]
    return float(((second - mean) @ quiet).square().mean().sqrt())


def _patches(x: Float[Tensor, "n channels height width"], generator: torch.Generator) -> Float[Tensor, "rows pixels"]:
    """A patch of each channel of each image; those of one image stay in one half of the rows."""
    sides = [min(SIDE, side) for side in x.shape[2:]]
    begins = [
        torch.randint(whole - side + 1, (len(x),), generator=generator)
        for whole, side in zip(x.shape[2:], sides, strict=True)
    ]
    i, j = (begin[:, None] + torch.arange(side) for begin, side in zip(begins, sides, strict=True))
    each = torch.arange(len(x))[:, None, None]
    patches = x.permute(0, 2, 3, 1)[each, i[:, :, None], j[:, None, :]]
    return patches.permute(0, 3, 1, 2).reshape(-1, sides[0] * sides[1])


def constants(x: Float[Tensor, "n *item"], k: float = K, *, hidden: float = 0.0) -> dict[str, Any]:
    """The options of ``robust_adv`` (:class:`atdm.training.config.ObjectiveConfig`) for training data ``x``; of fewer than 16 items ``ddpm``.

    The gated relative regularizer along the l2 gradient: gate ``2 quiet_std``, and a perturbation of 5 noise units in all, that is
    ``r = 5 / sqrt(d)``: far enough to leave the data, near enough for the network to know its surroundings. The first half
    of the training is ddpm's; then one step in two applies the regularizer.

    Args:
        k: relative weight; more removes more noise, less stays closer to the data.
        hidden: root mean square noise that the quiet directions need not show, for JPEG empties and resizing smooths them;
            the gate follows the larger of the two.

    Raises:
        UserError: a weight that is not positive.
    """
    expect(0 < k < math.inf, "The k of objective auto", f"{k:g}", f"a positive weight, such as {K:g}")
    if len(x) < FEWEST:
        return {"name": "ddpm"}
    std, d = max(quiet_std(x[:ITEMS]), hidden), math.prod(x.shape[1:])
    return {
        "name": "robust_adv",
        "radius": f"constant:r={LENGTH / math.sqrt(d):.4g}",
        "weight": f"relative:k={k:g}",
        "norm": "l2",
        "steps": 1,
        "kappa": math.inf,
        "every": EVERY,
        "start": START,
        "gate": max(float(f"{GATE * std:.3g}"), 1e-6),  # below the first sigma_t / alpha_t nothing is perturbed
    }


def by_images(found: CorruptionFound, items: int) -> dict[str, Any] | None:
    """The options of an objective for so many images of which this was found.

    ``ambient_blind`` or ``masked``, or both in one; where nothing is wrong ``ddpm``; None where noise was not looked for. Clean images
    take the place of noisy ones where there are enough of them.
    """
    masked = found.replaced >= REPLACED
    wrong = found.share >= NOISY or found.alone >= ALONE
    if wrong:
        exchanged = (1 - found.share - found.alone) * items >= CLEAN
        if masked:
            return {"name": f"{EVIDENCE},masked=true" if exchanged else "ambient_blind:masked=true"}
        return {"name": EVIDENCE if exchanged else "ambient_blind"}
    if masked:
        return {"name": "masked"}
    return {"name": "ddpm"} if found.looked else None


def arguments(x: Float[Tensor, "n *item"], k: float = K, hidden: float = 0.0) -> dict[str, Any]:
    """The arguments of :class:`~atdm.objective.Objective` that :func:`constants` stand for; prints what they are."""
    found = constants(x, k, hidden=hidden)
    note = explain(found, len(x))
    print(note)  # noqa: T201 (a person's own loop has no other place where it is said)
    if found["name"] == "ddpm":
        return {**found, "note": note}
    return {
        "name": found["name"],
        "perturbation": Perturbation(found["norm"], found["steps"], found["kappa"]),
        "note": note,
        **{name: found[name] for name in ("radius", "weight", "every", "start", "gate")},
    }


def loss_for(
    objective: Callable[..., Loss], images: Any, process: Process | Any, k: float | None = None, seed: int = 0
) -> Loss:
    """The loss that suits training data, as ``atdm train --objective auto`` chooses it; says what it chose.

    Args:
        objective: the class :class:`~atdm.objective.Objective`, of which this is the class method ``auto``.
        images: a tensor ``[n, *item]`` in [-1, 1], a data set, a loader, or an iterator of batches. JPEG and resizing
            hide a part of the noise, which only files show: give ``atdm.load("photos/", image_size=32)`` to have it seen.
        process: the forward process, or a diffusers scheduler of it.
        k: relative weight of the regularizer; more removes more noise, less stays closer to the data. None: 2, unless noise
            is found on some of the images and not on others, which is used without the regularizer (``ambient_blind``).
        seed: of the objective's own generator, and of which images are looked at.
    """
    items = items_of(images, seed)
    hidden = images.hidden_std if _of_files(images) else 0.0  # noise that only files show
    process = process if isinstance(process, Process) else Process.from_scheduler(process)
    loss = image_by_image(objective, items, count_of(images, items), process, hidden, seed) if k is None else None
    return loss or objective(process=process, seed=seed, **arguments(items, K if k is None else k, hidden))


def image_by_image(
    objective: Callable[..., Loss], x: Float[Tensor, "n *item"], items: int, process: Process, hidden: float, seed: int
) -> Loss | None:
    """The loss for images that are judged one by one, and why, which is also printed; None where they are not.

    Args:
        objective: as of :func:`loss_for`.
        x: those that are looked at.
        items: how many there are.
        hidden: noise that only files show, where it is not looked for in the images.
    """
    if not by_patches(x.shape[1:]) or len(x) < FEWEST:
        return None
    indices = torch.arange(len(x))
    gauge = None if hidden > 0 else Gauge.fit(x, indices)
    found = CorruptionFound.of(gauge, x, indices)
    chosen = by_images(found, items)
    if chosen is None:
        return None
    note = explain(chosen, items, found)
    print(note)  # noqa: T201 (as arguments)
    if chosen["name"] == "ddpm":
        return objective(name="ddpm", process=process, seed=seed, note=note)
    if gauge is None or chosen["name"] == "masked":
        return Masked(process, note=note, seed=seed)
    options = spec.parse_spec(chosen["name"])[1]
    exchange, masked = "exchange" in options, "masked" in options
    return AmbientGauged(process, exchange, masked, EXCHANGE_FROM, gauge=gauge, note=note, seed=seed)


def by_levels(stds: Float[Tensor, "n"], noise: bool = False) -> dict[str, Any] | None:
    """The options of an objective where trusted items tell more than quiet directions do: ``omni``; None where they do not.

    Args:
        stds: noise level of each other item from which on it is as good as a trusted one (:func:`atdm.noise.least_levels`);
            where nearly all always are there is nothing to keep out, and ``ddpm`` uses all.
        noise: whether Gaussian noise is what is wrong with the others. The regularizer then removes more of it than ``omni``
            does (results/trusted.md).
    """
    if float((stds == 0).double().mean()) >= GOOD:
        return {"name": "ddpm"}
    return None if noise else {"name": "omni"}


def explain(chosen: Mapping[str, Any], items: int, found: CorruptionFound | None = None) -> str:
    """What was chosen for so many items, as a sentence.

    Args:
        found: by which it was chosen.
    """
    name = chosen["name"]
    if found is not None and name == "ddpm":
        others = (
            f"{found.sharper:.0%} of them are sharper than the others, which may be blurred or compressed: give 20 or more sharp ones with "
            "--trusted FOLDER. "
            if found.sharper >= NOISY
            else ""
        )
        return (
            f"objective auto: ddpm, for neither noise nor replaced pixels were found in the images. {others}auto:k={K:g} applies the "
            "regularizer instead."
        )
    if found is not None and name == "masked":
        return (
            f"objective auto: masked, for {found.replaced:.1%} of the pixels look replaced (salt and pepper, missing, blank). It learns from "
            f"the others; auto:k={K:g} applies the regularizer instead."
        )
    if found is not None:
        reasons = []
        if found.share >= NOISY:
            reasons.append(
                f"Gaussian noise of std {found.std:.2g} was found on {found.share:.0%} of the images. These train above their noise levels, "
                f"the others at all levels. Sampling with --stop_ratio {found.std:.2g}, the noise level, reduces noise further."
            )
        if found.alone >= ALONE:
            reasons.append(f"{found.alone:.1%} of the images are noise alone, and are not used.")
        if "masked" in name:
            reasons.append(f"{found.replaced:.1%} of the pixels look replaced, and are no targets.")
        return f"objective auto: {name}, for {' '.join(reasons)} auto:k={K:g} applies the regularizer instead."
    if name == "omni":
        return "objective auto: omni, for the trusted images show which others to use, and from which noise level on."
    if name == "ddpm" and items < FEWEST:
        return f"objective auto: ddpm, for {items} items are too few to distinguish corruption from content; {FEWEST} are enough."
    if name == "ddpm":
        return "objective auto: ddpm, for nearly all items are as good as the trusted images."
    gate = chosen["gate"] or 0.0
    quiet = gate / GATE
    if quiet < 1e-3:
        return "objective auto: there are directions in which the data do not vary at all, so there is no corruption to remove: ddpm."
    return (
        f"objective auto: where the data vary least their std is {quiet:.3g}. robust_adv with gate {gate:g}, "
        f"weight {chosen['weight']}, radius {chosen['radius']}, l2, every {chosen['every']} steps after {chosen['start']:.0%} of the "
        f"training. If the corruption is noise, sampling with --stop_ratio {STOP * gate:.3g}, half the gate, reduces it further."
    )


def items_of(images: Any, seed: int = 0) -> Float[Tensor, "n *item"]:
    """As many items as are looked at: of a tensor or data set a choice by ``seed``, of a loader or iterator the first.

    What :func:`atdm.load` returns chooses for itself.

    Batches and items that are tuples hold the images first; of dictionaries they are the first tensor.

    Raises:
        UserError: there is nothing of floating point numbers in it.
    """
    if _of_files(images):
        found = images.some(ITEMS)
    elif isinstance(images, Tensor | Dataset) and not isinstance(images, DataLoader):
        n = len(images)  # type: ignore[arg-type]
        order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))[:ITEMS]  # as training chooses
        found = images[order] if isinstance(images, Tensor) else torch.stack([_image(images[int(i)]) for i in order])
    elif isinstance(images, Iterable):
        batches: list[Tensor] = []
        for batch in images:
            batches.append(_image(batch))
            if sum(map(len, batches)) >= ITEMS:
                break
        found = torch.cat(batches)[:ITEMS] if batches else torch.empty(0)
    else:
        raise UserError(f"The images are a {type(images).__name__}. Expected a tensor, data set, loader or iterator.")
    if not found.is_floating_point():
        raise UserError(f"The images are of {found.dtype}. Expected floating point numbers in [-1, 1].")
    return found.detach().float().cpu()


def count_of(images: Any, looked_at: Tensor) -> int:
    """How many items there are, as far as can be known: those of a loader's data set, else at least those that are looked at."""
    whole: Any = images.dataset if isinstance(images, DataLoader) else images
    whole = getattr(whole, "items", whole) if _of_files(whole) else whole
    return len(whole) if hasattr(type(whole), "__len__") and not isinstance(whole, list | tuple) else len(looked_at)


def _image(batch: Any) -> Tensor:
    """The images of a batch, or the image of an item."""
    values = batch.values() if isinstance(batch, Mapping) else [batch] if isinstance(batch, Tensor) else batch
    first = (
        next((value for value in values if isinstance(value, Tensor)), None) if isinstance(values, Iterable) else None
    )
    if first is None:
        raise UserError(f"The data set gives a {type(batch).__name__} without a tensor. Expected images as tensors.")
    return first
