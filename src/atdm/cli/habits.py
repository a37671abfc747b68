"""What every command does alike before its work: the device, and how logs and warnings are shown."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from contextlib import ExitStack
from typing import Any

from ..errors import UserError
from ..text import Plain, plain

LIBRARY = logging.getLogger("atdm")
HIDDEN = "CUDA_VISIBLE_DEVICES"


class Habits:
    """Follows ``--device``, ``--verbose`` and ``--quiet`` until :meth:`end`, after which the process is as it was."""

    def __init__(self) -> None:
        self.undo = ExitStack()

    def begin(self, given: Any) -> None:
        """Do what the options say.

        Raises:
            UserError: the device is not there, or the options contradict each other.
        """
        self.end()
        self.undo.callback(setattr, warnings, "formatwarning", warnings.formatwarning)
        warnings.formatwarning = _sentence
        if given.get("quiet") and given.get("verbose"):
            raise UserError("Got --quiet and --verbose. Expected one of them.")
        if given.get("verbose"):
            handler = logging.StreamHandler(Plain(sys.stderr))
            handler.setFormatter(logging.Formatter("%(asctime)s %(name)s: %(message)s", "%H:%M:%S"))
            LIBRARY.addHandler(handler)
            self.undo.callback(LIBRARY.removeHandler, handler)
            self.undo.callback(LIBRARY.setLevel, LIBRARY.level)
            LIBRARY.setLevel(logging.INFO)
        if given.get("device") == "cpu":
            self.undo.callback(_hide, os.environ.get(HIDDEN))
            _hide("")  # torch has not looked yet, and sees no GPU; nor do the processes that are started
        elif given.get("device") == "cuda":
            import torch

            if not torch.cuda.is_available():
                raise UserError("There is no CUDA device here. Expected --device cpu or auto.")

    def end(self) -> None:
        """Undo it."""
        self.undo.close()


def _sentence(message: Warning | str, *_: Any, **__: Any) -> str:
    """A warning without the line of code that it comes from."""
    return f"{plain(str(message))}\n"


def _hide(value: str | None) -> None:
    if value is None:
        os.environ.pop(HIDDEN, None)
    else:
        os.environ[HIDDEN] = value


HABITS = Habits()
