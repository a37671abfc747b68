"""Parsers made of the dataclasses that they fill: an option is a field, and its sentence is the field's in the docstring."""

from __future__ import annotations

import dataclasses
import math
import os
import re
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from ..errors import UserError, nearest, require_utf8
from ..files import shown
from .explain import KINDS, explain, of_names
from .habits import HABITS

SUMMARY = {
    "train": "train a model in a run folder, or resume it",
    "sample": "draw samples from a run or any diffusers pipeline",
    "export": "write a diffusers pipeline with a model card, and upload it to the Hub",
    "evaluate": "measure samples against a reference",
    "compare": "compare measured runs, or train objectives and compare them",
    "features": "train a small feature network on clean images, for metrics offline",
    "attack": "attack the sampler of a model, and measure the damage",
    "report": "write one page over a set of models: samples, quality, attacks, memorization, cost",
    "purify": "diffuse inputs to a noise level and denoise them back",
    "restore": "denoise a data set with the model trained on it, each item at its own noise level",
    "audit": "look for noise, outliers and duplicates before training, and propose a recipe",
    "corrupt": "write a corrupted data set and its truth",
    "reproduce": "run a published experiment, or one of atdm's own, by name",
    "demo": "train on noisy toys and digits with and without atdm, and write a report",
    "bench": "measure the cost of a training step, beside diffusers' own",
    "show": "draw the perturbation radius, or the curves and samples of a run",
}
EXAMPLES = {
    "train": (
        "train --data photos --image_size 32 --epochs 50 --out runs/photos",
        "train --config cifar10-cpu --objective ddpm --out runs/plain",
    ),
    "sample": (
        "sample runs/photos --n 64 --out grid.png",
        "sample google/ddpm-cifar10-32 --sampler ddim --sampling_steps 50 --out samples.npz",
    ),
    "export": (
        "export runs/photos --out pipeline --license apache-2.0",
        "export runs/photos --out pipeline --push_to_hub me/photos --private",
    ),
    "evaluate": (
        "evaluate runs/photos --features pixels+efficientnet-lite --seeds 0,1,2 --out photos.json",
        "evaluate --samples samples.npz --data trusted/",
    ),
    "compare": (
        "compare plain.json robust.json --out table.md",
        "compare --train ddpm,auto --data digits --seeds 0,1,2",
    ),
    "features": (
        "features --data trusted/ --image_size 32 --out features.safetensors",
        "features --data digits --steps 500",
    ),
    "attack": (
        "attack runs/photos --budgets 0,0.03,0.1 --out attack",
        "attack runs/photos --attack pgd:steps=10,norm=l2 --undefended runs/plain",
    ),
    "report": (
        "report runs/plain runs/photos --out report.html",
        "report runs/plain runs/photos --steps_list 10,50,250",
    ),
    "purify": (
        "purify runs/photos --data noisy/ --noise 0.3 --out purified.png",
        "purify runs/digits --data digits --corrupt gaussian:share=1,std=0.2 --noise 0.3",
    ),
    "restore": (
        "restore photos --image_size 32 --model runs/photos --out cleaned",
        "restore digits --model runs/digits --corrupt gaussian:share=0.9,std=0.2 --out cleaned",
    ),
    "audit": ("audit photos --image_size 32", "audit digits --corrupt gaussian:share=0.6,std=0.2 --out audit"),
    "corrupt": (
        "corrupt --data photos --corrupt gaussian:share=0.9,std=0.2 --out noisy",
        "corrupt --data digits --corrupt outliers:share=0.1+jpeg:quality=20 --out noisy",
    ),
    "reproduce": ("reproduce trajectories --out reproduce", "reproduce strength --scale cpu --seeds 0,1,2"),
    "demo": ("demo", "demo --thorough --seeds 0,1,2 --out demo-thorough"),
    "bench": ("bench --net tiny --batch_size 32", "bench --net mlp:width=256 --shape 1x8x8 --baselines"),
    "show radius": ("show radius --omegas 1,2,4", "show radius --process cosine --out ray.svg"),
    "show run": ("show run runs/photos", "show run runs/photos --out curves.svg"),
}


def with_examples(text: str, examples: Sequence[str]) -> str:
    """The text of a ``--help``, which ends with commands to copy."""
    return "\n".join([text.rstrip(), "", "examples:", *(f"  atdm {example}" for example in examples), ""])


class Made(Exception):
    """A command was asked for its parser, by the one word that nobody writes."""

    WORD = "\0parser"

    def __init__(self, parser: Any) -> None:
        super().__init__()
        self.parser = parser


def make_parser(command: str, *kinds: Any) -> Any:
    """The parser of a command.

    Args:
        kinds: what has its options: dataclasses, for their fields, and functions that add some.
    """
    from jsonargparse import ArgumentParser

    class Parser(ArgumentParser):
        def parse_args(self, args: Any = None, *others: Any, **more: Any) -> Any:
            if args and args[-1] == Made.WORD:
                raise Made(self)
            try:
                given = super().parse_args(args and spell(args, self), *others, **more)
            except RecursionError:
                raise UserError("The configuration holds itself. Expected names with values.") from None
            options = options_of(self)
            for name, value in given.items():
                _require(name, value, options)
            HABITS.begin(given)
            return given

        def error(self, message: str, ex: Exception | None = None) -> NoReturn:
            raise UserError(explain(message, options_of(self), self.prog))

        def format_help(self, *formatter: Any) -> str:
            text = super().format_help(*formatter).replace(" \b", "")  # jsonargparse's, for terminals alone
            return with_examples(text, EXAMPLES[command])

    parser = Parser(prog=f"atdm {command}", description=SUMMARY[command.split()[0]], allow_abbrev=False)
    for kind in kinds:
        if dataclasses.is_dataclass(kind):
            add_fields(parser, kind)
        else:
            kind(parser)
    return parser


def _require(name: str, value: Any, options: dict[str, Any]) -> None:
    """Refuse a value that the option parser lets pass, most of which only a file of YAML can hold.

    Raises:
        UserError: says what was expected.
    """
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise UserError(f"The option {name} is {value}. Expected an integer of at most 63 bits.")
    if isinstance(value, float) and math.isnan(value):
        raise UserError(f"The option {name} is nan. Expected a number.")
    if isinstance(value, str) and "\0" in value:
        raise UserError(f"The option {name} is '{value}', which holds a zero byte. Expected text.")
    for text in value if isinstance(value, list) else [value]:
        if isinstance(text, str):
            require_utf8(f"The option {name}" if name in options else name, text)
    if value == "" and getattr(options.get(name), "default", None) != "":  # such as of a variable that is not set
        raise UserError(
            f"{'The option ' if name in options else ''}{name} is empty. Expected a value, or the command without it."
        )
    if any(option.startswith(f"{name}.") for option in options):
        raise UserError(f"The option {name} is {'null' if value is None else shown(value)}. {of_names(name, options)}")
    action = options.get(name)  # of what is given by its place there is none
    kind = getattr(action, "_typehint", type(None))
    parts = typing.get_args(kind)
    if value is None and getattr(action, "default", None) is not None and type(None) not in (kind, *parts):
        expected = f"Expected {KINDS[kind.__name__]}." if kind.__name__ in KINDS else nearest("null", map(str, parts))
        raise UserError(f"The option {name} is null. {expected}")


def positional(nargs: str | None = None, default: Any = dataclasses.MISSING) -> Any:
    """A field that is given by its place and not by its name."""
    return dataclasses.field(default=default, metadata={"nargs": nargs})


def add_fields(parser: Any, kind: Any, names: Sequence[str] | None = None, **defaults: Any) -> None:
    """Fields of a dataclass as options.

    Args:
        names: which; None: all.
        defaults: other ones than the dataclass has.
    """
    hints, says = typing.get_type_hints(kind), sentences(kind)
    for field in dataclasses.fields(kind):
        if (names is not None and field.name not in names) or f"--{field.name}" in parser._option_string_actions:
            continue
        fallback = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        default = defaults.get(field.name, fallback)
        hint, many = hints[field.name], typing.get_origin(hints[field.name]) is list
        how: dict[str, Any] = {"type": typing.get_args(hint)[0] if many else hint, "help": says[field.name]}
        nargs = field.metadata.get("nargs", "+" if many else None)
        how |= {} if nargs is None else {"nargs": nargs}
        how |= {} if default is dataclasses.MISSING else {"default": default}
        if "nargs" in field.metadata:
            parser.add_argument(field.name, **how)
        else:
            parser.add_argument(f"--{field.name}", required="default" not in how, **how)


def sentences(kind: Any) -> dict[str, str]:
    """What the docstring of a dataclass, and of those it inherits from, says of each field."""
    found: dict[str, str] = {}
    for each in reversed(kind.__mro__):
        _, _, arguments = (each.__doc__ or "").partition("Args:\n")
        for names, text in re.findall(r"^ {8}(\w[\w, ]*): (.*(?:\n {9,}.*)*)", arguments, re.MULTILINE):
            found |= dict.fromkeys(names.split(", "), " ".join(text.replace("``", "").split()))
    return found


def options_of(parser: Any) -> dict[str, Any]:
    """What each option name, without its dashes, stands for."""
    return {s[2:]: a for a in parser._actions for s in a.option_strings if s.startswith("--") and "shtab" not in s}


def spell(words: list[str], parser: Any) -> list[str]:
    """``words`` with the options as the parser spells them.

    ``-`` and ``_`` in a name are the same, an option that is true or false may stand alone, one that has a ``.name`` is that
    where its value is no file, ``~`` begins a path also where the shell does not expand it, as in ``--out=~/x``, and ``inf`` is a number.
    """
    known = {name.replace("-", "_"): (name, action) for name, action in options_of(parser).items()}
    spelled: list[str] = []
    before = None  # the option that waits for its value
    for index, word in enumerate(words):
        option, equals, value = word.partition("=")
        name, action = known.get(option[2:].replace("-", "_"), ("", None))
        if option.startswith("--") and "." in option and not name:  # jsonargparse would make it a part of a value
            parser.error(f"Unrecognized arguments: {option}")
        if not option.startswith("--") or not name:
            spelled.append(_value(word, before))
            before = None
            continue
        following = words[index + 1] if index + 1 < len(words) else ""
        said = value if equals else following
        if f"{name}.name" in known and not (said.startswith("{") or Path(said).is_file()):  # no configuration
            name = f"{name}.name"
        alone = getattr(action, "_typehint", None) is bool and following.lower() not in ("true", "false", "yes", "no")
        spelled.append(f"--{name}=true" if alone and not equals else f"--{name}{equals}{_value(value, action)}")
        before = None if equals else action
    return spelled


def _value(text: str, action: Any) -> str:
    """A value as the parser reads it: YAML writes infinity with a dot."""
    if text.lower() in ("inf", "+inf", "-inf") and "float" in str(getattr(action, "_typehint", "")):
        return text.lower().replace("inf", ".inf")
    return os.path.expanduser(text) if text.startswith("~") else text
