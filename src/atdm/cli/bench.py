"""``atdm bench``: what a training step costs, objective by objective, beside diffusers' own example."""

from __future__ import annotations

import json
from typing import Any

from .common import make_parser, print_table, progress_bar

PASSES = ("forwards", "backwards", "input_backwards")


def run(words: list[str]) -> int:
    parser = make_parser("bench")
    parser.add_argument("--net", type=str, default="digits", help="such as mlp:width=128, digits, tiny or cifar10")
    parser.add_argument(
        "--shape", type=str | None, default=None, help="of an item, as in 3x16x16; null: usual of the net"
    )
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=30.0, help="how long to measure")
    parser.add_argument("--precision", type=str, default="no", help="no, bf16 or fp16")
    for switch in ("channels_last", "compile", "gradient_checkpointing"):
        parser.add_argument(f"--{switch}", type=bool, default=False, help="as in training")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0 leaves it to torch")
    parser.add_argument("--device", type=str, default="auto", help="cpu, cuda or auto")
    parser.add_argument("--gate", type=float, default=0.4, help="of auto; it chooses 0.4 for noise of std 0.2")
    parser.add_argument("--rivals", type=bool, default=False, help="measure the rivals too, in half as many rounds")
    parser.add_argument("--json", action="store_true", help="print JSON")
    given = parser.parse_args(words)
    from ..training import bench

    options = bench.Options(**{name: given[name] for name in bench.Options.__dataclass_fields__})
    with progress_bar(given.json) as bar:
        task = bar.add_task("bench", total=None, note="")
        found = bench.measure(options, lambda note: bar.update(task, note=note))
    if given.json:
        print(json.dumps(found))
        return 0
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
    return 0


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
