"""Noise of image files: seeded noise, saved in every format as people do, is found at the size of the file and as it is read."""

from __future__ import annotations

import io
import json
import os
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_images

from atdm.audit import audit
from atdm.data import load
from atdm.data.source import Source
from atdm.noise.blocks import BANDS, DCT, STDS, Blocks, _response, measure, noise_std
from atdm.noise.files import FileNoise
from atdm.objective.auto import GATE
from helpers import atdm


def shared(name):
    root = Path(os.environ.get("ATDM_SHARED") or Path(__file__).parents[3] / "shared")
    folder = root / "data" / name
    return str(folder) if folder.is_dir() else pytest.skip(f"{name} is not there")


def jpeg(quality, subsampling):
    return "JPEG", {"quality": quality, "subsampling": subsampling}


FORMATS = {
    "png": [("PNG", {})],
    "jpeg 4:2:0": [jpeg(q, 2) for q in (75, 85, 95)],
    "jpeg 4:4:4": [jpeg(q, 0) for q in (75, 85, 95)],
    "webp": [("WEBP", {"quality": q}) for q in (75, 85, 95)],
    "half png, half jpeg 4:2:0": [("PNG", {}), jpeg(75, 2)],
}
FORMATS["mixed"] = [one for name, several in FORMATS.items() if "half" not in name for one in several]


def crops(side: int = 96, step: int = 60) -> list[np.ndarray]:
    """Squares cut from scikit-learn's two photographs: sky, tiles, leaves and petals."""
    out = []
    for photo in load_sample_images().images:
        h, w, _ = photo.shape
        out += [photo[i : i + side, j : j + side] for i in range(0, h - side, step) for j in range(0, w - side, step)]
    return out


def encoded(pixels: np.ndarray, how) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, how[0], **how[1])
    return buffer.getvalue()


def noisy(pixels: np.ndarray, std: float, rng) -> np.ndarray:
    return (pixels + 127.5 * std * rng.standard_normal(pixels.shape)).round().clip(0, 255).astype(np.uint8)


def write(folder: Path, images, formats, share: float, std: float, seed: int = 0) -> np.ndarray:
    """Save the images, formats in turn, a share of them noisy; which ones is returned."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    hit = rng.permutation(len(images)) < round(share * len(images))
    for i, (image, dirty) in enumerate(zip(images, hit, strict=True)):
        how = formats[i % len(formats)]
        (folder / f"{i:05}.{how[0].lower()}").write_bytes(encoded(noisy(image, std * dirty, rng), how))
    return hit


def opened(folder: Path, size: int | None) -> Source:
    dataset = load(str(folder), image_size=size)
    return Source(dataset.items, files=dataset.files)


@pytest.mark.parametrize(("name", "size"), [*((name, 32) for name in FORMATS), ("mixed", None), ("jpeg 4:2:0", None)])
def test_noise_is_found_in_every_format_and_none_in_clean_files(tmp_path, name, size):
    images = crops()
    hit = write(tmp_path / "noisy", images, FORMATS[name], 0.6, 0.2)
    found = audit(opened(tmp_path / "noisy", size))
    assert found.noise_share == pytest.approx(hit.mean(), abs=0.05)
    told = found.as_dict()["noise"]
    for row in told["formats"]:
        assert row["std_in_file"] == pytest.approx(0.2, rel=0.15)
        assert row["largest"] == [96, 96]
    assert sum(row["files"] for row in told["formats"]) == len(images)
    write(tmp_path / "clean", images, FORMATS[name], 0.0, 0.0)
    clean = audit(opened(tmp_path / "clean", size))
    assert clean.noise_share < 0.01  # not of the files: natively, PNGs are judged as items are
    assert not clean.files.stds.any()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of a mean over no item
        assert clean.as_dict()["noise"]["share"] == clean.noise_share
    if size:
        assert found.noise_std == pytest.approx(left(tmp_path, size, hit), rel=0.15)


def left(folder: Path, size: int | None, hit: np.ndarray) -> float:
    """The noise as it is read: how far noisy images are from clean ones that went the same way (median over images)."""
    a, b = (load(str(folder / name), image_size=size).x[torch.from_numpy(hit)] for name in ("noisy", "clean"))
    return float((a - b).square().mean((1, 2, 3)).sqrt().median())


@pytest.mark.parametrize(("share", "std"), [(0.2, 0.2), (0.3, 0.1), (1.0, 0.2)])
def test_other_shares_and_stds(tmp_path, share, std):
    formats = [("PNG", {}), jpeg(95, 2), jpeg(90, 0), ("WEBP", {"quality": 90})]
    hit = write(tmp_path / "noisy", crops(), formats, share, std)
    found = audit(opened(tmp_path / "noisy", 48))
    assert found.noise_share == pytest.approx(hit.mean(), abs=0.05)
    assert np.median(found.files.stds[found.files.stds > 0]) == pytest.approx(std, rel=0.15)


def test_gray_files_keep_all_their_noise(tmp_path):
    images = [np.asarray(Image.fromarray(image).convert("L")) for image in crops()]
    hit = write(tmp_path / "noisy", images, [("PNG", {}), ("JPEG", {"quality": 90})], 0.5, 0.15)
    found = audit(opened(tmp_path / "noisy", 32))
    assert found.noise_share == pytest.approx(hit.mean(), abs=0.05)
    for row in found.as_dict()["noise"]["formats"]:
        assert row["std_in_file"] == pytest.approx(0.15, rel=0.1)


@pytest.mark.parametrize("quality", [75, 85, 95])
def test_the_response_of_jpeg_is_that_of_rounded_normal_variables(quality):
    steps = measure(encoded(np.zeros((32, 32, 3), np.uint8), jpeg(quality, 2))).steps
    draws = np.random.default_rng(0).standard_normal((4000, 8, 8))
    q = np.asarray(steps).reshape(8, 8) / 127.5
    for band, response in zip(BANDS, _response(steps), strict=True):
        for std in (0.05, 0.1, 0.2):
            rounded = (std * draws / q).round() * q
            expected = (rounded**2).mean(0)[band].mean() ** 0.5
            assert np.interp(std, STDS, response) == pytest.approx(expected, rel=0.02, abs=2e-4)


def test_the_transform_is_orthonormal():
    assert pytest.approx(np.eye(8), abs=1e-6) == DCT @ DCT.T


def test_files_too_small_or_of_other_depth_are_left_alone():
    assert measure(encoded(np.zeros((20, 60, 3), np.uint8), ("PNG", {}))).smooth == 0
    deep = Image.fromarray((np.random.default_rng(0).random((64, 64)) * 65535).astype(np.uint16))
    assert noise_std(measure(deep)) == 0


def test_what_was_measured_is_kept_and_read_again(tmp_path, monkeypatch):
    write(tmp_path / "noisy", crops()[:20], FORMATS["mixed"], 0.5, 0.2)
    files = load(str(tmp_path / "noisy"), image_size=32).files
    first = files.noise()
    monkeypatch.setattr("atdm.data.files.measure", None)
    again = load(str(tmp_path / "noisy"), image_size=48).files.noise()
    assert np.array_equal(first.stds, again.stds)
    assert (again.remains[again.stds > 0] > first.remains[first.stds > 0]).all()
    blocks = Blocks("JPEG 4:2:0", (64, 48), tuple(range(1, 65)), False, (0.1, 0.2, 0.2, 0.2, 0.2, 0.2), 7)
    assert Blocks.from_json(json.loads(json.dumps(blocks))) == blocks


def test_broken_files_are_passed_over(tmp_path):
    hit = write(tmp_path / "noisy", crops()[:40], FORMATS["jpeg 4:2:0"], 0.5, 0.2)
    (tmp_path / "noisy" / "00007a.jpeg").write_bytes(b"no image")
    dataset = load(str(tmp_path / "noisy"), image_size=32, skip_broken=True)
    found = dataset.files.noise()
    assert len(found.stds) == len(dataset.items) == 40
    assert ((found.stds > 0) == hit).mean() > 0.94


def test_a_few_textured_files_are_no_noise():
    noise = np.random.default_rng(0).standard_normal((64, 64, 3))
    one = measure(encoded((128 + 25 * noise).clip(0, 255).astype(np.uint8), ("PNG", {})))
    plain = measure(encoded(np.full((64, 64, 3), 90, np.uint8), ("PNG", {})))
    assert noise_std(one) == pytest.approx(25 / 127.5, rel=0.1)
    assert not FileNoise.of([one] + 39 * [plain], np.full(40, 2.0)).stds.any()
    assert FileNoise.of(3 * [one] + 37 * [plain], np.full(40, 2.0)).stds[:3].all()


def test_resizing_leaves_what_averaging_leaves():
    noise = np.random.default_rng(0).standard_normal((128, 128, 3))
    one = measure(encoded((128 + 25 * noise).clip(0, 255).astype(np.uint8), ("PNG", {})))
    remains = [FileNoise.of([one], np.array([scale])).remains[0] for scale in (2.0, 4.0, 16.0)]
    assert remains[0] / remains[1] == pytest.approx(2, rel=0.1)
    assert remains[1] / remains[2] == pytest.approx(4, rel=0.1)


# --- what learns by it ------------------------------------------------------------------------------------------------
def test_the_gauge_of_training_tells_each_item_of_a_mixed_folder_its_noise(tmp_path):
    hit = write(tmp_path / "noisy", crops(), FORMATS["mixed"], 0.6, 0.2)
    source = opened(tmp_path / "noisy", 32).prepared()
    rows = torch.randperm(len(source), generator=torch.Generator().manual_seed(0))
    stds = torch.cat([source.gauge().stds(source.batch(part, 0 * part), part) for part in rows.split(50)])
    dirty = torch.from_numpy(hit)[rows]
    assert ((stds > 0) == dirty).float().mean() > 0.95
    write(tmp_path / "clean", crops(), FORMATS["mixed"], 0.0, 0.0)
    assert float(stds[dirty & (stds > 0)].median()) == pytest.approx(left(tmp_path, 32, hit), rel=0.15)


@pytest.mark.slow
def test_training_on_a_mixed_folder_blind_and_auto(tmp_path, capsys):
    hit = write(tmp_path / "noisy", crops()[:48], FORMATS["half png, half jpeg 4:2:0"], 0.6, 0.2)
    words = ["--data", str(tmp_path / "noisy"), "--image_size", "16", "--net", "mlp:width=16", "--steps", "3"]
    for name in ("ambient_blind", "auto"):
        code, _, err = atdm(
            capsys, "train", *words, "--objective.name", name, "--batch_size", "8", "--out", str(tmp_path / name)
        )
        assert code == 0, err
    gate = json.loads((tmp_path / "auto" / "objective.json").read_text())["gate"]
    source = opened(tmp_path / "noisy", 16)
    assert gate >= 0.98 * GATE * source.hidden_std
    assert source.hidden_std == pytest.approx(hit.mean() ** 0.5 * 0.2 * 16 / 96, rel=0.3)


# --- real photographs, where they are there ---------------------------------------------------------------------------
@pytest.mark.slow
@pytest.mark.parametrize("size", [None, 32])
@pytest.mark.parametrize("share", [0.0, 0.6])
@pytest.mark.parametrize("data", ["celeba", "bedroom", "cifar10"])
def test_real_photographs_of_mixed_formats(tmp_path, data, share, size):
    x = load(shared(data), limit=400).x
    images = list(((x + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy())
    size = 16 if data == "cifar10" and size else size
    hit = write(tmp_path / "noisy", images, FORMATS["mixed"], share, 0.2)
    found = audit(opened(tmp_path / "noisy", size))
    assert found.noise_share == pytest.approx(hit.mean(), abs=0.05)
    for row in found.as_dict()["noise"]["formats"]:
        if share:
            assert row["std_in_file"] == pytest.approx(0.2, rel=0.15)
