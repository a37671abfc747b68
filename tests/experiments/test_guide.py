"""The table of what to use: what it makes of pages, and that auto and the audit agree with it."""

import json

import pytest

from atdm.experiments.runner import guide
from helpers import ROOT

RECORDS = {file.stem: json.loads(file.read_text()) for file in sorted((ROOT / "results").glob("*.json"))}
HEAD = ["items", "what is wrong", "what is known", "use"]


def record(
    rows, heading="baselines, digits", caption="digits: never varying noise", seeds="0,1,2", experiment="baselines"
):
    columns = ["training data", "objective", "residual corruption", "distance from clean", "step cost"]
    table = {"columns": columns, "rows": rows, "caption": caption}
    command = f"atdm reproduce {experiment} --scale cpu" + (f" --seeds {seeds}" if seeds else "")
    return {"experiment": experiment, "heading": heading, "command": command, "tables": [table]}


def lines(records):
    return [dict(zip(guide.table(records).columns, row, strict=True)) for row in guide.table(records).rows]


def test_the_method_that_is_ahead_in_both_numbers_is_named_with_its_gains():
    rows = [
        ["90% noise 0.2", "ddpm", [0.2, 0.01], [2.0, 0.1], 1],
        ["90% noise 0.2", "auto", [0.1, 0.01], [1.5, 0.1], 1.07],
        ["90% noise 0.2", "pseudo_huber", 0.15, 1.8, 1],
        ["90% noise 0.1", "ddpm", 0.2, 2.0, 1],
        ["90% noise 0.1", "auto", 0.12, 2.0, 1.07],
        ["90% noise 0.1", "ddpm, stopped at 0.3", 0.01, 1.0, 1],  # known in hindsight
        ["90% noise 0.1", "free", 0.01, 3.0, 3],  # farther
    ]
    (line,) = lines({"page": record(rows)})
    assert [line[key] for key in HEAD] == ["smaller images", "Gaussian noise on some items", "nothing", "auto"]
    assert (line["residual"], line["distance"]) == ("−50 to −40 %", "−25 to +0 %")
    assert line["next best: residual, distance"] == "pseudo_huber: −25 %, −10 %"
    assert line["measured on (seeds)"] == "[digits](page.md) (3)"


def test_more_knowledge_has_a_line_where_it_gains_more():
    def rows(sure):
        return [
            ["100% noise 0.2", name, number, number, 1]
            for name, number in (("ddpm", 0.2), ("auto", 0.1), ("sure", sure))
        ]

    for sure, uses in ((0.05, ["auto", "sure"]), (0.15, ["auto"])):
        found = lines({"page": record(rows(sure), "baselines, plane", "plane: distance")})
        assert [line["use"] for line in found] == uses
        assert {line["items"] for line in found} == {"vectors"}


def test_where_nothing_is_wrong_the_distance_decides():
    rows = [["clean", "ddpm", 0.2, 1.0, 1], ["clean", "sure", 0.01, 1.04, 3], ["clean", "free", 0.01, 1.02, 3]]
    (line,) = lines({"page": record(rows, seeds="")})
    assert (line["use"], line["next best: residual, distance"].split(":")[0]) == ("ddpm", "free")
    assert line["measured on (seeds)"].endswith("(1)")


def test_what_diverged_and_what_is_no_comparison_is_left_out():
    rows = [
        ["JPEG", "ddpm", 0.2, 1.0, 1],
        ["JPEG", "auto", None, None, 1],
        ["JPEG", "free", 0.1, 0.9, 3],
        ["x", "free", 1, 1, 1],
    ]
    (line,) = lines({"page": record(rows), "other": record(rows, experiment="strength")})
    assert line["use"] == "free"


@pytest.mark.parametrize("name", ["baselines-digits", "baselines-cifar10", "images-data", "trusted"])
def test_every_page_that_compares_methods_is_read(name):
    found = [*guide.measured({name: RECORDS[name]})]
    assert found
    assert all(each.gain("ddpm") == (1, 1) for each in found)
    if name == "images-data":
        assert {each.benchmark for each in found} == {"CIFAR-10", "CelebA", "bedrooms"}


def test_the_page_is_made_of_the_others():
    assert (ROOT / "results" / guide.NAME).read_text() == guide.page(RECORDS)


def test_auto_is_what_the_guide_says_for_images_of_which_nothing_is_known():
    found = [line for line in lines(RECORDS) if (line["items"], line["what is known"]) == (guide.ITEMS[0], "nothing")]
    assert len(found) >= 2
    # In short trainings pseudo_huber is closer on clean images, too, and that is all it gains here.
    others = dict.fromkeys(("blank patches", "JPEG", "blur", "outliers"), "pseudo_huber") | {"nothing": "ddpm"}
    for line in found:
        assert line["use"] == others.get(line["what is wrong"], "auto"), line
