"""A run as others can use it: a diffusers pipeline with a model card, on disk or on the Hugging Face Hub."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from .. import __version__, hub
from ..corruption import Truth
from ..data import DATASETS, PATHS, is_streamed
from ..diffusion.model import Model
from ..diffusion.schedulers import NATIVE
from ..errors import UserError, first_line, require_known
from ..files import atomic, require_empty
from ..metrics import metric, read_rows
from ..nets import count_parameters
from ..objective import KINDS
from ..text import code, markdown, one_line, template, without_folders
from . import checkpoint
from .pictures import grid_file

WEIGHTS = ("ema", "raw")
# What is a number's own, and what all numbers of a card share, for they are of its weights.
NOT_PROVENANCE = ("metric", "label", "value", "details", "model", "checkpoint", "weights", "features")
NAMES = {
    "last_ratio": "noise level of the last step",
    "reference_kind": "kind of reference",
    "stop_ratio": "stopped at noise level",
}


def export(
    run: Path, out: Path, *, weights: str = "ema", numbers: Path | None = None, licence: str = "unknown", name: str = ""
) -> dict[str, Any]:
    """Write the model of a run as a diffusers pipeline with a model card; the folder appears whole or not at all.

    Args:
        run, out: a run folder that has ended, and a new or empty folder.
        weights: ``ema`` (averaged) or ``raw``.
        numbers: JSON that ``atdm evaluate --json`` printed, with ``rows``; default: ``metrics.json`` of the run, if there.
            Rows of other weights are left out.
        licence: an identifier of the Hub's, such as ``apache-2.0``.
        name: OWNER/NAME on the Hub, for the card.

    Returns:
        ``checkpoint`` (hash of the weights), ``weights``, ``step``, ``numbers`` and ``numbers_left_out`` (how many).

    Raises:
        UserError: ``run`` holds no model, ``out`` holds something, the numbers cannot be read, or the disk is full.
    """
    require_known("kind of weights", weights, WEIGHTS)
    require_empty(out)
    config = checkpoint.read_config(run)
    config["objective"] = checkpoint.read_objective(run, config)  # of auto what it chose
    model: Any = Model.from_pretrained(run)
    process, shape = model.process, model.net_shape
    step = checkpoint.load_weights(run, model.net, "ema" if weights == "ema" else "model")
    rows = read_rows(numbers or run) if numbers or (run / "metrics.json").is_file() else []
    fitting = [row for row in rows if row.get("checkpoint") == model.hash]
    picture = grid_file(run, step)
    pictured = weights == "ema" and picture.is_file()
    with atomic(out) as scratch:
        model.write(scratch)
        if pictured:
            (scratch / "samples.png").write_bytes(picture.read_bytes())
        card = template("atdm.training", "card.md.j2", keep_trailing_newline=True).render(
            front=_front(config, licence, stock=len(shape) == 3),
            title=markdown(name.partition("/")[2] or out.name),
            lead=_lead(config, len(shape) == 3),
            picture="samples.png" if pictured else None,
            stock=len(shape) == 3 and process.prediction in NATIVE[process.family],
            family=process.family,
            opens=model.pipeline_class,
            latents=model.latents,
            **_drawing(model),
            prediction=process.prediction,
            imported=_imported(model.net),
            where=json.dumps(one_line(name or out.name), ensure_ascii=False),
            few_steps=code(f"atdm sample {shlex.quote(name or out.name)} --sampler dpm-solver++ --sampling_steps 25"),
            item_shape=shape,
            made=_facts(run, config, model, step, weights),
            corruption=_corruption(run, config["corrupt"], is_streamed(config["data"])),
            numbers=_numbers(fitting),
            regularized=_regularized(config),
            licence=_licence(licence),
            version=__version__,
        )
        (scratch / "README.md").write_text(card, encoding="utf-8")
    about = {"checkpoint": model.hash, "weights": weights, "step": step, "numbers": len(fitting)}
    return about | {"numbers_left_out": len(rows) - len(fitting)}


def _facts(run: Path, config: dict[str, Any], model: Any, step: int, weights: str) -> list[tuple[str, str]]:
    """How the model was made, for the card."""
    facts = {
        "data": _public(config["data"]),
        "corruption added": config["corrupt"],
        "objective": _objective(config["objective"]),
        "network": f"{config['net']}, {count_parameters(model.net):,} parameters, items of shape {list(model.net_shape)}",
        "started from": config["init"] and _public(config["init"], model=True),
        "autoencoder": config.get("vae") and _public(config["vae"], model=True),
        "process": f"{config['process']}, {model.process.steps} timesteps, predicts {model.process.prediction}",
        "steps": f"{step:,} of batch {config['batch_size']}, learning rate {config['lr']:g}",
        "weights": f"averaged (decay {config['ema']:g})" if weights == "ema" else "raw, not averaged",
        "hash of the weights": model.hash,
        "seed": config["seed"],
    }
    shown = {name: value for name, value in facts.items() if value is not None}
    return [(k, code(v) if k in ("data", "corruption added") else markdown(str(v))) for k, v in shown.items()]


def require_name(name: str) -> None:
    """Refuse a name that no model on the Hub can have.

    Raises:
        UserError: it is not OWNER/NAME.
    """
    if not hub.is_name(name):
        raise UserError(f"'{name}' is not a name on the Hub. Expected OWNER/NAME.")


def require_token() -> None:
    """Refuse early what cannot end well: an upload without a token.

    Raises:
        UserError: there is no token; says how to log in.
    """
    import huggingface_hub

    if not huggingface_hub.get_token():
        raise UserError(
            "There is no Hugging Face token on this machine. Log in with 'hf auth login', or set HF_TOKEN to a token that "
            "may write (https://huggingface.co/settings/tokens)."
        )


def push(folder: Path, name: str, private: bool = False) -> str:
    """Upload an exported folder to the Hub as the model ``name`` (made if it is new), and return its address.

    Raises:
        UserError: the name is not OWNER/NAME, there is no token, or the Hub refuses or cannot be reached.
    """
    require_name(name)
    require_token()
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        address = api.create_repo(name, private=private, exist_ok=True)
        api.upload_folder(
            repo_id=name, folder_path=str(folder), commit_message=f"Diffusion model trained with atdm {__version__}"
        )
    except Exception as problem:  # the Hub's refusals, the HTTP client and the operating system each raise their own
        raise UserError(
            f"Cannot push to '{name}': {first_line(problem)}. The folder {folder} is complete; 'hf upload {name} {folder}' sends it."
        ) from problem
    return str(address)


# --- the parts of a card ----------------------------------------------------------------------------------------------
def _drawing(model: Model) -> dict[str, Any]:
    """How diffusers draws: its argument for classes, what labels stand for, and whether a loop must be written by hand."""
    names, latents = model.classes, model.latents
    shown = ", ".join(f"{label} {markdown(name)}" for label, name in enumerate(names[:100]))
    shown += ", and more in `classes.json`" if len(names) > 100 else ""
    by_hand = False
    if latents is not None:  # LDMPipeline knows neither classes nor flows nor shifts, and draws squares
        _, height, width = model.net_shape
        by_hand = bool(names) or model.process.family == "flow" or latents.shift != 0 or height != width
    labels = "class_labels=[0] * 16, " if names else ""
    return {"labels": labels, "classes": shown, "no_class": len(names), "by_hand": by_hand}


def _front(config: Mapping[str, Any], licence: str, stock: bool) -> str:
    """The YAML that the Hub reads."""
    front: dict[str, Any] = {"license": licence, "library_name": "diffusers"}
    if stock:
        front["pipeline_tag"] = "unconditional-image-generation"
    front["tags"] = ["diffusers", "atdm", "adversarial-training", config["objective"]["name"].partition(":")[0]]
    if config["data"].startswith("hub:"):
        front["datasets"] = [name for name in [_option(config["data"], "name")] if hub.is_name(name)]
    if config["init"] and hub.is_name(config["init"]) and not Path(config["init"]).exists():
        front["base_model"] = config["init"]
    return yaml.safe_dump(front, sort_keys=False)


def _imported(net: object) -> str:
    """The statement that makes the class of the network known to diffusers; empty for its own."""
    kind = type(net)
    if kind.__module__.partition(".")[0] == "diffusers":
        return ""
    return f"from {'atdm' if kind.__module__.startswith('atdm.') else kind.__module__} import {kind.__name__}"


def _lead(config: Mapping[str, Any], images: bool) -> str:
    """What it is, for a reader who knows neither the method nor atdm."""
    name = config["objective"]["name"]
    corruption = "" if config["corrupt"] == "none" else f" with the corruption {code(config['corrupt'])} added"
    what = "images" if images else "vectors"
    kind = "latent diffusion" if config.get("vae") else "diffusion"
    lead = f"A {kind} model of {what}, trained on {code(_public(config['data']))}{corruption}. "
    if name == "ddpm":
        lead += "The training was that of an ordinary DDPM, without a regularizer."
    elif _regularized(config):
        lead += f"The training had a regularizer ({code(name)}) that is meant to keep noise of the training data out of the samples."
    else:
        lead += f"The training objective was {code(name)}."
    return f"{lead} It was trained with atdm, a library for adversarial training of diffusion models."


def _regularized(config: Mapping[str, Any]) -> bool:
    """Whether the network was trained to ignore perturbations."""
    name = config["objective"]["name"]
    return name in KINDS and name != "ddpm"


def _objective(options: Mapping[str, Any]) -> str:
    if options["name"] == "ddpm":
        return "ddpm"
    return f"{options['name']} ({', '.join(f'{k} {v}' for k, v in options.items() if k != 'name' and v is not None)})"


def _corruption(run: Path, spec: str, sampled: bool) -> str:
    if spec == "none":
        return "No corruption was added to the data; what noise they hold of their own is not known."
    unknown = "which items, how many, and how much was not known to training"
    if not (run / "truth.npz").is_file():
        return f"The corruption was added to the data on purpose; {unknown}."
    hit = Truth.load(run / "truth.npz").corrupted
    which = "items that were looked at" if sampled else "items"
    return f"The corruption was added on purpose, to {int(hit.sum()):,} of {len(hit):,} {which}; {unknown}."


def _licence(licence: str) -> str:
    if licence == "unknown":
        return "None was stated. Ask the author before you use it; the data it was trained on may set terms too."
    return f"{code(licence)}, as its author states. The data it was trained on may set terms too."


def _public(spec: str, model: bool = False) -> str:
    """A spec of data or a model without the folders of this machine."""
    name, _, rest = spec.partition(":")
    if hub.is_name(spec) and model and not Path(spec).exists():
        return spec
    if name not in DATASETS:
        return Path(spec).name
    if name in PATHS:
        address, *options = rest.removeprefix("path=").split(",column=") if rest.startswith("path=") else [rest]
        return ",column=".join([Path(address).name, *options])
    if name == "torchvision":
        return ",".join(part for part in spec.split(",") if not part.startswith("root="))
    if name == "hub" and not hub.is_name(owned := _option(spec, "name")):
        return spec.replace(owned, Path(owned).name)
    return spec


def _option(spec: str, key: str) -> str:
    return dict(part.split("=", 1) for part in spec.partition(":")[2].split(","))[key]


def _numbers(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The rows of the table, how all of them were made, and, where they were made differently, how each was."""
    made = [{k: v for k, v in row.items() if k not in NOT_PROVENANCE and v is not None} for row in rows]
    common = {k: v for k, v in (made[0] if made else {}).items() if all(other.get(k) == v for other in made)}
    found = [
        {
            "metric": markdown(without_folders(row["metric"])),
            "value": "not finite" if row["value"] is None else f"{row['value']:.4g}",
            "own": _made({k: v for k, v in how.items() if k not in common}),
            **_meaning(row["metric"]),
        }
        for row, how in zip(rows, made, strict=True)
    ]
    return {"rows": found, "common": _made(common), "differ": any(row["own"] for row in found)}


def _made(provenance: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{markdown(NAMES.get(k, k.replace('_', ' ')))} {markdown(_shown(k, v))}" for k, v in provenance.items()
    )


def _shown(key: str, value: Any) -> str:
    """A value of a row without the folders of this machine."""
    if isinstance(value, float):
        return f"{value:.4g}"
    return _public(str(value)) if key == "reference" else without_folders(str(value))


def _meaning(name: str) -> dict[str, str]:
    try:
        entry = metric(name)
    except UserError:  # numbers of a later version, or of somebody else
        return {"better": "", "meaning": ""}
    return {"better": entry.better, "meaning": entry.meaning}
