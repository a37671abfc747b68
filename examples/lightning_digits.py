"""Adversarial training in Lightning: ``training_step`` gives the objective the batch, the step and their number.

Trains a small U-Net on handwritten digits of which 90 % carry Gaussian noise, for less than a minute on a CPU. Run it with
``python examples/lightning_digits.py`` (``pip install 'atdm[examples]'``).
"""

import lightning
import torch
from diffusers import DDPMScheduler, UNet2DModel
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader, TensorDataset

from atdm import Objective


class Denoiser(lightning.LightningModule):
    def __init__(self, unet, objective):
        super().__init__()
        self.unet, self.objective = unet, objective

    def training_step(self, batch, index):
        steps = self.trainer.estimated_stepping_batches
        terms = self.objective(self.unet, batch[0], step=self.global_step, steps=steps)
        shown = {"denoise": terms.denoise.mean(), "regularizer": (terms.weight * terms.regularizer).mean()}
        self.log_dict(shown, prog_bar=True)
        return terms.loss.mean()

    def configure_optimizers(self):
        return torch.optim.AdamW(self.unet.parameters(), lr=1e-3)


def main(steps: int = 100) -> Denoiser:
    lightning.seed_everything(0)
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
    model = Denoiser(unet, Objective.auto(images, DDPMScheduler(num_train_timesteps=1000)))
    trainer = lightning.Trainer(
        max_steps=steps, max_epochs=-1, logger=False, enable_checkpointing=False, log_every_n_steps=10
    )
    trainer.fit(model, DataLoader(TensorDataset(images), batch_size=64, shuffle=True, drop_last=True))
    return model


if __name__ == "__main__":
    main()
