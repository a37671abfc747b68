"""Generated pages of results: of each experiment a Markdown page, the JSON it is made from and small pictures; an index over them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from numbers import Number
from pathlib import Path
from typing import Any

from ...errors import UserError
from ...files import atomic, checked, read_json, read_text, shown, write_text
from ...report import Table, markdown
from .. import DEMO, EXPERIMENTS, SUBSPACE, folder_of, label_of
from . import guide

PIXELS = 1000  # width of a picture
PICTURES = 4  # of an experiment: the first ones of its figures
INDEX = "README.md"
SHOWN = {"demo": DEMO, **EXPERIMENTS}
AFTERWARDS = "atdm reproduce --out reproduce --pages results"
WRITTEN = "what atdm reproduce wrote; the same command with the same --out writes it again"
# Of what is read here: the keys, and the types of their values.
NUMBERS: dict[str, Any] = {"figures": dict, "claims": list, "tables": list, "provenance": dict}
PROVENANCE: dict[str, Any] = {
    **dict.fromkeys(("experiment", "scale", "device", "atdm", "torch"), str),
    "seeds": list,
    "data": (str, type(None)),
    "jobs": int,
    "cpu seconds of all jobs": float,
}
RECORD: dict[str, Any] = {
    **dict.fromkeys(("experiment", "heading", "summary", "command"), str),
    **dict.fromkeys(("claims", "tables"), list),
}


def write_pages(folder: Path, pages: Path) -> list[str]:
    """Write to the folder ``pages`` what is in ``folder``: ``NAME.md``, ``NAME.json`` and ``images/NAME-*.png`` of each result.

    Pages of other results that are there stay; the index names them all, and ``guide.md`` says what they make of the methods.

    Returns:
        the names of the results.

    Raises:
        UserError: there are no results, or some are damaged.
    """
    results = _results(folder)
    if not results:
        raise UserError(f"{folder} holds no results. Expected a folder that atdm reproduce wrote.")
    for name, record in results.items():
        for title in record["figures"]:
            _shrink(folder / name / f"{title}.png", pages / "images" / f"{name}-{title}.png")
        write_text(pages / f"{name}.json", json.dumps(record, indent=1))
        write_text(pages / f"{name}.md", page_of(name, record))
    records = {file.stem: _record(file) for file in sorted(pages.glob("*.json"))}
    write_text(pages / INDEX, index(records))
    write_text(pages / guide.NAME, guide.page(records))
    return [*results]


def page_of(name: str, record: Mapping[str, Any]) -> str:
    """The page of one result, from its JSON.

    Args:
        name: the name of its files.
        record: as in ``NAME.json``.
    """
    summary, command = record["summary"], record["command"]
    page = " --pages results" if command.startswith("atdm reproduce") else f"\n{AFTERWARDS}"  # what writes it
    parts = [
        f"# {record['heading']}",
        f"<!-- Written by atdm reproduce --pages from {name}.json; edits are lost. -->",
        f"{summary[0].upper()}{summary[1:]}.",
        f"```bash\n{command}{page}\n```",
        record["paragraph"],
    ]
    for title, caption in record["figures"].items():
        parts.append(f"![{caption}](images/{name}-{title}.png)\n\n*{caption}*")
    parts += [markdown(Table(t["columns"], t["rows"], t["caption"])) for t in record["tables"]]
    parts.append(f"{record['made']} Numbers: [{name}.json]({name}.json).")
    return "\n\n".join(parts) + "\n"


def index(records: Mapping[str, Mapping[str, Any]]) -> str:
    """The index of pages, from their JSON by name: of each its command, and how many of its claims the numbers bear out."""
    found = [*records.items()]
    order = {name: number for number, name in enumerate(SHOWN)}
    found.sort(key=lambda item: (order.get(item[1]["experiment"], len(order)), item[0]))
    rows = [
        [
            f"[{record['heading']}]({name}.md)",
            record["summary"],
            f"{sum(c['holds'] for c in record['claims'])} of {len(record['claims'])}",
            f"`{record['command']}`",
        ]
        for name, record in found
    ]
    table = Table(["page", "what", "claims that agree", "made by"], rows)
    return (
        "# Results\n\nEvery page here was written by the command beside it, with `--pages results`; nothing is edited by hand. DATA is a folder of "
        f"images. Each page lists the claims that its numbers bear out and those that they do not. [What to use]({guide.NAME}) puts those that "
        f"compare methods in one table.\n\n{markdown(table)}\n"
    )


def _results(folder: Path) -> dict[str, dict[str, Any]]:
    """The JSON of each result, by the name of its folder."""
    found = {}
    for file in sorted(folder.glob("*/numbers.json"), key=lambda file: file.parent.name):
        numbers = _numbers(file)
        name, data = numbers["provenance"]["experiment"], numbers["provenance"]["data"]
        if name in SHOWN and file.parent.name == folder_of(name, data):
            found[file.parent.name] = {
                "experiment": name,
                "heading": name if file.parent.name == name else f"{name}, {label_of(data)}",
                "summary": SHOWN[name].summary,
                "command": _command(name, numbers["provenance"]),
                "made": _made(numbers["provenance"]),
                "paragraph": read_text(file.with_name("paragraph.md"), WRITTEN).strip(),
                "figures": dict([*numbers["figures"].items()][:PICTURES]),
                "claims": numbers["claims"],
                "tables": numbers["tables"],
            }
    return found


def _numbers(file: Path) -> dict[str, Any]:
    """``numbers.json``, as far as it is used here."""
    numbers = read_json(file, NUMBERS, WRITTEN)
    made = checked(numbers["provenance"], PROVENANCE, file, WRITTEN, "provenance: ")
    checked(numbers["figures"], dict.fromkeys(numbers["figures"], str), file, WRITTEN, "figures: ")
    for number, claim in enumerate(numbers["claims"]):
        checked(claim, {"holds": bool}, file, WRITTEN, f"claim {number}: ")
    for number, table in enumerate(numbers["tables"]):
        checked(table, {"columns": list, "rows": list, "caption": str}, file, WRITTEN, f"table {number}: ")
        rows, columns = table["rows"], table["columns"]
        if not all(isinstance(row, list) and len(row) == len(columns) for row in rows):
            raise _damaged(file, f"table {number}: a row has not a cell for each column")
        if not all(isinstance(cell, str | Number | None) or _is_pair(cell) for row in rows for cell in row):
            raise _damaged(file, f"table {number}: a cell is no text, number or mean with a spread")
    if not made["seeds"] or not all(type(seed) is int for seed in made["seeds"]):
        raise _damaged(file, f"the seeds are {shown(made['seeds'])}")
    return numbers


def _is_pair(cell: Any) -> bool:
    return isinstance(cell, list) and len(cell) == 2 and all(isinstance(value, Number) for value in cell)


def _damaged(file: Path, what: str) -> UserError:
    return UserError(f"Cannot read {file}: {what}. Expected {WRITTEN}.")


def _record(file: Path) -> dict[str, Any]:
    """``NAME.json``, as far as the index uses it."""
    record = read_json(file, RECORD, WRITTEN)
    for number, claim in enumerate(record["claims"]):
        checked(claim, {"holds": bool}, file, WRITTEN, f"claim {number}: ")
    return record


def _command(name: str, provenance: Mapping[str, Any]) -> str:
    seeds, words = provenance["seeds"], [f"atdm reproduce {name} --scale {provenance['scale']}"]
    if name == "demo":
        words = ["atdm demo --out reproduce/demo"]
    data = provenance["data"]
    if data is not None:  # a name is shown, a place on the machine that ran it is not
        hidden = f"{SUBSPACE}DATA" if data.startswith(SUBSPACE) else "DATA"
        words.append(f"--data {data if data.isidentifier() else hidden}")
    if len(seeds) > 1:
        words.append(f"--seeds {','.join(map(str, seeds))}")
    elif seeds[0]:
        words.append(f"--seed {seeds[0]}")
    return " ".join(words)


def _made(provenance: Mapping[str, Any]) -> str:
    seeds = ", ".join(map(str, provenance["seeds"]))
    return (
        f"Scale {provenance['scale']}, seed{'s' if len(provenance['seeds']) > 1 else ''} {seeds}, {provenance['jobs']} trainings "
        f"in {provenance['cpu seconds of all jobs']:.0f} seconds of {provenance['device']}; atdm {provenance['atdm']}, "
        f"torch {provenance['torch']}."
    )


def _shrink(picture: Path, small: Path) -> None:
    """A picture for a page: no wider than ``PIXELS``, in 128 colours, those of thin lines among them."""
    from PIL import Image

    small.parent.mkdir(parents=True, exist_ok=True)
    with Image.open(picture) as image:
        width = min(PIXELS, image.width)
        size = (width, round(image.height * width / image.width))
        resized = image.convert("RGB").resize(size, Image.Resampling.LANCZOS)
    with atomic(small) as scratch:
        resized.quantize(128, kmeans=3, dither=Image.Dither.NONE).save(scratch, "PNG", optimize=True)
