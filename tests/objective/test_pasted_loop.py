"""README's three lines in a loop like diffusers' example of unconditional training: they do what ``atdm train`` does."""

import re
from pathlib import Path

import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from torch.nn.functional import mse_loss

import atdm
from atdm.corruption import corrupt
from atdm.metrics import never_varying_noise
from atdm.training.config import ObjectiveConfig, TrainConfig
from atdm.training.run import train

pytestmark = pytest.mark.slow  # a minute of processor time

STEPS, BATCH, LR, WARMUP, EMA = 1500, 128, 1e-3, 100, 0.995
NOISE, NET = "gaussian:share=0.9,std=0.2", "mlp:width=256,depth=3,residual=true"
README = Path(__file__).parents[2] / "README.md"


@pytest.fixture(scope="module")
def digits():
    dataset = atdm.load("digits")
    return corrupt(dataset.x, NOISE, 0)[0], dataset.test


def looped(images, pasted):
    """The averaged network after diffusers' loop, with its own loss or the lines of README."""
    torch.manual_seed(0)
    unet = atdm.build_net(NET, (1, 8, 8))
    noise_scheduler = DDPMScheduler(num_train_timesteps=1000)
    optimizer = torch.optim.AdamW(unet.parameters(), lr=LR, weight_decay=0.0)
    lr_scheduler = get_scheduler("cosine", optimizer, num_warmup_steps=WARMUP, num_training_steps=STEPS)
    ema = EMAModel(unet.parameters(), decay=EMA)
    steps, scope = STEPS, {"images": images, "noise_scheduler": noise_scheduler, "steps": STEPS, "unet": unet}
    if pasted:
        block = next(b for b in re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL) if "auto(" in b)
        *before, line = block.strip().splitlines()
        exec("\n".join(before), scope)
    for step in range(steps):
        batch = images[torch.randint(len(images), (BATCH,))]
        if pasted:
            scope |= {"batch": batch, "step": step}
            exec(line, scope)
            loss = scope["loss"]
        else:
            noise = torch.randn_like(batch)
            t = torch.randint(noise_scheduler.config.num_train_timesteps, (BATCH,))
            loss = mse_loss(unet(noise_scheduler.add_noise(batch, noise, t), t).sample, noise)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
        lr_scheduler.step()
        ema.step(unet.parameters())
    ema.copy_to(unet.parameters())
    return atdm.Model(unet.eval(), atdm.Process.from_scheduler(noise_scheduler), shape=(1, 8, 8))


def trained(folder):
    """What ``atdm train --objective auto`` makes of the same images."""
    how = {"steps": STEPS, "batch_size": BATCH, "lr": LR, "warmup": WARMUP, "ema": EMA, "decay": "cosine", "net": NET}
    config = TrainConfig(
        data="digits", corrupt=NOISE, objective=ObjectiveConfig("auto"), out=str(folder), threads=1, **how
    )
    for _ in train(config):
        pass
    return atdm.Model.from_pretrained(folder)


def test_the_lines_of_readme_beat_ddpm_and_reach_what_atdm_train_reaches(digits, tmp_path, capsys):
    images, clean = digits
    assert images.std() > clean.std()
    models = {"ddpm": looped(images, False), "pasted": looped(images, True), "atdm train": trained(tmp_path / "run")}
    assert "objective auto: where the data vary least" in capsys.readouterr().out  # it says what it chose
    noise = {name: never_varying_noise(model.sample(512, steps=50, seed=1), clean) for name, model in models.items()}
    assert noise["pasted"] < 0.8 * noise["ddpm"], noise
    assert noise["pasted"] == pytest.approx(noise["atdm train"], rel=0.1), noise
