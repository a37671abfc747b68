"""``atdm purify``: diffuse inputs to a noise level and denoise them back, with any model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..errors import UserError
from .common import (
    Printing,
    answered,
    open_model,
    reading,
    reading_options,
    require_outside,
    sampling_of,
    sampling_options,
    tell_notes,
)
from .parser import make_parser, positional


@dataclass(frozen=True, kw_only=True)
class Options(Printing):
    """What is purified, and how.

    Args:
        model: run folder, diffusers pipeline folder or Hub name.
        data: what to purify.
        noise: noise level sigma_t/alpha_t to diffuse to, in data units.
        corrupt: corruption to add first, such as gaussian:share=1,std=0.2.
        seed: seed of the corruption and of the noise added to the inputs.
        batch_size: items to purify together.
        out: .png grid, .npz, or a folder of PNGs.
    """

    model: str = positional()
    data: str
    noise: float
    corrupt: str = "none"
    seed: int = 0
    batch_size: int = 256
    out: str = "purified.png"


def run(words: list[str]) -> None:
    options = (Options, reading_options(limit=64), sampling_options(100, late=False))
    given = make_parser("purify", *options).parse_args(words)
    from ..attack.purify import Purifier, purify
    from ..corruption import corrupt
    from ..data import load
    from ..data.folders import require_own
    from ..diffusion.model import require_finite
    from ..plot.samples import check_target, save_samples

    if given.label == "all":
        raise UserError("The items to purify are not of all classes in turn. Expected one --label, or none.")
    out = Path(given.out).expanduser()
    require_own(out)
    dataset = load(given.data, seed=given.seed, **reading(given), hold_out=False)
    dataset.require_whole("atdm purify")
    tell_notes(dataset.notes)
    x, _ = corrupt(dataset.x, given.corrupt, given.seed)
    model = open_model(given, pixels=True).for_items(dataset.item_shape, given.model, given.data)
    check_target(out, dataset.item_shape)
    require_outside(out, given.data)
    purifier = Purifier(model, noise=given.noise, sampling=sampling_of(given))
    made = purify(purifier, x, seed=given.seed, batch_size=given.batch_size)
    require_finite(made, "purified items")
    path = save_samples(made, out)
    rms = lambda a, b: (a - b).double().square().mean().sqrt().item()  # noqa: E731
    result = {
        "model": given.model,
        "checkpoint": model.hash,
        "sampler": purifier.sampling.sampler,
        "t": purifier.t,
        "noise": purifier.level,
        "evaluations": purifier.evaluations,
        "seed": given.seed,
        "items": len(made),
        "moved_rms": rms(made, x),
        "rms_to_clean_before": rms(x, dataset.x),
        "rms_to_clean_after": rms(made, dataset.x),
        "out": str(path),
    }
    if not answered(given, result):
        print(
            f"{len(made)} purified items are in {path}: diffused to t = {purifier.t} (sigma_t/alpha_t = "
            f"{purifier.level:.3g}) and denoised in {purifier.evaluations} evaluations, moved by {result['moved_rms']:.3g} rms."
        )
        if given.corrupt != "none":
            print(
                f"Distance from the clean items: {result['rms_to_clean_before']:.3g} before, {result['rms_to_clean_after']:.3g} after (rms)."
            )
