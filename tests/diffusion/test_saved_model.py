"""The folder of a pipeline, written part by part."""

import pytest
import torch
from diffusers import AutoencoderKL, ConsistencyModelPipeline, DDPMPipeline, LDMPipeline

from atdm.diffusion.latent import Latents
from atdm.diffusion.model import Model
from atdm.diffusion.process import Process
from atdm.diffusion.schedulers import pipeline_scheduler
from atdm.files import seal
from atdm.nets import build_net


def autoencoder():
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(4, 8),
        norm_num_groups=2,
        latent_channels=1,
    )


def contents(folder):
    return {file.relative_to(folder): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.mark.parametrize("net", ["mlp:width=16", "digits"])
@pytest.mark.parametrize(
    ("process", "kind", "latent"),
    [
        (Process.linear, DDPMPipeline, False),
        (Process.flow, DDPMPipeline, False),
        (Process.edm, ConsistencyModelPipeline, False),
        (Process.linear, LDMPipeline, True),
    ],
    ids=["vp", "flow", "edm", "latent"],
)
def test_a_folder_is_what_the_pipeline_itself_writes(net, process, kind, latent, tmp_path):
    network, process = build_net(net, (1, 8, 8)), process()
    latents = Latents(autoencoder()) if latent else None
    model = Model(network, process, True, latents)
    model.save_pretrained(tmp_path / "ours")
    scheduler = pipeline_scheduler(process, True, deterministic=latent)
    pipeline = kind(network, scheduler) if latents is None else kind(latents.vae, network, scheduler)
    pipeline.save_pretrained(tmp_path / "theirs")
    seal(tmp_path / "theirs")
    assert contents(tmp_path / "ours") == contents(tmp_path / "theirs")
    assert model.pipeline_class == kind.__name__


def test_an_mlp_writes_itself_as_any_model_does(tmp_path):
    network = build_net("mlp:width=16,skip=true", (3,))
    network.enter.weight.data = network.enter.weight.data.T.contiguous().T  # another order in memory
    network.save_pretrained(tmp_path / "ours")
    super(type(network), network).save_pretrained(tmp_path / "theirs")
    assert contents(tmp_path / "ours") == contents(tmp_path / "theirs")
    network.save_pretrained(tmp_path / "half", variant="fp16")
    assert (tmp_path / "half" / "diffusion_pytorch_model.fp16.safetensors").is_file()


def test_an_mlp_moves_and_converts_as_any_module():
    network = build_net("mlp:width=16", (3,))
    assert network.to(torch.float64) is network
    assert {p.dtype for p in network.parameters()} == {torch.float64}
    assert network.to("meta").device.type == "meta"
