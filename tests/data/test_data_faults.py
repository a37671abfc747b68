"""Faults that data have in the wild: each was once a traceback, a leak or a silent change."""

import io
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from atdm.corruption import Truth, corrupt
from atdm.data import load
from atdm.errors import UserError


def photo(seed=0, side=16):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (side, side, 3), dtype=np.uint8))


def png(image):
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def write_parquet(path, cells, column="img"):
    import pyarrow as pa
    from pyarrow import parquet

    layout = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    parquet.write_table(pa.table({column: pa.array(cells, type=layout), "label": list(range(len(cells)))}), path)


def bomb():
    """A PNG of a few bytes whose header claims 3.6 billion pixels."""
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(b"0")),
        (b"IEND", b""),
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in chunks
    )


def test_test_files_are_held_out_of_a_parquet_folder(tmp_path):
    for split, count, seed in (("train", 6, 0), ("test", 3, 10), ("validation", 2, 20)):
        cells = [{"bytes": png(photo(seed + i)), "path": None} for i in range(count)]
        write_parquet(tmp_path / f"{split}-00000-of-00001.parquet", cells)
    data = load(str(tmp_path))
    assert len(data.x) == 6
    assert data.test.shape == (3, 3, 16, 16)
    assert not any((item == data.x).flatten(1).all(1).any() for item in data.test)
    assert len(load(str(tmp_path / "test-*.parquet")).x) == 3, "asked for by name, they are what there is"


@pytest.mark.parametrize("cell", [None, {"bytes": None, "path": "/nowhere/x.png"}, {"bytes": b"text", "path": None}])
def test_a_bad_cell_is_named_or_skipped(tmp_path, cell):
    good = {"bytes": png(photo()), "path": None}
    write_parquet(tmp_path / "a.parquet", [good, cell, good])
    with pytest.raises(UserError, match=r"a\.parquet\[1\]"):
        load(str(tmp_path))
    assert len(load(str(tmp_path), skip_broken=True).x) == 2


def test_a_column_without_images_is_refused(tmp_path):
    write_parquet(tmp_path / "a.parquet", [{"bytes": png(photo()), "path": None}] * 2)
    with pytest.raises(UserError, match="holds no images"):
        load(f"parquet:path={tmp_path / 'a.parquet'},column=label")


def test_a_decompression_bomb_is_named_or_skipped(tmp_path):
    photo(0).save(tmp_path / "a.png")
    photo(1).save(tmp_path / "b.png")
    (tmp_path / "c.png").write_bytes(bomb())
    with pytest.raises(UserError, match=r"c\.png"):
        load(str(tmp_path))
    assert len(load(str(tmp_path), skip_broken=True).x) == 2


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "tif", "webp", "bmp", "ppm"])
def test_random_damage_never_escapes(tmp_path, suffix):
    photo(0).save(tmp_path / "a.png")
    photo(1).save(tmp_path / "b.png")
    target = tmp_path / f"c.{suffix}"
    photo(2, 12).save(target)
    whole = np.frombuffer(target.read_bytes(), np.uint8)
    rng = np.random.default_rng(0)
    for _ in range(60):
        damaged = whole.copy()
        damaged[rng.integers(len(whole), size=rng.integers(1, 12))] = rng.integers(256)
        target.write_bytes(damaged[: rng.integers(len(whole) // 3, len(whole) + 1)].tobytes())
        assert len(load(str(tmp_path), skip_broken=True, image_size=8).x) in (2, 3)


@pytest.mark.parametrize(
    "pixels", [np.full((8, 8), np.nan, np.float32), np.full((8, 8), 70000, np.int32)], ids=["nan", "32 bit"]
)
def test_pixels_out_of_range_are_named(tmp_path, pixels):
    photo(0, 8).save(tmp_path / "a.png")
    photo(1, 8).save(tmp_path / "b.png")
    Image.fromarray(pixels).save(tmp_path / "c.tif")
    with pytest.raises(UserError, match=r"c\.tif"):
        load(str(tmp_path))


def test_a_limit_takes_from_all_classes(tmp_path):
    for name, shade in (("a", 0), ("b", 255)):
        (tmp_path / name).mkdir()
        for i in range(20):
            Image.new("L", (4, 4), shade).save(tmp_path / name / f"{i}.png")
    few = load(str(tmp_path), limit=10)
    assert set(few.x.unique().tolist()) == {-1.0, 1.0}
    assert torch.equal(few.x, load(str(tmp_path), limit=10).x)


def pixels_of(x):
    return {tuple(item.flatten().tolist()) for item in x}


def test_what_a_limit_leaves_out_is_held_out(tmp_path):
    for i in range(20):
        photo(i, 8).save(tmp_path / f"{i}.png")
    everything = pixels_of(load(str(tmp_path)).x)
    assert len(everything) == 20
    assert load(str(tmp_path)).test is None
    few = load(str(tmp_path), limit=8)
    assert len(few.x) == len(few.test) == 8
    assert pixels_of(few.x) | pixels_of(few.test) <= everything
    assert not pixels_of(few.x) & pixels_of(few.test)
    assert load(str(tmp_path), limit=8, hold_out=False).test is None
    assert load(str(tmp_path), limit=15).test is None, "5 would be a poor measure of 15"


def test_a_color_among_what_a_limit_leaves_out_stops_nothing(tmp_path):
    for i in range(6):
        Image.new("L", (4, 4), 40 * i).save(tmp_path / f"{i}.png")
    photo(0, 4).save(tmp_path / "x.png")
    sets = [load(str(tmp_path), limit=3, seed=seed) for seed in range(8)]
    gray = [d for d in sets if d.item_shape == (1, 4, 4)]
    assert any(d.test is None for d in gray)
    for d in gray:
        assert (d.test is None) == any("Nothing is held out: items are [1, 4, 4]" in note for note in d.notes)


def test_named_held_out_images_come_before_what_a_limit_leaves_out(tmp_path):
    seen, named = ([photo(i, 8) for i in numbers] for numbers in (range(20), range(20, 25)))
    for name, photos in (("train", seen), ("test", named)):
        write_parquet(tmp_path / f"{name}.parquet", [{"bytes": png(p), "path": None} for p in photos])
    all_named = pixels_of(load(str(tmp_path)).test)
    assert len(all_named) == 5
    few = load(str(tmp_path), limit=8)
    assert len(few.test) == 8
    assert all_named < pixels_of(few.test)
    assert not pixels_of(few.x) & pixels_of(few.test)
    assert pixels_of(load(str(tmp_path), limit=4).test) < all_named
    assert len(load(str(tmp_path), limit=18).test) == 5 + 2


def test_hidden_files_are_no_images_and_odd_paths_are_paths(tmp_path, monkeypatch):
    folder = tmp_path / "my, photos=1"
    folder.mkdir()
    photo(0).save(folder / "a.png")
    photo(1).save(folder / "b.png")
    (folder / "._a.png").write_bytes(b"a resource fork")
    monkeypatch.setenv("HOME", str(tmp_path))
    for spec in (str(folder), f"folder:{folder}", "~/my, photos=1"):
        assert load(spec).x.shape == (2, 3, 16, 16)


def test_vectors_have_no_image_size():
    with pytest.raises(UserError, match="vectors"):
        load("plane", image_size=8)


def test_numbers_in_a_corruption_may_have_exponents_and_must_be_finite():
    x = torch.zeros(4, 3)
    assert corrupt(x, "gaussian:std=1e+0")[1].spec == "gaussian:share=1.0,std=1.0"
    for low in ("nan", "-inf"):
        with pytest.raises(UserError, match="finite number"):
            corrupt(x, f"outliers:low={low}")


def test_bad_arrays_are_sentences(tmp_path):
    path = tmp_path / "a.npz"
    with pytest.raises(UserError, match="There is no"):
        load(str(path))
    path.write_bytes(b"text")
    with pytest.raises(UserError, match="holds no array"):
        load(str(path))
    for array, words in (
        (np.zeros((4, 8, 8)), "shape"),
        (np.zeros((4, 3), int), "int64"),
        (np.full((4, 3), np.nan), "not finite"),
        (np.zeros((1, 3)), "1 item"),
    ):
        np.savez(path, samples=array)
        with pytest.raises(UserError, match=words):
            load(str(path))
    np.savez(path, samples=np.zeros((4, 3, 8, 8)))
    with pytest.raises(UserError, match="image_size is 16"):
        load(str(path), image_size=16)


def test_what_is_no_truth_file_is_said(tmp_path):
    with pytest.raises(UserError, match="no truth file"):
        Truth.load(tmp_path / "a.npz")
    for content in (b"", b"text", b"PK\x03\x04broken"):
        (tmp_path / "a.npz").write_bytes(content)
        with pytest.raises(UserError, match="not a truth file"):
            Truth.load(tmp_path / "a.npz")
