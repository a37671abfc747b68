"""``atdm show``: the perturbation radius, or the curves and samples of a run."""

from __future__ import annotations

from pathlib import Path

from ..config import TrainConfig
from ..errors import UserError, nearest
from .common import make_parser, numbers


def run(words: list[str]) -> int:
    what = words[0] if words else ""
    if what not in ("radius", "run"):
        raise UserError(f"Cannot show '{what}'. {nearest(what, ['radius', 'run'])}")
    parser = make_parser("show")
    if what == "run":
        parser.add_argument("run", help="run folder")
    else:
        parser.add_argument("--omegas", type=str, default="1,2,4", help="slopes of the ray, separated by commas")
        parser.add_argument("--process", type=str, default="linear")
    parser.add_argument("--out", type=str, default="ray.png" if what == "radius" else None)
    given = parser.parse_args(words[1:])
    from .. import plot

    if what == "radius":
        figure = plot.ray(TrainConfig(process=given.process).build_process(), numbers(given.omegas, "omegas"))
        path = Path(given.out)
    else:
        from ..run import read_log

        figure = plot.run_curves(read_log(Path(given.run)))
        path = Path(given.out) if given.out else Path(given.run) / "curves.png"
    plot.save(figure, path)
    print(f"Drawn in {path}.")
    if what == "run":
        pictures = sorted((Path(given.run) / "samples").glob("*.png"))
        print(f"The newest samples are in {pictures[-1]}." if pictures else "There are no samples yet.")
    return 0
