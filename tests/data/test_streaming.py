"""Streams of shards: order, shares of processes, exact resume, memory, corruption by item, and what is refused."""

import io
import json
import tarfile
import threading
from collections import Counter
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from atdm.corruption import parse_corruption
from atdm.data import load, streaming
from atdm.data.named import Parquet, Webdataset
from atdm.data.shards import Position, _item, open_shards
from atdm.data.source import Source, stream_batches
from atdm.errors import UserError
from atdm.nets import build_net
from atdm.objective import Objective
from atdm.training.config import Settings
from atdm.training.train import State, fit
from helpers import LINEAR, atdm

SHARDS, COUNT = 6, 57


def png(number, side=8):
    image, file = np.random.default_rng(number).integers(0, 256, (side, side, 3), np.uint8), io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


def tar(path, files):
    with tarfile.open(path, "w") as archive:
        for name, content in files:
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The same 57 images in six tar and in six parquet files of different sizes."""
    folder, first = tmp_path_factory.mktemp("shards"), 0
    for shard in range(SHARDS):
        numbers = range(first, first := first + 7 + shard)
        named = [(f"{n:04d}.{kind}", png(n) if kind == "png" else b"3") for n in numbers for kind in ("png", "cls")]
        tar(folder / f"train-{shard:03d}.tar", named)
        rows = [{"bytes": png(n), "path": f"{n}.png"} for n in numbers]
        pq.write_table(pa.table({"image": rows, "n": [*numbers]}), folder / f"train-{shard}.parquet", row_group_size=3)
    assert first == COUNT
    return folder


KINDS = ["webdataset:path={}/train-*.tar", "parquet:path={}/train-*.parquet,column=image"]


@pytest.fixture(params=KINDS)
def spec(request, folder):
    return f"{request.param.format(folder)},streaming=true,buffer=10,sample=20"


def opened(spec):
    name, _, options = spec.partition(":")
    given = dict(part.split("=", 1) for part in options.split(","))
    kind = {"webdataset": Webdataset, "parquet": Parquet}[name]
    return open_shards(kind(path=given["path"], column=given.get("column"), streaming=True))[0]


def blocks(shards, epochs, process=0, processes=1, seed=3, position=None):
    """Every block of so many epochs: its place, and the keys of its items."""
    found = []
    for here, block in shards.blocks(seed, 10, position or Position(), process, processes):
        if here.epoch == epochs:
            return found
        found.append((here, [item.key for item in block]))


def keys(found, epoch=0):
    return [key for here, block in found if here.epoch == epoch for key in block]


def test_every_epoch_holds_every_image_once_in_an_order_of_its_own(spec):
    shards = opened(spec)
    assert shards.count == SHARDS
    found = blocks(shards, 2)
    first, second = keys(found, 0), keys(found, 1)
    assert len(set(first)) == COUNT == len(first)
    assert sorted(first) == sorted(second)
    assert first != second
    assert keys(blocks(shards, 1)) == first, "by the seed alone"
    assert keys(blocks(shards, 1, seed=4)) != first


@pytest.mark.parametrize("processes", [2, 4, 8])
def test_processes_share_each_epoch_without_overlap(spec, processes):
    shards = opened(spec)
    found = [blocks(shards, 2, process, processes) for process in range(processes)]
    whole = sorted(keys(blocks(shards, 1)))
    for epoch in (0, 1):
        assert sorted(key for each in found for key in keys(each, epoch)) == whole


def test_reading_goes_on_from_any_block_and_then_from_any_block_again(spec):
    shards = opened(spec)
    for process, processes in ((0, 1), (1, 2), (6, 8)):
        whole = blocks(shards, 2, process, processes)
        for at in range(0, len(whole), 3):
            there = Position.read(whole[at][0].text())
            assert blocks(shards, 2, process, processes, position=there) == whole[at:]


def taken(source, count, position=None, process=0, processes=1):
    batches = stream_batches(source, 4, process, processes, position, 1, False)
    found = [next(batches) for _ in range(count)]
    batches.close()
    return found


def source_of(spec, corrupt="gaussian:share=0.5,std=0.3", **options):
    data = load(spec, **options)
    return Source(data.items, parse_corruption(corrupt), 5, stream=data.stream, keys=data.keys, flip=True, fresh=True)


def test_batches_go_on_from_any_place_to_the_bit(spec):
    source = source_of(spec)
    whole = taken(source, 40)
    assert {int(epoch) for batch in whole for epoch in batch.epochs} == {0, 1, 2}
    for at in (1, 2, 3, 14, 29):
        for before, after in zip(whole[at:], taken(source, 40 - at, whole[at - 1].position), strict=True):
            assert torch.equal(before.x, after.x)
            assert torch.equal(before.indices, after.indices)
            assert before.position == after.position


def test_nothing_is_decoded_before_its_turn(spec, monkeypatch):
    counted, decode = Counter(), streaming.decode

    def counting(content, top=None):
        counted["images"] += 1
        return decode(content, top)

    source = source_of(spec)
    monkeypatch.setattr(streaming, "decode", counting)
    taken(source, 2)
    assert 8 <= counted["images"] <= 4 * (2 + streaming.AHEAD) < COUNT


def test_an_item_has_its_corruption_wherever_and_whenever_it_is_read(spec, folder):
    parts = parse_corruption("gaussian:share=0.5,std=0.3")
    data = load(spec)
    source = Source(data.items, parts, 5, stream=data.stream, keys=data.keys)

    def seen(batches):
        return {int(key): x for batch in batches for key, x in zip(batch.indices, batch.x, strict=True)}

    alone = seen(taken(source, 60))
    assert len(alone) == COUNT
    for process in (0, 1):
        for key, x in seen(taken(source, 30, process=process, processes=2)).items():
            assert torch.equal(x, alone[key])
    sample = source.first(20)
    assert all(torch.equal(x, alone[int(key)]) for key, x in zip(data.keys, sample, strict=True))
    clean = seen(taken(Source(data.items, (), 5, stream=data.stream, keys=data.keys), 60))
    touched = sum(not torch.equal(clean[key], alone[key]) for key in clean)
    assert 15 < touched < 42, touched
    other = next(kind for kind in KINDS if not spec.startswith(kind[:7]))
    again = load(f"{other.format(folder)},streaming=true,sample=20")
    for key, x in seen(taken(Source(again.items, parts, 5, stream=again.stream, keys=again.keys), 15)).items():
        assert torch.equal(x, alone[key]), "in a shard of another kind"


def test_a_sample_stands_for_the_set(spec):
    data = load(spec)
    assert len(data.items) == 20 == len(data.reference) == len(set(data.keys.tolist()))
    assert f"is a stream of {SHARDS} shards: 20 images" in data.notes[0]
    assert len(load(spec, limit=5).items) == 5
    assert torch.equal(load(spec).x, data.x)
    assert not torch.equal(load(spec, seed=1).x, data.x)


def test_shards_named_test_are_held_out(folder, tmp_path):
    for name in ("train-0", "train-1", "test-0"):
        (tmp_path / f"{name}.parquet").write_bytes((folder / f"train-{name[-1]}.parquet").read_bytes())
    data = load(f"parquet:path={tmp_path},column=image,streaming=true")
    assert len(data.reference) == 7
    assert data.stream.shards.count == 2


def test_a_path_may_be_a_url(folder):
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *words):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=folder)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/train-{{000..005}}.tar"
        far = load(f"webdataset:path={url},streaming=true,sample=57")
        server.shutdown()
    near = load(f"webdataset:path={folder}/train-*.tar,streaming=true,sample=57")
    assert torch.equal(far.x, near.x)


def test_broken_images_are_skipped_or_named(folder, tmp_path):
    files = [(f"{n:02d}.png", png(n) if n % 3 else b"no image") for n in range(12)]
    tar(tmp_path / "a.tar", files[:6])
    tar(tmp_path / "b.tar", files[6:])
    spec = f"webdataset:path={tmp_path}/*.tar,streaming=true"
    with pytest.raises(UserError, match=r"Cannot read the image .*png"):
        load(spec)
    data = load(spec, skip_broken=True)
    assert len(data.broken) == 4
    assert len(data.keys) == 8
    source = Source(data.items, stream=data.stream, keys=data.keys)
    assert {int(key) for batch in taken(source, 8) for key in batch.indices} == {*data.keys.tolist()}


def test_a_shard_may_name_files_that_are_not_there_but_none_that_may_not_be_read(tmp_path, monkeypatch):
    row = {"image": {"bytes": None, "path": str(tmp_path / "a.png")}}
    assert _item(row, "image", "here").content is None
    (tmp_path / "a.png").write_bytes(png(1))
    assert _item(row, "image", "here").content == png(1)

    def refused(self):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "read_bytes", refused)
    with pytest.raises(PermissionError, match=r"a\.png"):
        _item(row, "image", "here")


def test_a_stream_of_mixed_sizes_says_so(tmp_path):
    tar(tmp_path / "a.tar", [(f"{n}.png", png(n)) for n in range(3)])
    tar(tmp_path / "b.tar", [(f"{n}.png", png(n, 9 if n == 9 else 8)) for n in range(3, 12)])
    data = load(f"webdataset:path={tmp_path}/*.tar,streaming=true,sample=4")
    with pytest.raises(UserError, match=r"different sizes: those of the sample are 8x8, .*9\.png is 9x9"):
        taken(Source(data.items, stream=data.stream, keys=data.keys), 6)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["train", "--data={}", "--epochs=2"], "epochs needs all items"),
        (["train", "--data={}", "--limit=10"], "limit needs all items"),
        (["train", "--data={}", "--class_labels=true"], "class_labels needs all items"),
        (["corrupt", "--data={}", "--corrupt=gaussian:std=0.1"], "atdm corrupt needs all items"),
        (["train", "--data={},buffer=0"], "buffer is 0"),
        (["train", "--data={},streem=true"], "streaming"),
        (["train", "--data=webdataset:path=nowhere-*.tar,streaming=true"], "There is no webdataset file"),
    ],
)
def test_what_cannot_be_had_is_a_sentence(words, said, folder, tmp_path, capsys):
    spec = f"webdataset:path={folder}/train-*.tar,streaming=true"
    code, _, problem = atdm(capsys, *(word.format(spec) for word in words), f"--out={tmp_path / 'out'}")
    assert code == 2
    assert said in problem


def trained(source, state, steps):
    settings = Settings(steps=steps, batch_size=8, lr=1e-3)
    for _ in fit(Objective("ddpm", LINEAR), state, source, settings):
        pass
    return {name: value.clone() for name, value in state.tensors().items()}


def fresh():
    torch.manual_seed(0)
    return State.create(build_net("digits", (3, 8, 8)), Settings(lr=1e-3))


def test_training_goes_on_to_the_bit(spec):
    source = source_of(spec)
    whole = trained(source, fresh(), 16)
    half, later = fresh(), fresh()
    trained(source, half, 9)
    later.restore(half.tensors(), 9)
    found = trained(source, later, 16)
    assert found.keys() == whole.keys()
    assert all(torch.equal(found[name], whole[name]) for name in whole)
    later.positions |= {1: later.positions[0]}
    with pytest.raises(UserError, match="saved by 2 processes that share a stream, and now there are 1"):
        trained(source, later, 17)


def test_an_audit_looks_at_the_sample(folder, tmp_path, capsys):
    spec = f"{KINDS[0].format(folder)},streaming=true,sample=20"
    code, out, _ = atdm(capsys, "audit", spec, f"--out={tmp_path / 'audit'}", "--json")
    assert code == 0
    assert json.loads(out)["items"] == 20
    assert atdm(capsys, "train", f"--config={tmp_path / 'audit' / 'recipe.yaml'}", "--dry_run=true", "--json")[0] == 0
