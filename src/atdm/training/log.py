"""What a run logs: JSON lines."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..files import checked, read_lines, write_text
from .callbacks import Callback
from .state import Step

WRITTEN = "what atdm train wrote, a JSON object on each line; without that file training goes on, and logs anew"


class Log(Callback):
    """The log of a run that is at step ``done``: what an interrupted run logged after its last checkpoint is dropped.

    Raises:
        UserError: the log there is damaged.
    """

    def __init__(self, folder: Path, done: int) -> None:
        path = folder / "log.jsonl"
        if path.is_file():
            kept = [line for line in _lines(path) if line["step"] <= done]
            write_text(path, "".join(json.dumps(line) + "\n" for line in kept))
        self.lines = open(path, "a", buffering=1, encoding="utf-8")  # noqa: SIM115 (closed by close)

    def on_log(self, step: Step, scalars: dict[str, float]) -> None:
        self.lines.write(json.dumps({"step": step.index, **scalars}) + "\n")

    def close(self) -> None:
        """Close the file."""
        self.lines.close()


def read_log(folder: Path) -> list[dict[str, Any]]:
    """The log lines of a run; a last line that is being written is left out.

    Raises:
        UserError: the run has no log, or it is damaged.
    """
    path = folder / "log.jsonl"
    if not path.is_file():
        raise UserError(f"{folder} has no log.jsonl. Expected a run folder that atdm train wrote.")
    return _lines(path)


def _lines(path: Path) -> list[dict[str, Any]]:
    lines = read_lines(path, {"step": int}, WRITTEN)
    for number, line in enumerate(lines, 1):
        checked(line, dict.fromkeys(line, float), path, WRITTEN, f"line {number}: ")
    return lines


def training_seconds(log: Sequence[Mapping[str, float]], batch_size: int) -> float | None:
    """Of a run, from the speed that was logged; the first steps of a log line count as fast as its last one."""
    before, total = 0.0, 0.0
    for record in log:
        total += (record["step"] - before) * batch_size / record["samples_per_second"]
        before = record["step"]
    return total or None
