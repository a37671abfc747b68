"""Samplers against diffusers' own loops, the ideal denoiser of a Gaussian, and the promises about noise."""

import inspect
import itertools

import diffusers
import pytest
import torch
from torch import nn

from atdm.diffusion.process import Process
from atdm.diffusion.sampling import SamplingStep, sample, sample_paths, sample_stops, trajectory
from atdm.diffusion.schedulers import SAMPLERS, build_scheduler
from atdm.diffusion.steps import Sampling
from atdm.errors import UserError
from atdm.nets import build_net
from helpers import LINEAR, STOCHASTIC, UNRESPACED, Ideal, S, seeded

DETERMINISTIC = sorted(set(SAMPLERS) - STOCHASTIC)


def exact(x_T, process=LINEAR):
    """The end of the probability flow from x_T: for Gaussians the flow rescales by the standard deviations."""
    return x_T * S / (process.alphas[-1] ** 2 * S**2 + process.sigmas[-1] ** 2).sqrt()


def last(steps):
    *_, step = steps
    return step


def test_ddpm_with_every_step_is_the_pipeline_of_diffusers():
    from diffusers import DDPMPipeline

    torch.manual_seed(0)
    net = build_net("mlp:width=16", (1, 4, 4))
    pipeline = DDPMPipeline(net, build_scheduler("ddpm", LINEAR, clip_sample=True))
    pipeline.set_progress_bar_config(disable=True)
    theirs = pipeline(2, generator=seeded(3), output_type="pt").images
    steps = trajectory(net, LINEAR, (2, 1, 4, 4), generator=seeded(3), sampler="ddpm", steps=1000, clip_sample=True)
    assert torch.equal(
        (last(steps).next / 2 + 0.5).clamp(0, 1), theirs.permute(0, 3, 1, 2) if theirs.shape[1] == 4 else theirs
    )


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_is_the_plain_loop_of_diffusers(name):
    torch.manual_seed(0)
    net = build_net("mlp:width=16", (3,)).eval()
    generator = seeded(1)
    scheduler = build_scheduler(name, LINEAR)
    scheduler.set_timesteps(20)
    x = torch.randn(5, 3, generator=generator) * scheduler.init_noise_sigma
    noise = {"generator": generator} if "generator" in inspect.signature(scheduler.step).parameters else {}
    with torch.no_grad():
        for t in scheduler.timesteps:
            x = scheduler.step(net(scheduler.scale_model_input(x, t), t).sample, t, x, **noise).prev_sample
    ours = last(trajectory(net, LINEAR, (5, 3), generator=seeded(1), sampler=name, steps=20)).next
    assert torch.allclose(ours, x, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("name", [name for name in SAMPLERS if name != UNRESPACED])
def test_every_sampler_reaches_the_data(name, prediction):
    process = Process.linear(prediction=prediction)
    x_T = torch.randn(2000, 2, generator=seeded())
    steps = list(trajectory(Ideal(process), process, (2000, 2), generator=seeded(1), sampler=name, steps=100, x_T=x_T))
    end = steps[-1].next
    if name in STOCHASTIC:
        assert end.std() == pytest.approx(S, rel=0.06)
        correlation = (end * x_T).mean() / (end.std() * x_T.std())
        assert correlation.abs() < 0.1  # the noise of x_T is forgotten
    else:
        assert (end / exact(x_T)).median() == pytest.approx(1, abs=0.06)
        assert torch.allclose(end, exact(x_T), atol=0.15)
    for step in (steps[0], steps[50], steps[-1]):
        alpha, sigma = process.alphas[step.t], process.sigmas[step.t]
        assert torch.allclose(alpha * step.denoised + sigma * step.eps, step.x, atol=1e-4)
        assert step.x.std() == pytest.approx(float((alpha**2 * S**2 + sigma**2).sqrt()), rel=0.1)


@pytest.mark.parametrize("name", ["ddim", "ddpm", "euler", "unipc"])
def test_cosine_process_reaches_the_data(name):
    process = Process.cosine()
    x = sample(Ideal(process), process, 2000, (2,), sampler=name, steps=100)
    assert x.std() == pytest.approx(S, rel=0.06)


@pytest.mark.parametrize("name", ["ddpm", "dpm-solver++", "euler", "heun"])
def test_steps_need_not_divide_the_timesteps(name):
    x = sample(Ideal(), LINEAR, 2000, (2,), sampler=name, steps=300)
    assert x.std() == pytest.approx(S, rel=0.05)


def test_equal_strides_take_what_is_near_enough():
    x = sample(Ideal(), LINEAR, 2000, (2,), sampler="ddim", steps=70)
    assert x.std() == pytest.approx(S, rel=0.06)


def errors(name, counts):
    x_T = torch.randn(200, 2, generator=seeded())
    ends = (
        last(trajectory(Ideal(), LINEAR, (200, 2), generator=seeded(), sampler=name, steps=n, x_T=x_T)) for n in counts
    )
    return [float((end.next - exact(x_T)).norm() / exact(x_T).norm()) for end in ends]


@pytest.mark.parametrize("name", ["ddim", "euler"])
def test_first_order_samplers_halve_their_error_with_twice_the_steps(name):
    found = errors(name, [25, 50, 100, 200])
    assert all(1.6 < coarse / fine < 2.5 for coarse, fine in itertools.pairwise(found))


@pytest.mark.parametrize("name", ["dpm-solver++", "heun", "unipc", "lms", "deis", "pndm"])
def test_higher_order_samplers_beat_first_order(name):
    assert errors(name, [50])[0] < 0.5 * errors("ddim", [50])[0]


@pytest.mark.parametrize("item_shape", [(3,), (1, 8, 8), (3, 14, 14)])
@pytest.mark.parametrize("name", ["ddim", "ddpm", "euler-ancestral"])
def test_noise_depends_on_seed_and_index_only(name, item_shape):
    def draw(n, batch_size, seed=0):
        return sample(Ideal(), LINEAR, n, item_shape, sampler=name, steps=10, batch_size=batch_size, seed=seed)

    everything = draw(400, 1000)
    assert torch.equal(draw(400, 7), everything)
    assert torch.equal(draw(3, 1), everything[:3])
    assert torch.equal(draw(333, 200), everything[:333])
    assert len(everything.flatten(1).unique(dim=0)) == 400
    assert not torch.isclose(draw(400, 1000, seed=1), everything).any(dim=0).all()
    assert not torch.equal(draw(3, 1, seed=-1), draw(3, 1, seed=1))


def test_the_random_state_of_torch_is_not_used():
    before = torch.get_rng_state()
    sample(Ideal(), LINEAR, 5, (3,), sampler="ddpm", steps=10)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_push_before_the_first_step_is_another_start(name):
    x_T, push = torch.randn(6, 2, generator=seeded()), torch.randn(6, 2, generator=seeded(1))

    def run(x_T, hook=None):
        return list(
            trajectory(Ideal(), LINEAR, (6, 2), generator=seeded(2), sampler=name, steps=20, x_T=x_T, hook=hook)
        )

    pushed = run(x_T, lambda index, t, x: x + push if index == 0 else x)
    expected = run(x_T + push)
    # diffusers' Euler starts at sigma_T instead of sqrt(1 + sigma_T^2), which is 2e-5 of the state.
    assert torch.allclose(pushed[0].x, x_T + push, atol=1e-4)
    assert torch.allclose(pushed[-1].next, expected[-1].next, atol=1e-4)
    late = run(x_T, lambda index, t, x: x + push if index == 15 else x)
    assert not torch.allclose(late[-1].next, run(x_T)[-1].next, atol=0.02)


def test_pushes_are_in_the_coordinates_of_the_network():
    # Euler carries x/alpha inside and is the same map as DDIM: the same push must do the same to both.
    def run(name):
        seen = []

        def hook(index, t, x):
            seen.append(t)
            return x + 0.3 * (index == 10)

        generator = seeded()
        return seen, last(
            trajectory(Ideal(), LINEAR, (6, 2), generator=generator, sampler=name, steps=20, hook=hook)
        ).next

    (seen, ddim), (seen_too, euler) = run("ddim"), run("euler")
    assert seen == seen_too == list(range(999, 0, -50))
    assert torch.allclose(ddim, euler, atol=1e-4)


@pytest.mark.parametrize("stop", [None, 0.5])
@pytest.mark.parametrize("name", sorted(SAMPLERS))
def test_the_last_noise_level_is_that_of_the_last_evaluation(name, stop):
    end = last(trajectory(Ideal(), LINEAR, (4, 2), generator=seeded(), sampler=name, steps=25, stop_ratio=stop))
    told = Sampling(name, 25, stop_ratio=stop).last_ratio(LINEAR)
    assert told == pytest.approx(float(LINEAR.ratio(torch.tensor([end.t]))))
    assert told == pytest.approx(0.1405 if stop is None else 0.4085, abs=1e-3)  # t = 39 and 119
    if stop is not None or name not in ("deis", "lms", "pndm", UNRESPACED):  # these extrapolate, or leave noise
        torch.testing.assert_close(end.next, end.denoised)


@pytest.mark.parametrize("name", ["ddim", "ddpm", "euler", "heun"])
def test_stopping_returns_the_denoised_state(name):
    options = {"sampler": name, "steps": 100, "seed": 3}
    full = list(trajectory(Ideal(), LINEAR, (4, 2), generator=seeded(), sampler=name, steps=100))
    stopped = list(trajectory(Ideal(), LINEAR, (4, 2), generator=seeded(), sampler=name, steps=100, stop_ratio=0.3))
    ratios = LINEAR.sigmas / LINEAR.alphas
    assert ratios[stopped[-1].t] < 0.3 <= min(ratios[step.t] for step in stopped[:-1])
    same = full[len(stopped) - 1]
    assert torch.equal(stopped[-1].next, same.denoised)
    assert not torch.allclose(stopped[-1].next, same.next, atol=1e-3)
    # The denoised state of data N(0, S^2) at noise ratio q has variance S^4 / (S^2 + q^2).
    x = sample(Ideal(), LINEAR, 2000, (2,), stop_ratio=0.3, **options)
    q = float(ratios[stopped[-1].t])
    assert x.std() == pytest.approx(S**2 / (S**2 + q**2) ** 0.5, rel=0.06)


def test_clipping_keeps_the_denoised_image_in_range():
    for name in ("ddpm", "ddim"):
        steps = trajectory(
            lambda x, t: torch.zeros_like(x), LINEAR, (4, 1, 2, 2), generator=seeded(), sampler=name, clip_sample=True
        )
        assert all(step.denoised.abs().max() <= 1 for step in steps)
    *_, end = trajectory(
        lambda x, t: torch.zeros_like(x), LINEAR, (4, 1, 2, 2), generator=seeded(), sampler="ddim", clip_sample=True
    )
    assert end.next.abs().max() <= 1


def test_a_scheduler_of_diffusers_can_be_given():
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler(timestep_spacing="trailing", clip_sample=False)
    ours = sample(Ideal(), LINEAR, 4, (2,), sampler="ddim", steps=20)
    assert torch.allclose(sample(Ideal(), LINEAR, 4, (2,), sampler=scheduler, steps=20), ours, atol=1e-6)
    assert scheduler.num_inference_steps is None  # the given one is not touched


SPACED = [{"timestep_spacing": spacing} for spacing in ("trailing", "leading")]
SIGMAS = [{f"use_{name}_sigmas": True} for name in ("karras", "exponential", "beta")]
GIVEN = {
    "DDIMScheduler": [*SPACED, {"timestep_spacing": "leading", "steps_offset": 1}, {"set_alpha_to_one": False}],
    "DDPMScheduler": [*SPACED, {"variance_type": "fixed_large"}, {"timestep_spacing": "linspace"}],
    "PNDMScheduler": [*SPACED, {"skip_prk_steps": True}, {"set_alpha_to_one": True}],
    "DPMSolverMultistepScheduler": [
        *SIGMAS,
        {"use_lu_lambdas": True},
        {"solver_order": 1},
        {"solver_order": 3, "lower_order_final": False},
        {"solver_type": "heun", "euler_at_final": True},
        {"algorithm_type": "sde-dpmsolver++"},
        {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"},
        {"lambda_min_clipped": -3.0, "timestep_spacing": "leading", "steps_offset": 1},
    ],
    "DPMSolverSinglestepScheduler": [*SIGMAS, {"solver_order": 3}, {"lower_order_final": True}],
    "UniPCMultistepScheduler": [*SIGMAS, {"solver_order": 3}, {"disable_corrector": [0, 1]}],
    "DEISMultistepScheduler": [*SIGMAS, {"solver_order": 3}, {"lower_order_final": False}],
    "SASolverScheduler": [*SIGMAS, {"predictor_order": 1}],
    "EulerDiscreteScheduler": [*SPACED, *SIGMAS, {"timestep_spacing": "trailing", "interpolation_type": "log_linear"}],
    "HeunDiscreteScheduler": [{**LINEAR.schedule, **o} for o in (*SPACED, *SIGMAS)],
    "LMSDiscreteScheduler": [*SPACED, *SIGMAS],
    "KDPM2DiscreteScheduler": [LINEAR.schedule],
    "FlowMatchEulerDiscreteScheduler": [{}, *SIGMAS, {"use_dynamic_shifting": True}, {"shift_terminal": 0.1}],
    "FlowMatchHeunDiscreteScheduler": [{}],
    "FlowMatchLCMScheduler": [{}, *SIGMAS, {"scale_factors": [0.5, 1.0]}],
    "EDMEulerScheduler": [{}, {"final_sigmas_type": "sigma_min"}, {"rho": 5.0}],
    "EDMDPMSolverMultistepScheduler": [
        {"solver_order": 3},
        {"solver_type": "heun", "euler_at_final": True},
        {"algorithm_type": "sde-dpmsolver++", "final_sigmas_type": "sigma_min"},
        {"thresholding": True},
    ],
    "RePaintScheduler": [{}],
    "CogVideoXDPMScheduler": [{}],
}
BETWEEN = {"EulerDiscreteScheduler", "HeunDiscreteScheduler", "LMSDiscreteScheduler"}  # keep timesteps fractional


def refused(name, options):
    """How the sentence begins, of a scheduler that atdm does not take."""
    spaced = [
        o for o in options if o.endswith("_sigmas") or o in ("use_dynamic_shifting", "shift_terminal", "scale_factors")
    ]
    if name.startswith("FlowMatch") and spaced:
        return f"{name} has {spaced[0]}, which goes between"
    if name == "KDPM2DiscreteScheduler" or (name in BETWEEN and spaced):
        return f"{name} goes through fractional timesteps"
    return f"{name} cannot be used" if name in ("RePaintScheduler", "CogVideoXDPMScheduler") else ""


@pytest.mark.parametrize(("name", "options"), [(name, options) for name in GIVEN for options in GIVEN[name]])
def test_a_given_scheduler_is_followed_or_refused(name, options):
    """The samples are those of diffusers' own loop over it; 28 steps of flows and EDM are entries of the table."""
    scheduler = getattr(diffusers, name)(**options)
    process = Process.from_scheduler(scheduler)
    torch.manual_seed(0)
    net, generator, steps = build_net("mlp:width=16", (1, 2, 2)).eval(), seeded(1), 20 if process.family == "vp" else 28
    how = {"sampler": scheduler, "steps": steps}
    if sentence := refused(name, options):
        with pytest.raises(UserError, match=sentence):
            list(trajectory(net, process, (3, 1, 2, 2), generator=generator, **how))
        return
    before = torch.get_rng_state()
    ours = last(trajectory(net, process, (3, 1, 2, 2), generator=seeded(1), **how)).next
    assert torch.equal(torch.get_rng_state(), before)
    scheduler.set_timesteps(steps)
    x = torch.randn(3, 1, 2, 2, generator=generator) * getattr(scheduler, "init_noise_sigma", 1.0)
    noise = {"generator": generator} if "generator" in inspect.signature(scheduler.step).parameters else {}
    scale = getattr(scheduler, "scale_model_input", lambda x, t: x)
    with torch.no_grad():
        for t in scheduler.timesteps:
            x = scheduler.step(net(scale(x, t), t).sample, t, x, **noise).prev_sample
    torch.testing.assert_close(ours, x, rtol=2e-3, atol=2e-3 if process.family != "vp" else 1e-4)


def test_modes_gradients_and_errors_leave_the_model_as_it_was():
    net = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5))
    net[1].eval()
    modes = []

    def model_forward(x, t):
        modes.append((net.training, torch.is_grad_enabled()))
        return net(x)

    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, x, t):
            return model_forward(x, t)

    model = Wrapped()
    assert not sample(model, LINEAR, 2, (2,), steps=2).requires_grad
    assert set(modes) == {(False, False)}
    assert (net.training, net[1].training, model.training) == (True, False, True)
    for _ in trajectory(model, LINEAR, (2, 2), generator=seeded(), steps=2):
        assert torch.is_grad_enabled()  # nothing leaks to the consumer

    def broken(index, t, x):
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        sample(model, LINEAR, 2, (2,), steps=2, hook=broken)
    assert model.training


def test_conditioning_follows_its_items():
    shift = torch.linspace(-1, 1, 500)
    both = {"sampler": "ddim", "steps": 10}
    whole = sample(Ideal(), LINEAR, 500, (3,), conditioning={"shift": shift}, **both)
    assert torch.allclose(
        sample(Ideal(), LINEAR, 500, (3,), conditioning={"shift": shift}, batch_size=1, **both), whole
    )
    plain = sample(Ideal(), LINEAR, 500, (3,), **both)
    moved = (whole - plain).mean(1)
    assert torch.allclose(moved, moved[-1] * shift, atol=1e-4)
    assert moved[-1].abs() > 0.1


@pytest.mark.parametrize("name", ["ddpm", "euler"])
def test_paths_are_the_states_of_the_same_samples(name):
    options = {"sampler": name, "steps": 10, "seed": 5}
    paths = sample_paths(Ideal(), LINEAR, 200, (3,), keep=[0, 4, 9], batch_size=1, **options)
    assert paths.shape == (4, 200, 3)
    assert torch.equal(paths[-1], sample(Ideal(), LINEAR, 200, (3,), **options))
    spread = (LINEAR.alphas[[999, 599, 99]] ** 2 * S**2 + LINEAR.sigmas[[999, 599, 99]] ** 2).sqrt()
    assert torch.allclose(paths[:-1].flatten(1).std(1), spread, rtol=0.25)  # ten steps are coarse
    assert paths[0].std() > paths[1].std() > paths[2].std() > paths[3].std()
    steps = list(trajectory(Ideal(), LINEAR, (2, 3), generator=seeded(), sampler=name, steps=10))
    assert all(torch.equal(a.next, b.x) for a, b in itertools.pairwise(steps))


@pytest.mark.parametrize("name", ["ddpm", "heun", "pndm", "sde-dpm-solver++"])
def test_every_stop_in_one_pass_is_what_sampling_that_stops_there_gives(name):
    options = {"sampler": name, "steps": 10, "seed": 5}
    stops = [0.5, None, 2.0, 1e-9]
    drawn = sample_stops(Ideal(), LINEAR, 200, (3,), stops=stops, batch_size=170, **options)
    assert drawn.shape == (4, 200, 3)
    for x, stop in zip(drawn, stops, strict=True):
        assert torch.equal(x, sample(Ideal(), LINEAR, 200, (3,), stop_ratio=stop, batch_size=170, **options))
    assert torch.equal(drawn[1], drawn[3])  # no step is below
    assert not torch.equal(drawn[0], drawn[1])
    model = Ideal()
    first = sample_stops(model, LINEAR, 200, (3,), stops=[4.0, 2.0], batch_size=170, **options)
    assert torch.equal(first[1], drawn[2])
    whole = Ideal()
    sample(whole, LINEAR, 200, (3,), batch_size=170, **options)
    assert 0 < model.calls < whole.calls  # it goes no further than the lowest


def test_progress_counts_network_evaluations():
    seen, model = [], Ideal()
    sample(model, LINEAR, 200, (512,), steps=5, batch_size=50, progress=lambda *pair: seen.append(pair))
    assert seen == [(i + 1, 20) for i in range(20)]
    assert model.calls == 20
    heun = list(trajectory(Ideal(), LINEAR, (1, 2), generator=seeded(), sampler="heun", steps=5))
    assert [step.index for step in heun] == list(range(9))
    assert {step.count for step in heun} == {9}
    assert isinstance(heun[0], SamplingStep)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sampler": "dimm"}, "Unknown sampler 'dimm'. Did you mean 'ddim'"),
        ({"steps": 0}, "Expected 1 to 1000"),
        ({"steps": 1001}, "Expected 1 to 1000"),
        ({"sampler": "ddim", "steps": 600}, "such as 500 or 1000"),
        ({"n": 0}, "at least 1"),
        ({"batch_size": 0}, "at least 1"),
    ],
)
def test_mistakes_are_told(options, message):
    with pytest.raises(UserError, match=message):
        sample(Ideal(), LINEAR, **{"n": 4, "item_shape": (2,), **options})


def test_schedulers_that_do_not_fit_are_refused():
    from diffusers import DDIMScheduler, EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler

    def run(scheduler, process=LINEAR, generator=None):
        return list(trajectory(Ideal(), process, (4, 2), generator=generator or seeded(), sampler=scheduler, steps=30))

    with pytest.raises(UserError, match="cannot follow this process"):
        run(FlowMatchEulerDiscreteScheduler())
    with pytest.raises(UserError, match="cannot follow this process"):
        run(DDIMScheduler(beta_schedule="squaredcos_cap_v2"))
    with pytest.raises(UserError, match="expects the prediction 'v_prediction'"):
        run(DDIMScheduler(prediction_type="v_prediction"))
    with pytest.raises(UserError, match="fractional timesteps"):
        run(EulerDiscreteScheduler(timestep_spacing="linspace"))
    with pytest.raises(UserError, match="cannot follow this process"):
        build_scheduler("ddim", Process(LINEAR.alphas * 0.99, LINEAR.sigmas))
    with pytest.raises(UserError, match="3 generators cannot share a batch of 4"):
        run("ddim", generator=[seeded(i) for i in range(3)])
    with pytest.raises(UserError, match="Expected indices from 0 to 4"):
        sample_paths(Ideal(), LINEAR, 4, (2,), keep=[5], steps=5)
