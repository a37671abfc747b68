"""Jobs on the machine's cores, with progress that moves while they run.

Each job runs on one thread in a process of its own, or on a GPU of its own where there are several. With one core or one GPU
jobs run one after another in this process: starting another one takes longer than many a job. An executor takes them elsewhere.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor, wait
from multiprocessing import connection
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch

from .errors import UserError

LOG = logging.getLogger(__name__)
Tell = Callable[[float], None]
# Hears done and all, in rough seconds of one core, and what is under way.
Progress = Callable[[float, float, str], None]


@runtime_checkable
class Task(Protocol):
    """What can be done by itself."""

    @property
    def cost(self) -> float:
        """Seconds on one core, roughly."""
        ...


def part(tell: Tell, begin: float, end: float) -> Tell:
    """``tell`` for a piece of the work that goes from ``begin`` to ``end``."""
    return lambda share: tell(begin + (end - begin) * share)


J = TypeVar("J", bound=Task)
R = TypeVar("R")


class Stopped(Exception):
    """The work of this job is no longer wanted."""


def workers(jobs: int) -> int:
    """How many jobs run at a time on this machine."""
    if torch.cuda.is_available():
        return max(1, min(jobs, torch.cuda.device_count()))
    return max(1, min(jobs, torch.get_num_threads(), 8))


def work_through(
    work: Callable[[J, Tell], R],
    jobs: Sequence[J],
    progress: Progress = lambda done, total, label: None,
    executor: Executor | None = None,
) -> list[R]:
    """Do every job; the results, in the order of the jobs.

    Args:
        work: a function of a module, ``work(job, tell)``; it calls ``tell`` with the share that is done, and often.
        progress: hears twice a second how far all of them are.
        executor: where the jobs run instead, one in a process; of those only their ends are heard. It is shut down.

    Raises:
        Exception: the first one that a job raises; the others are then stopped.
    """
    costs = [job.cost for job in jobs]
    progress(0, sum(costs), "starting")
    many = workers(len(jobs))
    context = multiprocessing.get_context("spawn")
    # The last place stops the jobs once it is not 0.
    here = executor is None and many > 1
    shares: Any = context.Array("d", len(jobs) + 1, lock=False) if here else [0.0] * (len(jobs) + 1)
    pool = executor or _local(many, shares, context)
    do = _work if executor is None else _far
    results: list[Any] = []
    try:
        results += [pool.submit(do, work, index, job) for index, job in enumerate(jobs)]
        waiting = dict(zip(results, range(len(jobs)), strict=True))
        while waiting:
            finished, _ = wait(waiting, 0.5)
            for result in finished:
                if isinstance(outcome := result.result(), UserError):  # a failed job ends the run at once
                    raise outcome
                index = waiting.pop(result)
                shares[index] = 1.0
                LOG.info("done: %s", jobs[index])
            busy = [str(job) for job, share in zip(jobs, shares, strict=False) if 0 < share < 1]
            label = f"{len(waiting)} jobs left" if executor else ", ".join(busy)
            progress(sum(c * s for c, s in zip(costs, shares, strict=False)), sum(costs), label)
        return [result.result() for result in results]
    finally:
        shares[-1] = 1.0
        for result in results:
            result.cancel()
        pool.shutdown(wait=executor is None)


def _local(many: int, shares: Any, context: Any) -> Executor:
    if many == 1:
        return ThreadPoolExecutor(1, initializer=_enlist, initargs=(shares,))
    devices = None
    if torch.cuda.is_available():  # a worker takes one of them, and sees no other
        seen = os.environ.get("CUDA_VISIBLE_DEVICES")
        devices = context.SimpleQueue()
        for device in seen.split(",") if seen else map(str, range(torch.cuda.device_count())):
            devices.put(device)
    return ProcessPoolExecutor(many, context, _enlist, (shares, devices))


def _far(work: Callable[[J, Tell], R], index: int, job: J) -> R | UserError:
    """A job on another machine; sentences come back as they are, where an engine would wrap what is raised."""
    if not torch.cuda.is_available():
        torch.set_num_threads(1)
    try:
        return work(job, lambda share: None)
    except UserError as problem:
        return UserError(str(problem))


_shares: Any = None  # of the jobs, in memory that the workers share


def _enlist(shares: Any, devices: Any = None) -> None:
    global _shares
    _shares = shares
    if devices is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = devices.get()
    parent = multiprocessing.parent_process()
    if parent is not None:
        # They reach all processes of a terminal or a job; the first ends the others.
        for number in ("SIGINT", "SIGHUP", "SIGUSR1"):
            if hasattr(signal, number):
                signal.signal(getattr(signal, number), signal.SIG_IGN)
        threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()


def _end_with(sentinel: int) -> None:
    """A process that was killed could not tell its workers to stop."""
    connection.wait([sentinel])
    os._exit(1)


def _work(work: Callable[[J, Tell], R], index: int, job: J) -> R:
    if not torch.cuda.is_available():
        torch.set_num_threads(1)

    def tell(share: float) -> None:
        if _shares[-1]:
            raise Stopped
        _shares[index] = min(max(share, _shares[index]), 1.0)

    tell(1e-9)
    outcome = work(job, tell)
    tell(1.0)
    return outcome
