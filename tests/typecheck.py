"""Annotations of the package are checked while its tests run: types, and shapes that agree within a call.

``jaxtyping.install_import_hook`` would do, but it makes each checker of a nested function again whenever the outer function
runs, and checks arguments twice: half of the time of all tests. Here hints are read once per function of the source. What a test
calls often, as the steps of a training do, is checked at its first calls and then now and then.
"""

import ast
import dataclasses
import functools
import hashlib
import inspect
import sys
import typing
from collections import Counter
from importlib.abc import MetaPathFinder
from importlib.machinery import PathFinder, SourceFileLoader
from pathlib import Path
from types import SimpleNamespace

import jaxtyping
from beartype import BeartypeConf
from beartype.door import die_if_unbearable

CONF = BeartypeConf(is_pep484_tower=True)  # an int will do where a float is asked
CACHE = Path(__file__).parent / "__pycache__" / f"checked-{hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:8]}"
FIRST, THEN = 30, 10  # calls of a function in each test that are all checked; of the later ones one in so many
# By the identity of a function's code: equal code, of other modules or with other annotations, is another function.
CALLS = Counter()  # in this test
HINTS = {}  # hints, place and name of the positional parameters that have one, and the code, which so keeps its identity; of a class its hints


def install(package):
    """Check every function and dataclass of the modules of ``package`` that are imported from now on."""
    sys.meta_path.insert(0, _Finder(package))


class _Finder(MetaPathFinder):
    def __init__(self, package):
        self.package = package

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] != self.package:
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and isinstance(spec.loader, SourceFileLoader):
            spec.loader = _Loader(spec.loader.name, spec.loader.path)
        return spec


class _Loader(SourceFileLoader):
    def get_code(self, name):
        before, sys.pycache_prefix = sys.pycache_prefix, str(CACHE)
        try:
            return super().get_code(name)
        finally:
            sys.pycache_prefix = before

    def source_to_code(self, data, path, *, _optimize=-1):
        tree = ast.parse(data, path)
        for node in [*ast.walk(tree)]:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                name = "checked" if isinstance(node, ast.FunctionDef) else "checked_class"
                decorator = ast.parse(f"__import__('typecheck').{name}", mode="eval").body
                # Innermost on functions, where annotations are; outermost on classes, behind @dataclass.
                node.decorator_list.insert(0 if name == "checked_class" else len(node.decorator_list), decorator)
                for part in ast.walk(decorator):
                    ast.copy_location(part, node)
        return compile(ast.fix_missing_locations(tree), path, "exec", dont_inherit=True, optimize=_optimize)


def checked(function):
    """The function, whose arguments and result must be what its annotations say."""
    code = function.__code__
    key = id(code)
    rest = code.co_flags & (inspect.CO_VARARGS | inspect.CO_VARKEYWORDS)

    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        if jaxtyping.config.jaxtyping_disable:
            return function(*args, **kwargs)
        if key not in HINTS:
            hints = _hints(function.__annotations__, function.__globals__)
            positional = enumerate(code.co_varnames[: code.co_argcount])
            HINTS[key] = hints, [(place, name) for place, name in positional if name in hints], code
        hints, positional, _ = HINTS[key]
        CALLS[key] = call = CALLS[key] + 1
        if not hints or (call > FIRST and call % THEN):
            return function(*args, **kwargs)
        with jaxtyping.jaxtyped("context"):
            for place, name in positional:
                if place < len(args):
                    _check(args[place], hints, name, function)
            for name, value in kwargs.items():
                _check(value, hints, name, function)
            if rest:
                _check_rest(args, kwargs, hints, function)
            result = function(*args, **kwargs)
            _check(result, hints, "return", function)
        return result

    return wrapper


def checked_class(cls):
    """The class; the fields of an instance of a dataclass must be what its annotations say."""
    if not dataclasses.is_dataclass(cls) or "__init__" not in vars(cls):
        return cls
    init = cls.__init__

    @functools.wraps(init)
    def wrapper(self, *args, **kwargs):
        init(self, *args, **kwargs)
        if jaxtyping.config.jaxtyping_disable:
            return
        if cls not in HINTS:
            spaces = [vars(sys.modules[base.__module__]) for base in cls.__mro__]
            found = {
                k: v
                for base, space in reversed([*zip(cls.__mro__, spaces, strict=True)])
                for k, v in _own(base, space).items()
            }
            HINTS[cls] = {f.name: found[f.name] for f in dataclasses.fields(cls) if f.name in found}
        with jaxtyping.jaxtyped("context"):
            for name in HINTS[cls]:
                _check(getattr(self, name), HINTS[cls], name, cls)

    cls.__init__ = wrapper
    return cls


def _own(cls, space):
    return _hints(vars(cls).get("__annotations__", {}), space)


def _hints(annotations, space):
    """The annotations that can be read and say something."""
    hints = {}
    for name, annotation in annotations.items():
        try:
            hint = typing.get_type_hints(
                SimpleNamespace(__annotations__={"x": annotation}), space, include_extras=True
            )["x"]
        except Exception:  # of a name that only type checkers import
            continue
        if hint is not typing.Any and hint is not object:
            hints[name] = hint
    return hints


def _check(value, hints, name, owner):
    hint = hints.get(name)
    if hint is None or type(value) is hint:
        return
    try:
        die_if_unbearable(value, hint, conf=CONF)
    except Exception as problem:
        problem.add_note(f"{owner.__module__}.{owner.__qualname__}: {name}")
        raise


def _check_rest(args, kwargs, hints, function):
    code = function.__code__
    named = code.co_argcount + code.co_kwonlyargcount
    rest = iter(code.co_varnames[named:])
    if code.co_flags & inspect.CO_VARARGS:
        name = next(rest)
        for value in args[code.co_argcount :]:
            _check(value, hints, name, function)
    if code.co_flags & inspect.CO_VARKEYWORDS:
        name = next(rest)
        for key, value in kwargs.items():
            if key not in code.co_varnames[:named]:
                _check(value, hints, name, function)
