"""What an experiment found: claims that are judged by numbers, figures and tables, and the files made of them."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ... import plot, report
from ...files import write_text
from ...report import Row, finite
from .rows import number


@dataclass(frozen=True)
class Claim:
    """A statement that numbers bear out or do not.

    Args:
        statement: what is published or expected.
        holds: whether the numbers say so.
        measured: the numbers, as a clause.
    """

    statement: str
    holds: bool
    measured: str


def at_most(statement: str, value: float, than: float, share: float, names: tuple[str, str]) -> Claim:
    """The claim that ``value`` is at most ``share`` times ``than``."""
    ratio = value / than if than else math.nan
    measured = f"{names[0]} {number(value)}, {names[1]} {number(than)}: {number(ratio)} times"
    return Claim(statement, bool(ratio <= share), measured)


def beats_random(condition: str, of: Callable[[str], float]) -> Claim:
    """The claim that of both published directions the adversarial one has the lower number, by ``of``."""
    adversarial, random = of("robust_adv"), of("robust_rand")
    statement = f"{condition}: adversarial beats random at the published constants"
    return Claim(statement, adversarial < random, f"robust_adv {number(adversarial)}, robust_rand {number(random)}")


@dataclass
class Findings:
    """What an experiment found.

    Args:
        lead: what was done and what is published, in a paragraph that holds whatever the numbers are.
        claims: judged by the numbers.
        rows: the numbers.
        figures: by file name; caption and figure.
        tables: for the report.
        notes: paragraphs that were made from the numbers and are no claims.
        sections: of the report, where they are not the comparison, the figures and the tables in turn.
        provenance: the experiment, its scale and seeds, and the machine, filled in by :func:`.reproduce.find`.
    """

    lead: str
    claims: list[Claim]
    rows: list[Row]
    figures: dict[str, tuple[str, plot.Figure]]
    tables: list[report.Table]
    notes: list[str] = field(default_factory=list)
    sections: list[report.Section] = field(default_factory=list)
    provenance: Mapping[str, Any] = field(default_factory=dict)

    @property
    def scale(self) -> str | None:
        """Of networks, data and training."""
        return self.provenance.get("scale")

    def numbers(self) -> dict[str, Any]:
        """Everything but the figures, as JSON holds it."""
        return {
            "rows": finite(self.rows),
            "claims": [dataclasses.asdict(c) for c in self.claims],
            "tables": finite([{"columns": t.columns, "rows": t.rows, "caption": t.caption} for t in self.tables]),
            "figures": {title: caption for title, (caption, _) in self.figures.items()},
            "provenance": self.provenance,
        }

    def paragraph(self) -> str:
        """The comparison as Markdown: what agrees and what does not."""
        parts = [self.lead]
        if self.scale == "smoke":
            parts.append(
                "**At scale smoke the networks are hardly trained**: this shows that everything runs, and the comparison "
                "below means nothing."
            )
        for heading, holds in (("Agrees", True), ("Does not agree", False)):
            chosen = [f"- {c.statement} ({c.measured})." for c in self.claims if c.holds is holds]
            if chosen:
                parts.append("\n".join([f"**{heading}:**", "", *chosen]))
        return "\n\n".join([*parts, *self.notes]) + "\n"


@dataclass
class Outcome:
    """What came of a job: rows, and by name, for the figures, tensors and plain values, also in dictionaries and lists.

    Args:
        seconds: of the processor that the job took, filled in by :func:`.stored.work`.
    """

    job: Any
    rows: list[Row]
    tensors: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0


def first_seed(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """The outcomes that figures show."""
    return [o for o in outcomes if o.job.seed == outcomes[0].job.seed]


def by_condition(outcomes: Sequence[Outcome]) -> list[tuple[str, list[Outcome]]]:
    """Each condition, and those of its outcomes that figures show."""
    shown = first_seed(outcomes)
    conditions = dict.fromkeys(o.job.condition for o in shown)
    return [(condition, [o for o in shown if o.job.condition == condition]) for condition in conditions]


def beside_training(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Panels: what training saw, then the samples of each method."""
    return {"training data": outcomes[0].tensors["corrupted"]} | {o.job.label: o.tensors["samples"] for o in outcomes}


def write(found: Findings, title: str, out: Path) -> None:
    """Write figures, ``numbers.json``, ``paragraph.md`` and ``report.html``, whose heading is ``title``."""
    drawn = {figure: plot.save(figure, out / f"{name}.png") for name, (_, figure) in found.figures.items()}
    for name, (_, figure) in found.figures.items():
        figure.set_layout_engine("none")  # it is that of the picture
        plot.save(figure, out / f"{name}.svg")
    for file, text in (("numbers.json", json.dumps(found.numbers(), indent=1)), ("paragraph.md", found.paragraph())):
        write_text(out / file, text)
    judged = report.Table(
        ["published or expected", "agrees", "measured"],
        [[c.statement, c.holds, c.measured] for c in found.claims],
        "Judged by the numbers of this run." if found.scale != "smoke" else "At scale smoke this means nothing.",
    )
    comparison = report.Section("Comparison", "\n\n".join(found.notes), [], [judged] if found.claims else [])
    plain = [report.Section("Figures", "", [*found.figures.values()]), report.Section("Numbers", "", [], found.tables)]
    sections = [comparison, *(found.sections or plain)]
    report.render(title, found.lead, sections, found.provenance, out / "report.html", drawn)
