"""``atdm sample``: draw samples from a run or any diffusers pipeline."""

from __future__ import annotations

import json
from pathlib import Path

from .common import draw, is_main, make_parser


def run(words: list[str]) -> int:
    parser = make_parser("sample")
    parser.add_argument("model", type=str, help="run folder, diffusers pipeline folder or Hub name")
    parser.add_argument("--n", type=int, default=64, help="how many")
    parser.add_argument(
        "--sampler",
        type=str | None,
        default=None,
        help="a diffusers scheduler: ddpm, ddim, dpm-solver++, ...; default: ddpm, or euler of flows and EDM",
    )
    parser.add_argument("--steps", type=int, default=250, help="of the sampler")
    parser.add_argument("--seed", type=int, default=0, help="sample i depends on the seed and on i alone")
    parser.add_argument("--batch_size", type=int, default=256, help="of each process")
    parser.add_argument(
        "--stop_ratio", type=float | None, default=None, help="stop at this sigma_t/alpha_t and return the denoised"
    )
    parser.add_argument("--out", type=str, default="samples.png", help=".png grid, .npz, or a folder of PNGs")
    parser.add_argument("--json", action="store_true", help="print JSON: the files, and how the samples were made")
    given = parser.parse_args(words)
    from ..plot.samples import save_samples

    target = Path(given.out)
    drawn, made = draw(given, target)
    if is_main():
        save_samples(drawn, target)
    if given.json:
        files = sorted(map(str, target.iterdir())) if target.is_dir() else [str(target)]
        told = {"out": str(target), "files": files, "n": len(drawn), "item_shape": list(drawn.shape[1:]), **made}
        print(json.dumps({**told, "model": given.model, "stop_ratio": given.stop_ratio}))
    else:
        print(f"{len(drawn)} samples are in {target}.")
    return 0
