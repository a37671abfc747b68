"""Fine-tuning a LoRA with adversarial training: only the adapter learns, and only the adapter is saved.

Needs peft (``pip install "atdm[examples]"``). The network is tiny and randomly initialized, so that nothing is
downloaded. Seconds on a CPU: ``python examples/lora.py [FOLDER] [STEPS]``.
"""

import sys
from pathlib import Path

import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors.torch import save_file

from atdm import Objective, Process, drop_conditioning

BATCH, CLASSES = 16, 3


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
        norm_num_groups=8,
        num_class_embeds=CLASSES + 1,  # one more for a dropped class
    )


def main(folder: str = "lora", steps: int = 40) -> Path:
    generator = torch.Generator().manual_seed(0)
    unet = network().requires_grad_(False)
    unet.add_adapter(LoraConfig(r=4, lora_alpha=4, target_modules=["to_q", "to_k", "to_v", "to_out.0"]))
    learned = [p for p in unet.parameters() if p.requires_grad]
    print(f"{sum(p.numel() for p in learned):,} of {sum(p.numel() for p in unet.parameters()):,} parameters learn")

    objective = Objective("robust_adv", Process.from_scheduler(DDPMScheduler(num_train_timesteps=1000)))
    optimizer = torch.optim.AdamW(learned, lr=1e-3)
    text = torch.zeros(BATCH, 1, 8)
    for step in range(1, steps + 1):
        labels = torch.randint(CLASSES, (BATCH,), generator=generator)
        x0 = (labels - 1.0)[:, None, None, None] + 0.2 * torch.randn(BATCH, 1, 8, 8, generator=generator)
        kept = drop_conditioning({"class_labels": labels}, {"class_labels": torch.tensor(CLASSES)}, 0.1, generator)
        loss = objective(unet, x0, generator=generator, encoder_hidden_states=text, **kept).loss.mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step == 1 or step % 10 == 0:
            print(f"step {step:4d}  loss {loss.item():.4f}")

    path = Path(folder) / "adapter_model.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({k: v.contiguous() for k, v in get_peft_model_state_dict(unet).items()}, path)
    print(f"The adapter is in {path}.")
    return path


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "lora", *map(int, sys.argv[2:3]))
