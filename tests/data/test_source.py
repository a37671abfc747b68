"""What training sees: the same for any number of workers, on the fly as ahead, and never more in memory than asked for."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from atdm.corruption import CORRUPTIONS, corrupt, parse_corruption
from atdm.data import source
from atdm.data.items import Floats, Pixels
from atdm.data.source import Source, feed, hashed_uniform
from atdm.diffusion.process import Process
from atdm.errors import UserError
from atdm.nets import build_net
from atdm.objective import Objective
from atdm.training import checkpoint
from atdm.training.config import Settings, TrainConfig
from atdm.training.parts import build
from atdm.training.train import Order, State, fit

PIXELS = Pixels(np.random.default_rng(0).integers(0, 255, (40, 3, 18, 18), dtype=np.uint8))
ALL = torch.arange(40)
FULL = "gaussian:share=0.5,std=0.3,std_max=1+patch:share=0.5"


def epochs(e):
    return torch.full((40,), e)


@pytest.mark.parametrize("name", sorted(CORRUPTIONS))
def test_dirt_on_the_fly_is_that_of_the_whole_set(name):
    spec = f"{name}:share=0.6"
    whole, _ = corrupt(PIXELS[ALL], spec, seed=5)
    live = Source(PIXELS, parse_corruption(spec), 5)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    for rows in order.split(7):
        assert torch.equal(live.batch(rows, torch.full_like(rows, 3)), whole[rows])
    assert torch.equal(live.prepared().batch(order, epochs(2)), whole[order])
    assert not live.prepared().corruption, "done once"


def test_fresh_dirt_begins_as_the_fixed_and_changes_every_epoch():
    fixed, fresh = (Source(PIXELS, parse_corruption(FULL), 5, fresh=f) for f in (False, True))
    assert torch.equal(fresh.batch(ALL, epochs(0)), fixed.batch(ALL, epochs(9)))
    one, two = fresh.batch(ALL, epochs(1)), fresh.batch(ALL, epochs(2))
    assert not torch.equal(one, two)
    assert torch.equal(one, fresh.prepared().batch(ALL, epochs(1)))
    mixed = fresh.batch(ALL, torch.where(ALL < 20, 1, 2))
    assert torch.equal(mixed, torch.where((ALL < 20).reshape(-1, 1, 1, 1), one, two))


def test_a_mirror_image_is_one_and_its_dirt_is_mirrored_too():
    plain, mirrored = (Source(PIXELS, parse_corruption(FULL), 5, flip=f) for f in (False, True))
    x = plain.batch(ALL, epochs(0))
    hits = []
    for e in range(50):
        y = mirrored.batch(ALL, epochs(e))
        flipped = (y != x).flatten(1).any(1)
        assert torch.equal(y, torch.where(flipped.reshape(-1, 1, 1, 1), x.flip(-1), x))
        hits.append(flipped.float())
    share = torch.stack(hits)
    assert share.mean().item() == pytest.approx(0.5, abs=0.04)
    assert share.mean(0).min() > 0.2, "each image is mirrored in some epochs and not in others"


def test_a_random_crop_is_a_window_of_the_dirty_image():
    clean = Source(PIXELS, parse_corruption(FULL), 5)
    cropped = Source(PIXELS, parse_corruption(FULL), 5, window=16)
    assert cropped.item_shape == (3, 16, 16)
    x, places = clean.batch(ALL, epochs(0)), set()
    for e in range(8):
        y = cropped.batch(ALL, epochs(e))
        for i in range(40):
            found = [(r, c) for r in range(3) for c in range(3) if torch.equal(y[i], x[i, :, r : r + 16, c : c + 16])]
            assert len(found) == 1
            places.add((e, *found[0]))
    assert {p[1:] for p in places} == {(r, c) for r in range(3) for c in range(3)}


def test_dice_are_uniform_and_independent():
    n = 20_000
    indices, zeros = torch.arange(n), torch.zeros(n, dtype=torch.long)
    base = hashed_uniform(0, "flip", indices, zeros)
    assert np.histogram(base, 10, (0, 1))[0] / n == pytest.approx(np.full(10, 0.1), abs=0.01)
    others = [
        hashed_uniform(0, "flip", indices, zeros + 1),
        hashed_uniform(1, "flip", indices, zeros),
        hashed_uniform(0, "top", indices, zeros),
    ]
    for other in (*others, np.roll(base, 1)):
        assert abs(np.corrcoef(base, other)[0, 1]) < 0.03
    assert hashed_uniform(-1, "flip", indices[:4], zeros[:4]).shape == (4,), "any seed will do"


@pytest.mark.parametrize("workers", [1, 2])
def test_batches_are_the_same_for_any_number_of_workers(workers):
    others = multiprocessing.active_children()
    live = Source(PIXELS, parse_corruption(FULL), 5, fresh=True, flip=True, window=16)
    order, every = Order(40, 16, seed=1), torch.arange(16)
    alone = [*feed(live, order, every, range(9), 0, pin=False)]
    assert alone[0].shape == (16, 3, 16, 16)
    before = torch.random.get_rng_state()
    helped = [*feed(live, order, every, range(9), workers, pin=False)]
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(alone, helped, strict=True))
    later = [*feed(live, order, every[4:8], range(5, 9), workers, pin=False)]
    assert all(torch.equal(a[4:8], b) for a, b in zip(alone[5:], later, strict=True))
    part = feed(live, order, every, range(9), workers, pin=False)
    next(part)
    part.close()
    assert set(multiprocessing.active_children()) <= set(others)


def test_a_dead_worker_is_a_sentence():
    batches = feed(Source(PIXELS), Order(40, 16, seed=1), torch.arange(16), range(10_000), 1, pin=False)
    next(batches)
    for child in multiprocessing.active_children():
        os.kill(child.pid, signal.SIGKILL)
    time.sleep(0.2)  # as in a step: it is no place for an error of the worker
    with pytest.raises(UserError, match="prepares batches failed"):
        for _ in batches:
            pass


def test_what_is_for_images_is_refused_for_vectors():
    vectors = Floats(torch.zeros(4, 3))
    for options in ({"flip": True}, {"window": 2}):
        with pytest.raises(UserError, match="for images"):
            Source(vectors, **options)
    with pytest.raises(UserError, match="for images"):
        Source(vectors, parse_corruption("blur"))


def test_data_that_are_no_numbers_are_refused():
    data = torch.zeros(8, 3)
    data[5, 1] = float("nan")
    settings = Settings(steps=1, batch_size=4)
    state = State.create(build_net("mlp:width=32", (3,)), settings)
    with pytest.raises(UserError, match="not finite"):
        next(fit(Objective("ddpm", Process.linear()), state, data, settings))


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    for i in range(30):
        pixels = np.random.default_rng(i).integers(0, 255, (14, 12, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    return folder


IMAGES = ["--net", "mlp:width=32", "--image_size", "8", "--crop", "random", "--flip", "true", "--threads", "1"]


def weights(out):
    return load_file(checkpoint.latest(out) / "state.safetensors")


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_kill_9_of_an_image_run_with_workers(tmp_path, photos, warm):
    """Fresh dirt is made on the fly; the uninterrupted run makes its batches without workers."""
    command = ["train", "--data", str(photos), "--corrupt", FULL, "--corrupt_fresh", "true", *IMAGES]
    command += ["--steps", "300", "--batch_size", "8", "--save_every", "5", "--out"]
    [victim] = warm.begin([*command, tmp_path / "killed", "--workers", "2"])
    deadline = time.time() + 60
    while time.time() < deadline and checkpoint.latest(tmp_path / "killed") is None:
        time.sleep(0.01)
    os.kill(victim, signal.SIGKILL)
    warm.end()
    assert not (tmp_path / "killed" / "model").exists(), "it was killed too late to show anything"
    warm.succeeds([*command, tmp_path / "killed", "--workers", "2"])
    warm.succeeds([*command, tmp_path / "whole", "--workers", "0"])
    assert same(weights(tmp_path / "killed"), weights(tmp_path / "whole"))


def test_ctrl_c_stops_a_run_with_workers_after_its_step(tmp_path, photos):
    command = ["train", "--data", str(photos), *IMAGES, "--steps", "100000", "--batch_size", "8", "--save_every", "5"]
    victim = subprocess.Popen(
        [sys.executable, "-m", "atdm", *command, "--workers", "2", "--out", str(tmp_path / "run")],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    deadline = time.time() + 60
    while time.time() < deadline and checkpoint.latest(tmp_path / "run") is None:
        time.sleep(0.01)
    os.killpg(victim.pid, signal.SIGINT)  # as a terminal does: to every process
    out, err = victim.communicate(timeout=60)
    assert victim.returncode == 130
    assert "Stopped after step" in out
    assert "Traceback" not in err
    assert json.loads((checkpoint.latest(tmp_path / "run") / "state.json").read_text())["step"] > 0


def test_two_processes_train_like_one_on_images(tmp_path, photos, warm):
    options = ["--data", str(photos), "--corrupt", FULL, "--corrupt_fresh", "true", *IMAGES]
    options += ["--steps", "6", "--batch_size", "16", "--accumulate", "2", "--workers", "1"]
    for world in (1, 2):
        warm.succeeds(["train", *options, "--out", tmp_path / str(world)], ranks=world)
    one, two = weights(tmp_path / "1"), weights(tmp_path / "2")
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=1e-4, atol=1e-5, msg=name)


def test_a_run_sees_what_its_truth_tells(tmp_path, photos, monkeypatch):
    config = TrainConfig(
        data=str(photos), image_size=8, corrupt=FULL, net="mlp:width=32", steps=1, batch_size=4, out=str(tmp_path)
    )
    monkeypatch.setattr(source, "RESIDENT", 0)
    parts = build(config)
    rows = torch.arange(30)
    dirty, truth = corrupt(parts.dataset.x, FULL, config.seed)
    assert torch.equal(parts.source.batch(rows, rows), dirty)
    assert np.array_equal(parts.truth.touched, truth.touched)
    assert np.array_equal(parts.truth.details["patch"]["top"], truth.details["patch"]["top"], equal_nan=True)
