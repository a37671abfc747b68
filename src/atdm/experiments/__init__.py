"""Published results and their counterparts here: one module per experiment. Nothing heavy is imported to list them."""

from __future__ import annotations

import re
from importlib import import_module
from typing import Any, NamedTuple

from ..errors import unknown

SCALES = {
    "smoke": "seconds: everything runs, nothing is learned",
    "cpu": "minutes to an hour on two cores",
    "paper": "larger networks and longer training, for a GPU",
}


def by_scale(scale: str, smoke: Any, cpu: Any, paper: Any) -> Any:
    """The one for this scale."""
    choices = {"smoke": smoke, "cpu": cpu, "paper": paper}
    if scale not in choices:
        raise unknown("scale", scale, SCALES)
    return choices[scale]


class Entry(NamedTuple):
    """An experiment that ``atdm reproduce`` runs.

    Args:
        summary: one line.
        data: the data set it takes by default where another can be given; None where the experiment is about its data.
        module: in this package, where it is not called as the experiment is. It has ``jobs(scale, seeds, data)``,
            ``work(job, tell)``, which runs in a process of its own and returns an :class:`~.findings.Outcome`, and
            ``findings(scale, outcomes)``, which makes figures, tables and claims of them.
    """

    summary: str
    data: str | None = None
    module: str | None = None


DEMO = Entry("the method on toys and digits, ending in a report")  # atdm demo; no published counterpart
SUBSPACE = "subspace:"  # before data: their projection onto a subspace
BUTTERFLIES = "hub:name=huggan/smithsonian_butterflies_subset"
EXPERIMENTS: dict[str, Entry] = {
    "ray": Entry("how far the perturbation reaches for several omega, beside the DDPM ray (figure 2c)"),
    "readings": Entry(
        "what the published formulas may mean: every reading in linear theory and trained; --data: images, learned at 16x16",
        "plane and digits",
    ),
    "trajectories": Entry("a plane with noise or outliers: reverse trajectories, divergence (figure 2a)"),
    "score-field": Entry("scores against the truth, and how smooth the models are (figure 2b)"),
    "mixture": Entry("Gaussian mixtures: modes, their mass, and their spread beside its closed form"),
    "butterflies": Entry("butterfly photos on a subspace, with noise: exact error (figure 3)", BUTTERFLIES),
    "random-vs-adversarial": Entry("the same perturbation, random or adversarial (tables)"),
    "fewer-steps": Entry(
        "fewer sampling steps under three protocols, and which shows the published pattern (table)",
        "the plane and digits",
    ),
    "images": Entry(
        "CIFAR-10, CelebA, bedrooms (and ImageNet-64), clean and with noise: every published objective (tables, figure 4)",
        "the recipes' own",
    ),
    "larger": Entry("CIFAR-10 at 32x32 and CelebA at 64x64, with noise on 90 % (table)", "the recipes' own"),
    "converged": Entry("CIFAR-10 at 16x16 with noise on 90 %, trained to the end (table)", "the recipe's own"),
    "audit": Entry(
        "what atdm audit estimates beside the truth; --data: a folder that holds cifar10, celeba and bedroom", "digits"
    ),
    "memorization": Entry(
        "near-duplicates of a small training set, beside held-out images; --data: images, at 16x16",
        "digits",
        "memorize",
    ),
    "attack": Entry(
        "attacks on the sampling trajectory: damage against budget, with sanity checks; --data: images, at 16x16",
        "the plane and digits",
        "attacks",
    ),
    "purification": Entry("models as purifiers of a classifier's input, under attacks that know them and that do not"),
    "restoration": Entry(
        "training images restored by their model beside BM3D and others, and ddpm trained on them; --data: images, at 16x16",
        "digits",
    ),
    "parameterizations": Entry("the same perturbation whatever the network predicts: eps, x_0, v, score, flow, EDM"),
    "baselines": Entry("objectives of other papers on the same corruption, with the same compute", "digits and plane"),
    "replaced-pixels": Entry(
        "salt and pepper, missing pixels and patches: learning from the other pixels alone; --data: images, at 16x16",
        "CIFAR-10",
    ),
    "trusted": Entry(
        "clean items beside corrupted ones: what they are worth, and to which objective; --data: images, at 16x16",
        "digits and plane",
    ),
    "strength": Entry(
        "sweeps of lambda, omega, floor, radius and gate, late regularizers, auto; their price on clean data"
    ),
}


def entry(name: str) -> Entry:
    """The experiment of that name.

    Raises:
        UserError: there is none.
    """
    if name not in EXPERIMENTS and name != "demo":
        raise unknown("experiment", name, [*EXPERIMENTS, "all"])
    return EXPERIMENTS.get(name, DEMO)


def folder_of(name: str, data: str | None) -> str:
    """What the folder with its results is called: those of other data have one of their own."""
    return name if data is None or label_of(data) == name else f"{name}-{label_of(data)}"


def label_of(data: str) -> str:
    """A data set in a word or two, without the place where it is: ``subspace:/mnt/photos/`` is ``subspace-photos``."""
    kind, _, set_name = data.rpartition(":")
    names = [part for part in re.split(r"[/\\=]", set_name.split(",")[0]) if part and "*" not in part]
    return re.sub(r"[^\w.]+", "-", "-".join([kind, *names[-1:]])).strip("-.") or "data"


def module_of(name: str) -> Any:
    """Its module, imported."""
    return import_module(f".{entry(name).module or name.replace('-', '_')}", __name__)
