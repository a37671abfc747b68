"""Purification: noise an input to a level t*, denoise it back, and what that is worth to a classifier behind it.

Source: Nie 2022 (DiffPure). A purifier is only as good as the attack that knows it: robust accuracy is measured through
the purifier, with the expectation over its noise (Athalye 2018), not of the classifier alone.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..diffusion.model import Model
from ..diffusion.process import Process, States
from ..diffusion.sampling import generators, open_solver
from ..diffusion.solver import Solver
from ..diffusion.steps import Sampling, asked
from ..errors import UserError, expect
from ..nets import device_of
from ..nets.passes import evaluating
from . import Finding, Search


class Purifier(nn.Module):
    """``x -> alpha_t* x + sigma_t* eps``, and back to an image by a sampler; differentiable in x, new noise at each call.

    The model is put in evaluation mode for good. On the way back through the sampler every network evaluation is
    computed again (checkpointed), so memory is that of one.

    Examples:
        >>> defended = nn.Sequential(Purifier(Model.from_pretrained("runs/digits"), noise=0.4), classifier)
        >>> defended = nn.Sequential(Purifier(unet, process, noise=0.4), classifier)

    Args:
        model: a :class:`~atdm.diffusion.model.Model`, or any ``net(x, t)`` together with its ``process``.
        noise: noise level ``sigma_t/alpha_t`` at t*, in data units; the sampler's next lower one is taken.
        sampling: how; it begins at ``noise``. Its fields can be given by name as well; ``steps`` is 100 by default.
        conditioning: passed to the model.
        seed: of the noise.

    Raises:
        UserError: a level that is not positive, or below the last step.
    """

    def __init__(
        self,
        model: Model | Callable[..., Any],
        process: Process | None = None,
        noise: float = 0.0,
        sampling: Sampling | None = None,
        *,
        conditioning: Mapping[str, Any] | None = None,
        seed: int = 0,
        **options: Any,
    ) -> None:
        super().__init__()
        expect(noise > 0, "The noise of the purifier", noise, "a level sigma_t/alpha_t > 0, in data units")
        if not isinstance(model, Model):
            if process is None:
                raise UserError("The purifier has a network without its process. Expected a Model, or both.")
            model = Model(model, process)
        self.model = dataclasses.replace(model, conditioning={**model.conditioning, **(conditioning or {})})
        self.net = model.net  # where it is a module, it is one of the purifier's
        self.generator = torch.Generator().manual_seed(seed)
        if isinstance(model.net, nn.Module):
            model.net.eval()
        how = asked(sampling or Sampling(steps=100), {**options, "start_ratio": noise})
        self.sampling = model.sampling(how)
        solver = self._solver((1, 1), [self.generator], None)
        self.t = solver.t
        self.level = float(model.process.sigmas[self.t] / model.process.alphas[self.t])
        self.evaluations = len(solver.timesteps)

    def forward(self, x: States, generators: list[torch.Generator] | None = None) -> States:
        """The purified items.

        Args:
            generators: of the noise, sharing the batch; default: the purifier's own, which goes on from call to call.
        """
        generators = generators or [self.generator]
        solver = self._solver(tuple(x.shape), generators, x.device)
        share = x.shape[0] // len(generators)
        eps = torch.cat([torch.randn((share, *x.shape[1:]), generator=g, device=g.device).to(x) for g in generators])
        solver.begin(self.model.process.mix(x, eps, torch.full((len(x),), self.t, device=x.device)))
        return solver.finish()

    def _solver(self, shape: tuple[int, ...], generators: list[torch.Generator], device: torch.device | None) -> Solver:
        model = self.model
        options: dict[str, Any] = {"conditioning": model.conditioning, "device": device or model.device}
        return open_solver(model.net, model.process, shape, self.sampling, generator=generators, **options)


@torch.no_grad()
def purify(
    purifier: Purifier, x: Float[Tensor, "n *item"], *, seed: int = 0, batch_size: int = 256
) -> Float[Tensor, "n *item"]:
    """``x`` purified, on the CPU; the noise of item i is a function of ``seed`` and i alone."""
    device = device_of(purifier)
    out = []
    for start in range(0, len(x), batch_size):
        part = x[start : start + batch_size].to(device)
        out.append(purifier(part, generators(seed, range(start, start + len(part)))).cpu())
    return torch.cat(out)


@dataclass(frozen=True)
class ImageAttack:
    """An attack on a classifier's input, images in [-1, 1].

    Args:
        radius: of the ball, data units (in the scale of [-1, 1], so 8/255 of the pixel range is 16/255 here). For l2
            the Euclidean radius is ``radius sqrt(d)``, as everywhere in atdm.
        search: how to look; ``draws`` is the expectation over the purifier's noise.
        seed: of the starts and of the noise.
    """

    radius: float
    search: Search = Search(steps=20, kappa=0.5)
    seed: int = 0

    def __call__(
        self, classifier: nn.Module, x: Float[Tensor, "n *dims"], y: Int[Tensor, "n"], purifier: Purifier | None = None
    ) -> Float[Tensor, "n *dims"]:
        """Images in the ball and in [-1, 1] that raise the cross-entropy, through the purifier if one is given."""
        starts = torch.Generator().manual_seed(self.seed)
        fresh = torch.Generator().manual_seed(self.seed + 1)

        def gain(delta: Tensor, draw_index: int | None) -> Tensor:
            moved = (x + delta).clamp(-1, 1)
            if purifier is not None:
                common = torch.Generator().manual_seed(self.seed + 2 + (draw_index or 0))
                moved = purifier(moved, [fresh if draw_index is None else common])
            return nn.functional.cross_entropy(classifier(moved), y, reduction="none")

        with evaluating(classifier):
            r = torch.full((len(x),), float(self.radius), device=x.device)
            return (x + self.search.run(gain, x, [starts], r).delta).clamp(-1, 1)


def auto_attack(
    classifier: nn.Module,
    x: Float[Tensor, "n c h w"],
    y: Int[Tensor, "n"],
    radius: float,
    norm: str = "linf",
    purifier: Purifier | None = None,
    steps: int = 100,
    seed: int = 0,
) -> Float[Tensor, "n c h w"]:
    """AutoAttack (Croce & Hein 2020) of torchattacks' parts: ``standard``, or ``rand`` (20 draws) through a purifier.

    ``standard`` is APGD on the cross-entropy, targeted APGD, targeted FAB (nine targets each) and Square (5,000 queries),
    one after the other on what withstood so far; ``rand`` is APGD on the cross-entropy and on the ratio of logits.

    Args:
        steps: of APGD and FAB, by default as many as in the original (``torchattacks.AutoAttack`` makes 10).

    Raises:
        UserError: torchattacks is not installed.
    """
    try:
        import torchattacks
    except ImportError as problem:
        raise UserError(
            "AutoAttack needs torchattacks. Expected it installed: pip install --no-deps torchattacks "
            "(without dependencies, as it asks for a requests from 2020)."
        ) from problem
    with torch.no_grad(), evaluating(classifier):
        classes = classifier(x[:1]).shape[1]
    model = _Unit(classifier, purifier)
    eps = radius / 2 if norm == "linf" else radius * math.sqrt(x[0].numel()) / 2
    how: dict[str, Any] = {"norm": {"linf": "Linf", "l2": "L2"}[norm], "eps": eps, "seed": seed}
    with torch.random.fork_rng(), evaluating(model):  # it seeds torch's global generator
        if purifier is None:
            targets = {"n_classes": min(classes, 10)}
            parts = [
                torchattacks.APGD(model, steps=steps, **how),
                torchattacks.APGDT(model, steps=steps, **targets, **how),
                torchattacks.FAB(model, steps=steps, multi_targeted=True, **targets, **how),
                torchattacks.Square(model, n_queries=5000, **how),
            ]
        else:
            parts = [torchattacks.APGD(model, steps=steps, loss=loss, eot_iter=20, **how) for loss in ("ce", "dlr")]
        attack = torchattacks.MultiAttack(parts)
        return attack(((x + 1) / 2).clamp(0, 1), y).detach() * 2 - 1


class _Unit(nn.Module):
    """The classifier behind the purifier for images in [0, 1], as torchattacks has them."""

    def __init__(self, classifier: nn.Module, purifier: Purifier | None) -> None:
        super().__init__()
        self.classifier, self.purifier = classifier, purifier

    def forward(self, x: Tensor) -> Tensor:
        x = 2 * x - 1
        return self.classifier(x if self.purifier is None else self.purifier(x))


@torch.no_grad()
def correct(
    classifier: nn.Module,
    x: Float[Tensor, "n *dims"],
    y: Int[Tensor, "n"],
    purifier: Purifier | None = None,
    draws: int = 1,
    seed: int = 0,
) -> Float[Tensor, "n"]:
    """1 for each right answer and 0 for others, through the purifier the mean over ``draws`` of its noise."""
    with evaluating(classifier):
        if purifier is None:
            return (classifier(x).argmax(1) == y).double().cpu()
        right = [classifier(purify(purifier, x, seed=seed + d).to(x)).argmax(1) == y for d in range(draws)]
    return torch.stack(right).double().mean(0).cpu()


def adversaries(
    classifier: nn.Module,
    purifier: Purifier,
    x: Float[Tensor, "n *dims"],
    y: Int[Tensor, "n"],
    attack: ImageAttack,
    auto_steps: int = 0,
) -> dict[str, Float[Tensor, "n *dims"]]:
    """The attacked images: ``pgd_alone`` ignores the purifier, ``pgd_adaptive`` knows it; ``auto_...`` by AutoAttack.

    Args:
        auto_steps: of :func:`auto_attack`, 100 in the original; 0 omits it.
    """
    images = {"pgd_alone": attack(classifier, x, y), "pgd_adaptive": attack(classifier, x, y, purifier)}
    if auto_steps:
        how: dict[str, Any] = {"radius": attack.radius, "norm": attack.search.norm, "steps": auto_steps}
        how["seed"] = attack.seed
        images["auto_alone"] = auto_attack(classifier, x, y, **how)
        images["auto_adaptive"] = auto_attack(classifier, x, y, **how, purifier=purifier)
    return images


def answers(
    classifier: nn.Module,
    purifier: Purifier,
    x: Float[Tensor, "n *dims"],
    y: Int[Tensor, "n"],
    images: Mapping[str, Float[Tensor, "n *dims"]],
    *,
    draws: int = 4,
    seed: int = 0,
) -> dict[str, Float[Tensor, "n"]]:
    """:func:`correct` on clean images and on those of :func:`adversaries`, alone and behind the purifier.

    ``clean_alone``, ``clean_purified``, and for each kind of attack ``_alone``, ``_unaware`` (the purifier is put behind
    the attack that ignores it) and ``_adaptive``.

    Args:
        draws: of the purifier's noise, not those the attack saw.
        seed: of the attack.
    """

    def behind(moved: Tensor) -> Tensor:
        return correct(classifier, moved, y, purifier, draws, seed + 10_007)

    values = {"clean_alone": correct(classifier, x, y), "clean_purified": behind(x)}
    for kind in dict.fromkeys(name.partition("_")[0] for name in images):
        alone = images[f"{kind}_alone"]
        values[f"{kind}_alone"], values[f"{kind}_unaware"] = correct(classifier, alone, y), behind(alone)
        values[f"{kind}_adaptive"] = behind(images[f"{kind}_adaptive"])
    return values


def robust_accuracy(
    classifier: nn.Module,
    purifier: Purifier,
    x: Float[Tensor, "n *dims"],
    y: Int[Tensor, "n"],
    attack: ImageAttack,
    *,
    draws: int = 4,
    auto_steps: int = 0,
) -> dict[str, float]:
    """Accuracies of a classifier alone and behind a purifier, clean and under attack: the means of :func:`answers`.

    ``robust``, the number to believe, is the lowest of those behind the purifier: a defence is worth no more than its
    strongest attack, see :func:`doubt_purifier`.

    Args:
        attack: radius and search; ``attack.search.draws`` above 1 for the expectation over the purifier's noise.
        draws: of the purifier's noise over which an accuracy is averaged; not those the attack saw.
        auto_steps: of :func:`auto_attack`, 100 in the original; 0 omits it.
    """
    images = adversaries(classifier, purifier, x, y, attack, auto_steps)
    right = answers(classifier, purifier, x, y, images, draws=draws, seed=attack.seed)
    return with_robust({name: values.mean().item() for name, values in right.items()})


def with_robust(values: Mapping[str, float]) -> dict[str, float]:
    """Accuracies together with ``robust``, the lowest of those under attack behind the purifier."""
    return {**values, "robust": min(v for name, v in values.items() if name.endswith(("unaware", "adaptive")))}


def doubt_purifier(values: Mapping[str, float], slack: float = 0.02) -> Finding:
    """Whether the aware attacks of :func:`robust_accuracy` are at least as strong as those that ignore the purifier.

    Args:
        slack: accuracy by which they may be weaker, for the purifier's noise.
    """
    unaware, aware = (min(v for k, v in values.items() if k.endswith(end)) for end in ("_unaware", "_adaptive"))
    return Finding.judged(
        "aware attack not weaker",
        aware <= unaware + slack,
        aware - unaware,
        f"Accuracy behind the purifier is {aware:.1%} under attacks that know it and {unaware:.1%} under attacks that do not",
        ": the purifier hides its gradients, and even the lower number overstates it.",
    )
