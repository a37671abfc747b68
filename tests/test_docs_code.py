"""The code on pages runs: blocks of Python in small, and, by name, every command and every tutorial."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DDPMPipeline, DDPMScheduler, UNet2DConditionModel, UNet2DModel
from diffusers import FlowMatchEulerDiscreteScheduler as FlowMatch
from PIL import Image
from sklearn.datasets import load_digits

import atdm
from atdm.cli import main
from atdm.corruption import CORRUPTIONS
from atdm.diffusion.process import Process
from atdm.objective import Objective
from helpers import NOTEBOOKS, ROOT, WRITTEN, blocks, commands, name_of

SMALL = {"layers_per_block": 1, "block_out_channels": (8, 8), "norm_num_groups": 4, "sample_size": 8}
PLAIN = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}


def unet(channels: int = 1, **options) -> UNet2DModel:
    torch.manual_seed(0)
    return UNet2DModel(in_channels=channels, out_channels=channels, **SMALL, **PLAIN, **options)


def text_unet(channels: int = 4) -> UNet2DConditionModel:
    torch.manual_seed(0)
    crossed = {"down_block_types": ("CrossAttnDownBlock2D",) * 2, "up_block_types": ("CrossAttnUpBlock2D",) * 2}
    heads = {"cross_attention_dim": 8, "attention_head_dim": 4}
    return UNet2DConditionModel(in_channels=channels, out_channels=channels, **SMALL, **crossed, **heads)


class Labelled(torch.nn.Module):
    """A network that can be given labels and can do without."""

    def __init__(self) -> None:
        super().__init__()
        self.unet = unet()

    def forward(self, x, t, class_labels=None):
        return self.unet(x, t)


class Prompted(torch.nn.Module):
    """A network that can be given text and can do without."""

    def __init__(self) -> None:
        super().__init__()
        self.unet, self.config = text_unet(), text_unet().config

    def forward(self, x, t, encoder_hidden_states=None):
        return self.unet(x, t, torch.zeros(len(x), 3, 8) if encoder_hidden_states is None else encoder_hidden_states)


def digits(n: int) -> torch.Tensor:
    return torch.from_numpy((load_digits().images[:n, None] / 8 - 1).astype(np.float32))


# What blocks of a page take for granted, and the files that they read.
def readme(_: Path) -> dict:
    given = {"images": digits(512), "batch": digits(8), "step": 0, "steps": 10}
    return {**given, "unet": unet(), "noise_scheduler": DDPMScheduler()}


def getting_started(folder: Path) -> dict:
    for name in ("digits-model", "runs/digits"):
        DDPMPipeline(unet(), DDPMScheduler()).save_pretrained(folder / name)
    given = {"images": digits(64), "batch": digits(16), "labels": torch.zeros(16, dtype=torch.long), "seed": 0}
    given |= {"step": 5, "steps": 10}
    return {**given, "unet": Labelled(), "process": Process.linear(), "noise_scheduler": DDPMScheduler()}


def data(folder: Path) -> dict:
    with pytest.raises(SystemExit) as end:
        main(shlex.split("corrupt --data digits --corrupt gaussian:share=0.9,std=0.2 --out noisy"))
    assert end.value.code == 0
    return {}


def choosing(_: Path) -> dict:
    return {"process": Process.linear()}


def extending(_: Path) -> dict:
    from diffusers import ConfigMixin, ModelMixin
    from diffusers.configuration_utils import register_to_config

    from atdm.metrics import METRICS, Metric

    own = {"ModelMixin": ModelMixin, "ConfigMixin": ConfigMixin, "register_to_config": register_to_config}
    return {**own, "METRICS": dict(METRICS), "Metric": Metric, "torch": torch, "nn": torch.nn}


def save_autoencoder(folder: Path) -> None:
    torch.manual_seed(0)
    blocks_of = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    AutoencoderKL(block_out_channels=(4,) * 4, norm_num_groups=2, latent_channels=4, **blocks_of).save_pretrained(
        folder
    )


def networks(folder: Path) -> dict:
    torch.manual_seed(0)
    save_autoencoder(folder / "vae-folder")
    text, empty = torch.randn(16, 3, 8), torch.zeros(16, 3, 8)
    generator, images = torch.Generator().manual_seed(0), torch.randn(16, 3, 64, 64).clamp(-1, 1)
    names = {name: getattr(atdm, name) for name in ("Objective", "Process", "Latents", "sample")}
    names |= {
        "FlowMatchEulerDiscreteScheduler": FlowMatch,
        "noise_scheduler": DDPMScheduler(),
        "process": Process.linear(),
    }
    given = {"text": text, "empty": empty, "generator": generator, "images": images, "shape": (4, 8, 8)}
    return {**names, **given, "unet": Prompted(), "transformer": text_unet(), "latents": torch.randn(16, 4, 8, 8)}


PAGES = {
    "README.md": readme,
    "docs/getting-started.md": getting_started,
    "docs/data.md": data,
    "docs/choosing.md": choosing,
    "docs/extending.md": extending,
    "docs/lora.md": networks,
    "docs/trackers.md": lambda _: {},
}


@pytest.mark.parametrize("page", PAGES)
def test_the_python_of_a_page_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "page", **PAGES[page](tmp_path)}
    for code in blocks(ROOT / page, "python"):
        exec(compile(code, page, "exec", dont_inherit=True), names)
    if page == "docs/extending.md":
        _use_what_extends(names, monkeypatch)


def _use_what_extends(names: dict, monkeypatch) -> None:
    """The classes that the page shows do what it says of them."""
    monkeypatch.setitem(CORRUPTIONS, "fade", names["Fade"])
    faded, truth = atdm.corrupt(torch.ones(50, 3), "fade:share=1,factor=0.2", seed=0)
    assert torch.allclose(faded, torch.tensor(0.2))
    assert truth.corrupted.all()
    process = Process.linear(steps=100)
    radius, weight = names["LateRadius"](), names["RatioWeight"]()
    assert radius(process, torch.arange(100), torch.ones(100)).argmax() == 0
    found = Objective("robust_rand", process, radius, weight)(lambda x, t: torch.zeros_like(x), torch.zeros(64, 4))
    assert torch.allclose(found.weight, 0.3 * process.ratio(found.t).float())
    terms = names["Cubed"](process)(lambda x, t: torch.zeros_like(x), torch.zeros(500, 16))
    assert abs(terms.loss.mean().item() - 1.596) < 0.1  # E |N(0, 1)|^3


# --- by name: every command, in small ---------------------------------------------------------------------------------
LESS = {  # options that make a command of a page take seconds
    "train": "--steps 6 --batch_size 8 --limit null --save_every 100",
    "sample": "--n 4 --sampling_steps 10",
    "evaluate": "--n 110 --sampling_steps 10",
    "attack": "--n 4 --sampling_steps 5 --seeds 0,1 --attack pgd:steps=2,norm=l2",
    "report": "--n 16 --steps_list 5 --attacked 4 --attacked_steps 5",
    "purify": "--sampling_steps 20",
    "corrupt": "--limit 60",
    "bench": "--seconds 2",
    "reproduce": "--scale smoke",
}
ELSEWHERE = {  # what a machine without network, GPU or hours cannot run, and the test that runs it in small
    "stabilityai": "tests/training/test_latent_train.py",
    "somebody/pipeline": "tests/cli/test_cli_attack.py",
    "--device cuda": "tests/training/test_bench.py",
    "reproduce all": "tests/experiments/test_reproduce.py",
    "reproduce ": "tests/experiments/test_reproduce.py",
    "DATA": "tests/experiments/test_images.py",
    "demo": "tests/experiments/test_demo.py",
    "--train": "tests/cli/test_compare.py",
    "--config cifar10": "tests/experiments/test_images.py",
    "runs/images-cpu": "tests/experiments/test_images.py",
}
if not find_spec("wandb"):
    ELSEWHERE["wandb"] = "tests/training/test_trackers.py"
SMALLER = {  # the same for code; AutoAttack is no dependency
    "64, (3, 32, 32)": "2, (3, 8, 8)",
    "steps=10,": "steps=1,",
    "steps=20,": "steps=2,",
    ", auto_steps=100": "",
}


@pytest.fixture(scope="module")
def bench(tmp_path_factory) -> Iterator[Path]:
    """A folder with the photos, runs and files that pages take for granted."""
    folder = tmp_path_factory.mktemp("pages")
    monkeypatch = pytest.MonkeyPatch()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("ATDM_CACHE", str(folder / "cache"))
    rng = np.random.default_rng(0)
    monkeypatch.setenv("WANDB_MODE", "offline")
    for place, count in (("photos/cats", 130), ("photos/dogs", 130), ("clean", 25)):
        (folder / place).mkdir(parents=True)
        for i in range(count):
            Image.fromarray(rng.integers(0, 255, (40, 40, 3), dtype=np.uint8)).save(folder / place / f"{i}.png")
    save_autoencoder(folder / "vae-folder")
    tiny = "--steps 4 --batch_size 8 --save_every 100"
    for words in (
        f"train --data digits --net digits --objective.name ddpm --out runs/digits {tiny}",
        f"train --data digits --net digits --objective.name robust_adv --out runs/robust {tiny}",
        f"train --data plane:n=500 --net mlp:width=16 --objective.name ddpm --out runs/plane {tiny}",
        f"train --data photos --image_size 32 --net tiny --objective.name ddpm --out runs/photos {tiny}",
        f"train --data photos --image_size 16 --class_labels true --net tiny --objective ddpm --out runs/classes {tiny}",
        f"train --data photos --image_size 64 --vae vae-folder --net tiny --out runs/latent {tiny}",
        "train --data digits --net digits --process flow --out runs/flow --steps 4 --batch_size 8",
        "evaluate runs/digits --n 110 --sampling_steps 10 --out plain.json",
        "evaluate runs/robust --n 110 --sampling_steps 10 --out robust.json",
        "sample runs/digits --n 110 --sampling_steps 10 --out samples.npz",
    ):
        run(shlex.split(words))
    for run_of, copies in {"digits": ("digits-ddpm", "ddpm", "plain"), "photos": ("cifar",)}.items():
        for name in copies:
            shutil.copytree(f"runs/{run_of}", f"runs/{name}")
    yield folder
    monkeypatch.undo()


def run(words: list[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(words)
    assert end.value.code == 0, f"atdm {' '.join(words)}"


@pytest.mark.slow
@pytest.mark.parametrize("file", [f for f in WRITTEN if commands(f) and f.suffix == ".md"], ids=name_of)
def test_the_commands_of_a_page_run(file, bench):
    for words in commands(file):
        text = " ".join(words)
        if any(mark in text for mark in ELSEWHERE):
            continue
        place = words[words.index("--out") + 1] if "--out" in words else "runs/run"
        taken = words[0] in ("train", "corrupt", "export", "restore") and (bench / place).exists()
        out = ["--out", str(bench / f"{file.stem}-{abs(hash(text))}")] if taken else []
        run([*words, *shlex.split(LESS.get(words[0], "")), *out])


@pytest.mark.parametrize("place", sorted({*ELSEWHERE.values()}))
def test_what_runs_elsewhere_is_there(place):
    assert (ROOT / place).is_file()


@pytest.mark.slow
@pytest.mark.parametrize("page", ["docs/parameterizations.md", "docs/robustness.md"])
def test_the_python_of_a_large_page_runs(page, bench, tmp_path):
    torch.manual_seed(0)
    names = {"__name__": "page", **networks(tmp_path)}
    if page == "docs/robustness.md":
        x, labels = digits(12), torch.arange(12) % 10
        names |= {"unet": unet(3), "samples": digits(200), "train": digits(400), "held_out": digits(300)}
        names |= {"classifier": torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10)), "x": x, "y": labels}
    for code in blocks(ROOT / page, "python"):
        for large, small in SMALLER.items():
            code = code.replace(large, small)
        exec(compile(code, page, "exec", dont_inherit=True), names)


@pytest.mark.slow
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda file: file.stem)
def test_tutorials_run_and_say_what_is_stored_in_them(notebook, tmp_path, monkeypatch):
    monkeypatch.delenv("MPLBACKEND", raising=False)  # commands that ran in this process set it
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=os.pathsep)  # its cells call atdm
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    book = nbformat.read(notebook, as_version=4)
    nbclient.NotebookClient(book, timeout=1800, resources={"metadata": {"path": str(tmp_path)}}).execute()
    stored = [cell for cell in json.loads(notebook.read_text())["cells"] if cell["cell_type"] == "code"]
    made = [cell for cell in book.cells if cell.cell_type == "code"]
    for before, now in zip(stored, made, strict=True):
        assert any("image/png" in o.get("data", {}) for o in before["outputs"]) == any(
            "image/png" in o.get("data", {}) for o in now.outputs
        )
