"""``atdm report``: one page over a set of models: grids, few steps, attacks, memorization, cost."""

from __future__ import annotations

import json

from ..errors import UserError
from .common import add_reading, destination, jobs_bar, make_parser, numbers, reading_of_data


def run(words: list[str]) -> int:
    parser = make_parser("report")
    parser.add_argument("model", nargs="+", help="run folders, diffusers pipeline folders or Hub names")
    parser.add_argument("--data", type=str | None, default=None, help="clean reference; default: the runs' own data")
    add_reading(parser)
    parser.add_argument("--n", type=int, default=256, help="samples of each model at each number of steps")
    parser.add_argument("--steps_list", type=str, default="5,10,25,50,100,250", help="numbers of sampling steps")
    parser.add_argument(
        "--budgets", type=str, default="0,0.003,0.01,0.03", help="of the attack, noise units at each step"
    )
    parser.add_argument("--attack", type=str, default="pgd:steps=3,norm=l2", help="as of atdm attack")
    parser.add_argument("--attacked", type=int, default=64, help="samples of each model under attack")
    parser.add_argument(
        "--attacked_steps",
        type=int,
        default=25,
        help="steps of the sampler under attack (ddim; euler of flows and EDM)",
    )
    parser.add_argument("--features", type=str, default="pixels", help="feature space of distances and near-duplicates")
    parser.add_argument("--seed", type=int, default=0, help="of the noise that all models start from")
    parser.add_argument("--out", type=str, default="report.html")
    parser.add_argument("--json", action="store_true", help="print the numbers as JSON")
    given = parser.parse_args(words)
    out = destination(given.out, ".html")
    steps = numbers(given.steps_list, "numbers of steps")
    if any(s != int(s) for s in steps):
        raise UserError(f"The numbers of steps are '{given.steps_list}'. Expected whole numbers.")
    from ..report import lab

    names = ("n", "attack", "attacked", "attacked_steps", "features", "seed")
    plan = lab.Plan(
        steps=tuple(sorted({int(s) for s in steps})),
        budgets=tuple(sorted({0.0, *numbers(given.budgets, "budgets")})),
        **{name: given[name] for name in names},
    )
    todo = lab.jobs(given.model, plan, given.data, reading_of_data(given))
    with jobs_bar("report", given.json) as progress:
        told = lab.run(todo, out, progress)
    print(json.dumps(told) if given.json else f"The report on {', '.join(told['models'])} is {out}.")
    return 0
