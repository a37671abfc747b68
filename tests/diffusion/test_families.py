"""Sampling of flows, EDM and networks that predict what diffusers has no word for; export and the command line."""

import pytest
import torch
from diffusers import DiffusionPipeline
from torch import nn

from atdm.attack.purify import Purifier
from atdm.diffusion.model import Model, load_pipeline
from atdm.diffusion.predictions import PREDICTIONS
from atdm.diffusion.process import Process
from atdm.diffusion.sampling import generators, sample, trajectory
from atdm.diffusion.schedulers import FAMILY_SAMPLERS, NATIVE, build_scheduler
from atdm.nets import build_net

S = 0.5  # standard deviation of the data of the ideal denoiser
AFTER = {"vp": Process.linear, "flow": Process.flow, "edm": Process.edm}
WRITTEN = [("vp", p) for p in PREDICTIONS]
WRITTEN += [("flow", p) for p in ("flow", "v_prediction", "sample")]
WRITTEN += [("edm", p) for p in PREDICTIONS if p != "epsilon"]


class Ideal(nn.Module):
    """The ideal network for data N(0, S^2 I), in the words of a process; it finds t from what it is told."""

    def __init__(self, process):
        super().__init__()
        self.process = process

    def forward(self, x, time):
        process = self.process
        assert (time == time[0]).all()
        t = (process.time(torch.arange(process.steps)) == time[0]).nonzero().squeeze(1).expand(len(x))
        alpha, sigma = process.alpha(t, x), process.sigma(t, x)
        v = alpha**2 * S**2 + sigma**2
        return process.target(alpha * S**2 * x / v, sigma * x / v, t)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(("family", "prediction"), WRITTEN)
def test_every_prediction_samples_the_data(family, prediction):
    process = AFTER[family](prediction=prediction)
    for name in FAMILY_SAMPLERS[family] if family != "vp" else ("ddpm", "ddim", "heun"):
        x_T = torch.randn(1000, 2, generator=seeded())
        options = {"generator": seeded(1), "sampler": name, "steps": 100, "x_T": x_T}
        *_, last = steps = list(trajectory(Ideal(process), process, (1000, 2), **options))
        end = last.next
        assert end.std() == pytest.approx(S, rel=0.08), name
        if name != "ddpm":  # the probability flow of Gaussians only scales
            torch.testing.assert_close(end, x_T * S, rtol=0.1, atol=1e-3)
        for step in (steps[0], steps[50], steps[-1]):
            alpha, sigma = process.alphas[step.t], process.sigmas[step.t]
            torch.testing.assert_close(alpha * step.denoised + sigma * step.eps, step.x, atol=2e-3, rtol=1e-3)
            assert step.x.std() == pytest.approx(float((alpha**2 * S**2 + sigma**2).sqrt()), rel=0.1)


@pytest.mark.parametrize(("family", "name"), [(f, n) for f in ("flow", "edm") for n in FAMILY_SAMPLERS[f]])
def test_every_sampler_is_the_plain_loop_of_diffusers(family, name):
    """28 steps: those of diffusers are then entries of the table."""
    torch.manual_seed(0)
    net = build_net("mlp:width=16", (3,)).eval()
    process = AFTER[family]()
    scheduler = build_scheduler(name, process)
    scheduler.set_timesteps(28)
    start = torch.randn(5, 3, generator=seeded(1))
    x = start * getattr(scheduler, "init_noise_sigma", 1.0)
    scale = getattr(scheduler, "scale_model_input", lambda x, t: x)
    with torch.no_grad():
        for t in scheduler.timesteps:
            x = scheduler.step(net(scale(x, t), t).sample, t, x).prev_sample
    *_, ours = trajectory(net, process, (5, 3), generator=seeded(1), sampler=name, steps=28)
    torch.testing.assert_close(ours.next, x, rtol=2e-3, atol=1e-3)
    again = sample(net, process, 5, (3,), sampler=scheduler, steps=28)  # a scheduler of the user's, with its steps set
    assert torch.equal(again, sample(net, process, 5, (3,), sampler=name, steps=28))


@pytest.mark.parametrize("family", ["flow", "edm"])
def test_purifying_begins_in_the_middle(family):
    process = AFTER[family]()
    for name in FAMILY_SAMPLERS[family]:
        purifier = Purifier(Ideal(process), process, 0.5, sampler=name, steps=100)
        assert purifier.level == pytest.approx(0.5, rel=0.1)
        x = torch.full((4000, 2), 2 * S)
        found = purifier(x)
        # D of a state at level l: mean x S^2/(S^2 + l^2) at the end of the flow scaled by S/sqrt(S^2 + l^2).
        shrink = S / (S**2 + purifier.level**2) ** 0.5
        assert found.mean() == pytest.approx(2 * S * shrink, rel=0.05)
        assert found.std() == pytest.approx(purifier.level * shrink, rel=0.05)


def test_what_diffusers_takes_is_not_converted():
    for family, names in NATIVE.items():
        for prediction in names:
            if (family, prediction) in WRITTEN:
                process = AFTER[family](prediction=prediction)
                scheduler = build_scheduler("euler", process)
                assert Process.from_scheduler(scheduler).prediction == prediction


@pytest.mark.parametrize("spec", ["flow:shift=3", "edm:sigma_data=0.5", "linear:prediction=score"])
def test_a_run_trains_exports_and_samples_alike(spec, tmp_path):
    """What training leaves in the folder samples as the network in memory does."""
    from atdm.training import run
    from atdm.training.config import TrainConfig

    options = {"data": "plane:n=200", "net": "mlp:width=16", "batch_size": 32, "threads": 1, "process": spec}
    for step in run.train(TrainConfig(**options, out=str(tmp_path), steps=3)):
        assert step.terms.loss.isfinite().all()
    process = TrainConfig(**options).build_process()
    network, read, clip = load_pipeline(tmp_path)
    assert not clip
    assert (read.family, read.prediction) == (process.family, process.prediction)
    torch.testing.assert_close(read.sigmas, process.sigmas)
    ours, theirs = (sample(n, p, 20, (3,), steps=10) for n, p in ((step.state.ema.eval(), process), (network, read)))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    sampler = DiffusionPipeline.from_pretrained(tmp_path / "model", unet=network).scheduler  # as diffusers opens it
    torch.testing.assert_close(sample(network, read, 20, (3,), sampler=sampler, steps=10), _named(network, read))


def _named(network, process):
    """The samples through the scheduler a pipeline of the family holds."""
    return sample(network, process, 20, (3,), sampler="ddpm" if process.family == "vp" else "euler", steps=10)


@pytest.mark.parametrize("family", ["flow", "edm"])
def test_the_pipeline_of_diffusers_draws_the_same_images(family, tmp_path):
    from diffusers import ConsistencyModelPipeline, DDPMPipeline

    torch.manual_seed(0)
    process = AFTER[family]()
    Model(build_net("digits", (1, 8, 8)), process).save_pretrained(tmp_path / "model")
    network, read, clip = load_pipeline(tmp_path / "model")
    kind = ConsistencyModelPipeline if family == "edm" else DDPMPipeline
    pipeline = kind.from_pretrained(tmp_path / "model")
    pipeline.set_progress_bar_config(disable=True)
    drawn = pipeline(batch_size=2, generator=generators(0, range(2)), num_inference_steps=28, output_type="np").images
    ours = sample(network, read, 2, (1, 8, 8), steps=28, clip_sample=clip)
    torch.testing.assert_close(
        (ours / 2 + 0.5).clamp(0, 1).squeeze(1), torch.from_numpy(drawn).squeeze(-1), rtol=0, atol=5e-3
    )
