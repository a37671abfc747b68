"""``atdm features``: train a small feature network on clean images."""

from __future__ import annotations

import json

from ..errors import UserError
from .common import add_reading, destination, make_parser, progress_bar, reading, tell_notes


def run(words: list[str]) -> int:
    parser = make_parser("features")
    parser.add_argument("--data", type=str, required=True, help="clean images; their held-out part where there is one")
    add_reading(parser)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=str, default="features.safetensors")
    parser.add_argument("--json", action="store_true", help="print JSON")
    given = parser.parse_args(words)
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
    with progress_bar(given.json) as bar:
        task = bar.add_task("features", total=given.steps, note="")
        for step, loss in training:
            bar.update(task, completed=step, note=f"loss {loss:.3f}")
    if given.json:
        learned = {"trained_on": given.data, "images": len(images), "images_hash": metrics.content_hash(images)}
        print(json.dumps({"file": str(path), "loss": loss} | learned))
    else:
        print(f"The features are in {path}. Next: atdm evaluate RUN --features small:file={path}")
    return 0
