"""Samples as pictures and files."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from atdm.data.items import to_uint8
from atdm.errors import UserError
from atdm.plot.samples import grid, save_samples


def test_bytes_are_rounded_and_clipped():
    x = torch.tensor([-2.0, -1.0, -0.997, 0.0, 1.0, 3.0])
    assert to_uint8(x).tolist() == [0, 0, 0, 128, 255, 255]
    levels = torch.arange(256)
    assert torch.equal(to_uint8(levels / 127.5 - 1).long(), levels)


@pytest.mark.parametrize("channels", [1, 3])
def test_grid_places_images_in_rows(channels):
    x = torch.linspace(-1, 1, 5).reshape(5, 1, 1, 1).expand(5, channels, 2, 3)
    picture = grid(x, columns=2)
    assert picture.shape == (3, 3 * 3 + 1, 2 * 4 + 1)
    corners = [picture[0, 1 + 3 * (i // 2), 1 + 4 * (i % 2)].item() for i in range(5)]
    assert corners == to_uint8(x[:, 0, 0, 0]).tolist()
    assert picture[0, 0, 0] == 255


@pytest.mark.parametrize("channels", [1, 3])
def test_files_hold_the_samples(channels, tmp_path, generator):
    x = torch.rand(11, channels, 4, 5, generator=generator) * 2 - 1
    with np.load(save_samples(x, tmp_path / "deep" / "x.npz"), allow_pickle=False) as data:
        assert np.array_equal(data["samples"], x.numpy())
    folder = save_samples(x, tmp_path / "pngs")
    files = sorted(folder.iterdir())
    assert [f.name for f in files] == [f"{i:02d}.png" for i in range(11)]
    for file, image in zip(files, to_uint8(x), strict=True):
        expected = image[0] if channels == 1 else image.permute(1, 2, 0)
        assert np.array_equal(np.asarray(Image.open(file)), expected.numpy())
    picture = np.asarray(Image.open(save_samples(x, tmp_path / "grid.png")))
    assert np.array_equal(picture, grid(x).permute(1, 2, 0).numpy())
    save_samples(x[:1], tmp_path / "grid.png")  # files are replaced
    assert sorted(p.name for p in tmp_path.iterdir()) == ["deep", "grid.png", "pngs"]


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("x.jpg", (2, 3, 4, 4), r"NAME\.npz"),
        ("x.png", (2, 3), "not pictures"),
        ("x", (2, 2, 4, 4), "not pictures"),
        ("full", (2, 1, 4, 4), "already there"),
        ("full/file/x.npz", (2, 3), "Cannot write"),
        ("folder.npz", (2, 3), "is a folder"),
    ],
)
def test_mistakes_in_writing_are_told_and_leave_nothing(name, shape, message, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("precious")
    (tmp_path / "folder.npz").mkdir()
    with pytest.raises(UserError, match=message):
        save_samples(torch.zeros(shape), tmp_path / name)
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["file", "folder.npz", "full"]


@pytest.mark.parametrize("name", ["x.npz", "x.png", "x"])
def test_a_full_disk_leaves_what_was_there(name, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    if name != "x":
        (tmp_path / name).write_text("old")
    monkeypatch.setattr(np, "savez", full)
    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(UserError, match="The disk is full"):
        save_samples(torch.zeros(2, 1, 4, 4), tmp_path / name)
    assert [p.read_text() for p in tmp_path.iterdir()] == ([] if name == "x" else ["old"])
