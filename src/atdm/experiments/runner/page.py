"""Generated pages of results: of each experiment a Markdown page, the JSON it is made from and small pictures; an index over them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...errors import UserError
from ...files import atomic
from ...report import Table, markdown
from .. import DEMO, EXPERIMENTS, SUBSPACE, folder_of, label_of

PIXELS = 1000  # width of a picture
PICTURES = 3  # of an experiment: the first ones of its figures
INDEX = "README.md"
SHOWN = {"demo": DEMO, **EXPERIMENTS}
AFTERWARDS = "atdm reproduce --out reproduce --pages results"


def write_pages(folder: Path, pages: Path) -> list[str]:
    """Write to the folder ``pages`` what is in ``folder``: ``NAME.md``, ``NAME.json`` and ``images/NAME-*.png`` of each result.

    Pages of other results that are there stay, and the index names them all.

    Returns:
        the names of the results.

    Raises:
        UserError: there are no results.
    """
    results = _results(folder)
    if not results:
        raise UserError(f"{folder} holds no results. Expected a folder that atdm reproduce wrote.")
    for place, record in results.items():
        for title in record["figures"]:
            _shrink(folder / place / f"{title}.png", pages / "images" / f"{place}-{title}.png")
        _write(pages / f"{place}.json", json.dumps(record, indent=1))
        _write(pages / f"{place}.md", page_of(place, record))
    _write(pages / INDEX, index(pages))
    return [*results]


def page_of(place: str, record: Mapping[str, Any]) -> str:
    """The page of one result, from its JSON.

    Args:
        place: the name of its files.
        record: as in ``NAME.json``.
    """
    summary = record["summary"]
    parts = [
        f"# {record['heading']}",
        f"<!-- Written by atdm reproduce --pages from {place}.json; edits are lost. -->",
        f"{summary[0].upper()}{summary[1:]}.",
        f"```bash\n{_with_page(record['command'])}\n```",
        record["paragraph"],
    ]
    for title, caption in record["figures"].items():
        parts.append(f"![{caption}](images/{place}-{title}.png)\n\n*{caption}*")
    parts += [markdown(Table(t["columns"], t["rows"], t["caption"])) for t in record["tables"]]
    parts.append(f"{record['made']} Numbers: [{place}.json]({place}.json).")
    return "\n\n".join(parts) + "\n"


def index(pages: Path) -> str:
    """The index of the pages in a folder: of each its command, and how many of its claims the numbers bear out."""
    found = [(file.stem, json.loads(file.read_text(encoding="utf-8"))) for file in pages.glob("*.json")]
    order = [*SHOWN]
    found.sort(key=lambda item: (order.index(item[1]["experiment"]), item[0]))
    rows = [
        [
            f"[{record['heading']}]({place}.md)",
            record["summary"],
            f"{sum(c['holds'] for c in record['claims'])} of {len(record['claims'])}",
            f"`{record['command']}`",
        ]
        for place, record in found
    ]
    table = Table(["page", "what", "claims that agree", "made by"], rows)
    return (
        "# Results\n\nEvery page here was written by the command beside it, with `--pages results`; nothing is edited by hand. DATA is a folder of "
        f"images. Each page lists the claims that its numbers bear out and those that they do not.\n\n{markdown(table)}\n"
    )


def _results(folder: Path) -> dict[str, dict[str, Any]]:
    """The JSON of each result, by the name of its folder."""
    found = {}
    for file in sorted(folder.glob("*/numbers.json"), key=lambda file: file.parent.name):
        numbers = json.loads(file.read_text(encoding="utf-8"))
        name, data = numbers["provenance"]["experiment"], numbers["provenance"]["data"]
        if name in SHOWN and file.parent.name == folder_of(name, data):
            found[file.parent.name] = {
                "experiment": name,
                "heading": name if data is None else f"{name}, {label_of(data)}",
                "summary": SHOWN[name].summary,
                "command": _command(name, numbers["provenance"]),
                "made": _made(numbers["provenance"]),
                "paragraph": file.with_name("paragraph.md").read_text(encoding="utf-8").strip(),
                "figures": dict([*numbers["figures"].items()][:PICTURES]),
                "claims": numbers["claims"],
                "tables": numbers["tables"],
            }
    return found


def _command(name: str, provenance: Mapping[str, Any]) -> str:
    seeds, words = provenance["seeds"], [f"atdm reproduce {name} --scale {provenance['scale']}"]
    if name == "demo":
        words = ["atdm demo --out reproduce/demo"]
    data = provenance["data"]
    if data is not None:  # a name is shown, a place on the machine that ran it is not
        hidden = f"{SUBSPACE}DATA" if data.startswith(SUBSPACE) else "DATA"
        words.append(f"--data {data if data.isidentifier() else hidden}")
    if len(seeds) > 1:
        words.append(f"--seeds {len(seeds)}")
    if seeds[0]:
        words.append(f"--seed {seeds[0]}")
    return " ".join(words)


def _with_page(command: str) -> str:
    """The command, and what writes its page."""
    return f"{command} --pages results" if command.startswith("atdm reproduce") else f"{command}\n{AFTERWARDS}"


def _made(provenance: Mapping[str, Any]) -> str:
    seeds = ", ".join(map(str, provenance["seeds"]))
    return (
        f"Scale {provenance['scale']}, seed{'s' if len(provenance['seeds']) > 1 else ''} {seeds}, {provenance['jobs']} trainings "
        f"in {provenance['cpu seconds of all jobs']:.0f} seconds of {provenance['device']}; atdm {provenance['atdm']}, "
        f"torch {provenance['torch']}."
    )


def _write(path: Path, text: str) -> None:
    with atomic(path) as scratch:
        scratch.write_text(text, encoding="utf-8")


def _shrink(picture: Path, small: Path) -> None:
    """A picture for a page: no wider than ``PIXELS``, in 128 colours."""
    from PIL import Image

    small.parent.mkdir(parents=True, exist_ok=True)
    with Image.open(picture) as image:
        width = min(PIXELS, image.width)
        resized = image.convert("RGB").resize(
            (width, round(image.height * width / image.width)), Image.Resampling.LANCZOS
        )
    with atomic(small) as scratch:
        resized.quantize(128, dither=Image.Dither.NONE).save(scratch, "PNG", optimize=True)
