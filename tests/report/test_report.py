"""Figures draw the numbers they were given; a report is one page that holds everything and escapes it."""

import base64
import math
import re
from html.parser import HTMLParser

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.quiver import Quiver
from PIL import Image

from atdm import plot
from atdm.data.toy import GaussianMixture, Plane
from atdm.diffusion.process import Process
from atdm.errors import UserError
from atdm.objective import OBJECTIVES
from atdm.report.page import Section, Table, render, show

PLANE = Plane()


@pytest.fixture
def clouds(generator):
    clean = PLANE.sample(400, generator)
    return {"training data": clean + 0.2 * torch.randn(400, 3, generator=generator), "robust_adv": clean}


def texts(figure: Figure) -> str:
    return "\n".join(t.get_text() for t in figure.findobj(lambda a: hasattr(a, "get_text")))


# --- figures ----------------------------------------------------------------------------------------------------------
def test_every_objective_has_its_own_fixed_colour():
    assert set(OBJECTIVES) | {"auto", "ddpm, stopped"} == set(plot.COLOURS)
    assert len(set(plot.COLOURS.values())) == len(plot.COLOURS)
    some = plot.colours(["clean", "robust_adv", "ddpm seed 1", "other"])
    assert (some["robust_adv"], some["ddpm seed 1"]) == (plot.COLOURS["robust_adv"], plot.COLOURS["ddpm"])
    assert len(set(plot.colours([*plot.COLOURS, "clean", "ddpm again"]).values())) == len(plot.COLOURS) + 2


def test_ray_draws_the_formula():
    process, floor = Process.linear(100), 0.05
    state, radius, weight = plot.ray(process, [1, 2.5], floor).axes
    sigma = process.sigmas.numpy()
    ddpm, *rays = state.lines
    np.testing.assert_allclose(ddpm.get_ydata(), sigma)
    for omega, in_state, r, lam in zip([1, 2.5], rays, radius.lines, weight.lines, strict=True):
        np.testing.assert_allclose(r.get_ydata(), sigma**omega + floor, rtol=1e-5)
        np.testing.assert_allclose(in_state.get_ydata(), sigma * (sigma**omega + floor), rtol=1e-5)
        np.testing.assert_allclose(
            lam.get_ydata(), 0.3 * math.sqrt(3) / sigma**omega, rtol=1e-5
        )  # the bias is in the radius alone


def test_points3d_colours_points_by_their_distance_on_one_scale(clouds):
    figure = plot.points3d(clouds, PLANE, limits=(-9, 9))
    *panels, bar = figure.axes
    drawn = [axis.collections[0] for axis in panels]
    for points, x in zip(drawn, clouds.values(), strict=True):
        np.testing.assert_allclose(points.get_array(), PLANE.distance(x), atol=1e-6)
    assert drawn[0].norm is drawn[1].norm
    assert "distance" in bar.get_ylabel()
    assert [axis.get_title() for axis in panels] == list(clouds)


def test_points3d_looks_along_the_plane(clouds):
    axis = plot.points3d(clouds, PLANE).axes[0]
    elev, azim = math.radians(axis.elev), math.radians(axis.azim)
    towards = torch.tensor([math.cos(elev) * math.cos(azim), math.cos(elev) * math.sin(azim), math.sin(elev)])
    assert abs(towards @ PLANE.axes[2]) < math.sin(math.radians(25))


def test_points3d_says_what_it_leaves_out(clouds):
    clouds["ddpm"] = clouds["training data"].clone()
    clouds["ddpm"][:40] = math.nan
    clouds["ddpm"][40:60] = 1e4
    figure = plot.points3d(clouds, PLANE, limits=(-9, 9))
    assert figure.axes[2].get_title() == "ddpm (15 % outside)"
    assert len(figure.axes[2].collections[0].get_array()) == 340


def test_trajectories_are_lines_in_a_cut_across_the_support(clouds):
    paths = torch.stack([3 * clouds["robust_adv"], clouds["robust_adv"]])
    figure = plot.trajectories({"ddpm": paths, "robust_adv": paths}, PLANE, most=10)
    for axis, name in zip(figure.axes, ["ddpm", "robust_adv"], strict=True):
        support, *lines = axis.lines
        assert len(lines) == 10
        assert [*support.get_ydata()] == [0, 0]
        for line, path in zip(lines, paths[:, :10].unbind(1), strict=True):
            np.testing.assert_allclose(np.abs(line.get_ydata()), PLANE.distance(path), atol=1e-4)
        assert to_hex(lines[0].get_color()) == plot.COLOURS[name]
        ends = np.abs(np.asarray(axis.collections[1].get_offsets())[:, 1])
        np.testing.assert_allclose(ends, PLANE.distance(paths[-1, :10]), atol=1e-4)


def test_trajectories_that_diverge_hide_no_others(clouds):
    paths = torch.stack([3 * clouds["robust_adv"], clouds["robust_adv"]])
    alone = plot.trajectories({"ddpm": paths, "robust_adv": paths}, PLANE, most=10)
    figure = plot.trajectories({"ddpm": paths, "inv_adv": 100 * paths, "robust_adv": paths}, PLANE, most=10)
    assert figure.axes[0].get_xlim() == alone.axes[0].get_xlim()
    assert "outside" not in figure.axes[0].get_title(loc="left")
    assert "% outside" in figure.axes[1].get_title(loc="left")


def test_score_fields_are_unit_arrows_coloured_by_magnitude(generator):
    x = torch.randn(50, 2, generator=generator)
    truth = GaussianMixture().score(x, 0.9, 0.3)
    figure = plot.score_fields({"truth": (x, truth), "ddpm": (x, 2 * truth)}, "at 0.3")
    arrows = [next(a for a in axis.collections if isinstance(a, Quiver)) for axis in figure.axes[:2]]
    for quiver in arrows:
        np.testing.assert_allclose(np.hypot(quiver.U, quiver.V), 1, rtol=1e-5)
    assert arrows[0].norm is arrows[1].norm
    low = arrows[0].norm.vmin
    np.testing.assert_allclose(arrows[1].get_array(), (2 * truth).norm(dim=1).clamp_min(low), rtol=1e-5)


def test_curves_and_tradeoff_draw_what_they_are_given():
    axis = plot.curves({"ddpm": ([1, 2], [3.0, 4.0])}, "std", "rms", log="y", title="T").axes[0]
    assert axis.lines[0].get_ydata().tolist() == [3, 4]
    assert (axis.get_xlabel(), axis.get_ylabel(), axis.get_yscale(), axis.get_title("left")) == (
        "std",
        "rms",
        "log",
        "T",
    )
    points = [("a", "ddpm", 1.0, 2.0), ("b", "robust_adv", 3.0, 4.0), ("c", "robust_adv", 5.0, 1.0)]
    figure = plot.scatter_tradeoff(points, "noise", "distance")
    assert [line.get_xydata().tolist() for line in figure.axes[0].lines] == [[[1, 2]], [[3, 4], [5, 1]]]
    assert {"a", "b", "c", "ddpm", "robust_adv"} <= set(texts(figure).split("\n"))


def test_labels_that_would_collide_are_left_out():
    points = [(f"run {i}", "ddpm", 1000 + 100.0 * i, 1.0) for i in range(5)] + [("far", "ddpm", 90000.0, 9.0)]
    written = texts(plot.scatter_tradeoff(points, "x", "y")).split("\n")
    assert [t for t in written if t.startswith("run")] == ["run 0"]
    assert "far" in written


def test_bars_are_means_with_the_spread_over_seeds():
    rows = [
        {"objective": name, "metric": "off_support_rms", "value": value}
        for name, values in {"ddpm": (0.2, 0.4), "robust_adv": (0.1,), "inv_adv": (None, math.nan)}.items()
        for value in values
    ] + [{"objective": "ddpm", "metric": "another", "value": 9.0}]
    figure = plot.bars(rows, "off_support_rms")
    axis = figure.axes[0]
    assert [bar.get_height() for bar in axis.patches] == pytest.approx([0.3, 0.1])
    (errors,) = [c.get_segments()[0] for c in axis.collections]
    assert errors[:, 1] == pytest.approx([0.3 - math.sqrt(0.02), 0.3 + math.sqrt(0.02)])
    assert {"0.3", "0.1"} <= set(texts(figure).split("\n"))
    assert axis.get_ylabel() == "off support rms (data units)\nlower is better"


def test_bars_with_two_keys_make_clusters():
    rows = [
        {"data": d, "objective": o, "loss": i} for i, (d, o) in enumerate([("a", "ddpm"), ("a", "x"), ("b", "ddpm")])
    ]
    axis = plot.bars(rows, "loss", ("data", "objective")).axes[0]
    assert [bar.get_x() + bar.get_width() / 2 for bar in axis.patches] == pytest.approx([-0.2, 0.2, 0.8])
    assert [t.get_text() for t in axis.get_xticklabels()] == ["a", "b"]


def test_of_a_metric_that_says_nothing_on_samples_no_side_is_called_better():
    figure = plot.bars([{"objective": "ddpm", "noise_std_reference": 0.1}], "noise_std_reference")
    assert figure.axes[0].get_ylabel() == "noise std reference (data units)"


def test_image_grids_show_pixels_as_they_are():
    x = torch.full((4, 1, 5, 5), -1.0)
    x[3] = 1
    figure = plot.image_grids({"data": x, "ddpm": x.expand(4, 3, 5, 5)}, columns=2)
    for axis in figure.axes:
        image = axis.images[0]
        assert image.get_interpolation() == "nearest"
        pixels = np.asarray(image.get_array())
        assert pixels.shape == (13, 13, 3)
        assert (pixels[2, 2].max(), pixels[9, 9].min()) == (0, 255)


PUSH = {
    "regularizer": 0.3,
    "share_at_radius": 0.9,
    "delta_rms": 0.5,
    "radius": 0.6,
    "weight": 2.0,
    "regularizer/q1": 0.2,
}


@pytest.mark.parametrize(("extra", "panels"), [({}, 4), (PUSH, 8)])
def test_run_curves_draw_what_was_logged(extra, panels):
    base = {"denoise": 1.0, "gradient_norm": 0.5, "samples_per_second": 100.0, "denoise/q0": 2.0}
    log = [{"step": step, "loss": 5.0 / step, **base, **extra} for step in (10, 20, 30)] + [{"note": "no step"}]
    log[2]["gradient_norm"] = math.nan
    figure = plot.run_curves(log)
    assert len(figure.axes) == panels
    loss = figure.axes[0].lines[0]
    assert list(loss.get_xdata()) == [10, 20, 30]
    assert list(loss.get_ydata()) == [0.5, 0.25, 5 / 30]
    gradient = next(axis for axis in figure.axes if axis.get_title("left") == "Gradient norm")
    assert list(gradient.lines[0].get_xdata()) == [10, 20]


@pytest.mark.parametrize("d", [2, 3])
def test_scatter_draws_both_clouds(d, generator):
    x = torch.rand(30, d, generator=generator)
    samples = x[:20].clone()
    samples[0], samples[1] = math.nan, 1e6
    drawn = {c.get_label(): len(c.get_offsets()) for c in plot.scatter(samples, x).axes[0].collections}
    assert drawn == {"reference": 30, "samples (10 % outside)": 18}


@pytest.mark.parametrize(
    "call",
    [
        lambda: plot.scatter(torch.zeros(3, 4)),
        lambda: plot.curves({}, "x", "y"),
        lambda: plot.bars([{"objective": "ddpm"}], "loss"),
        lambda: plot.bars([{"a": "b", "loss": 1.0}], "loss", ()),
        lambda: plot.run_curves([{"step": 1}]),
        lambda: plot.save(Figure(), "figure.gif"),
    ],
)
def test_mistakes_are_told(call):
    with pytest.raises(UserError, match=r"Expected"):
        call()


def test_files_and_addresses_hold_the_figure(tmp_path, clouds):
    figure = plot.points3d(clouds, PLANE)
    with Image.open(plot.save(figure, tmp_path / "deep" / "a.png")) as image:
        assert image.size == tuple(round(plot.DPI * side) for side in figure.get_size_inches())
    svg = [plot.save(plot.curves({"ddpm": ([1], [1.0])}, "x", "y"), tmp_path / f"{i}.svg").read_text() for i in "ab"]
    assert svg[0] == svg[1]
    assert "<svg" in svg[0]
    kind, data = plot.data_uri(figure).split(",")
    assert kind == "data:image/png;base64"
    assert base64.b64decode(data).startswith(b"\x89PNG")
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["a.png", "a.svg", "b.svg", "deep"]
    assert not plt.get_fignums()  # no global state


# --- the page ---------------------------------------------------------------------------------------------------------
class Page(HTMLParser):
    """Cells, texts of some tags, and every address of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.ids: list[str] = []
        self.elements: list[tuple[str, str, str]] = []  # tag, class, text
        self.open: list[list[str]] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.addresses += [v for k, v in attributes if k in ("src", "href", "srcset", "data", "action", "poster")]
        self.ids += [found["id"]] if "id" in found else []
        if tag not in ("img", "meta", "br", "link", "input"):
            self.open.append([tag, found.get("class") or "", ""])

    def handle_data(self, data):
        for element in self.open:
            element[2] += data

    def handle_endtag(self, tag):
        assert self.open[-1][0] == tag, f"{tag} closes {self.open[-1][0]}"
        name, kind, text = self.open.pop()
        self.elements.append((name, kind.strip(), " ".join(text.split())))

    def all(self, tag: str) -> list[str]:
        return [text for name, _, text in self.elements if name == tag]


NASTY = '<script>alert("x & y")</script>\x1b[31m\u202e'
SHOWN = NASTY.replace("\x1b", "\\x1b").replace("\u202e", "\\u202e")


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "deep" / "report.html"
    table = Table(
        ["objective", "rms", "ratio", "dB", "n", "done"],
        [
            ["ddpm", (0.2, 0.0123), 1.3, 10.0, 12345, True],
            [NASTY, (0.1, 0.001), 0.9, -20.25, 7, False],
            ["inv_adv", None, math.inf, 10.0, 7, False],
        ],
        "Caption of <the> table.",
        best={"rms": "lower", "ratio": "one", "dB": "higher"},
        units={"rms": "data units"},
    )
    figure = plot.curves({"ddpm": ([1, 2], [1.0, 2.0])}, "x", "y")
    sections = [
        Section("First & foremost", f"One {NASTY}.\n\nTwo.", [("A figure's caption.", figure), ("Another.", figure)]),
        Section("Second", tables=[table]),
    ]
    provenance = {"torch": "2.9", "seeds": [0, 1], "data": {"spec": NASTY, "hash": None}}
    assert render(f"Title {NASTY}", "Lead <one>.\n\nLead two.", sections, provenance, path) == path
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]  # no temporary file stays
    return path.read_text(encoding="utf-8")


def test_page_needs_nothing_else(page):
    found = Page(page)
    assert found.addresses
    assert all(a.startswith(("data:image/png;base64,", "#")) for a in found.addresses)
    assert {a[1:] for a in found.addresses if a.startswith("#")} == set(found.ids)
    assert not re.search(r"https?://|@import|url\(|<link|<script", page)
    assert found.open == []


def test_page_holds_every_text_escaped(page):
    found = Page(page)
    assert found.all("h1") == [f"Title {SHOWN}"]
    assert found.all("h2") == ["First & foremost", "Second"]
    assert found.all("p") == ["Lead <one>.", "Lead two.", f"One {SHOWN}.", "Two."]
    assert found.all("figcaption") == ["Figure 1. A figure's caption.", "Figure 2. Another."]
    assert found.all("caption") == ["Table 1. Caption of <the> table."]
    assert found.all("a") == ["First & foremost", "Second", "Provenance"]


def test_page_holds_every_cell_and_marks_the_best(page):
    found = Page(page)
    cells = [(kind, text) for name, kind, text in found.elements if name == "td"]
    expected = [
        ["ddpm", "0.200 ± 0.012", "1.3", "10", "12 345", "yes"],
        [SHOWN, "0.1000 ± 0.0010", "0.9", "−20.25", "7", "no"],
        ["inv_adv", "–", "not finite", "10", "7", "no"],
    ]
    assert [text for _, text in cells[:18]] == [text for row in expected for text in row]
    assert [kind for kind, _ in cells[:6]] == ["", "number", "number", "number best", "number", ""]
    assert [text for kind, text in cells if "best" in kind] == ["10", "0.1000 ± 0.0010", "0.9", "10"]
    flat = [("torch", "2.9"), ("seeds", "0, 1"), ("data.spec", SHOWN), ("data.hash", "–")]
    assert [text for _, text in cells[18:]] == [text for row in flat for text in row]
    assert found.all("th") == ["objective", "rmsdata units", "ratio", "dB", "n", "done"]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ((1403.333, 0.577), "1403.33 ± 0.58"),
        ((24.03, 3.98), "24.0 ± 4.0"),
        ((8460.2, 546.3), "8460 ± 546"),
        ((-0.00788, 8.83e-05), "−0.007880 ± 0.000088"),
        ((1.0, 0.0), "1 ± 0"),
        ((0.5, 1e-9), "0.5 ± 1e−09"),
        ((math.inf, math.nan), "not finite ± not finite"),
    ],
)
def test_a_mean_has_as_many_digits_as_its_spread_warrants(value, text):
    assert show(value) == text


def test_tables_refuse_rows_and_columns_that_do_not_fit():
    with pytest.raises(UserError, match=r"1 cells\. Expected 2"):
        Table(["a", "b"], [[1]])
    with pytest.raises(UserError, match="Did you mean 'loss'"):
        Table(["loss"], [[1]], best={"los": "lower"})


def test_a_lone_number_is_not_the_best(tmp_path):
    table = Table(["x"], [[1.0], [None]], best={"x": "lower"})
    text = render("t", "", [Section("s", tables=[table])], {}, tmp_path / "r.html").read_text(encoding="utf-8")
    assert 'class="number best"' not in text
    assert "Provenance" not in text


def test_a_report_that_cannot_be_written_is_a_user_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="Cannot write"):
        render("t", "", [], {}, tmp_path / "file" / "r.html")


@pytest.mark.parametrize("write", [lambda path: plot.save(Figure(), path), lambda path: render("t", "", [], {}, path)])
def test_a_folder_is_never_replaced_by_a_file(tmp_path, write):
    folder = tmp_path / "x.png"
    folder.mkdir()
    (folder / "file").write_text("precious")
    with pytest.raises(UserError, match="is a folder"):
        write(folder)
    assert sorted(tmp_path.rglob("*")) == [folder, folder / "file"]
