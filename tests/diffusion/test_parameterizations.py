"""One rule for every parameterization: conversions, the same regularizer, and the optimum of docs/method.md."""

import itertools
from dataclasses import replace

import jaxtyping
import pytest
import torch
from torch import nn

from atdm.diffusion.predictions import PREDICTIONS
from atdm.diffusion.process import PROCESSES, Process
from atdm.errors import UserError
from atdm.objective import KINDS, Draws, Objective
from atdm.objective.perturb import ConstantRadius, ConstantWeight, Perturbation


def written(process, prediction):
    """``process`` in float64, for a network that predicts ``prediction``."""
    return replace(process, prediction=prediction, alphas=process.alphas.double(), sigmas=process.sigmas.double())


TABLES = {"linear": Process.linear(), "flow": Process.flow(shift=3.0), "edm": Process.edm()}
EVERY = [
    pytest.param(written(p, name), id=f"{k}-{name}") for (k, p), name in itertools.product(TABLES.items(), PREDICTIONS)
]


def network(process, t, d=5):
    """A nonlinear D(x), the same for every ``process``, written in its words; for states that are all at the timestep t."""
    torch.manual_seed(7)
    denoiser = nn.Sequential(nn.Linear(d, 16), nn.Tanh(), nn.Linear(16, d)).double()

    def model(x, time):
        rows, denoised = t.expand(len(x)), denoiser(x)
        eps = (x - process.alpha(rows, x) * denoised) / process.sigma(rows, x)
        return process.target(denoised, eps, rows)

    return model


def inner(process, n, generator):
    """Timesteps where neither alpha nor sigma is so small that dividing by it loses digits."""
    return torch.randint(process.steps // 20, process.steps - process.steps // 20, (n,), generator=generator)


@pytest.mark.parametrize("process", EVERY)
def test_every_conversion_inverts_the_mixture(process, generator):
    x0, eps, delta = torch.randn(3, 64, 4, generator=generator, dtype=torch.float64)
    t = inner(process, 64, generator)
    x_t = process.mix(x0, eps, t)
    output = process.target(x0, eps, t)
    torch.testing.assert_close(process.to_eps(output, x_t, t), eps)
    torch.testing.assert_close(process.to_x0(output, x_t, t), x0)
    torch.testing.assert_close(process.denoised(eps, x_t, t), x0)
    # The push: B_t delta in the output is delta in eps, and nothing in x_0.
    moved = output + process.target(torch.zeros_like(x0), delta, t)
    x_moved = x_t + process.sigma(t, x_t) * delta
    torch.testing.assert_close(process.to_eps(moved, x_moved, t), eps + delta)
    torch.testing.assert_close(process.to_x0(moved, x_moved, t), x0)


@pytest.mark.parametrize("process", EVERY)
def test_weights_are_the_units_of_the_denoising_term(process, generator):
    """``output_weight |error of out|^2 = eps_weight |error of eps|^2``."""
    x_t, error = torch.randn(2, 64, 4, generator=generator, dtype=torch.float64)
    t = inner(process, 64, generator)
    in_eps = process.to_eps(error, x_t, t) - process.to_eps(torch.zeros_like(x_t), x_t, t)
    ours = process.output_weight(t) * error.square().sum(1)
    torch.testing.assert_close(ours, process.eps_weight(t) * in_eps.square().sum(1))
    if process.prediction == "score":  # lambda(t) = sigma_t^2 of Song 2021, eq. 7
        torch.testing.assert_close(process.output_weight(t), process.sigma(t).square())


def test_targets_are_those_of_the_papers(generator):
    x0, eps = torch.randn(2, 32, 4, generator=generator, dtype=torch.float64)
    for name, expected in {
        "epsilon": lambda a, s: eps,
        "sample": lambda a, s: x0,
        "v_prediction": lambda a, s: a * eps - s * x0,
        "score": lambda a, s: -eps / s,
        "flow": lambda a, s: eps - x0,
    }.items():
        process = written(Process.linear(), name)
        t = inner(process, 32, generator)
        found = process.target(x0, eps, t)
        torch.testing.assert_close(found, expected(process.alpha(t, x0), process.sigma(t, x0)))


def test_edm_is_the_preconditioning_of_karras(generator):
    """Karras 2022, table 1: c_skip, c_out, c_in, c_noise; the loss 1/c_out^2 |D - x_0|^2; log-normal noise levels."""
    data = 0.5
    process = written(Process.edm(sigma_data=data), "edm")
    t = inner(process, 64, generator)
    x0, eps, out = torch.randn(3, 64, 4, generator=generator, dtype=torch.float64)
    level = process.ratio(t)[:, None]
    c_in, c_skip = (level**2 + data**2).rsqrt(), data**2 / (level**2 + data**2)
    c_out = level * data * c_in
    x = x0 + level * eps
    torch.testing.assert_close(process.mix(x0, eps, t), c_in * x, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(process.to_x0(out, c_in * x, t), c_skip * x + c_out * out, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(process.time(t), (level.log() / 4).squeeze(1), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(process.target(x0, eps, t), (x0 - c_skip * x) / c_out, rtol=1e-4, atol=1e-5)
    assert process.ratio(torch.tensor([0, 999])).tolist() == pytest.approx([0.002, 80.0], rel=1e-4)
    drawn = process.ratio(process.draw(100_000, generator)).log()
    assert drawn.mean() == pytest.approx(-1.2, abs=0.02)
    assert drawn.std() == pytest.approx(1.2, abs=0.02)
    assert process.share_below(0.5) == pytest.approx((drawn < torch.tensor(0.5).log()).double().mean().item(), abs=0.01)


@pytest.mark.parametrize("gate", [None, 0.5])
@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("name", sorted(set(KINDS) - {"ddpm"}))
def test_the_same_denoiser_has_the_same_regularizer(name, table, gate, generator):
    x0 = torch.randn(16, 5, generator=generator, dtype=torch.float64)
    t = inner(TABLES[table], 16, generator)
    if gate:
        t = t // 2
    draws = Objective(name, TABLES[table], gate=gate).draw(x0.shape, generator=generator)
    draws = Draws(t, draws.noise.double(), draws.beta.double(), draws.start.double())
    found = {}
    for prediction in PREDICTIONS:
        process = written(TABLES[table], prediction)
        objective, rows = Objective(name, process, gate=gate), [slice(i, i + 1) for i in range(16)]
        terms = [objective(network(process, t[i]), x0[i], draws=draws[i]) for i in rows]
        names = ("regularizer", "weight", "denoise", "perturbed")
        found[prediction] = {k: torch.cat([getattr(term, k) for term in terms]) for k in names}
        found[prediction]["eps_weight"] = process.eps_weight(t)
    reference = found["epsilon"]
    assert reference["perturbed"].any()
    for prediction, values in found.items():
        torch.testing.assert_close(
            values["regularizer"], reference["regularizer"], rtol=1e-8, atol=1e-12, msg=prediction
        )
        torch.testing.assert_close(
            values["denoise"] / values["eps_weight"], reference["denoise"], rtol=1e-8, atol=1e-12
        )
        torch.testing.assert_close(values["weight"] / values["eps_weight"], reference["weight"], rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("process", EVERY)
@pytest.mark.parametrize("name", ["robust_rand", "robust_adv"])
def test_linear_gaussian_optimum(name, process):
    """a* = sigma (1 + lambda c) / (v + lambda c sigma^2), exactly: rows with the exact second moments, and one Newton step."""
    s, r, lam = 0.4, 0.8, 2.0
    signs = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=3)), dtype=torch.float64)
    x0, noise, start = signs.T[..., None] * torch.tensor([s, 1.0, 3**-0.5], dtype=torch.float64)[:, None, None]
    c = r**2 / 3 if name == "robust_rand" else r**2  # uniform in [-r, r], and its corners
    objective = Objective(name, process, ConstantRadius(r), ConstantWeight(lam), Perturbation("linf", 1, float("inf")))
    for t in (process.steps // 10, process.steps // 2, process.steps * 4 // 5):
        rows = torch.full((8,), t)
        draws = Draws(rows, noise, torch.ones(8, dtype=torch.float64), start)
        gain = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
        loss = objective(lambda x, time, gain=gain: gain * x, x0, draws=draws).loss.mean()
        (slope,) = torch.autograd.grad(loss, gain, create_graph=True)
        (curvature,) = torch.autograd.grad(slope, gain)
        best = (gain - slope / curvature).detach()  # of the output; in eps:
        one = torch.ones(1, 1, dtype=torch.float64)
        a = process.to_eps(best * one, one, rows[:1]).item()
        alpha, sigma = process.alphas[t].item(), process.sigmas[t].item()
        v = alpha**2 * s**2 + sigma**2
        assert a == pytest.approx(sigma * (1 + lam * c) / (v + lam * c * sigma**2), rel=1e-6)
        assert a != pytest.approx(sigma / v, rel=1e-5), "the plain optimum"


@pytest.mark.parametrize("prediction", ["flow", "v_prediction", "sample"])
def test_pure_noise_has_a_finite_loss(prediction, generator):
    """A flow begins at alpha = 0: the output still has a target, and the equivariance of eps holds of itself."""
    process = Process.flow(prediction=prediction)
    objective = Objective("robust_adv", process)
    draws = objective.draw((8, 3), generator=generator)
    draws = replace(draws, t=torch.full((8,), process.steps - 1))
    gain = torch.tensor(0.3, requires_grad=True)
    terms = objective(lambda x, time: gain * x, torch.randn(8, 3, generator=generator), draws=draws)
    terms.loss.mean().backward()
    assert terms.loss.isfinite().all()
    assert gain.grad.isfinite()
    assert (terms.denoise > 0.01).all()
    assert (terms.weight * terms.regularizer).max() < 1e-4


@pytest.mark.parametrize("name", ["linear", "flow", "edm"])
def test_the_network_is_told_the_time_of_its_process(name, generator):
    seen = []
    process = PROCESSES[name]()
    objective = Objective("robust_rand", process, gate=0.5)
    draws = objective.draw((64, 3), generator=generator)
    model = lambda x, time: seen.append(time) or 0.1 * x  # noqa: E731
    objective(model, torch.randn(64, 3, generator=generator), draws=draws)
    sigma = process.ratio(draws.t)
    expected = {"linear": draws.t, "flow": 1000 * process.sigma(draws.t), "edm": sigma.log() / 4}[name]
    torch.testing.assert_close(seen[-1][:64], expected, rtol=1e-4, atol=1e-4)
    pushed = (sigma < 0.5).nonzero().squeeze(1)
    torch.testing.assert_close(seen[-1][64 : 64 + len(pushed)], expected[pushed], rtol=1e-4, atol=1e-4)


def test_flow_tables_are_those_of_diffusers():
    from diffusers import FlowMatchEulerDiscreteScheduler, FlowMatchHeunDiscreteScheduler

    for shift in (1.0, 3.0):
        for kind in (FlowMatchEulerDiscreteScheduler, FlowMatchHeunDiscreteScheduler):
            scheduler = kind(num_train_timesteps=500, shift=shift)
            ours, table, times = Process.flow(500, shift), scheduler.sigmas.flip(0), scheduler.timesteps.flip(0)
            scheduler.set_timesteps(10)  # overwrites its tables
            read = Process.from_scheduler(scheduler)
            for process in (ours, read, Process.from_scheduler(kind(**read.scheduler_config(False)))):
                torch.testing.assert_close(process.sigmas, table)
                torch.testing.assert_close(process.time(torch.arange(500)), times)
                assert (process.prediction, process.family) == ("flow", "flow")


def test_edm_tables_are_those_of_diffusers():
    from diffusers import EDMDPMSolverMultistepScheduler, EDMEulerScheduler

    for kind in (EDMEulerScheduler, EDMDPMSolverMultistepScheduler):
        scheduler = kind(num_train_timesteps=500, sigma_max=40.0, rho=5.0, sigma_data=0.7)
        read = Process.from_scheduler(scheduler)
        scheduler.set_timesteps(500)
        for process in (read, Process.from_scheduler(kind(**read.scheduler_config(False)))):
            t = torch.arange(499, -1, -1)
            torch.testing.assert_close(process.ratio(t), scheduler.sigmas[:-1], rtol=1e-4, atol=1e-6)
            torch.testing.assert_close(process.time(t), scheduler.timesteps, rtol=1e-4, atol=1e-4)
            assert (process.prediction, process.family, process.data_std) == ("edm", "edm", 0.7)
        # F and the denoised image of diffusers are ours.
        out, x = torch.randn(2, 1, 3, generator=torch.Generator().manual_seed(0))
        theirs = scheduler.precondition_outputs(x, out, scheduler.sigmas[200])
        ours = read.to_x0(out, scheduler.precondition_inputs(x, scheduler.sigmas[200]), t[200:201])
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_mistakes_are_sentences():
    from diffusers import EDMEulerScheduler, FlowMatchEulerDiscreteScheduler

    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        for make, words in [
            (lambda: Process.linear(prediction="scores"), "Did you mean 'score'"),
            (lambda: Process.flow(shift=0.0), "shift of the flow is 0"),
            (lambda: Process.flow(prediction="epsilon"), "says nothing about the data"),
            (lambda: Process.edm(sigma_min=2.0, sigma_max=1.0), "0 < sigma_min < sigma_max"),
            (lambda: Process.edm(prediction="epsilon"), "EDM's F"),
            (lambda: Process.from_scheduler(EDMEulerScheduler(sigma_schedule="exponential")), "Expected 'karras'"),
            (
                lambda: Process.from_scheduler(FlowMatchEulerDiscreteScheduler(invert_sigmas=True)),
                "invert_sigmas=False",
            ),
            (lambda: replace(Process.linear(), family="edmm"), "Did you mean 'edm'"),
        ]:
            with pytest.raises(UserError, match=words):
                make()
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)
