"""Experiments on other machines: dask with a local cluster, submitit with its processes, GPUs one a worker; kept outcomes."""

import importlib.util
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest
import torch

from atdm import executors, pool
from atdm.errors import UserError
from helpers import atdm

needs_dask = pytest.mark.skipif(not importlib.util.find_spec("distributed"), reason="atdm[dask]")
needs_slurm = pytest.mark.skipif(not importlib.util.find_spec("submitit"), reason="atdm[slurm]")


@dataclass(frozen=True)
class Task:
    value: int
    cost: float = 1.0


def square(task, tell):
    tell(0.5)
    if task.value < 0:
        raise UserError(f"{task.value} is negative. Expected more.")
    return task.value**2


def device(task, tell):
    return os.environ["CUDA_VISIBLE_DEVICES"]


@pytest.fixture
def importable(monkeypatch):
    """Where other processes find this module."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))


@pytest.fixture(scope="module")
def cluster():
    from distributed import LocalCluster

    with LocalCluster(n_workers=1, threads_per_worker=1, processes=True, dashboard_address=None) as made:
        yield made


def check(executor):
    told = []
    found = pool.work_through(square, [Task(2), Task(3)], lambda *step: told.append(step[:2]), executor)
    assert found == [4, 9]
    assert told[-1] == (2, 2)
    assert told == sorted(told)


def test_any_executor_takes_jobs():
    check(ThreadPoolExecutor(2))
    with pytest.raises(UserError, match="-1 is negative"):
        pool.work_through(square, [Task(2), Task(-1)], executor=ThreadPoolExecutor(2))


@needs_dask
def test_dask_takes_jobs(cluster, tmp_path):
    check(executors.open_executor(f"dask={cluster.scheduler_address}", tmp_path))
    with pytest.raises(UserError, match="-1 is negative"):
        pool.work_through(
            square, [Task(-1)], executor=executors.open_executor(f"dask={cluster.scheduler_address}", tmp_path)
        )


@pytest.mark.slow
@needs_dask
def test_an_experiment_on_dask_is_the_one_of_this_machine(cluster, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    words = ["reproduce", "score-field", "--scale", "smoke", "--json", "--out"]
    far = atdm(capsys, *words, str(tmp_path / "far"), "--executor", f"dask={cluster.scheduler_address}")
    here = atdm(capsys, *words, str(tmp_path / "here"))
    assert (far[0], here[0]) == (0, 0), far[2]
    names = [sorted(f.name for f in (tmp_path / where / "score-field" / "jobs").iterdir()) for where in ("far", "here")]
    assert names[0] == names[1] != []

    def outcomes(where):
        from safetensors.torch import load_file

        return [load_file(f) for f in sorted((tmp_path / where / "score-field" / "jobs").iterdir())]

    for one, other in zip(outcomes("far"), outcomes("here"), strict=True):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)


@needs_dask
def test_workers_of_several_threads_and_absent_schedulers_are_refused(tmp_path):
    from distributed import LocalCluster

    with (
        LocalCluster(n_workers=1, threads_per_worker=2, processes=False, dashboard_address=None) as made,
        pytest.raises(UserError, match="--nthreads 1"),
    ):
        executors.open_executor(f"dask={made.scheduler_address}", tmp_path)
    with pytest.raises(UserError, match="No dask scheduler answers at 'nowhere'"):
        executors.open_executor("dask=nowhere", tmp_path)


@needs_slurm
def test_submitit_takes_jobs(importable, tmp_path):
    executor = executors.open_executor("slurm:cluster=local,timeout_min=5", tmp_path)
    check(executor)
    executor.shutdown()
    with pytest.raises(RuntimeError, match="after shutdown"):
        executor.submit(square, 2)
    with pytest.raises(UserError, match="-1 is negative"):
        pool.work_through(
            square, [Task(-1)], executor=executors.open_executor("slurm:cluster=local,timeout_min=5", tmp_path)
        )


@needs_slurm
@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("slurm:partition", "Expected options as in slurm:partition=gpu"),
        ("slurm:cluster=nothing", "submitit refuses"),
        ("slurm:cluster=local,nonsense=1", "submitit refuses"),
        ("slrum", "Unknown executor 'slrum'. Valid: dask"),
    ],
)
def test_what_no_executor_is_called_is_a_sentence(tmp_path, text, told):
    with pytest.raises(UserError, match=told):
        executors.open_executor(text, tmp_path)
    assert executors.open_executor("local", tmp_path) is None


def test_each_worker_of_a_machine_with_gpus_has_one_of_them(monkeypatch, importable):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert pool.workers(5) == 2
    assert pool.workers(1) == 1
    assert {*pool.work_through(device, [Task(i) for i in range(6)])} <= {"4", "6"}
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "4,6"
