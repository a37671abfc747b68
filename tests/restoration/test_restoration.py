"""Restoring: the Wiener estimate where the model is ideal, clean items to the bit, names and formats of folders."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.metrics import structural_similarity

from atdm.corruption import corrupt, parse_corruption
from atdm.data import load
from atdm.data.source import Source
from atdm.diffusion.model import Model
from atdm.diffusion.process import Process
from atdm.errors import UserError
from atdm.metrics import psnr, ssim
from atdm.nets import build_net
from atdm.restoration import Restoration, gauge, restore
from atdm.restoration.classical import denoised, denoisers
from atdm.restoration.write import CleanReference, names_of, write
from helpers import STDS, TURN, Gaussian, Ideal, S, atdm, seeded

LINEAR = Process.linear()
PROCESSES = {
    "linear": LINEAR,
    "v": Process.linear(prediction="v_prediction"),
    "sample": Process.linear(prediction="sample"),
    "cosine": Process.cosine(),
    "flow": Process.flow(),
    "edm": Process.edm(),
}


# --- one evaluation -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", PROCESSES)
def test_of_gaussian_data_it_is_the_wiener_estimate_in_every_parameterization(name):
    process = PROCESSES[name]
    ideal = Ideal(process)
    times = process.time(torch.arange(process.steps))

    def net(x, time):  # the ideal network is told t itself
        return ideal(x, torch.searchsorted(times, time))

    model = Model(net, process, shape=(6,))
    stds = torch.tensor([0.0, 0.05, 0.2, 0.5, 1.0])
    y = torch.randn(5, 6, generator=seeded(1))
    made = restore(model, y, stds)
    wiener = S**2 / (S**2 + stds**2)  # E[x_0 | y] = s_x^2 / (s_x^2 + s^2) y
    assert torch.allclose(made, wiener[:, None] * y, atol=0.01)
    assert torch.equal(made[0], y[0])


def test_each_direction_shrinks_by_its_own_variance_and_the_error_is_the_least():
    x = torch.randn(4000, 4, generator=seeded(2)) * STDS @ TURN.T
    y = x + 0.2 * torch.randn(x.shape, generator=seeded(3))
    made = restore(Model(Gaussian(), LINEAR, shape=(4,)), y, torch.full((4000,), 0.2))
    gain = STDS**2 / (STDS**2 + 0.2**2)
    assert torch.allclose(made, (y @ TURN * gain) @ TURN.T, atol=0.01)
    least = (STDS**2 * 0.2**2 / (STDS**2 + 0.2**2)).mean().item()
    assert (made - x).square().mean().item() == pytest.approx(least, rel=0.05)


def test_items_do_not_depend_on_those_beside_them():
    model = Model(Gaussian(), LINEAR, shape=(4,))
    y, stds = torch.randn(7, 4, generator=seeded(4)), torch.linspace(0, 0.6, 7)
    assert torch.allclose(restore(model, y, stds, batch_size=2), restore(model, y, stds), atol=1e-6)


def test_images_are_clipped_and_the_network_is_as_it_was():
    net = Ideal().train()
    made = restore(Model(net, LINEAR, shape=(1, 2, 2)), torch.full((2, 1, 2, 2), 3.0), torch.tensor([0.0, 0.1]))
    assert made[0].max() == 3
    assert made[1].max() == 1
    assert net.training


def test_of_clean_images_alone_the_network_sees_nothing():
    """With attention it cannot see an empty batch."""
    net = build_net("tiny:channels=8,multipliers=1-2,head_dim=8", (3, 16, 16))
    clean = torch.rand(5, 3, 16, 16)
    assert torch.equal(restore(Model(net, LINEAR, shape=(3, 16, 16)), clean, torch.zeros(5)), clean)


def test_a_model_that_diverges_is_a_sentence():
    model = Model(lambda x, t: x * float("nan"), LINEAR, shape=(4,))
    with pytest.raises(UserError, match="1 of the 2 restored items are not finite"):
        restore(model, torch.ones(2, 4), torch.tensor([0.0, 0.2]))


# --- measures and other denoisers -----------------------------------------------------------------------------------------
@pytest.mark.parametrize("channels", [1, 3])
def test_ssim_is_that_of_scikit_image(channels):
    x = torch.rand(3, channels, 12, 16, generator=seeded(5)) * 2 - 1
    y = (x + 0.3 * torch.randn(x.shape, generator=seeded(6))).clamp(-1, 1)
    theirs = [
        structural_similarity(a.numpy(), b.numpy(), data_range=2, channel_axis=0) for a, b in zip(x, y, strict=True)
    ]
    assert torch.allclose(ssim(x, y), torch.tensor(theirs, dtype=torch.float32), atol=1e-5)
    assert torch.allclose(ssim(x, x), torch.ones(3))


@pytest.mark.parametrize("shape", [(1, 16, 16), (3, 16, 16)])
def test_other_denoisers_remove_noise_and_spare_clean_images(shape):
    ramp = torch.linspace(-0.5, 0.5, 16).expand(3, *shape).clone()
    y = ramp + 0.1 * torch.randn(ramp.shape, generator=seeded(7))
    for name, way in denoisers(shape).items():
        if name == "BM3D":  # seconds for each image
            continue
        made = denoised(way, y, torch.tensor([0.0, 0.1, 0.1]))
        assert torch.equal(made[0], y[0])
        assert (psnr(made, ramp)[1:] > psnr(y, ramp)[1:] + 2).all(), name


def test_other_denoisers_are_for_images():
    with pytest.raises(UserError, match="are no images"):
        denoisers((4,))


# --- sets -----------------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """150 smooth images of 16x16 pixels in class folders, noise of std 0.2 on the even ones, of two formats."""
    root = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    ramp = np.linspace(-1, 1, 16)
    for i in range(150):
        a, b, c, d = rng.normal(size=(4, 3))
        plane = np.sin(2 * ramp[:, None, None] * a + b) * 0.4 + np.sin(2 * ramp[None, :, None] * c + d) * 0.4
        noisy = plane + 0.2 * rng.normal(size=plane.shape) * (i % 2 == 0)
        pixels = ((noisy.clip(-1, 1) + 1) * 127.5).round().astype(np.uint8)
        file = root / ("cats" if i < 75 else "dogs") / f"{i:03d}.{'bmp' if i % 3 else 'png'}"
        file.parent.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(file)
    return root


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("models") / "run"
    torch.manual_seed(0)
    Model(build_net("mlp:width=16", (3, 16, 16)), LINEAR, True).save_pretrained(out)
    return out


def pixels(file):
    return np.asarray(Image.open(file))


def test_a_folder_comes_back_with_its_names_and_clean_images_to_the_bit(capsys, photos, run, tmp_path):
    code, _, err = atdm(capsys, "restore", str(photos), "--model", str(run), "--out", str(tmp_path / "c"))
    assert code == 0, err
    told = json.loads((tmp_path / "c" / "atdm-restore" / "restored.json").read_text())
    assert (told["items"], told["restored"]) == (150, 75)
    assert {row["format"]: row["files"] for row in told["formats"]} == {"BMP": 100, "PNG": 50}
    assert sum(level["items"] for level in told["histogram"]) == 75
    stds = dict(zip(told["names"], told["stds"], strict=True))
    for file in photos.rglob("*.*"):
        name = file.relative_to(photos).with_suffix(".png").as_posix()
        same = np.array_equal(pixels(file), pixels(tmp_path / "c" / name))
        noisy = int(file.stem) % 2 == 0
        assert same != noisy
        assert (stds[name] > 0) == noisy
        assert not noisy or 0.1 < stds[name] < 0.3
    assert len(load(str(tmp_path / "c")).items) == 150  # record and contact sheet are not data
    with Image.open(tmp_path / "c" / "atdm-restore" / "sheet.png") as sheet:
        assert min(sheet.size) > 200


def test_resized_images_are_restored_at_the_size_of_the_model(capsys, photos, run, tmp_path):
    big = tmp_path / "big"
    big.mkdir()
    for i, file in enumerate(sorted(photos.rglob("*.*"))):
        Image.open(file).resize((40, 32 + i % 3)).save(big / f"{file.stem}.png")
    words = ["restore", str(big), "--model", str(run), "--out", str(tmp_path / "c")]
    code, _, err = atdm(capsys, *words)
    assert code == 2
    assert "--image_size" in err
    assert not (tmp_path / "c").exists()
    code, _, err = atdm(capsys, *words, "--image_size", "16", "--json")
    assert code == 0, err
    assert pixels(tmp_path / "c" / "000.png").shape == (16, 16, 3)


def test_known_corruption_tells_what_was_gained_and_floats_stay_exact(capsys, photos, run, tmp_path):
    noise = "gaussian:share=0.5,std=0.3"
    words = ["restore", "digits", "--model", "nothing", "--out", str(tmp_path / "c"), "--compare", "3"]
    code, _, err = atdm(capsys, *words)
    assert code == 2
    assert "--corrupt" in err
    dataset = load("digits")
    y, truth = corrupt(dataset.x, noise, 0)
    source = Source(dataset.items, parse_corruption(noise), 0)
    stds = gauge(source)
    found = Restoration(source, Model(Ideal(), LINEAR, shape=(1, 8, 8)), stds)
    told = write(tmp_path / "d", found, None, {}, truth_of(source, 5))
    kept = load(str(tmp_path / "d" / "samples.npz")).x
    assert torch.equal(kept[stds == 0], y[stds == 0])
    noisy = torch.from_numpy(truth.corrupted)
    assert told["noisy"] == int(noisy.sum())
    assert told["missed"] + told["clean_restored"] == int((noisy != (stds > 0)).sum())
    assert told["psnr_before"] == pytest.approx(psnr(y.clamp(-1, 1), dataset.x)[noisy].mean().item(), abs=1e-3)
    assert told["psnr_after"] == pytest.approx(psnr(kept, dataset.x)[noisy].mean().item(), abs=1e-3)
    assert told["ssim_after"] == pytest.approx(ssim(kept, dataset.x)[noisy].mean().item(), abs=1e-4)
    assert [row["method"] for row in told["compared"]] == ["noisy", "model", "non-local means", "wavelets"]


def truth_of(source, compared):
    rows = torch.arange(len(source))
    return CleanReference(source.items, source.levels(rows, torch.zeros_like(rows)), compared)


@pytest.mark.parametrize(
    ("names", "files"),
    [
        (["a/b.jpg", "c.webp"], ["a/b.png", "c.png"]),
        (["a.jpg", "a.png", "b.v2.png"], ["a.jpg.png", "a.png.png", "b.v2.png"]),
        (["A.jpg", "a.png"], ["A.jpg.png", "a.png.png"]),
        (["a.jpg", "a.png", "a.jpg.bmp"], ["0.png", "1.png", "2.png"]),
        (["/data/x.parquet[0]", "/data/x.parquet[1]"], ["0.png", "1.png"]),
        (["../x.png", "y.png"], ["0.png", "1.png"]),
    ],
)
def test_names_are_kept_where_they_are_names_and_none_is_lost(names, files):
    assert names_of(names) == files


@pytest.mark.parametrize(
    ("out", "says"),
    [("{photos}/cleaned", "would be read as data there"), ("{photos}", "is not empty")],
)
def test_nothing_is_overwritten_or_put_among_the_data(capsys, photos, run, out, says):
    before = sorted(photos.rglob("*"))
    code, _, err = atdm(capsys, "restore", str(photos), "--model", str(run), "--out", out.format(photos=photos))
    assert code == 2
    assert says in err
    assert sorted(photos.rglob("*")) == before


def test_broken_files_are_left_out_when_asked_and_nothing_is_half_written(capsys, photos, run, tmp_path, monkeypatch):
    mixed = shutil.copytree(photos, tmp_path / "mixed")
    (mixed / "cats" / "000.png").write_bytes(b"no image")
    words = ["restore", str(mixed), "--model", str(run), "--out", str(tmp_path / "c")]
    code, _, err = atdm(capsys, *words)
    assert code == 2
    assert "--skip_broken" in err
    code, _, err = atdm(capsys, *words, "--skip_broken")
    assert code == 0, err
    assert len([*(tmp_path / "c").glob("*/*.png")]) == 149 + 1  # and the contact sheet
    assert not (tmp_path / "c" / "cats" / "000.png").exists()

    def fails(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("atdm.restoration.write.save_picture", fails)
    code, _, err = atdm(capsys, *words[:-1], str(tmp_path / "e"), "--skip_broken")
    assert code == 2
    assert "disk is full" in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c", "mixed"]
