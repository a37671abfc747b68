"""One report over every kind of run: chosen by auto, blind to noise levels, of flows, EDM, latents and classes."""

import json

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from PIL import Image

from helpers import atdm

KINDS = {
    "ddpm": "--objective ddpm",
    "auto": "--objective auto:k=2",
    "blind": "--objective ambient_blind",
    "flow": "--objective ddpm --process flow",
    "edm": "--objective ddpm --process edm",
    "latent": "--objective ddpm --vae vae --net mlp:width=8",
    "classes": "--objective robust_adv --class_labels true",
}
TRAIN = "--data photos --corrupt gaussian:share=0.6,std=0.2 --batch_size 8 --warmup 0 --steps 4 --threads 1 --net mlp:width=16"
LITTLE = "--n 4 --steps_list 2 --attack fgsm --budgets 0,0.1 --attacked 2 --attacked_steps 2"


@pytest.fixture(scope="module")
def reported(tmp_path_factory):
    """The numbers and the text of the page over all kinds."""
    root = tmp_path_factory.mktemp("kinds")
    rng = np.random.default_rng(0)
    for i in range(24):
        folder = root / "photos" / ("cats", "dogs")[i % 2]
        folder.mkdir(parents=True, exist_ok=True)
        ramp = np.linspace(0, 255, 16)[:, None, None] * rng.uniform(0.3, 1, 3) + rng.uniform(0, 20, (16, 16, 3))
        Image.fromarray(ramp.clip(0, 255).astype(np.uint8)).save(folder / f"{i:02d}.png")
    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    AutoencoderKL(**blocks, block_out_channels=(4, 8), norm_num_groups=2, latent_channels=2).save_pretrained(
        root / "vae"
    )

    from contextlib import redirect_stdout
    from io import StringIO

    from atdm.cli import main

    def go(words):
        out = StringIO()
        with redirect_stdout(out), pytest.raises(SystemExit) as end:
            main(words.split())
        assert not end.value.code, words
        return out.getvalue()

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setenv("ATDM_CACHE", str(root / "cache"))
        for name, options in KINDS.items():
            go(f"train {TRAIN} {options} --out {name} --quiet")
        numbers = json.loads(go(f"report {' '.join(KINDS)} {LITTLE} --out page.html --json"))
        yield numbers, (root / "page.html").read_text(), root


def test_every_kind_of_run_is_on_the_page(reported):
    numbers, page, _ = reported
    assert len(numbers["models"]) == len(KINDS)
    for kind, label in zip(KINDS, numbers["models"], strict=True):
        rows = [row for row in numbers["rows"] if row["label"] == label]
        assert {row["reference_kind"] for row in rows} == {"clean truth"}, kind
        assert len(rows) == 2, kind  # two samplers
        assert numbers["cost"][label]["flops_of_training"] > 0, kind
        assert label in page


def test_what_auto_chose_is_what_the_cost_is_of(reported):
    numbers, _, root = reported
    label = next(label for label in numbers["models"] if "auto" in label)
    assert json.loads((root / "auto" / "objective.json").read_text())["name"] == "robust_adv"
    assert 1 < numbers["cost"][label]["floor_over_ddpm"] < 2  # gated, in one of two steps, from half of the training on


def test_models_of_latents_are_measured_and_not_attacked(reported):
    numbers, page, _ = reported
    label = next(label for label in numbers["models"] if "latent" in label)
    assert numbers["damage"][label] == []
    assert all(numbers["damage"][other] for other in numbers["models"] if other != label)
    assert f"Not attacked: {label}" in page


def test_a_class_is_for_the_models_that_know_it(reported, capsys, monkeypatch):
    _, _, root = reported
    monkeypatch.chdir(root)
    monkeypatch.setenv("ATDM_CACHE", str(root / "cache"))
    words = f"report ddpm classes {LITTLE} --label dogs --out dogs.html --json --quiet"
    code, out, err = atdm(capsys, *words.split())
    assert code == 0, err
    assert {row["conditioned_on"] for row in json.loads(out)["rows"]} == {None, "class dogs"}
    code, _, err = atdm(capsys, *words.replace("dogs", "mice").split())
    assert code == 2
    assert "(cats, dogs)" in err
