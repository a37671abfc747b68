"""One Markdown page over the results of several experiments, with small pictures beside it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...errors import UserError
from ...files import atomic
from ...report import Table, markdown
from .. import EXPERIMENTS, SUBSPACE, folder_of, label_of

PIXELS = 1000  # width of a picture
PICTURES = 3  # of an experiment: the first ones of its figures
MARK = "<!-- Results: what stands below this line is written anew by atdm reproduce. -->"

INTRODUCTION = """# Reproducing the paper

`atdm reproduce` lists the published results of [arXiv 2505.21742](https://arxiv.org/abs/2505.21742) that have a counterpart
here, and runs them by name. Each writes figures (PNG and SVG), `numbers.json` (every number with the hash of its weights,
sampler, steps, seed, samples and reference), `paragraph.md` and a self-contained `report.html`. What each training found is kept
beside them: a run that was interrupted goes on, and more seeds join those that are there. Another version of atdm or torch
measures anew; so does an empty folder.

```bash
atdm reproduce                                   # what there is
atdm reproduce trajectories --out reproduce      # one of them, minutes on a CPU
atdm reproduce all --scale smoke --out reproduce # everything runs? seconds each
atdm reproduce all --scale paper --seeds 3       # larger networks and longer training, for a GPU
atdm reproduce --out reproduce --page paper.md   # this page, from what is in a folder
```

What follows was written by the last of these commands: which statements agree and which do not is judged by the numbers of
the run. Networks, data and training are far smaller than the published ones, so compare directions and ratios rather than
values."""


def write_page(folder: Path, page: Path) -> list[str]:
    """Write ``page`` and its ``images`` folder from the results in ``folder``; returns the folders in it that are shown.

    What stands above the line ``MARK`` of a page that is there stays: a summary by whoever read the numbers.

    Raises:
        UserError: there are no results, or a page that is there has no such line.
    """
    results = _results(folder)
    if not results:
        raise UserError(f"{folder} holds no results. Expected a folder that atdm reproduce wrote.")
    parts = [head(page), MARK]
    for place, (name, numbers) in results.items():
        data = numbers["provenance"]["data"]
        heading = name if data is None else f"{name}, {label_of(data)}"
        parts.append(f"## {heading}\n\n{EXPERIMENTS[name].summary[0].upper()}{EXPERIMENTS[name].summary[1:]}.")
        parts.append(f"```bash\n{_command(name, numbers['provenance'])}\n```")
        parts.append((folder / place / "paragraph.md").read_text(encoding="utf-8").strip())
        for title, caption in [*numbers["figures"].items()][:PICTURES]:
            small = page.parent / "images" / f"{place}-{title}.png"
            _shrink(folder / place / f"{title}.png", small)
            parts.append(f"![{caption}](images/{small.name})\n\n*{caption}*")
        parts += [markdown(Table(t["columns"], t["rows"], t["caption"])) for t in numbers["tables"]]
        parts.append(_made(numbers["provenance"]))
    with atomic(page) as scratch:
        scratch.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    return [*results]


def head(page: Path) -> str:
    """What stands above the results.

    Raises:
        UserError: a page that is there lacks the line ``MARK``.
    """
    if not page.exists():
        return INTRODUCTION
    above, mark, _ = page.read_text(encoding="utf-8").partition(MARK)
    if not mark:
        raise UserError(f"{page} is there and lacks the line {MARK} Expected a new name, or that line.")
    return above.strip()


def _results(folder: Path) -> dict[str, tuple[str, Any]]:
    """By folder: experiment and numbers; in the order of the experiments, of each its own data first."""
    found = {}
    for file in folder.glob("*/numbers.json"):
        numbers = json.loads(file.read_text(encoding="utf-8"))
        name = numbers["provenance"]["experiment"]
        if name in EXPERIMENTS and file.parent.name == folder_of(name, numbers["provenance"]["data"]):
            found[file.parent.name] = (name, numbers)
    order = [*EXPERIMENTS]
    return dict(sorted(found.items(), key=lambda item: (order.index(item[1][0]), item[0])))


def _command(name: str, provenance: Mapping[str, Any]) -> str:
    seeds, words = provenance["seeds"], [f"atdm reproduce {name} --scale {provenance['scale']}"]
    data = provenance["data"]
    if data is not None:  # a name is shown, a place on the machine that ran it is not
        hidden = f"{SUBSPACE}DATA" if data.startswith(SUBSPACE) else "DATA"
        words.append(f"--data {data if data.isidentifier() else hidden}")
    if len(seeds) > 1:
        words.append(f"--seeds {len(seeds)}")
    if seeds[0]:
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
