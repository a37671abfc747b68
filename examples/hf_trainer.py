"""Adversarial training with the Trainer of Hugging Face: ``compute_loss`` gives the objective the batch, the step and their number.

Trains a small U-Net on handwritten digits of which 90 % carry Gaussian noise, for less than a minute on a CPU. Run it with
``python examples/hf_trainer.py`` (``pip install 'atdm[examples]'``).
"""

import tempfile

import torch
from diffusers import DDPMScheduler, UNet2DModel
from sklearn.datasets import load_digits
from transformers import Trainer, TrainingArguments, set_seed

from atdm import Objective


class DenoisingTrainer(Trainer):
    def __init__(self, objective, **options):
        super().__init__(**options)
        self.objective = objective

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        steps = self.state.max_steps
        terms = self.objective(model, inputs["images"], step=self.state.global_step, steps=steps)
        return terms.loss.mean()


def main(steps: int = 100) -> DenoisingTrainer:
    set_seed(0)
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
    with tempfile.TemporaryDirectory() as folder:
        trainer = DenoisingTrainer(
            objective=Objective.auto(images, DDPMScheduler(num_train_timesteps=1000)),
            model=unet,
            train_dataset=[{"images": image} for image in images],
            args=TrainingArguments(
                folder,
                max_steps=steps,
                per_device_train_batch_size=64,
                learning_rate=1e-3,
                lr_scheduler_type="constant",
                logging_steps=max(1, steps // 10),
                save_strategy="no",
                report_to="none",
                remove_unused_columns=False,
            ),
        )
        trainer.train()
    return trainer


if __name__ == "__main__":
    main()
