"""The objectives that one word names, and when they perturb."""

from __future__ import annotations

from typing import NamedTuple

from ..errors import UserError, expect, require_known
from .baselines import BASELINES
from .terms import first_step, world


class Kind(NamedTuple):
    """Whether an objective perturbs, whether the perturbation is an attack, and whether the prediction is to move with it."""

    perturbs: bool
    adversarial: bool
    equivariant: bool


KINDS: dict[str, Kind] = {
    "ddpm": Kind(perturbs=False, adversarial=False, equivariant=False),
    "robust_rand": Kind(perturbs=True, adversarial=False, equivariant=True),
    "robust_adv": Kind(perturbs=True, adversarial=True, equivariant=True),
    "inv_rand": Kind(perturbs=True, adversarial=False, equivariant=False),
    "inv_adv": Kind(perturbs=True, adversarial=True, equivariant=False),
}


ASCENTS = ("prediction", "residual")  # what an attack raises


def require_kind(name: str) -> None:
    """Refuse a name that no :class:`~atdm.objective.Objective` has, and say what makes that loss.

    Raises:
        UserError: it is no kind.
    """
    if name in BASELINES:
        raise UserError(
            f"'{name}' is a loss of its own. Expected atdm.OBJECTIVES['{name}'](process) in place of Objective('{name}', process)."
        )
    if name == "auto":
        raise UserError("auto is chosen from training data. Expected Objective.auto(images, process).")
    require_known("objective", name, KINDS)


def require_options(name: str, ascent: str, gate: float | None, every: int, attack_steps: int) -> None:
    """Refuse options that an objective of this name cannot have (:class:`~atdm.errors.UserError`)."""
    require_known("ascent", ascent, ASCENTS)
    expect(gate is None or not gate <= 0, "The gate", gate, "a noise level sigma_t/alpha_t > 0, or none")
    expect(every >= 1, "every", every, "an integer >= 1: apply the regularizer every N steps")
    if KINDS[name].adversarial and attack_steps < 1:
        raise UserError(
            f"{name} has {attack_steps} attack steps. Expected at least 1; "
            f"for a random perturbation use {name.replace('adv', 'rand')}."
        )


def due(start: float, every: int, step: int | None, steps: int | None) -> bool | None:
    """Whether optimizer step ``step`` (from 0) of ``steps`` applies the regularizer; None: its timesteps are to decide.

    Args:
        start: share of the training before the regularizer is applied.
        every: the regularizer is applied every N steps.

    Raises:
        UserError: it cannot be known without the step.
    """
    first = first_step(start, "is plain denoising", step, steps)
    if step is None:
        if every > 1 and world() > 1:
            raise UserError(
                f"One step in {every} applies the regularizer, the same one on all processes. Expected step=step."
            )
        return None
    return step >= first and (step - first) % every == 0
