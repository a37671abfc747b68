"""``atdm report``: one page over a set of models: grids, few steps, attacks, memorization, cost."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import UserError
from .common import Printing, answered, destination, numbers, reading_of_data, reading_options, silent
from .parser import make_parser, positional
from .progress import jobs_bar


@dataclass(frozen=True, kw_only=True)
class Options(Printing):
    """What is put side by side.

    Args:
        model: run folders, diffusers pipeline folders or Hub names.
        reference: clean data to compare with.
        data: training data of the models; null: those of the runs.
        label: class to draw, by name or number; all: each class in turn; null: without regard to class.
        n: samples of each model at each number of steps.
        steps_list: numbers of sampling steps to try.
        budgets: largest perturbations of the attack at each step, in noise units.
        attack: the attack, named as for atdm attack.
        attacked: samples of each model to attack.
        attacked_steps: sampling steps under attack, by ddim (flows and EDM: euler).
        features: feature space for distances and near-duplicates.
        seed: seed of the noise that all models start from.
        out: .html file.
        json: print the numbers as JSON.
    """

    model: list[str] = positional("+")
    reference: str | None = None
    data: str | None = None
    label: str | None = None
    n: int = 256
    steps_list: str = "5,10,25,50,100,250"
    budgets: str = "0,0.003,0.01,0.03"
    attack: str = "pgd:steps=3,norm=l2"
    attacked: int = 64
    attacked_steps: int = 25
    features: str = "pixels"
    seed: int = 0
    out: str = "report.html"


def run(words: list[str]) -> None:
    given = make_parser("report", Options, reading_options()).parse_args(words)
    out = destination(given.out, ".html")
    steps = numbers(given.steps_list, "numbers of steps", "10,50,250")
    if any(s != int(s) for s in steps):
        raise UserError(f"The numbers of steps are '{given.steps_list}'. Expected whole numbers.")
    from ..report import lab, sections

    names = ("n", "attack", "attacked", "attacked_steps", "features", "seed", "label")
    plan = lab.Plan(
        steps=tuple(sorted({int(s) for s in steps})),
        budgets=tuple(sorted({0.0, *numbers(given.budgets, "budgets")})),
        **{name: given[name] for name in names},
    )
    todo = lab.jobs(
        given.model, plan, given.reference or given.data, reading_of_data(given), given.reference is not None
    )
    with jobs_bar("report", silent(given)) as progress:
        result = sections.run(todo, out, progress)
    if not answered(given, result):
        print(f"The report on {', '.join(result['models'])} is {out}.")
