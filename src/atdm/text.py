"""Somebody else's text, such as the name of a file, where text has a meaning: on a terminal, in Markdown, in a figure."""

from __future__ import annotations

import dataclasses
import html
import re
from collections.abc import Mapping
from importlib import resources
from typing import Any

# What moves the cursor, colors, rings or turns the direction of text, and half characters of names that are no UTF-8.
CONTROL = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
PLACE = re.compile(r"(?<![\w.:/])(?:~|[A-Za-z]:)?[.]{0,2}/(?:[^\s/,;|()]+/)*")  # the folders before the name of a file


def plain(text: str) -> str:
    """Text as a terminal can show it: what controls it is written out, as in ``\\\\x1b``; lines stay lines."""
    return CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


class Plain:
    """A stream that writes text as :func:`plain` shows it.

    Args:
        file: takes it; what is meant to control the terminal goes there directly.
    """

    def __init__(self, file: Any) -> None:
        self.file = file

    def write(self, text: str) -> int:
        """Write ``text``."""
        return int(self.file.write(plain(text)) or 0)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)


def short(text: str, most: int = 80) -> str:
    """A text that is too long for a sentence without its middle: of a path the name of the file stays."""
    return text if len(text) <= most else f"{text[: most // 2 - 3]}...{text[-(most // 2) :]}"


def one_line(text: str) -> str:
    """The same with the ends of its lines written out."""
    return plain(text).replace("\n", "\\n")


def markdown(text: str) -> str:
    """Text within a line of Markdown, a table's cell among them, that starts no link, code, column or HTML."""
    return re.sub(r"([\\`|\[\]])", r"\\\1", html.escape(one_line(text), quote=False))


def cell(text: str) -> str:
    """Markdown as a cell of a table: it stays what it is, but ends neither the cell nor the line, and holds no HTML."""
    return re.sub(r"<(?=[A-Za-z/!?])", "&lt;", one_line(text).replace("|", "/"))


def code(text: str) -> str:
    """Text as code within a line of Markdown."""
    text = one_line(text).replace("|", "\\|")
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    pad = " " if text.startswith("`") or text.endswith("`") or not text.strip() else ""
    return f"{fence}{pad}{text}{pad}{fence}"


def figure(text: str) -> str:
    """Text as matplotlib shows it: no mathematics, and no name that its legends leave out."""
    return re.sub("^_", " _", plain(text)).replace("$", r"\$")


def without_folders(text: str) -> str:
    """Text without the folders of this machine; the names of files stay."""
    return PLACE.sub("", text)


def template(package: str, name: str, **options: Any) -> Any:
    """A template of jinja that lies in a package. What it names must be given.

    Args:
        options: more of its environment.
    """
    from jinja2 import Environment, StrictUndefined

    environment = Environment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, **options)
    return environment.from_string((resources.files(package) / name).read_text(encoding="utf-8"))


def dotted(values: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """Nested mappings as one, whose names have dots."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= dotted(value, f"{before}{key}.") if isinstance(value, Mapping) else {f"{before}{key}": value}
    return found


def changed(value: Any) -> str:
    """A dataclass as the call that makes it, with the fields that differ from their defaults: its ``__repr__``."""
    parts = []
    for field in dataclasses.fields(value):
        default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        if field.repr and field.init and (found := getattr(value, field.name)) != default:
            parts.append(f"{field.name}={found!r}")
    return f"{type(value).__name__}({', '.join(parts)})"
