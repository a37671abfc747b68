"""Somebody else's text where text has a meaning: it is shown, and does nothing."""

import pytest

from atdm import text

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
