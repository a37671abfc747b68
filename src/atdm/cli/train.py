"""``atdm train``: train a model in a run folder, or resume it."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import yaml

from ..errors import UserError
from ..files import read_yaml
from ..training.config import ObjectiveConfig, TrainConfig
from ..training.recipes import recipe_file
from ..training.versions import require_version
from .common import Printing, answered, is_main, print_table, silent, tell_notes
from .parser import make_parser, options_of, spell
from .progress import note, preparing, progress_bar
from .signals import STOP, Interrupted


def _named(words: list[str]) -> list[str]:
    """The words with the file of a recipe of the package in place of its name after ``--config``."""
    found = list(words)
    for i, word in enumerate(words):
        flag, equals, value = word.partition("=")
        index, name = (i, value) if equals else (i + 1, words[i + 1] if i + 1 < len(words) else "")
        if flag != "--config" or not name:
            continue
        file = Path(name).expanduser()
        if re.fullmatch(r"[\w-]+", name) and not file.is_file():
            file = recipe_file(name)
            found[index] = f"{flag}{equals}{file}" if equals else str(file)
        if file.exists():
            read_yaml(file, {}, "a configuration in YAML, or the name of a recipe such as cifar10-cpu")
    return found


def _objective(given: Any, said: dict[str, Any], words: list[str]) -> ObjectiveConfig:
    """The objective that the options, the files and the run folder say.

    One that nobody names is that of the run; else ``robust_adv`` where there is a file, as files meant it before auto was the default, or
    where any option of it is given; else auto.

    Args:
        said: of its options those that the words or the files give.
        words: of the command, as the parser spells them.

    Raises:
        UserError: a file does not say which version it means, or auto is given options that it chooses.
    """
    from ..training.checkpoint import read_config

    files = [str(file) for file in given.config or ()]
    if not said and (run := Path(given.out).expanduser() / "config.yaml").is_file():
        return ObjectiveConfig(**read_config(run.parent)["objective"])
    if not said and files and not silent(given):
        tell_notes(
            [
                f"No objective is named in {' and '.join(files)}, which means robust_adv, the published method, as it did before auto "
                "became the default. --objective auto, or objective: {name: auto} in the file, takes that."
            ]
        )
    values = vars(given.objective) | ({} if "name" in said or not (said or files) else {"name": "robust_adv"})
    objective = ObjectiveConfig(**values)
    own = [word.partition("=")[0] for word in words if word.startswith("--objective.")]
    if not {"--objective.weight", "--objective.version"} & {*own}:
        for file in files:
            require_version(yaml.safe_load(Path(file).read_text()), file, objective.name)
    if objective.automatic and (chosen := [word for word in own if not word.endswith((".name", ".version"))]):
        raise UserError(
            f"auto chooses {' and '.join(chosen)} from the data. Expected auto alone, auto:k=5 to remove more, or "
            "--objective robust_adv."
        )
    return objective


@dataclasses.dataclass(frozen=True)
class Options(Printing):
    """Beside the configuration.

    Args:
        dry_run: print the resolved configuration and its cost, and stop.
    """

    dry_run: bool = False


def run(words: list[str]) -> None:
    parser = make_parser("train", Options)
    parser.add_argument("--config", action="config", help="a .yaml file, or the name of a recipe such as cifar10-cpu")
    parser.add_class_arguments(TrainConfig, fail_untyped=False)
    whole = options_of(parser)["objective"]
    whole.metavar, whole.help = "NAME", "its name, as in --objective robust_adv, or {name: ..., ...} (default: auto)"
    given = parser.parse_args(_named(words))
    names = [f.name for f in dataclasses.fields(TrainConfig) if f.init and f.name != "objective"]
    said = parser.parse_args(_named(words), defaults=False).get("objective") or {}
    objective = _objective(given, dict(said), spell(words, parser))
    config = TrainConfig(objective=objective, **{n: given[n] for n in names})
    from ..training import run as runs
    from ..training.checkpoint import read_config

    if given.dry_run:
        _dry_run(config, given.json)
        return
    last = None
    try:
        with progress_bar(silent(given)) as bar:
            total = config.steps if config.epochs is None else None
            task = bar.add_task(config.objective.name, total=total, note="")

            def notify(text: str) -> None:
                if is_main():
                    note(bar, text)

            for last in runs.train(config, STOP, notify, preparing(bar)):
                STOP.wait(last.index < last.steps)
                bar.update(task, completed=last.index, total=last.steps)
                if last.index % 10 == 0:  # reading the loss waits for the device
                    loss = last.terms.loss.mean().item()
                    bar.update(task, note=f"loss {loss:.4f}  {last.samples / last.seconds:,.0f} samples/s")
    except Interrupted as problem:
        raise Interrupted(
            f"{problem} {_left(last.index if last else 0, last.steps if last else config.steps)}"
        ) from None
    if is_main():
        steps = last.steps if last else read_config(Path(config.out))["steps"]
        done: dict[str, Any] = {
            "run": config.out,
            "step": last.index if last else steps,
            "steps": steps,
            "model": f"{config.out}/model",
        }
        if config.metrics != "none" and done["step"] >= steps:
            done["metrics"] = f"{config.out}/metrics.json"
        if answered(given, done):
            return
        if STOP():
            print(f"Stopped after step {done['step']} and saved; the same command goes on from there.")
        else:
            if "metrics" in done:
                print(f"What was measured is in {done['metrics']}; atdm compare puts it beside other runs.")
            print(
                f"The model is in {config.out}/model, a diffusers pipeline. Next: atdm evaluate {config.out}{_reference(config)}"
            )


def _dry_run(config: TrainConfig, as_json: bool) -> None:
    """What would be trained, and what it costs."""
    from ..training.parts import build, estimate

    parts = build(config)
    tell_notes(parts.notes)
    cost = estimate(config, parts)
    if as_json:
        print(json.dumps({"config": config.as_dict(), "cost": cost}, default=str))
    else:
        print(yaml.safe_dump(config.as_dict(), sort_keys=False))
        print_table("cost", [{"what": k, "value": v} for k, v in cost.items()])


def _reference(config: TrainConfig) -> str:
    """What a next step needs where the data are photos that nobody vouches for."""
    from ..data import DATASETS, PATHS

    name = config.data.partition(":")[0]
    known = config.corrupt != "none" or (name in DATASETS and name not in (*PATHS, "hub"))
    return "" if known else " --reference FOLDER, a few images that you trust"


def _left(step: int, steps: int) -> str:
    """What is left of a training that was ended at once."""
    if step == 0:
        return "No step was made; the same command begins again."
    if step >= steps:
        return "All steps are made and saved; the same command goes on with what follows them."
    return "The step under way was not waited for; the same command goes on from the last checkpoint."
