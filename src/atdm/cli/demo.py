"""``atdm demo``: the method on toys and digits, ending in a report."""

from __future__ import annotations

import json

from ..errors import UserError
from .common import destination, jobs_bar, make_parser, print_table


def run(words: list[str]) -> int:
    parser = make_parser("demo")
    parser.add_argument("--out", type=str, default="demo")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--seeds", type=int, default=1, help="how many seeds, from --seed on; tables then give mean ± std"
    )
    parser.add_argument("--quick", action="store_true", help="a tenth of the training, to see that everything works")
    parser.add_argument(
        "--thorough", action="store_true", help="add clean data, and a range of strengths and of stopping levels"
    )
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    given = parser.parse_args(words)
    if given.seeds < 1:
        raise UserError(f"seeds is {given.seeds}. Expected at least 1.")
    out = destination(given.out)
    from ..experiments import demo, demo_report

    seeds = range(given.seed, given.seed + given.seeds)
    with jobs_bar("demo", given.json) as progress:
        demo.run(out, seeds, 0.1 if given.quick else 1.0, given.thorough, progress)
    summary = json.loads((out / "summary.json").read_text())
    if given.json:
        print(json.dumps(summary))
    else:
        print_table("demo", demo_report.overview(summary["rows"]))
        print(f"The report is {out / 'report.html'}, the numbers are in {out / 'summary.json'}.")
    return 0
