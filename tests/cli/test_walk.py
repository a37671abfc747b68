"""The walk of a person with a folder of photos, most of them noisy, by commands alone: from the audit to a shared pipeline."""

import json

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from sklearn.datasets import load_digits

from helpers import atdm

pytestmark = pytest.mark.slow  # a minute of processor time

NOISY, STD, SIDE = 0.6, 0.2, 16
# In place of the network that the audit recommends: one that learns such images in seconds.
QUICK = (
    "--net mlp:width=256,depth=3,residual=true,skip=true --clip_sample true --steps 600 --threads 1 --save_every 600"
)
EVALUATED = "--n 256 --sampling_steps 50"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """``photos``: 400 images, noise on 60 % of them, half PNG and half JPEG; ``trusted``: 200 others, all clean."""
    root, rng = tmp_path_factory.mktemp("walk"), np.random.default_rng(0)
    digits = load_digits().images
    order = rng.permutation(len(digits))
    for folder, chosen in (("photos", order[:400]), ("trusted", order[400:600])):
        (root / folder).mkdir()
        for i, digit in enumerate(digits[chosen]):
            large = Image.fromarray((digit * 255 / 16).astype(np.uint8)).resize((SIDE, SIDE), Image.Resampling.BILINEAR)
            x = 0.8 * (np.asarray(large, dtype=np.float32) / 127.5 - 1)
            if folder == "photos" and i % 5 < 5 * NOISY:
                x = x + STD * rng.normal(size=x.shape)
            image = Image.fromarray(((x.clip(-1, 1) + 1) * 127.5).round().astype(np.uint8))
            image.save(root / folder / f"{i:03d}.png") if i % 2 else image.save(
                root / folder / f"{i:03d}.jpg", quality=90
            )
    return root


def ranked(capsys, *files):
    code, out, err = atdm(capsys, "compare", *map(str, files), "--json")
    assert code == 0, err
    return json.loads(out)["ranks"]


@pytest.fixture(scope="module")
def walked(place, tmp_path_factory):
    """What each command said on the way: audit, two trainings, evaluations with and without a trusted reference."""
    patch, said = pytest.MonkeyPatch(), {}
    patch.chdir(place)
    patch.setenv("ATDM_CACHE", str(tmp_path_factory.mktemp("cache")))

    from contextlib import redirect_stderr, redirect_stdout
    from io import StringIO

    from atdm.cli import main

    def go(name, text):
        out, err = StringIO(), StringIO()
        with redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as end:
            main(text.split())
        assert not end.value.code, err.getvalue()
        said[name] = (out.getvalue(), err.getvalue())

    go("audit", "audit photos --out audit --json --quiet")
    recipe = "--config audit/recipe.yaml"
    for name in ("auto", "ddpm"):
        other = "" if name == "auto" else "--objective.name ddpm"
        go(f"train {name}", f"train {recipe} {other} {QUICK} --out {name} --quiet")
        go(f"trusted {name}", f"evaluate {name} --reference trusted {EVALUATED} --out {name}-trusted.json --quiet")
    for name in ("auto", "ddpm"):
        go(f"own {name}", f"evaluate {name} --n 64 --sampling_steps 5 --out {name}-own.json --quiet")
    yield place, said
    patch.undo()


def test_the_audit_finds_the_noise_in_every_format_and_recommends_auto(walked):
    place, said = walked
    noise = json.loads(said["audit"][0])["noise"]
    assert noise["share"] == pytest.approx(NOISY, abs=0.05)
    assert noise["std"] == pytest.approx(STD, rel=0.15)  # values beyond [-1, 1] were cut off
    assert {row["format"]: round(row["share"], 1) for row in noise["formats"]} == {"JPEG": NOISY, "PNG": NOISY}
    recipe = yaml.safe_load((place / "audit" / "recipe.yaml").read_text())
    assert recipe["objective"] == {"name": "auto"}  # and none of the options that it does not take


def test_with_a_trusted_reference_auto_is_ahead_of_ddpm(capsys, walked):
    ranks = ranked(capsys, "auto-trusted.json", "ddpm-trusted.json")
    for metric in ("noise_std", "never_varying_noise", "frechet_pixels"):
        assert ranks[metric] == {"auto-trusted.json": 1, "ddpm-trusted.json": 2}, metric
    _, said = walked
    assert "the trusted set trusted" in " ".join(said["trusted auto"][0].split())
    assert "rank nothing" not in said["trusted auto"][1]


def test_without_one_the_numbers_are_doubted_and_not_ranked(capsys, walked):
    _, said = walked
    for name in ("auto", "ddpm"):
        assert "training data, noise on ~60 % of them (audit)" in said[f"own {name}"][1]
        assert "--reference FOLDER" in said[f"own {name}"][1]
    code, _, err = atdm(capsys, "compare", "auto-own.json", "ddpm-own.json")
    assert code == 2
    assert "cannot be ranked" in err
    assert "auto: " not in err.partition("cannot be ranked")[0]
    # Training itself says what the next step needs.
    assert "Next: atdm evaluate auto --reference FOLDER" in said["train auto"][0]


def test_the_report_and_the_exported_pipeline(capsys, walked):
    place, _ = walked
    little = "--n 8 --steps_list 2,4 --attack fgsm --budgets 0,0.1 --attacked 2 --attacked_steps 2"
    words = f"report auto ddpm --reference trusted {little} --quiet --json"
    code, out, err = atdm(capsys, *words.split())
    assert code == 0, err
    assert {row["reference_kind"] for row in json.loads(out)["rows"]} == {"trusted set"}
    page = (place / "report.html").read_text()
    assert "trusted" in page
    assert "clean data" not in page
    assert atdm(capsys, "export", "auto", "--out", "shared", "--measured", "auto-trusted.json")[0] == 0
    card = (place / "shared" / "README.md").read_text()
    assert "trusted set" in card

    from diffusers import DDPMPipeline

    from atdm import MLP

    assert MLP.__name__ in card  # what to import first
    pipeline = DDPMPipeline.from_pretrained(place / "shared")
    pipeline.set_progress_bar_config(disable=True)
    drawn = pipeline(batch_size=4, num_inference_steps=10, generator=torch.Generator().manual_seed(0), output_type="np")
    assert drawn.images.shape == (4, SIDE, SIDE, 1)
    assert np.isfinite(drawn.images).all()
