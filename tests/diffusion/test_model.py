"""Models: opening runs and pipelines of all kinds, what they say of eps, D and the score, and runs of before."""

import json
import re
import shutil
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from diffusers import DDIMPipeline, DDIMScheduler, DDPMPipeline, DDPMScheduler, DiffusionPipeline, UNet2DModel
from safetensors.torch import load_file, save_file

import atdm
from atdm.diffusion.latent import Latents
from atdm.diffusion.model import Model, load_pipeline
from atdm.diffusion.process import Process
from atdm.diffusion.sampling import generators, sample, trajectory
from atdm.diffusion.schedulers import SAMPLERS, build_scheduler
from atdm.diffusion.steps import Sampling
from atdm.errors import UserError
from atdm.nets import build_net, load_net, weights_hash
from helpers import LINEAR, UNRESPACED, Ideal, S, seeded
from helpers import atdm as command

SMALL = {
    "sample_size": 8,
    "in_channels": 1,
    "out_channels": 1,
    "block_out_channels": (8, 8),
    "norm_num_groups": 4,
    "down_block_types": ("DownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "UpBlock2D"),
    "layers_per_block": 1,
}
NOT_FOLLOWED = (
    "which atdm's samplers do not follow: they space their steps evenly from the last timestep. From Python, sampler= takes "
    "the scheduler as it is."
)
BEFORE = Path(__file__).parent.parent / "data" / "before_redesign"


def pipeline(folder, scheduler=None, **options):
    """A stock pipeline of diffusers with a small random U-Net."""
    torch.manual_seed(0)
    DDPMPipeline(UNet2DModel(**(SMALL | options)), scheduler or DDPMScheduler()).save_pretrained(folder)
    return folder


class Timed(torch.nn.Module):
    """The ideal network for N(0, S^2 I), which is given the process's time and looks t up."""

    def __init__(self, process):
        super().__init__()
        self.process = process

    def forward(self, x, time):
        table = self.process.time(torch.arange(self.process.steps))
        t = (table[None] == time[:, None]).int().argmax(1)
        assert (table[t] == time).all(), "the network is given the process's time"
        alpha, sigma = self.process.alpha(t, x), self.process.sigma(t, x)
        v = alpha**2 * S**2 + sigma**2
        return self.process.target(alpha * S**2 * x / v, sigma * x / v, t)


@pytest.mark.parametrize("family", ["linear", "flow", "edm"])
def test_eps_the_denoised_item_and_the_score_are_the_closed_form_in_every_family(family):
    process = getattr(Process, family)()
    model = Model(Timed(process), process, shape=(2,))
    t = torch.tensor([0, 250, 500, 900])
    x = torch.randn(4, 2, generator=seeded())
    alpha, sigma = process.alpha(t, x), process.sigma(t, x)
    v = alpha**2 * S**2 + sigma**2
    torch.testing.assert_close(model.eps(x, t), sigma * x / v, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(model.denoised(x, t), alpha * S**2 * x / v, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(model.score(x, t), -x / v, rtol=1e-2, atol=1e-3)
    drawn = model.sample(2000, steps=50, seed=1)
    assert drawn.shape == (2000, 2)
    assert drawn.std() == pytest.approx(S, rel=0.08)
    assert model.item_shape == (2,)


def test_sampling_a_model_is_sampling_its_network(tmp_path):
    model = atdm.Model.from_pretrained(pipeline(tmp_path, DDPMScheduler(clip_sample=True)))
    assert model.clip_sample
    how = Sampling("ddpm", 20, stop_ratio=0.1)
    drawn = model.sample(4, how, seed=3)
    assert torch.equal(drawn, sample(model.net, model.process, 4, (1, 8, 8), how, seed=3, clip_sample=True))
    again = model.sample(4, sampler="ddpm", steps=20, stop_ratio=0.1, seed=3, batch_size=3)
    torch.testing.assert_close(drawn, again)
    network, process, clip = load_pipeline(tmp_path)
    assert (weights_hash(network), clip) == (model.hash, True)
    assert torch.equal(process.alphas, model.process.alphas)


def test_a_model_is_saved_whole_and_opens_again(tmp_path):
    model = Model(build_net("mlp:width=8", (3,)).eval(), Process.flow(shift=3.0))
    model.save_pretrained(tmp_path / "model")
    again = Model.from_pretrained(tmp_path)  # a folder with model/ is a run
    assert (again.hash, again.process.family, again.item_shape) == (model.hash, "flow", (3,))
    torch.testing.assert_close(again.sample(5, steps=10), model.sample(5, steps=10))
    with pytest.raises(AttributeError):
        model.clip_sample = True


def test_a_model_of_latents_samples_images(tmp_path):
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    vae = AutoencoderKL(
        block_out_channels=(8, 8),
        norm_num_groups=4,
        latent_channels=2,
        in_channels=1,
        out_channels=1,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
    )
    latents = Latents(vae)
    net = UNet2DModel(**(SMALL | {"sample_size": 4, "in_channels": 2, "out_channels": 2}))
    Model(net.eval(), LINEAR, latents=latents).save_pretrained(tmp_path)
    model = Model.from_pretrained(tmp_path)
    assert (model.net_shape, model.item_shape) == ((2, 4, 4), (1, 8, 8))
    images = model.sample(3, steps=4, seed=2)
    assert torch.equal(images, model.latents.decode(sample(model.net, model.process, 3, (2, 4, 4), steps=4, seed=2)))
    with pytest.raises(UserError, match="is a latent diffusion model, and this works on pixels"):
        Model.from_pretrained(tmp_path, pixels=True)


def test_one_class_of_a_class_conditional_network(tmp_path):
    pipeline(tmp_path, num_class_embeds=5)
    model = Model.from_pretrained(tmp_path, label=3)
    x, t = torch.randn(6, 1, 8, 8, generator=seeded()), torch.full((6,), 400)
    with torch.no_grad():
        wanted = model.net(x, t, class_labels=torch.full((6,), 3)).sample
        torch.testing.assert_close(model.output(x, t), wanted)
        assert not torch.allclose(model.output(x, t, class_labels=torch.tensor([1])), wanted)
    drawn = model.sample(3, steps=5, seed=0)
    labels = {"class_labels": torch.full((3,), 3)}
    torch.testing.assert_close(
        drawn, sample(model.net, model.process, 3, (1, 8, 8), steps=5, clip_sample=True, conditioning=labels)
    )
    each = model.sample(3, steps=5, conditioning={"class_labels": torch.tensor([3, 1, 3])})
    torch.testing.assert_close(each[::2], drawn[::2])
    assert not torch.allclose(each[1], drawn[1])


def test_of_learned_variances_the_half_of_the_mean_is_taken(tmp_path):
    """The trajectory is that of diffusers with the mean half; a run can start from it, too."""
    scheduler = DDPMScheduler(variance_type="learned_range", clip_sample=False)
    pipeline(tmp_path, scheduler, out_channels=2)
    whole = UNet2DModel.from_pretrained(tmp_path, subfolder="unet").eval()
    model = Model.from_pretrained(tmp_path)
    x, t = torch.randn(2, 1, 8, 8, generator=seeded()), torch.full((2,), 300)
    with torch.no_grad():
        torch.testing.assert_close(model.output(x, t), whole(x, t).sample[:, :1])
    wanted = sample(lambda x, t: whole(x, t).sample[:, :1], LINEAR, 2, (1, 8, 8), sampler="ddpm", steps=10)
    torch.testing.assert_close(model.sample(2, sampler="ddpm", steps=10), wanted)
    assert load_net(tmp_path, (1, 8, 8)).config["out_channels"] == 1
    model.save_pretrained(tmp_path / "again")
    assert Model.from_pretrained(tmp_path / "again").hash == model.hash


def test_a_network_for_any_size_takes_the_size_it_is_given(tmp_path, capsys):
    pipeline(tmp_path / "p", sample_size=None)
    model = Model.from_pretrained(tmp_path / "p")
    assert model.for_items((1, 12, 8), "p", "data").sample(2, steps=4).shape == (2, 1, 12, 8)
    with pytest.raises(UserError, match="does not say how large its images are"):
        model.sample(2)
    with pytest.raises(UserError, match=r"whose sides it can halve 1 times, and those of data are \[1, 7, 8\]"):
        model.for_items((1, 7, 8), "p", "data")
    words = ["sample", str(tmp_path / "p"), "--n", "2", "--sampling_steps", "4", "--out", str(tmp_path / "x.npz")]
    code, _, err = command(capsys, *words)
    assert code == 2
    assert "Expected a size: --image_size 32" in err
    assert command(capsys, *words, "--image_size", "16")[0] == 0
    assert np.load(tmp_path / "x.npz")["samples"].shape == (2, 1, 16, 16)
    evaluating = ["evaluate", str(tmp_path / "p"), "--data", "digits", "--n", "20", "--sampling_steps", "4", "--json"]
    assert command(capsys, *evaluating)[0] == 0  # as large as the reference


CANNOT = {
    "classes": ({"num_class_embeds": 5}, "is conditioned on one of 5 classes"),
    "embedding": ({"class_embed_type": "timestep"}, "is conditioned on an embedding"),
    "channels": ({"in_channels": 3}, "1 output channels for 3 inputs"),
}


@pytest.mark.parametrize("kind", CANNOT)
def test_what_cannot_run_is_refused_alike_by_every_command(kind, tmp_path, capsys):
    options, message = CANNOT[kind]
    p = str(pipeline(tmp_path / "p", **options))
    with pytest.raises(UserError, match=message):
        Model.from_pretrained(p)
    rest = ["--data", "digits", "--sampling_steps", "4"]
    commands = [
        ["sample", p, "--out", str(tmp_path / "x.npz")],
        ["evaluate", p, *rest],
        ["attack", p, *rest, "--out", str(tmp_path / "attack")],
        ["report", p, "--data", "digits", "--out", str(tmp_path / "r.html")],
        ["purify", p, *rest, "--noise", "0.5", "--out", str(tmp_path / "y.npz")],
        ["train", "--data", "digits", "--init", p, "--steps", "1", "--out", str(tmp_path / "run")],
        ["corrupt", "--data", "digits", "--corrupt", f"poison:model={p}", "--out", str(tmp_path / "dirty")],
    ]
    for words in commands:
        code, _, err = command(capsys, *words)
        assert code == 2, words
        assert message in " ".join(err.split()), words
    assert not (tmp_path / "x.npz").exists()


def test_labels_are_checked(tmp_path):
    pipeline(tmp_path / "classes", num_class_embeds=5)
    pipeline(tmp_path / "plain")
    with pytest.raises(UserError, match=r"The label is 5\. Expected one of the 5 classes"):
        Model.from_pretrained(tmp_path / "classes", label=5)
    with pytest.raises(UserError, match="knows no classes"):
        Model.from_pretrained(tmp_path / "plain", label=0)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ("", "model_index.json"),
        ("[1]", "not names with values"),
        ('{"unet": 1}', "names no unet and scheduler"),
        (
            '{"unet": ["diffusers", "UNet2DModel"], "scheduler": ["mine", "MyScheduler"]}',
            "which diffusers does not have",
        ),
        ('{"unet": ["diffusers", "UNet2DModel"], "scheduler": ["diffusers", "KarrasVeScheduler"]}', "KarrasVe"),
    ],
)
def test_a_pipeline_of_another_kind_is_told(index, message, tmp_path):
    pipeline(tmp_path)
    (tmp_path / "model_index.json").write_text(index)
    with pytest.raises(UserError, match=message):
        Model.from_pretrained(tmp_path)


SKIP = {
    "down_block_types": ("SkipDownBlock2D", "SkipDownBlock2D"),
    "up_block_types": ("SkipUpBlock2D", "SkipUpBlock2D"),
    "block_out_channels": (32, 32),
}
LEARNED = {"time_embedding_type": "learned", "num_train_timesteps": 10}
# What is written into the folder of a pipeline; and what is said of it.
BROKEN_PIPELINES = {
    "odd sides": (
        {"sample_size": 7},
        None,
        "images are 7x7 (sample_size), and it can run only on sides divisible by 2",
    ),
    "blocks for RGB": (SKIP, None, "cannot run: Given groups=1"),
    "few times": (LEARNED, None, "cannot run at the time 999 of its process: index out of range"),
    **{
        f"sample_size {value!r}": ({}, ("unet/config.json", {"sample_size": value}), f"has the sample_size {value!r}.")
        for value in (0, -8, 8.0, True, "8", [8], [8, 8, 8])
    },
    "norm_eps": ({}, ("unet/config.json", {"norm_eps": None}), "cannot run: group_norm(): argument 'eps'"),
    "classes": (
        {},
        ("unet/config.json", {"num_class_embeds": 3}),
        "lack class_embedding.weight, which its config.json",
    ),
    "depth": (
        {},
        ("unet/config.json", {"block_out_channels": [8, 16]}),
        "Expected a diffusers pipeline or model folder",
    ),
    **{
        f"{option} {value!r}": ({}, ("scheduler/scheduler_config.json", {option: value}), message)
        for option, value, message in (
            *(
                ("num_train_timesteps", n, f"has {n} timesteps. Expected from 1 to 1,000,000.")
                for n in (0, -1, None, "x", 1.5, 10**9)
            ),
            ("trained_betas", [], "have the shape [0]. Expected one number for each timestep."),
            ("trained_betas", "x", "does not open: new(): invalid data type 'str'."),
            ("trained_betas", [0.1, -3.0], "are not finite. Expected betas from 0 to 1."),
            ("beta_end", float("nan"), "are not finite. Expected betas from 0 to 1."),
            ("beta_end", -1, "are not finite. Expected betas from 0 to 1."),
            ("beta_start", None, "does not open: linspace() received an invalid combination of arguments"),
            ("beta_schedule", "x", "x is not implemented for DDPMScheduler."),
            ("prediction_type", None, "Unknown prediction 'None'."),
            ("prediction_type", "flow_prediction", "DDPMScheduler follows a flow."),
            ("clip_sample_range", "x", "cannot be used: bad operand type"),
        )
    },
    "thresholding": (
        {},
        ("scheduler/scheduler_config.json", {"thresholding": True, "dynamic_thresholding_ratio": 7}),
        "cannot be used: quantile() q must be in the range",
    ),
    "no scheduler": (
        {},
        ("model_index.json", {"scheduler": []}),
        "has the scheduler [], which diffusers does not have",
    ),
}


@pytest.mark.parametrize("kind", BROKEN_PIPELINES)
def test_a_pipeline_that_opens_but_cannot_run_is_a_sentence(kind, tmp_path, capsys):
    options, written, message = BROKEN_PIPELINES[kind]
    p = pipeline(tmp_path / "p", **options)
    if written is not None:
        file, values = written
        (p / file).write_text(json.dumps(json.loads((p / file).read_text()) | values))
    words = ["sample", str(p), "--n", "2", "--sampling_steps", "2", "--out", str(tmp_path / "x.npz")]
    code, _, err = command(capsys, *words)
    assert code == 2
    assert message in err
    assert not re.search(r"<class|0x|Warning|low_cpu_mem_usage", err)
    assert [line[:6] for line in err.splitlines()] == ["atdm: "]
    assert not (tmp_path / "x.npz").exists()


def test_a_run_cannot_begin_from_a_network_of_fewer_times(tmp_path, capsys):
    p = pipeline(tmp_path / "p", **LEARNED)
    words = ["train", "--data", "digits", "--objective", "ddpm", "--init", str(p), "--steps", "1"]
    code, _, err = command(capsys, *words, "--out", str(tmp_path / "run"))
    assert code == 2
    assert "cannot run at the time 999 of its process" in err


def test_weights_in_other_files_are_read_and_what_does_not_fit_is_said(tmp_path, capsys):
    p = pipeline(tmp_path / "p")
    drawn = Model.from_pretrained(p).sample(2, steps=2)
    file = p / "unet" / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    file.rename(file.with_suffix(".fp16.safetensors"))
    assert torch.equal(Model.from_pretrained(p).sample(2, steps=2), drawn)
    file.with_suffix(".fp16.safetensors").unlink()
    torch.save(weights, file.with_suffix(".bin"))
    words = ["sample", str(p), "--n", "2", "--sampling_steps", "2", "--quiet", "--out", str(tmp_path / "x.npz")]
    assert command(capsys, *words) == (0, f"2 samples are in {tmp_path}/x.npz.\n", "")
    UNet2DModel.from_pretrained(p, subfolder="unet").save_pretrained(p / "unet", max_shard_size="4KB")
    file.with_suffix(".bin").unlink()
    assert not file.exists()
    assert torch.equal(Model.from_pretrained(p).sample(2, steps=2), drawn)
    save_file(weights | {"more": torch.zeros(1)}, file, {"format": "pt"})
    for shard in (p / "unet").glob("*-of-*"):
        shard.unlink()
    (p / "unet" / "diffusion_pytorch_model.safetensors.index.json").unlink()
    with pytest.warns(UserWarning, match=f"The weights of '{p}' hold more, for which its config.json has no place"):
        assert torch.equal(Model.from_pretrained(p).sample(2, steps=2), drawn)
    weights.pop("conv_in.weight")
    save_file(weights, file, {"format": "pt"})
    with pytest.raises(UserError, match=r"lack conv_in\.weight, which its config\.json asks for"):
        Model.from_pretrained(p)


def test_weights_that_are_not_finite_are_refused(tmp_path, capsys):
    p = pipeline(tmp_path / "p")
    file = p / "unet" / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    weights["conv_in.weight"][0, 0, 0, 0] = float("nan")
    save_file(weights, file, {"format": "pt"})
    for words in (
        ["sample", str(p), "--out", str(tmp_path / "x.npz")],
        ["report", str(p), "--data", "digits", "--out", str(tmp_path / "r.html")],
        ["train", "--data", "digits", "--init", str(p), "--out", str(tmp_path / "run")],
    ):
        code, _, err = command(capsys, *words)
        assert (code, "are not finite (conv_in.weight)" in err) == (2, True), words


def test_samples_that_are_not_finite_are_refused(tmp_path, capsys):
    """Finite weights that overflow: nothing is written, and the exit code is 2."""
    p = pipeline(tmp_path / "p", DDPMScheduler(clip_sample=False))
    file = p / "unet" / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    weights["conv_out.weight"].fill_(3e38)
    save_file(weights, file, {"format": "pt"})
    rest = ["--data", "digits", "--sampling_steps", "4"]
    for words, what in (
        (
            ["sample", str(p), "--n", "3", "--sampling_steps", "4", "--out", str(tmp_path / "x.npz")],
            "3 of the 3 samples are not finite",
        ),
        (["attack", str(p), *rest, "--n", "4", "--seeds", "1", "--out", str(tmp_path / "a")], "samples without attack"),
        (
            ["purify", str(p), *rest, "--noise", "5", "--limit", "4", "--out", str(tmp_path / "y.npz")],
            "purified items",
        ),
        (
            [
                "report",
                str(p),
                "--data",
                "digits",
                "--n",
                "4",
                "--steps_list",
                "4",
                "--attacked",
                "2",
                "--out",
                str(tmp_path / "r.html"),
            ],
            "not finite",
        ),
    ):
        code, _, err = command(capsys, *words)
        assert (code, what in " ".join(err.split())) == (2, True), (words, err)
    assert not [f for f in ("x.npz", "y.npz", "r.html") if (tmp_path / f).exists()]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"clip_sample": False},
        {"clip_sample_range": 3.0},
        {"clip_sample": False, "thresholding": True},
        {"thresholding": True, "dynamic_thresholding_ratio": 0.5, "sample_max_value": 2.0},
        {"variance_type": "fixed_large"},
        {"variance_type": "fixed_small_log"},
        {"beta_schedule": "scaled_linear"},
        {"clip_sample": False, "set_alpha_to_one": False},
        {"steps_offset": 1, "clip_sample_range": 0.5},
        {"beta_schedule": "squaredcos_cap_v2", "prediction_type": "v_prediction"},
        {"prediction_type": "sample"},
        {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"},
        {"num_train_timesteps": 500},
        {"trained_betas": [0.001 * (i + 1) for i in range(20)], "num_train_timesteps": 20},
    ],
    ids=lambda options: ",".join(options) or "stock",
)
@pytest.mark.parametrize("name", ["ddpm", "ddim"])
def test_what_a_scheduler_says_is_done(name, options, tmp_path):
    """The samples are those of diffusers' own pipeline: its scheduler with evenly spaced steps."""
    if (name == "ddim" and "variance_type" in options) or (name == "ddpm" and "set_alpha_to_one" in options):
        pytest.skip("it has no such option")
    kind, pipe = (DDPMScheduler, DDPMPipeline) if name == "ddpm" else (DDIMScheduler, DDIMPipeline)
    scheduler = kind(timestep_spacing="trailing", **options)
    pipeline(tmp_path, scheduler)
    steps = 10
    model = Model.from_pretrained(tmp_path)
    theirs = pipe.from_pretrained(tmp_path)
    theirs.set_progress_bar_config(disable=True)
    wanted = theirs(2, generator=generators(0, range(2)), num_inference_steps=steps, output_type="np").images
    ours = model.sample(2, sampler=name, steps=steps, seed=0)
    np.testing.assert_allclose((ours.permute(0, 2, 3, 1) / 2 + 0.5).clamp(0, 1), wanted, atol=2e-4)
    model.save_pretrained(tmp_path / "again")
    torch.testing.assert_close(Model.from_pretrained(tmp_path / "again").sample(2, sampler=name, steps=steps), ours)


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_schedule_that_not_every_scheduler_knows_is_followed_by_all_samplers(tmp_path, name):
    p = pipeline(tmp_path, DDPMScheduler(beta_schedule="sigmoid"))
    model = Model.from_pretrained(p)
    torch.testing.assert_close(model.process.alphas, DDPMScheduler(beta_schedule="sigmoid").alphas_cumprod.sqrt())
    assert model.sample(2, sampler=name, steps=10).isfinite().all()


def test_the_logarithm_of_a_large_variance_is_that_variance(tmp_path):
    """Diffusers takes its root, which is no number."""
    drawn = []
    for kind in ("fixed_large", "fixed_large_log"):
        model = Model.from_pretrained(pipeline(tmp_path / kind, DDPMScheduler(variance_type=kind)))
        drawn.append(model.sample(2, sampler="ddpm", steps=10))
    assert torch.equal(*drawn)
    assert drawn[0].isfinite().all()


@pytest.mark.parametrize(
    ("kind", "options", "said"),
    [
        ("DDPMScheduler", {"timestep_spacing": "trailing", "clip_sample_range": 2.0, "variance_type": "learned"}, ""),
        ("DDIMScheduler", {"set_alpha_to_one": False, "rescale_betas_zero_snr": False}, ""),
        ("DDIMScheduler", {"steps_offset": 1}, "steps_offset"),
        ("PNDMScheduler", {"skip_prk_steps": True, "steps_offset": 1}, "skip_prk_steps, steps_offset"),
        ("EulerDiscreteScheduler", {"use_karras_sigmas": True}, "use_karras_sigmas"),
        ("EulerDiscreteScheduler", {"interpolation_type": "log_linear"}, "interpolation_type"),
        ("EulerDiscreteScheduler", {"final_sigmas_type": "sigma_min"}, "final_sigmas_type"),
        ("HeunDiscreteScheduler", {"use_exponential_sigmas": True}, "use_exponential_sigmas"),
        ("LMSDiscreteScheduler", {"use_beta_sigmas": True}, "use_beta_sigmas"),
        ("DPMSolverMultistepScheduler", {"solver_order": 3, "euler_at_final": True}, "solver_order, euler_at_final"),
        ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}, "algorithm_type"),
        ("DPMSolverMultistepScheduler", {"use_lu_lambdas": True, "thresholding": True}, "use_lu_lambdas"),
        ("DPMSolverSinglestepScheduler", {"lower_order_final": True}, "lower_order_final"),
        ("UniPCMultistepScheduler", {"solver_type": "bh1", "predict_x0": False}, "predict_x0, solver_type"),
        ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0, "stochastic_sampling": True}, ""),
        ("FlowMatchEulerDiscreteScheduler", {"use_dynamic_shifting": True}, "use_dynamic_shifting"),
        ("FlowMatchEulerDiscreteScheduler", {"shift_terminal": 0.1}, "shift_terminal"),
        ("EDMEulerScheduler", {"sigma_min": 0.01, "final_sigmas_type": "sigma_min"}, "final_sigmas_type"),
        ("EDMDPMSolverMultistepScheduler", {"thresholding": True, "rho": 5.0}, "thresholding"),
    ],
)
def test_what_is_not_followed_of_a_scheduler_is_said(kind, options, said, tmp_path, recwarn):
    scheduler = getattr(diffusers, kind)(**options)
    model = Model.from_pretrained(pipeline(tmp_path, scheduler))
    found = [str(w.message) for w in recwarn if "which atdm's samplers" in str(w.message)]
    assert found == ([f"The scheduler of {tmp_path} has {said}, {NOT_FOLLOWED}"] if said else [])
    assert model.clip_sample == scheduler.config.get("clip_sample", False)  # those without the word do not clip


def test_the_pndm_sampler_ends_as_the_pipeline_says(tmp_path):
    for last in (False, True):
        model = Model.from_pretrained(pipeline(tmp_path / str(last), diffusers.PNDMScheduler(set_alpha_to_one=last)))
        assert build_scheduler("pndm", model.process).config.set_alpha_to_one == last


def test_options_of_clipping_change_the_samples(tmp_path):
    """Else the test above would pass by ignoring them."""
    drawn = {}
    for key, options in {
        "1": {},
        "3": {"clip_sample_range": 3.0},
        "dynamic": {"thresholding": True, "sample_max_value": 2.0},
    }.items():
        model = Model.from_pretrained(pipeline(tmp_path / key, DDPMScheduler(**options)))
        drawn[key] = model.sample(2, sampler="ddpm", steps=10)
        *_, last = trajectory(
            model.net,
            model.process,
            (2, 1, 8, 8),
            model.sampling(Sampling("ddpm", 10, stop_ratio=5.0)),
            generator=seeded(),
        )
        assert (last.next.abs().max() > 1.01) == (key == "3"), key
    assert not torch.allclose(drawn["1"], drawn["3"])
    assert not torch.allclose(drawn["1"], drawn["dynamic"])


def test_a_process_that_ends_at_pure_noise():
    scheduler = DDIMScheduler(rescale_betas_zero_snr=True, prediction_type="v_prediction")
    process = Process.from_scheduler(scheduler)
    assert process.alphas[-1] == 0
    for name in SAMPLERS:
        if name in ("ddpm", "ddim", UNRESPACED):
            x = Model(Timed(process), process, shape=(2,)).sample(2000, sampler=name, steps=100)
            assert name == UNRESPACED or x.std() == pytest.approx(S, rel=0.08)
        else:
            with pytest.raises(
                UserError, match=re.escape(f"The sampler '{name}' works with sigma_t/alpha_t, which is infinite")
            ):
                build_scheduler(name, process)
    from diffusers import EulerDiscreteScheduler

    euler = EulerDiscreteScheduler(rescale_betas_zero_snr=True, prediction_type="v_prediction")
    torch.testing.assert_close(Process.from_scheduler(euler).alphas, process.alphas)
    noise = Process.from_scheduler(DDIMScheduler(rescale_betas_zero_snr=True))
    with pytest.raises(UserError, match="where a network that predicts 'epsilon' says nothing"):
        sample(Ideal(noise), noise, 2, (2,))


@pytest.mark.parametrize("family", ["plane", "edm"])
def test_runs_of_before_open_and_sample_as_they_did(family, tmp_path, capsys):
    """Run folders that atdm wrote before there was a Model: the samples are those it drew then."""
    out = tmp_path / "x.npz"
    words = [
        "sample",
        str(BEFORE / family),
        "--n",
        "8",
        "--sampling_steps",
        "10",
        "--seed",
        "3",
        "--out",
        str(out),
        "--json",
    ]
    code, printed, _ = command(capsys, *words)
    assert code == 0
    np.testing.assert_allclose(np.load(out)["samples"], np.load(BEFORE / family / "samples.npz")["samples"], atol=1e-4)
    assert json.loads(printed)["sampler"] == {"plane": "ddpm", "edm": "euler"}[family]
    assert command(capsys, "show", "run", str(BEFORE / family), "--out", str(tmp_path / "shown.png"))[0] == 0
    assert DiffusionPipeline.config_name == "model_index.json"


def test_a_run_of_before_is_resumed_to_the_same_weights(tmp_path, capsys):
    run = tmp_path / "plane"
    shutil.copytree(BEFORE / "plane", run)
    end = load_file(run / "model" / "unet" / "diffusion_pytorch_model.safetensors")
    shutil.rmtree(run / "model")
    words = [
        "--data",
        "plane:n=600",
        "--corrupt",
        "gaussian:share=0.9,std=0.2",
        "--net",
        "mlp:width=32",
        "--threads",
        "1",
    ]
    words += [
        "--objective.name",
        "robust_adv",
        "--objective.radius",
        "constant:r=1",
        "--objective.weight",
        "relative:k=5",
    ]
    words += [
        "--objective.gate",
        "0.5",
        "--steps",
        "30",
        "--log_every",
        "10",
        "--save_every",
        "20",
        "--batch_size",
        "32",
    ]
    code, _, err = command(capsys, "train", *words, "--out", str(run), "--json")
    assert code == 0, err
    again = load_file(run / "model" / "unet" / "diffusion_pytorch_model.safetensors")
    for name, value in end.items():
        torch.testing.assert_close(again[name], value, atol=1e-5, rtol=1e-4)
