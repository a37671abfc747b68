"""How a model is sampled: what may be asked, sampling that begins late, and steps that keep the betas of all timesteps."""

import dataclasses
import inspect

import pytest
import torch

from atdm.diffusion.process import Process
from atdm.diffusion.sampling import open_solver, sample, sample_paths, trajectory
from atdm.diffusion.schedulers import FAMILY_SAMPLERS, SAMPLERS
from atdm.diffusion.steps import Sampling
from atdm.errors import UserError
from atdm.nets import build_net
from helpers import LINEAR, UNRESPACED, Ideal, seeded


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    return build_net("mlp:width=16", (3,)).eval()


@torch.no_grad()
def ancestral(net, timesteps, x, generator):
    """Algorithm 2 of Ho 2020 at ``timesteps``, each with its own one-step beta: x_t to x_{t-1}, whatever comes next."""
    abar = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float32), 0)
    for t in timesteps:
        now, before = abar[t], abar[t - 1] if t else torch.tensor(1.0)
        alpha_t = now / before  # = 1 - beta_t
        x0 = (x - (1 - now) ** 0.5 * net(x, torch.tensor(t).expand(len(x))).sample) / now**0.5
        mean = (before**0.5 * (1 - alpha_t)) / (1 - now) * x0 + alpha_t**0.5 * (1 - before) / (1 - now) * x
        variance = ((1 - before) / (1 - now) * (1 - alpha_t)).clamp(min=1e-20)
        x = mean + variance**0.5 * torch.randn(x.shape, generator=generator) if t else mean
    return x


@pytest.mark.parametrize("t", [499, 299, 40])
def test_sampling_that_begins_late_is_the_loop_written_out(net, t):
    """Bit for bit: from N(0, I) at t, as if it were the last timestep, every step after it."""
    generator = seeded(1)
    wanted = ancestral(net, range(t, -1, -1), torch.randn(5, 3, generator=generator), generator)
    how = Sampling("ddpm", 1000, start_ratio=float(LINEAR.ratio(torch.tensor([t]))))
    steps = list(trajectory(net, LINEAR, (5, 3), how, generator=seeded(1)))
    assert [step.t for step in steps] == list(range(t, -1, -1))
    assert torch.equal(steps[-1].next, wanted)


@pytest.mark.parametrize("steps", [500, 50])
def test_steps_that_keep_their_betas_are_the_loop_written_out(net, steps):
    """Bit for bit: a subset of the timesteps, each step with its own beta_t."""
    generator = seeded(1)
    stride = 1000 // steps
    wanted = ancestral(net, range(999, -1, -stride), torch.randn(5, 3, generator=generator), generator)
    *_, last = trajectory(net, LINEAR, (5, 3), Sampling(UNRESPACED, steps), generator=seeded(1))
    assert torch.equal(last.next, wanted)
    *_, respaced = trajectory(net, LINEAR, (5, 3), Sampling("ddpm", steps), generator=seeded(1))
    assert not torch.allclose(respaced.next, wanted, atol=0.1)


def test_with_all_timesteps_there_is_nothing_to_respace(net):
    options = {"steps": 1000, "seed": 2}
    assert torch.equal(
        sample(net, LINEAR, 4, (3,), sampler=UNRESPACED, **options),
        sample(net, LINEAR, 4, (3,), sampler="ddpm", **options),
    )


def test_steps_that_keep_their_betas_leave_noise():
    """A tenth of the steps of a Gaussian take away a tenth of log(1/abar), and the rest stays."""
    x = sample(Ideal(), LINEAR, 4000, (2,), sampler=UNRESPACED, steps=100)
    assert x.std() > 0.8  # of data of std 0.5
    assert SAMPLERS[UNRESPACED].note.endswith(".")


@pytest.mark.parametrize(("family", "name"), [(f, n) for f, names in FAMILY_SAMPLERS.items() for n in names])
def test_every_sampler_begins_late_from_unit_noise(family, name, net):
    process = getattr(Process, {"vp": "linear"}.get(family, family))()
    how = Sampling(name, 20, start_ratio=1.0)
    full = list(trajectory(net, process, (3000, 3), Sampling(name, 20), generator=seeded()))
    steps = list(trajectory(net, process, (3000, 3), how, generator=seeded()))
    ratios = process.sigmas / process.alphas
    assert {s.t for s in steps} == {s.t for s in full if ratios[s.t] <= 1.0}
    assert steps[0].x.mean() == pytest.approx(0, abs=0.05)
    assert steps[0].x.std() == pytest.approx(1, abs=0.03)
    torch.testing.assert_close(steps[0].x, full[0].x, rtol=1e-3, atol=1e-3)  # the noise that T-1 would see
    above = dataclasses.replace(how, start_ratio=float("inf"))  # no step is left out
    early = list(trajectory(net, process, (3000, 3), above, generator=seeded()))
    assert torch.equal(early[-1].next, full[-1].next)


def test_beginning_and_stopping_go_together():
    how = Sampling("ddim", 100, start_ratio=2.0, stop_ratio=0.3)
    steps = list(trajectory(Ideal(), LINEAR, (4, 2), how, generator=seeded()))
    ratios = LINEAR.sigmas / LINEAR.alphas
    assert ratios[steps[0].t] <= 2.0 < ratios[steps[0].t + 10]
    assert ratios[steps[-1].t] < 0.3 <= ratios[steps[-2].t]
    assert how.last_ratio(LINEAR) == pytest.approx(float(ratios[steps[-1].t]))
    assert torch.equal(steps[-1].next, steps[-1].denoised)


def test_fields_by_name_are_the_same_as_the_object():
    how = Sampling("ddpm", 20, start_ratio=3.0, stop_ratio=0.1, clip_sample=True)
    given = {f.name: getattr(how, f.name) for f in dataclasses.fields(how)}
    by_object = sample(Ideal(), LINEAR, 10, (1, 4, 4), how, seed=3)
    assert torch.equal(sample(Ideal(), LINEAR, 10, (1, 4, 4), seed=3, **given), by_object)
    assert torch.equal(sample(Ideal(), LINEAR, 10, (1, 4, 4), Sampling("ddpm"), seed=3, **given), by_object)
    assert torch.equal(sample_paths(Ideal(), LINEAR, 10, (1, 4, 4), how, keep=[2], seed=3)[-1], by_object)


@pytest.mark.parametrize(("family", "sampler"), [("linear", "ddim"), ("flow", "euler"), ("edm", "euler")])
def test_defaults_come_from_the_family(family, sampler, net):
    process = getattr(Process, family)()
    assert Sampling().resolved(process) == Sampling(sampler, 50, clip_sample=False)
    assert Sampling(steps=7).resolved(process, True, "ddpm").sampler == ("ddpm" if family == "linear" else "euler")
    assert Sampling(clip_sample=False).resolved(process, clip_sample=True).clip_sample is False
    assert torch.equal(sample(net, process, 3, (3,), steps=10), sample(net, process, 3, (3,), Sampling(sampler, 10)))


def test_a_scheduler_is_called_by_its_class_in_json():
    from diffusers import DDIMScheduler

    assert Sampling(DDIMScheduler()).as_dict() == {**Sampling().as_dict(), "sampler": "DDIMScheduler"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"start_ratio": 0}, "start_ratio is 0. Expected a noise level"),
        ({"start_ratio": float("nan")}, "start_ratio is nan"),
        ({"start_ratio": 0.2, "stop_ratio": 0.5}, "begins at the noise level 0.2, below 0.5, where it stops"),
        ({"start_ratio": 1e-5}, "its last is at"),
        ({"setps": 5}, "Unknown option of sampling 'setps'. Did you mean 'steps'"),
    ],
)
def test_what_cannot_be_sampled_is_said(options, message):
    with pytest.raises(UserError, match=message):
        open_solver(Ideal(), LINEAR, (2, 2), generator=seeded(), **options)


def test_no_way_of_sampling_takes_more_than_eight_parameters():
    for function in (sample, sample_paths, trajectory, open_solver):
        assert len(inspect.signature(function).parameters) <= 8
