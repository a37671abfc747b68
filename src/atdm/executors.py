"""Where the jobs of an experiment run beside this machine: any executor of ``concurrent.futures``, by a spec on the command line.

``dask=tcp://HOST:PORT`` is a cluster of dask, ``slurm:partition=gpu,gpus_per_node=1`` a job of SLURM for each job, through submitit.
Their own libraries start, watch and end what runs there. Outcomes are kept in a folder that all machines must see.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Executor, Future
from importlib import import_module
from pathlib import Path
from typing import Any

from .errors import UserError, unknown

NAMES = ("local", "dask=tcp://HOST:PORT", "slurm:partition=NAME")
SHARED = ("timeout_min", "gpus_per_node", "cpus_per_task", "mem_gb", "name")  # options of submitit on any cluster
ASK = 0.5  # seconds between looks at jobs of SLURM


def open_executor(text: str, folder: Path) -> Executor | None:
    """What ``--executor`` names; None: the cores of this machine.

    Args:
        folder: on a disk that all machines see; submitit keeps its logs in it.

    Raises:
        UserError: no such executor, its library is missing, or the cluster does not answer or runs several jobs in one process.
    """
    name = text.partition("=")[0].partition(":")[0]
    if name == "local":
        return None
    if name == "dask":
        return _dask(text.partition("=")[2])
    if name == "slurm":
        return _Submitted(text.partition(":")[2], folder)
    raise unknown("executor", text, NAMES)


def _library(name: str, package: str) -> Any:
    try:
        return import_module(package)
    except ImportError as problem:
        raise UserError(
            f"--executor {name} needs the package {package}. Expected pip install 'atdm[{name}]'."
        ) from problem


def _dask(address: str) -> Executor:
    """The workers of a dask cluster, one GPU a job where they offer ``GPU`` as a resource."""
    distributed = _library("dask", "distributed")
    try:
        client = distributed.Client(address, timeout=10, set_as_default=False)
    except (OSError, ValueError) as problem:
        raise UserError(
            f"No dask scheduler answers at '{address}'. Expected the address that dask scheduler prints, as in "
            "dask=tcp://10.0.0.1:8786."
        ) from problem
    workers = client.scheduler_info(n_workers=-1)["workers"].values()
    if any(worker["nthreads"] > 1 for worker in workers):
        client.close()
        raise UserError(
            "A worker of the dask cluster has several threads, and a job seeds torch for its whole process. "
            "Expected workers started with --nthreads 1."
        )
    offered = any("GPU" in worker["resources"] for worker in workers)
    executor: Executor = client.get_executor(pure=False, **({"resources": {"GPU": 1}} if offered else {}))
    return executor


class _Submitted(Executor):
    """submitit's jobs as futures of ``concurrent.futures``.

    Args:
        options: of submitit (``SHARED``) or else of sbatch, such as ``partition=gpu,gpus_per_node=1``; ``cluster=local`` runs
            processes on this machine, to try it.
    """

    def __init__(self, options: str, folder: Path) -> None:
        submitit = _library("slurm", "submitit")
        given: dict[str, Any] = {}
        for part in filter(None, options.split(",")):
            key, equals, value = part.partition("=")
            if not equals:
                raise UserError(f"Cannot read '{part}'. Expected options as in slurm:partition=gpu,gpus_per_node=1.")
            given[key] = int(value) if value.isdecimal() else value
        cluster = given.pop("cluster", "slurm")
        named = {key if key in SHARED else f"{cluster}_{key}": value for key, value in given.items()}
        try:
            self._engine = submitit.AutoExecutor(folder / "submitit", cluster=cluster)
            self._engine.update_parameters(**{"timeout_min": 24 * 60, **named})
        except (RuntimeError, ValueError, NameError, TypeError) as problem:
            raise UserError(f"submitit refuses 'slurm:{options}': {problem}") from problem
        self._open: dict[Future[Any], Any] = {}
        self._lock = threading.Lock()
        self._ended = False
        threading.Thread(target=self._watch, daemon=True).start()

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        with self._lock:
            if self._ended:
                raise RuntimeError("cannot schedule new futures after shutdown")  # as executors of the standard library
            self._open[future] = self._engine.submit(fn, *args, **kwargs)
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        with self._lock:
            left, self._open, self._ended = self._open, {}, True
        for future, job in left.items():
            job.cancel()
            future.cancel()

    def _watch(self) -> None:
        while not self._ended:
            with self._lock:
                done = {future: job for future, job in self._open.items() if job.done()}
                self._open = {future: job for future, job in self._open.items() if future not in done}
            for future, job in done.items():
                if not future.set_running_or_notify_cancel():
                    continue
                try:
                    future.set_result(job.result())
                except Exception as problem:
                    future.set_exception(problem)
            time.sleep(ASK)
