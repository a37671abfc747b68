"""``atdm bench``: what a training step costs, objective by objective, beside diffusers' own example."""

from __future__ import annotations

from typing import Any

from ..training.bench_options import Options
from .common import Printing, answered, print_table, silent
from .parser import make_parser
from .progress import progress_bar

PASSES = ("forwards", "backwards", "input_backwards")


def run(words: list[str]) -> None:
    given = make_parser("bench", Options, Printing).parse_args(words)
    from ..training import bench

    options = Options(**{name: given[name] for name in Options.__dataclass_fields__})
    with progress_bar(silent(given)) as bar:
        task = bar.add_task("bench", total=None, note="")
        found = bench.measure(options, lambda note: bar.update(task, note=note))
    if answered(given, found):
        return
    made = found["provenance"]
    print_table(
        f"A training step of {made['net']} ({made['parameters']:,} parameters), {made['batch_size']} items of "
        f"{made['shape']}: medians of {made['rounds']} rounds",
        [_row(name, found) for name in found["ratio"]],
    )
    print(
        "Passes per sample: forward + backward + backward to the input only. Floor: what they alone would cost over\n"
        f"ddpm's, counting 1, 2 and 1. Time over ddpm: of the {made['clock']}. Memory: of tensors.\n"
        f"{made['flops_per_forward'] / 1e9:.3g} GFLOP per forward pass; {made['threads']} threads; {made['device']}; torch {made['versions']['torch']}; load {made['load']:.1f}."
    )


def _row(name: str, found: dict[str, Any]) -> dict[str, Any]:
    passes = found["passes"].get(name, {})
    return {
        "step": name,
        "over ddpm": f"{found['ratio'][name]:.2f}",
        "floor": f"{found['floor'][name]:.2f}" if name in found["floor"] else None,
        "samples/s": f"{found['samples_per_second'][name]:,.0f}",
        "memory, MB": f"{found['peak_memory'][name] / 1e6:,.1f}",
        "passes": " + ".join(f"{passes[what]:.3g}" for what in PASSES) if passes else None,
    }
