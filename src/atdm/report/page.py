"""A report: one HTML page with figures and tables that needs no other file and no network."""

from __future__ import annotations

import math
import platform
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from matplotlib.figure import Figure

from .. import __version__, text
from ..errors import UserError, require_known
from ..files import write_text
from ..plot import data_uri

Row = dict[str, Any]  # a line of a table by the names of its columns, as JSON holds it
Better = Literal["lower", "higher", "one"]
DECIMALS = 6  # a spread below a unit of the last one says no more of the digits of its mean
CSS_PIXELS = 100  # of an inch of a figure, so that all figures share one size of type


@dataclass(frozen=True)
class Table:
    """Rows of cells under named columns.

    Args:
        columns: names.
        rows: cells; a number, a text, None for what is missing, or ``(mean, spread)``.
        caption: a sentence.
        best: columns whose best number is highlighted, and which one that is (the words of ``METRICS``).
        units: of columns, shown under their names.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    caption: str = ""
    best: Mapping[str, Better] = field(default_factory=dict)
    units: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise UserError(f"A row of the table has {len(row)} cells. Expected {len(self.columns)}, one a column.")
        for column in (*self.best, *self.units):
            require_known("column", column, self.columns)


def markdown(table: Table) -> str:
    """The table in Markdown, with its caption below."""
    cells = [[show(tuple(c) if isinstance(c, list) else c) for c in row] for row in table.rows]
    numeric = [all(not isinstance(row[i], str) for row in table.rows) for i in range(len(table.columns))]
    lines = [_line(table.columns), _line("---:" if n else "---" for n in numeric), *map(_line, cells)]
    return "\n".join(lines) + (f"\n\n{table.caption}" if table.caption else "")


def _line(cells: Iterable[Any]) -> str:
    return f"| {' | '.join(text.cell(str(c)) for c in cells)} |"


@dataclass(frozen=True)
class Section:
    """A heading, paragraphs (separated by empty lines), tables, and figures with their captions; ``folded`` shows the tables on a click."""

    title: str
    text: str = ""
    figures: Sequence[tuple[str, Figure]] = ()
    tables: Sequence[Table] = ()
    folded: bool = False


def render(
    title: str,
    lead: str,
    sections: Sequence[Section],
    provenance: Mapping[str, Any],
    path: str | Path,
    drawn: Mapping[Figure, Path] | None = None,
) -> Path:
    """Write the page to ``path``; it appears whole or not at all.

    Args:
        lead: what was found, in a paragraph or two.
        provenance: how it was made; nested mappings become dotted names.
        drawn: the PNG files of figures that need not be drawn again.
    """
    path = Path(path)
    template = text.template(
        "atdm.report",
        "page.html.j2",
        autoescape=True,
        finalize=lambda value: text.plain(value) if isinstance(value, str) else value,
    )
    page = template.render(
        title=title,
        lead=lead,
        sections=sections,
        provenance=[(name, _fact(value)) for name, value in text.dotted(provenance).items()],
        paragraphs=lambda prose: [part.strip() for part in re.split(r"\n\s*\n", prose) if part.strip()],
        cells=_cells,
        is_numeric=_is_numeric,
        uri=lambda figure: data_uri((drawn or {}).get(figure, figure)),
        width=lambda figure: round(CSS_PIXELS * figure.get_figwidth()),
    )
    write_text(path, page)
    return path


def _cells(table: Table) -> list[list[tuple[str, bool, bool]]]:
    """The text of each cell, whether its column is of numbers, and whether it is the best there."""
    best = {table.columns.index(name): _best(table, name, better) for name, better in table.best.items()}
    numeric = [_is_numeric(table, i) for i in range(len(table.columns))]
    return [
        [(shown := show(value), numeric[i], shown in best.get(i, ())) for i, value in enumerate(row)]
        for row in table.rows
    ]


def _best(table: Table, column: str, better: Better) -> set[str]:
    """The shown texts of the best cells of a column: cells that read the same are equally good."""
    index = table.columns.index(column)
    cells = [row[index] for row in table.rows if math.isfinite(_number(row[index]))]
    if len(cells) < 2:
        return set()
    cost = {"lower": lambda v: v, "higher": lambda v: -v, "one": lambda v: abs(v - 1)}[better]
    least = min(cost(_number(cell)) for cell in cells)
    return {show(cell) for cell in cells if cost(_number(cell)) == least}


def _number(value: Any) -> float:
    """The number of a cell (the mean of a pair), or nan."""
    if isinstance(value, tuple) and value:
        value = value[0]
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan


def _is_numeric(table: Table, index: int) -> bool:
    cells = [row[index] for row in table.rows if row[index] is not None]
    return bool(cells) and all(isinstance(c, int | float | tuple) and not isinstance(c, bool) for c in cells)


def show(value: Any) -> str:
    """A cell as text: four significant digits, of a mean with a spread as many as the spread has two of; an en dash for nothing."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple):
        mean, spread = value
        if not math.isfinite(mean) or not math.isfinite(spread) or spread < 10**-DECIMALS:
            return f"{show(mean)} ± {show(spread)}"
        decimals = max(0, 1 - math.floor(math.log10(spread)))
        return f"{mean:.{decimals}f} ± {spread:.{decimals}f}".replace("-", "−")
    if isinstance(value, int):
        return f"{value:,}".replace(",", "\u202f")  # a thin space, which does not break
    if isinstance(value, float):
        return f"{value:.4g}".replace("-", "−") if math.isfinite(value) else "not finite"
    return str(value)


def _fact(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return "–" if value is None else str(value)


def machine() -> dict[str, str]:
    """What a page is made with: versions, and the device."""
    return {
        "atdm": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
    }


def finite(value: Any) -> Any:
    """JSON has no numbers that are not finite: they become null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {k: finite(v) for k, v in value.items()}
    return [finite(v) for v in value] if isinstance(value, list | tuple) else value
