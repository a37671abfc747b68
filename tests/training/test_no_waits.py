"""A training step reads no value of a tensor on its device: on ``meta``, which has no values, reading one raises."""

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

from atdm.diffusion.process import Process
from atdm.nets import build_net
from atdm.objective import BASELINES, KINDS, Objective, auto
from atdm.objective.perturb import ConstantRadius, Perturbation, RelativeWeight
from atdm.objective.terms import Draws
from atdm.training.config import Settings
from atdm.training.train import State
from atdm.training.update import MicroBatch, Update

SHAPE = (8, 1, 8, 8)
LINEAR = Process.linear()
AUTO = Objective(
    "robust_adv",
    LINEAR,
    ConstantRadius(0.1),
    RelativeWeight(auto.K),
    Perturbation("l2", kappa=float("inf")),
    gate=0.4,
)
LOSSES = {name: Objective(name, LINEAR) for name in KINDS} | {"auto": AUTO}
LOSSES |= {"several steps": Objective("robust_adv", LINEAR, perturbation=Perturbation(steps=3))}
LOSSES |= {"a threshold": Objective("robust_adv", LINEAR, gate=3.0)}
LOSSES |= {name: baseline(LINEAR) for name, baseline in BASELINES.items()}


class Scaler:
    """None: gradients as they are."""

    def scale(self, loss):
        return loss

    def unscale_(self, optimizer):
        pass

    def step(self, optimizer):
        optimizer.step()

    def update(self):
        pass


def elsewhere(draws):
    """All but the timesteps, which training draws on the CPU, without values."""
    more = {k: v for k, v in vars(draws).items() if k != "t" and v is not None}
    return Draws(draws.t, **{k: v.detach().to("meta").requires_grad_(v.requires_grad) for k, v in more.items()})


def step(loss, net):
    accelerator = SimpleNamespace(device=torch.device("meta"), scaler=Scaler(), no_sync=lambda model: nullcontext())
    state = State.create(net.to("meta"), Settings())
    update = Update(state.model, torch.optim.SGD(net.parameters(), 0.1), accelerator, 1.0)
    draws = loss.draw(SHAPE, "cpu", torch.Generator().manual_seed(0), torch.Generator().manual_seed(1), perturbs=True)
    levels = None if loss.levels_from is None else torch.full(SHAPE[:1], 0.2, device="meta")
    draws = elsewhere(draws)
    for replay in range(min(2, loss.replays)):
        draws = loss.next_draws(draws) if replay else draws
        terms, norm = update(loss, [MicroBatch(torch.empty(SHAPE, device="meta"), slice(None), levels)], draws, 0)
        state.average(0.9)
    return terms, norm


@pytest.mark.parametrize(
    ("name", "net"), [*((name, "mlp:width=16") for name in LOSSES), ("auto", "digits"), ("robust_adv", "digits")]
)
def test_a_step_waits_for_no_device(name, net):
    terms, norm = step(LOSSES[name], build_net(net, SHAPE[1:]))
    assert {v.device.type for v in [norm, *vars(terms).values()]} == {"meta"}


@pytest.mark.parametrize("name", ["robust_adv", "auto"])
def test_nor_do_rows_without_autocast(name):
    net = build_net("mlp:width=16", SHAPE[1:])
    net._original_forward = net.forward  # as accelerate prepares a network for mixed precision
    net.forward = net.forward
    seen = []
    handle = net.register_forward_pre_hook(lambda _, given: seen.append(len(given[0])))
    step(LOSSES[name], net)
    handle.remove()
    assert len(seen) > (3 if name == "robust_adv" else 2)


class Reads(torch.nn.Module):
    """A network whose pass needs a value, or a shape that depends on values."""

    def __init__(self, how):
        super().__init__()
        self.how, self.scale = how, torch.nn.Parameter(torch.ones(()))

    def forward(self, x, t):
        if self.how == "item":
            return x * self.scale * max(1.0, x.mean().item())
        return x * self.scale + x[x > 0].sum()


@pytest.mark.parametrize("how", ["item", "mask"])
def test_what_would_wait_is_found(how):
    with pytest.raises((RuntimeError, NotImplementedError)):
        step(LOSSES["ddpm"], Reads(how))
