"""Jobs on the machine's cores, with progress that moves while they run.

Each job runs on one thread in a process of its own. With one core, or on a GPU, jobs run one after another in this
process: starting another one takes longer than many a job.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from multiprocessing import connection
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch

Tell = Callable[[float], None]
Progress = Callable[
    [float, float, str], None
]  # hears done and all, in rough seconds of one core, and what is under way


@runtime_checkable
class Job(Protocol):
    """What can be done by itself."""

    @property
    def cost(self) -> float:
        """Seconds on one core, roughly."""
        ...


def part(tell: Tell, begin: float, end: float) -> Tell:
    """``tell`` for a piece of the work that goes from ``begin`` to ``end``."""
    return lambda share: tell(begin + (end - begin) * share)


J = TypeVar("J", bound=Job)
R = TypeVar("R")


class Stopped(Exception):
    """The work of this job is no longer wanted."""


def workers(jobs: int) -> int:
    """How many jobs run at a time."""
    return 1 if torch.cuda.is_available() else max(1, min(jobs, torch.get_num_threads(), 8))


def work_through(
    work: Callable[[J, Tell], R], jobs: Sequence[J], progress: Progress = lambda done, total, label: None
) -> list[R]:
    """Do every job; the results, in the order of the jobs.

    Args:
        work: a function of a module, ``work(job, tell)``; it calls ``tell`` with the share that is done, and often.
        progress: hears twice a second how far all of them are.

    Raises:
        Exception: the first one that a job raises; the others are then stopped.
    """
    costs = [job.cost for job in jobs]
    progress(0, sum(costs), "starting")
    if not jobs:
        return []
    many = workers(len(jobs))
    context = multiprocessing.get_context("spawn")
    # The last place stops the jobs once it is not 0.
    shares: Any = context.Array("d", len(jobs) + 1, lock=False) if many > 1 else [0.0] * (len(jobs) + 1)
    pool: Executor = (
        ProcessPoolExecutor(many, context, _enlist, (shares,))
        if many > 1
        else ThreadPoolExecutor(1, initializer=_enlist, initargs=(shares,))
    )
    try:
        results: list[Future[R]] = [pool.submit(_work, work, place, job) for place, job in enumerate(jobs)]
        waiting = set(results)
        while waiting:
            finished, waiting = wait(waiting, 0.5)
            for result in finished:
                result.result()  # a failed job ends the run at once
            busy = [str(job) for job, share in zip(jobs, shares, strict=False) if 0 < share < 1]
            progress(sum(c * s for c, s in zip(costs, shares, strict=False)), sum(costs), ", ".join(busy))
    finally:
        shares[-1] = 1.0
        pool.shutdown(wait=True, cancel_futures=True)
    return [result.result() for result in results]


_shares: Any = None  # of the jobs, in memory that the workers share


def _enlist(shares: Any) -> None:
    global _shares
    _shares = shares
    parent = multiprocessing.parent_process()
    if parent is not None:
        for number in (
            "SIGINT",
            "SIGHUP",
            "SIGUSR1",
        ):  # they reach all processes of a terminal or a job; the first ends the others
            if hasattr(signal, number):
                signal.signal(getattr(signal, number), signal.SIG_IGN)
        threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()


def _end_with(sentinel: int) -> None:
    """A process that was killed could not tell its workers to stop."""
    connection.wait([sentinel])
    os._exit(1)


def _work(work: Callable[[J, Tell], R], place: int, job: J) -> R:
    if not torch.cuda.is_available():
        torch.set_num_threads(1)

    def tell(share: float) -> None:
        if _shares[-1]:
            raise Stopped
        _shares[place] = min(max(share, _shares[place]), 1.0)

    tell(1e-9)
    outcome = work(job, tell)
    tell(1.0)
    return outcome
