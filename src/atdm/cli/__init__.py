"""The command line: one module per command. Only these and ``config`` read options; only these print."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys

from ..errors import UserError, nearest
from ..text import Plain, plain
from .common import SKIPPING, is_main
from .faults import explain, quiet_writers
from .habits import HABITS
from .parser import EXAMPLES, SUMMARY, with_examples
from .signals import STOP, end_group, end_process, end_with_parent


def main(arguments: list[str] | None = None) -> None:
    """Run ``atdm``. Exits with 0, with 2 after a mistake of the user's or of the machine, or with 130 after a signal."""
    words = sys.argv[1:] if arguments is None else arguments
    if arguments is None and "ACCELERATE_USE_CPU" in os.environ:
        from . import launch

        count = launch.wanted(dict(os.environ), launch.launcher_command())
        if count > 1:
            sys.exit(launch.start(words, count))
    end_with_parent()
    os.environ["MPLBACKEND"] = "agg"  # pictures go to files, and the backend of a notebook may not be installed here
    with contextlib.ExitStack() as stack:
        if not is_main():  # of many processes one speaks
            stack.enter_context(contextlib.redirect_stdout(stack.enter_context(open(os.devnull, "w"))))
        stack.enter_context(contextlib.redirect_stdout(Plain(sys.stdout)))
        stack.enter_context(quiet_writers())
        stack.enter_context(STOP.listening())
        stack.callback(HABITS.end)
        code = _run(words)
        grouped = code == 0 and end_group()
    if grouped and arguments is None:
        end_process()
    sys.exit(code)


def _run(words: list[str]) -> int:
    try:
        _command(words)
        sys.stdout.flush()  # here, where a reader that is gone is noticed
        return 130 if STOP() else 0
    except UserError as problem:
        return _tell(str(problem if words[0] in SKIPPING else problem.sentence), 2)
    except KeyboardInterrupt as problem:
        return _tell(str(problem) or "stopped.", 130)
    except BrokenPipeError:
        _drop_output()
        return _tell("nobody reads the output any more; it is cut short.", 0)
    except Exception as problem:
        if (sentence := explain(problem)) is None:
            raise
        _drop_output()
        return _tell(sentence, 2)


def _command(words: list[str]) -> None:
    if not words or words[0] in ("-h", "--help"):
        print(_overview())
    elif words[0] == "--version":
        from .. import __version__

        print(f"atdm {__version__}")
    elif words[0].startswith("--print_shtab"):
        from .completion import script

        print(script(words[0].partition("=")[2] or "".join(words[1:2])))
    elif words[0] in SUMMARY:
        importlib.import_module(f".{words[0]}", __name__).run(words[1:])
    else:
        raise UserError(f"Unknown command '{words[0]}'. {nearest(words[0], SUMMARY)}")


def _tell(sentence: str, code: int) -> int:
    who = "atdm" if is_main() else f"atdm (process {os.environ['RANK']})"
    with contextlib.suppress(OSError):  # a terminal that is gone
        print(f"{who}: {plain(sentence)}", file=sys.stderr)
    return code


def _drop_output() -> None:
    """Keep Python from writing again at its end what could not be written now."""
    try:
        sys.stdout.flush()
    except OSError:
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _overview() -> str:
    lines = ["usage: atdm COMMAND [options]", "", "Adversarial training for diffusion models.", "", "commands:"]
    lines += [f"  {name:<10}{what}" for name, what in SUMMARY.items()]
    lines += ["", "atdm COMMAND --help lists the options of a command; atdm --version prints the version."]
    return with_examples("\n".join(lines), [EXAMPLES["audit"][0], EXAMPLES["train"][0]]).rstrip()
