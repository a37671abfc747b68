"""The forward process against diffusers' tables and closed forms."""

import jaxtyping
import pytest
import torch

from atdm.diffusion.process import PROCESSES, Process
from atdm.errors import UserError

PREDICTIONS = ["epsilon", "sample", "v_prediction"]
PRESERVING = ["linear", "cosine"]


def draws(process, generator, shape=(64, 2, 3)):
    x0 = torch.randn(shape, generator=generator)
    eps = torch.randn(shape, generator=generator)
    t = torch.randint(process.steps, shape[:1], generator=generator)
    return x0, eps, t


@pytest.mark.parametrize("name", PRESERVING)
@pytest.mark.parametrize("steps", [100, 1000])
def test_variance_is_preserved_and_noise_grows(name, steps):
    process = PROCESSES[name](steps=steps)
    total = process.alphas**2 + process.sigmas**2
    assert torch.allclose(total, torch.ones(steps), atol=1e-6)
    assert (process.sigmas[1:] > process.sigmas[:-1]).all()
    assert process.sigmas[0] < 0.05
    assert process.alphas[-1] < 0.01


@pytest.mark.parametrize(
    ("name", "schedule"),
    [("linear", {"beta_schedule": "linear"}), ("cosine", {"beta_schedule": "squaredcos_cap_v2"})],
)
def test_tables_are_those_of_diffusers(name, schedule):
    from diffusers import DDPMScheduler

    ours = PROCESSES[name]()
    scheduler = DDPMScheduler(**schedule)
    assert torch.allclose(ours.alphas**2, scheduler.alphas_cumprod, rtol=1e-3, atol=1e-7)
    read = Process.from_scheduler(scheduler)
    assert torch.allclose(read.alphas**2, scheduler.alphas_cumprod, rtol=1e-5, atol=1e-9)
    assert read.prediction == "epsilon"
    back = DDPMScheduler(**ours.scheduler_config(clip_sample=True))
    assert torch.equal(back.alphas_cumprod, scheduler.alphas_cumprod)
    assert back.config.clip_sample


def test_mixing_is_diffusers_add_noise(generator):
    from diffusers import DDPMScheduler

    scheduler = DDPMScheduler()
    process = Process.from_scheduler(scheduler)
    x0, eps, t = draws(process, generator)
    assert torch.allclose(process.mix(x0, eps, t), scheduler.add_noise(x0, eps, t), atol=1e-6)


def test_v_target_is_diffusers_velocity(generator):
    from diffusers import DDPMScheduler

    scheduler = DDPMScheduler(prediction_type="v_prediction")
    process = Process.from_scheduler(scheduler)
    x0, eps, t = draws(process, generator)
    assert torch.allclose(process.target(x0, eps, t), scheduler.get_velocity(x0, eps, t), atol=1e-6)


def test_unusual_schedules_survive_the_round_trip():
    from diffusers import DDIMScheduler

    betas = torch.linspace(1e-3, 0.05, 50).tolist()
    scheduler = DDIMScheduler(num_train_timesteps=50, trained_betas=betas, prediction_type="v_prediction")
    process = Process.from_scheduler(scheduler)
    back = DDIMScheduler(**process.scheduler_config(clip_sample=False))
    assert torch.allclose(back.alphas_cumprod, scheduler.alphas_cumprod)
    assert back.config.prediction_type == "v_prediction"


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("name", PRESERVING)
def test_conversions_return_what_was_mixed(name, prediction, generator):
    process = PROCESSES[name](prediction=prediction)
    x0, eps, t = draws(process, generator)
    t = t.clamp(20, 900)  # between the ends, where dividing by sigma or alpha loses no digits
    x_t = process.mix(x0, eps, t)
    output = process.target(x0, eps, t)
    found = process.to_eps(output, x_t, t)
    assert torch.allclose(found, eps, atol=1e-4)
    assert torch.allclose(process.denoised(found, x_t, t), x0, atol=1e-3)


def test_predictions_differ(generator):
    x0, eps, t = draws(Process.linear(), generator)
    targets = [Process.linear(prediction=p).target(x0, eps, t) for p in PREDICTIONS]
    assert not torch.allclose(targets[0], targets[1])
    assert not torch.allclose(targets[1], targets[2])


def test_score_is_the_gradient_of_the_log_density(generator):
    # Data N(0, s^2): x_t is N(0, v) with v = alpha^2 s^2 + sigma^2, and the ideal eps is sigma x / v.
    process, s = Process.linear(), 0.7
    t = torch.tensor([0, 100, 500, 999])
    x = torch.randn(4, 3, generator=generator, requires_grad=True)
    v = process.alpha(t, x) ** 2 * s**2 + process.sigma(t, x) ** 2
    (gradient,) = torch.autograd.grad((-(x**2) / (2 * v)).sum(), x)
    assert torch.allclose(process.score(process.sigma(t, x) * x / v, t), gradient, rtol=1e-4)


@pytest.mark.parametrize("name", PROCESSES)
def test_timestep_at_inverts_the_ratio(name):
    process = PROCESSES[name]()
    for t in (0, 1, 77, 500, 998):
        ratio = float(process.ratio(torch.tensor([t])))
        assert process.timestep_at(ratio * (1 - 1e-5)) == t
        assert process.timestep_at(ratio * (1 + 1e-5)) == t + 1
    assert process.timestep_at(0.0) == 0
    assert process.timestep_at(float("inf")) == (999 if name == "flow" else 1000)  # a flow reaches pure noise


def test_coefficients_broadcast_against_items():
    process = Process.linear()
    t = torch.tensor([3, 4])
    assert process.alpha(t).shape == (2,)
    assert process.sigma(t, torch.zeros(2, 3, 8, 8)).shape == (2, 1, 1, 1)


def test_mistakes_are_told():
    from diffusers import VQDiffusionScheduler

    with pytest.raises(UserError, match="alphas_cumprod"):
        Process.from_scheduler(VQDiffusionScheduler(num_vec_classes=4))
    with pytest.raises(UserError, match="decreases with t"):
        Process(torch.tensor([0.5, 0.9]), torch.tensor([0.8, 0.4]))


def test_a_misspelt_prediction_is_told():
    jaxtyping.config.update("jaxtyping_disable", True)  # else the checker of the tests is faster
    try:
        with pytest.raises(UserError, match=r"prediction 'epsilom'.*Did you mean 'epsilon'"):
            Process.linear(prediction="epsilom")
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)
