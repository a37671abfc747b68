"""Damaged images of every format that is read: whatever a decoder raises, the file is broken, by name, and nothing else happens."""

import io
import struct
import warnings

import numpy as np
import pytest
from PIL import Image

from atdm.data import load
from atdm.data.cache import read
from atdm.data.decode import Framing
from atdm.data.listing import Listing
from atdm.data.pixels import formats
from atdm.errors import UserError

FORMATS = (
    *("PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF", "DDS", "JPEG2000", "PPM", "PCX", "TGA", "ICO", "SGI", "QOI", "AVIF"),
    *(
        "DIB",
        "IM",
        "MSP",
        "XBM",
        "SPIDER",
        "BLP",
        "ICNS",
        "MPO",
        "PNG-16",
        "PNG-tRNS",
        "TIFF-float",
        "TIFF-lzw",
        "GIF-moving",
    ),
)
SIDE = 24


def photos():
    """Pieces of scikit-learn's photographs and digits."""
    from sklearn.datasets import load_digits, load_sample_images

    photo = load_sample_images().images[0]
    digits = (load_digits().images[:9].reshape(3, 3, 8, 8).transpose(0, 2, 1, 3).reshape(24, 24) * 15).astype(np.uint8)
    pieces = [photo[y : y + SIDE, x : x + SIDE] for y, x in ((100, 200), (200, 300), (300, 100))]
    return [*map(Image.fromarray, pieces), Image.fromarray(digits)]


def encoded(image, kind):
    name, _, variant = kind.partition("-")
    options = {}
    if variant == "16":
        image = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
    elif variant == "tRNS":
        options["transparency"] = tuple(np.asarray(image.convert("RGB"))[0, 0].tolist())
        image = image.convert("RGB")
    elif variant == "float":
        image = image.convert("F")
    elif variant == "lzw":
        options["compression"] = "tiff_lzw"
    elif variant == "moving":
        options = {"save_all": True, "append_images": [image.rotate(90)]}
    elif name in ("MSP", "XBM"):
        image = image.convert("1")
    elif name == "SPIDER":
        image = image.convert("F")
    elif name == "BLP":
        image = image.convert("P")
    elif name in ("JPEG", "MPO", "TIFF", "PNG"):
        exif = image.getexif()
        exif[0x0112] = 6
        options["exif"] = exif
    elif name in ("DDS", "ICO", "AVIF", "QOI"):
        image = image.convert("RGB")
    elif name == "ICNS":  # Pillow would write one of 1024x1024, too
        small = encoded(image.resize((16, 16)), "PNG")
        return b"icns" + struct.pack(">I", len(small) + 16) + b"icp4" + struct.pack(">I", len(small) + 8) + small
    file = io.BytesIO()
    image.save(file, name, **options)
    return file.getvalue()


def damaged(content, rng):
    """Bits flipped, bytes set, numbers made huge, pieces removed, doubled or cut off."""
    data = bytearray(content)
    for _ in range(rng.integers(1, 4)):
        at, kind = int(rng.integers(len(data))), rng.integers(7)
        if rng.random() < 0.6:
            at = int(rng.integers(min(len(data), 160)))  # the head says most
        if kind == 0:
            data[at] ^= 1 << int(rng.integers(8))
        elif kind == 1:
            data[at] = int(rng.integers(256))
        elif kind == 2:
            data[at : at + 4] = struct.pack("<I", int(rng.choice([0, 1, 0x7FFFFFFF, 0xFFFFFFFF, 0x10000, 93])))
        elif kind == 3:
            del data[at : at + int(rng.integers(1, 40))]
        elif kind == 4:
            data[at:at] = data[at : at + int(rng.integers(1, 40))]
        elif kind == 5:
            data[at : at + 16] = rng.integers(0, 256, 16, dtype=np.uint8).tobytes()
        elif len(data) > 2:
            del data[max(1, int(rng.integers(len(data)))) :]
        if not data:
            data = bytearray(b"\0")
    return bytes(data)


def test_every_format_is_in_the_table_or_cannot_be_made_here():
    made = {kind.partition("-")[0] for kind in FORMATS}
    Image.init()
    assert {*formats()} & {*Image.SAVE} <= made | {"CUR", "PDF"}, "a format that Pillow reads and writes is missing"


@pytest.mark.parametrize("kind", FORMATS)
def test_the_undamaged_are_read(kind):
    content = [encoded(image, kind) for image in photos()]
    found = read(Listing(4, str, content.__getitem__, kind), Framing(16), cache=False)
    assert len(found.pixels) == 4
    assert not found.broken


def damage(kind, count):
    rng = np.random.default_rng([7, FORMATS.index(kind)])
    whole = [encoded(image, kind) for image in photos()]
    return [whole[0], *(damaged(whole[i % 4], rng) for i in range(count))]


@pytest.mark.parametrize("kind", FORMATS)
def test_nothing_that_a_decoder_does_escapes(kind, capfd):
    """72 damaged files a format, 2,016 in all: read or named, without a warning and without a word on the terminal."""
    content = damage(kind, 72)
    listing = Listing(len(content), lambda i: f"file {i}", content.__getitem__, kind)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = read(listing, Framing(8), skip_broken=True, cache=False, max_pixels=1_000_000)
    assert len(found.pixels) + len(found.broken) == len(content)
    assert capfd.readouterr() == ("", "")
    if found.broken:
        first = int(found.broken[0].split()[1])
        with pytest.raises(UserError, match=rf"Cannot read the image file {first}: ") as caught:
            read(listing, Framing(8), cache=False, max_pixels=1_000_000)
        assert "0x" not in str(caught.value)
        assert "\n" not in str(caught.value)


def test_damaged_files_are_counted_and_skipped_by_name(tmp_path):
    photos()[0].save(tmp_path / "whole 1.png")
    photos()[1].save(tmp_path / "whole 2.png")
    for i, content in enumerate(damage("PNG", 30)):
        (tmp_path / f"{i:02}.png").write_bytes(content)
    data = load(str(tmp_path), skip_broken=True, image_size=8)
    assert len(data.items) + len(data.broken) == 33
    assert any(
        note.startswith(f"{len(data.broken)} unreadable images were skipped: {data.broken[0]}") for note in data.notes
    )


@pytest.mark.parametrize(
    "error",
    [
        NotImplementedError,
        SyntaxError,
        OverflowError,
        MemoryError,
        RecursionError,
        struct.error,
        AssertionError,
        KeyError,
        ZeroDivisionError,
        UserWarning,
        AttributeError,
        EOFError,
    ],
)
def test_whatever_is_raised_is_a_broken_image(tmp_path, monkeypatch, error):
    from PIL import BmpImagePlugin

    for i in range(3):
        photos()[i].save(tmp_path / f"{i}.png")
    photos()[0].save(tmp_path / "odd.bmp")

    def fail(*_):
        raise error

    monkeypatch.setattr(BmpImagePlugin.BmpImageFile, "_open", fail)
    with pytest.raises(UserError, match=r"odd\.bmp"):
        load(str(tmp_path))
    data = load(str(tmp_path), skip_broken=True)
    assert (len(data.items), data.broken) == (3, ("odd.bmp",))


def test_a_texture_that_pillow_knows_by_its_head_alone(tmp_path):
    """A DDS file of DXGI format 93 under the name of a PNG."""
    head = struct.pack("<4sIIIII", b"DDS ", 124, 0x1007, 4, 4, 16) + bytes(52) + struct.pack("<II4s", 32, 4, b"DX10")
    photos()[0].save(tmp_path / "b.png")
    photos()[1].save(tmp_path / "c.png")
    (tmp_path / "a.png").write_bytes(head.ljust(128, b"\0") + struct.pack("<IIIII", 93, 3, 0, 1, 0) + bytes(64))
    with pytest.raises(UserError, match=r"a\.png: Unimplemented DXGI format 93"):
        load(str(tmp_path))
    assert load(str(tmp_path), skip_broken=True).broken == ("a.png",)


def test_too_many_open_files_are_no_broken_images():
    def content(_):
        raise OSError(24, "Too many open files")

    with pytest.raises(UserError, match="ulimit -n"):
        read(Listing(3, str, content, "x"), Framing(8), skip_broken=True)
