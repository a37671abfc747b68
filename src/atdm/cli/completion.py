"""Tab completion of a shell, by shtab: ``atdm --print_shtab=bash``."""

from __future__ import annotations

import argparse
import importlib
from typing import Any, Literal, get_args, get_origin

from ..errors import require_known
from .parser import SUMMARY, Made

PARTS = {"show": ("radius", "run")}
FILES = ("out", "data", "model", "samples", "reference", "config", "trusted", "name", "results", "run", "undefended")


def script(shell: str) -> str:
    """The script that completes commands, options, their choices and files.

    Raises:
        UserError: shtab does not know the shell.
    """
    import shtab

    require_known("shell", shell, shtab.SUPPORTED_SHELLS)
    root = argparse.ArgumentParser("atdm", description="Adversarial training for diffusion models.")
    commands = root.add_subparsers()
    for name, says in SUMMARY.items():
        command = commands.add_parser(name, help=says, description=says, add_help=False)
        if name not in PARTS:
            _copy(parser_of(name), command, shtab.FILE)
            continue
        parts = command.add_subparsers()
        for part in PARTS[name]:
            _copy(
                parser_of(name, part), parts.add_parser(part, help=says, description=says, add_help=False), shtab.FILE
            )
    return str(shtab.complete(root, shell))


def parser_of(command: str, *part: str) -> Any:
    """The parser of a command."""
    try:
        importlib.import_module(f".{command}", __package__).run([*part, Made.WORD])
    except Made as made:
        return made.parser
    raise AssertionError(f"{command} parsed nothing")


def _copy(parser: Any, into: argparse.ArgumentParser, files: Any) -> None:
    for action in parser._actions:
        names = [name for name in action.option_strings if name.startswith("--") and "shtab" not in name]
        if action.option_strings and not names:
            continue
        hint = getattr(action, "_typehint", None)
        says = str(action.help or "").replace("%", "%%")
        if action.dest == "help":
            into.add_argument(*names, action="store_true", help="show the options")
            continue
        how: dict[str, Any] = {"help": says}
        if hint is bool:
            how |= {"choices": ["true", "false"], "nargs": "?"}
        elif get_origin(hint) is Literal:
            how["choices"] = [str(choice) for choice in get_args(hint)]
        made: Any = into.add_argument(*(names or [action.dest]), **how)
        if action.dest in FILES:
            made.complete = files
