"""``atdm features``: train a small feature network on clean images."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import UserError
from .common import Printing, answered, destination, reading, reading_options, silent, tell_notes
from .parser import make_parser
from .progress import progress_bar


@dataclass(frozen=True, kw_only=True)
class Options(Printing):
    """What is learned from.

    Args:
        data: clean images to train on; of a data set with a held-out part, that part.
        steps: training steps.
        batch_size: images in each step.
        seed: seed of the network, its training and the choice of --limit.
        out: .safetensors file for the network.
    """

    data: str
    steps: int = 300
    batch_size: int = 128
    seed: int = 0
    out: str = "features.safetensors"


def run(words: list[str]) -> None:
    given = make_parser("features", Options, reading_options()).parse_args(words)
    path = destination(given.out, ".safetensors")
    from .. import metrics
    from ..data import load

    dataset = load(given.data, seed=given.seed, **reading(given))
    tell_notes(dataset.notes)
    if dataset.kind != "image":
        raise UserError(f"{given.data} holds vectors. Expected images: vectors are compared as they are.")
    images = dataset.reference
    training = metrics.small_file(path, images, given.data, given.steps, given.batch_size, given.seed)
    loss = 0.0
    with progress_bar(silent(given)) as bar:
        task = bar.add_task("features", total=given.steps, note="")
        for step, loss in training:
            bar.update(task, completed=step, note=f"loss {loss:.3f}")
    learned = {"trained_on": given.data, "images": len(images), "images_hash": metrics.content_hash(images)}
    if not answered(given, {"file": str(path), "loss": loss} | learned):
        print(f"The features are in {path}. Next: atdm evaluate RUN --features small:file={path}")
