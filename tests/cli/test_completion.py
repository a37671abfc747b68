"""Tab completion: the script of a shell completes commands, options and choices; without shtab a sentence."""

import subprocess
import sys

import pytest

from helpers import atdm


def test_bash_completes_commands_options_choices_and_parts(tmp_path, capsys):
    code, script, _ = atdm(capsys, "--print_shtab=bash")
    assert code == 0
    (tmp_path / "script").write_text(script)

    def completed(*words):
        line = f'source ./script; COMP_WORDS=({" ".join(words)}); COMP_CWORD={len(words) - 1}; _shtab_atdm; echo "${{COMPREPLY[@]}}"'
        done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, cwd=tmp_path, check=True)
        return set(done.stdout.split())

    assert completed("atdm", "re") == {"report", "restore", "reproduce"}
    assert completed("atdm", "train", "--log_") == {"--log_every", "--log_with"}
    assert completed("atdm", "train", "--objective.st") == {"--objective.start", "--objective.steps"}
    assert completed("atdm", "train", "--precision", "b") == {"bf16"}
    assert completed("atdm", "show", "r") == {"radius", "run"}
    assert completed("atdm", "show", "radius", "--om") == {"--omegas"}
    assert completed("atdm", "audit", "scr") == {"script"}, "files"


@pytest.mark.parametrize("words", [["--print_shtab"], ["--print_shtab=fisch"], ["--print_shtab", "fisch"]])
def test_another_shell_is_refused(words, capsys):
    code, out, err = atdm(capsys, *words)
    assert (code, out) == (2, "")
    assert "Unknown shell" in err
    assert "bash, fish" in err


def test_without_shtab_a_sentence(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "shtab", None)
    code, out, err = atdm(capsys, "--print_shtab=bash")
    assert (code, out) == (2, "")
    assert err == "atdm: This needs the package shtab, which is not installed. Expected: pip install 'atdm[all]'.\n"
