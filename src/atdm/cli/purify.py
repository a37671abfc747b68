"""``atdm purify``: diffuse inputs to a noise level and denoise them back, with any model."""

from __future__ import annotations

import json
from pathlib import Path

from .common import (
    add_reading,
    add_sampling,
    make_parser,
    open_model,
    reading,
    require_outside,
    sampling_of,
    tell_notes,
)


def run(words: list[str]) -> int:
    parser = make_parser("purify")
    parser.add_argument("model", help="run folder, diffusers pipeline folder or Hub name")
    parser.add_argument("--data", type=str, required=True, help="what to purify")
    parser.add_argument(
        "--corrupt", type=str, default="none", help="dirt to add first, such as gaussian:share=1,std=0.2"
    )
    parser.add_argument("--noise", type=float, required=True, help="level sigma_t/alpha_t to diffuse to, data units")
    add_reading(parser, limit=64)
    add_sampling(parser, 100, late=False)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch_size", type=int, default=256)
    parser.add_argument("--out", type=str, default="purified.png", help=".png grid, .npz, or a folder of PNGs")
    parser.add_argument("--json", action="store_true", help="print JSON")
    given = parser.parse_args(words)
    from ..attack.purify import Purifier, purify
    from ..corruption import corrupt
    from ..data import load
    from ..diffusion.model import require_finite
    from ..plot.samples import check_target, save_samples

    dataset = load(given.data, seed=given.seed, **reading(given), hold_out=False)
    tell_notes(dataset.notes)
    x, _ = corrupt(dataset.x, given.corrupt, given.seed)
    model = open_model(given, pixels=True).for_items(dataset.item_shape, given.model, given.data)
    check_target(out := Path(given.out).expanduser(), dataset.item_shape)
    require_outside(out, given.data)
    purifier = Purifier(model, noise=given.noise, sampling=sampling_of(given))
    made = purify(purifier, x, seed=given.seed, batch_size=given.batch_size)
    require_finite(made, "purified items")
    path = save_samples(made, out)
    rms = lambda a, b: (a - b).double().square().mean().sqrt().item()  # noqa: E731
    told = {
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
    if given.json:
        print(json.dumps(told))
    else:
        print(
            f"{len(made)} purified items are in {path}: diffused to t = {purifier.t} (sigma_t/alpha_t = "
            f"{purifier.level:.3g}) and denoised in {purifier.evaluations} evaluations, moved by {told['moved_rms']:.3g} rms."
        )
        if given.corrupt != "none":
            print(
                f"Distance from the clean items: {told['rms_to_clean_before']:.3g} before, {told['rms_to_clean_after']:.3g} after (rms)."
            )
    return 0
