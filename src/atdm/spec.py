"""Specs: ``name:key=value,key=value`` builds a registered class, in Python, in recipes and on the command line alike."""

from __future__ import annotations

import dataclasses
import inspect
import math
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from .errors import UserError, nearest, require_known

T = TypeVar("T")
# Options that may be infinite: pseudo_huber is a square then, a step of an attack goes all the way.
ENDLESS = ("c", "kappa")


def parse_spec(spec: str) -> tuple[str, dict[str, str]]:
    """Split ``"gaussian:share=0.9,std=0.2"`` into ``("gaussian", {"share": "0.9", "std": "0.2"})``."""
    name, colon, rest = spec.strip().partition(":")
    options: dict[str, str] = {}
    for part in rest.split(",") if colon else []:
        key, equals, value = part.partition("=")
        if not equals or not key.strip():
            raise UserError(f"Cannot read '{part}' in '{spec}'. Expected name:key=value,key=value.")
        options[key.strip()] = value.strip()
    return name.strip(), options


def build(kind: str, spec: str, registry: Mapping[str, Callable[..., T]], **given: Any) -> T:
    """Build the ``kind`` of thing that ``spec`` names, with its options converted to the annotated types.

    Args:
        given: arguments of the maker that are no options.

    Raises:
        UserError: the name or an option is unknown, a value has the wrong type, or a required option is missing.
    """
    name, options = parse_spec(spec)
    require_known(kind, name, registry)
    maker = registry[name]
    fields = dataclasses.fields(maker) if dataclasses.is_dataclass(maker) else ()
    taken = given.keys() | {f.name for f in fields if not f.compare}  # what no comparison sees has no spelling
    parameters = {k: p for k, p in inspect.signature(maker).parameters.items() if k not in taken}
    hints = typing.get_type_hints(
        maker if dataclasses.is_dataclass(maker) or not inspect.isclass(maker) else maker.__init__
    )
    values: dict[str, Any] = {}
    for key, text in options.items():
        if key not in parameters:
            raise UserError(f"{kind.capitalize()} '{name}' has no option '{key}'. {nearest(key, parameters)}")
        where = f"option '{key}' of {kind} '{name}'"
        values[key] = _convert(text, hints.get(key, str), where)
        if isinstance(values[key], float) and not (math.isfinite(values[key]) or (values[key] > 0 and key in ENDLESS)):
            raise UserError(f"'{text}' is not a valid {where}. Expected a finite number.")
    missing = [p.name for p in parameters.values() if p.default is p.empty and p.name not in values]
    if missing:
        raise UserError(f"{kind.capitalize()} '{name}' needs {', '.join(missing)}, as in {name}:{missing[0]}=VALUE.")
    return maker(**values, **given)


def describe(name: str, thing: Any) -> str:
    """The spec that rebuilds a dataclass ``thing`` registered under ``name``."""
    pairs = [
        f"{f.name}={getattr(thing, f.name)}" for f in dataclasses.fields(thing) if getattr(thing, f.name) is not None
    ]
    return f"{name}:{','.join(pairs)}" if pairs else name


def _convert(text: str, kind: Any, where: str) -> Any:
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        if text.lower() in ("none", "null"):
            return None
        kind = next(a for a in typing.get_args(kind) if a is not type(None))
    if typing.get_origin(kind) is typing.Literal:
        if text not in typing.get_args(kind):
            raise UserError(f"'{text}' is not a valid {where}. {nearest(text, map(str, typing.get_args(kind)))}")
        return text
    if kind is bool:
        if text.lower() in ("true", "1", "yes"):
            return True
        if text.lower() in ("false", "0", "no"):
            return False
        raise UserError(f"'{text}' is not a valid {where}. Expected true or false.")
    try:
        if kind is float and "/" in text:  # 8/255, as the field writes radii
            top, _, bottom = text.partition("/")
            return float(top) / float(bottom)
        value = kind(text)
        if kind is int and not -(2**63) <= value < 2**63:
            raise ValueError("more than 63 bits")
        return value
    except (ValueError, ZeroDivisionError, OverflowError):
        article = "an integer" if kind is int else "a number"
        raise UserError(f"'{text}' is not a valid {where}. Expected {article}.") from None
