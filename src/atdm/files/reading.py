"""Text that a program wrote and a person, a full disk or a crash may have changed: read, or refused in one sentence."""

from __future__ import annotations

import dataclasses
import json
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from ..errors import UserError, first_line

Kind = type | tuple[type, ...]

NAMES = {
    dict: "a mapping",
    list: "a list",
    str: "text",
    int: "an integer",
    float: "a number",
    bool: "true or false",
    type(None): "null",
}


def read_json(path: Path, wanted: Mapping[str, Kind], expected: str) -> dict[str, Any]:
    """The JSON object in a file.

    Args:
        wanted: keys it must have, and the types of their values; a float may be an integer.
        expected: what the file should be, for the sentence.

    Raises:
        UserError: it cannot be read, or is something else.
    """
    return _record(path, json.loads, wanted, expected)


def read_yaml(path: Path, wanted: Mapping[str, Kind], expected: str) -> dict[str, Any]:
    """The mapping in a YAML file; otherwise as :func:`read_json`."""
    import yaml

    def parse(text: str) -> Any:
        try:
            return yaml.safe_load(text)
        except yaml.YAMLError as problem:
            raise ValueError(" ".join(str(problem).split())) from problem

    return _record(path, parse, wanted, expected)


def read_lines(path: Path, wanted: Mapping[str, Kind], expected: str) -> list[dict[str, Any]]:
    """The JSON objects in a file with one on each line. A last line without its end was being written: it is left out.

    Raises:
        UserError: it cannot be read, or a line is something else.
    """
    lines = read_text(path, expected).split("\n")[:-1]
    found = []
    for number, line in enumerate(lines, 1):
        where = f"line {number}: "
        found.append(checked(_parsed(line, json.loads, path, expected, where), wanted, path, expected, where))
    return found


def read_text(path: Path, expected: str) -> str:
    """The text of a file in UTF-8.

    Raises:
        UserError: it cannot be read, or is none.
    """
    try:
        return path.read_bytes().decode("utf-8-sig")
    except OSError as problem:
        raise _unreadable(path, problem.strerror or first_line(problem), expected) from problem
    except UnicodeDecodeError as problem:
        raise _unreadable(path, f"it is not text in UTF-8 (byte {problem.start})", expected) from problem


def misfit(values: Mapping[str, Any], wanted: Mapping[str, Kind]) -> str | None:
    """What is wrong with the first of the ``values`` that is not of its kind; None: nothing."""
    for key, kind in wanted.items():
        kinds = kind if isinstance(kind, tuple) else (kind,)
        if key not in values:
            return f"'{key}' is missing"
        value = values[key]
        fits = type(value) in kinds or (float in kinds and type(value) is int)
        if not fits:
            return f"'{key}' is {shown(value)}, not {' or '.join(NAMES[k] for k in kinds)}"
    return None


def kinds_of(hint: Any) -> tuple[type, ...]:
    """The types of values that an annotation allows, as :func:`read_yaml` reads them: of a dataclass a mapping."""
    if get_origin(hint) is Literal:
        return tuple({type(value) for value in get_args(hint)})
    if get_origin(hint) in (Union, types.UnionType):
        return tuple(kind for each in get_args(hint) for kind in kinds_of(each))
    return (dict,) if dataclasses.is_dataclass(hint) else (hint,)


def shown(value: Any) -> str:
    """A value of a damaged file, short enough for a sentence."""
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."


def _record(path: Path, parse: Callable[[str], Any], wanted: Mapping[str, Kind], expected: str) -> dict[str, Any]:
    return checked(_parsed(read_text(path, expected), parse, path, expected), wanted, path, expected)


def _parsed(text: str, parse: Callable[[str], Any], path: Path, expected: str, where: str = "") -> Any:
    if not text.strip():
        raise _unreadable(path, f"{where}it is empty", expected)
    try:
        return parse(text)
    except (ValueError, RecursionError, OverflowError) as problem:
        raise _unreadable(path, where + first_line(problem), expected) from problem


def checked(value: Any, wanted: Mapping[str, Kind], path: Path, expected: str, where: str = "") -> dict[str, Any]:
    """What was found in a file, at ``where``: a mapping with the keys of ``wanted``, and values of their types.

    Raises:
        UserError: it is something else.
    """
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise _unreadable(path, f"{where}it holds {shown(value)}, not names with values", expected)
    if wrong := misfit(value, wanted):
        raise _unreadable(path, where + wrong, expected)
    return value


def _unreadable(path: Path, why: str, expected: str) -> UserError:
    return UserError(f"Cannot read {path}: {why}. Expected {expected}.")
