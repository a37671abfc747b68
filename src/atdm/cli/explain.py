"""What jsonargparse and argparse find wrong with options, in sentences."""

from __future__ import annotations

import re
from collections.abc import Collection

from ..errors import nearest
from ..text import short

KINDS = {"int": "an integer", "float": "a number", "bool": "true or false", "str": "text", "NoneType": "null"}


def explain(message: str, options: Collection[str], program: str) -> str:
    """One sentence for what the option parser found, with the nearest valid choice.

    Args:
        options: the names of all options.
        program: what to ask for ``--help``.
    """
    text = " ".join(message.split())
    if found := re.search(r"[Uu]nrecognized arguments: --([\w.\-]+)|Option '([\w.\-]+)' is not accepted", text):
        return f"Unknown option '{short(found[1] or found[2])}'. {nearest(found[1] or found[2], options)}"
    if found := re.search(r"[Uu]nrecognized arguments: ?(.*)", text):
        return f"Nothing is expected at '{short(found[1])}'. Expected options, as in --name value; {program} --help tells which."
    if found := re.search(r"arguments are required: (.*)", text):
        return f"What is missing: {found[1]}. {program} --help tells what that is."
    if found := re.search(r"argument (?:-\w/)?(--[\w.]+): expected (?:at least )?one argument", text):
        return f"The option {found[1]} is without its value. Expected {found[1]} VALUE."
    if found := re.search(r"argument (?:-\w/)?(--[\w.]+): ignored explicit argument '(.*)'", text):
        return f"The option {found[1]} takes no value, and has '{short(found[2])}'. Expected it alone."
    if found := re.search(r'Invalid option "(.*)" for --print_config', text):
        return f"The option print_config is '{short(found[1])}'. Expected it alone, or --print_config=comments."
    where = re.search(r"[Pp]arser key \"([\w.]+)\":", text)
    value = re.search(r"Given value: ?(.*)$", text) or re.search(
        r"(?:Got value:|Unable to load config|File does not exist:|Unexpected config:) ?(.*?)(?: - Parser key.*)?$",
        text,
    )
    if where is None or value is None:
        return text
    if where[1] == "config":
        return f"There is no file {short(value[1], 300)}. Expected a configuration in YAML, or the name of a recipe such as cifar10-cpu."
    choices = re.search(r"typing\.Literal\[(.*?)\]", text)
    kinds = dict.fromkeys(
        KINDS[kind] for kind in re.findall(r"<class '(\w+)'>", text.partition("Given value")[0]) if kind in KINDS
    )
    if choices:
        named = nearest(value[1], [word.strip("'") for word in choices[1].split(", ")])
    else:
        named = f"Expected {' or '.join(kinds)}." if kinds else of_names(where[1], options)
    quoted = re.fullmatch(r"'(.+)'", value[1])
    return f"The option {where[1]} is '{short(quoted[1] if quoted else value[1])}'. {named}"


def of_names(option: str, options: Collection[str]) -> str:
    """What is expected of an option that other options are parts of."""
    parts = [name for name in options if name.startswith(f"{option}.")]
    if not parts:
        return "Expected another value."
    return (
        f"Expected names with values, as in {{{parts[0].rpartition('.')[2]}: ...}}, or one of --{', --'.join(parts)}."
    )
