"""``atdm demo``: the method on toys and digits, ending in a report."""

from __future__ import annotations

import json
from pathlib import Path

from .common import make_parser, print_table, progress_bar


def run(words: list[str]) -> int:
    parser = make_parser("demo")
    parser.add_argument("--out", type=str, default="demo")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="a tenth of the training, to see that everything works")
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    given = parser.parse_args(words)
    from ..experiments import demo

    with progress_bar(given.json) as bar:
        task = bar.add_task("demo", total=None, note="")
        for done, total, label in demo.run(Path(given.out), given.seed, 0.1 if given.quick else 1.0):
            bar.update(task, completed=done, total=total, note=label)
    summary = json.loads((Path(given.out) / "summary.json").read_text())
    if given.json:
        print(json.dumps(summary))
    else:
        print_table("demo", [{k: r.get(k) for k in demo.COLUMNS} for r in summary["rows"]])
        print(
            f"The report is {Path(given.out) / 'report.html'}, the numbers are in {Path(given.out) / 'summary.json'}."
        )
    return 0
