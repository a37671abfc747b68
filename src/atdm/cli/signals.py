"""What ends a command from outside: a signal, or the death of the process that started it."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

# Ctrl-C, kill, a closed terminal, and what schedulers are often set to send.
NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1")
SIGNALS = tuple(getattr(signal, name) for name in NAMES if hasattr(signal, name))
AGAIN = 1.0  # seconds within which a signal is the same wish: a launcher passes on what the terminal sent to all
PARENT = "ATDM_PARENT"  # the process that started this one as one of several
LAST = 120.0  # seconds in which a process whose parent is gone is to save


class Interrupted(KeyboardInterrupt):
    """A signal ended the command; the text says so to the user."""


class Stop:
    """Ends the command on one of the ``SIGNALS``: at once, and whatever is half-written vanishes.

    While it :attr:`waits`, the first signal is only noted: :meth:`__call__` then tells the training to save and end.
    A second signal, a second later, ends it at once.
    """

    def __init__(self) -> None:
        self.waits = False
        self.wished = ""  # the name of the signal
        self._since = 0.0

    def __call__(self) -> bool:
        return bool(self.wished)

    def wait(self, waits: bool) -> None:
        """Whether signals wait from now on.

        Raises:
            Interrupted: one has come, and none is to wait.
        """
        self.waits = waits
        if self.wished and not waits:
            raise Interrupted(f"stopped by {self.wished}.")

    @contextmanager
    def listening(self) -> Iterator[Stop]:
        """Handle the signals; one that was ignored before, as under ``nohup``, still is."""
        self.__init__()  # type: ignore[misc]
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        before = {number: signal.getsignal(number) for number in SIGNALS}
        heard = [n for n in SIGNALS if n == signal.SIGINT or before[n] is not signal.SIG_IGN]
        for number in heard:
            signal.signal(number, self._wish)
        try:
            yield self
        finally:
            for number in heard:
                signal.signal(number, before[number] or signal.SIG_DFL)

    def _wish(self, number: int, _: Any) -> None:
        if self.wished and time.monotonic() - self._since <= AGAIN:
            return
        first = not self.wished
        self.wished, self._since = signal.Signals(number).name, time.monotonic()
        if not (first and self.waits):
            raise Interrupted(f"stopped by {self.wished}.")


STOP = Stop()


def end_with_parent() -> None:
    """As one of several processes: end, as SIGTERM would end it, once the process that started them all is gone.

    Nobody else would end it: processes that wait for a lost one wait for each other.
    """
    started = os.environ.get(PARENT) or (str(os.getppid()) if "TORCHELASTIC_RUN_ID" in os.environ else "")
    if started:
        threading.Thread(target=_watch, args=(int(started),), daemon=True).start()


def end_group() -> bool:
    """Close the process group of a run that is done; whether there was one."""
    distributed = sys.modules.get("torch.distributed")
    if distributed is None or not distributed.is_available() or not distributed.is_initialized():
        return False
    distributed.destroy_process_group()
    return True


def end_process() -> NoReturn:
    """End with code 0, with all output written but no more of Python's own end: torch's threads may abort one of several processes there."""
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(LAST)
    os._exit(130)
