"""What docs/extending.md says is true: a corruption, a metric, an objective and a network, each from one file and one row."""

from __future__ import annotations

import importlib
import json
import sys

import pytest

from atdm.corruption import CORRUPTIONS
from atdm.diffusion.model import Model
from atdm.metrics import METRICS, Metric
from atdm.nets import NETS
from atdm.objective import BASELINES, OBJECTIVES
from helpers import atdm

FILES = {
    "fade": """
from dataclasses import dataclass
import numpy as np
from atdm.corruption import Corruption

@dataclass(frozen=True)
class Fade(Corruption):
    factor: float = 0.5

    def draw(self, shape, rng):
        return {"factor": self.factor}

    def damage(self, x, drawn, rng):
        return x * np.float32(drawn["factor"])
""",
    "cubed": """
from dataclasses import dataclass
from atdm.objective import Baseline, Terms

@dataclass(frozen=True)
class Cubed(Baseline):
    power: float = 3.0

    def terms(self, predict, x0, t, draws, levels):
        residual = predict(self.process.mix(x0, draws.noise, t), t) - self.process.target(x0, draws.noise, t)
        return Terms.unperturbed(t, residual.abs().pow(self.power).flatten(1).mean(1))
""",
    "norm": """
def median_norm(seen):
    return None if seen.images else seen.samples.norm(dim=1).median().item()
""",
    "linear": """
from dataclasses import dataclass
import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import nn

class Linear(ModelMixin, ConfigMixin):
    @register_to_config
    def __init__(self, in_channels: int, sample_size: tuple[int, ...] = ()):
        super().__init__()
        self.layer = nn.Linear(in_channels + 1, in_channels)

    def forward(self, sample, timestep, return_dict=True):
        t = torch.as_tensor(timestep, device=sample.device).reshape(-1, 1).expand(len(sample), 1) / 1000
        return (self.layer(torch.cat([sample, t.to(sample.dtype)], 1)),)

@dataclass(frozen=True)
class LinearNet:
    def __call__(self, item_shape):
        return Linear(*item_shape)
""",
}


@pytest.fixture
def added(tmp_path, monkeypatch):
    """One file and one row of each kind."""
    monkeypatch.syspath_prepend(str(tmp_path))
    for name, text in FILES.items():
        (tmp_path / f"own_{name}.py").write_text(text)
    own = {name: importlib.import_module(f"own_{name}") for name in FILES}
    monkeypatch.setitem(CORRUPTIONS, "fade", own["fade"].Fade)
    for registry in (BASELINES, OBJECTIVES):  # the second is a copy of the first, made when atdm was imported
        monkeypatch.setitem(registry, "cubed", own["cubed"].Cubed)
    norm = Metric(own["norm"].median_norm, "lower", "data units", "Norm of a typical sample.")
    monkeypatch.setitem(METRICS, "median_norm", norm)
    monkeypatch.setitem(NETS, "linear", own["linear"].LinearNet)
    yield
    for name in FILES:
        sys.modules.pop(f"own_{name}")


def test_each_works_from_one_file_and_one_row(added, tmp_path, capsys):
    out = str(tmp_path / "run")
    words = ["train", "--data", "plane:n=64", "--steps", "3", "--batch_size", "8", "--out", out, "--json"]
    words += ["--corrupt", "fade:share=0.5,factor=0.2+outliers:share=0.1", "--net", "linear"]
    code, _, err = atdm(capsys, *words, "--objective", "cubed:power=2.5")
    assert code == 0, err
    assert type(Model.from_pretrained(out).net).__name__ == "Linear"
    code, text, err = atdm(capsys, "evaluate", out, "--n", "16", "--sampling_steps", "5", "--json")
    assert code == 0, err
    found = {row["metric"]: row for row in json.loads(text)["rows"]}
    assert found["median_norm"]["value"] > 0
    code, _, err = atdm(capsys, "export", out, "--out", str(tmp_path / "pipeline"))
    assert code == 0, err
    code, _, err = atdm(
        capsys, "sample", str(tmp_path / "pipeline"), "--n", "4", "--sampling_steps", "5", "--out", f"{out}.npz"
    )
    assert code == 0, err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--corrupt", "fad"], "Did you mean 'fade'"),
        (["--objective", "cube"], "Did you mean 'cubed'"),
        (["--net", "linea"], "Did you mean 'linear'"),
    ],
)
def test_mistakes_name_what_was_added(added, capsys, tmp_path, words, said):
    code, _, err = atdm(capsys, "train", "--data", "plane:n=64", "--out", str(tmp_path / "run"), *words)
    assert code == 2
    assert said in err
