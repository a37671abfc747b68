"""Mixed precision: half precision must not change what a perturbation of a nearly clean state teaches."""

import dataclasses

import pytest
import torch

from atdm.diffusion.process import Process
from atdm.nets import build_net
from atdm.nets.precision import full_precision, half_precision
from atdm.objective import Objective
from atdm.objective.passes import too_fine
from atdm.objective.perturb import ConstantRadius, PublishedRadius
from atdm.objective.sure import Sure

SHAPE = (16, 3, 8, 8)
CPU = torch.device("cpu")


@pytest.fixture
def net():
    torch.manual_seed(0)
    made = build_net("tiny:channels=16,multipliers=1-2,head_dim=16", SHAPE[1:])
    for p in made.parameters():
        p.data += 0.02 * torch.randn_like(p)  # the last layer of a fresh network is zero
    return made


@pytest.fixture
def wrapped(monkeypatch):
    """As accelerate prepares a network: autocast inside its forward. A process has one precision, so it is forgotten afterwards."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    monkeypatch.setattr(AcceleratorState, "_shared_state", {})
    return Accelerator(mixed_precision="bf16", cpu=True).prepare_model


def gradient(loss, net, draws, x0, autocast=False, levels=None):
    net.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        terms = loss(net, x0, draws=draws, levels=levels)
    (terms.weight * terms.regularizer).mean().backward()
    return torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None])


def draws_at(loss, t):
    made = loss.draw(SHAPE, generator=torch.Generator().manual_seed(1))
    return dataclasses.replace(made, t=torch.full((SHAPE[0],), t), beta=torch.full((SHAPE[0],), 0.5))


def same(low, exact):
    agree = torch.nn.functional.cosine_similarity(low, exact, 0).item()
    return agree > 0.97 and 0.85 < (low.norm() / exact.norm()).item() < 1.15


@pytest.mark.parametrize("name", ["robust_rand", "robust_adv"])
@pytest.mark.parametrize("t", [0, 20, 90])
@pytest.mark.parametrize("inside", [False, True], ids=["around the loop", "inside the network"])
def test_the_gradient_under_autocast_is_that_of_single_precision(net, wrapped, name, t, inside):
    loss = Objective(name, Process.linear())
    draws, x0 = draws_at(loss, t), torch.randn(SHAPE).clamp(-1, 1)
    exact = gradient(loss, net, draws, x0)
    low = gradient(loss, wrapped(net) if inside else net, draws, x0, autocast=not inside)
    assert same(low, exact)


def test_without_that_half_precision_spoils_the_gradient(net, monkeypatch):
    monkeypatch.setattr("atdm.objective.passes.RESOLUTION", 0)
    loss = Objective("robust_rand", Process.linear())
    draws, x0 = draws_at(loss, 0), torch.randn(SHAPE).clamp(-1, 1)
    assert not same(gradient(loss, net, draws, x0, autocast=True), gradient(loss, net, draws, x0))


def test_only_rows_of_little_noise_are_computed_anew(net):
    process, t = Process.linear(), torch.arange(1000)
    which = too_fine(torch.bfloat16, process, t, PublishedRadius())
    assert which.tolist() == list(range(len(which)))
    assert 90 < len(which) < 120
    assert len(too_fine(torch.float16, process, t, PublishedRadius())) < 40  # three more bits
    assert too_fine(None, process, t, PublishedRadius()) is None
    assert too_fine(torch.bfloat16, process, t[500:], PublishedRadius()) is None
    by_radius = process.sigma(t[50:51]).item()
    assert too_fine(torch.bfloat16, process, t[50:51], ConstantRadius(0.5 / by_radius)) is None


def test_terms_follow_their_rows(net):
    loss = Objective("robust_rand", Process.linear(), gate=0.5)
    draws = dataclasses.replace(draws_at(loss, 0), t=torch.tensor([5, 900, 110, 30] * 4))
    x0 = torch.randn(SHAPE).clamp(-1, 1)
    exact = loss(net, x0, draws=draws)
    with torch.autocast("cpu", torch.bfloat16):
        low = loss(net, x0, draws=draws)
    assert torch.equal(low.perturbed, exact.perturbed)
    assert low.perturbed.sum() == 12
    fine = torch.tensor([True, False, False, True] * 4)
    torch.testing.assert_close(
        low.regularizer[fine], exact.regularizer[fine], rtol=1e-5, atol=0
    )  # exactly, but for stacking
    assert not torch.allclose(
        low.regularizer[~fine & low.perturbed], exact.regularizer[~fine & low.perturbed], rtol=1e-5
    )


def test_sure_divides_a_difference_by_a_thousandth(net):
    loss, levels = Sure(Process.linear()), torch.full((SHAPE[0],), 0.1)
    draws, x0 = loss.draw(SHAPE, generator=torch.Generator().manual_seed(1)), torch.randn(SHAPE).clamp(-1, 1)
    exact = gradient(loss, net, draws, x0, levels=levels)
    assert torch.equal(gradient(loss, net, draws, x0, True, levels), exact)


def test_a_prepared_network_is_as_it_was_afterwards(net, wrapped):
    assert half_precision(net, CPU) is None
    prepared = wrapped(net)
    assert half_precision(prepared, CPU) is torch.bfloat16
    x, t = torch.randn(SHAPE), torch.zeros(SHAPE[0], dtype=torch.long)
    low = prepared(x, t).sample
    with full_precision(prepared, CPU):
        exact = prepared(x, t).sample
    with pytest.raises(RuntimeError, match="size of tensor"), full_precision(prepared, CPU):
        prepared(x, torch.zeros(3, 3, 3))
    assert torch.equal(prepared(x, t).sample, low)
    assert not torch.equal(low, exact)
    with torch.autocast("cpu", torch.float16):
        assert half_precision(build_net("mlp:width=8", (2,)), CPU) is torch.float16
