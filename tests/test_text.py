"""Somebody else's text where text has a meaning: it is shown, and does nothing."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from safetensors.numpy import save_file

from atdm import text
from helpers import atdm

HOSTILE = [
    "\x1b[31mred\x1b[0m",
    "a\rb",
    "bell\a",
    "\u202eright to left",
    "half \udcff",
    "\x9b31m",
    "tab\t",
    "\u2028line",
]


@pytest.mark.parametrize("given", HOSTILE)
def test_nothing_controls_a_terminal(given):
    for shown in (
        text.plain(given),
        text.one_line(f"{given}\nx"),
        text.markdown(given),
        text.code(given),
        text.figure(given),
    ):
        shown.encode()
        assert all(c.isprintable() for c in shown)
    assert text.plain("two\nlines") == "two\nlines"
    assert text.one_line("two\nlines") == "two\\nlines"
    assert text.plain("ünï 🙂 日本 [b] $x$") == "ünï 🙂 日本 [b] $x$"


@pytest.mark.parametrize(
    "given", ["<script>alert(1)</script>", "a\n# heading", "[x](http://y)", "a | b", "`code`", "![i](x)", "<!-- c"]
)
def test_nothing_starts_in_markdown(given):
    shown = text.markdown(given)
    assert "\n" not in shown
    assert "<" not in shown
    assert not any(f"{c}" in shown.replace(f"\\{c}", "") for c in "|[]`")
    assert "|" not in text.code(given).replace("\\|", "")
    assert "\n" not in text.code(given)
    assert "<s" not in text.cell(given)
    assert "|" not in text.cell(given)


@pytest.mark.parametrize(("given", "fence"), [("x", "`"), ("a`b", "``"), ("a``b", "```"), ("`", "``")])
def test_code_holds_backticks(given, fence):
    shown = text.code(given)
    assert shown.startswith(fence)
    assert shown.endswith(fence)
    assert shown.strip("`").strip() == given or given == "`"


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("small:file=/home/me/f.safetensors", "small:file=f.safetensors"),
        ("~/runs/x", "x"),
        ("../runs/x, seed 0", "x, seed 0"),
        ("8/255", "8/255"),
        ("k = 3, sigma_t/alpha_t", "k = 3, sigma_t/alpha_t"),
        ("onnx:file=/a/b c", "onnx:file=b c"),
        ("https://x.org/y", "https://x.org/y"),
    ],
)
def test_folders_of_this_machine_are_left_out(given, shown):
    assert text.without_folders(given) == shown


@pytest.mark.parametrize("name", ["cost_$10_and_$20.png", "$\\frac{$", "_hidden", "a\nb", "100%$", "\x1b[1m", "日本"])
def test_a_figure_draws_any_name(name):
    import torch

    from atdm import plot

    figure = plot.image_grids({name: torch.zeros(2, 1, 4, 4)})
    assert plot.data_uri(figure).startswith("data:")
    figure = plot.damage(
        {name: [{"measure": "damage", "budget": 0.0, "mean": 1.0, "low": 1.0, "high": 1.0}]}, ["damage"], name
    )
    assert plot.data_uri(figure).startswith("data:")


def test_a_plain_stream_writes_the_same_characters_and_no_others(capsys):
    import contextlib
    import sys

    with contextlib.redirect_stdout(text.Plain(sys.stdout)):
        sys.stdout.write("a\x1b[1m\nb\udcff")
        assert sys.stdout.isatty() is False
    assert capsys.readouterr().out == "a\\x1b[1m\nb\\udcff"


def test_tables_show_markup_as_text(capsys):
    from atdm.cli.common import print_table

    print_table("[/b] table", [{"[red]name": "[/b]\x1b[31m", "value": 1.0}])
    out = capsys.readouterr().out
    assert "[/b] table" in out
    assert "[red]name" in out
    assert "\\x1b[31m" in out
    assert "\x1b" not in out


def test_a_long_path_keeps_its_name():
    path = f"/photos/{'a' * 100}/holiday.yaml"
    assert text.short(path) == f"/photos/{'a' * 29}...{'a' * 27}/holiday.yaml"
    assert len(text.short(path)) == 80
    assert text.short(path, 300) == path


RAW = "\x1b[31mX\n# H <script>|"
TRAIN = ["train", "--net", "mlp:width=8", "--steps", "1", "--batch_size", "4", "--threads", "1", "--out", "run"]


def _picture(i):
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(i).integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(buffer, "png")
    return buffer.getvalue()


def _table(name, columns, about=None):
    pq.write_table(pa.table(columns).replace_schema_metadata(about), name)


def _pipeline(file, key, value):
    net = {"block_out_channels": [8, 8], "norm_num_groups": 4, "layers_per_block": 1, "sample_size": 8}
    net |= {"down_block_types": ["DownBlock2D"] * 2, "up_block_types": ["UpBlock2D"] * 2, "_class_name": "UNet2DModel"}
    index = {"unet": ["diffusers", "UNet2DModel"], "scheduler": ["diffusers", "DDPMScheduler"]}
    files = {"model_index.json": index, "unet/config.json": net, "scheduler/scheduler_config.json": {}}
    files[file][key] = value
    for name, content in files.items():
        Path("p", name).parent.mkdir(parents=True, exist_ok=True)
        Path("p", name).write_text(json.dumps(content))
    save_file({"weight": np.zeros(1)}, "p/unet/diffusion_pytorch_model.safetensors")


IMAGES = [{"bytes": _picture(i), "path": f"{RAW}{i}.png"} for i in range(4)]
FEATURES = '{"info": {"features": {"image": {"_type": "X\\u001b[31m"}}}}'
TARRED = {f"{i}{RAW.replace('/', '')}.png": _picture(i) for i in range(3)}
NAMED = {
    "a column": (lambda: _table("x.parquet", {RAW: ["x"]}), [*TRAIN, "--data", "x.parquet"]),
    "two columns": (
        lambda: _table("x.parquet", {f"a{RAW}": IMAGES, f"b{RAW}": IMAGES}),
        [*TRAIN, "--data", "x.parquet"],
    ),
    "no classes": (
        lambda: _table("x.parquet", {f"a{RAW}": IMAGES}),
        [*TRAIN, "--data=x.parquet", "--class_labels=true"],
    ),
    "metadata": (
        lambda: _table("x.parquet", {"image": IMAGES}, {"huggingface": FEATURES}),
        [*TRAIN, "--data", "x.parquet"],
    ),
    "a tar's member": (lambda: _tar("x.tar", {**TARRED, f"{RAW}.png": b"no"}), [*TRAIN, "--data", "x.tar"]),
    "a tar": (lambda: Path(f"x{RAW[:6]}.tar").write_bytes(b"no"), [*TRAIN, "--data", f"x{RAW[:6]}.tar"]),
    "keys of arrays": (
        lambda: np.savez("x.npz", **{f"a{RAW}": np.zeros((9, 3)), f"b{RAW}": np.zeros((9, 3))}),
        [*TRAIN, "--data", "x.npz"],
    ),
    "a data set of the Hub": (lambda: None, [*TRAIN, "--data", f"hub:name=o{RAW[:6]}/x"]),
    "a model of the Hub": (lambda: None, ["sample", f"o{RAW[:6]}/x"]),
    "a scheduler": (lambda: _pipeline("model_index.json", "scheduler", ["diffusers", RAW]), ["sample", "p"]),
    "its betas": (lambda: _pipeline("scheduler/scheduler_config.json", "beta_schedule", RAW), ["sample", "p"]),
    "its prediction": (lambda: _pipeline("scheduler/scheduler_config.json", "prediction_type", RAW), ["sample", "p"]),
    "a network": (lambda: _pipeline("unet/config.json", "_class_name", RAW), ["sample", "p"]),
    "its blocks": (lambda: _pipeline("unet/config.json", "down_block_types", [RAW, "DownBlock2D"]), ["sample", "p"]),
    "its activation": (lambda: _pipeline("unet/config.json", "act_fn", RAW), ["sample", "p"]),
}


def _tar(name, members):
    with tarfile.open(name, "w") as file:
        for member, content in members.items():
            about = tarfile.TarInfo(member)
            about.size = len(content)
            file.addfile(about, io.BytesIO(content))


@pytest.mark.parametrize("what", NAMED)
def test_names_within_files_reach_the_terminal_as_text(what, tmp_path, monkeypatch, capsys):
    make, words = NAMED[what]
    monkeypatch.chdir(tmp_path)
    make()
    code, out, err = atdm(capsys, *words)
    assert code == 2
    assert "\\x1b[31m" in out + err
    assert text.CONTROL.search(out + err) is None
    assert sum(line.startswith("atdm: ") for line in err.splitlines()) == 1


def test_names_of_classes_reach_files_as_text(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in (RAW, f"b{RAW}"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(6):
            (tmp_path / "photos" / name / f"{i}.png").write_bytes(_picture(i))
    code, _, err = atdm(capsys, *TRAIN, "--data", "photos", "--class_labels", "true", "--net", "tiny")
    assert code == 0, err
    code, out, err = atdm(
        capsys, "sample", "run", "--label", RAW, "--sampling_steps", "2", "--n", "1", "--out", "x.png"
    )
    assert (code, text.CONTROL.search(out + err)) == (0, None)
    assert atdm(capsys, "export", "run", "--out", "shared")[0] == 0
    written = [f.read_text() for f in tmp_path.rglob("*") if f.suffix in (".json", ".jsonl", ".yaml", ".md")]
    assert len(written) > 6
    for content in written:
        assert text.CONTROL.search(content) is None
        assert "\n# H" not in content
