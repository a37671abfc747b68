"""Networks: shapes, specs, saving through diffusers, and the mistakes a user can make."""

import json
import subprocess
import sys

import pytest
import torch
from torch import nn

from atdm.errors import UserError
from atdm.nets import NETS, Perceptron, build_net, call, count_parameters, flops, load_net

SHAPES = {"mlp": (3,), "digits": (1, 8, 8), "tiny": (3, 16, 16), "cifar10": (3, 32, 32), "celeba64": (3, 64, 64)}
SMALL = {  # the same architectures, thinned so that a test takes no time
    "mlp": "mlp:residual=true,dropout=0.5",
    "digits": "digits:dropout=0.5",
    "tiny": "tiny:dropout=0.5",
    "cifar10": "cifar10:channels=8,blocks=1,head_dim=8,dropout=0.5",
    "celeba64": "celeba64:channels=8,blocks=1,head_dim=8,dropout=0.5",
}


def test_every_network_is_in_the_tables():
    assert set(SHAPES) == set(SMALL) == set(NETS)


@pytest.mark.parametrize("name", NETS)
def test_output_has_the_shape_of_the_input_and_depends_on_both(name, generator):
    torch.manual_seed(0)
    net = build_net(SMALL[name], SHAPES[name]).eval()
    x = torch.randn(2, *SHAPES[name], generator=generator)
    out = call(net, x, torch.tensor([10, 10]))
    assert out.shape == x.shape
    assert not torch.allclose(out, call(net, x, torch.tensor([900, 900])), atol=1e-5)
    assert not torch.allclose(out, call(net, x + 1, torch.tensor([10, 10])), atol=1e-5)
    items = torch.cat([call(net, x[:1], torch.tensor([10])), call(net, x[1:], torch.tensor([900]))])
    assert torch.allclose(call(net, x, torch.tensor([10, 900])), items, atol=1e-4)


@pytest.mark.parametrize("name", NETS)
def test_every_parameter_learns_and_dropout_drops(name, generator):
    torch.manual_seed(0)
    net = build_net(SMALL[name], SHAPES[name]).train()
    x = torch.randn(2, *SHAPES[name], generator=generator)
    t = torch.tensor([10, 900])
    first, second = call(net, x, t), call(net, x, t)
    assert not torch.allclose(first, second)
    first.square().sum().backward()
    assert all(p.grad is not None for p in net.parameters())


@pytest.mark.parametrize("name", NETS)
def test_saved_networks_come_back_bit_for_bit(name, tmp_path, generator):
    net = build_net(SMALL[name], SHAPES[name]).eval()
    net.save_pretrained(tmp_path)
    assert (tmp_path / "diffusion_pytorch_model.safetensors").is_file()
    back = load_net(tmp_path, SHAPES[name]).eval()
    x = torch.randn(2, *SHAPES[name], generator=generator)
    t = torch.tensor([10, 900])
    assert torch.equal(call(net, x, t), call(back, x, t))


@pytest.mark.parametrize("name", ["mlp", "digits"])
def test_diffusers_opens_and_samples_a_pipeline(name, tmp_path):
    from diffusers import DDPMPipeline, DDPMScheduler

    net = build_net(SMALL[name], (1, 8, 8))
    DDPMPipeline(net, DDPMScheduler()).save_pretrained(tmp_path / "model")
    pipeline = DDPMPipeline.from_pretrained(tmp_path / "model")
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline(3, num_inference_steps=2, output_type="np").images.shape == (3, 8, 8, 1)
    assert type(pipeline.unet) is type(net)
    for source in (tmp_path, tmp_path / "model", tmp_path / "model" / "unet"):
        back = load_net(source, (1, 8, 8))
        assert all(torch.equal(a, b) for a, b in zip(net.parameters(), back.parameters(), strict=True))


@pytest.mark.parametrize("residual", [False, True])
def test_mlp_takes_every_form_of_timestep(residual, generator):
    net = build_net(f"mlp:residual={residual}", (5,))
    x = torch.randn(4, 5, generator=generator)
    expected = net(x, torch.full((4,), 7)).sample
    for t in (7, 7.0, torch.tensor(7), torch.tensor([7]), torch.tensor(7).expand(4)):
        assert torch.allclose(net(x, t).sample, expected, atol=1e-6)
    assert torch.equal(net(x, 7, return_dict=False)[0], net(x, 7).sample)
    with pytest.raises(Exception, match=r"."):  # three timesteps for four items
        net(x, torch.tensor([1, 2, 3]))


def test_the_output_of_an_mlp_is_that_of_a_unet():
    """By attribute, by key, by place and as a tuple, and through a tree map as compilers walk it."""
    from diffusers.models.unets.unet_2d import UNet2DOutput

    x = torch.randn(2, 5)
    ours = build_net("mlp:width=8", (5,))(x, 3)
    theirs = UNet2DOutput(sample=ours.sample)
    for output in (ours, theirs):
        assert output[0] is output["sample"] is output.to_tuple()[0] is output.sample
    assert dict(ours) == dict(theirs)
    twice = torch.utils._pytree.tree_map(lambda value: 2 * value, ours)
    assert torch.equal(twice.sample, 2 * ours.sample)


def test_mlp_counts():
    width, depth, d = 16, 3, 2
    net = build_net(f"mlp:width={width},depth={depth}", (d,))
    embed = (32 * width // 2 + width // 2) + (width // 2 * width + width)
    layers = (d * width + width) + (depth - 1) * (width * width + width) + (width * d + d)
    assert count_parameters(net) == embed + layers
    matrices = 32 * width // 2 + width // 2 * width + d * width + (depth - 1) * width * width + width * d
    net.train()
    assert flops(net, (d,)) == 2 * matrices
    assert net.training


def test_published_sizes():
    # Improved DDPM names its CIFAR-10 network 50M and its 64x64 network 100M in its list of checkpoints.
    with torch.device("meta"):
        cifar10, celeba64 = (build_net(n, SHAPES[n]) for n in ("cifar10", "celeba64"))
    assert 49e6 < count_parameters(cifar10) < 56e6
    assert 100e6 < count_parameters(celeba64) < 125e6
    config = cifar10.config
    assert config["down_block_types"] == ("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "DownBlock2D")
    assert (config["layers_per_block"], config["dropout"], config["resnet_time_scale_shift"]) == (3, 0.3, "scale_shift")
    assert 0.5e6 < count_parameters(build_net("tiny", (3, 32, 32))) < 1e6


def test_an_mlp_learns_the_ideal_noise_of_a_gaussian(generator):
    # Data N(0, s^2 I): the ideal prediction is sigma x / (alpha^2 s^2 + sigma^2).
    s, alpha, sigma = 0.5, 0.8, 0.6
    torch.manual_seed(0)
    net = build_net("mlp:width=32,depth=2", (2,))
    optimizer = torch.optim.Adam(net.parameters(), 3e-3)
    for _ in range(400):
        x0, eps = s * torch.randn(256, 2, generator=generator), torch.randn(256, 2, generator=generator)
        loss = (call(net, alpha * x0 + sigma * eps, torch.full((256,), 300)) - eps).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    v = alpha**2 * s**2 + sigma**2
    x = v**0.5 * torch.randn(500, 2, generator=generator)
    error = (call(net, x, torch.full((500,), 300)) - sigma * x / v).square().mean() / (sigma**2 / v)
    assert error < 0.02


@pytest.mark.parametrize(
    "wrap", [lambda y: y, lambda y: (y, None), lambda y: [y], lambda y: type("Out", (), {"sample": y})()]
)
def test_call_takes_any_kind_of_output(wrap):
    def model(x, t, scale):
        return wrap(x * scale + t[:, None])

    assert torch.equal(call(model, torch.ones(2, 1), torch.tensor([1, 2]), scale=3), torch.tensor([[4.0], [5.0]]))


@pytest.mark.parametrize(
    ("spec", "shape", "message"),
    [
        ("mpl", (3,), "Unknown network 'mpl'. Did you mean 'mlp'"),
        ("mlp:widht=3", (3,), "no option 'widht'. Did you mean 'width'"),
        ("mlp:width=wide", (3,), "Expected an integer"),
        ("mlp:width=1", (3,), "at least 2 and a depth from 1"),
        ("mlp:dropout=1", (3,), r"\[0, 1\)"),
        ("mlp", (3, 4), "shape"),
        ("tiny", (3,), "use the network 'mlp'"),
        ("tiny", (3, 18, 16), "divisible by 4"),
        ("tiny:multipliers=1x2", (3, 16, 16), "such as 1-2-2"),
        ("tiny:channels=20,head_dim=7", (3, 16, 16), "does not divide"),
        ("tiny:dropout=2", (3, 16, 16), r"\[0, 1\)"),
        ("digits:blocks=0", (1, 8, 8), "at least 1"),
    ],
)
def test_mistakes_in_a_spec_are_told(spec, shape, message):
    with pytest.raises(UserError, match=message):
        build_net(spec, shape)


def test_mistakes_in_a_source_are_told(tmp_path):
    with pytest.raises(UserError, match="There is no folder"):
        load_net(tmp_path / "nowhere")
    with pytest.raises(UserError, match="Cannot load a network"):
        load_net(tmp_path)
    net = build_net("tiny", (3, 16, 16))
    net.save_pretrained(tmp_path)
    assert load_net(tmp_path, (3, 32, 32)).config["in_channels"] == 3
    with pytest.raises(UserError, match=r"items of shape \(3, 16, 16\); the data have \(1, 16, 16\)"):
        load_net(tmp_path, (1, 16, 16))
    weights = tmp_path / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(UserError, match="Cannot load a network"):
        load_net(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "AutoencoderKL"}))
    with pytest.raises(UserError, match="holds a AutoencoderKL"):
        load_net(tmp_path)


def test_other_outputs_than_the_inputs_or_twice_as_many_are_refused(tmp_path):
    from diffusers import UNet2DModel

    UNet2DModel(
        in_channels=1,
        out_channels=3,
        block_out_channels=(8,),
        norm_num_groups=4,
        attention_head_dim=4,
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
    ).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="as many outputs"):
        load_net(tmp_path, (1, 8, 8))


def test_importing_the_registry_imports_no_diffusers():
    code = "import sys, atdm.nets; sys.exit('diffusers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_flops_leave_modes_as_they_were():
    net = build_net("mlp:residual=true,dropout=0.5", (2,)).train()
    frozen = next(m for m in net.modules() if isinstance(m, nn.Dropout)).eval()
    flops(net, (2,))
    assert net.training
    assert not frozen.training


def test_a_network_that_cannot_fit_is_refused_before_memory_is_taken():
    with pytest.raises(UserError, match=r"mlp:width=1000000 would take [\d.,]+ GB of memory, and [\d.,]+ GB are free"):
        build_net("mlp:width=1000000", (3,))
    torch.manual_seed(0)
    net = build_net("mlp:width=8", (3,))
    torch.manual_seed(0)
    again = Perceptron(width=8)((3,))
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), again.parameters(), strict=True)), (
        "looking draws nothing"
    )
