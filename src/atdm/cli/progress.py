"""How far the work is: a bar on a terminal; elsewhere, as in the log file of a job, a plain line now and then."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from ..text import plain

EVERY = 30.0  # seconds between plain lines
LATEST = 45.0  # seconds without one after which it comes although the work has not moved


class Screen(Console):
    """A console whose lost reader ends a progress bar but not the work, and a table as it ends what Python prints."""

    def on_broken_pipe(self) -> None:
        if not self.stderr:
            raise BrokenPipeError
        self.quiet = True


def say(console: Console, text: str) -> None:
    """Print a line of text as it is."""
    console.print(plain(text), markup=False, highlight=False, soft_wrap=True)


class Words(TextColumn):
    """A column of a bar that shows text as it is."""

    def render(self, task: Task) -> Text:
        """Its text about ``task``."""
        return Text(plain(self.text_format.format(task=task)), style=self.style)


class Lines(Progress):
    """Without a terminal: a line when a stage begins and when it ends, and one every ``EVERY`` seconds between.

    Where nothing moves, as while data are read, a thread says after ``LATEST`` seconds how long that has been so.
    """

    def __init__(self, *columns: Any, **options: Any) -> None:
        super().__init__(*columns, **options)
        self._said: dict[Any, tuple[float, float]] = {}  # when each task spoke last, and how far it was
        self._stage = ("", 0.0, 0.0)  # what was noted last, when, and when it was said last
        self._ended = threading.Event()

    def start(self) -> None:
        """Nothing is drawn again and again."""
        if not self.disable:
            threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while not self._ended.wait(1.0):
            self._remind()

    def _remind(self) -> None:
        waiting = [task for task in self.tasks if not task.finished and task.id in self._said]
        for task in waiting:
            if time.monotonic() - self._said[task.id][0] >= LATEST:
                self._say(task)
        stage, begun, said = self._stage
        if stage and not waiting and time.monotonic() - said >= LATEST and not self.disable:
            self._stage = (stage, begun, time.monotonic())
            say(self.console, f"{stage.rstrip('.')}: began {_clock(time.monotonic() - begun)} ago")

    def note(self, text: str) -> None:
        """Remember what was said beside the tasks, to repeat it while nothing else moves."""
        self._stage = (text, time.monotonic(), time.monotonic())

    def stop(self) -> None:
        self._ended.set()
        for task in self.tasks:
            if self._said[task.id][1] != task.completed:
                self._say(task)

    def add_task(self, *given: Any, **options: Any) -> Any:
        name = super().add_task(*given, **options)
        self._say(self._tasks[name])
        return name

    def update(self, task_id: Any, **changes: Any) -> None:
        super().update(task_id, **changes)
        self._listen(self._tasks[task_id])

    def advance(self, task_id: Any, advance: float = 1) -> None:
        super().advance(task_id, advance)
        self._listen(self._tasks[task_id])

    def _listen(self, task: Task) -> None:
        when, where = self._said[task.id]
        if time.monotonic() - when >= EVERY or (task.finished and where != task.completed):
            self._say(task)

    def _say(self, task: Task) -> None:
        self._said[task.id] = (time.monotonic(), task.completed)
        if not self.disable:
            say(self.console, line(task))


def note(bar: Progress, text: str) -> None:
    """Say on ``bar`` what is done now, apart from its tasks."""
    say(bar.console, text)
    if isinstance(bar, Lines):
        bar.note(text)


def line(task: Task) -> str:
    """A stage in words: ``robust_adv: 1200 of 4000 (30 %), 0:00:35 so far, 0:01:22 left, loss 0.1234``."""
    since = round(task.elapsed or 0)
    parts = [f"{task.completed:g}" if task.completed else "begins" if since < EVERY else f"began {_clock(since)} ago"]
    if task.completed and task.total:
        parts[0] += f" of {task.total:g} ({task.percentage:.0f} %)"
    elif task.total:
        parts[0] += f", {task.total:g} in all"
    if task.completed:
        parts.append(f"{_clock(task.elapsed)} so far")
        if task.time_remaining and not task.finished:
            parts.append(f"{_clock(task.time_remaining)} left")
    note = " ".join(str(task.fields.get("note", "")).split())
    return f"{task.description}: {', '.join([*parts, *([note] if note else [])])}"


def _clock(seconds: float | None) -> str:
    minutes, second = divmod(round(seconds or 0), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{second:02d}"


def progress_bar(hidden: bool) -> Progress:
    """What shows how far the work is, on standard error."""
    console = Screen(stderr=True)
    columns: list[Any] = [
        Words("{task.description}", style="progress.description"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        "<",
        TimeRemainingColumn(),
        Words("{task.fields[note]}"),
    ]
    return (Progress if console.is_terminal else Lines)(*columns, console=console, disable=hidden)


def following(bar: Progress, name: str, total: int | None = None) -> Callable[[int, int], None]:
    """A callback that shows as a task on ``bar`` how many of how many are done."""
    task = bar.add_task(name, total=total, note="")
    return lambda done, total: bar.update(task, completed=done, total=total)


@contextmanager
def jobs_bar(name: str, hidden: bool) -> Iterator[Callable[[float, float, str], None]]:
    """What shows how far jobs are (:data:`atdm.pool.Progress`)."""
    with progress_bar(hidden) as bar:
        task = bar.add_task(name, total=None, note="")
        yield lambda done, total, label: bar.update(task, completed=round(done), total=max(1, round(total)), note=label)


def preparing(bar: Progress) -> Callable[[int, int], None]:
    """A callback that shows the decoding or encoding of images on ``bar`` from when it begins until it ends."""
    tasks: list[Any] = []

    def show(done: int, total: int) -> None:
        if not tasks:
            tasks.append(bar.add_task("preparing images", total=total, note=""))
        bar.update(tasks[0], completed=done, total=total)
        if done >= total:
            bar.remove_task(tasks.pop())

    return show
