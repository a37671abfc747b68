"""Adversarial training in somebody else's loop: a plain diffusers and PyTorch program with three lines of atdm.

Trains a small U-Net on handwritten digits of which 90 % carry Gaussian noise, for less than a minute on a CPU, and
prints the terms of the loss. Run it with ``python examples/drop_in.py``.
"""

import torch
from diffusers import DDPMScheduler, UNet2DModel
from sklearn.datasets import load_digits

from atdm import Objective  # 1

STEPS = 100
BATCH = 64

torch.manual_seed(0)
images = torch.from_numpy(load_digits().images).float().div(8).sub(1).unsqueeze(1)  # [1797, 1, 8, 8] in [-1, 1]
noisy = torch.rand(len(images), 1, 1, 1) < 0.9
images = images + 0.2 * noisy * torch.randn_like(images)

unet = UNet2DModel(
    sample_size=8,
    in_channels=1,
    out_channels=1,
    layers_per_block=1,
    block_out_channels=(24, 48),
    down_block_types=("DownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "UpBlock2D"),
    norm_num_groups=8,
)
noise_scheduler = DDPMScheduler(num_train_timesteps=1000)
optimizer = torch.optim.AdamW(unet.parameters(), lr=1e-3)

objective = Objective.auto(
    images, noise_scheduler
)  # 2: looks at how noisy they are; Objective("ddpm", ...) for plain training

print(f"{'step':>5} {'loss':>8} {'denoise':>8} {'lambda_t * regularizer':>23} {'rms of delta':>13}")
for step in range(STEPS):
    x0 = images[torch.randint(len(images), (BATCH,))]
    terms = objective(unet, x0, step=step, steps=STEPS)  # the first half of the steps is plain training
    loss = terms.loss.mean()  # 3: in place of drawing t and noise, and mse_loss
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 10 == 0 or step == STEPS - 1:
        denoise, regularizer = terms.denoise.mean().item(), (terms.weight * terms.regularizer).mean().item()
        print(f"{step:5d} {loss.item():8.4f} {denoise:8.4f} {regularizer:23.4f} {terms.delta_rms.mean().item():13.3f}")
