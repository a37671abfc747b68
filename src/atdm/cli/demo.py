"""``atdm demo``: the method on toys and digits, ending in a report."""

from __future__ import annotations

import json

from ..errors import UserError
from .common import destination, jobs_bar, make_parser, print_table


def run(words: list[str]) -> int:
    parser = make_parser("demo")
    parser.add_argument("--out", type=str, default="demo", help="folder of the report and its figures and numbers")
    parser.add_argument("--seed", type=int, default=0, help="of data, training and sampling")
    parser.add_argument(
        "--seeds", type=int, default=1, help="how many seeds, from --seed on; tables then give mean ± std"
    )
    parser.add_argument("--quick", action="store_true", help="hardly any training, to see that everything works")
    parser.add_argument(
        "--thorough",
        action="store_true",
        help="add outliers, the ablations, a range of strengths and of stopping levels, and digits on a subspace",
    )
    parser.add_argument("--json", action="store_true", help="print the numbers as JSON")
    given = parser.parse_args(words)
    if given.seeds < 1:
        raise UserError(f"seeds is {given.seeds}. Expected at least 1.")
    out = destination(given.out)
    from ..experiments.runner.findings import write
    from ..experiments.runner.reproduce import find
    from ..report import show

    seeds, scale = range(given.seed, given.seed + given.seeds), "smoke" if given.quick else "cpu"
    with jobs_bar("demo", given.json) as progress:
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
