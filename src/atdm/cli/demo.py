"""``atdm demo``: the method on toys and digits, ending in a report."""

from __future__ import annotations

from dataclasses import dataclass

from .common import Printing, answered, destination, print_table, seeds_of, silent
from .parser import make_parser
from .progress import jobs_bar


@dataclass(frozen=True)
class Options(Printing):
    """What is shown.

    Args:
        out: folder for the report, its figures and its numbers.
        seed: seed of data, training and sampling.
        seeds: several seeds, such as 0,1,2; tables then give mean ± std; null: --seed alone.
        quick: train hardly at all, to see that everything works.
        thorough: add outliers, the ablations, a range of strengths and of stopping levels, and digits on a subspace.
    """

    out: str = "demo"
    seed: int = 0
    seeds: str | None = None
    quick: bool = False
    thorough: bool = False


def run(words: list[str]) -> None:
    given = make_parser("demo", Options).parse_args(words)
    seeds, scale = seeds_of(given), "smoke" if given.quick else "cpu"
    out = destination(given.out)
    from ..experiments.runner.findings import write
    from ..experiments.runner.reproduce import find
    from ..report import show

    with jobs_bar("demo", silent(given)) as progress:
        found = find("demo", scale, seeds, None, out / "jobs", progress, thorough=given.thorough)
        write(found, "atdm demo: training on noisy data", out)
    if answered(given, found.numbers()):
        return
    for section in found.sections:
        for table in section.tables:
            print_table(section.title, [dict(zip(table.columns, map(show, line), strict=True)) for line in table.rows])
    print(f"The report is {out / 'report.html'}; numbers.json and the figures are beside it.")
