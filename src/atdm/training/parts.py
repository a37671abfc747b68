"""The parts of a training run, built from its configuration: data, network, objective; and what a step of it costs."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .. import memory
from ..corruption import Truth, parse_corruption, truth_of
from ..corruption.levels import truth_levels
from ..data import Dataset, load
from ..data.classes import Classes
from ..data.encoded import Encoded
from ..data.items import Items, Joined, Mapped
from ..data.source import Source
from ..diffusion.latent import Latents
from ..diffusion.model import Model
from ..errors import UserError
from ..files import atomic
from ..nets import build_net, count_parameters, flops, is_unet, load_net, weights_hash
from ..noise import Levels
from ..objective import Loss, Objective, Sfbd
from ..spec import parse_spec
from .batches import require_items
from .choice import choose, trusted_levels
from .config import ObjectiveConfig, TrainConfig
from .trusted import NEEDED, open_trusted, require_enough, said_of


@dataclass(frozen=True)
class Parts:
    """What a configuration stands for."""

    config: TrainConfig  # with what auto chose as its objective
    dataset: Dataset
    trusted: Dataset | None  # clean for sure, the last items of the source
    source: Source
    truth: Truth
    net: nn.Module
    objective: Loss
    latents: Latents | None  # the autoencoder in front; None: the network works on the items themselves
    clip: bool  # sampling clips denoised items to [-1, 1]
    notes: tuple[str, ...]  # sentences on what was converted, skipped or chosen
    levels: Levels | None = None  # from which noise level on each item is as good as a trusted one, if anybody looked

    def model(self, net: nn.Module) -> Model:
        """``net``, which is trained on these data, as a model of them."""
        classes, shape = self.source.classes, tuple(self.source.item_shape)
        names = () if classes is None else classes.names
        return Model(
            *(net.eval(), self.objective.process, self.clip, self.latents, shape),
            conditioning=self.unlabelled,
            classes=names,
        )

    @property
    def unlabelled(self) -> dict[str, Any]:
        """What the network is given beside x and t where no class is meant."""
        return {} if self.source.classes is None else {"class_labels": torch.tensor([len(self.source.classes.names)])}


def build(
    config: TrainConfig,
    progress: Callable[[int, int], None] | None = None,
    dataset: Dataset | None = None,
    trusted: Dataset | None = None,
) -> Parts:
    """Open the data and make the network and the objective.

    Args:
        progress: called while images are decoded, with how many are done and of how many.
        dataset, trusted: clean data and trusted items, where they are not what the configuration names.

    Raises:
        UserError: a part of the configuration cannot be used.
    """
    process, automatic = config.build_process(), config.objective.automatic
    # Until the data are there to choose by, auto is ddpm.
    objective = (ObjectiveConfig("ddpm") if automatic else config.objective).build(process, config.seed)
    _require_able(config, objective, trusted)
    latents = Latents.load(config.vae) if config.vae else None
    dataset = dataset or load(config.data, **config.reading(), progress=progress)
    trusted = require_enough(trusted) if trusted else open_trusted(config.as_dict(), progress)
    _require_for_stream(config, dataset, trusted)
    said = said_of(dataset, trusted) if trusted else ()
    std = _stored_levels(dataset) if objective.levels_from == "truth" else None
    source = _source(config, dataset, trusted, std)
    if latents is not None:
        encoded = _encoded(source, latents, Path(config.out))
        source = Source(encoded, seed=config.seed, trusted=source.trusted, classes=source.classes)
    config, levels = config.over(len(source)), trusted_levels(config, source, progress)
    found = [levels.explain()] if levels else []
    if levels is not None:
        source = dataclasses.replace(source, least=torch.cat([levels.stds, torch.zeros(source.trusted)]))
    if automatic:
        chosen, why = choose(config, source, levels)
        config, found = dataclasses.replace(config, objective=chosen), [*found, *why]
        objective = config.objective.build(process, config.seed)
    require_items(objective, source)
    size = 8.0 * config.batch_size * math.prod(source.item_shape)  # noise and a perturbation for each item
    memory.require(size, f"A batch of {config.batch_size:,} items", "Expected a smaller batch_size.")
    keys = source.keys_of(torch.arange(len(source) - source.trusted)).tolist()
    truth = truth_of(config.corrupt, keys, tuple(dataset.items.item_shape), config.seed)
    torch.manual_seed(config.seed)
    name = config.net if config.net != "auto" else ("mlp" if dataset.kind == "vector" else "tiny")
    labels = None if source.classes is None else len(source.classes.names) + 1  # the last: no class
    shape = source.item_shape
    last = process.time(torch.tensor([process.steps - 1]))
    net = load_net(config.init, shape, labels, last) if config.init else build_net(name, shape, labels)
    bounded = dataset.kind == "image" and latents is None
    clips = objective.process.family == "vp" and bounded and is_unet(net)
    clip = clips if config.clip_sample is None else config.clip_sample
    notes = (*dataset.notes, *said, *found)
    return Parts(config, dataset, trusted, source, truth, net, objective, latents, clip, notes, levels)


def _require_able(config: TrainConfig, objective: Loss, trusted: Dataset | None) -> None:
    """Refuse an objective that cannot learn from such a configuration, before its data are read.

    Raises:
        UserError: says what it needs.
    """
    name, rounds = parse_spec(config.objective.name)[0], isinstance(objective, Sfbd)
    if config.vae and (objective.levels_from == "truth" or rounds):
        raise UserError(
            f"The objective {config.objective.name} works by the noise of pixels, and the autoencoder makes something else "
            "of it. Expected an objective that needs no noise levels, or no vae."
        )
    if name in NEEDED and config.trusted is None and trusted is None:
        raise UserError(NEEDED[name])
    if rounds and config.objective.start > 0:
        raise UserError(
            f"sfbd begins on trusted images alone, and start is {config.objective.start:g}. Expected --objective "
            f"sfbd:pretrain={config.objective.start:g}, or no start."
        )


def _source(config: TrainConfig, dataset: Dataset, trusted: Dataset | None, std: Tensor | None) -> Source:
    """What training sees: the data with their corruption, then the trusted items as they are.

    Raises:
        UserError: the trusted items are of another shape.
    """
    items, count = dataset.items, 0
    if trusted is not None:
        if tuple(trusted.items.item_shape) != tuple(items.item_shape):
            raise UserError(
                f"The trusted images {trusted.spec} are of shape {list(trusted.items.item_shape)}, and the data "
                f"{dataset.spec} of {list(items.item_shape)}. Expected one shape, such as with --image_size."
            )
        items, count = Joined(items, trusted.items), len(trusted.items)
        std = None if std is None else torch.cat([std, std.new_zeros(count)])
    return Source(
        items,
        parse_corruption(config.corrupt),
        config.seed,
        config.corrupt_fresh,
        config.flip,
        dataset.window,
        std,
        dataset.files,
        count,
        _classes(dataset, trusted) if config.class_labels else None,
        stream=dataset.stream,
        keys=dataset.keys,
    )


def _require_for_stream(config: TrainConfig, dataset: Dataset, trusted: Dataset | None) -> None:
    """Refuse what needs all items of a stream.

    Raises:
        UserError: names the option.
    """
    if dataset.stream is None:
        return
    asked = {
        "trusted": trusted is not None,
        "class_labels": config.class_labels,
        "epochs": config.epochs is not None,
        "limit": config.limit is not None,
        "vae": config.vae is not None,
    }
    for name in (name for name, is_set in asked.items() if is_set):
        raise UserError(
            f"{name} needs all items, and {config.data} is read as a stream. Expected no {name}, or the data without streaming=true."
        )


def _classes(dataset: Dataset, trusted: Dataset | None) -> Classes:
    """The classes of the data, then of the trusted items: those of the same name, else none.

    Raises:
        UserError: the data have no classes.
    """
    classes = dataset.classes
    if trusted is None:
        return classes
    none = len(classes.names)
    try:
        theirs = [classes.names.index(name) if name in classes.names else none for name in trusted.classes.names]
        of = torch.tensor(theirs)[trusted.classes.of]
    except UserError:  # in no sub-folders
        of = torch.full((len(trusted.items),), none)
    return Classes(torch.cat([classes.of, of]), classes.names)


def _encoded(source: Source, latents: Latents, folder: Path) -> Items:
    """The latents of ``source``: those kept in the run folder, or encoded when they are asked for.

    Raises:
        UserError: the folder keeps latents of another autoencoder or of other items.
    """
    fresh, path = Encoded(source, latents), _latents_file(folder, latents)
    others = [kept.name for kept in folder.glob("latents-*.npy") if kept != path]
    if others:
        raise UserError(
            f"{folder} keeps {others[0]}, and the autoencoder now has the hash {path.stem.partition('-')[2]}: "
            "it is not the one the run began with. Expected that one, or another --out."
        )
    if not path.is_file():
        return fresh
    kept = Mapped(path)
    kept.require_whole()
    if (len(kept), *kept.item_shape) != (len(fresh), *fresh.item_shape):
        raise UserError(
            f"{path} holds {len(kept)} latents of shape {list(kept.item_shape)}, and the data now give {len(fresh)} of "
            f"{list(fresh.item_shape)}. Expected the data the run began with, or another --out."
        )
    return kept


def _latents_file(folder: Path, latents: Latents) -> Path:
    return folder / f"latents-{weights_hash(latents.vae)}.npy"


def with_latents_kept(
    parts: Parts, folder: Path, device: torch.device, progress: Callable[[int, int], None] | None
) -> Parts:
    """The parts with all latents in a file of the run folder, encoded once, by whichever process comes first."""
    from filelock import FileLock

    if parts.latents is None:
        return parts
    parts.latents.vae.to(device)
    if not isinstance(encoded := parts.source.items, Encoded):
        return parts
    path = _latents_file(folder, parts.latents)
    with FileLock(folder / ".latents.lock"):
        if not path.is_file():
            with atomic(path) as scratch:
                encoded.save(scratch, progress).save(path)  # the checksums first: latents never lack them
    return dataclasses.replace(parts, source=dataclasses.replace(parts.source, items=Mapped(path)))


def _stored_levels(dataset: Dataset) -> Tensor | None:
    """The noise that the items of a file hold, as the truth beside it tells; None: the items are clean.

    Raises:
        UserError: there is no truth file beside the file, or it is of other items.
    """
    if (stored := dataset.stored) is None:
        return None
    path = stored.path.with_name("truth.npz")
    if not path.is_file():
        raise UserError(
            f"The objective needs the noise level of each item, and there is no truth file beside {stored.path}. "
            "Expected the folder that atdm corrupt wrote, or an objective that needs no noise levels, such as ambient_blind."
        )
    levels = truth_levels(Truth.load(path))
    if len(levels) != stored.items:
        raise UserError(
            f"{path} tells of {len(levels)} items, and {stored.path} holds {stored.items}. Expected its own."
        )
    return levels[stored.indices]


def estimate(config: TrainConfig, parts: Parts) -> dict[str, Any]:
    """What the run will cost: parameters, floating point operations, and seconds from timing a few samples here.

    Timed is the processor time of this thread, which has its share in all that several threads do: other programs on a busy
    machine do not count.
    """
    per_item = flops(parts.net, parts.source.item_shape, **parts.unlabelled)
    counted = parts.objective.passes() | {"floor_over_ddpm": parts.config.objective.cost(parts.objective.process)}
    few = int(min(config.batch_size, max(2, 2e9 // max(1, per_item))))
    trial = Objective("ddpm", parts.objective.process)
    x = parts.source.first(few)
    times = []
    for _ in range(3):
        begin = time.thread_time()
        draws = trial.draw(x.shape, generator=torch.Generator().manual_seed(0))
        trial(parts.net, x, draws=draws, **parts.unlabelled).loss.mean().backward()
        times.append(time.thread_time() - begin)
    parts.net.zero_grad(set_to_none=True)
    step = min(times) * config.batch_size / few * counted["floor_over_ddpm"]
    return {
        "parameters": count_parameters(parts.net),
        "flops_per_step": 3 * per_item * config.batch_size * counted["floor_over_ddpm"],
        **counted,
        "seconds_on_this_cpu": step * config.steps,
    }
