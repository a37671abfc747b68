"""One optimizer step and its switches: they change what a step costs, not what it does."""

import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from atdm.diffusion.model import load_pipeline
from atdm.diffusion.process import Process
from atdm.errors import UserError
from atdm.nets import build_net
from atdm.objective import Objective
from atdm.training import checkpoint, run
from atdm.training.config import ObjectiveConfig, Settings, TrainConfig
from atdm.training.log import read_log
from atdm.training.train import State, fit
from atdm.training.update import checkpoint_activations, seed_all

IMAGES = torch.randn(32, 1, 8, 8, generator=torch.Generator().manual_seed(0))
NET = "digits:channels=8,head_dim=8"


def trained(net=NET, data=IMAGES, gate=None, accelerator=None, steps=3, **switches):
    settings = Settings(steps=steps, batch_size=16, **switches)
    torch.manual_seed(0)
    state = State.create(build_net(net, tuple(data.shape[1:])), settings)
    return list(fit(Objective("robust_adv", Process.linear(), gate=gate), state, data, settings, accelerator))


def weights(steps):
    return {k: v.clone() for k, v in steps[-1].state.tensors().items()}


@pytest.mark.parametrize("gate", [None, 0.5])
def test_channels_last_is_the_same_training(gate):
    expected, last = weights(trained(gate=gate)), trained(gate=gate, channels_last=True)
    model = last[-1].state.model
    assert model.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
    for name, value in weights(last).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-3, atol=2e-4, msg=name)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_gradient_checkpointing_computes_the_same_gradients(dropout, generator):
    net = build_net(f"{NET},dropout={dropout}", (1, 8, 8)).train()
    objective = Objective("robust_adv", Process.linear())
    draws = objective.draw(IMAGES.shape, generator=generator)

    def gradients():
        passes = 0

        def count(*_):
            nonlocal passes
            passes += 1

        hook = net.down_blocks[0].resnets[0].register_forward_pre_hook(count)
        torch.manual_seed(0)
        objective(net, IMAGES, draws=draws).loss.mean().backward()
        hook.remove()
        found = [p.grad.clone() for p in net.parameters()]
        net.zero_grad(set_to_none=True)
        return found, passes

    expected, plain = gradients()
    checkpoint_activations(net)
    found, again = gradients()
    assert again == 2 * plain, "no activation was computed again"
    for got, want in zip(found, expected, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-7)


def test_gradient_checkpointing_of_a_network_without_it_is_refused():
    with pytest.raises(UserError, match="MLP has no gradient checkpointing"):
        State.create(build_net("mlp", (3,)), Settings(gradient_checkpointing=True))
    with pytest.raises(UserError, match="Linear has no gradient checkpointing"):
        checkpoint_activations(torch.nn.Linear(2, 2))


def test_a_network_that_cannot_be_compiled_is_trained_without_and_said_aloud(monkeypatch):
    import torch._inductor.config as inductor

    monkeypatch.setattr(inductor.cpp, "cxx", ("no-such-compiler",))
    monkeypatch.setattr(inductor, "force_disable_caches", True)
    torch._dynamo.reset()
    data = torch.randn(64, 3, generator=torch.Generator().manual_seed(0))
    expected = weights(trained("mlp:width=16,dropout=0.2", data))
    with pytest.warns(UserWarning, match="cannot compile this network here .*; training goes on without it") as told:
        found = weights(trained("mlp:width=16,dropout=0.2", data, compile=True))
    assert len([w for w in told if "cannot compile" in str(w.message)]) == 1
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


def test_a_mistake_is_not_taken_for_a_failure_to_compile(monkeypatch):
    """What fails without compiling too is raised as it is."""
    data = torch.randn(64, 3, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr("atdm.nets.mlp.MLP.forward", lambda self, x, t: x @ torch.ones(5, 5))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
            trained("mlp:width=16", data, compile=True)


ALIKE = """
import sys, warnings
import torch
from test_update import trained, weights
torch.set_num_threads(1)
data, gate = torch.randn(64, 3, generator=torch.Generator().manual_seed(0)), eval(sys.argv[1])
expected = weights(trained("mlp:width=16", data, gate))
warnings.filterwarnings("error", message="torch.compile cannot")
found = weights(trained("mlp:width=16", data, gate, compile=True))
for name, value in expected.items():
    torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5, msg=name)
"""


@pytest.mark.slow
@pytest.mark.parametrize("gate", [None, 0.5])
def test_a_compiled_network_trains_alike(gate):
    """In a process of its own: where types are checked as tests do, nothing can be compiled."""
    import subprocess
    import sys

    words = [sys.executable, "-c", ALIKE, str(gate)]
    done = subprocess.run(words, cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_bf16_trains_in_bf16_and_keeps_weights_in_float32(tmp_path, warm):
    """In a process of its own: accelerate fixes the precision once."""
    command = [
        "train",
        "--data",
        "plane:n=300",
        "--net",
        "mlp:width=32",
        "--steps",
        "60",
        "--batch_size",
        "32",
        "--warmup",
        "1",
        "--log_every",
        "1",
    ]
    command += ["--objective.name", "robust_adv", "--threads", "1"]
    logs = {}
    for precision in ("no", "bf16"):
        out = tmp_path / precision
        warm.succeeds([*command, "--precision", precision, "--out", out])
        logs[precision] = [line["denoise"] for line in read_log(out)]
        saved = load_file(checkpoint.latest(out) / "state.safetensors")
        assert all(v.dtype == torch.float32 for v in saved.values())
    plain, low = logs["no"], logs["bf16"]
    assert low != plain
    assert low[0] == pytest.approx(plain[0], rel=0.02)
    assert sum(low[-20:]) < 0.8 * sum(low[:20])
    assert sum(low[-20:]) == pytest.approx(sum(plain[-20:]), rel=0.1)


@pytest.mark.parametrize("switch", ["channels_last", "gradient_checkpointing"])
def test_a_resumed_run_is_the_run_that_never_stopped(tmp_path, switch):
    def options(out):
        return TrainConfig(
            out=str(out), data="digits", net=NET, steps=6, batch_size=16, save_every=3, limit=64,
            objective=ObjectiveConfig(gate=0.5), **{switch: True},
        )  # fmt: skip

    for _ in run.train(options(tmp_path / "whole")):
        pass
    count = iter(range(100))
    for _ in run.train(options(tmp_path / "parts"), stop=lambda: next(count) >= 2):
        pass
    for _ in run.train(options(tmp_path / "parts")):
        pass
    whole, parts = (load_file(checkpoint.latest(tmp_path / o) / "state.safetensors") for o in ("whole", "parts"))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    assert len(load_pipeline(tmp_path / "whole")) == 3, "the pipeline of the average opens again"


def test_seeding_is_that_of_torch():
    torch.manual_seed(7)
    expected = torch.rand(3)
    seed_all(7, torch.device("cpu"))
    assert torch.equal(torch.rand(3), expected)
