"""Progress where there is no terminal: plain lines, now and then, and never with --quiet or --json."""

import pytest

from atdm.cli import progress
from helpers import atdm

TRAIN = ["train", "--data", "plane:n=200", "--net", "mlp:width=16", "--batch_size", "16", "--log_every", "5"]


@pytest.fixture
def clock(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_a_line_at_the_beginning_every_half_minute_and_at_the_end(capsys, clock):
    with progress.progress_bar(False) as bar:
        assert isinstance(bar, progress.Lines)
        task = bar.add_task("learning", total=100, note="")
        for step in range(1, 101):
            clock[0] += 1
            bar.update(task, completed=step, note=f"loss {step}")
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 5
    assert lines[0] == "learning: begins, 100 in all"
    for text, step in zip(lines[1:], (30, 60, 90, 100), strict=True):
        assert text.startswith(f"learning: {step} of 100 ({step} %), ")
        assert text.endswith(f", loss {step}")


@pytest.mark.parametrize("terminal", [False, True])
def test_text_in_a_bar_is_text(capsys, monkeypatch, terminal):
    """What a user named controls no terminal and starts no markup."""
    monkeypatch.setenv("FORCE_COLOR", "1") if terminal else None
    with progress.progress_bar(False) as bar:
        progress.say(bar.console, "\u202e[/b]")
        bar.add_task("\x1b[5mblink[/b]", total=2, note="\x1b[6m[bold]note")
    err = capsys.readouterr().err
    assert isinstance(bar, progress.Lines) != terminal
    assert "\\u202e[/b]" in err
    assert "\\x1b[5mblink[/b]" in err
    assert "\x1b[5m" not in err
    assert "\x1b[6m" not in err


def test_a_stage_in_which_nothing_moves_is_heard_of_every_minute(capsys, clock):
    with progress.progress_bar(False) as bar:
        bar.get_time = lambda: clock[0]
        task = bar.add_task("learning", total=100, note="")
        clock[0] += 44
        bar._remind()
        assert capsys.readouterr().err == "learning: begins, 100 in all\n"
        clock[0] += 2
        bar._remind()
        bar._remind()
        assert capsys.readouterr().err == "learning: began 0:00:46 ago, 100 in all\n"
        bar.update(task, completed=100)
        clock[0] += 100
        bar._remind()
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert bar._ended.is_set()


def test_what_follows_the_last_step_is_heard_of_every_minute(capsys, clock):
    with progress.progress_bar(False) as bar:
        bar.get_time = lambda: clock[0]
        task = bar.add_task("learning", total=100, note="")
        progress.note(bar, "Reading.")
        clock[0] += 44
        bar.update(task, completed=100)
        progress.note(bar, "Exporting the model.")
        capsys.readouterr()
        for _ in range(2):
            clock[0] += 46
            bar._remind()
            bar._remind()
    said = ["Exporting the model: began 0:00:46 ago", "Exporting the model: began 0:01:32 ago"]
    assert capsys.readouterr().err.splitlines() == said


def test_a_stage_that_ends_early_says_how_far_it_came(capsys, clock):
    with progress.progress_bar(False) as bar:
        task = bar.add_task("a [/b] name", total=None, note="")
        bar.advance(task, 3)
    first, last = capsys.readouterr().err.splitlines()
    assert first == "a [/b] name: begins"
    assert last.startswith("a [/b] name: 3, ")


def test_a_stage_that_ends_and_goes_leaves_the_others(capsys, clock):
    with progress.progress_bar(False) as bar:
        show = progress.preparing(bar)
        show(1, 2)
        show(2, 2)
        assert bar.tasks == []
    assert [text.split(",")[0] for text in capsys.readouterr().err.splitlines()] == [
        "preparing images: begins",
        "preparing images: 2 of 2 (100 %)",
    ]


def test_a_training_says_what_it_does_and_from_where_it_goes_on(capsys, tmp_path):
    words = [*TRAIN, "--out", str(tmp_path / "run")]
    code, _, err = atdm(capsys, *words, "--steps", "10", "--objective", "robust_adv")
    assert code == 0
    assert "robust_adv: begins, 10 in all" in err
    assert "10 of 10 (100 %)" in err
    assert "Exporting the model" in err
    code, _, err = atdm(capsys, *words, "--steps", "15")
    assert code == 0
    assert "Training goes on from step 10 of 15." in err


@pytest.mark.parametrize("silence", ["--quiet", "--json"])
def test_silence(capsys, tmp_path, silence):
    code, _, err = atdm(capsys, *TRAIN, "--steps", "5", "--out", str(tmp_path / "run"), silence)
    assert code == 0
    assert "begins" not in err
    code, _, err = atdm(
        capsys,
        "sample",
        str(tmp_path / "run"),
        "--n",
        "4",
        "--sampling_steps",
        "2",
        "--out",
        str(tmp_path / "x.npz"),
        silence,
    )
    assert code == 0
    assert err == ""
