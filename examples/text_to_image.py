"""Adversarial training of a latent text-to-image model, in a loop in the style of diffusers' ``train_text_to_image``.

Everything is tiny and randomly initialized, so that nothing is downloaded: replace the three networks by
``from_pretrained`` and the pictures by your data. What is atdm's is marked. Less than a minute on a CPU:
``python examples/text_to_image.py [STEPS]``.
"""

import sys

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from torch import nn

from atdm import Guided, Latents, Objective, Process, drop_conditioning, sample

BATCH, TOKENS, WIDTH = 16, 4, 16
COLORS = ["red", "green", "blue"]
WORDS = ["<nothing>", "a", "picture", *COLORS]


class TextEncoder(nn.Module):
    """In place of CLIP: an embedding of each word. [batch, TOKENS] ids to [batch, TOKENS, WIDTH]."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(len(WORDS), WIDTH)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.embed(ids)


def tokenize(prompts: list[str]) -> torch.Tensor:
    return torch.tensor([([WORDS.index(w) for w in p.split()] + [0] * TOKENS)[:TOKENS] for p in prompts])


def pictures(n: int, generator: torch.Generator) -> tuple[torch.Tensor, list[str]]:
    """Images [n, 3, 16, 16] of one colour with noise on 90 % of them, and what they show."""
    colors = torch.randint(3, (n,), generator=generator)
    images = (2.0 * nn.functional.one_hot(colors, 3) - 1)[:, :, None, None].expand(n, 3, 16, 16)
    noisy = torch.rand(n, 1, 1, 1, generator=generator) < 0.9
    return images + 0.2 * noisy * torch.randn(n, 3, 16, 16, generator=generator), [
        f"a {COLORS[c]} picture" for c in colors
    ]


def main(steps: int = 60) -> list[float]:
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    vae = AutoencoderKL(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
        latent_channels=4,
        scaling_factor=4.0,  # about one over the standard deviation of its latents
    )
    text_encoder = TextEncoder().requires_grad_(False)
    unet = UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        layers_per_block=1,
        block_out_channels=(16, 32),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=WIDTH,
        attention_head_dim=8,
        norm_num_groups=8,
    )
    noise_scheduler = DDPMScheduler(num_train_timesteps=1000, prediction_type="v_prediction")
    optimizer = torch.optim.AdamW(unet.parameters(), lr=4e-3)

    latents_of = Latents(vae)  # atdm
    objective = Objective("robust_adv", Process.from_scheduler(noise_scheduler))  # atdm
    empty = {"encoder_hidden_states": text_encoder(tokenize([""]))[0]}

    losses = []
    for step in range(1, steps + 1):
        images, prompts = pictures(BATCH, generator)
        latents = latents_of.encode(
            images
        )  # with a generator: a draw, but the posterior of a random network is all noise
        encoder_hidden_states = text_encoder(tokenize(prompts))
        # atdm: in place of drawing noise and timesteps, of the target for the prediction type, and of mse_loss
        kept = drop_conditioning({"encoder_hidden_states": encoder_hidden_states}, empty, 0.1, generator)
        terms = objective(unet, latents, generator=generator, **kept)
        loss = terms.loss.mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
        if step == 1 or step % 20 == 0:
            regularizer = (terms.weight * terms.regularizer).mean().item()
            print(
                f"step {step:4d}  loss {losses[-1]:.4f}  denoise {terms.denoise.mean():.4f}  regularizer {regularizer:.4f}"
            )

    guided = Guided(unet, empty, scale=2.0)  # atdm
    conditioning = {"encoder_hidden_states": text_encoder(tokenize([f"a {c} picture" for c in COLORS]))}
    drawn = sample(guided, objective.process, 3, latents_of.shape_of((3, 16, 16)), steps=20, conditioning=conditioning)
    print("samples", list(latents_of.decode(drawn).shape))
    return losses


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
