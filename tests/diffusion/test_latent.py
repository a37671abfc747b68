"""An autoencoder in front, against diffusers' own arithmetic."""

import pytest
import torch
from diffusers import AutoencoderKL

from atdm.diffusion.latent import Latents
from atdm.diffusion.process import Process
from atdm.diffusion.sampling import sample
from atdm.errors import UserError
from atdm.objective import Objective


@pytest.fixture(scope="module")
def vae():
    torch.manual_seed(0)
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D", "DownEncoderBlock2D"),
        up_block_types=("UpDecoderBlock2D", "UpDecoderBlock2D"),
        block_out_channels=(4, 8),
        norm_num_groups=2,
        latent_channels=2,
        sample_size=8,
        scaling_factor=3.0,
        shift_factor=0.25,
    )


def test_encoding_is_scaled_and_decoding_undoes_it(vae, generator):
    latents, images = Latents(vae), torch.randn(5, 3, 8, 8, generator=generator).clamp(-1, 1)
    posterior = vae.encode(images).latent_dist
    torch.testing.assert_close(latents.encode(images), 3.0 * (posterior.mean - 0.25))
    drawn = latents.encode(images, torch.Generator().manual_seed(4))
    torch.testing.assert_close(drawn, 3.0 * (posterior.sample(torch.Generator().manual_seed(4)) - 0.25))
    assert not torch.equal(drawn, latents.encode(images))
    assert tuple(drawn.shape[1:]) == latents.shape_of((3, 8, 8)) == (2, 4, 4)
    torch.testing.assert_close(latents.decode(latents.encode(images), batch_size=2), vae.decode(posterior.mean).sample)


def test_the_objective_trains_on_latents_and_samples_decode(vae, tmp_path, generator):
    vae.save_pretrained(tmp_path)
    latents = Latents.load(tmp_path)
    images = torch.randn(64, 3, 8, 8, generator=generator).clamp(-1, 1)
    x0 = latents.encode(images, generator)
    net = torch.nn.Conv2d(2, 2, 1)
    terms = Objective("robust_adv", Process.linear())(lambda x, t: net(x), x0, generator=generator)
    terms.loss.mean().backward()
    assert net.weight.grad.abs().sum() > 0
    assert terms.perturbed.all()
    assert all(p.grad is None and not p.requires_grad for p in latents.vae.parameters())
    # The ideal denoiser of one latent samples its image.
    process, one = Process.linear(prediction="sample"), x0[:1]
    drawn = sample(lambda x, t: one.expand_as(x), process, 3, latents.shape_of((3, 8, 8)), steps=10)
    torch.testing.assert_close(latents.decode(drawn), latents.decode(one).expand(3, -1, -1, -1), rtol=1e-3, atol=1e-3)


def test_mistakes_are_sentences(vae, tmp_path):
    with pytest.raises(UserError, match="divisible by 2"):
        Latents(vae).shape_of((3, 9, 8))
    with pytest.raises(UserError, match="Cannot load an autoencoder"):
        Latents.load(tmp_path)
