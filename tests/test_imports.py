"""What is not imported, as its import is what one would wait for: names of modules that a command must do without."""

import json
import subprocess
import sys

import numpy as np
import pytest

HEAVY = {
    "torch",
    "diffusers",
    "accelerate",
    "transformers",
    "datasets",
    "torchvision",
    "sklearn",
    "scipy",
    "matplotlib",
}
# Every model and pipeline of diffusers, and what its hooks bring; of the others what only other work needs.
UNUSED = {
    "diffusers.hooks",
    "diffusers.models.transformers",
    "diffusers.models.unets",
    "diffusers.pipelines",
    "datasets",
    "matplotlib",
    "ot",
    "peft",
    "pywt",
    "scipy",
    "sklearn",
    "torchvision",
    "transformers.modeling_utils",
}
TRAIN = "train --net mlp:width=8 --batch_size 8 --warmup 0 --steps 1 --metrics none --threads 1"
COMMANDS = {
    "import atdm": ([], HEAVY),
    "overview": (["--help"], HEAVY),
    "options": (["sample", "--help"], HEAVY),
    "training of an MLP": ([*TRAIN.split(), "--objective.name", "robust_adv"], UNUSED),
}
CODE = """
import json, sys
import atdm
if len(sys.argv) > 1:
    from atdm.cli import main
    try:
        main(sys.argv[1:])
    except SystemExit as end:
        assert not end.code, end.code
json.dump(sorted(sys.modules), sys.stderr)
"""


@pytest.mark.parametrize("name", COMMANDS)
def test_modules_that_are_not_imported(name, tmp_path):
    words, unwanted = COMMANDS[name]
    if words and words[0] == "train":  # on vectors of which no picture is drawn
        np.savez(tmp_path / "vectors.npz", samples=np.random.default_rng(0).normal(size=(32, 5)).astype("float32"))
        words = [*words, "--data", str(tmp_path / "vectors.npz"), "--out", str(tmp_path / "run")]
    done = subprocess.run([sys.executable, "-c", CODE, *words], capture_output=True, text=True, check=True)
    modules = set(json.loads(done.stderr.splitlines()[-1]))
    assert modules & unwanted == set()
    assert "atdm" in modules
    if words and words[0] == "train":
        assert {"torch", "diffusers", "accelerate"} <= modules
        assert (tmp_path / "run" / "model" / "model_index.json").is_file()
