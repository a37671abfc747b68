"""What samples are compared with: named in every number, and no rank by training data that nobody vouches for."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from atdm.data import load
from atdm.metrics import ReferenceSet
from helpers import atdm

NOISY = 0.6
TRAIN = "--net mlp:width=16 --steps 2 --batch_size 8 --warmup 0 --threads 1 --metrics pixels --metrics_samples 8"


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """150 smooth images of 16x16 pixels, noise of std 0.2 on 60 % of them; and 40 clean ones apart."""
    root = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    ramp = np.linspace(-1, 1, 16)
    for folder, count, share in (("mixed", 150, NOISY), ("clean", 40, 0.0)):
        (root / folder).mkdir()
        for i in range(count):
            a, b, c, d = rng.normal(size=(4, 3))
            plane = np.sin(2 * ramp[:, None, None] * a + b) * 0.4 + np.sin(2 * ramp[None, :, None] * c + d) * 0.4
            if i < share * count:
                plane = plane + 0.2 * rng.normal(size=plane.shape)
            pixels = ((plane.clip(-1, 1) + 1) * 127.5).round().astype(np.uint8)
            Image.fromarray(pixels).save(root / folder / f"{i:03d}.png")
    return root


@pytest.fixture(scope="module")
def runs(photos, tmp_path_factory):
    """One run on the noisy folder, and a second that is the same under another name."""
    from atdm.cli import main

    root = tmp_path_factory.mktemp("runs")
    with pytest.raises(SystemExit) as end:
        main(["train", "--data", str(photos / "mixed"), *TRAIN.split(), "--out", str(root / "a")])
    assert not end.value.code
    shutil.copytree(root / "a", root / "b")
    return root


def evaluated(capsys, run, out, *more):
    return atdm(capsys, "evaluate", str(run), "--n", "8", "--sampling_steps", "3", "--out", str(out), *map(str, more))


def test_training_data_are_named_with_what_the_audit_finds_and_never_called_clean(capsys, runs, tmp_path):
    code, out, err = evaluated(capsys, runs / "a", tmp_path / "a.json")
    assert code == 0
    rows = json.loads((tmp_path / "a.json").read_text())["rows"]
    assert {row["reference_kind"] for row in rows} == {"training data"}
    (text,) = {row["reference"] for row in rows}
    share = float(text.removeprefix("training data, noise on ~").removesuffix(" % of them (audit)"))
    assert share == pytest.approx(100 * NOISY, abs=5)
    assert text in " ".join(out.split())
    assert text in err
    for help_ in ("--reference FOLDER", "noise_std", "--reference cleanest"):
        assert help_ in err
    assert "clean data" not in out + err.replace("least noisy", "")
    # What training measured at its end says the same.
    assert {row["reference"] for row in json.loads((runs / "a" / "metrics.json").read_text())["rows"]} == {text}


def test_compare_refuses_to_rank_by_training_data_and_says_what_to_do(capsys, runs, tmp_path):
    for name in "ab":
        assert evaluated(capsys, runs / name, tmp_path / f"{name}.json")[0] == 0
    files = [str(tmp_path / f"{name}.json") for name in "ab"]
    code, _, err = atdm(capsys, "compare", *files)
    assert code == 2
    assert "cannot be ranked" in err
    assert "reference that nobody vouches for" in err
    assert "--reference FOLDER" in err
    code, out, _ = atdm(capsys, "compare", *files, "--unranked", "--json")
    assert code == 0
    ranks = json.loads(out)["ranks"]
    assert ranks["noise_std"] == dict.fromkeys(files, 1)
    assert not {"frechet_pixels", "sliced_wasserstein", "nearest_psnr", "noise_std_reference"} & ranks.keys()


def test_a_trusted_reference_ranks(capsys, photos, runs, tmp_path):
    for name in "ab":
        code, out, err = evaluated(capsys, runs / name, tmp_path / f"{name}.json", "--reference", photos / "clean")
        assert (code, "--reference FOLDER" in err) == (0, False)
        assert f"against the trusted set {photos / 'clean'}".replace(" ", "") in "".join(out.split())
    rows = json.loads((tmp_path / "a.json").read_text())["rows"]
    assert {(row["reference"], row["reference_kind"]) for row in rows} == {(str(photos / "clean"), "trusted set")}
    clean, mixed = load(str(photos / "clean")), load(str(photos / "mixed"))
    assert {row["reference_hash"] for row in rows} == {ReferenceSet.trusted(clean).as_dict()["reference_hash"]}
    assert len(ReferenceSet.of(mixed, corrupted=False).items) == 150
    code, out, _ = atdm(capsys, "compare", str(tmp_path / "a.json"), str(tmp_path / "b.json"), "--json")
    assert code == 0
    assert "frechet_pixels" in json.loads(out)["ranks"]


def test_the_cleanest_items_are_those_without_noise(photos):
    mixed = load(str(photos / "mixed"))
    cleanest = ReferenceSet.cleanest(mixed)
    assert len(cleanest.items) == 38
    assert str(cleanest) == "cleanest training data, no noise found (audit)"
    last = {item.numpy().tobytes() for item in mixed.x[90:]}
    assert all(item.numpy().tobytes() in last for item in cleanest.items)


@pytest.mark.parametrize("data", ["plane:n=50", "digits"])
def test_data_that_are_known_and_what_atdm_corrupted_are_the_truth(data, photos):
    assert ReferenceSet.of(load(data), corrupted=False).as_dict()["reference_kind"] == "clean truth"
    before = ReferenceSet.of(load(str(photos / "mixed"), limit=30), corrupted=True)
    assert (before.kind, before.warning, str(before)) == ("clean truth", None, str(photos / "mixed"))


def test_samples_alone_need_a_reference(capsys, photos, tmp_path):
    np.savez(tmp_path / "s.npz", samples=np.zeros((4, 3, 16, 16), "float32"))
    words = ["evaluate", "--samples", str(tmp_path / "s.npz")]
    assert "Expected --reference, a trusted set, or --data" in atdm(capsys, *words)[2]
    assert atdm(capsys, *words, "--reference", str(photos / "clean"), "--json")[0] == 0
    assert (
        atdm(capsys, *words, "--data", str(photos / "clean"), "--json")[2].count("training data, no noise found") == 1
    )
