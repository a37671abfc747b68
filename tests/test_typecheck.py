"""What checks the package's annotations while its tests run finds what is wrong."""

import importlib
import sys

import pytest
import torch

import typecheck

CODE = """
from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from jaxtyping import Float, Int
from torch import Tensor

if TYPE_CHECKING:
    from nowhere import Unknown


def add(x: Float[Tensor, "n d"], y: Float[Tensor, "n d"], scale: float = 1.0) -> Float[Tensor, "n d"]:
    return scale * (x + y)


def total(x: Float[Tensor, "n d"]) -> Float[Tensor, "n"]:
    return x


def of_all(*rows: Float[Tensor, "d"], **named: int) -> int:
    return len(rows) + sum(named.values())


def outer(x):
    def inner(value: str) -> str:
        return value

    return inner(x)


def odd(x: Unknown, y: int) -> Unknown:
    return x


@contextmanager
def within(x: int) -> Iterator[int]:
    yield x


class Box:
    @property
    def size(self) -> int:
        return "large"

    @classmethod
    def make(cls, n: int) -> Box:
        return cls()


@dataclass(frozen=True)
class Base:
    x: int = 0


@dataclass(frozen=True)
class Pair(Base):
    a: Float[Tensor, "n"] = None
    b: Int[Tensor, "n"] = None
"""


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    folder = tmp_path_factory.mktemp("package")
    (folder / "annotated.py").write_text(CODE)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        patch.setattr(typecheck, "CACHE", folder / "cache")
        patch.setattr(sys, "meta_path", [*sys.meta_path])
        typecheck.install("annotated")
        yield importlib.import_module("annotated")
        del sys.modules["annotated"]
    assert not (folder / "__pycache__").exists(), "others would import what is checked"


ROWS, FLAT = torch.zeros(2, 3), torch.zeros(3)


def test_what_is_right_goes_through(package):
    assert package.add(ROWS, ROWS, 2).shape == (2, 3), "an int is a float"
    assert package.of_all(FLAT, FLAT, more=3) == 5
    assert package.outer("x") == "x"
    assert package.odd(object(), 1) is not None, "names for type checkers alone are not looked at"
    with package.within(3) as x:
        assert x == 3
    assert isinstance(package.Box.make(3), package.Box)
    assert package.Pair(1, FLAT, torch.zeros(3, dtype=torch.long)).x == 1


@pytest.mark.parametrize(
    ("name", "call"),
    {
        "an argument": lambda p: p.add(ROWS, "text"),
        "an argument by name": lambda p: p.add(ROWS, y=None),
        "a number": lambda p: p.add(ROWS, ROWS, "2"),
        "dimensions": lambda p: p.add(FLAT, FLAT),
        "a type of numbers": lambda p: p.add(ROWS, ROWS.long()),
        "shapes that disagree": lambda p: p.add(ROWS, ROWS[:1]),
        "the result": lambda p: p.total(ROWS),
        "one of many": lambda p: p.of_all(FLAT, ROWS),
        "many that disagree": lambda p: p.of_all(FLAT, FLAT[:1]),
        "one of many by name": lambda p: p.of_all(more="x"),
        "a nested function": lambda p: p.outer(3),
        "a nested function, again": lambda p: p.outer(None),
        "beside an unknown name": lambda p: p.odd(1, "y"),
        "a context": lambda p: p.within("x"),
        "a property": lambda p: p.Box().size,
        "a method": lambda p: p.Box.make("n"),
        "a field": lambda p: p.Pair(1, "a", FLAT.long()),
        "an inherited field": lambda p: p.Pair("x", FLAT, FLAT.long()),
        "fields that disagree": lambda p: p.Pair(1, FLAT, FLAT[:1].long()),
    }.items(),
)
def test_what_is_wrong_is_found(package, name, call):
    with pytest.raises(Exception, match="violates type hint") as found:
        call(package)
    assert found.value.__notes__[0].startswith("annotated."), name


def test_what_is_called_often_is_checked_now_and_then(package):
    for _ in range(typecheck.FIRST):
        package.outer("x")
    found = []
    for _ in range(2 * typecheck.THEN):
        try:
            package.outer(3)
        except Exception as problem:
            found.append(problem)
    assert len(found) == 2


def test_equal_code_with_other_annotations_is_another_function():
    """Code objects of other files are equal where text and place are; annotations are no part of them."""
    same = "def take(x{}):\n    return x"
    numbers, anything = ({}, {})
    exec(compile(same.format(": int"), "a.py", "exec"), numbers)
    exec(compile(same.format(""), "b.py", "exec"), anything)
    take_number, take = typecheck.checked(numbers["take"]), typecheck.checked(anything["take"])
    take_number(1)
    assert take("text") == "text"
    with pytest.raises(Exception, match="violates type hint"):
        take_number("text")
