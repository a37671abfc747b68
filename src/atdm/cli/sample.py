"""``atdm sample``: draw samples from a run or any diffusers pipeline."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..errors import expect
from .common import Printing, answered, is_main, open_model, require_outside_data_of, samples_of, sampling_options
from .parser import make_parser, positional


@dataclass(frozen=True, kw_only=True)
class Options(Printing):
    """What is sampled, and where it goes.

    Args:
        model: run folder, diffusers pipeline folder or Hub name.
        n: samples to draw.
        image_size: side in pixels, for a network that takes images of any size.
        seed: seed; sample i depends on it and on i alone.
        batch_size: samples that each process draws together.
        threads: CPU threads of the sampling; 0: as many as speed it up.
        out: .png grid, .npz, or a folder of PNGs.
        json: print JSON: the files, and how the samples were made.
    """

    model: str = positional()
    n: int = 64
    image_size: int | None = None
    seed: int = 0
    batch_size: int = 256
    threads: int = 0
    out: str = "samples.png"


def run(words: list[str]) -> None:
    given = make_parser("sample", Options, sampling_options(250, "ddpm")).parse_args(words)
    from ..data.folders import require_own
    from ..diffusion.model import require_finite
    from ..plot.samples import check_target, save_samples

    target = Path(given.out)
    require_own(target)
    model = open_model(given)
    if given.image_size is not None:
        expect(given.image_size >= 1, "image_size", given.image_size, "a positive number of pixels")
        size = (given.image_size, given.image_size)
        model = model.for_items((model.channels, *size), given.model, f"--image_size {given.image_size}")
    check_target(target, model.item_shape)
    require_outside_data_of(given.model, target)
    drawn, made = samples_of(given, model, given.seed)
    require_finite(drawn, "samples")
    if is_main():
        save_samples(drawn, target)
    files = sorted(map(str, target.iterdir())) if target.is_dir() else [str(target)]
    said = {"out": str(target), "files": files, "n": len(drawn), "item_shape": list(drawn.shape[1:])}
    how = made.pop("sampling").as_dict()
    if not answered(given, {**said, **made, **how, "model": given.model}):
        print(f"{len(drawn)} samples are in {target}.")
