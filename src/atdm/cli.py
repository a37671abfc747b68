"""The command line. Only this module and ``config`` read options; only this one prints."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from .config import ObjectiveConfig, TrainConfig
from .errors import UserError, nearest

SUMMARY = {
    "train": "train a model in a run folder, or resume it",
    "sample": "draw samples from a run or any diffusers pipeline",
    "evaluate": "measure samples against clean data",
    "corrupt": "write a corrupted data set and its truth",
    "demo": "the method on toys and digits, ending in a report",
    "show": "draw the perturbation radius, or the curves of a run",
}


def main(arguments: list[str] | None = None) -> None:
    """Run ``atdm``. Exits with 0, 2 after a mistake of the user's, or 130 after Ctrl-C."""
    words = sys.argv[1:] if arguments is None else arguments
    try:
        if not words or words[0] in ("-h", "--help"):
            print(_overview())
        elif words[0] == "--version":
            from . import __version__

            print(f"atdm {__version__}")
        elif words[0] not in SUMMARY:
            raise UserError(f"Unknown command '{words[0]}'. {nearest(words[0], SUMMARY)}")
        else:
            sys.exit(COMMANDS[words[0]](words[1:]))
    except UserError as problem:
        print(f"atdm: {problem}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("atdm: stopped.", file=sys.stderr)
        sys.exit(130)


def _overview() -> str:
    lines = ["usage: atdm COMMAND [options]", "", "Adversarial training for diffusion models.", "", "commands:"]
    lines += [f"  {name:<10}{what}" for name, what in SUMMARY.items()]
    return "\n".join([*lines, "", "atdm COMMAND --help tells the options of a command; atdm --version the version."])


def _parser(command: str) -> Any:
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
    return text


class _Stop:
    """Ctrl-C and SIGTERM, once, end the training after its step; a second time, at once."""

    def __init__(self) -> None:
        self.wished = False
        for name in (signal.SIGINT, signal.SIGTERM):
            signal.signal(name, self._wish)

    def _wish(self, *_: Any) -> None:
        if self.wished:
            raise KeyboardInterrupt
        self.wished = True

    def __call__(self) -> bool:
        return self.wished


def _train(words: list[str]) -> int:
    parser = _parser("train")
    parser.add_argument("--config", action="config")
    parser.add_class_arguments(TrainConfig, fail_untyped=False)
    parser.add_argument(
        "--dry-run", action="store_true", help="print the resolved configuration and its cost, and stop"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    given = parser.parse_args(words)
    names = [f.name for f in dataclasses.fields(TrainConfig) if f.name != "objective"]
    objective = given.objective
    objective = objective if isinstance(objective, ObjectiveConfig) else ObjectiveConfig(**vars(objective))
    config = TrainConfig(objective=objective, **{n: given[n] for n in names})
    from . import run

    if given.dry_run:
        parts = run.build(config)
        cost = run.estimate(config, parts)
        if given.json:
            print(json.dumps({"config": config.as_dict(), "cost": cost}, default=str))
        else:
            import yaml

            print(yaml.safe_dump(config.as_dict(), sort_keys=False))
            _table("cost", [{"what": k, "value": v} for k, v in cost.items()])
        return 0
    stop = _Stop()
    last = None
    main_process = os.environ.get("LOCAL_RANK", "0") == "0"
    with _progress(not main_process or given.json) as bar:
        task = bar.add_task(config.objective.name, total=config.steps, note="")
        for last in run.train(config, stop):
            note = f"loss {last.terms.loss.mean().item():.4f}  {last.samples / last.seconds:,.0f} samples/s"
            bar.update(task, completed=last.index, **({"note": note} if last.index % 10 == 0 else {}))
    if main_process:
        done: dict[str, Any] = {
            "run": config.out,
            "step": last.index if last else config.steps,
            "steps": config.steps,
            "model": f"{config.out}/model",
        }
        if given.json:
            print(json.dumps(done))
        elif stop.wished and done["step"] < config.steps:
            print(f"Stopped after step {done['step']} and saved; the same command goes on from there.")
        else:
            print(f"The model is in {config.out}/model, a diffusers pipeline. Next: atdm evaluate {config.out}")
    return 130 if stop.wished else 0


def _sample(words: list[str]) -> int:
    parser = _parser("sample")
    parser.add_argument("model", help="run folder, diffusers pipeline folder or Hub name")
    parser.add_argument("--n", type=int, default=64)
    parser.add_argument("--sampler", type=str, default="ddpm")
    parser.add_argument("--steps", type=int, default=250)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch_size", type=int, default=256)
    parser.add_argument(
        "--stop_ratio", type=float | None, default=None, help="stop at this sigma_t/alpha_t and return the denoised"
    )
    parser.add_argument("--out", type=str, default="samples.png", help=".png grid, .npz, or a folder of PNGs")
    given = parser.parse_args(words)
    from .sample import save_samples

    drawn, _ = _draw(given)
    path = save_samples(drawn, Path(given.out))
    print(f"{len(drawn)} samples are in {path}.")
    return 0


def _draw(given: Any) -> tuple[Any, dict[str, Any]]:
    import torch

    from .checkpoint import load_pipeline, weights_hash
    from .sample import sample

    net, process, clip = load_pipeline(given.model)
    shape = _item_shape(net)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with _progress(False) as bar:
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
    made = {"checkpoint": weights_hash(net), "sampler": given.sampler, "steps": given.steps, "seed": given.seed}
    return drawn, made


def _item_shape(net: Any) -> tuple[int, ...]:
    size = net.config["sample_size"]
    return (net.config["in_channels"], *((size, size) if isinstance(size, int) else tuple(size or ())))


def _evaluate(words: list[str]) -> int:
    parser = _parser("evaluate")
    parser.add_argument("model", help="run folder, or any diffusers pipeline together with --data")
    parser.add_argument(
        "--data", type=str | None, default=None, help="clean reference; default: the run's data before corruption"
    )
    parser.add_argument("--n", type=int, default=1000)
    parser.add_argument("--sampler", type=str, default="ddpm")
    parser.add_argument("--steps", type=int, default=250)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch_size", type=int, default=256)
    parser.add_argument("--stop_ratio", type=float | None, default=None)
    parser.add_argument("--features", type=str, default="pixels", help="feature space of the Frechet distance")
    parser.add_argument("--json", action="store_true", help="print JSON")
    given = parser.parse_args(words)
    from . import metrics
    from .checkpoint import read_config
    from .data import load

    options: dict[str, Any] = {}
    if given.data is None:
        stored = read_config(Path(given.model))
        given.data = stored["data"]
        options = {k: stored[k] for k in ("seed", "image_size", "limit", "skip_broken")}
    dataset = load(given.data, **options)
    drawn, made = _draw(given)
    reference = dataset.test if dataset.test is not None else dataset.x
    values = metrics.evaluate_samples(drawn, reference, dataset.truth, given.features, given.seed)
    provenance = metrics.Provenance(
        samples=len(drawn),
        reference=given.data,
        reference_hash=metrics.content_hash(reference),
        weights="ema",
        features=given.features if dataset.kind == "image" else None,
        **made,
    )
    rows = [metrics.Result(name, value, provenance).as_dict() for name, value in values.items()]
    if given.json:
        print(json.dumps({"rows": rows}))
    else:
        shown = [
            {"metric": n, "value": v, "better": metrics.metric(n).better, "meaning": metrics.metric(n).meaning}
            for n, v in values.items()
        ]
        _table(f"{given.model}: {len(drawn)} samples, {given.sampler}, {given.steps} steps, seed {given.seed}", shown)
    return 0


def _corrupt(words: list[str]) -> int:
    parser = _parser("corrupt")
    parser.add_argument("--data", type=str, required=True)
    parser.add_argument("--corrupt", type=str, required=True, help="such as gaussian:share=0.9,std=0.2")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--image_size", type=int | None, default=None)
    parser.add_argument("--limit", type=int | None, default=None)
    parser.add_argument("--skip_broken", type=bool, default=False)
    parser.add_argument("--out", type=str, required=True, help="folder for samples.npz, a preview and truth.npz")
    given = parser.parse_args(words)
    from .checkpoint import atomic
    from .corrupt import corrupt
    from .data import load
    from .sample import save_samples

    folder = Path(given.out)
    if folder.exists() and any(folder.iterdir() if folder.is_dir() else [folder]):
        raise UserError(f"{folder} is not empty. Expected a new or empty folder, so that nothing is overwritten.")
    dataset = load(
        given.data, seed=given.seed, image_size=given.image_size, limit=given.limit, skip_broken=given.skip_broken
    )
    dirty, truth = corrupt(dataset.x, given.corrupt, given.seed)
    with atomic(folder) as scratch:
        scratch.mkdir()
        save_samples(dirty, scratch / "samples.npz")
        truth.save(scratch / "truth.npz")
        if dataset.kind == "image":
            save_samples(dirty[:64], scratch / "preview.png")
    for note in dataset.notes:
        print(note)
    print(
        f"{len(dirty)} items, {int(truth.dirty.sum())} of them corrupted, are in {folder}; the truth is in {folder}/truth.npz."
    )
    return 0


def _show(words: list[str]) -> int:
    what = words[0] if words else ""
    if what not in ("radius", "run"):
        raise UserError(f"Cannot show '{what}'. {nearest(what, ['radius', 'run'])}")
    parser = _parser("show")
    if what == "run":
        parser.add_argument("run", help="run folder")
    else:
        parser.add_argument("--omegas", type=str, default="1,2,4", help="slopes of the ray, separated by commas")
        parser.add_argument("--process", type=str, default="linear")
    parser.add_argument("--out", type=str, default="ray.png" if what == "radius" else None)
    given = parser.parse_args(words[1:])
    from . import plot

    if what == "radius":
        try:
            omegas = [float(w) for w in given.omegas.split(",")]
        except ValueError:
            raise UserError(
                f"The omegas are '{given.omegas}'. Expected numbers separated by commas, such as 1,2,4."
            ) from None
        figure = plot.ray(TrainConfig(process=given.process).build_process(), omegas)
        path = Path(given.out)
    else:
        from .run import read_log

        figure = plot.run_curves(read_log(Path(given.run)))
        path = Path(given.out) if given.out else Path(given.run) / "curves.png"
    plot.save(figure, path)
    print(f"Drawn in {path}.")
    if what == "run":
        pictures = sorted((Path(given.run) / "samples").glob("*.png"))
        print(f"The newest samples are in {pictures[-1]}." if pictures else "There are no samples yet.")
    return 0


def _demo(words: list[str]) -> int:
    parser = _parser("demo")
    parser.add_argument("--out", type=str, default="demo")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="a tenth of the training, to see that everything works")
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    given = parser.parse_args(words)
    from .experiments import demo

    with _progress(given.json) as bar:
        task = bar.add_task("demo", total=None, note="")
        for done, total, label in demo.run(Path(given.out), given.seed, 0.1 if given.quick else 1.0):
            bar.update(task, completed=done, total=total, note=label)
    summary = json.loads((Path(given.out) / "summary.json").read_text())
    if given.json:
        print(json.dumps(summary))
    else:
        _table("demo", [{k: r.get(k) for k in demo.COLUMNS} for r in summary["rows"]])
        print(
            f"The report is {Path(given.out) / 'report.html'}, the numbers are in {Path(given.out) / 'summary.json'}."
        )
    return 0


def _progress(hidden: bool) -> Any:
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


def _table(title: str, rows: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for name in rows[0]:
        table.add_column(name, justify="left" if isinstance(rows[0][name], str) else "right")
    for row in rows:
        table.add_row(*(f"{v:.4g}" if isinstance(v, float) else "" if v is None else str(v) for v in row.values()))
    Console().print(table)


COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "train": _train,
    "sample": _sample,
    "evaluate": _evaluate,
    "corrupt": _corrupt,
    "demo": _demo,
    "show": _show,
}
