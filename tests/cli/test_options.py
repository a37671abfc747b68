"""An option means the same in every command: its type, what its sentence is about, and those that every command has."""

import logging
import os
import re
import sys
import typing
import warnings

import pytest

from atdm.cli.completion import parser_of
from atdm.cli.habits import HABITS, HIDDEN
from atdm.cli.parser import EXAMPLES
from helpers import atdm

COMMANDS = sorted(EXAMPLES)
EVERYWHERE = ("help", "json", "quiet", "verbose", "device")
# What the sentence of an option that several commands have in their own words must speak of in all of them.
MEANS = {
    "attack": "pgd|for atdm attack",
    "baselines": "baseline",
    "batch_size": "samples|items|images",
    "budgets": "noise units",
    "channels_last": "channels|as of atdm train",
    "compile": "compil",
    "corrupt": "corruption|gaussian",
    "data": "learn|training data|clean|purify|corrupt|data set|digits",
    "device": "cpu or cuda",
    "executor": "local",
    "features": "feature space",
    "gradient_checkpointing": "compute activations|as of atdm train",
    "image_size": "images of any size|resize",
    "json": "JSON",
    "label": "class",
    "n": "how many|samples",
    "net": "network",
    "out": r"folder|\.png|\.json|\.md|\.safetensors|\.html",
    "precision": "mixed precision",
    "process": "forward process",
    "reference": "trusted set|clean (images|data)",
    "sampler": "diffusers scheduler",
    "scale": "smoke",
    "seed": "seed|of (--train: of )?(data|the (sampling|choice|corruption|noise))|sample i",
    "seeds": "such as 0,1,2",
    "steps": "optimizer steps|training steps",
    "threads": "CPU threads",
    "weights": "ema",
}


@pytest.fixture(scope="module")
def options():
    """By option: the commands that have it, with its sentence and its type."""
    found = {}
    for command in COMMANDS:
        for action in parser_of(*command.split())._actions:
            for name in action.option_strings:
                if name.startswith("--") and "shtab" not in name and "." not in name:
                    hint = getattr(action, "_typehint", None)
                    kinds = [k for k in typing.get_args(hint) if k is not type(None)] if hint else []
                    kind = kinds[0] if len(kinds) == 1 else hint
                    kind = str if typing.get_origin(kind) is typing.Literal or isinstance(kind, str) else kind
                    kind = str if kinds and all(isinstance(k, str) for k in kinds) else kind
                    found.setdefault(name[2:], {})[command] = (str(action.help or ""), kind)
    return found


@pytest.mark.parametrize("name", EVERYWHERE)
def test_every_command_has_it(options, name):
    assert sorted(options[name]) == COMMANDS


def test_an_option_is_of_one_type(options):
    assert {name: kinds for name, uses in options.items() if len(kinds := {str(k) for _, k in uses.values()}) > 1} == {}


def test_an_option_means_one_thing(options):
    shared = {name: uses for name, uses in options.items() if len({says for says, _ in uses.values()}) > 1}
    assert sorted(set(shared) - set(MEANS)) == [], "say what it means in every command"
    wrong = {
        (name, command): says
        for name, uses in shared.items()
        for command, (says, _) in uses.items()
        if not re.search(MEANS[name], says)
    }
    assert wrong == {}


@pytest.fixture
def noted(tmp_path):
    words = ["train", "--data", "plane:n=100", "--net", "mlp:width=8", "--steps", "2", "--batch_size", "16"]
    return [*words, "--objective", "robust_adv", "--log_with", "none", "--out", str(tmp_path / "run")]


def test_verbose_shows_what_the_library_logs_and_quiet_only_warnings(noted, capsys):
    code, _, err = atdm(capsys, *noted, "--verbose")
    assert code == 0
    assert re.search(r"^\d\d:\d\d:\d\d atdm\.training\.run: saved .*step-00000002$", err, re.MULTILINE)
    assert re.search(r"^\d\d:\d\d:\d\d atdm\.training\.run: exported ", err, re.MULTILINE)
    assert logging.getLogger("atdm").handlers == []
    code, _, err = atdm(capsys, *noted, "--steps", "3")
    assert code == 0
    assert "atdm.training" not in err
    code, _, err = atdm(capsys, *noted, "--quiet", "--verbose")
    assert (code, err) == (2, "atdm: Got --quiet and --verbose. Expected one of them.\n")


def test_quiet_keeps_warnings(capsys, monkeypatch):
    from atdm.cli import show

    monkeypatch.setattr(show, "_radius", lambda given: warnings.warn("mind this", stacklevel=1) or {"out": "x"})
    with pytest.warns(UserWarning, match="mind this"):
        assert atdm(capsys, "show", "radius", "--quiet")[0] == 0


def test_a_warning_is_a_sentence_without_code(capsys, monkeypatch):
    from atdm.cli import show

    text = "mind \x1b[31mthis"
    monkeypatch.setattr(show, "_radius", lambda given: warnings.warn(text, stacklevel=1) or {"out": "x"})
    before = warnings.formatwarning
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = lambda message, kind, *where, **_: sys.stderr.write(
            warnings.formatwarning(message, kind, *where)
        )
        code, _, err = atdm(capsys, "show", "radius", "--quiet")
    assert (code, err) == (0, "mind \\x1b[31mthis\n")
    assert warnings.formatwarning is before


def test_the_library_logs_and_does_not_print():
    from pathlib import Path

    import atdm as package

    source = Path(package.__file__).parent
    printing = {
        str(path.relative_to(source))
        for path in source.rglob("*.py")
        if path.parent.name != "cli" and re.search(r"(?<![\w.])print\(", path.read_text())
    }
    assert printing == {"objective/auto.py"}, "a person's own loop has no other place where auto's choice is said"


def test_the_device_is_hidden_from_torch_and_shown_again(monkeypatch, capsys):
    import torch

    monkeypatch.setenv(HIDDEN, "1")
    HABITS.begin({"device": "cpu"})
    assert os.environ[HIDDEN] == ""
    HABITS.end()
    assert os.environ[HIDDEN] == "1"
    HABITS.end()
    assert os.environ[HIDDEN] == "1", "only what it changed"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    code, _, err = atdm(capsys, "show", "radius", "--device", "cuda")
    assert (code, err) == (2, "atdm: There is no CUDA device here. Expected --device cpu or auto.\n")
    code, _, err = atdm(capsys, "show", "radius", "--device", "gpu")
    assert code == 2
    assert "Valid: auto, cpu, cuda." in err
