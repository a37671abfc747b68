"""Documentation: generated results are what their JSON says, and every link leads somewhere."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from atdm.experiments.runner.page import index, page_of

ROOT = Path(__file__).resolve().parent.parent
RESULTS = sorted((ROOT / "results").glob("*.json"))


@pytest.mark.parametrize("file", RESULTS, ids=lambda file: file.stem)
def test_a_page_of_results_is_what_its_json_says(file):
    assert file.with_suffix(".md").read_text() == page_of(file.stem, json.loads(file.read_text()))


def test_the_index_of_results_is_of_all_pages_and_every_picture_is_shown():
    assert (ROOT / "results" / "README.md").read_text() == index(ROOT / "results")
    shown = {
        name for file in RESULTS for name in re.findall(r"\]\(images/(.*?)\)", file.with_suffix(".md").read_text())
    }
    assert shown == {file.name for file in (ROOT / "results" / "images").iterdir()}


@pytest.mark.parametrize("name", ["paper", "comparison"])
def test_pages_over_results_are_short_and_link_to_them(name):
    text = (ROOT / "docs" / f"{name}.md").read_text()
    assert len(text.splitlines()) <= 120
    linked = set(re.findall(r"\.\./results/([\w.-]+)\.md", text))
    assert len(linked) >= 6
    assert linked <= {"README", *(file.stem for file in RESULTS)}
