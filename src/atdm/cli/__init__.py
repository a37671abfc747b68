"""The command line: one module per command. Only these and ``config`` read options; only these print."""

from __future__ import annotations

import contextlib
import errno
import importlib
import os
import sys

from ..errors import UserError, missing, nearest
from .common import SKIPPING, SUMMARY, is_main


def main(arguments: list[str] | None = None) -> None:
    """Run ``atdm``. Exits with 0, 2 after a mistake of the user's, or 130 after Ctrl-C."""
    words = sys.argv[1:] if arguments is None else arguments
    if arguments is None and "ACCELERATE_USE_CPU" in os.environ:
        from . import launch

        count = launch.wanted(dict(os.environ), launch.launcher_command())
        if count > 1:
            sys.exit(launch.start(words, count))
    with contextlib.ExitStack() as stack:
        if not is_main():  # of many processes one speaks
            stack.enter_context(contextlib.redirect_stdout(stack.enter_context(open(os.devnull, "w"))))
        sys.exit(_run(words))


def _run(words: list[str]) -> int:
    try:
        if not words or words[0] in ("-h", "--help"):
            print(_overview())
        elif words[0] == "--version":
            from .. import __version__

            print(f"atdm {__version__}")
        elif words[0] not in SUMMARY:
            raise UserError(f"Unknown command '{words[0]}'. {nearest(words[0], SUMMARY)}")
        else:
            return importlib.import_module(f".{words[0]}", __name__).run(words[1:])
        return 0
    except UserError as problem:
        who = "atdm" if is_main() else f"atdm (process {os.environ['RANK']})"
        print(f"{who}: {problem if words[0] in SKIPPING else problem.sentence}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as problem:
        sentence = missing(problem)
        if sentence is None:
            raise
        print(f"atdm: {sentence}", file=sys.stderr)
        return 2
    except OSError as problem:
        if problem.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        where = f" ({problem.filename})" if problem.filename else ""
        print(f"atdm: The disk is full{where}. What was saved before is still there.", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("atdm: stopped.", file=sys.stderr)
        return 130


def _overview() -> str:
    lines = ["usage: atdm COMMAND [options]", "", "Adversarial training for diffusion models.", "", "commands:"]
    lines += [f"  {name:<10}{what}" for name, what in SUMMARY.items()]
    return "\n".join([*lines, "", "atdm COMMAND --help tells the options of a command; atdm --version the version."])
