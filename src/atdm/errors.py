"""Mistakes a user can make, as sentences: what was wrong, what was expected, and the nearest valid choice."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterable

from .text import one_line


class UserError(ValueError):
    """Something the user gave cannot be used. The command line prints the sentence and exits with code 2.

    Args:
        sentence: what was wrong and what was expected.
        skipping: what ``skip_broken`` would do about it; not every command has that option.
        lines: more of it, each in a line of its own.
    """

    def __init__(self, sentence: str, skipping: str = "", lines: Iterable[str] = ()) -> None:
        super().__init__(sentence, skipping)
        self.sentence = "\n".join(map(one_line, (sentence, *lines)))

    def __str__(self) -> str:
        return " ".join(part for part in (self.sentence, self.args[1]) if part)


OPTIONAL = {  # modules of the extra "cli", and the packages that hold them
    **{name: name for name in ("accelerate", "datasets", "jinja2", "jsonargparse", "matplotlib", "rich", "scipy")},
    "torchvision": "torchvision",
    "tensorboard": "tensorboard",
    "docstring_parser": "docstring-parser",
    "sklearn": "scikit-learn",
    "ot": "POT",
    "pywt": "PyWavelets",
    "psutil": "psutil",
    "shtab": "shtab",
}


def missing(problem: ModuleNotFoundError) -> UserError | None:
    """The error for an optional package that is not installed; None for any other module."""
    package = OPTIONAL.get((problem.name or "").partition(".")[0])
    if package is None:
        return None
    return UserError(f"This needs the package {package}, which is not installed. Expected: pip install 'atdm[all]'.")


MOST_SHOWN = 16  # names in a hint


def nearest(name: str, valid: Iterable[str]) -> str:
    """A hint such as ``Did you mean 'plane'? Valid: moons, plane.`` for a misspelt ``name``; of many names the nearest few.

    Those that ``name`` is a word of, as steps of sampling_steps, come first.
    """
    choices = sorted(valid)
    longer = [choice for choice in choices if name in re.split(r"[._]", choice)]
    close = list(dict.fromkeys([*longer, *difflib.get_close_matches(name, choices, n=4, cutoff=0.4)]))[:4]
    if len(choices) > MOST_SHOWN:
        shown = close or choices[:MOST_SHOWN]
        return f"{_question(close[:3])}Valid: {', '.join(shown)} and {len(choices) - len(shown)} more."
    return f"{_question(close[:1])}Valid: {', '.join(choices)}."


def _question(close: list[str]) -> str:
    return f"Did you mean {' or '.join(repr(name) for name in close)}? " if close else ""


def unknown(kind: str, name: str, valid: Iterable[str]) -> UserError:
    """The error for a name that is not one of the ``valid`` names of its ``kind``."""
    return UserError(f"Unknown {kind} '{name}'. {nearest(name, valid)}")


def require_known(kind: str, name: str, valid: Collection[str]) -> None:
    """Refuse a name that is not one of the ``valid`` names of its ``kind`` (:class:`UserError`)."""
    if name not in valid:
        raise unknown(kind, name, valid)


def expect(ok: bool, what: str, value: object, expected: str) -> None:
    """Refuse a value.

    Args:
        ok: whether it is as expected.
        what: it is called in the sentence, as in "omega of the radius".

    Raises:
        UserError: it is not.
    """
    if not ok:
        raise UserError(f"{what} is {value}. Expected {expected}.")


def require_utf8(name: str, value: str) -> None:
    """Refuse the name of a file that is no text: weights are not read from there, and what is written down is not read back.

    Raises:
        UserError: names the option.
    """
    if any("\ud800" <= letter <= "\udfff" for letter in value):
        raise UserError(
            f"{name} is '{value}', which is no text in UTF-8. Expected another name, such as that of a link to it (ln -s)."
        )


def first_line(problem: BaseException) -> str:
    """What a problem of another library says, in a line without its full stop, and without the places of things in memory."""
    line = (str(problem).strip().splitlines() or [type(problem).__name__])[0]
    line = re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", line)
    return re.sub(r"<[^<>]*\b0x[0-9a-f]+>", "it", line).removesuffix(", but expected one of:").rstrip(".:")
