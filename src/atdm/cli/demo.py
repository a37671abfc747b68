"""``atdm demo``: the method on toys and digits, ending in a report."""

from __future__ import annotations

import json
from dataclasses import dataclass

from ..errors import UserError
from .common import Printing, destination, print_table, silent
from .parser import make_parser
from .progress import jobs_bar


@dataclass(frozen=True)
class Options(Printing):
    """What is shown.

    Args:
        out: folder of the report, its figures and its numbers.
        seed: of data, training and sampling.
        seeds: how many seeds, from --seed on; tables then give mean ± std.
        quick: hardly any training, to see that everything works.
        thorough: add outliers, the ablations, a range of strengths and of stopping levels, and digits on a subspace.
    """

    out: str = "demo"
    seed: int = 0
    seeds: int = 1
    quick: bool = False
    thorough: bool = False


def run(words: list[str]) -> int:
    parser = make_parser("demo", Options)
    given = parser.parse_args(words)
    if given.seeds < 1:
        raise UserError(f"seeds is {given.seeds}. Expected at least 1.")
    out = destination(given.out)
    from ..experiments.runner.findings import write
    from ..experiments.runner.reproduce import find
    from ..report import show

    seeds, scale = range(given.seed, given.seed + given.seeds), "smoke" if given.quick else "cpu"
    with jobs_bar("demo", silent(given)) as progress:
        found = find("demo", scale, seeds, None, out / "jobs", progress, thorough=given.thorough)
        write(found, "atdm demo: learning what noisy data mean", out)
    if given.json:
        print(json.dumps(found.numbers()))
        return 0
    for section in found.sections:
        for table in section.tables:
            print_table(section.title, [dict(zip(table.columns, map(show, line), strict=True)) for line in table.rows])
    print(f"The report is {out / 'report.html'}; numbers.json and the figures are beside it.")
    return 0
