"""The page of the robustness laboratory: for readers who know neither the method nor the paper."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from .. import metrics, plot
from ..data import load
from ..plot.lines import curve_panels
from ..plot.points import points2d
from ..pool import Progress, work_through
from . import page as report
from .lab import ModelJob, ModelOutcome, work
from .measures import against, measures, ranks
from .page import Row, Section, Table, finite, machine

IMAGES, FEW_IMAGES, PAIRS = 36, 16, 6
UNITS = {"parameters": 1e6, "flops_per_sample": 1e9, "flops_of_training": 1e12}


def run(todo: Sequence[ModelJob], out: Path, progress: Progress) -> dict[str, Any]:
    """Do the jobs and write the page ``out``; returns the numbers on it.

    Raises:
        UserError: something cannot be measured or written.
    """
    return write(work_through(work, todo, progress), out)


def write(outcomes: Sequence[ModelOutcome], out: Path) -> dict[str, Any]:
    """Write the page, and return its numbers."""
    plan, first = outcomes[0].job.plan, outcomes[0].job
    reference = load(first.data, **first.reading).reference
    result: dict[str, Any] = {
        "models": [o.job.label for o in outcomes],
        "rows": [row for o in outcomes for row in o.rows],
        "damage": {o.job.label: o.damage for o in outcomes},
        "checks": {o.job.label: [c.as_dict() for c in o.checks] for o in outcomes},
        "memorization": {o.job.label: o.copies[0].as_dict() if o.copies else None for o in outcomes},
        "cost": {o.job.label: o.facts for o in outcomes},
        "provenance": _provenance(outcomes),
        "out": str(out),
    }
    kept = measures(result["rows"])
    sections = [
        _overview(outcomes, kept),
        _samples(outcomes, reference),
        _few_steps(outcomes, kept),
        *([_attack(outcomes, kept), _doubts(attacked)] if (attacked := [o for o in outcomes if o.damage]) else []),
        _memorization(outcomes),
        _cost(outcomes),
    ]
    lead = (
        "A diffusion model makes a sample out of pure noise: a network removes a little of the noise at a time, step by "
        f"step. This page puts {_count(len(outcomes), 'model')} side by side, {', '.join(result['models'])}: how good the "
        "samples are, how many steps they need, what happens when somebody attacks the sampler, whether the "
        "samples are copies of training data, and what all of it costs.\n\n"
        f"Every model starts from the same noise (seed {plan.seed}) and is measured against the same {len(reference)} items: "
        f"{against(outcomes)}. With {plan.n} samples of each, small differences may be chance."
    )
    report.render(f"Robustness report: {', '.join(result['models'])}", lead, sections, result["provenance"], out)
    return finite(result)


def _count(n: int, what: str) -> str:
    return f"{n} {what}" + ("s" if n != 1 else "")


def _row(outcome: ModelOutcome) -> Row:
    """The row of the first sampler at the most steps."""
    return max((r for r in outcome.rows if r["sampler"] == outcome.job.samplers[0]), key=lambda r: r["steps"])


def _damage_at_worst(outcome: ModelOutcome, measure: str) -> tuple[float, float] | None:
    """The mean, and half the width of its interval."""
    worst = max(outcome.job.plan.budgets)
    found = [r for r in outcome.damage if r["budget"] == worst and r["measure"] == measure]
    return (found[0]["mean"], (found[0]["high"] - found[0]["low"]) / 2) if found else None


def _named(outcomes: Sequence[ModelOutcome], index: int) -> str:
    """The first or second sampler of the models, in words."""
    return " or ".join(dict.fromkeys(o.job.samplers[index] for o in outcomes))


def _overview(outcomes: Sequence[ModelOutcome], kept: Sequence[str]) -> Section:
    steps, worst = max(outcomes[0].job.plan.steps), max(outcomes[0].job.plan.budgets)
    lines = [
        [
            o.job.label,
            o.facts.get("corrupt", "not known"),
            *(_row(o).get(k) for k in kept),
            _damage_at_worst(o, "moved_rms"),
            o.copies[0].near_duplicate_share if o.copies else None,
        ]
        for o in outcomes
    ]
    names = {k: _words(k) for k in kept}
    columns = ["model", "corruption added to its data", *names.values(), "moved by attack", "near-duplicates"]
    units = {names[k]: metrics.metric(k).unit for k in kept} | {"moved by attack": "data units, rms"}
    best: dict[str, report.Better] = {
        names[k]: better for k in kept if ranks(outcomes, k) and (better := metrics.metric(k).better) != "none"
    }
    meanings = {names[k]: metrics.metric(k).meaning for k in kept}
    caption = (
        f"The {_named(outcomes, 0)} sampler with {steps} steps; moved by attack: root mean square movement of the samples at budget "
        f"{worst:g}, with its 95 % interval. Shaded: the best of a column, which may be by chance. "
        + " ".join(f"{name}: {meaning[0].lower()}{meaning[1:]}" for name, meaning in meanings.items())
    )
    text = (
        "The most important numbers, one line for each model. The sections below explain them. An objective called ddpm is "
        "ordinary training. robust_adv is adversarial training: it perturbs the network's input where its prediction changes "
        "most, and trains it to change the prediction by exactly that perturbation. auto chooses an objective and its constants from the data."
    )
    table = Table(columns, lines, caption, best | {"moved by attack": "lower"}, {k: u for k, u in units.items() if u})
    return Section("In short", text, [], [table])


def _words(measure: str) -> str:
    return metrics.label(measure).replace("_", " ")


def _samples(outcomes: Sequence[ModelOutcome], reference: Tensor) -> Section:
    plan = outcomes[0].job.plan
    steps = max(plan.steps)
    clean = {"reference": reference}
    panels = clean | {o.job.label: o.samples[o.job.samplers[0], steps] for o in outcomes}
    few = sorted({plan.steps[round(i * (len(plan.steps) - 1) / 3)] for i in range(4)})
    shorter = {f"{o.job.label}, {count} steps": o.samples[o.job.samplers[1], count] for o in outcomes for count in few}
    across = f"The first samples of each model with the {_named(outcomes, 0)} sampler and {steps} steps, beside the reference."
    down = f"The same starting noise with fewer steps of the {_named(outcomes, 1)} sampler: few steps cost less and lose detail."
    drawn = []
    if reference.dim() == 4:
        drawn.append(plot.image_grids({k: x[:IMAGES] for k, x in panels.items()}, columns=6))
        drawn.append(plot.image_grids({k: x[:FEW_IMAGES] for k, x in shorter.items()}, columns=4))
    elif reference.shape[1] == 3:
        truth = load(outcomes[0].job.data, **outcomes[0].job.reading).truth
        known = truth if isinstance(truth, metrics.exact.HasDistance) else None
        drawn = [plot.points3d(clouds, known) for clouds in (panels, clean | shorter)]
    elif reference.shape[1] == 2:
        drawn = [points2d(clouds) for clouds in (panels, clean | shorter)]
    text = (
        "These are samples as the models make them, not chosen by anybody. All models start from the same noise, so the "
        "same place in two grids shows what each of them makes of it: look for grain, smudges, and variety that is missing."
    )
    if not drawn:
        text += " Items of this shape cannot be drawn; the numbers are below."
    return Section("Samples", text, [*zip((across, down), drawn, strict=False)])


def _few_steps(outcomes: Sequence[ModelOutcome], kept: Sequence[str]) -> Section:
    shown = [*dict.fromkeys([kept[0], kept[-1]])]
    panels = {
        f"{_words(k)}, {sampler} sampler": {
            o.job.label: (
                [r["steps"] for r in o.rows if r["sampler"] == sampler],
                [r.get(k, float("nan")) for r in o.rows if r["sampler"] == sampler],
            )
            for o in outcomes
            if sampler in o.job.samplers
        }
        for k in shown
        for sampler in dict.fromkeys(name for o in outcomes for name in o.job.samplers)
    }
    figure = curve_panels(panels, "sampling steps", "", "xy")
    counts = outcomes[0].job.plan.steps
    table = Table(
        ["number", "model", "sampler", *(f"{count} steps" for count in counts)],
        [
            [_words(k), o.job.label, sampler, *(r.get(k) for r in o.rows if r["sampler"] == sampler)]
            for k in kept
            for o in outcomes
            for sampler in o.job.samplers
        ],
        f"{outcomes[0].job.plan.n} samples each; the first table says what the numbers mean.",
    )
    text = (
        "Each step of the sampler is one pass through the network, so fewer steps mean cheaper samples. The curves show the "
        "quality by the number of steps. If a curve stays flat to the left, the model can be sampled cheaply."
    )
    if any("ddpm" in o.job.samplers for o in outcomes):
        text += " The ddpm sampler adds fresh noise at every step and ddim none."
    return Section(
        "Few steps", text, [("Quality against sampling steps; lower is better.", figure)], [table], folded=True
    )


def _attack(outcomes: Sequence[ModelOutcome], kept: Sequence[str]) -> Section:
    plan = outcomes[0].job.plan
    wanted = list(dict.fromkeys(["moved_rms", kept[0], kept[-1]]))
    figure = plot.damage({o.job.label: o.damage for o in outcomes if o.damage}, wanted)
    caption = (
        f"{plan.attack} on every one of {plan.attacked_steps} steps of a deterministic sampler (ddim; euler of flows and EDM), {plan.attacked} samples, mean over "
        f"{plan.attack_seeds} seeds and its 95 % interval. A budget of 0.01 moves each state by a hundredth of its own noise."
    )
    text = (
        "An attacker may perturb every intermediate state by a small amount, the budget, and searches for the perturbations "
        "that change the sample most. The curves show the damage against the budget. The lower and flatter a curve, the more "
        "robust the model."
    )
    if skipped := [o.job.label for o in outcomes if not o.damage]:
        text += f" Not attacked: {' and '.join(skipped)}, of latents; the attack works on pixels."
    return Section("Attack on the sampler", text, [(caption, figure)])


def _doubts(outcomes: Sequence[ModelOutcome]) -> Section:
    cells = [[o.job.label, c.name, "ok" if c.ok else "DOUBT", c.says] for o in outcomes for c in o.checks]
    doubts = {o.job.label: sum(not c.ok for c in o.checks) for o in outcomes}
    text = (
        "A weak attack looks like a robust model. So each attack is repeated at its largest budget with more and with less "
        "effort, and these checks look for signs that it was too weak, as where a model hides its gradients. A doubt is not a verdict: it "
        "says why a curve may be too optimistic, or that a comparison rests on too little. "
        + "; ".join(f"{_count(n, 'doubt')} on {label}" for label, n in doubts.items())
        + "."
    )
    caption = f"Checks of the attack at budget {max(outcomes[0].job.plan.budgets):g}."
    return Section("Sanity checks of the attack", text, [], [Table(["model", "check", "", "finding"], cells, caption)])


def _memorization(outcomes: Sequence[ModelOutcome]) -> Section:
    text = (
        "A model may have memorized its training data. For each sample, the most similar training item is searched. Any two "
        "items of one kind are alike to some degree, so the same is done for items held out of training: this is the background. A "
        "sample is a near-duplicate if it is closer than 99 % of the background. Without memorization one sample in a hundred is."
    )
    found = [(o, *o.copies) for o in outcomes if o.copies is not None]
    unknown = [o.job.label for o in outcomes if o.copies is not None and o.job.config is None]
    without = [o.job.label for o in outcomes if o.copies is None]
    if unknown:
        text += f"\n\nThe training data of {' and '.join(unknown)} are not known, so the reference takes their place."
    if without:
        text += f"\n\nNot judged: {' and '.join(without)}. This needs images, and items held out of training."
    columns = {
        "near-duplicates": "near_duplicate_share",
        "background": "background_share",
        "mean similarity": "similarity_mean",
        "of held-out items": "background_mean",
        "threshold": "threshold",
    }
    numbers = {o.job.label: m.as_dict() for o, m, _, _ in found}
    tables: list[Table] = []
    if found:
        lines = [[label, *(n[k] for k in columns.values())] for label, n in numbers.items()]
        space = f"Cosine similarity in the feature space {found[0][1].space}, 1 for a copy."
        tables = [Table(["model", *columns], lines, f"{space} Shares of the samples, and of the held-out items.")]
    figures = [
        (
            f"{o.job.label}: the closest pairs, sample (left) and training item (right). Copies look the same in detail.",
            plot.pairs(samples, training, m.pairs(PAIRS), m.similarity),
        )
        for o, m, samples, training in found
    ]
    return Section("Memorization", text, figures, tables, folded=True)


def _cost(outcomes: Sequence[ModelOutcome]) -> Section:
    def of(o: ModelOutcome, key: str) -> Any:
        value = o.facts.get(key)
        return value / UNITS[key] if value is not None and key in UNITS else value

    columns = {
        "parameters": "parameters",
        "operations per sample": "flops_per_sample",
        "seconds per sample": "seconds_per_sample",
    }
    text = (
        f"What a sample of {outcomes[0].facts['sampling_steps']} steps costs, and the training, where that is known. Sampling costs "
        "the same after adversarial training as after ordinary training. A training step costs more, because the attack and "
        "the perturbed pass go through the network again."
    )
    caption = "Operations: those of matrix products and convolutions. Seconds: measured here, where other work may have run beside."
    if any("objective" in o.facts for o in outcomes):
        columns |= {
            "objective": "objective",
            "training steps": "training_steps",
            "batch size": "batch_size",
            "passes over ddpm": "floor_over_ddpm",
            "training operations": "flops_of_training",
            "training seconds": "training_seconds",
        }
        caption += " Passes over ddpm: network passes of a training step relative to ordinary training."
    units = {"parameters": "millions", "operations per sample": "giga", "training operations": "tera"}
    table = Table(
        ["model", "network", *columns],
        [[o.job.label, o.facts["network"], *(of(o, k) for k in columns.values())] for o in outcomes],
        caption,
        units={name: unit for name, unit in units.items() if name in columns},
    )
    return Section("Cost", text, [], [table], folded=True)


def _provenance(outcomes: Sequence[ModelOutcome]) -> Mapping[str, Any]:
    job, row = outcomes[0].job, outcomes[0].rows[0]
    return {
        "models": {o.job.label: f"{o.job.model}, weights {o.rows[0]['checkpoint']}" for o in outcomes},
        "data": job.data,
        "reference hash": row["reference_hash"],
        "samples": job.plan.n,
        "steps": job.plan.steps,
        "seed": job.plan.seed,
        "features": job.plan.features,
        "attack": job.plan.attack,
        "budgets": job.plan.budgets,
        "attacked samples": job.plan.attacked,
        "attacked steps": job.plan.attacked_steps,
        "attack seeds": job.plan.attack_seeds,
        **machine(),
    }
