"""Documentation: links, lengths, words, generated results, and that every command and block of code is one that atdm takes."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from atdm.cli import parser as cli_parser
from atdm.errors import UserError
from atdm.experiments.runner.page import index, page_of
from helpers import FENCE, NOTEBOOKS, PAGES, ROOT, WRITTEN, commands, name_of, text_of

RESULTS = sorted((ROOT / "results").glob("*.json"))
GENERATED = re.compile(r"reference/(cli|index|objective|diffusion|training|data|nets|metrics|attack|plot)\.md$")


def prose(file: Path) -> str:
    """Without code and without the targets of links."""
    text = re.sub(r"\]\([^)]*\)", "]", FENCE.sub("", text_of(file)))
    return re.sub(r"`[^`\n]*`|\$\$?.*?\$\$?", "", text)


# --- results ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("file", RESULTS, ids=lambda file: file.stem)
def test_a_page_of_results_is_what_its_json_says(file):
    assert file.with_suffix(".md").read_text() == page_of(file.stem, json.loads(file.read_text()))


def test_the_index_of_results_is_of_all_pages_and_every_picture_is_shown():
    assert (ROOT / "results" / "README.md").read_text() == index(
        {file.stem: json.loads(file.read_text()) for file in RESULTS}
    )
    shown = {
        name for file in RESULTS for name in re.findall(r"\]\(images/(.*?)\)", file.with_suffix(".md").read_text())
    }
    assert shown == {file.name for file in (ROOT / "results" / "images").iterdir()}


@pytest.mark.parametrize("name", ["paper", "comparison"])
def test_pages_over_results_are_short_have_one_table_and_link_to_them(name):
    text = text_of(ROOT / "docs" / f"{name}.md")
    assert len(text.splitlines()) <= 120
    assert len(re.findall(r"^\|---", text, re.MULTILINE)) == 1
    linked = set(re.findall(r"\.\./results/([\w.-]+)\.md", text))
    assert len(linked) >= 6
    assert linked <= {"README", *(file.stem for file in RESULTS)}


# --- lengths and words ------------------------------------------------------------------------------------------------
def test_pages_are_short():
    assert len(text_of(ROOT / "README.md").splitlines()) <= 120
    assert {name_of(file): n for file in WRITTEN if (n := len(text_of(file).splitlines())) > 200} == {}
    words = sum(len(text_of(page).split()) for page in PAGES)
    assert words + sum(len(FENCE.sub("", text_of(book)).split()) for book in NOTEBOOKS) <= 20_000


BANNED = dict(
    line.split("\t") for line in (ROOT / "docs" / "words.txt").read_text().splitlines() if line and line[0] != "#"
)


@pytest.mark.parametrize("file", [file for file in WRITTEN if file.stem != "glossary"], ids=name_of)
def test_the_words_are_those_of_the_field(file):
    found = {
        word: instead
        for pattern, instead in BANNED.items()
        for word in re.findall(rf"\b(?:{pattern})\b", prose(file), re.IGNORECASE)
    }
    assert not found


# Names that are not ours to choose: the Hub's push, a key of audit.json, a random stream whose name seeds it.
OTHERS = re.compile(r"share\.push|def push\(|push_to_hub|Cannot push to|\"push\"")
SOURCES = [
    file
    for folder in ("src", "examples", "recipes", "benchmarks")
    for file in sorted((ROOT / folder).rglob("*"))
    if file.suffix in {".py", ".yaml", ".j2"}
]


def test_the_words_in_the_source_are_those_of_the_field():
    words = re.compile(rf"\b(?:{'|'.join(BANNED)})\b", re.IGNORECASE)
    texts = {name_of(file): OTHERS.sub("", file.read_text()) for file in [ROOT / "CHANGELOG.md", *SOURCES]}
    assert {name: found for name, text in texts.items() if (found := words.findall(text))} == {}


def test_spelling():
    files = [str(file) for file in WRITTEN if file.suffix == ".md"]
    command = [sys.executable, "-m", "codespell_lib", "--ignore-words-list", "nd,ba,te", *files]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


# --- links ------------------------------------------------------------------------------------------------------------
def anchors(file: Path) -> set[str]:
    """As mkdocs and GitHub make them from the headings."""
    headings = re.findall(r"^#+ (.*)$", FENCE.sub("", text_of(file)), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("file", [*WRITTEN, ROOT / "results" / "README.md"], ids=name_of)
def test_every_link_and_picture_is_there(file):
    for target in re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", text_of(file))):
        place, _, anchor = target.partition("#")
        if re.match(r"https?://", target) or GENERATED.search(place):
            continue
        path = (file.parent / place).resolve() if place else file
        assert path.is_file(), target
        assert not anchor or anchor in anchors(path), target


def test_every_page_is_in_the_menu():
    menu = set(re.findall(r": ([\w/-]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE))
    there = {file.relative_to(ROOT / "docs").with_suffix(".md").as_posix() for file in [*PAGES, *NOTEBOOKS]}
    assert there <= menu
    assert {page for page in menu - there if not GENERATED.search(page)} == {"results/index.md"}


# --- commands ---------------------------------------------------------------------------------------------------------
class Parsed(Exception):
    """A command got past its parser."""


def rejected(words: list[str], monkeypatch: pytest.MonkeyPatch) -> str:
    """What is wrong with a command, by its own parser and before any work; nothing where it is right."""
    from importlib import import_module

    make = cli_parser.make_parser

    def stopping(*command):
        parser = make(*command)
        parse = parser.parse_args

        def parse_args(*args, **options):
            parse(*args, **options)
            raise Parsed

        parser.parse_args = parse_args
        return parser

    module = import_module(f"atdm.cli.{words[0]}")
    with monkeypatch.context() as patch:
        patch.setattr(module, "make_parser", stopping)
        patch.setattr("torch.cuda.is_available", lambda: True)  # for --device cuda
        try:
            module.run(words[1:])
        except Parsed:
            return ""
        except UserError as problem:
            return str(problem)
    return "it ran" if words != ["reproduce"] else ""


@pytest.mark.parametrize("file", [file for file in WRITTEN if commands(file)], ids=name_of)
def test_every_command_is_one_that_atdm_takes(file, monkeypatch):
    for words in commands(file):
        assert words[0] in cli_parser.SUMMARY, words
        assert rejected(words, monkeypatch) == "", " ".join(words)


def test_every_command_is_shown():
    shown = {words[0] for words in commands(ROOT / "docs" / "commands.md")}
    assert shown == {*cli_parser.SUMMARY}


def test_a_wrong_option_is_found(monkeypatch):
    assert "Unknown option 'stepz'" in rejected(["sample", "runs/digits", "--stepz", "5"], monkeypatch)
