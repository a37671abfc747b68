"""Without the optional packages the loss works, and whatever else needs one says which extra holds it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import atdm
from atdm.cli.parser import SUMMARY
from atdm.errors import OPTIONAL, missing

ROOT = Path(__file__).resolve().parent.parent
ABSENT = sorted({*OPTIONAL, "peft"})  # diffusers looks for peft, which needs accelerate
BLOCK = f"""
import importlib.machinery, json, sys

class Installed(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in {ABSENT!r} else super().find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(importlib.machinery.PathFinder)] = Installed
"""


CODE = f"""
import contextlib, io
import torch
from diffusers import DDPMScheduler, UNet2DModel
import atdm
from atdm.cli import main

process = atdm.Process.from_scheduler(DDPMScheduler(num_train_timesteps=100))
unet = UNet2DModel(sample_size=8, in_channels=1, out_channels=1, layers_per_block=1, block_out_channels=(8, 8),
                   down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2, norm_num_groups=4)
losses = [atdm.Objective(name, process)(unet, torch.randn(4, 1, 8, 8)).loss.mean() for name in ("ddpm", "robust_adv", "robust_rand")]
sum(losses).backward()
shape = atdm.sample(unet, process, 2, (1, 8, 8), steps=4).shape
names, commands = {{}}, {{}}
for name in atdm.__all__:
    try:
        getattr(atdm, name)
    except atdm.UserError as problem:
        names[name] = str(problem)
for command in {sorted(SUMMARY)!r}:
    err = io.StringIO()
    with contextlib.redirect_stderr(err), contextlib.suppress(SystemExit):
        try:
            main(["show", "run"] if command == "show" else [command])
        finally:
            commands[command] = [sys.exc_info()[1].code, err.getvalue()]
print(json.dumps([[float(loss) for loss in losses], [*shape], names, commands]))
"""


@pytest.fixture(scope="module")
def without_extras():
    done = subprocess.run([sys.executable, "-c", BLOCK + CODE], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_the_loss_and_sampling_need_none_of_them(without_extras):
    losses, shape, *_ = without_extras
    assert all(0 < loss < 1000 for loss in losses)
    assert shape == [2, 1, 8, 8]


def test_every_public_name_is_there_or_says_what_is_missing(without_extras):
    said = without_extras[2]
    assert not {"Objective", "Process", "Perturbation", "sample", "Guided", "Latents", "UserError"} & {*said}
    assert all("pip install 'atdm[all]'" in sentence for sentence in said.values())


def test_every_command_says_what_is_missing(without_extras):
    said = without_extras[3]
    assert sorted(said) == sorted(SUMMARY)
    for code, sentence in said.values():
        assert code == 2
        assert re.fullmatch(
            r"atdm: This needs the package \S+, which is not installed\. Expected: pip install 'atdm\[all\]'\.\n",
            sentence,
        )


def test_other_missing_modules_are_no_mistake_of_the_user():
    assert missing(ModuleNotFoundError("No module named 'nothing'", name="nothing")) is None


@pytest.mark.parametrize("package", sorted({*OPTIONAL.values()} - {"psutil"}))  # psutil comes with accelerate
def test_the_extra_holds_every_optional_package(package):
    extra = re.search(r"^cli = \[\n(.*?)^\]", (ROOT / "pyproject.toml").read_text(), re.MULTILINE | re.DOTALL)
    assert f'"{package}>' in extra[1]


def test_the_version_is_written_once_and_again():
    for file in ("pyproject.toml", "CITATION.cff"):
        assert (
            re.search(r"^version(?: =|:) \"?([\d.]+)\"?$", (ROOT / file).read_text(), re.MULTILINE)[1]
            == atdm.__version__
        )
