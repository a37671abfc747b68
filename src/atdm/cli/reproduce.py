"""``atdm reproduce``: published results by name, and their counterparts here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..errors import UserError, require_known
from .common import Printing, answered, destination, seeds_of, silent
from .parser import make_parser, positional
from .progress import jobs_bar


@dataclass(frozen=True)
class Options(Printing):
    """Which results.

    Args:
        name: an experiment, or all; without a name they are listed.
        scale: smoke: seconds, everything runs and nothing is learned; cpu: minutes to an hour on two cores; paper: larger
            networks and longer training, for a GPU.
        out: folder in which each experiment has its own, one for each --data; it keeps the outcome of each training: an
            interrupted run goes on, and seeds can be added.
        seed: seed of data, training and sampling.
        seeds: several seeds, such as 0,1,2; tables then give mean ± std; null: --seed alone.
        data: image data set instead of the published one, for the experiments that take one.
        pages: also write a page of each result in --out to this folder: Markdown, JSON, small pictures, and an index.
        executor: where the trainings run: local, dask=tcp://HOST:PORT or slurm:partition=NAME; --out must then be on a disk that
            all machines see.
        json: print the numbers as JSON.
    """

    name: str | None = positional("?", None)
    scale: str = "cpu"
    out: str = "reproduce"
    seed: int = 0
    seeds: str | None = None
    data: str | None = None
    pages: str | None = None
    executor: str = "local"


def run(words: list[str]) -> None:
    from ..experiments import EXPERIMENTS, SCALES, entry, folder_of
    from ..experiments.runner.page import write_pages

    given = make_parser("reproduce", Options).parse_args(words)
    pages = destination(given.pages) if given.pages else None
    if given.name is None and pages is not None:
        shown = write_pages(Path(given.out), pages)
        if not answered(given, shown):
            print(f"{pages} shows {', '.join(shown)}.")
        return
    if given.name is None:
        summaries, width = {name: e.summary for name, e in EXPERIMENTS.items()}, max(map(len, EXPERIMENTS)) + 2
        if not answered(given, summaries):
            print("\n".join(f"{name:<{width}}{summary}" for name, summary in summaries.items()))
        return
    names = [*EXPERIMENTS] if given.name == "all" else [given.name]
    entries = {name: entry(name) for name in names}
    require_known("scale", given.scale, SCALES)
    seeds = seeds_of(given)
    takers = [name for name, e in entries.items() if e.data is not None]
    if given.data is not None and not takers:
        takes = ", ".join(name for name, e in EXPERIMENTS.items() if e.data is not None)
        raise UserError(f"The experiment {given.name} is about its own data. Expected no --data, or one of {takes}.")

    from ..experiments.runner.reproduce import run as reproduce

    out, numbers = destination(given.out), {}
    for name in names:
        data = given.data if name in takers else None
        with jobs_bar(name, silent(given)) as progress:
            found = reproduce(name, out, given.scale, seeds, data, progress, given.executor)
        folder = out / folder_of(name, data)
        numbers[name] = found.numbers()
        if not given.json:
            print(f"{name}\n\n{found.paragraph()}")
            print(f"The report is {folder / 'report.html'}; figures and numbers.json are beside it.\n")
    if pages is not None:
        write_pages(out, pages)
    answered(given, numbers if given.name == "all" else numbers[given.name])
