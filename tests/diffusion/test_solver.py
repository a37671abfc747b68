"""Solvers: copies that look ahead, gradients through every sampler, and beginnings part of the way."""

import pytest
import torch

from atdm.diffusion.sampling import evaluating, open_solver, trajectory
from atdm.diffusion.schedulers import SAMPLERS
from atdm.errors import UserError
from atdm.nets import build_net
from helpers import LINEAR, STOCHASTIC, UNRESPACED, Ideal, S, seeded


def opened(name, shape=(4, 3), steps=10, model=None, **options):
    solver = open_solver(model or Ideal(), LINEAR, shape, generator=seeded(1), sampler=name, steps=steps, **options)
    solver.begin(torch.randn(shape, generator=seeded()))
    return solver


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_fork_sees_what_will_come_and_changes_nothing(name):
    for at in (0, 4):
        solver = opened(name)
        for _ in range(at):
            solver.step()
        ahead = solver.fork().finish()
        assert solver.index == at
        assert torch.equal(solver.finish(), ahead)
    other = opened(name)
    fork = other.fork([seeded(7)])
    assert torch.equal(fork.finish(), other.finish()) == (name not in STOCHASTIC)


@pytest.mark.parametrize("name", SAMPLERS)
def test_gradients_through_the_rest_are_those_of_finite_differences(name):
    torch.manual_seed(0)
    net = build_net("mlp:width=16", (3,)).eval().double()
    solver = opened(name, model=net, steps=6)
    solver.state, solver.x = solver.state.double(), solver.x.double()
    for _ in range(2):
        with torch.no_grad():
            solver.step()

    def end(x, checkpointed):
        fork = solver.fork()
        fork.move(x)
        return fork.finish(checkpointed).square().sum()

    x = solver.x.clone().requires_grad_()
    (plain,) = torch.autograd.grad(end(x, False), x)
    (checkpointed,) = torch.autograd.grad(end(x, True), x)
    assert torch.equal(plain, checkpointed)
    towards = torch.randn(x.shape, generator=seeded(3), dtype=x.dtype)
    with torch.no_grad():
        h = 1e-3
        slope = (end(x + h * towards, False) - end(x - h * towards, False)) / (2 * h)
    assert float((plain * towards).sum()) == pytest.approx(float(slope), rel=2e-3)
    assert all(p.grad is None for p in net.parameters())


def test_checkpoints_compute_twice_and_keep_little():
    torch.manual_seed(0)
    net = build_net("mlp:width=256", (3,)).eval()
    evaluations, kept = [], []
    net.register_forward_pre_hook(lambda *_: evaluations.append(1))

    def run(checkpointed):
        evaluations.clear(), kept.clear()
        solver = opened("ddim", (64, 3), model=net)
        x = solver.x.clone().requires_grad_()
        solver.move(x)
        with torch.autograd.graph.saved_tensors_hooks(lambda v: kept.append(v.numel()) or v, lambda v: v):
            end = solver.finish(checkpointed)
        held = sum(kept)
        torch.autograd.grad(end.sum(), x)
        return len(evaluations), held

    assert run(False)[0] == 10
    (twice, little), (_, much) = run(True), run(False)
    assert twice == 20
    assert little < much / 50


@pytest.mark.parametrize("name", [name for name in SAMPLERS if name != UNRESPACED])
def test_beginning_part_of_the_way_denoises_from_there(name):
    """x_t of the Gaussian's own marginal at sigma/alpha = 1 must end as the Gaussian: every item at its own place."""
    options = {"sampler": name, "steps": 100, "start_ratio": 1.0, "generator": seeded(1)}
    solver = open_solver(Ideal(), LINEAR, (4000, 2), **options)
    t = solver.t
    assert 0.93 < float(LINEAR.sigmas[t] / LINEAR.alphas[t]) <= 1.0
    scale = float((LINEAR.alphas[t] ** 2 * S**2 + LINEAR.sigmas[t] ** 2).sqrt())
    x_t = scale * torch.randn(4000, 2, generator=seeded())
    solver.begin(x_t)
    assert torch.allclose(solver.x, x_t, atol=1e-5)
    with torch.no_grad():
        end = solver.finish()
    coarse = {"ddpm", "ddim", "euler", "euler-ancestral", "sde-dpm-solver++"}
    assert end.std() == pytest.approx(S, rel=0.06 if name in coarse else 0.02)
    if name not in STOCHASTIC:
        assert torch.allclose(end, x_t * S / scale, atol=0.15 if name in coarse else 0.05)


def test_beginning_below_the_last_step_is_told():
    with pytest.raises(UserError, match="its last is at sigma_t/alpha_t = 0\\.339"):
        open_solver(Ideal(), LINEAR, (2, 2), generator=seeded(), steps=10, start_ratio=0.01)


def test_a_hook_that_looks_ahead_is_told_of_the_solver():
    class Ahead:
        def attach(self, solver):
            self.solver, self.seen = solver, []

        def __call__(self, index, t, x):
            assert (self.solver.index, self.solver.t) == (index, t)
            self.seen.append(self.solver.fork().finish())
            return x

    hook = Ahead()
    *_, last = trajectory(Ideal(), LINEAR, (2, 3), generator=seeded(), sampler="ddpm", steps=5, hook=hook)
    assert len(hook.seen) == 5
    assert all(torch.equal(end, last.next) for end in hook.seen)


def test_evaluating_puts_every_mode_back():
    net = torch.nn.Sequential(torch.nn.Dropout(), torch.nn.Linear(2, 2).eval())
    with evaluating(net):
        assert not any(module.training for module in net.modules())
    assert (net.training, net[0].training, net[1].training) == (True, True, False)
