"""``atdm sample``: draw samples from a run or any diffusers pipeline."""

from __future__ import annotations

import json
from pathlib import Path

from .common import add_sampling, draw, is_main, make_parser, open_model


def run(words: list[str]) -> int:
    parser = make_parser("sample")
    parser.add_argument("model", type=str, help="run folder, diffusers pipeline folder or Hub name")
    parser.add_argument("--n", type=int, default=64, help="how many")
    add_sampling(parser, 250, "ddpm")
    parser.add_argument(
        "--image_size", type=int | None, default=None, help="of a network that is for images of any size"
    )
    parser.add_argument("--seed", type=int, default=0, help="sample i depends on the seed and on i alone")
    parser.add_argument("--batch_size", type=int, default=256, help="of each process")
    parser.add_argument("--out", type=str, default="samples.png", help=".png grid, .npz, or a folder of PNGs")
    parser.add_argument("--json", action="store_true", help="print JSON: the files, and how the samples were made")
    given = parser.parse_args(words)
    from ..diffusion.model import require_finite
    from ..plot.samples import check_target, save_samples

    target, model = Path(given.out), open_model(given)
    if given.image_size is not None:
        size = (given.image_size, given.image_size)
        model = model.for_items((model.channels, *size), given.model, f"--image_size {given.image_size}")
    check_target(target, model.item_shape)
    drawn, made = draw(given, model, given.seed)
    require_finite(drawn, "samples")
    if is_main():
        save_samples(drawn, target)
    if given.json:
        files = sorted(map(str, target.iterdir())) if target.is_dir() else [str(target)]
        said = {"out": str(target), "files": files, "n": len(drawn), "item_shape": list(drawn.shape[1:])}
        how = made.pop("sampling").as_dict()
        print(json.dumps({**said, **made, **how, "model": given.model}))
    else:
        print(f"{len(drawn)} samples are in {target}.")
    return 0
