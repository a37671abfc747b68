"""``atdm audit``: look at a data set before training."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from ..errors import UserError
from ..training.config import TrainConfig
from .common import Printing, answered, destination, print_table, reading, reading_options, silent, tell_notes
from .parser import make_parser, positional
from .progress import following, preparing, progress_bar

FILES = ("audit.json", "recipe.yaml", "sheet.png")


@dataclass(frozen=True, kw_only=True)
class Options(Printing):
    """What is looked at.

    Args:
        data: folder, parquet, tar or .npz files, or the name of a data set, as in atdm train.
        corrupt: known corruption to add first, to see what the audit finds of it.
        seed: seed of the corruption and of the choice of --limit.
        out: folder for audit.json, recipe.yaml and sheet.png.
    """

    data: str = positional()
    corrupt: str = "none"
    seed: int = 0
    out: str = "audit"


def run(words: list[str]) -> None:
    images = reading_options(without="skip_broken", limit=10_000)  # broken ones are part of what is looked for
    given = make_parser("audit", Options, images).parse_args(words)
    from ..audit import audit
    from ..audit.report import write
    from ..corruption import parse_corruption
    from ..data import load
    from ..data.source import Source

    folder = destination(given.out)
    others = {f.name for f in folder.iterdir()} - set(FILES) if folder.is_dir() else set()
    if others:
        raise UserError(f"{folder} holds other files. Expected a new or empty folder, or an earlier audit's.")
    base = TrainConfig(
        out="runs/audited",
        skip_broken=True,
        **{name: given[name] for name in ("data", "corrupt", "seed")},
        **reading(given),
    )
    parts = parse_corruption(given.corrupt)
    with progress_bar(silent(given)) as bar:
        dataset = load(given.data, **base.reading(), hold_out=False, progress=preparing(bar))
        if dataset.stream is not None:  # the limit was one of the sample, and training has none
            base = dataclasses.replace(base, limit=None)
        source = Source(dataset.items, parts, given.seed, files=dataset.files, keys=dataset.keys)
        found = audit(source, dataset.broken, following(bar, "looking", len(source)))
        result = write(folder, found, source, base)
    tell_notes(dataset.notes)
    if answered(given, result):
        return
    print_table(f"{given.data}: {found.items:,} items of {list(found.item_shape)}", _rows(result))
    if formats := _formats(result["noise"]):
        print_table("noise by file format", formats)
    print("recipe: " + "\n        ".join(result["recipe"]["reasons"]))
    cost = result["recipe"]["cost"]
    print(
        f"Expected cost: {cost['parameters']:,} parameters, {_time(cost['seconds_on_this_cpu'])} on this CPU, "
        f"{cost['flops_per_step'] / 1e9:,.3g} GFLOP a step.\n"
        f"The worst of each kind are in {folder}/sheet.png. Next: atdm train --config {folder}/recipe.yaml"
    )


def _rows(result: dict[str, Any]) -> list[dict[str, Any]]:
    noise = result["noise"]
    if not noise["measurable"]:
        noisy = "cannot be distinguished from content in such data (docs/audit.md)"
    elif noise["std"] is None:
        share = noise["sharper"]["share"]
        sharper = f"; {share:.1%} of the items are sharper than the others" if share else ""
        noisy = (
            f"none of std {noise['smallest']:g} or more (typical level of content: {noise['clean_level']:.2g}){sharper}"
        )
    else:
        low, high = (noise["quantiles"][q] for q in ("0.05", "0.95")) if noise["quantiles"] else (noise["std"],) * 2
        spread = "" if noise["alike"] else f", 90 % of them from {low:.2g} to {high:.2g}"
        common = ", the same in all channels" if noise["channels"] == "common" else ""
        noisy = f"{noise['share']:.1%} of the items, std {noise['std']:.3g}{spread}{common}"
    hit, far, copies, broken = result["replaced"], result["outliers"], result["duplicates"], result["broken"]
    replaced = f"in {hit['count']} items ({hit['share']:.1%})" + (
        f", {hit['pixels']:.1%} of them" if hit["count"] else ""
    )
    kinds = sorted({worst["why"] for worst in far["worst"]})
    names = ", ".join(broken["names"][:5]) + (", ..." if broken["count"] > 5 else "")
    found = {
        "noise": noisy,
        "replaced pixels": replaced,
        "outliers": f"{far['count']} ({far['share']:.1%})" + (f": {', '.join(kinds)}" if kinds else ""),
        "near duplicates": f"{copies['pairs']} pairs in {copies['groups']} groups; {copies['extra']} extra",
        "broken": f"{broken['count']}" + (f": {names}" if names else ""),
    }
    return [{"what": what, "found": text} for what, text in found.items()]


def _formats(noise: dict[str, Any]) -> list[dict[str, Any]]:
    """A row for each file format where any is noisy."""
    found = noise.get("formats", [])
    return [
        {
            "format": row["format"],
            "files": row["files"],
            "size": " to ".join(dict.fromkeys("x".join(map(str, row[end])) for end in ("smallest", "largest"))),
            "noisy": f"{row['share']:.1%}",
            "std in the file": "" if row["std_in_file"] is None else f"{row['std_in_file']:.2g}",
            "std as read": "" if row["std"] is None else f"{row['std']:.2g}",
        }
        for row in found
        if any(other["std"] for other in found)
    ]


def _time(seconds: float) -> str:
    for size, unit in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.3g} seconds"
