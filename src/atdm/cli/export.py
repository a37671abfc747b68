"""``atdm export``: a diffusers pipeline with a model card, on disk or on the Hub."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from .common import Printing, answered
from .parser import make_parser, positional


@dataclass(frozen=True, kw_only=True)
class Options(Printing):
    """What is exported, and where.

    Args:
        run: run folder.
        out: new or empty folder for the pipeline and its card.
        weights: ema (averaged) or raw.
        measured: numbers for the card, a file that atdm evaluate --json printed; null: RUN/metrics.json.
        license: licence, by the Hub's identifier, such as apache-2.0.
        push_to_hub: also upload it to the Hub as OWNER/NAME; needs a token (hf auth login).
        private: make a new model on the Hub private.
    """

    run: str = positional()
    out: str
    weights: str = "ema"
    measured: str | None = None
    license: str = "unknown"
    push_to_hub: str | None = None
    private: bool = False


def run(words: list[str]) -> None:
    given = make_parser("export", Options).parse_args(words)
    from ..training import share

    out = Path(given.out)
    if given.push_to_hub:
        share.require_name(given.push_to_hub)
        share.require_token()
    result = share.export(
        Path(given.run),
        out,
        weights=given.weights,
        numbers=Path(given.measured) if given.measured else None,
        licence=given.license,
        name=given.push_to_hub or "",
    )
    files = sorted(str(f) for f in out.rglob("*") if f.is_file())
    address = share.push(out, given.push_to_hub, given.private) if given.push_to_hub else None
    if answered(given, {"out": str(out), "files": files, **result, "address": address}):
        return
    print(f"The {result['weights']} weights of step {result['step']} are in {out}, with the card {out / 'README.md'}.")
    if result["numbers_left_out"]:
        print(f"{result['numbers_left_out']} numbers of other weights were left out of the card.")
    if not result["numbers"]:
        print("The card holds no numbers: give those of atdm evaluate --json by --measured.")
    if given.license == "unknown":
        print("The card states no licence: --license names one.")
    if address:
        print(f"It is at {address}.")
