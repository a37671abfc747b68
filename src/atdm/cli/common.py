"""What the commands share: options with sentences for errors, drawing samples, progress and tables."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ..errors import UserError
from ..files import require_writable
from ..memory import require_threads
from ..text import plain
from ..training.config import DataConfig, TrainConfig
from .parser import add_fields

READING = TrainConfig.READING[1:]  # the seed is for more than reading
# Those with --skip_broken.
SKIPPING = ("train", "evaluate", "features", "attack", "report", "purify", "corrupt", "restore")


def reading_options(without: str = "", **defaults: Any) -> Callable[[Any], None]:
    """The options of a command that say how images are read, for its parser."""
    names = [name for name in READING if name != without]
    return lambda parser: add_fields(parser, DataConfig, names, **defaults)


@dataclass(frozen=True)
class Printing:
    """What every command has.

    Args:
        json: print JSON and no progress.
        quiet: print no progress, only the result and warnings.
        verbose: also print what the library logs, with the time.
        device: cpu or cuda; auto takes cuda where there is one.
    """

    json: bool = False
    quiet: bool = False
    verbose: bool = False
    device: Literal["auto", "cpu", "cuda"] = "auto"


def reading(given: Any) -> dict[str, Any]:
    """What those options say, for :func:`atdm.data.load`.

    Raises:
        UserError: a crop that only training can make.
    """
    if given.crop == "random":
        raise UserError("A random crop is drawn anew in training. Expected center or none.")
    return {name: given[name] for name in READING if name in given}


def reading_of_data(given: Any) -> dict[str, Any] | None:
    """The same of a command whose data are those of a run where ``--data`` is missing; None: they are.

    Raises:
        UserError: an option is for data that are not given.
    """
    options = reading(given)
    if given.data is not None or getattr(given, "reference", None) not in (None, "cleanest"):
        return options
    changed = [f"--{name}" for name, value in options.items() if value != getattr(DataConfig, name)]
    if changed:
        are = "is" if len(changed) == 1 else "are"
        raise UserError(f"{' and '.join(changed)} {are} for --data; a run's own data come as it used them.")
    return None


def sampling_options(steps: int, preserving: str = "ddim", late: bool = True) -> Callable[[Any], None]:
    """The options that :func:`sampling_of` reads, for the parser of a command.

    Args:
        steps: the default.
        preserving: the sampler of variance-preserving processes, where none is named.
        late: whether sampling may begin late.
    """
    names = "a diffusers scheduler: ddpm, ddim, dpm-solver++, ... or ddpm-unrespaced, whose fewer steps keep the betas of all"
    options: list[tuple[str, Any, Any, str]] = [
        ("sampler", str | None, None, f"{names}; default: {preserving}, or euler of flows and EDM"),
        ("sampling_steps", int, steps, "of the sampler, from pure noise to the data"),
        (
            "label",
            str | None,
            None,
            "class to draw, by name or number; all: each class in turn; null: without regard to class",
        ),
        ("guidance", float, 1.0, "scale of classifier-free guidance towards the class; 1: no guidance"),
    ]
    if late:
        start = "begin at this noise level sigma_t/alpha_t, from N(0, I)"
        stop = "stop at this noise level sigma_t/alpha_t and return the denoised image"
        options += [("start_ratio", float | None, None, start), ("stop_ratio", float | None, None, stop)]

    def add(parser: Any) -> None:
        for name, kind, default, says in options:
            parser.add_argument(f"--{name}", type=kind, default=default, help=says)

    return add


def sampling_of(given: Any) -> Any:
    """The :class:`~atdm.diffusion.steps.Sampling` that the options say."""
    from ..diffusion.steps import Sampling

    names = ("sampler", "start_ratio", "stop_ratio")
    return Sampling(steps=given.sampling_steps, **{name: given[name] for name in names if name in given})


def clean_data(given: Any) -> tuple[Any, str]:
    """The data set of ``--data``, or that of the run before corruption; and its spec."""
    from ..data import load
    from ..training.checkpoint import read_config

    options, spec = reading_of_data(given), given.data
    if options is None:
        stored = read_config(Path(given.model))
        options, spec = {k: stored[k] for k in TrainConfig.READING if k in stored}, stored["data"]
    dataset = load(spec, **options)
    tell_notes(dataset.notes)
    return dataset, spec


def tell_notes(notes: Iterable[str]) -> None:
    """Say what was converted or left out, where it does not mix with results."""
    for note in notes:
        print(plain(note), file=sys.stderr)


def numbers(text: str, option: str, such: str = "0,0.1,1") -> list[float]:
    """Numbers separated by commas.

    Args:
        such: an example for the sentence.

    Raises:
        UserError: they are not.
    """
    try:
        found = [float(word) for word in text.split(",")]
        if all(abs(number) <= 1e30 for number in found):
            return found
        raise ValueError("not finite")
    except ValueError:
        raise UserError(f"The {option} are '{text}'. Expected numbers separated by commas, such as {such}.") from None


def seeds_of(given: Any) -> list[int]:
    """The seeds of ``--seeds``, or else that of ``--seed`` alone.

    Raises:
        UserError: they are not integers, each once.
    """
    if given.seeds is None:
        return [given.seed]
    try:
        seeds = [int(word) for word in given.seeds.split(",")]
        if any(not -(2**63) <= seed < 2**63 for seed in seeds):
            raise ValueError("more than 63 bits")
    except ValueError:
        raise UserError(
            f"The seeds are '{given.seeds}'. Expected integers of at most 63 bits separated by commas, such as 0,1,2."
        ) from None
    if len(set(seeds)) < len(seeds):
        raise UserError(f"The seeds are '{given.seeds}'. Expected each once: the same seed gives the same samples.")
    return seeds


def destination(out: str, ending: str = "") -> Path:
    """Where results are to go, once it is known that they can: to be asked before the work.

    Args:
        ending: of the file, such as ``.json``; without one it is a folder.

    Raises:
        UserError: another ending, a folder in place of a file or a file in place of a folder, a file of a run or a pipeline,
            or a place not to be written to.
    """
    from ..data.folders import require_own

    path = Path(out).expanduser()
    if ending and (path.suffix != ending or path.is_dir()):
        raise UserError(f"Cannot write to '{out}'. Expected NAME{ending}.")
    if not ending and path.is_file():
        raise UserError(f"{out} is a file. Expected a folder.")
    require_own(path)
    require_writable(path)
    return path


def require_outside(out: Path, data: str) -> None:
    """Refuse pictures among those they are made from: the next command would take them for data.

    Raises:
        UserError: ``out`` is in the folder that ``data`` names.
    """
    from ..data.folders import folder_in

    folder = folder_in(data)
    if out.suffix != ".npz" and folder and out.resolve().is_relative_to(folder.resolve()):
        raise UserError(f"{out} is in {folder}, and would be read as data there. Expected another place.")


def require_outside_data_of(run: str, out: Path) -> None:
    """The same of the images that a run was trained on. What is in its own folder is not read as data.

    Raises:
        UserError: ``out`` is in their folder.
    """
    from ..training.checkpoint import read_config

    try:
        data = read_config(Path(run))["data"]
    except UserError:  # no run, and so of unknown data
        return
    if not out.resolve().is_relative_to(Path(run).resolve()):
        require_outside(out, data)


def is_main() -> bool:
    """Whether this process speaks and writes: the only one, or the first of ``accelerate launch``."""
    return os.environ.get("RANK", "0") == "0"


def silent(given: Any) -> bool:
    """Whether no progress is to be shown."""
    return bool(given.json or given.quiet) or not is_main()


def answered(given: Any, result: Any) -> bool:
    """Print the result as JSON where that is asked for; whether it is."""
    if given.json:
        print(json.dumps(result))
    return bool(given.json)


def open_model(given: Any, pixels: bool = False, source: str | None = None) -> Any:
    """The :class:`~atdm.diffusion.model.Model` that the options name, on a GPU where there is one.

    Args:
        pixels: refuse a model of latents.
        source: instead of ``given.model``.
    """
    import torch

    from ..diffusion.model import Model

    guidance = getattr(given, "guidance", 1.0)  # what does not draw samples has none
    model = Model.from_pretrained(source or given.model, pixels=pixels, label=given.label, guidance=guidance)
    return model.to("cuda" if torch.cuda.is_available() else "cpu")


def samples_of(given: Any, model: Any, seed: int) -> tuple[Any, dict[str, Any]]:
    """The samples that the options ask for, in every process the same, and how they were made.

    Returns:
        The samples, and fields of :class:`atdm.metrics.Provenance`.
    """
    import torch
    from accelerate import Accelerator

    require_memory(given.n, model.item_shape)
    sampling = model.sampling(sampling_of(given), "ddpm")
    from ..nets.speed import worth
    from .progress import following, progress_bar

    require_threads(given.threads)
    batch = min(given.n, given.batch_size)
    passes = worth(model.net, model.net_shape, batch, given.threads, **model.conditioning)
    with passes as note, progress_bar(silent(given)) as bar:
        tell_notes([note] if note and seed == given.seed and not silent(given) else [])
        drawn = model.sample(
            given.n,
            sampling,
            seed=seed,
            batch_size=given.batch_size,
            accelerator=Accelerator(cpu=not torch.cuda.is_available()),
            progress=following(bar, "sampling"),
        )
    last = sampling.last_ratio(model.process)
    made = {"checkpoint": model.hash, "conditioned_on": model.conditioned_on, "sampling": sampling}
    return drawn, {**made, "last_ratio": last, "seed": seed}


def require_memory(n: int, shape: Iterable[int]) -> None:
    """Refuse to draw more samples of a shape than the memory holds, the copy that is measured or written among them.

    Raises:
        UserError: says how much they would take.
    """
    from .. import memory

    memory.require(8.0 * n * math.prod(shape), f"{n:,} samples", "Expected a smaller --n.")


def print_table(title: str, rows: list[dict[str, Any]]) -> None:
    from rich.table import Table
    from rich.text import Text

    from .progress import Screen

    def text(value: Any) -> Text:  # no markup in it
        return Text(plain(f"{value:.4g}" if isinstance(value, float) else "" if value is None else str(value)))

    table = Table(title=text(title), title_justify="left")
    for name in rows[0]:
        table.add_column(text(name), justify="left" if isinstance(rows[0][name], str) else "right")
    for row in rows:
        table.add_row(*map(text, row.values()))
    Screen(file=getattr(sys.stdout, "file", sys.stdout)).print(table)
