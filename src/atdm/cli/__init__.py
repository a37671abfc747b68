"""The command line: one module per command. Only these and ``config`` read options; only these print."""

from __future__ import annotations

import importlib
import sys

from ..errors import UserError, nearest
from .common import SUMMARY


def main(arguments: list[str] | None = None) -> None:
    """Run ``atdm``. Exits with 0, 2 after a mistake of the user's, or 130 after Ctrl-C."""
    words = sys.argv[1:] if arguments is None else arguments
    try:
        if not words or words[0] in ("-h", "--help"):
            print(_overview())
        elif words[0] == "--version":
            from .. import __version__

            print(f"atdm {__version__}")
        elif words[0] not in SUMMARY:
            raise UserError(f"Unknown command '{words[0]}'. {nearest(words[0], SUMMARY)}")
        else:
            sys.exit(importlib.import_module(f".{words[0]}", __name__).run(words[1:]))
    except UserError as problem:
        print(f"atdm: {problem}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("atdm: stopped.", file=sys.stderr)
        sys.exit(130)


def _overview() -> str:
    lines = ["usage: atdm COMMAND [options]", "", "Adversarial training for diffusion models.", "", "commands:"]
    lines += [f"  {name:<10}{what}" for name, what in SUMMARY.items()]
    return "\n".join([*lines, "", "atdm COMMAND --help tells the options of a command; atdm --version the version."])
