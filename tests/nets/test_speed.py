"""Threads by the work of a pass, and the cost of bfloat16 on this processor."""

import time

import pytest
import torch

from atdm.nets import build_net, speed
from atdm.training import run
from atdm.training.config import TrainConfig
from atdm.training.run import train
from helpers import atdm

MLP = {"data": "plane:n=60", "net": "mlp:width=16", "batch_size": 8, "steps": 2, "warmup": 0}


@pytest.fixture
def cores(monkeypatch):
    """A machine of eight cores, as far as torch says; what was asked for, in turn."""
    asked, now = [], [8]

    def choose(threads):
        asked.append(threads)
        now[0] = threads

    monkeypatch.setattr(torch, "get_num_threads", lambda: now[0])
    monkeypatch.setattr(torch, "set_num_threads", choose)
    return asked


@pytest.mark.parametrize(
    ("net", "shape", "batch", "threads"),
    [
        ("mlp", (3,), 256, 1),  # 0.02 GFLOP, the network of the plane
        ("mlp:width=512", (64,), 256, 1),  # 0.37
        ("mlp:width=1024", (64,), 256, 5),  # 1.42
        ("digits", (1, 8, 8), 64, 4),  # 1.16
        ("digits", (1, 8, 8), 1, 1),
        ("tiny", (3, 16, 16), 64, 8),  # 4.42 on 8 cores
    ],
)
def test_threads_go_with_the_work(cores, net, shape, batch, threads):
    with speed.worth(build_net(net, shape), shape, batch) as note:
        assert torch.get_num_threads() == threads
        assert (note is None) == (threads == 8)
    assert torch.get_num_threads() == 8


def test_threads_that_were_asked_for_are_taken(cores):
    with speed.worth(build_net("mlp", (3,)), (3,), 4, asked=3) as note:
        assert (torch.get_num_threads(), note) == (3, None)
    assert torch.get_num_threads() == 8


def test_a_training_says_how_many_threads_it_takes_and_gives_the_others_back(cores, tmp_path):
    told = []
    for _ in train(TrainConfig(**MLP, out=str(tmp_path / "few")), notify=told.append):
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 8
    assert [note for note in told if note.startswith("1 of 8 threads: ")]
    told.clear()
    for _ in train(TrainConfig(**MLP, out=str(tmp_path / "asked"), threads=4), notify=told.append):
        assert torch.get_num_threads() == 4
    assert not [note for note in told if "threads" in note]


def test_sampling_says_so_too(cores, capsys, tmp_path):
    for _ in train(TrainConfig(**MLP, out=str(tmp_path / "run"))):
        pass
    words = ["sample", str(tmp_path / "run"), "--n", "4", "--sampling_steps", "2", "--out", str(tmp_path / "drawn.npz")]
    assert "1 of 8 threads" in atdm(capsys, *words)[2]
    cores.clear()
    assert "threads" not in atdm(capsys, *words, "--threads", "2")[2]
    assert cores == [2, 8]
    assert "threads is -1" in atdm(capsys, *words, "--threads", "-1")[2]


@pytest.mark.parametrize(("net", "shape"), [("mlp", (3,)), ("digits", (1, 8, 8))])
def test_bf16_is_timed_within_half_a_second(net, shape):
    made, begin = build_net(net, shape), time.process_time()
    assert speed.bf16_slowdown(made) > 0.05
    assert time.process_time() - begin < 0.5


@pytest.mark.parametrize(
    ("times", "precision", "warned"), [(12.0, "bf16", True), (0.6, "bf16", False), (12.0, "no", False)]
)
def test_a_training_warns_of_bf16_where_it_is_slower(monkeypatch, times, precision, warned):
    monkeypatch.setattr(run, "bf16_slowdown", lambda net: times)
    note = run._precision(TrainConfig(precision=precision), build_net("mlp", (3,)), torch.device("cpu"))
    assert ("12 times as long in bfloat16" in (note or "")) is warned
