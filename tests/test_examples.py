"""The examples do what they say."""

import importlib.util
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

EXAMPLES = Path(__file__).parent.parent / "examples"


def example(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_text_to_image_learns(capsys):
    losses = example("text_to_image").main(24)
    assert sum(losses[-6:]) < 0.8 * sum(losses[:6])
    assert "samples [3, 3, 16, 16]" in capsys.readouterr().out


def test_only_the_adapter_of_a_lora_learns_and_is_saved(tmp_path):
    pytest.importorskip("peft")
    from peft import LoraConfig, set_peft_model_state_dict

    module = example("lora")
    before = module.network().state_dict()
    made = []
    original = module.network
    module.network = lambda: made.append(original()) or made[-1]
    path = module.main(str(tmp_path), 3)
    trained = made[0].state_dict()
    for name, value in before.items():  # peft renames the layers it wraps
        now = trained.get(name, trained.get(f"{name.rsplit('.', 1)[0]}.base_layer.{name.rsplit('.', 1)[1]}"))
        assert torch.equal(now, value), name
    saved = load_file(path)
    assert all("lora_" in name for name in saved)
    assert any("lora_B" in name and value.abs().sum() > 0 for name, value in saved.items()), "lora_B begins at zero"
    # The saved adapter on the untouched network is the trained one.
    again = original().requires_grad_(False)
    again.add_adapter(LoraConfig(r=4, lora_alpha=4, target_modules=["to_q", "to_k", "to_v", "to_out.0"]))
    set_peft_model_state_dict(again, saved)
    inputs = (torch.randn(2, 1, 8, 8), torch.tensor([5, 500]))
    given = {"encoder_hidden_states": torch.zeros(2, 1, 8), "class_labels": torch.tensor([0, 1])}
    with torch.no_grad():
        outputs = [net(*inputs, **given).sample for net in (again, made[0])]
    torch.testing.assert_close(*outputs)
