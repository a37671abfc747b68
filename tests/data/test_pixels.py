"""What the numbers in an image file mean: transparency, 16 and 32 bits, floats, orientation, and damaged metadata."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from atdm.data import load
from atdm.data.pixels import MAX_PIXELS, decode, settings
from atdm.errors import UserError
from atdm.training.config import TrainConfig

WHITE = 255


def chunk(name, body):
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png(bits, color, row, *extra, width=2):
    """A PNG of one row; color: 0 gray, 2 RGB, 3 palette, 4 gray with alpha, 6 RGBA."""
    head = struct.pack(">IIBBBBB", width, 1, bits, color, 0, 0, 0)
    chunks = [(b"IHDR", head), *extra, (b"IDAT", zlib.compress(b"\0" + bytes(row))), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in chunks)


def trns(*numbers):
    return b"tRNS", struct.pack(f">{len(numbers)}H", *numbers)


PALETTE = (b"PLTE", bytes([0, 0, 0, 10, 20, 30]))


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (png(1, 0, [0b01000000], trns(0)), [WHITE, WHITE]),
        (png(1, 0, [0b01000000], trns(1)), [0, WHITE]),
        (png(2, 0, [0b00010000], trns(0)), [WHITE, 85]),
        (png(2, 0, [0b00010000], trns(1)), [0, WHITE]),
        (png(4, 0, [0x03], trns(3)), [0, WHITE]),
        (png(8, 0, [0, 5], trns(0)), [WHITE, 5]),
        (png(8, 0, [0, 5], trns(5)), [0, WHITE]),
        (png(16, 0, [0, 0, 0x80, 0x80], trns(0)), [WHITE, 128]),
        (png(16, 0, [0, 0, 0x80, 0x80], trns(0x8080)), [0, WHITE]),
        (png(8, 2, [0, 0, 0, 1, 2, 3], trns(0, 0, 0)), [WHITE] * 3 + [1, 2, 3]),
        (png(8, 2, [0, 0, 0, 1, 2, 3], trns(1, 2, 3)), [0, 0, 0] + [WHITE] * 3),
        (png(8, 2, [1, 2, 4, 1, 2, 3], trns(1, 2, 3)), [1, 2, 4] + [WHITE] * 3),
        (png(16, 2, [9, 0] * 3 + [0x12, 0x34] * 3, trns(*[0x1234] * 3)), [9] * 3 + [WHITE] * 3),
        (png(8, 3, [0, 1], PALETTE, (b"tRNS", b"\0")), [WHITE] * 3 + [10, 20, 30]),
        (png(8, 3, [0, 1], PALETTE, (b"tRNS", b"\xff\0")), [0, 0, 0] + [WHITE] * 3),
        (png(8, 3, [0, 1], PALETTE, (b"tRNS", b"\x80\xff")), [127] * 3 + [10, 20, 30]),
        (png(8, 4, [0, 0, 5, 255]), [WHITE, 5]),
        (png(8, 4, [0, 128, 5, 255]), [127, 5]),
        (png(8, 6, [0, 0, 0, 0, 1, 2, 3, 255]), [WHITE] * 3 + [1, 2, 3]),
    ],
)
def test_what_is_transparent_is_white(content, expected):
    image, notes = decode(content)
    assert np.asarray(image).ravel().tolist() == expected
    assert "laid on white where transparent" in notes


@pytest.mark.parametrize("mode", ["LA", "PA", "RGBA", "RGBa", "La"])
@pytest.mark.parametrize("suffix", ["png", "tif", "webp", "tga", "gif"])
def test_alpha_of_any_format_lies_on_white(mode, suffix):
    clear = Image.new("RGBA", (8, 8), (200, 10, 10, 255))
    clear.paste((0, 0, 0, 0), (0, 0, 8, 4))
    file = io.BytesIO()
    try:
        clear.convert("LA" if mode == "La" else mode).convert(mode).save(
            file, {"tif": "TIFF"}.get(suffix, suffix.upper())
        )
    except (OSError, ValueError):
        pytest.skip("Pillow does not write it")
    if not Image.open(io.BytesIO(file.getvalue())).has_transparency_data:
        pytest.skip("Pillow writes it without the transparency")
    image, _ = decode(file.getvalue())
    pixels = np.asarray(image.convert("RGB")).astype(int)
    assert (pixels[:3] > 245).all()
    assert pixels[5:, :, 1].max() < 110


def test_a_wholly_transparent_image_is_told():
    assert decode(Image.new("RGBA", (2, 2)))[1] == ["wholly transparent, and so white"]


# --- scale -----------------------------------------------------------------------------------------------------------
def save(folder, arrays, suffix="tif"):
    for i, array in enumerate(arrays):
        Image.fromarray(array).save(folder / f"{i}.{suffix}")
    return str(folder)


def levels(data):
    return [round((float(x.mean()) + 1) * 127.5) for x in data.x]


def constants(values, kind):
    return [np.full((4, 4), value, kind) for value in values]


@pytest.mark.parametrize(
    ("values", "kind", "expected", "white"),
    [
        ((50, 100, 150, 200), np.float32, [50, 100, 150, 200], "255 is white"),
        ((0.25, 0.5, 1), np.float32, [64, 128, 255], "(1 is white"),
        ((0, 0.1, 0.25), np.float32, [0, 26, 64], "(1 is white"),
        ((0, 32896, 65535), np.float32, [0, 128, 255], "65535 is white"),
        ((50, 100, 200), np.int32, [50, 100, 200], "255 is white"),
        ((0, 32896, 40000), np.int32, [0, 128, 156], "65535 is white"),
        ((0, 32896, 65535), np.uint16, [0, 128, 255], "16 bits to 8"),
    ],
)
def test_one_scale_for_the_whole_set(tmp_path, values, kind, expected, white):
    data = load(save(tmp_path, constants(values, kind)))
    assert levels(data) == expected
    assert any(white in note for note in data.notes)


def test_the_scale_is_that_of_what_is_held_out_too(tmp_path):
    where = save(tmp_path, constants([0.5] * 5 + [200], np.float32))
    for seed in range(4):
        data = load(where, limit=3, seed=seed)
        assert {*levels(data), *(round((float(x.mean()) + 1) * 127.5) for x in data.test)} == {0, 200}


@pytest.mark.parametrize("values", [(0.5, 3.0), (2.0, 10.0)])
def test_a_scale_that_cannot_be_told_is_refused(tmp_path, values):
    with pytest.raises(UserError, match=r"does not tell which number is white.*In Python: Image.fromarray"):
        load(save(tmp_path, constants(values, np.float32)))


@pytest.mark.parametrize("odd", [-1.0, 70_000.0, float("nan"), float("inf")])
def test_a_float_that_no_scale_has_is_a_broken_image(tmp_path, odd):
    where = save(tmp_path, constants([50, odd, 200], np.float32))
    with pytest.raises(UserError, match=r"1\.tif: pixels from"):
        load(where)
    data = load(where, skip_broken=True)
    assert levels(data) == [50, 200]
    assert data.broken == ("1.tif",)


def test_where_white_is_zero_16_bits_are_inverted_as_8_are():
    file = io.BytesIO()
    Image.fromarray(np.array([[0, 65535]], np.uint16)).save(file, "TIFF", tiffinfo={262: 0})
    assert np.asarray(decode(file.getvalue())[0]).tolist() == [[255, 0]]


@pytest.mark.parametrize(
    ("arrays", "suffix"),
    [
        ([np.random.default_rng(i).integers(0, 4096, (8, 8)).astype(np.uint16) for i in range(3)], "png"),
        ([np.random.default_rng(i).integers(0, 2, (8, 8)).astype(np.uint8) for i in range(3)], "png"),
        ([np.random.default_rng(i).integers(90, 120, (8, 8, 3)).astype(np.uint8) for i in range(3)], "png"),
        ([np.random.default_rng(i).random((8, 8)).astype(np.float32) / 10 for i in range(3)], "tif"),
    ],
    ids=["12 bits in 16", "a mask of 0 and 1", "little contrast", "dark floats"],
)
def test_a_set_that_uses_little_of_its_range_is_warned_of(tmp_path, arrays, suffix):
    assert any("use only the numbers from" in note for note in load(save(tmp_path, arrays, suffix)).notes)


def test_a_hot_pixel_hides_nothing_and_a_line_drawing_is_no_dark_set(tmp_path):
    rng = np.random.default_rng(0)
    dark = [rng.integers(0, 300, (64, 64)).astype(np.uint16) for _ in range(4)]
    dark[0][0, 0] = 65535
    (tmp_path / "dark").mkdir()
    assert any("from 0 to 1 of" in note for note in load(save(tmp_path / "dark", dark, "png")).notes)
    lines = [np.full((64, 64), 255, np.uint8) for _ in range(4)]
    for image in lines:
        image[10] = 0
    (tmp_path / "lines").mkdir()
    assert not load(save(tmp_path / "lines", lines, "png")).notes


# --- metadata --------------------------------------------------------------------------------------------------------
ROW = [0, 0, 0, 1, 2, 3]


@pytest.mark.parametrize(
    "damaged",
    [
        (b"eXIf", b"garbage"),
        (b"eXIf", b""),
        (b"eXIf", b"II*\0\xff\xff\xff\xff"),
        (b"iCCP", b"x\0\7zz"),
        (b"zTXt", b"k\0\5zz"),
        (b"iTXt", b"k\0\1\7"),
        (b"pHYs", b"\1"),
        (b"cHRM", b"\1\2\3"),
        (b"gAMA", b"\1"),
        (b"sRGB", b""),
        (b"tIME", b""),
        (b"acTL", b"\1"),
        (b"fcTL", b"\1" * 30),
        (b"tEXt", b"\xff" * 40),
    ],
)
def test_a_png_with_damaged_metadata_is_a_whole_image(damaged):
    with settings(MAX_PIXELS):
        image, _ = decode(png(8, 2, ROW, damaged))
    assert np.asarray(image).ravel().tolist() == ROW


@pytest.mark.parametrize("body", [b"", b"\0", b"\0\1\2"])
def test_a_png_with_damaged_transparency_is_read_without_it(body):
    with settings(MAX_PIXELS):
        image, notes = decode(png(8, 2, ROW, (b"tRNS", body)))
    assert np.asarray(image).ravel().tolist() == ROW
    assert notes == ["read without its transparency, which is damaged"]


def test_a_wrong_checksum_of_metadata_is_no_damage_and_one_of_pixels_is():
    good = png(8, 2, ROW, (b"tEXt", b"a\0b"))
    at = good.index(b"tEXt") + 5
    assert np.asarray(decode(good[:at] + b"Z" + good[at + 1 :])[0]).ravel().tolist() == ROW
    at = good.index(b"IDAT") + 8
    with pytest.raises(Exception):  # noqa: B017, PT011
        decode(good[:at] + b"ZZZ" + good[at + 3 :])


def jpeg(*segments):
    file = io.BytesIO()
    Image.fromarray(np.full((8, 8, 3), 90, np.uint8)).save(file, "JPEG")
    content = file.getvalue()
    added = b"".join(b"\xff" + bytes([marker]) + struct.pack(">H", len(body) + 2) + body for marker, body in segments)
    return content[:2] + added + content[2:]


@pytest.mark.parametrize(
    "segment",
    [
        (0xE1, b"Exif\0\0garbage"),
        (0xE1, b"Exif\0\0MM\0*\xff\xff\xff\xff"),
        (0xE1, b"http://ns.adobe.com/xap/1.0/\0<x"),
        (0xE2, b"ICC_PROFILE\0\xff\xff"),
        (0xE2, b"MPF\0garbage"),
        (0xED, b"Photoshop 3.0\x008BIM\x04\x04\xff"),
        (0xEE, b"Ado"),
        (0xFE, b"\xff\xfe"),
    ],
)
def test_a_jpeg_with_damaged_metadata_is_a_whole_image(segment):
    with settings(MAX_PIXELS):
        image, _ = decode(jpeg(segment))
    assert np.asarray(image).shape == (8, 8, 3)
    assert abs(np.asarray(image).astype(int) - 90).max() < 3


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_images_are_turned_as_their_metadata_say(orientation, kind):
    from PIL import ImageOps

    image = Image.fromarray(np.arange(18, dtype=np.uint8).reshape(2, 3, 3) * 10)
    exif, file = image.getexif(), io.BytesIO()
    exif[0x0112] = orientation
    image.save(file, kind, exif=exif, **({"lossless": True} if kind == "WEBP" else {}))
    turned = ImageOps.exif_transpose(Image.open(io.BytesIO(file.getvalue())))
    assert np.array_equal(np.asarray(decode(file.getvalue())[0]), np.asarray(turned))


def test_damage_to_later_frames_is_none_of_the_first():
    file = io.BytesIO()
    frames = [Image.fromarray(np.random.default_rng(i).integers(0, 255, (16, 16, 3), dtype=np.uint8)) for i in range(3)]
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:])
    whole = file.getvalue()
    first = np.asarray(decode(whole)[0])
    for cut in (len(whole) // 2, len(whole) - 20):
        assert np.array_equal(np.asarray(decode(whole[:cut])[0]), first)


# --- size ------------------------------------------------------------------------------------------------------------
def test_the_limit_of_pixels_is_named_with_the_option_that_raises_it(tmp_path):
    for i in range(3):
        Image.fromarray(np.random.default_rng(i).integers(0, 255, (40, 40), dtype=np.uint8)).save(tmp_path / f"{i}.png")
    assert len(load(str(tmp_path), max_pixels=1600).x) == 3
    with pytest.raises(UserError, match=r"0\.png: it has 1,600 pixels, and max_pixels is 1,599.*A larger --max_pixels"):
        load(str(tmp_path), max_pixels=1599)
    with pytest.raises(UserError, match="Expected a positive number"):
        load(str(tmp_path), max_pixels=0)
    before = Image.MAX_IMAGE_PIXELS
    with settings(10):
        pass
    assert before == Image.MAX_IMAGE_PIXELS
    assert TrainConfig().max_pixels == MAX_PIXELS


def test_what_memory_does_not_hold_is_told_before_it_is_taken(tmp_path, monkeypatch):
    save(tmp_path, constants([0, 255], np.uint8), "png")
    with pytest.raises(UserError, match=r"2 images of 1000000x1000000 would take 6,000.0 GB of memory"):
        load(str(tmp_path), image_size=1_000_000)
    monkeypatch.setattr("atdm.memory.available", lambda: 1000)
    with pytest.raises(UserError, match=r"2 images of 16x16 would take"):
        load(str(tmp_path), image_size=16, cache=False)
    with pytest.raises(UserError, match="1,000,000,000,000 points would take"):
        load("plane:n=1000000000000")
