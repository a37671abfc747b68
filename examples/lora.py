"""Fine-tuning a LoRA on noisy data, plain and with adversarial training: only the adapters learn and are saved.

A small U-Net first learns the digits 0 to 4, clean. Then two LoRAs are fine-tuned on the digits 5 to 9, of which 90 %
carry Gaussian noise of std 0.3: one with ``ddpm``, one with ``robust_adv``. Printed is how much noise their samples hold.

Needs peft (``pip install "atdm[examples]"``). One or two minutes on one core: ``python examples/lora.py [FOLDER]``.
"""

import copy
import math
import sys
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors.torch import save_file
from sklearn.datasets import load_digits
from torch import Tensor

from atdm import Objective, Perturbation, Process, sample
from atdm.metrics import never_varying_noise, noise_std
from atdm.objective.perturb import ConstantRadius, RelativeWeight

BATCH = 32
LORA = LoraConfig(r=4, lora_alpha=4, target_modules=["to_q", "to_k", "to_v", "to_out.0", "conv1", "conv2"])
PROCESS = Process.linear(steps=100, prediction="v_prediction")
OBJECTIVES = {
    "ddpm": Objective("ddpm", PROCESS),
    "robust_adv": Objective(
        "robust_adv", PROCESS, ConstantRadius(1.0), RelativeWeight(5.0), Perturbation("l2", kappa=math.inf), gate=0.4
    ),
}


def network() -> UNet2DConditionModel:
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        layers_per_block=1,
        block_out_channels=(16, 32),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=8,
        attention_head_dim=8,
        mid_block_type=None,
        norm_num_groups=8,
    )


def digits() -> tuple[Tensor, Tensor]:
    """The clean digits 0 to 4 and 5 to 9, in [-1, 1]."""
    found = load_digits()
    x = torch.from_numpy(found.images).float().div(8).sub(1).unsqueeze(1)
    return x[found.target < 5], x[found.target >= 5]


def fit(unet: UNet2DConditionModel, objective: Objective, x: Tensor, steps: int, lr: float) -> None:
    """Train the parameters that are not frozen."""
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW([p for p in unet.parameters() if p.requires_grad], lr=lr)
    text = torch.zeros(BATCH, 1, 8)  # no text: the network is not asked for anything in particular
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = lr * (1 - step / steps)
        x0 = x[torch.randint(len(x), (BATCH,), generator=generator)]
        loss = objective(unet, x0, generator=generator, encoder_hidden_states=text).loss.mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def drawn(unet: UNet2DConditionModel, n: int = 128) -> Tensor:
    text = {"encoder_hidden_states": torch.zeros(n, 1, 8)}
    return sample(unet, PROCESS, n, (1, 8, 8), steps=20, clip_sample=True, conditioning=text)


def main(folder: str = "lora", first: int = 200, steps: int = 120) -> list[Path]:
    torch.set_num_threads(1)
    old, new = digits()
    generator = torch.Generator().manual_seed(1)
    noise = 0.3 * torch.randn(new.shape, generator=generator)
    noisy = new + (torch.rand(len(new), 1, 1, 1, generator=generator) < 0.9) * noise

    base = network()
    fit(base, OBJECTIVES["ddpm"], old, first, 6e-3)
    shown, paths = {"clean data": new, "noisy data": noisy}, []
    for name, objective in OBJECTIVES.items():
        unet = copy.deepcopy(base).requires_grad_(False)
        unet.add_adapter(LORA)
        fit(unet, objective, noisy, steps, 6e-3)
        shown[f"LoRA, {name}"] = drawn(unet)
        path = Path(folder) / name / "adapter_model.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({k: v.contiguous() for k, v in get_peft_model_state_dict(unet).items()}, path)
        paths.append(path)
    learned = sum(p.numel() for p in unet.parameters() if p.requires_grad)
    print(f"{learned:,} of {sum(p.numel() for p in unet.parameters()):,} parameters learn.")
    print(f"{'':17} {'residual noise':>15} {'where clean digits are constant':>33}")
    for name, x in shown.items():
        print(f"{name:17} {noise_std(x):15.3f} {never_varying_noise(x, new):33.3f}")
    print(f"The adapters are in {', '.join(map(str, paths))}.")
    return paths


if __name__ == "__main__":
    main(*sys.argv[1:2])
