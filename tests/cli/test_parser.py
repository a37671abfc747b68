"""Options: made of dataclasses, each with a sentence and its default; examples that the parsers take."""

from __future__ import annotations

import dataclasses
import shlex

import pytest

from atdm.cli import parser as parsers
from atdm.errors import UserError, nearest
from helpers import atdm, parsed


def test_every_command_has_two_examples():
    assert {command.split()[0] for command in parsers.EXAMPLES} == set(parsers.SUMMARY)
    assert {len(set(examples)) for examples in parsers.EXAMPLES.values()} == {2}


@pytest.mark.parametrize("words", [[], ["show"]])
def test_help_over_commands_ends_with_two_examples_of_them(words, capsys):
    code, out, _ = atdm(capsys, *words, "--help")
    assert code == 0
    known = {f"  atdm {example}" for examples in parsers.EXAMPLES.values() for example in examples}
    assert set(out.splitlines()[-2:]) <= known
    assert out.splitlines()[-3] == "examples:"


@pytest.mark.parametrize("command", parsers.EXAMPLES)
def test_examples_are_taken_and_every_option_has_a_sentence_and_its_default(command, monkeypatch):
    for example in parsers.EXAMPLES[command]:
        words = shlex.split(example)
        assert words[: len(command.split())] == command.split()
        parser, _ = parsed(words, monkeypatch)
    text = parser.format_help()
    assert text.rstrip().endswith("\n".join(f"  atdm {example}" for example in parsers.EXAMPLES[command]))
    for action in parser._actions:
        if action.dest in ("help", "print_config") or "shtab" in str(action.option_strings):
            continue
        if not str(action.help or "").strip():  # a group of options, whose members have theirs
            assert any(other.dest.startswith(f"{action.dest}.") for other in parser._actions), action.dest
    shown = " ".join(text.split())
    assert shown.count("default:") >= sum(bool(a.option_strings) and not a.required for a in parser._actions) - 5


@dataclasses.dataclass(frozen=True)
class Base:
    """What is inherited.

    Args:
        first, second: two at once,
            on two lines.
    """

    first: int = 1
    second: str | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Own(Base):
    """And what is added.

    Args:
        place: given by its place.
        needed: without a default.
        several: one or more.
        second: says it anew.
    """

    place: str = parsers.positional()
    needed: float
    several: list[str] = dataclasses.field(default_factory=list)


def test_a_parser_is_made_of_a_dataclass():
    parser = parsers.make_parser("demo", Own)
    given = parser.parse_args(["here", "--needed", "2", "--several", "a", "b", "--first", "3"])
    assert (given.place, given.needed, given.several, given.first, given.second) == (
        "here",
        2.0,
        ["a", "b"],
        3,
        None,
    )
    with pytest.raises(UserError, match="needed"):
        parser.parse_args(["here"])
    assert parsers.sentences(Own) == {
        "first": "two at once, on two lines.",
        "second": "says it anew.",
        "place": "given by its place.",
        "needed": "without a default.",
        "several": "one or more.",
    }


def test_a_wrong_option_suggests_the_nearest_few(capsys):
    code, _, err = atdm(capsys, "train", "--bach_size", "3")
    assert code == 2
    assert "Did you mean 'batch_size'" in err
    assert len(err.split(",")) <= 6
    names = [f"name{i}" for i in range(30)]
    assert nearest("nothing like it", names).count(",") <= 16
    assert nearest("a", ["b", "c"]) == "Valid: b, c."


@pytest.mark.parametrize("words", [["--objective", "auto"], ["--objective=auto"], ["--objective.name", "auto"]])
def test_an_objective_may_be_given_by_its_name_alone(words, monkeypatch):
    _, given = parsed(["train", *words, "--objective.every", "2"], monkeypatch)
    assert (given.objective.name, given.objective.every) == ("auto", 2)


def test_epochs_become_the_steps_that_the_data_make(capsys, tmp_path):
    words = [
        "train",
        "--data",
        "plane:n=100",
        "--net",
        "mlp:width=8",
        "--objective",
        "robust_adv",
        "--batch_size",
        "32",
        "--out",
        str(tmp_path / "run"),
    ]
    code, out, err = atdm(capsys, *words, "--epochs", "2.5", "--json")
    assert code == 0, err
    assert '"steps": 8' in out  # 250 items in batches of 32
    code, out, _ = atdm(capsys, *words, "--epochs", "2.5", "--json")  # all are done
    assert '"step": 8' in out
    code, out, err = atdm(capsys, *words, "--epochs", "4", "--json")  # goes on
    assert '"step": 13' in out, err
    code, _, err = atdm(capsys, *words, "--epochs", "0")
    assert code == 2
    assert "epochs is 0" in err
