"""Sharing: an exported run in the hands of somebody who has diffusers and not atdm, its card, and the Hub."""

import dataclasses
import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from atdm.diffusion.model import load_pipeline
from atdm.diffusion.sampling import block_size, generators, sample
from atdm.errors import UserError
from atdm.nets import weights_hash
from atdm.training import checkpoint, run, share
from atdm.training.config import ObjectiveConfig, TrainConfig

# What the card of an image model tells a person to do, in a program that must not know atdm.
STRANGER = """
import sys, torch
sys.modules["atdm"] = None
{lines}
import numpy
numpy.savez({target!r}, images=images, others=[n for n in sys.modules if n.startswith("atdm.")])
"""


def trained(out, **changes):
    options = {"data": "digits", "corrupt": "gaussian:share=0.9,std=0.2", "net": "digits", "steps": 3, "batch_size": 4}
    options |= {"save_every": 3, "warmup": 0, "ema": 0.5, "out": str(out), "limit": 50}
    for _ in run.train(TrainConfig(**{**options, **changes})):
        pass
    return out


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    # Trained long enough that samples do not all leave the range in which images are compared.
    longer = {
        "steps": 160,
        "objective": ObjectiveConfig(start=0.99),
        "batch_size": 16,
        "lr": 3e-3,
        "ema": 0.9,
        "save_every": 160,
    }
    return trained(tmp_path_factory.mktemp("runs") / "digits", **longer)


@pytest.fixture(scope="module")
def plane(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("runs") / "plane", data="plane:n=100", corrupt="none", net="mlp:width=16")


def front_and_body(folder):
    _, front, body = (folder / "README.md").read_text().split("---\n", 2)
    return yaml.safe_load(front), body


def python_blocks(body):
    return [part.split("```")[0] for part in body.split("```python\n")[1:]]


def test_a_stranger_draws_the_same_images_by_the_lines_of_the_card(digits, tmp_path):
    share.export(digits, tmp_path / "shared")
    loading, sampling = python_blocks(front_and_body(tmp_path / "shared")[1])
    loading = "\n".join(line for line in loading.splitlines() if "images =" not in line)
    seed = 3
    lines = sampling.replace("seed = 0", f"seed = {seed}").replace("=16", "=4").replace("range(16)", "range(4)")
    lines = lines.replace("=250)", "=20, output_type='np')")
    program = STRANGER.format(lines=f"{loading}\n{lines}", target=str(tmp_path / "drawn.npz"))
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True, timeout=120)
    with np.load(tmp_path / "drawn.npz", allow_pickle=False) as file:
        theirs, others = file["images"], file["others"]
    assert not len(others)
    network, process, clip = load_pipeline(digits)
    ours = sample(network, process, 6, (1, 8, 8), sampler="ddpm", steps=20, seed=seed, clip_sample=clip)[:4]
    ours = (ours / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)
    assert float(((ours > 0) & (ours < 1)).float().mean()) > 0.3, "nothing to compare: all is clipped"
    np.testing.assert_allclose(theirs, ours.numpy(), atol=1e-5)


def test_the_lines_of_a_vector_card_run_as_they_stand(plane, tmp_path):
    share.export(plane, tmp_path / "shared")
    front, body = front_and_body(tmp_path / "shared")
    assert "pipeline_tag" not in front
    assert "DDPMPipeline` would open it after `from atdm import MLP`, but it clips" in " ".join(body.split())
    (lines,) = python_blocks(body)
    opened = "from atdm import MLP\nfrom diffusers import DDPMPipeline\nDDPMPipeline.from_pretrained('shared')"
    program = f"{opened}\n{lines}\nprint(tuple(points.shape))"
    told = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True, capture_output=True, text=True)
    assert told.stdout.strip() == "(1000, 3)"


@pytest.mark.parametrize(("weights", "prefix"), [("ema", "ema."), ("raw", "model.")])
def test_the_weights_asked_for_are_the_weights_given(digits, tmp_path, weights, prefix):
    told = share.export(digits, tmp_path / weights, weights=weights)
    stored = load_file(checkpoint.latest(digits) / "state.safetensors")
    given = load_file(tmp_path / weights / "unet" / "diffusion_pytorch_model.safetensors")
    assert {f"{prefix}{k}": v.sum().item() for k, v in given.items()} == {
        k: v.sum().item() for k, v in stored.items() if k.startswith(prefix)
    }
    assert told["checkpoint"] in (tmp_path / weights / "README.md").read_text()
    assert (tmp_path / weights / "samples.png").exists() == (weights == "ema"), "the picture is of the averaged weights"


def test_the_card_tells_data_dirt_objective_and_numbers_with_their_origin(digits, tmp_path):
    made = weights_hash(load_pipeline(digits)[0])
    row = {
        "metric": "noise_std",
        "value": 0.123456,
        "sampler": "ddpm",
        "steps": 250,
        "seed": 7,
        "features": None,
        "samples": 64,
    }
    row |= {"reference": "/home/somebody/secret/photos", "reference_hash": "0" * 16, "checkpoint": made}
    rows = [row, {**row, "metric": "frechet_pixels", "value": None}, {**row, "value": 9.0, "checkpoint": "0" * 16}]
    (tmp_path / "numbers.json").write_text(json.dumps({"rows": rows}))
    told = share.export(
        digits, tmp_path / "shared", numbers=tmp_path / "numbers.json", licence="apache-2.0", name="somebody/digits-16"
    )
    front, body = front_and_body(tmp_path / "shared")
    assert front == {
        "license": "apache-2.0",
        "library_name": "diffusers",
        "pipeline_tag": "unconditional-image-generation",
        "tags": ["diffusers", "atdm", "adversarial-training", "robust_adv"],
    }
    assert (told["numbers"], told["numbers_left_out"]) == (2, 1)
    assert body.count("| metric | value |") == 1
    assert "made with |" not in body, "all numbers were made alike"
    assert "# digits-16\n" in body
    assert 'from_pretrained("somebody/digits-16")' in body
    assert "| noise_std | 0.1235 | lower |" in body
    assert "| frechet_pixels | not finite |" in body
    assert "sampler ddpm, steps 250, seed 7" in body
    assert "reference photos" in body
    assert "secret" not in body
    assert "| 9 |" not in body, "a number of other weights"
    assert "gaussian:share=0.9,std=0.2" in body
    assert "of 50 items" in body
    assert f"robust_adv (radius {ObjectiveConfig.radius}" in body


def test_the_card_of_auto_says_what_it_chose(plane, tmp_path):
    """On noisy images auto need not regularize, and then the card warns of no regularizer."""
    out = tmp_path / "run"
    shutil.copytree(plane, out)
    for name, words in (("robust_adv", "had a regularizer (`robust_adv`)"), ("ambient_blind:exchange=true", None)):
        (out / "objective.json").write_text(json.dumps(dataclasses.asdict(ObjectiveConfig(name))))
        share.export(out, tmp_path / name)
        front, body = front_and_body(tmp_path / name)
        assert (words or f"The training objective was `{name}`.") in body
        assert ("What not to expect" in body) == (name == "robust_adv")
        assert front["tags"][-1] == name.partition(":")[0]


def test_a_number_of_another_sampler_says_so_in_the_one_table(digits, tmp_path):
    row = {"metric": "noise_std", "value": 0.25, "sampler": "ddpm", "samples": 64, "reference_hash": "0" * 16}
    row["checkpoint"] = weights_hash(load_pipeline(digits)[0])
    (tmp_path / "numbers.json").write_text(json.dumps({"rows": [row, {**row, "value": 0.5, "sampler": "ddim"}]}))
    share.export(digits, tmp_path / "shared", numbers=tmp_path / "numbers.json")
    _, body = front_and_body(tmp_path / "shared")
    assert body.count("| metric | value |") == 1
    for value, sampler in (("0.25", "ddpm"), ("0.5", "ddim")):
        assert re.search(rf"^\| noise_std \| {value} \|.*\| sampler {sampler} \|$", body, re.MULTILINE)
    assert "All of them were made with: samples 64, reference hash 0000000000000000." in body


@pytest.mark.parametrize(
    ("spec", "shown"),
    [
        ("/home/me/photos", "photos"),
        ("folder:/home/me/photos", "photos"),
        ("folder:path=/home/me/photos", "photos"),
        ("data/*.parquet", "*.parquet"),
        ("torchvision:name=CIFAR10,root=/home/me", "torchvision:name=CIFAR10"),
        ("hub:name=uoft-cs/cifar10,split=train", "hub:name=uoft-cs/cifar10,split=train"),
        ("digits:subspace=16", "digits:subspace=16"),
        ("mixture:std=1/8", "mixture:std=1/8"),
    ],
)
def test_a_card_names_no_folder_of_this_machine(spec, shown):
    assert share._public(spec) == shown


def test_mistakes_are_sentences_and_leave_nothing(digits, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    out = tmp_path / "shared"
    for mistake, sentence in [
        (lambda: share.export(digits, digits), "is not empty"),
        (lambda: share.export(tmp_path, out), "is not a run folder"),
        (lambda: share.export(digits, out, weights="emma"), "Did you mean 'ema'"),
        (lambda: share.export(digits, out, numbers=tmp_path / "none.json"), "There is no file"),
        (lambda: share.push(out, "nobody"), "Expected OWNER/NAME"),
        (lambda: share.push(out, "nobody/nothing"), "hf auth login"),
    ]:
        with pytest.raises(UserError, match=sentence):
            mistake()
    assert not list(tmp_path.iterdir())
    with pytest.raises(UserError, match="has no model/ yet"):
        share.export(_unfinished(tmp_path), out)


def _unfinished(folder):
    stopped = folder / "stopped"
    config = TrainConfig(data="plane:n=50", net="mlp:width=8", steps=5, batch_size=4, out=str(stopped))
    for _ in run.train(config, stop=lambda: True):
        pass
    return stopped


class Hub:
    """Stands for HfApi: remembers what it was told, or refuses."""

    calls: list = []  # noqa: RUF012
    refusal: Exception | None = None

    def create_repo(self, name, **options):
        self.calls.append(("create", name, options))
        if self.refusal:
            raise self.refusal
        return f"https://huggingface.co/{name}"

    def upload_folder(self, **options):
        self.calls.append(("upload", options))


def test_a_push_makes_the_model_and_sends_the_folder(digits, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.get_token", lambda: "hf_token")
    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    monkeypatch.setattr(Hub, "calls", [])
    share.export(digits, tmp_path / "shared", name="me/mine")
    assert share.push(tmp_path / "shared", "me/mine", private=True) == "https://huggingface.co/me/mine"
    create, upload = Hub.calls
    assert create == ("create", "me/mine", {"private": True, "exist_ok": True})
    assert upload[1]["folder_path"] == str(tmp_path / "shared")
    assert upload[1]["repo_id"] == "me/mine"
    monkeypatch.setattr(Hub, "refusal", ConnectionError("Name or service not known"))
    with pytest.raises(UserError, match=r"Cannot push to 'me/mine': Name .* 'hf upload me/mine"):
        share.push(tmp_path / "shared", "me/mine")


def test_streams_are_those_of_the_documented_seeds():
    assert [g.initial_seed() for g in generators(3, range(2))] == [3_000_000, 3_000_001]
    assert [block_size(s) for s in ((3, 32, 32), (1, 8, 8), (3,), (1000,))] == [1, 1, 170, 1]
    many = generators(7, range(5000))
    assert len({torch.randn(2, generator=g)[0].item() for g in many}) > 4990, "streams of one seed differ"
