"""Data as people have them: folders with links and other files, tar and parquet files of any layout; nothing is left out unsaid."""

import io
import os
import tarfile

import numpy as np
import pytest
from PIL import Image

from atdm.data import folders, load
from atdm.errors import UserError


def photo(seed=0, side=8):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (side, side, 3), dtype=np.uint8))


def encoded(seed=0):
    file = io.BytesIO()
    photo(seed).save(file, "PNG")
    return file.getvalue()


def fill(folder, count, first=0):
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(first, first + count):
        photo(i).save(folder / f"{i}.png")
    return folder


def notes(spec, **options):
    return " ".join(load(str(spec), **options).notes)


# --- folders ---------------------------------------------------------------------------------------------------------
def test_linked_folders_and_files_are_followed_once(tmp_path):
    fill(tmp_path / "set" / "a", 2)
    other = fill(tmp_path / "elsewhere", 10, 2)
    (tmp_path / "set" / "b").symlink_to(other)
    (tmp_path / "set" / "a" / "linked.png").symlink_to(tmp_path / "set" / "a" / "0.png")
    data = load(str(tmp_path / "set"))
    assert len(data.items) == 13
    assert not data.notes
    (other / "up").symlink_to(tmp_path / "set")
    (tmp_path / "set" / "again").symlink_to(other)
    (tmp_path / "set" / "self").symlink_to(".")
    data = load(str(tmp_path / "set"))
    assert len(data.items) == 13
    assert "3 left out (links to folders that were read already): b, self, again/up" in " ".join(data.notes)


def test_a_ladder_of_links_ends(tmp_path):
    fill(tmp_path / "0", 2)
    for i in range(1, 25):
        (tmp_path / str(i)).mkdir()
        for name in ("x", "y"):
            (tmp_path / str(i) / name).symlink_to(tmp_path / str(i - 1))
    assert len(load(str(tmp_path / "24")).items) == 2


def test_every_ending_that_pillow_reads_is_an_image(tmp_path):
    for suffix in (
        "tga",
        "jp2",
        "jfif",
        "jpe",
        "dib",
        "pcx",
        "ppm",
        "sgi",
        "ico",
        "webp",
        "avif",
        "qoi",
        "TIFF",
        "apng",
    ):
        photo().save(tmp_path / f"a.{suffix}")
    assert len(load(str(tmp_path), image_size=8).items) == 14


def test_what_is_no_image_is_counted_by_its_ending(tmp_path):
    fill(tmp_path, 3)
    for name in ("0.txt", "1.txt", "x.heic", "metadata.json", "README"):
        (tmp_path / name).write_text("text")
    (tmp_path / ".DS_Store").write_text("nothing")
    said = notes(tmp_path)
    assert "5 left out (no images): 2 .txt, " in said
    assert "1 .heic" in said
    (tmp_path / ".thumbs").mkdir()
    photo().save(tmp_path / ".thumbs" / "0.png")
    photo().save(tmp_path / "._0.png")
    said = notes(tmp_path)
    assert "1 left out (hidden folders): .thumbs" in said
    assert "1 left out (hidden files): ._0.png" in said


def test_a_link_to_nothing_is_broken_and_a_pipe_is_left_out(tmp_path):
    fill(tmp_path, 2)
    os.mkfifo(tmp_path / "pipe.png")
    assert "1 left out (special files): pipe.png" in notes(tmp_path)
    (tmp_path / "gone.png").symlink_to("nowhere.png")
    with pytest.raises(UserError, match=r"gone\.png: No such file"):
        load(str(tmp_path))
    assert load(str(tmp_path), skip_broken=True).broken == ("gone.png",)


def test_a_folder_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    fill(tmp_path / "a", 2)
    closed = fill(tmp_path / "b", 2)
    plain = os.scandir

    def scandir(path="."):
        if str(path) == str(closed):
            raise PermissionError(13, "Permission denied", str(path))
        return plain(path)

    monkeypatch.setattr(os, "scandir", scandir)
    assert "1 left out (folders that cannot be read): b" in notes(tmp_path)


def test_too_many_open_files_are_a_sentence(tmp_path, monkeypatch):
    fill(tmp_path / "a", 2)

    def scandir(path="."):
        raise OSError(24, "Too many open files", str(path))

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(UserError, match="ulimit -n"):
        load(str(tmp_path / "a"))


@pytest.mark.parametrize("where", ["/", "/..", "//"])
def test_the_whole_disk_is_no_data_set(where):
    with pytest.raises(UserError, match="everything on this disk"):
        load(where)


def test_a_search_gives_up_among_other_files(tmp_path, monkeypatch):
    monkeypatch.setattr(folders, "PATIENCE", 50)
    fill(tmp_path / "photos", 3)
    for i in range(85):
        (tmp_path / f"{i}.py").write_text("")
    with pytest.raises(UserError, match="Expected a folder of images, not of everything"):
        load(str(tmp_path))
    assert len(load(str(tmp_path / "photos")).items) == 3


@pytest.mark.parametrize(("files", "command"), [(marks, command) for marks, command in folders.WRITERS.items()])
def test_what_atdm_wrote_is_no_data(tmp_path, files, command):
    fill(tmp_path, 3)
    own = fill(tmp_path / "own", 2, 10)
    fill(own / "samples", 2, 20)
    for name in files:
        (own / name).write_text("{}")
    data = load(str(tmp_path))
    assert len(data.items) == 3
    assert "1 left out (folders that atdm wrote): own" in " ".join(data.notes)
    if command in ("audit", "corrupt", "train"):
        with pytest.raises(UserError, match=f"is what atdm {command} wrote"):
            load(str(own))
    assert len(load(str(own / "samples")).items) == 2


# --- paths -----------------------------------------------------------------------------------------------------------
def write_tar(path, files, mode="w"):
    with tarfile.open(path, mode) as tar:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            if isinstance(content, tuple):
                entry.type, entry.linkname = content
                tar.addfile(entry)
            else:
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
    return path


def write_parquet(path, columns):
    import pyarrow as pa
    from pyarrow import parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pa.table(columns), path)
    return path


@pytest.mark.parametrize("name", ["set [1]", "a*b", "what?", "{1..2}", "[abc]", "a b, c=d", "ünï", "x:y"])
def test_odd_characters_in_paths_are_characters(tmp_path, name):
    folder = fill(tmp_path / name / "photos", 2)
    write_tar(tmp_path / name / "a[0].tar", {"0.png": encoded(0), "1.png": encoded(1)})
    write_parquet(tmp_path / name / "p[0].parquet", {"img": [encoded(0), encoded(1)]})
    for spec in (folder, tmp_path / name / "a[0].tar", tmp_path / name / "p[0].parquet"):
        assert len(load(str(spec)).items) == 2, spec


# --- tar files -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "names",
    [
        ["Screenshot 2024-01-01 at 10.30.15.png", "Screenshot 2024-01-01 at 10.30.16.png", "a.png"],
        ["Mr. Smith.png", "Mr. Jones.png"],
        ["v1.0 final.png", "v1.1 final.png", "v1.2.png"],
        ["my.photo.one.png", "my.photo.two.png"],
        ["2024.01.01.jpg.png", "2024.01.02.jpg.png"],
        ["dir.with.dots/a.png", "dir.with.dots/b.png"],
        ["./a.png", "./b.PNG"],
    ],
)
def test_dots_in_the_names_of_members_are_dots(tmp_path, names):
    tar = write_tar(tmp_path / "a.tar", {name: encoded(i) for i, name in enumerate(names)})
    assert len(load(str(tar)).items) == len(names)


def test_several_images_of_a_sample_are_asked_about(tmp_path):
    files = {f"{i:03}.{kind}": encoded(i) for i in range(3) for kind in ("0.png", "1.png")}
    tar = write_tar(tmp_path / "a.tar", files)
    with pytest.raises(UserError, match=r"one of 0\.png, 1\.png, or column=\*"):
        load(str(tar))
    assert len(load(f"webdataset:path={tar},column=1.png").items) == 3
    assert len(load(f"webdataset:path={tar},column=*").items) == 6
    dotted = {f"v1.{i} a.{kind}.png": encoded(i) for i in range(3) for kind in ("image", "mask")}
    tar = write_tar(tmp_path / "b.tar", dotted)
    with pytest.raises(UserError, match=r"one of image\.png, mask\.png"):
        load(str(tar))
    assert len(load(f"webdataset:path={tar},column=mask.png").items) == 3


def test_links_in_tars_are_taken_or_named(tmp_path):
    files = {
        "a/0.png": encoded(0),
        "a/1.png": encoded(1),
        "hard.png": (tarfile.LNKTYPE, "a/0.png"),
        "a/soft.png": (tarfile.SYMTYPE, "1.png"),
        "chain.png": (tarfile.SYMTYPE, "a/soft.png"),
        "gone.png": (tarfile.SYMTYPE, "nowhere.png"),
        "loop.png": (tarfile.SYMTYPE, "loop.png"),
        "round.png": (tarfile.SYMTYPE, "about.png"),
        "about.png": (tarfile.SYMTYPE, "round.png"),
        "pipe.png": (tarfile.FIFOTYPE, ""),
        "x.heic": b"text",
        **{f"{i}-link.png": (tarfile.SYMTYPE, f"{i + 1}-link.png") for i in range(20)},
        "20-link.png": (tarfile.SYMTYPE, "a/0.png"),
    }
    data = load(str(write_tar(tmp_path / "a.tar", files)))
    assert len(data.items) == 5 + 21
    assert "5 left out (links that lead to nothing, special and sparse files): a.tar/gone.png" in " ".join(data.notes)
    assert "1 left out (no images): 1 .heic" in " ".join(data.notes)


def test_of_members_of_one_name_the_last_counts(tmp_path):
    """As for all who unpack it: ``tar --append`` adds the new version of a file and leaves the old one in."""
    tar = write_tar(tmp_path / "a.tar", {f"{i}.png": encoded(i) for i in range(3)})
    write_tar(tar, {"1.png": encoded(7)}, "a")
    data = load(str(tar))
    shown = np.stack([np.asarray(photo(i)) for i in (0, 7, 2)]).transpose(0, 3, 1, 2)
    assert np.array_equal(((data.x.numpy() + 1) * 127.5).round(), shown)
    assert "1 left out (followed by another of the same name): a.tar/1.png" in " ".join(data.notes)


def test_a_sparse_member_is_named(tmp_path):
    tar = write_tar(tmp_path / "a.tar", {f"{i}.png": encoded(i) for i in range(2)})
    with tarfile.open(tar, "a", format=tarfile.PAX_FORMAT) as archive:
        entry = tarfile.TarInfo("holes.png")
        entry.pax_headers = {"GNU.sparse.map": "0,4", "GNU.sparse.size": "100", "GNU.sparse.name": "holes.png"}
        entry.size = 4
        archive.addfile(entry, io.BytesIO(b"\x89PNG"))
    assert "special and sparse files): a.tar/holes.png" in notes(tar)


@pytest.mark.parametrize("skip", [False, True])
def test_of_too_few_images_what_was_left_out_is_said(tmp_path, skip):
    fill(tmp_path / "set", 1)
    os.mkfifo(tmp_path / "set" / "pipe.png")
    if skip:
        (tmp_path / "set" / "broken.png").write_bytes(b"text")
    with pytest.raises(UserError, match=r"holds 1 image\. .*pipe\.png\. Expected at least 2") as caught:
        load(str(tmp_path / "set"), skip_broken=skip)
    assert ("broken.png" in str(caught.value)) == skip


def test_a_name_of_several_lines_stays_in_the_sentence(tmp_path):
    fill(tmp_path / "set", 2)
    (tmp_path / "set" / "a\natdm: \x1b[31mb.png").write_bytes(b"text")
    with pytest.raises(UserError, match=r"image a\\natdm: \\x1b\[31mb\.png: "):
        load(str(tmp_path / "set"))


def test_a_tar_that_goes_on_behind_its_end_is_refused(tmp_path):
    one, two = (
        write_tar(tmp_path / f"{i}.tar", {f"{i}.png": encoded(i), f"{i + 2}.png": encoded(i)}) for i in range(2)
    )
    (tmp_path / "both.tar").write_bytes(one.read_bytes() + two.read_bytes())
    with pytest.raises(UserError, match="behind its end there is more"):
        load(str(tmp_path / "both.tar"))
    whole = bytearray(one.read_bytes())
    second = whole.index(b"2.png")
    whole[second : second + 300] = bytes(300)
    (tmp_path / "hole.tar").write_bytes(whole)
    with pytest.raises(UserError, match="Cannot read the tar file"):
        load(str(tmp_path / "hole.tar"))


def test_a_folder_of_tars_is_a_webdataset(tmp_path):
    for split, first in (("train-0", 0), ("train-1", 4), ("test-0", 8), ("val-0", 12)):
        (tmp_path / "sub").mkdir(exist_ok=True)
        write_tar(tmp_path / "sub" / f"{split}.tar", {f"{i}.png": encoded(i) for i in range(first, first + 4)})
    data = load(str(tmp_path))
    assert (len(data.items), len(data.held_out)) == (8, 4)
    assert "1 left out (files named val*): " in " ".join(data.notes)


# --- parquet ---------------------------------------------------------------------------------------------------------
def test_parquet_columns_of_plain_bytes(tmp_path):
    import pyarrow as pa

    cells = [encoded(i) for i in range(3)]
    write_parquet(tmp_path / "a.parquet", {"jpg": cells, "label": [1, 2, 3]})
    assert len(load(str(tmp_path / "a.parquet")).items) == 3
    write_parquet(tmp_path / "b.parquet", {"x": pa.array(cells, pa.large_binary()), "y": cells})
    with pytest.raises(UserError, match="2 image columns"):
        load(str(tmp_path / "b.parquet"))
    assert len(load(f"parquet:path={tmp_path}/b.parquet,column=y").items) == 3
    write_parquet(tmp_path / "c.parquet", {"file_name": ["a", "b"], "n": [1, 2]})
    with pytest.raises(UserError, match=r"no column of images\..*among file_name, n"):
        load(str(tmp_path / "c.parquet"))


def test_images_beside_other_tables_are_images(tmp_path):
    fill(tmp_path, 3)
    write_parquet(tmp_path / "metadata.parquet", {"file_name": ["0.png"], "text": ["a photo"]})
    (tmp_path / "captions.txt").write_text("a photo")
    data = load(str(tmp_path))
    assert len(data.items) == 3
    assert "1 .parquet" in " ".join(data.notes)
    write_tar(tmp_path / "archive.tar", {"0.png": encoded(0)})
    assert len(load(str(tmp_path)).items) == 3
    write_parquet(tmp_path / "a.parquet", {"img": [encoded(0)] * 2})
    with pytest.raises(UserError, match=r"folder:.* or parquet:"):
        load(str(tmp_path))
    assert len(load(f"folder:{tmp_path}").items) == 3


def test_a_parquet_folder_says_what_it_leaves_out(tmp_path):
    for split in ("train", "validation", "test"):
        write_parquet(tmp_path / "data" / f"{split}-00000.parquet", {"img": [encoded(i) for i in range(3)]})
    (tmp_path / "README.md").write_text("a card")
    write_tar(tmp_path / "data" / "a.tar", {"0.png": encoded(0)})
    write_parquet(tmp_path / "data" / ".hidden.parquet", {"img": [encoded(0)]})
    data = load(str(tmp_path))
    assert (len(data.items), len(data.held_out)) == (3, 3)
    assert "1 left out (files named val*): " in " ".join(data.notes)
    assert "2 left out (no images): 1 .md, 1 .tar" in " ".join(data.notes)
    assert "1 left out (hidden files): data/.hidden.parquet" in " ".join(data.notes)


def columns():
    """Ways to keep images in a column, and what is said of those that are none; None: all four are read."""
    import pyarrow as pa

    cells = [encoded(i) for i in range(4)]
    whole = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    both = [{"bytes": cell, "path": None} for cell in cells]
    none = "no column of images"
    return {
        "nullable": (pa.array([*cells[:3], None]), r"\[3\]: the cell is empty"),
        "empty bytes": ([*cells[:3], b""], r"\[3\]: it is empty"),
        "dictionary": (pa.array(cells).dictionary_encode(), None),
        "view": (pa.array(cells, pa.binary_view()), None),
        "struct": (pa.array(both, whole), None),
        "struct of bytes alone": (pa.array([{"bytes": cell} for cell in cells]), None),
        "struct with more": (pa.array([{**each, "width": 8} for each in both]), None),
        "struct with nothing in it": (pa.array([*both[:3], {"bytes": None, "path": None}], whole), "the cell is empty"),
        "struct of text": (pa.array([{"bytes": "text"}] * 4), none),
        "struct of structs": (pa.array([{"bytes": {"x": 1}}] * 4), none),
        "struct of paths": (pa.array([{"path": "0.png"}] * 4), none),
        "struct in a struct": (pa.array([{"image": each} for each in both]), none),
        "lists": ([[cell] for cell in cells], none),
        "lists of numbers": ([[1, 2]] * 4, none),
        "text": (["iVBORw0KGgo="] * 4, none),
        "no rows": (pa.array([], pa.binary()), "Cannot read parquet from"),
    }


@pytest.mark.parametrize("kind", columns())
def test_columns_of_every_kind_are_read_or_refused_in_a_sentence(tmp_path, capfd, kind):
    cells, problem = columns()[kind]
    file = write_parquet(tmp_path / "a.parquet", {"img": cells})
    if problem is None:
        assert len(load(str(file)).items) == 4
    else:
        with pytest.raises(UserError, match=problem) as caught:
            load(str(file))
        assert "occurred while generating" not in str(caught.value)
    assert capfd.readouterr() == ("", ""), "the libraries say nothing by themselves"


def damaged_shards(folder, damage):
    """Three tar files of three images, the second of them damaged behind its first image."""
    folder.mkdir()
    for shard in range(3):
        write_tar(folder / f"{shard}.tar", {f"{shard}{i}.png": encoded(i) for i in range(3)})
    middle = folder / "1.tar"
    whole = middle.read_bytes()
    middle.write_bytes(damage(whole))
    return folder


DAMAGED_TARS = {
    "empty": (lambda whole: b"", 0),
    "text": (lambda whole: b"text" * 1000, 0),
    "cut within a header": (lambda whole: whole[:1100], 1),
    "cut within an image": (lambda whole: whole[:1600], 1),
    "a header of zeros and a half": (lambda whole: whole[:1024] + bytes(200) + b"x" * 312 + whole[1536:], 1),
    "cut between": (lambda whole: whole[:1024], 1),
}


@pytest.mark.parametrize("kind", DAMAGED_TARS)
def test_of_a_damaged_tar_the_rest_is_taken(tmp_path, kind):
    damage, kept = DAMAGED_TARS[kind]
    folder = damaged_shards(tmp_path / "shards", damage)
    if kind != "cut between":  # which is a whole tar file for all who read it
        with pytest.raises(
            UserError, match=r"Cannot read the tar file .*1\.tar: .*--skip_broken true takes what is before"
        ):
            load(str(folder))
    data = load(str(folder), skip_broken=True)
    assert len(data.items) == 6 + kept
    if kind != "cut between":
        assert any("1.tar" in name for name in data.broken), data.broken
        assert any("1.tar" in note for note in data.notes), data.notes


@pytest.mark.parametrize(
    ("mode", "ending", "command"),
    [("w:gz", ".tar.gz", "gunzip"), ("w:bz2", ".tbz2", "bunzip2"), ("w:xz", ".tar.xz", "unxz")],
)
def test_compressed_tars_are_refused_with_the_command_that_unpacks_them(tmp_path, mode, ending, command):
    file = tmp_path / f"my shard{ending}"
    write_tar(file, {f"{i}.png": encoded(i) for i in range(2)}, mode)
    for spec in (str(file), str(tmp_path), f"webdataset:{file}"):
        for skip in (False, True):
            with pytest.raises(UserError, match=rf"is compressed\. .*: {command} '.*my shard"):
                load(spec, skip_broken=skip)


@pytest.mark.parametrize(
    "damage", [lambda whole: b"", lambda whole: whole[:100], lambda whole: whole[:-50], lambda whole: b"text" * 99]
)
def test_a_damaged_parquet_file_is_named_or_left_out(tmp_path, damage):
    for part in range(3):
        write_parquet(tmp_path / f"{part}.parquet", {"image": [encoded(part), encoded(part + 5)]})
    (tmp_path / "1.parquet").write_bytes(damage((tmp_path / "1.parquet").read_bytes()))
    with pytest.raises(UserError, match="Expected whole parquet files"):
        load(str(tmp_path))
    data = load(str(tmp_path), skip_broken=True)
    assert len(data.items) == 4
    assert data.broken == (str(tmp_path / "1.parquet"),)
    assert any("1.parquet" in note for note in data.notes)


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ("my photos.zip", "is a zip file. Expected a folder of images: unzip 'my photos.zip' -d 'my photos'"),
        ("table.csv", "table.csv is a file. Expected a folder of images"),
        ("photos/*.png", "Images are read from a folder without a pattern. Expected photos"),
        ("s3://bucket/photos", "It is an address. Expected a folder or file of this machine"),
        ("https://example.com/photos.zip", "It is an address."),
        ("nothing/here", "Expected a folder of images, a parquet file, or a name."),
        ("empty.npz", "empty.npz holds no item. Expected at least 2."),
    ],
)
def test_what_people_name_instead_of_a_folder(tmp_path, monkeypatch, spec, sentence):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "photos" / "a.png")
    for name in ("my photos.zip", "table.csv"):
        (tmp_path / name).write_bytes(b"PK")
    np.savez(tmp_path / "empty.npz", samples=np.zeros((0, 4)))
    with pytest.raises(UserError) as refused:
        load(spec)
    assert sentence in str(refused.value)
