"""The benchmark: what it counts, what it prints, and that time is shared fairly."""

import itertools
import json
from types import SimpleNamespace

import pytest
import torch

from atdm import cli
from atdm.errors import UserError
from atdm.objective import BASELINES, KINDS
from atdm.training.bench import AUTO, EXAMPLE, HALF, Options, _Loop, _peak, measure


def test_the_threads_are_those_of_before(monkeypatch):
    monkeypatch.setattr("atdm.training.bench._measured", lambda *_: {"threads": torch.get_num_threads()})
    assert (measure(Options(threads=2)), torch.get_num_threads()) == ({"threads": 2}, 1)


@pytest.mark.parametrize("baselines", [False, True])
def test_every_objective_and_the_example_are_measured(baselines, capsys):
    cli_words = [
        "bench",
        "--net",
        "mlp:width=16",
        "--batch_size",
        "8",
        "--seconds",
        "0",
        "--baselines",
        str(baselines),
        "--json",
    ]
    with pytest.raises(SystemExit) as end:
        cli.main(cli_words)
    assert end.value.code == 0
    found = json.loads(capsys.readouterr().out)
    everyone = {*KINDS, AUTO, HALF, EXAMPLE}
    if baselines:
        # The others need images, or items of 12 values or more.
        everyone |= {*BASELINES} - {"ambient_blind", "ambient_consistent", "masked", "sfbd"}
    for what in ("ratio", "samples_per_second", "peak_memory"):
        assert found[what].keys() == everyone
        assert all(value > 0 for value in found[what].values())
    assert found["ratio"]["ddpm"] == 1
    assert found["floor"]["robust_adv"] == pytest.approx(8 / 3)
    assert found["floor"][HALF] == pytest.approx((1 + 8 / 3) / 2)
    assert found["passes"]["robust_adv"] == {"forwards": 3, "backwards": 2, "input_backwards": 1}
    assert found["provenance"]["rounds"] == 1
    assert found["peak_memory"]["robust_rand"] > found["peak_memory"]["ddpm"]
    assert found["peak_memory"]["auto"] > found["peak_memory"]["ddpm"]  # that of a step that pushes


def test_the_rounds_fill_the_time_and_do_not_exceed_it(monkeypatch):
    """Against a clock that moves by 10 ms each time it is looked at."""
    ticks = itertools.count()
    clock = SimpleNamespace(perf_counter=lambda: next(ticks) / 100, process_time=lambda: next(ticks) / 100)
    monkeypatch.setattr("atdm.training.bench.time", clock)
    found = measure(Options("mlp:width=16", batch_size=8, seconds=2.0, device="cpu"))["provenance"]
    assert found["rounds"] > 3
    assert found["measured_seconds"] < 2.1
    again = measure(Options("mlp:width=16", batch_size=8, seconds=4.0, device="cpu"))["provenance"]
    assert again["rounds"] > 1.8 * found["rounds"]


def test_peak_memory_counts_the_kept_and_the_most_that_a_step_adds():
    kept = torch.zeros(1000)

    def steps():
        while True:
            first = torch.zeros(5000)
            second = first + 1  # 40,000 bytes live here
            del first
            third = second.sum()
            del second
            yield third

    loop = _Loop(steps(), lambda: [kept, kept[:10]])
    next(loop.steps)
    assert _peak(loop, torch.device("cpu")) == pytest.approx(4000 + 40_000, abs=200)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"shape": "3 by 4"}, "Cannot read the shape"),
        ({"device": "gpu"}, "device is 'gpu'"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"net": "mpl"}, "Did you mean 'mlp'"),
    ],
)
def test_mistakes_are_sentences(options, words):
    with pytest.raises(UserError, match=words):
        Options(**options).item_shape()
