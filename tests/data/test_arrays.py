"""Arrays in files: layouts, units, and what is no array."""

import contextlib
import io
import zipfile

import numpy as np
import pytest
import torch

from atdm.data import load
from atdm.errors import UserError

RNG = np.random.default_rng(0)
BYTES = RNG.integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)
FLOATS = BYTES.transpose(0, 3, 1, 2).astype(np.float32) / 127.5 - 1


@pytest.mark.parametrize(
    "stored",
    [
        {"samples": FLOATS},
        {"samples": FLOATS.astype(np.float64), "other": np.zeros(3)},
        {"anything": FLOATS},
        {"arr_0": BYTES},
        {"arr_0": BYTES, "arr_1": np.arange(6)},
        {"samples": BYTES.transpose(0, 3, 1, 2)},
        {"samples": FLOATS.transpose(0, 2, 3, 1)},
        {"samples": FLOATS.astype(">f4")},
    ],
    ids=[
        "ours",
        "float64",
        "the only one",
        "guided-diffusion",
        "with labels",
        "bytes first",
        "floats last",
        "big-endian",
    ],
)
def test_layouts(tmp_path, stored):
    np.savez(tmp_path / "a.npz", **stored)
    data = load(str(tmp_path / "a.npz"))
    assert data.kind == "image"
    torch.testing.assert_close(data.x, torch.from_numpy(FLOATS), rtol=0, atol=1e-6)
    assert not data.notes


def test_a_single_array_and_gray_bytes(tmp_path):
    np.save(tmp_path / "a.npy", BYTES[..., 0])
    assert load(str(tmp_path / "a.npy")).item_shape == (1, 8, 8)
    np.save(tmp_path / "v.npy", RNG.standard_normal((5, 3)))
    assert load(str(tmp_path / "v.npy")).kind == "vector"
    few = load(str(tmp_path / "a.npy"), limit=4, seed=1)
    assert len(few.items) == 4
    assert len(few.stored.indices) == 4


@pytest.mark.parametrize(
    ("x", "expected"),
    [
        (BYTES.astype(np.float32), "x / 127.5 - 1"),
        (BYTES.astype(np.float32) / 255 * 65535, "x / 32767.5 - 1"),
        (BYTES.astype(np.float32) / 16, "x / 8 - 1"),
        (BYTES.astype(np.float32) - 127.5, "x / 128"),
        (BYTES.astype(np.float32) + RNG.normal(0, 20, BYTES.shape), "- 1"),
        (BYTES.astype(np.int64), "x.astype('uint8')"),
        (BYTES.astype(np.uint16) * 257, "x / 32767.5 - 1"),
        (BYTES > 100, "255 * x.astype('uint8')"),
        (BYTES.astype(np.int16) - 128, "x / 128"),
    ],
    ids=["0..255", "0..65535", "0..16", "-127.5..127.5", "0..255 with noise", "int64", "uint16", "bool", "int16"],
)
def test_another_unit_is_refused_with_the_line_that_converts(tmp_path, x, expected):
    """The line does what it says: what it writes is taken."""
    path = tmp_path / "a.npz"
    np.savez(path, samples=x)
    with pytest.raises(UserError) as caught:
        load(str(path))
    sentence = str(caught.value)
    assert expected in sentence
    exec(sentence.partition("In Python: ")[2], {"np": np})
    data = load(str(tmp_path / "a-converted.npz"))
    assert data.item_shape == (3, 8, 8)
    assert data.x.abs().max() < 1.6
    assert data.x.min() < 0


@pytest.mark.parametrize("std", [0.2, 1.0, 3.0])
def test_noise_goes_beyond_one_and_stays(tmp_path, std):
    np.savez(tmp_path / "a.npz", samples=FLOATS + RNG.normal(0, std, FLOATS.shape).astype(np.float32))
    assert load(str(tmp_path / "a.npz")).x.abs().max() > 1


def test_nothing_below_zero_is_warned_of(tmp_path):
    np.savez(tmp_path / "a.npz", samples=(FLOATS + 1) / 2)
    (note,) = load(str(tmp_path / "a.npz")).notes
    assert "nothing is below 0" in note
    assert "2 * x - 1" in note


@pytest.mark.parametrize(("scale", "warned"), [(1.0, False), (5.0, False), (1000.0, True), (1e-4, True)])
def test_vectors_far_from_the_scale_of_the_noise_are_warned_of(tmp_path, scale, warned):
    np.savez(tmp_path / "a.npz", samples=scale * RNG.standard_normal((50, 3)))
    assert bool(load(str(tmp_path / "a.npz")).notes) == warned


@pytest.mark.parametrize(
    ("stored", "words"),
    [
        ({"a": FLOATS, "b": FLOATS}, "no array 'samples' but a, b"),
        ({"samples": np.array([{}], dtype=object)}, "Python objects, which are not read"),
        ({"samples": np.zeros((4, 8, 8, 4), np.uint8)}, r"x\[..., :3\]"),
        ({"samples": np.zeros((4, 5, 8, 8), np.float32)}, r"of shape \[4, 5, 8, 8\]"),
        ({"samples": np.zeros(5)}, r"of shape \[5\]"),
        ({"samples": np.float32(3)}, r"of shape \[\]"),
        ({"samples": np.zeros((4, 3), complex)}, "complex128"),
        ({"samples": np.array(["a", "b"])}, "<U1"),
        ({"samples": np.zeros((4, 3), [("a", "f4")])}, "Expected"),
        ({"samples": np.full((4, 3), np.inf)}, "not finite"),
        ({"samples": np.full((4, 3), 1e300)}, "not finite"),
        ({"samples": np.zeros((0, 3))}, "no item"),
        ({"samples": np.zeros((0, 3, 8, 8))}, "no item"),
    ],
)
def test_what_is_no_set_of_items_is_a_sentence(tmp_path, stored, words):
    np.savez(tmp_path / "a.npz", **stored)
    with pytest.raises(UserError, match=words):
        load(str(tmp_path / "a.npz"))


@pytest.mark.parametrize("kind", [np.int8, np.uint8, np.int64, bool])
def test_vectors_of_integers_are_refused_with_the_line_that_converts(tmp_path, kind):
    np.savez(tmp_path / "a.npz", samples=RNG.integers(0, 2, (6, 3)).astype(kind))
    with pytest.raises(UserError, match=r"In Python: ") as caught:
        load(str(tmp_path / "a.npz"))
    exec(str(caught.value).partition("In Python: ")[2], {"np": np})
    assert load(str(tmp_path / "a-converted.npz")).kind == "vector"


def test_damaged_files_of_arrays_never_escape(tmp_path):
    path = tmp_path / "a.npz"
    for stored in ({"samples": FLOATS}, {"samples": np.zeros((4, 3))}):
        np.savez_compressed(path, **stored)
        whole = np.frombuffer(path.read_bytes(), np.uint8)
        for seed in range(150):
            rng = np.random.default_rng(seed)
            bad = whole.copy()
            bad[rng.integers(len(whole), size=rng.integers(1, 20))] = rng.integers(256)
            path.write_bytes(bad[: rng.integers(1, len(whole) + 1) if seed % 2 else None].tobytes())
            with contextlib.suppress(UserError):
                load(str(path))


def test_a_header_that_claims_more_than_memory_is_refused_before_it_is_taken(tmp_path):
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(head, {"descr": "<f4", "fortran_order": False, "shape": (10**9, 3, 64, 64)})
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("samples.npy", head.getvalue() + bytes(64))
    with pytest.raises(UserError, match=r"would take 49,152.0 GB of memory"):
        load(str(tmp_path / "a.npz"))


@pytest.mark.parametrize("shape", [(4, 0), (4, 3, 0, 8), (4, 8, 0, 3)])
def test_empty_items_are_refused(tmp_path, shape):
    np.savez(tmp_path / "a.npz", samples=np.zeros(shape, np.float32))
    with pytest.raises(UserError, match="which are empty"):
        load(str(tmp_path / "a.npz"))


@pytest.mark.parametrize("name", ["a.npz", "a.npy", "a.tar", "a.parquet"])
def test_a_pipe_is_not_waited_for(tmp_path, name):
    import os

    os.mkfifo(tmp_path / name)
    with pytest.raises(UserError, match="a pipe or a device"):
        load(str(tmp_path / name))
