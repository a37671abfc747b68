"""Sharded training on two processes of a CPU: the run of whole networks, up to rounding; resumed to the bit; exported whole."""

import json
import os
import subprocess
import sys

import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file

from atdm.cli.launch import SIZES
from atdm.training import checkpoint
from helpers import atdm

pytestmark = pytest.mark.slow
DIGITS = {"data": "digits", "net": "digits", "batch_size": 16, "threads": 1, "save_every": 3, "log_with": "none"}
CODE = """
import json, sys
from atdm.errors import UserError
from atdm.training.config import ObjectiveConfig, TrainConfig

from atdm.training.run import train
for options in json.loads(sys.argv[1]):
    objective = ObjectiveConfig(options.pop("objective"))
    try:
        for _ in train(TrainConfig(**options, objective=objective)):
            pass
    except UserError as problem:
        print("refused:", problem, flush=True)
"""


def in_two(*runs):
    """What two processes print that train one run after the other."""
    environment = {k: v for k, v in os.environ.items() if k not in SIZES} | {"OMP_NUM_THREADS": "1"}
    words = [
        "-m",
        "torch.distributed.run",
        "--nproc_per_node=2",
        "--standalone",
        "--no-python",
        sys.executable,
        "-c",
        CODE,
    ]
    done = subprocess.run(
        [sys.executable, *words, json.dumps(runs)],
        capture_output=True,
        text=True,
        env=environment,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Runs of six steps: whole, sharded, sharded and stopped in between, with gradient checkpointing; and what was refused."""
    folder = tmp_path_factory.mktemp("runs")

    def run(name, steps=6, objective="ddpm", **options):
        return {**DIGITS, "out": str(folder / name), "steps": steps, "objective": objective, **options}

    said = in_two(
        run("whole"),
        run("sharded", shard=True),
        run("parts", steps=3, shard=True),
        run("parts", shard=True),
        run("changed", steps=3, shard=True),
        run("changed"),
        run("again", shard=True, gradient_checkpointing=True),
        run("attack", objective="robust_adv", shard=True),
        run("compiled", compile=True, shard=True),
    )
    return folder, said


def state(runs, name):
    return load_file(checkpoint.latest(runs[0] / name) / "state.safetensors")


@pytest.mark.parametrize("name", ["sharded", "changed", "again"])
def test_a_sharded_run_is_that_of_whole_networks(runs, name):
    whole, found = state(runs, "whole"), state(runs, name)
    assert found.keys() == whole.keys()
    assert {"model", "ema", "optimizer"} == {key.partition(".")[0] for key in whole}
    for key, value in whole.items():
        torch.testing.assert_close(found[key], value, rtol=1e-3, atol=1e-5, msg=lambda text, key=key: f"{key}: {text}")


def test_a_sharded_run_resumes_to_the_bit(runs):
    whole, found = state(runs, "sharded"), state(runs, "parts")
    assert all(torch.equal(found[key], value) for key, value in whole.items())


def test_a_sharded_run_exports_the_whole_average(runs):
    average = {k.removeprefix("ema."): v for k, v in state(runs, "sharded").items() if k.startswith("ema.")}
    pipeline = DiffusionPipeline.from_pretrained(str(runs[0] / "sharded" / "model"))
    exported = pipeline.unet.state_dict()
    assert exported.keys() == average.keys()
    assert all(torch.equal(exported[key], value) for key, value in average.items())
    assert len(pipeline(batch_size=2, num_inference_steps=2, output_type="np").images) == 2


def test_what_cannot_be_sharded_is_a_sentence(runs, tmp_path, capsys):
    assert "refused: The objective robust_adv passes several times" in runs[1]
    assert "refused: shard and compile do not go together" in runs[1]
    words = ["train", *(f"--{key}={value}" for key, value in DIGITS.items()), "--objective=ddpm", "--shard=true"]
    code, _, problem = atdm(capsys, *words, f"--out={tmp_path / 'run'}")
    assert code == 2
    assert "shard splits a network over processes, and there is one" in problem
