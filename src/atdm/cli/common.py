"""What the commands share: options with sentences for errors, drawing samples, progress and tables."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NoReturn

from ..errors import UserError, nearest

SUMMARY = {
    "train": "train a model in a run folder, or resume it",
    "sample": "draw samples from a run or any diffusers pipeline",
    "evaluate": "measure samples against clean data",
    "compare": "put measured runs side by side, and rank what was made alike",
    "features": "train a small feature network on clean images, for metrics offline",
    "corrupt": "write a corrupted data set and its truth",
    "reproduce": "published results by name, and their counterparts here",
    "demo": "the method on toys and digits, ending in a report",
    "bench": "the cost of a training step, beside diffusers' own",
    "show": "draw the perturbation radius, or the curves of a run",
}


def make_parser(command: str) -> Any:
    from jsonargparse import ArgumentParser

    class Parser(ArgumentParser):
        def error(self, message: str, ex: Exception | None = None) -> NoReturn:
            raise UserError(_explain(message, self))

    return Parser(prog=f"atdm {command}", description=SUMMARY[command], allow_abbrev=False)


def _options(parser: Any) -> list[str]:
    return sorted({s[2:] for a in parser._actions for s in a.option_strings if s.startswith("--")})


def _explain(message: str, parser: Any) -> str:
    """One sentence for what the option parser found, with the nearest valid choice."""
    text = " ".join(message.split())
    unknown = re.search(r"[Uu]nrecognized arguments: --([\w.\-]+)", text) or re.search(
        r"Option '([\w.\-]+)' is not accepted", text
    )
    if unknown:
        return f"Unknown option '{unknown[1]}'. {nearest(unknown[1], _options(parser))}"
    kind = re.search(r"[Pp]arser key \"([\w.]+)\": Expected a <class '(\w+)'>\. Got value: (\S+)", text)
    if kind:
        return f"The option {kind[1]} is '{kind[3]}'. Expected {'an integer' if kind[2] == 'int' else 'a ' + kind[2]}."
    kind = re.search(r"[Pp]arser key \"([\w.]+)\": Does not validate .*?\[<class '(\w+)'>.*Given value: (\S+)", text)
    if kind:
        return f"The option {kind[1]} is '{kind[3]}'. Expected {'an integer' if kind[2] == 'int' else 'a ' + kind[2]} or null."
    return text


def draw(given: Any) -> tuple[Any, dict[str, Any]]:
    import torch

    from ..checkpoint import load_pipeline, load_raw, weights_hash
    from ..sample import sample

    net, process, clip = load_pipeline(given.model)
    if getattr(given, "weights", None) == "raw":
        load_raw(Path(given.model), net)
    shape = _item_shape(net)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with progress_bar(False) as bar:
        task = bar.add_task("sampling", total=None, note="")
        drawn = sample(
            net.to(device),
            process,
            given.n,
            shape,
            batch_size=given.batch_size,
            sampler=given.sampler,
            steps=given.steps,
            seed=given.seed,
            stop_ratio=given.stop_ratio,
            clip_sample=clip,
            device=device,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    made = {
        "checkpoint": weights_hash(net),
        "sampler": given.sampler,
        "steps": given.steps,
        "seed": given.seed,
        "clip_sample": clip,
    }
    return drawn, made


def _item_shape(net: Any) -> tuple[int, ...]:
    size = net.config["sample_size"]
    return (net.config["in_channels"], *((size, size) if isinstance(size, int) else tuple(size or ())))


def progress_bar(hidden: bool) -> Any:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns: list[Any] = [
        "[progress.description]{task.description}",
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        "<",
        TimeRemainingColumn(),
    ]
    return Progress(*columns, TextColumn("{task.fields[note]}"), console=Console(stderr=True), disable=hidden)


def decoding(bar: Any) -> Any:
    """A callback that shows the decoding of images on ``bar`` from when it begins until it ends."""
    tasks: list[Any] = []

    def show(done: int, total: int) -> None:
        if not tasks:
            tasks.append(bar.add_task("decoding images", total=total, note=""))
        bar.update(tasks[0], completed=done, total=total)
        if done >= total:
            bar.remove_task(tasks.pop())

    return show


def print_table(title: str, rows: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for name in rows[0]:
        table.add_column(name, justify="left" if isinstance(rows[0][name], str) else "right")
    for row in rows:
        table.add_row(*(f"{v:.4g}" if isinstance(v, float) else "" if v is None else str(v) for v in row.values()))
    Console().print(table)
