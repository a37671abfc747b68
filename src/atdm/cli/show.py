"""``atdm show``: the perturbation radius, or the curves and samples of a run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import UserError, nearest
from ..training.config import TrainConfig
from .common import Printing, answered, numbers, require_outside_data_of
from .parser import EXAMPLES, make_parser, positional, with_examples


@dataclass(frozen=True, kw_only=True)
class RunOptions(Printing):
    """Curves of a run, above its samples.

    Args:
        run: run folder.
        out: .png or .svg; null: curves.png in the run.
    """

    run: str = positional()
    out: str | None = None


@dataclass(frozen=True)
class RadiusOptions(Printing):
    """How far the state is perturbed.

    Args:
        omegas: values of omega, the exponent of the published radius, separated by commas.
        process: forward process, as of atdm train.
        out: .png or .svg.
    """

    omegas: str = "1,2,4"
    process: str = "linear"
    out: str = "ray.png"


def run(words: list[str]) -> None:
    what = words[0] if words else ""
    if what in ("-h", "--help"):
        usage = "usage: atdm show radius [options]\n       atdm show run RUN [options]\n\nEach has a --help of its own."
        print(with_examples(usage, [EXAMPLES["show radius"][0], EXAMPLES["show run"][0]]).rstrip())
        return
    if what not in ("radius", "run"):
        raise UserError(f"Cannot show '{what}'. {nearest(what, ['radius', 'run'])}")
    given = make_parser(f"show {what}", RunOptions if what == "run" else RadiusOptions).parse_args(words[1:])
    result = _radius(given) if what == "radius" else _run(given)
    if not answered(given, result):
        print(f"Drawn in {result['out']}.")
        if what == "run":
            print(f"The samples in it are {result['samples']}." if result["samples"] else "There are no samples yet.")


def _radius(given: Any) -> dict[str, Any]:
    from .. import plot
    from ..data.folders import require_own

    require_own(Path(given.out))
    omegas = numbers(given.omegas, "omegas", "1,2,4")
    figure = plot.ray(TrainConfig(process=given.process).build_process(), omegas)
    return {"out": str(plot.save(figure, given.out)), "omegas": omegas, "process": given.process}


def _run(given: Any) -> dict[str, Any]:
    import numpy as np
    from PIL import Image

    from .. import plot
    from ..data.folders import require_own
    from ..training.log import read_log

    folder = Path(given.run)
    out = Path(given.out or folder / "curves.png")
    require_own(out)
    require_outside_data_of(given.run, out)
    log = read_log(folder)
    pictures = sorted((folder / "samples").glob("step-*.png"))
    newest = pictures[-1] if pictures else None
    picture = None if newest is None else np.asarray(Image.open(newest).convert("RGB"))
    step = "" if newest is None else int(newest.stem.removeprefix("step-"))
    figure = plot.run_curves(log, picture, f"Samples of the averaged weights at step {step}")
    return {
        "out": str(plot.save(figure, out)),
        "run": given.run,
        "samples": newest and str(newest),
        "steps": log[-1]["step"] if log else 0,
        "last": log[-1] if log else None,
    }
