"""Checkpoints that are written beside the training: what is written, when it is waited for, and what becomes of errors."""

import threading

import pytest
import torch
from safetensors.torch import load_file

from atdm.errors import UserError
from atdm.nets import build_net
from atdm.training import checkpoint
from atdm.training.config import Settings, TrainConfig
from atdm.training.run import train
from atdm.training.train import State

CONFIG = {
    "data": "plane:n=60",
    "net": "mlp:width=8,depth=1",
    "batch_size": 8,
    "warmup": 0,
    "threads": 1,
    "save_every": 2,
}


@pytest.fixture
def state():
    torch.manual_seed(0)
    made = State.create(build_net("mlp:width=8", (3,)), Settings())
    made.step = 3
    return made


@pytest.fixture
def gate(monkeypatch):
    """Writing waits until it is opened; how many threads wait at once is kept in ``most``."""
    opened, inside, write = threading.Event(), [], checkpoint.write

    def slow(*given):
        inside.append(given[2])
        assert opened.wait(30)
        return write(*given)

    monkeypatch.setattr(checkpoint, "write", slow)
    opened.inside = inside
    return opened


def test_what_is_written_is_the_state_at_the_time_of_the_save(tmp_path, state, gate):
    before = {k: v.clone() for k, v in state.tensors().items()}
    writer = checkpoint.Writer(tmp_path, 2)
    writer.save(state)
    for parameter in state.model.parameters():  # training goes on meanwhile
        parameter.data.add_(1)
    assert checkpoint.latest(tmp_path) is None
    gate.set()
    writer.wait()
    written = load_file(checkpoint.latest(tmp_path) / "state.safetensors")
    assert written.keys() == before.keys()
    assert all(torch.equal(written[k], v) for k, v in before.items())


def test_one_is_in_flight_at_most(tmp_path, state, gate):
    writer = checkpoint.Writer(tmp_path, 2)
    writer.save(state)
    state.step = 4
    second = threading.Thread(target=writer.save, args=(state,))
    second.start()
    second.join(0.2)
    assert second.is_alive(), "the second save waits for the first"
    assert gate.inside == [3]
    gate.set()
    second.join(30)
    writer.wait()
    assert gate.inside == [3, 4]
    assert [p.name for p in sorted((tmp_path / "checkpoints").iterdir())] == ["step-00000003", "step-00000004"]


def test_an_error_is_raised_once_by_the_next_save(tmp_path, state):
    writer = checkpoint.Writer(tmp_path, 2)
    state.model.enter.weight.data.fill_(torch.nan)
    writer.save(state)
    state.step = 4
    with pytest.raises(UserError, match=r"model\.enter\.weight is not finite at step 3; not saved"):
        writer.save(state)
    state.model.enter.weight.data.fill_(0)
    writer.save(state)
    writer.wait()
    assert checkpoint.latest(tmp_path).name == "step-00000004"


def test_a_full_disk_ends_the_training_at_the_next_save(tmp_path, monkeypatch):
    def full(*_):
        raise UserError("The disk is full")

    steps = train(TrainConfig(**CONFIG, steps=20, out=str(tmp_path)))
    monkeypatch.setattr(checkpoint, "write", full)
    made = []
    with pytest.raises(UserError, match="The disk is full"):
        made += (step.index for step in steps)
    assert len(made) <= 4
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("checkpoint")]


@pytest.mark.parametrize("end", ["closed", "stopped", "last"])
def test_the_end_of_a_training_waits_for_what_is_written(tmp_path, gate, end):
    wish = threading.Event()
    steps = train(TrainConfig(**CONFIG, steps=4 if end == "last" else 50, out=str(tmp_path)), wish.is_set)
    assert next(steps).index == 1
    assert next(steps).index == 2
    assert checkpoint.latest(tmp_path) is None, "training goes on while it is written"
    threading.Timer(0.3, gate.set).start()
    if end == "closed":
        steps.close()
    else:
        if end == "stopped":
            wish.set()
        list(steps)
    assert checkpoint.latest(tmp_path).name == f"step-0000000{ {'closed': 2, 'stopped': 3, 'last': 4}[end] }"
    assert not [*tmp_path.rglob(".partial-*")]
