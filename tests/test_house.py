"""Limits of the source: no module over 350 lines, no function over 60, no signature over 8 parameters, but for what is listed.

No module imports itself round about, not even in a function or for type checkers only. A public class has a name of its own. Tests do not
import each other.
"""

import ast
import re
from collections import defaultdict
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "atdm"
LIMITS = {"module": 350, "function": 60, "signature": 8}
# What is over a limit, and at most how far. load is public, and its parameters are the options of reading.
OVER: dict[str, dict[str, int]] = {"module": {}, "function": {}, "signature": {"data/__init__.py:load": 10}}


# Names that several classes may have, and why.
SHARED = {"Options": "each command has its own"}


def measured():
    """By limit: what the source holds, and its size."""
    found = {limit: {} for limit in LIMITS}
    for path in sorted(SOURCE.rglob("*.py")):
        name, text = str(path.relative_to(SOURCE)), path.read_text(encoding="utf-8")
        found["module"][name] = text.count("\n")
        for node in ast.walk(ast.parse(text)):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            own = f"{name}:{node.name}"
            arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            for limit, size in (
                ("function", node.end_lineno - node.lineno + 1),
                ("signature", sum(argument.arg not in ("self", "cls") for argument in arguments)),
            ):
                found[limit][own] = max(size, found[limit].get(own, 0))
    return found


@pytest.mark.parametrize("limit", LIMITS)
def test_only_what_is_listed_is_over_a_limit(limit):
    over = {name: size for name, size in measured()[limit].items() if size > LIMITS[limit]}
    listed = OVER[limit]
    assert not {name: size for name, size in over.items() if size > listed.get(name, 0)}, "split it"


def test_a_class_name_means_one_thing():
    places = defaultdict(list)
    for path in sorted(SOURCE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places[node.name].append(str(path.relative_to(SOURCE)))
    twice = {name: found for name, found in places.items() if len(found) > 1}
    assert twice.keys() - SHARED.keys() == set(), {name: twice[name] for name in twice.keys() - SHARED.keys()}
    assert twice.keys() >= SHARED.keys(), "no longer shared"


def test_no_imports_go_in_a_circle():
    grimp = pytest.importorskip("grimp")
    graph = grimp.build_graph("atdm", cache_dir=None)
    left = {module: set(graph.find_modules_directly_imported_by(module)) for module in graph.modules}
    assert len(left) > 100
    while free := {module for module, imported in left.items() if not imported & left.keys()}:
        left = {module: imported for module, imported in left.items() if module not in free}
    assert not left, "of these some import each other"


def test_tests_do_not_import_each_other():
    imports = re.compile(r"^(?:from|import) (?:tests\.)?(test_\w+)", re.MULTILINE)
    found = {f.name: imports.findall(f.read_text(encoding="utf-8")) for f in Path(__file__).parent.rglob("test_*.py")}
    assert {name: others for name, others in found.items() if {*others} - {name.removesuffix(".py")}} == {}
