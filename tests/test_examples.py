"""The examples do what they say."""

import copy
import importlib.util
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

EXAMPLES = Path(__file__).parents[1] / "examples"


def example(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_text_to_image_learns(capsys):
    losses = example("text_to_image").main(24)
    assert sum(losses[-6:]) < 0.8 * sum(losses[:6])
    assert "samples [3, 3, 16, 16]" in capsys.readouterr().out


def test_only_the_adapters_of_a_lora_learn_and_are_saved(tmp_path, capsys):
    from peft import set_peft_model_state_dict

    module = example("lora")
    made, original = [], module.fit
    module.fit = lambda unet, *others: made.append(unet) or original(unet, *others)
    paths = module.main(str(tmp_path), 2, 3)
    base, *adapted = made
    assert [path.parent.name for path in paths] == ["ddpm", "robust_adv"]
    out = capsys.readouterr().out
    assert all(f"LoRA, {path.parent.name}" in out for path in paths)
    text = torch.zeros(2, 1, 8)
    inputs = (torch.randn(2, 1, 8, 8), torch.tensor([5, 50]), text)
    for path, unet in zip(paths, adapted, strict=True):
        trained = unet.state_dict()
        for name, value in base.state_dict().items():  # peft renames the layers it wraps
            now = trained.get(name, trained.get(f"{name.rsplit('.', 1)[0]}.base_layer.{name.rsplit('.', 1)[1]}"))
            assert torch.equal(now, value), name
        saved = load_file(path)
        assert all("lora_" in name for name in saved)
        assert any("lora_B" in name and value.abs().sum() > 0 for name, value in saved.items()), "lora_B begins at zero"
        # The saved adapter on the untouched network is the trained one.
        again = copy.deepcopy(base)
        again.add_adapter(module.LORA)
        set_peft_model_state_dict(again, saved)
        with torch.no_grad():
            torch.testing.assert_close(again(*inputs).sample, unet(*inputs).sample)


class Heard:
    """An objective that notes what it is called with and what comes of it."""

    def __init__(self, objective):
        self.objective, self.calls = objective, []

    def __call__(self, model, x, *, step, steps):
        terms = self.objective(model, x, step=step, steps=steps)
        self.calls.append((step, steps, terms.loss.mean().item(), bool(terms.weight.any())))
        return terms


@pytest.mark.slow
@pytest.mark.parametrize(("name", "package"), [("lightning_digits", "lightning"), ("hf_trainer", "transformers")])
def test_a_loop_of_others_gives_every_step_and_learns(name, package, monkeypatch):
    pytest.importorskip(package)
    module, heard = example(name), []
    choose = module.Objective.auto
    monkeypatch.setattr(module.Objective, "auto", lambda *given: heard.append(Heard(choose(*given))) or heard[-1])
    module.main(24)
    calls = heard[0].calls
    assert [(step, steps) for step, steps, *_ in calls] == [(step, 24) for step in range(24)]
    losses = [loss for _, _, loss, regularized in calls if not regularized]
    assert sum(losses[-4:]) < 0.6 * sum(losses[:4])
    assert {regularized for step, _, _, regularized in calls if step < 12} == {False}
    assert any(regularized for *_, regularized in calls), "auto perturbs in the second half"


@pytest.mark.parametrize(
    ("ends", "sent", "code", "requeued"),
    [("exit 0", False, 0, False), ("exit 2", False, 2, False), ("", True, 130, True), ("exit 130", False, 130, False)],
)
@pytest.mark.parametrize("script", ["slurm.sbatch", "slurm-nodes.sbatch"])
def test_a_job_of_slurm_goes_on_when_it_was_stopped_and_only_then(tmp_path, script, ends, sent, code, requeued):
    """With commands of the same names that are stopped as ``atdm`` is, and that note what ``scontrol`` is told."""
    wait = "trap 'sleep 0.2; exit 130' TERM; echo $$ > step; touch started; while true; do sleep 0.05; done"
    commands = {
        "atdm": ends or wait,
        "srun": ends or wait,
        "scancel": '[ "$*" = "--signal=TERM 17.0" ] && kill -TERM $(cat step)',
        "scontrol": '[ "$1" = show ] && echo first || echo "$@" > requeued',
    }
    for name, text in commands.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / name).chmod(0o755)
    environment = os.environ | {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "SLURM_JOB_ID": "17",
        "SCRATCH": str(tmp_path),
    }
    job = subprocess.Popen(["bash", str(EXAMPLES / script)], cwd=tmp_path, env=environment)
    if sent:
        while not (tmp_path / "started").exists():
            time.sleep(0.02)
        job.send_signal(signal.SIGUSR1)
    assert job.wait(60) == code
    assert (tmp_path / "requeued").exists() == requeued
    if requeued:
        assert (tmp_path / "requeued").read_text() == "requeue 17\n"
