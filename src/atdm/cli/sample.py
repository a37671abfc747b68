"""``atdm sample``: draw samples from a run or any diffusers pipeline."""

from __future__ import annotations

from pathlib import Path

from .common import draw, make_parser


def run(words: list[str]) -> int:
    parser = make_parser("sample")
    parser.add_argument("model", help="run folder, diffusers pipeline folder or Hub name")
    parser.add_argument("--n", type=int, default=64)
    parser.add_argument("--sampler", type=str, default="ddpm")
    parser.add_argument("--steps", type=int, default=250)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch_size", type=int, default=256)
    parser.add_argument(
        "--stop_ratio", type=float | None, default=None, help="stop at this sigma_t/alpha_t and return the denoised"
    )
    parser.add_argument("--out", type=str, default="samples.png", help=".png grid, .npz, or a folder of PNGs")
    given = parser.parse_args(words)
    from ..sample import save_samples

    drawn, _ = draw(given)
    path = save_samples(drawn, Path(given.out))
    print(f"{len(drawn)} samples are in {path}.")
    return 0
