"""``atdm attack``: damage against budget of an attack on the sampling trajectory, with sanity checks."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UserError, expect
from .common import (
    Printing,
    answered,
    clean_data,
    destination,
    numbers,
    open_model,
    print_table,
    reading_options,
    require_memory,
    sampling_of,
    sampling_options,
    seeds_of,
    silent,
)
from .parser import make_parser, positional
from .progress import progress_bar

if TYPE_CHECKING:
    from ..attack import Victim


@dataclass(frozen=True, kw_only=True)
class Options(Printing):
    """What is attacked, and how.

    Args:
        model: run folder; or any diffusers pipeline, together with --data.
        data: data set to compare samples with; null: the run's data before corruption.
        attack: random, fgsm or pgd:steps=10,norm=l2,restarts=1.
        goal: what the attack increases: movement of the denoised image (denoised) or of the predicted noise (prediction), closeness
            to an item of the data (target:item=0), distance from the data (distance; features: in a feature space).
        budgets: largest perturbations at each attacked step, in noise units.
        through: what the attack looks at: step, the denoised image of the attacked step; rest, the sample after all further steps.
        at: sampling steps to attack: all, or 0,10,20 or 10-20; 0 is the first.
        n: samples to draw at each budget.
        seeds: seeds of sampling and attack, such as 0,1,2; the intervals are over them.
        batch_size: samples to draw together.
        features: feature space of the Frechet distance.
        undefended: a model of ordinary training, to test whether attacks transfer between the two.
        checks: run the sanity checks for gradient masking (5 to 8 more attacks).
        out: folder for attack.json and the figures.
    """

    model: str = positional()
    data: str | None = None
    attack: str = "pgd"
    goal: str = "denoised"
    budgets: str = "0,0.03,0.1,0.3"
    through: str = "step"
    at: str = "all"
    n: int = 256
    seeds: str = "0,1,2"
    batch_size: int = 256
    features: str = "pixels"
    undefended: str | None = None
    checks: bool = True
    out: str = "attack"


def run(words: list[str]) -> None:
    given = make_parser("attack", Options, reading_options(), sampling_options(50)).parse_args(words)
    budgets = numbers(given.budgets, "budgets")
    _steps(given.at, 2 * given.sampling_steps)  # no sampler evaluates the network more often
    seeds = seeds_of(given)
    expect(given.n >= 2, "n", given.n, "2 or more samples")
    if min(budgets) < 0:
        raise UserError(f"The budgets are {budgets}. Expected 0 or more.")
    out = destination(given.out)
    from ..attack import ATTACKS, GOALS, TrajectoryAttack, check_seeds, damage_curve, doubt, summarize
    from ..data.folders import require_apart
    from ..spec import build

    search = build("attack", given.attack, ATTACKS)
    goal = build("goal of an attack", given.goal, GOALS)
    TrajectoryAttack(search, goal, 0.0, through=given.through)  # a combination that cannot work is refused at once
    dataset, data = clean_data(given)
    require_apart(out, data)
    reference = dataset.reference
    goal = goal.fit(reference, dataset.truth)
    require_memory(given.n, reference.shape[1:])
    victim = _victim(given, given.model, goal, reference)
    other = _victim(given, given.undefended, goal, reference) if given.undefended else None
    rows, shown, findings = [], {}, []
    worst = max(budgets)
    with progress_bar(silent(given)) as bar:
        task = bar.add_task("attacking", total=len(seeds) * len(budgets) + (given.checks and worst > 0), note="")
        for point in damage_curve(victim, search, budgets, seeds, reference, dataset.truth, given.features):
            rows.append(point.row)
            if point.row["seed"] == seeds[0]:
                shown[point.row["budget"]] = point.samples.cpu()
            bar.advance(task)
        if given.checks and worst > 0:
            findings = doubt(victim, search, worst, seeds[0], other)
            findings.append(check_seeds([row["damage"] for row in rows if row["budget"] == worst]))
            bar.advance(task)
    result = {
        "provenance": _provenance(given, victim, seeds, reference, data, dataset.kind, worst if findings else None),
        "summary": summarize(rows),
        "checks": [finding.as_dict() for finding in findings],
        "rows": [{k: None if v != v else v for k, v in row.items()} for row in rows],
    }
    _write(out, result, shown, dataset)
    if not answered(given, result):
        _tell(given, result)


def _provenance(
    given: Any, victim: Victim, seeds: list[int], reference: Any, data: str, kind: str, checked_at: float | None
) -> dict[str, Any]:
    """How the numbers were made."""
    from ..metrics import content_hash

    return {
        "model": given.model,
        "checkpoint": victim.model.hash,
        "weights": "ema",
        "conditioned_on": victim.model.conditioned_on,
        **victim.sampling.as_dict(),
        "seeds": seeds,
        "samples": given.n,
        "reference": data,
        "reference_hash": content_hash(reference),
        "features": given.features if kind == "image" else None,
        "attack": given.attack,
        "objective": given.goal,
        "through": given.through,
        "at": given.at,
        "budget_unit": "noise units, at each attacked step",
        "checked_at": checked_at,
    }


def _steps(text: str, count: int) -> set[int] | None:
    """``all``, or indices and ranges of them.

    Args:
        count: of the evaluations of the network; heun makes two a step.

    Raises:
        UserError: they are something else, or there is no such step.
    """
    if text == "all":
        return None
    such = "Expected all, or indices such as 0,10,20 or 10-20"
    chosen: set[int] = set()
    for word in text.split(","):
        first, dash, last = word.partition("-")
        if not re.fullmatch("[0-9]{1,18}", first) or (dash and not re.fullmatch("[0-9]{1,18}", last)):
            raise UserError(f"The steps to attack are '{text}'. {such}.")
        steps = range(int(first), int(last if dash else first) + 1)
        if not steps or steps[-1] >= count:
            raise UserError(f"The steps to attack are '{text}', of {count} from 0 on. {such}.")
        chosen |= {*steps}
    return chosen


def _victim(given: Any, source: str, goal: Any, reference: Any) -> Victim:
    from ..attack import Victim

    model = open_model(given, True, source).for_items(tuple(reference.shape[1:]), source, "the reference")
    sampling = model.sampling(sampling_of(given))
    at = _steps(given.at, len(sampling.scheduler_for(model.process)[1]))
    return Victim(model, goal, given.n, at, given.through, sampling, given.batch_size)


def _write(folder: Path, result: dict[str, Any], shown: dict[float, Any], dataset: Any) -> None:
    """``attack.json``, the curve, and samples by budget."""
    from .. import plot
    from ..files import write_text

    write_text(folder / "attack.json", json.dumps(result, indent=1))
    provenance = result["provenance"]
    title = f"{provenance['attack']} on {Path(provenance['model']).name}, objective {provenance['objective']}"
    measures = [row["measure"] for row in result["summary"]]
    wanted = ("damage", "off_support_rms", "moved_rms", "noise_std", "diverged_share", "sliced_wasserstein")
    kept = [m for m in dict.fromkeys(measures) if m in wanted or m.startswith("frechet_")]
    figure = plot.damage({Path(provenance["model"]).name: result["summary"]}, kept, title)
    for kind in ("png", "svg"):
        plot.save(figure, folder / f"damage.{kind}")
    panels = {"no attack" if budget == 0 else f"budget {budget:g}": x for budget, x in shown.items()}
    shape = dataset.item_shape
    if dataset.kind == "image":
        plot.save(plot.image_grids({name: x[:32] for name, x in panels.items()}), folder / "samples.png")
    elif len(shape) == 1 and shape[0] == 3:
        plot.save(plot.points3d(panels, dataset.truth), folder / "samples.png")
    elif len(shape) == 1 and shape[0] == 2:
        plot.save(plot.scatter(shown[max(shown)], shown[min(shown)]), folder / "samples.png")


def _tell(given: Any, result: dict[str, Any]) -> None:
    """Measures down, budgets across; the paired ones with their intervals."""
    from ..attack import PAIRED

    table: dict[str, dict[str, Any]] = {}
    for row in result["summary"]:
        shown = f"{row['mean']:.4g}"
        if row["measure"] in PAIRED and row["budget"]:
            shown += f" [{row['low']:.3g}, {row['high']:.3g}]"
        table.setdefault(row["measure"], {"measure": row["measure"]})[f"{row['budget']:g}"] = shown
    budgets = list(dict.fromkeys(f"{row['budget']:g}" for row in result["rows"]))
    print_table(
        f"{given.model} under {given.attack}, by budget in noise units: {given.n} samples, {len(seeds_of(given))} seeds, "
        f"{result['provenance']['sampler']}, {given.sampling_steps} steps",
        [{"measure": name, **{budget: cells.get(budget, "") for budget in budgets}} for name, cells in table.items()],
    )
    if result["checks"]:
        checks = [
            {"check": c["name"], "": "ok" if c["ok"] else "DOUBT", "finding": c["says"]} for c in result["checks"]
        ]
        print_table(f"Checks at budget {result['provenance']['checked_at']:g}", checks)
    print(f"Numbers and figures are in {given.out}.")
