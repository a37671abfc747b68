"""Sanity checks of an attack for gradient masking: findings that are printed beside its number and stored with it.

After the checks of AutoAttack (Croce & Hein 2020) and the checklists of Carlini 2019 and Athalye 2018: a weak attack
looks like a robust model.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from .curve import Victim, bootstrap
from .hook import Replay, StepPerturbation
from .search import Search

IDLE = 0.01  # share of items without a gradient that an attack may have at its worst step
USED = 0.5  # share of the ball's constraint that should bind
LOST = 0.05  # share of the damage that a stronger search may lose before it counts as weaker
GAINED = 0.25  # share by which twice the steps may still raise the damage
WIDTH = 0.25  # half width of the interval over seeds, as a share of the mean


@dataclass(frozen=True)
class Finding:
    """One check: its name, whether it raises no doubt, the number that it rests on, and a sentence."""

    name: str
    ok: bool
    value: float | None
    says: str

    @classmethod
    def judged(cls, name: str, ok: bool, value: float, says: str, doubt: str) -> Finding:
        """A sentence that ends with what there is to ``doubt``, where there is something."""
        return cls(name, ok, value, says + ("." if ok else doubt))

    def as_dict(self) -> dict[str, Any]:
        """For JSON, where a value that is not finite becomes null."""
        value = self.value if self.value is not None and math.isfinite(self.value) else None
        return {**dataclasses.asdict(self), "value": value}


def check_gradient(perturbations: Iterable[StepPerturbation]) -> Finding:
    """The gradient is not zero: a network that hides it is not robust for that."""
    worst = max((one.idle for one in perturbations), default=0.0)
    return Finding.judged(
        "gradient",
        worst <= IDLE,
        worst,
        f"At the worst step {worst:.1%} of the items had no gradient",
        ": the attack was blind there. A movement has none at delta = 0 (start at random); a masked gradient calls "
        "for a transferred attack.",
    )


def check_budget(perturbations: Sequence[StepPerturbation]) -> list[Finding]:
    """The budget is respected, and used."""
    excess = max((one.excess for one in perturbations), default=0.0)
    used = sum(one.used for one in perturbations) / max(1, len(perturbations))
    return [
        Finding(
            "budget respected", excess <= 1.001, excess, f"The largest perturbation was {excess:.4f} of the budget."
        ),
        Finding.judged(
            "budget used",
            used >= USED,
            used,
            f"{used:.0%} of the budget's constraint binds",
            ": most of the budget was left unused, so the damage at this budget is understated.",
        ),
    ]


def check_expectation(perturbations: Iterable[StepPerturbation], search: Search) -> Finding:
    """Through stochastic steps the gradient is an average over their noise."""
    drew = any(one.drew for one in perturbations)
    many = search.draws > 1
    return Finding.judged(
        "expectation",
        not drew or many,
        float(search.draws),
        f"Gradients through the noise ahead were averaged over {search.draws} draw{'s' if many else ''}"
        if drew
        else "The steps ahead drew no noise",
        ": the attack followed one draw that does not come back. Give it draws=4 or more.",
    )


def check_stronger(name: str, damage: float, stronger: float) -> Finding:
    """A larger search must not do less."""
    return Finding.judged(
        f"{name} not weaker",
        stronger >= damage - LOST * abs(damage),
        _ratio(stronger, damage),
        f"Twice the {name}: {_times(stronger, damage)} the damage",
        ". A larger search should not do less: the damage says little about the model.",
    )


def check_converged(damage: float, stronger: float) -> Finding:
    """A larger search must not do much more."""
    return Finding.judged(
        "converged",
        stronger <= damage + GAINED * abs(damage),
        _ratio(stronger, damage),
        f"Twice the steps: {_times(stronger, damage)} the damage",
        ". The attack has not converged: its damage is a lower bound that more steps will raise.",
    )


def check_random(damage: float, random: float) -> Finding:
    """Random perturbations of the same budget must do less."""
    return Finding.judged(
        "random not stronger",
        random < damage,
        _ratio(random, damage),
        f"Random perturbations of this budget: {_times(random, damage)} the damage",
        ". The gradients mislead the attack (masked?), or its goal is not what the damage measures.",
    )


def check_transfer_in(damage: float, transferred: float) -> Finding:
    """Perturbations found on the undefended model must not hurt the defended one more than its own."""
    return Finding.judged(
        "transfer from undefended not stronger",
        transferred <= damage + LOST * abs(damage),
        _ratio(transferred, damage),
        f"Perturbations found on the undefended model do {_times(transferred, damage)} the damage of those found on this one",
        ". Its gradients hide what hurts it: report the transferred damage.",
    )


def check_transfer_out(transferred: float, random: float) -> Finding:
    """Perturbations found on the defended model should hurt the undefended one more than random ones."""
    return Finding.judged(
        "transfer to undefended",
        transferred > random,
        _ratio(transferred, random),
        f"On the undefended model the perturbations found here do {_times(transferred, random)} the damage of random ones",
        ". They are no better than noise: the attack on the defended model may have failed.",
    )


def check_seeds(values: Sequence[float]) -> Finding:
    """The seeds are enough for the claim."""
    mean = sum(values) / len(values)
    low, high = bootstrap(values)
    half = _ratio((high - low) / 2, abs(mean))
    return Finding.judged(
        "seeds",
        len(values) >= 3 and half <= WIDTH,
        half,
        f"The damage over {len(values)} seed{'s' if len(values) > 1 else ''} is {mean:.4g}, 95 % interval [{low:.4g}, {high:.4g}]",
        f": too few for a claim. Expected 3 or more, and a half width below {WIDTH:.0%} of the mean.",
    )


def doubt(
    victim: Victim, search: Search, budget: float, seed: int = 0, undefended: Victim | None = None
) -> list[Finding]:
    """The sanity checks: attack once, then again with more and with less effort, and say what does not fit.

    It costs about 5 times the attack (6 with ``undefended``).

    Args:
        budget: noise units, above 0.
        undefended: the same but for the model, sampled alike.
    """
    clean = {id(of): of.sample(seed) for of in (victim, undefended) if of is not None}

    def run(of: Victim, how: Search, keep: bool = False) -> tuple[float, Any]:
        samples, hook = of.attack(how, budget, seed, keep)
        return of.damage(samples, clean[id(of)]), hook

    def replayed(of: Victim, found: Any) -> float:
        return of.damage(of.sample(seed, Replay(found)), clean[id(of)])

    damage, hook = run(victim, search, keep=undefended is not None)
    perturbations = [one for batch in hook.perturbations for one in batch]
    findings = [*check_budget(perturbations), check_expectation(perturbations, search)]
    blind = dataclasses.replace(search, steps=0, restarts=1, draws=1)
    random = run(victim, blind)[0]
    if search.steps:
        longer = run(victim, dataclasses.replace(search, steps=2 * search.steps))[0]
        findings = [
            check_gradient(perturbations),
            *findings,
            check_stronger("steps", damage, longer),
            check_converged(damage, longer),
            check_random(damage, random),
        ]
    wider = run(victim, dataclasses.replace(search, restarts=2 * search.restarts))[0]
    findings.append(check_stronger("restarts", damage, wider))
    if undefended is not None:
        _, theirs = run(undefended, search, keep=True)
        findings.append(check_transfer_in(damage, replayed(victim, theirs)))
        findings.append(check_transfer_out(replayed(undefended, hook), run(undefended, blind)[0]))
    return findings


def _ratio(a: float, b: float) -> float:
    return a / b if b else math.inf if a else 1.0


def _times(a: float, b: float) -> str:
    return f"{_ratio(a, b):.2f} times" if b > 0 else f"{a:.3g} against {b:.3g} for"
