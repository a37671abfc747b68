"""``atdm compare``: measured runs side by side, ranked where their numbers were made alike; or objectives, trained alike."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..text import markdown, plain
from .common import Printing, answered, destination, print_table, seeds_of, silent
from .parser import make_parser, positional
from .progress import jobs_bar


@dataclass(frozen=True)
class Options(Printing):
    """What is compared.

    Args:
        results: files that atdm evaluate --out wrote, or run folders with a metrics.json.
        unranked: also list numbers that were made differently, with what differs; they are not ranked.
        train: train objectives and compare them, instead of results: such as ddpm,auto,auto:k=5, or all; on the same noisy data
            with the same compute.
        data: with --train: digits, plane, images, or subspace:IMAGES (projected onto a subspace); null: digits and plane.
        corrupt: with --train: corruptions, such as gaussian:share=0.9,std=0.2 jpeg:quality=10; by default those of the benchmark.
        scale: with --train: smoke, cpu or paper, as of atdm reproduce.
        seed: with --train: seed of data, training and sampling.
        seeds: with --train: several seeds, such as 0,1,2; null: --seed alone.
        store: with --train: folder that keeps the outcome of each training: an interrupted comparison goes on, and objectives or
            seeds can be added; atdm reproduce baselines has one, OUT/baselines/jobs.
        executor: with --train: where the trainings run: local, dask=tcp://HOST:PORT or slurm:partition=NAME; --store must then be on
            a disk that all machines see.
        out: write the table to this .md file.
    """

    results: list[str] = positional("*", ())
    unranked: bool = False
    train: str | None = None
    data: str | None = None
    corrupt: list[str] = field(default_factory=list)
    scale: str = "cpu"
    seed: int = 0
    seeds: str | None = None
    store: str | None = None
    executor: str = "local"
    out: str | None = None


def run(words: list[str]) -> None:
    given = make_parser("compare", Options).parse_args(words)
    out = destination(given.out, ".md") if given.out else None
    if given.store and given.train is None:
        raise UserError("--store is for what --train finds. Expected both, or neither.")
    if given.train is not None:
        _trained(given, out)
        return
    from .. import metrics
    from ..files import write_text

    sources = _sources(given.results)
    if len(sources) < 2:
        raise UserError(f"Got the results of {len(sources)} model. Expected two or more to compare.")
    found = metrics.compare(sources)
    notes = _in_words(found.differences)
    if notes and not given.unranked:
        lines = [f"  {line}" for line in notes]
        if any(d.field == "reference_kind" for d in found.differences):
            lines.append(metrics.LEFT_TO_DO)
        lines.append("Expected numbers made alike: evaluate again with the same options, or list them with --unranked.")
        raise UserError("These numbers cannot be ranked:", lines=lines)
    table = _table(found)
    if out:
        write_text(out, _markdown(table, notes))
    differences = [{"metric": d.metric, "field": d.field, "values": d.values} for d in found.differences]
    if answered(given, {"table": found.table, "ranks": found.ranks, "differences": differences}):
        return
    print_table("mean (std over sampling seeds), rank", table)
    for note in notes:
        print(plain(note))
    if out:
        print(f"The table is in {out}.")


def _trained(given: Any, out: Path | None) -> None:
    """Train the objectives and print one table per benchmark."""
    from ..experiments import baselines
    from ..experiments.runner.reproduce import find
    from ..files import write_text
    from ..report import markdown

    if given.results:
        raise UserError("Got results and --train. Expected one of them: what was measured, or what is to be trained.")
    seeds, store = seeds_of(given), destination(given.store) if given.store else None
    methods = [*baselines.OBJECTIVES] if given.train == "all" else given.train.split(",")
    with jobs_bar("compare", silent(given)) as progress:
        found = find(
            "baselines",
            given.scale,
            seeds,
            given.data,
            store,
            progress,
            given.executor,
            objectives=methods,
            corruptions=given.corrupt,
        )
    text = "\n\n".join([*map(markdown, found.tables), found.paragraph()])
    if out:
        write_text(out, text)
    if answered(given, {"rows": found.rows, "claims": [vars(claim) for claim in found.claims]}):
        return
    print(text)
    if out:
        print(f"The tables are in {out}.")


def _sources(paths: list[str]) -> dict[str, list[dict[str, Any]]]:
    """Rows by source: a file is called by its path, and where it holds several models also by their names."""
    from .. import metrics

    sources: dict[str, list[dict[str, Any]]] = {}
    for path in dict.fromkeys(paths):
        rows = metrics.read_rows(Path(path))
        made: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
        for row in rows:
            made.setdefault((row.get("model"), row.get("checkpoint"), row.get("stop_ratio")), []).append(row)
        for (model, checkpoint, stop), theirs in made.items():
            name = path if len(made) == 1 else f"{path}:{model or checkpoint}{f' stopped at {stop}' if stop else ''}"
            sources[name] = theirs
    return sources


def _table(found: Any) -> list[dict[str, Any]]:
    """A line for each metric, a column for each source."""
    from .. import metrics

    names = dict.fromkeys(name for entries in found.table.values() for name in entries)
    lines = []
    for name in names:
        line: dict[str, Any] = {"metric": metrics.label(name), "better": metrics.metric(name).better}
        for source, entries in found.table.items():
            entry = entries.get(name)
            text = "" if entry is None else "not finite" if entry["mean"] is None else f"{entry['mean']:.4g}"
            if entry and entry["std"] is not None:
                text += f" ({entry['std']:.2g})"
            if name in found.ranks:
                text += f", {found.ranks[name][source]}" if source in found.ranks[name] else ""
            line[source] = text
        lines.append(line)
    return lines


def _in_words(differences: list[Any]) -> list[str]:
    """The differences, each once: most are the same for all metrics."""
    from .. import metrics

    grouped: dict[tuple[str, str], list[str]] = {}
    for d in differences:
        values = "; ".join(f"{source}: {value}" for source, value in d.values.items())
        grouped.setdefault((d.word, values), []).append(metrics.label(d.metric))
    return [
        f"{word} ({values}) in {', '.join(names[:4])}{' and more' if len(names) > 4 else ''}"
        for (word, values), names in grouped.items()
    ]


def _markdown(table: list[dict[str, Any]], notes: list[str]) -> str:
    columns = list(table[0])
    lines = ["| " + " | ".join(map(markdown, columns)) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(markdown(str(line[c])) for c in columns) + " |" for line in table]
    notes = ["Mean (std over sampling seeds), rank.", *(f"Not ranked: {markdown(note)}." for note in notes)]
    return "\n".join([*lines, "", *notes, ""])
