"""``atdm export``: a diffusers pipeline with a model card, on disk or on the Hub."""

from __future__ import annotations

import json
from pathlib import Path

from .common import make_parser


def run(words: list[str]) -> int:
    parser = make_parser("export")
    parser.add_argument("run", type=str, help="run folder")
    parser.add_argument("--out", type=str, required=True, help="new or empty folder for the pipeline and its card")
    parser.add_argument("--weights", type=str, default="ema", help="ema (averaged) or raw")
    parser.add_argument(
        "--metrics", type=str | None, default=None, help="what atdm evaluate --json printed; default: RUN/metrics.json"
    )
    parser.add_argument("--license", type=str, default="unknown", help="identifier of the Hub's, such as apache-2.0")
    parser.add_argument(
        "--push_to_hub", type=str | None, default=None, help="OWNER/NAME; needs a token (hf auth login)"
    )
    parser.add_argument("--private", type=bool, default=False, help="a new model on the Hub is private")
    parser.add_argument("--json", action="store_true", help="print JSON")
    given = parser.parse_args(words)
    from ..training import share

    out = Path(given.out)
    if given.push_to_hub:
        share.require_name(given.push_to_hub)
        share.require_token()
    told = share.export(
        Path(given.run),
        out,
        weights=given.weights,
        numbers=Path(given.metrics) if given.metrics else None,
        licence=given.license,
        name=given.push_to_hub or "",
    )
    files = sorted(str(f) for f in out.rglob("*") if f.is_file())
    address = share.push(out, given.push_to_hub, given.private) if given.push_to_hub else None
    if given.json:
        print(json.dumps({"out": str(out), "files": files, **told, "address": address}))
        return 0
    print(f"The {told['weights']} weights of step {told['step']} are in {out}, with the card {out / 'README.md'}.")
    if told["numbers_left_out"]:
        print(f"{told['numbers_left_out']} numbers of other weights were left out of the card.")
    if not told["numbers"]:
        print("The card holds no numbers: give those of atdm evaluate --json by --metrics.")
    if given.license == "unknown":
        print("The card states no licence: --license names one.")
    if address:
        print(f"It is at {address}.")
    return 0
