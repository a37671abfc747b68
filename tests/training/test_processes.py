"""Two processes as one: training, resuming, sampling and measuring under ``accelerate launch``."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from atdm.cli import launch, main
from atdm.diffusion.model import load_pipeline
from atdm.training import checkpoint, run
from atdm.training.config import ObjectiveConfig, TrainConfig
from atdm.training.log import read_log

OPTIONS = {"data": "plane:n=300", "net": "mlp:width=32", "batch_size": 32, "threads": 1, "save_every": 3}
ROBUST = ObjectiveConfig("robust_adv")  # which may grow in steps
SAMPLING = ["--n", "700", "--sampling_steps", "5", "--batch_size", "170"]  # five batches


ACCELERATE = ["-m", "accelerate.commands.launch", "--quiet", "--cpu", "--num_processes", "2"]
ACCELERATE += ["--main_process_port", "0", "-m", "atdm"]


def launched(words):
    environment = {k: v for k, v in os.environ.items() if k not in launch.SIZES} | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *ACCELERATE, *words], capture_output=True, text=True, env=environment, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def train_here(out, steps):
    for _ in run.train(TrainConfig(**OPTIONS, objective=ROBUST, out=str(out), steps=steps)):
        pass
    return out


def training(out, steps):
    words = [f"--{key}={value}" for key, value in OPTIONS.items()]
    return ["train", *words, "--objective=robust_adv", "--steps", str(steps), "--out", str(out), "--json"]


def weights(out):
    return load_file(checkpoint.latest(out) / "state.safetensors")


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    return train_here(tmp_path_factory.mktemp("runs") / "one", 6)


def test_two_processes_train_like_one_and_resume_exactly(one, tmp_path, warm):
    assert json.loads(launched(training(tmp_path / "two", 6)))["step"] == 6, "the main process alone speaks"
    shutil.copytree(tmp_path / "two", tmp_path / "parts")  # as if killed after step 3
    shutil.rmtree(tmp_path / "parts" / "checkpoints" / "step-00000006")
    shutil.rmtree(tmp_path / "parts" / "model")
    warm.succeeds(training(tmp_path / "parts", 6), ranks=2)
    alone, two, parts = weights(one), weights(tmp_path / "two"), weights(tmp_path / "parts")
    for name in alone:
        torch.testing.assert_close(alone[name], two[name], rtol=1e-4, atol=1e-5, msg=name)
        assert torch.equal(two[name], parts[name]), name
    # The log is of the main process, which saw half of each batch: there really were two.
    assert read_log(tmp_path / "two")[-1]["loss"] != pytest.approx(read_log(one)[-1]["loss"], rel=1e-6)
    assert sorted(f.name for f in (tmp_path / "two" / "checkpoints").iterdir()) == ["step-00000003", "step-00000006"]


def test_samples_and_metrics_of_two_processes_are_those_of_one(one, tmp_path, capsys, warm):
    told = warm.succeeds(["sample", one, *SAMPLING, "--out", tmp_path / "two.npz", "--json"], ranks=2)
    assert json.loads(told)["n"] == 700
    measured = json.loads(warm.succeeds(["evaluate", one, *SAMPLING, "--json"], ranks=2))
    for words in (
        ["sample", str(one), *SAMPLING, "--out", str(tmp_path / "one.npz")],
        ["evaluate", str(one), *SAMPLING],
    ):
        with pytest.raises(SystemExit):
            main([*words, "--json"])
    with np.load(tmp_path / "one.npz") as alone, np.load(tmp_path / "two.npz") as two:
        assert np.isfinite(alone["samples"]).all()
        assert np.array_equal(alone["samples"], two["samples"])
    assert measured["rows"] == json.loads(capsys.readouterr().out.splitlines()[-1])["rows"]


class Accelerator:
    """One process of several, whose sum is what it has: shows which rows are its own."""

    device = torch.device("cpu")

    def __init__(self, process_index, num_processes):
        self.process_index, self.num_processes = process_index, num_processes

    def reduce(self, x, how):
        assert how == "sum"
        return x


@pytest.mark.parametrize("world", [2, 3, 7])
def test_each_sample_is_drawn_by_one_process(one, world):
    network, process, _ = load_pipeline(one)
    from atdm.diffusion.sampling import sample

    def draw(accelerator=None):
        options = {"batch_size": 170, "steps": 5, "sampler": "ddpm", "seed": 1}
        return sample(network, process, 700, (3,), accelerator=accelerator, **options)

    parts = torch.stack([draw(Accelerator(rank, world)) for rank in range(world)])
    assert ((parts != 0).any(2).sum(0) == 1).all()
    assert torch.equal(parts.sum(0), draw())


ASKED = {"ACCELERATE_USE_CPU": "True", "MASTER_PORT": "29500"}


@pytest.mark.parametrize(
    ("environment", "launcher", "count"),
    [
        (ASKED, "accelerate launch --num_processes 2 --cpu atdm train", 2),
        (ASKED, "accelerate launch --cpu --num-processes=3 -m atdm train", 3),
        (ASKED, "accelerate launch --config_file two.yaml atdm train", 1),
        (ASKED, "accelerate launch --cpu --num_processes 4 --num_machines 2 atdm", 1),
        (ASKED | {"WORLD_SIZE": "2"}, "accelerate launch --num_processes 2 --cpu atdm train", 1),
        (ASKED | {"OMPI_COMM_WORLD_SIZE": "2"}, "accelerate launch --num_processes 2 --cpu atdm train", 1),
        ({"ACCELERATE_USE_CPU": "True"}, "bash", 1),
        ({"ACCELERATE_USE_CPU": "False", "MASTER_PORT": "29500"}, "accelerate launch --num_processes 2 atdm", 1),
        ({}, "bash", 1),
    ],
)
def test_processes_are_started_where_accelerate_starts_one(environment, launcher, count):
    assert launch.wanted(environment, launcher.split()) == count


def test_a_mistake_ends_all_processes_with_its_code(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr("signal.signal", lambda *_: None)
    assert launch.start(["train", "--data", "plain", "--out", str(tmp_path / "x")], 2) == 2
    told = capfd.readouterr().err
    assert "atdm: " in told
    assert "Did you mean 'plane'" in told
    assert "Traceback" not in told
    assert not (tmp_path / "x").exists()


ELASTIC = {"WORLD_SIZE": "2", "TORCHELASTIC_MAX_RESTARTS": "3", "TORCHELASTIC_USE_AGENT_STORE": "True"}


def test_restarts_that_may_wait_for_a_process_that_has_ended_are_said_before():
    [note] = run.restart_notes(ELASTIC)
    assert "export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1" in note


@pytest.mark.parametrize(
    ("name", "value"),
    [("WORLD_SIZE", "1"), ("TORCHELASTIC_MAX_RESTARTS", "0"), ("TORCHELASTIC_USE_AGENT_STORE", "False")],
)
def test_other_launches_are_not_warned(name, value):
    assert not run.restart_notes(ELASTIC | {name: value})
    assert not run.restart_notes({k: v for k, v in ELASTIC.items() if k != name})
