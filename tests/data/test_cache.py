"""Images decoded once: what the cache promises, and tar files read at any place."""

import io
import os
import tarfile
import tracemalloc

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from atdm.data import cache as caching
from atdm.data import decode, images, load
from atdm.data.source import Source, feed
from atdm.errors import UserError
from atdm.files import Damaged
from atdm.training.train import Order


def photo(seed, side=12, mode="RGB"):
    pixels = np.random.default_rng(seed).integers(0, 255, (side, side, 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def encoded(image, kind="PNG"):
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ATDM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "photos").mkdir()
    for i in range(5):
        photo(i).save(tmp_path / "photos" / f"{i}.png")
    return tmp_path / "photos"


@pytest.fixture
def decoded(monkeypatch):
    """How many images were decoded so far."""
    counted = []
    plain = decode.decode
    monkeypatch.setattr(decode, "decode", lambda *a: counted.append(1) or plain(*a))
    return counted


def test_images_are_decoded_once(cache, folder, decoded):
    first = load(str(folder))
    assert len(decoded) == 5
    again = load(str(folder))
    assert len(decoded) == 5
    assert torch.equal(first.x, again.x)
    (file,) = cache.glob("*.npy")
    pixels = np.load(file)
    assert pixels.dtype == np.uint8
    assert np.array_equal(pixels, np.stack([np.asarray(photo(i)).transpose(2, 0, 1) for i in range(5)]))
    load(str(folder), image_size=8)
    load(str(folder), limit=3)
    assert len(decoded) == 13, "other options, other pixels"
    load(str(folder), limit=3, seed=1)
    assert len(decoded) == 16, "another choice"
    load(str(folder), limit=9, seed=1)
    assert len(decoded) == 16, "a limit that does not bind is none"


def test_a_changed_folder_is_decoded_again(cache, folder, decoded):
    before = load(str(folder)).x
    photo(9).save(folder / "2.png")
    os.utime(folder / "2.png", ns=(1, 1))
    after = load(str(folder)).x
    assert len(decoded) == 10
    assert not torch.equal(before[2], after[2])
    assert torch.equal(before[3], after[3])
    (folder / "4.png").rename(folder / "5.png")
    load(str(folder))
    assert len(decoded) == 15


@pytest.mark.parametrize("kind", ["folder", "tar", "parquet"])
def test_another_file_of_the_same_size_and_time_is_decoded(cache, tmp_path, kind):
    """As archives with one time for all files leave them: images without compression are of one size."""

    def write(place, seed):
        place.mkdir()
        images = [encoded(photo(seed + i), "BMP") for i in range(3)]
        if kind == "folder":
            for i, content in enumerate(images):
                (place / f"{i}.bmp").write_bytes(content)
        elif kind == "tar":
            with tarfile.open(place / "a.tar", "w") as file:
                for i, content in enumerate(images):
                    about = tarfile.TarInfo(f"{i}.bmp")
                    about.size = len(content)
                    file.addfile(about, io.BytesIO(content))
        else:
            table = pa.table({"image": pa.array(images)})
            pq.write_table(table, place / "a.parquet", compression="none", use_dictionary=False)
        for file in place.iterdir():
            os.utime(file, (1e9, 1e9))
        return sum(file.stat().st_size for file in place.iterdir())

    sizes = {write(tmp_path / "data", 0), write(tmp_path / "new", 5)}
    before = load(str(tmp_path / "data")).x
    for file in (tmp_path / "new").iterdir():
        file.replace(tmp_path / "data" / file.name)
    after = load(str(tmp_path / "data")).x
    assert len(sizes) == 1
    assert not torch.equal(before, after)


def test_without_a_cache_the_pixels_are_the_same_and_nothing_is_written(cache, folder):
    for mode in ("RGB", "L"):
        for i in range(5):
            photo(i, mode=mode).save(folder / f"{i}.png")
        plain = load(str(folder), cache=False)
        assert not cache.exists() or mode == "L"
        assert torch.equal(plain.x, load(str(folder)).x)
        assert plain.item_shape == (3 if mode == "RGB" else 1, 12, 12)


def test_a_damaged_or_half_written_entry_is_made_again(cache, folder, decoded, monkeypatch):
    whole = load(str(folder)).x
    (file,) = cache.glob("*.npy")
    file.write_bytes(file.read_bytes()[:300])
    assert torch.equal(load(str(folder)).x, whole)
    assert len(decoded) == 10
    file.unlink()

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(caching.os, "fsync", killed)  # all pixels written, but not yet complete
        with pytest.raises(KeyboardInterrupt):
            load(str(folder))
    assert {f.suffix for f in cache.iterdir()} == {".json", ".lock", ".crc32"}
    (cache / file.with_suffix(".partial").name).write_bytes(b"what kill -9 leaves")
    assert torch.equal(load(str(folder)).x, whole)
    assert not [*cache.glob("*.partial*")]


def flip(file, place):
    content = bytearray(file.read_bytes())
    content[place] ^= 4
    file.write_bytes(content)


@pytest.mark.parametrize("place", [3, 9, 20, 60, 127, 128, 200, -1])
def test_a_flipped_bit_of_an_entry_is_noticed_and_the_images_are_decoded_again(cache, folder, decoded, place):
    whole = load(str(folder)).x
    (file,) = cache.glob("*.npy")
    flip(file, place)
    assert torch.equal(load(str(folder)).x, whole)
    for other in (".json", ".crc32"):
        content = file.with_suffix(other).read_bytes()
        for damaged in (b"", content[:3], b"\xff" + content):
            file.with_suffix(other).write_bytes(damaged)
            assert torch.equal(load(str(folder)).x, whole)


@pytest.mark.parametrize("workers", [0, 1])
def test_of_a_large_entry_items_are_checked_as_they_are_read(cache, folder, monkeypatch, workers):
    monkeypatch.setattr("atdm.data.items.AT_ONCE", 0)
    load(str(folder))
    (file,) = cache.glob("*.npy")
    flip(file, 128 + 2 * 3 * 12 * 12)
    items = load(str(folder)).items
    assert len(items[torch.tensor([0, 1, 3, 4])]) == 4
    with pytest.raises(Damaged, match="item 2 is not as it was written"):
        items[torch.tensor([1, 2])]
    with pytest.raises(UserError) as problem:
        list(feed(Source(items), Order(5, 5, 0), torch.arange(5), range(2), workers, pin=False))
    assert str(problem.value) == (
        f"{file} is damaged: item 2 is not as it was written. Remove that file, and the same command makes it again."
    )


def test_a_whole_entry_is_used_from_a_disk_that_cannot_be_written(cache, folder, monkeypatch):
    whole = load(str(folder)).x
    for lock in cache.glob("*.lock"):
        lock.unlink()
    monkeypatch.setattr(caching, "_made", lambda *_: pytest.fail("something was to be written"))
    assert torch.equal(load(str(folder)).x, whole)
    assert not [*cache.glob("*.lock")]


def test_no_room_is_a_sentence_and_leaves_nothing(cache, folder, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(caching.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 100}))
        with pytest.raises(UserError, match=r"take 0.0 GB, and .* ATDM_CACHE=FOLDER"):
            load(str(folder))

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(caching.os, "fsync", full)
        with pytest.raises(UserError, match=r"is full.*--cache false"):
            load(str(folder))
    assert {f.suffix for f in cache.iterdir()} == {".lock"}
    monkeypatch.setenv("ATDM_CACHE", str(folder / "0.png"))
    with pytest.raises(UserError, match="cannot be written"):
        load(str(folder))
    assert len(load(str(folder), cache=False).x) == 5


def test_memory_holds_a_few_images_not_all(cache, tmp_path):
    one = encoded(Image.new("RGB", (96, 96), (10, 20, 30)))
    with tarfile.open(tmp_path / "many.tar", "w") as tar:
        for i in range(1500):
            entry = tarfile.TarInfo(f"{i:05d}.png")
            entry.size = len(one)
            tar.addfile(entry, io.BytesIO(one))
    tracemalloc.start()
    data = load(str(tmp_path / "many.tar"))
    data.items[torch.arange(0, 1500, 50)]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(data.items) == 1500
    assert peak < 10e6, "41 MB decoded"


def test_progress_is_told(cache, folder):
    told = []
    load(str(folder), progress=lambda done, total: told.append((done, total)))
    assert told == [(5, 5)]


def write_tar(path, files, mode="w"):
    with tarfile.open(path, mode) as tar:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))


def test_tar_files_are_read_in_the_webdataset_layout(cache, tmp_path):
    for shard in range(3):
        files = {}
        for i in range(4):
            files |= {f"{i:03d}.png": encoded(photo(10 * shard + i)), f"{i:03d}.cls": b"7", f"{i:03d}.json": b"{}"}
        write_tar(tmp_path / f"train-{shard:03d}.tar", files)
    expected = np.stack([np.asarray(photo(10 * s + i)).transpose(2, 0, 1) for s in range(3) for i in range(4)])
    for spec in (
        f"{tmp_path}/train-*.tar",
        f"{tmp_path}/train-{{000..002}}.tar",
        f"webdataset:{tmp_path}/*.tar",
        f"webdataset:path={tmp_path}/train-{{000..002}}.tar,column=png",
    ):
        assert torch.equal(load(spec).x, torch.from_numpy(expected) / 127.5 - 1), spec
    assert len(load(f"{tmp_path}/train-001.tar").x) == 4
    assert len(load(f"{tmp_path}/train-{{001..002}}.tar").x) == 8
    listing = images.from_tars(f"{tmp_path}/train-*.tar", None)
    assert listing.name(5).endswith("train-001.tar/001.png")
    assert listing.content(5) == encoded(photo(11)), "at any place"


def test_tar_mistakes_are_sentences(cache, tmp_path):
    with pytest.raises(UserError, match="no tar file"):
        load(f"{tmp_path}/nothing-*.tar")
    write_tar(tmp_path / "text.tar", {"a.txt": b"text"})
    with pytest.raises(UserError, match="hold no file ending in"):
        load(f"{tmp_path}/text.tar")
    both = {f"{i}.{kind}.png": encoded(photo(i)) for i in range(2) for kind in ("image", "mask")}
    write_tar(tmp_path / "both.tar", both)
    with pytest.raises(UserError, match=r"column=NAME, one of image.png, mask.png"):
        load(f"{tmp_path}/both.tar")
    assert len(load(f"webdataset:path={tmp_path}/both.tar,column=mask.png").x) == 2
    with pytest.raises(UserError, match=r"hold no file NAME\.jpg"):
        load(f"webdataset:path={tmp_path}/both.tar,column=jpg")
    write_tar(tmp_path / "small.tar.gz", both, "w:gz")
    with pytest.raises(UserError, match=r"is compressed\. Expected an uncompressed one, .*: gunzip .*small\.tar\.gz$"):
        load(f"{tmp_path}/small.tar.gz")
    whole = (tmp_path / "both.tar").read_bytes()
    (tmp_path / "cut.tar").write_bytes(whole[:900])
    with pytest.raises(UserError, match="Cannot read the tar file"):
        load(f"webdataset:path={tmp_path}/cut.tar,column=mask.png")
    write_tar(tmp_path / "bad.tar", {"0.png": encoded(photo(0)), "1.png": b"text", "2.png": encoded(photo(2))})
    with pytest.raises(UserError, match=r"bad.tar/1.png"):
        load(f"{tmp_path}/bad.tar")
    data = load(f"{tmp_path}/bad.tar", skip_broken=True)
    assert len(data.x) == 2
    assert "bad.tar/1.png" in data.notes[0]


def test_the_hub_loader_opens_a_local_copy(cache, tmp_path):
    import datasets

    features = datasets.Features({"img": datasets.Image(), "other": datasets.Image()})
    rows = {"img": [photo(0), photo(1)], "other": [photo(2), photo(3)]}
    (tmp_path / "owner" / "set").mkdir(parents=True)
    for split in ("train", "test"):
        datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "owner" / "set" / f"{split}.parquet")
    where = f"hub:name={tmp_path}/owner/set"
    data = load(f"{where},split=test,column=other")
    assert torch.equal(data.x[1], torch.from_numpy(np.asarray(photo(3)).transpose(2, 0, 1).copy()) / 127.5 - 1)
    for spec, words in (
        (f"{where},column=imge", "Did you mean 'img'"),
        (where, "2 image columns"),
        (f"{where},split=dev", "split dev"),
    ):
        with pytest.raises(UserError, match=words):
            load(spec)
