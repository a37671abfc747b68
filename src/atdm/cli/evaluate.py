"""``atdm evaluate``: measure samples against a reference that is named."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import UserError
from .common import (
    Printing,
    answered,
    clean_data,
    destination,
    is_main,
    open_model,
    print_table,
    reading,
    reading_of_data,
    reading_options,
    samples_of,
    sampling_options,
    seeds_of,
    tell_notes,
)
from .parser import make_parser, positional


@dataclass(frozen=True)
class Options(Printing):
    """What is measured, and beside what.

    Args:
        model: run folder; or any diffusers pipeline, together with --data.
        samples: measure this .npz file or folder of images instead of a model.
        reference: clean images to compare with, such as a folder; cleanest: the least noisy of the data, by audit; null: the trusted
            images of the run, else its data before a corruption that atdm made, else as they are, which ranks nothing.
        data: training data of the model; null: those of the run.
        n: samples to draw.
        seed: seed of the sampling.
        seeds: several seeds, such as 0,1,2, for mean and standard deviation over them.
        batch_size: samples to draw together.
        threads: CPU threads of the sampling; 0: as many as speed it up.
        weights: ema (averaged) or raw; null: ema, or what a pipeline has.
        features: feature spaces, joined by +, such as pixels+efficientnet-lite.
        out: write the rows to this .json file.
    """

    model: str | None = positional("?", None)
    samples: str | None = None
    reference: str | None = None
    data: str | None = None
    n: int = 1000
    seed: int = 0
    seeds: str | None = None
    batch_size: int = 256
    threads: int = 0
    weights: str | None = None
    features: str = "pixels"
    out: str | None = None


def run(words: list[str]) -> None:
    given = make_parser("evaluate", Options, reading_options(), sampling_options(250, "ddpm")).parse_args(words)
    seeds: list[int | None] = [None] if given.samples is not None else [*seeds_of(given)]
    _check(given)
    import torch
    from accelerate import Accelerator

    from .. import metrics
    from ..files import write_text

    spaces = metrics.require(given.features)  # what is missing is said before the sampling
    against, truth = _compared_with(given)
    reference, compared = against.items, against.as_dict()
    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    rows: list[dict[str, Any]] = []
    for seed in seeds:
        samples, made, extra = _samples(given, seed, reference, truth)
        provenance = metrics.Provenance(len(samples), **compared, **made)
        scores = extra + metrics.measure(samples, reference, truth, spaces, seed or 0, accelerator=accelerator)
        rows += [metrics.Result(score, provenance).as_dict() for score in scores]
    found = {"rows": rows, "summary": metrics.over_seeds(rows)}
    if not accelerator.is_main_process:
        return
    if given.out:
        write_text(Path(given.out), json.dumps(found, indent=1))
    if answered(given, found):
        return
    several = len(seeds) > 1
    print_table(
        _title(given, rows[0], len(seeds)),
        [
            {
                "metric": entry["label"],
                "value": entry["mean"],
                **({"std over seeds": entry["std"]} if several else {}),
                "better": metrics.metric(entry["metric"]).better,
                "meaning": metrics.metric(entry["metric"]).meaning,
            }
            for entry in found["summary"]
        ],
    )
    if given.out:
        print(f"The rows, with how each was made, are in {given.out}.")


def _check(given: Any) -> None:
    if (given.model is None) == (given.samples is None):
        raise UserError("Expected either a run folder or pipeline, or --samples FILE.npz or FOLDER.")
    if given.samples is not None and given.data is None and given.reference in (None, "cleanest"):
        raise UserError(
            "Samples alone do not say what they are to be compared with. Expected --reference, a trusted set, or --data."
        )
    if given.weights not in (None, "ema", "raw"):
        raise UserError(f"The weights are '{given.weights}'. Expected ema or raw.")
    if given.out:
        destination(given.out, ".json")
    reading_of_data(given)


def _compared_with(given: Any) -> tuple[Any, Any]:
    """What the samples of ``atdm evaluate`` are compared with, a :class:`~atdm.metrics.ReferenceSet`, and its truth.

    It is ``--reference``, read as the run read its images; without one ``--data``, or of the run the trusted images, or else the
    data before corruption.

    Raises:
        UserError: there is no such data.
    """
    from .. import metrics
    from ..data import load
    from ..training.checkpoint import read_config
    from ..training.config import DataConfig
    from ..training.trusted import of_run, reference_for

    config = Path(given.model or "") / "config.yaml"
    stored = read_config(config.parent) if given.model and config.is_file() else {}
    vouched = of_run(config.parent, stored) if given.data is None and given.reference is None else None
    if vouched is not None:
        reading_of_data(given)
        dataset, found = vouched, metrics.ReferenceSet.trusted(vouched)
    elif given.reference in (None, "cleanest"):
        dataset, _ = clean_data(given)
        corrupted = given.data is None and stored.get("corrupt", "none") != "none"
        kind = metrics.ReferenceSet
        found = kind.cleanest(dataset) if given.reference else kind.of(dataset, corrupted)
    else:
        options = reading(given)
        options |= {
            k: stored[k] for k in ("image_size", "crop") if k in stored and options.get(k) == getattr(DataConfig, k)
        }
        if options.get("crop") == "random":
            options["crop"] = "center"
        dataset = load(given.reference, **options, hold_out=False)
        tell_notes(dataset.notes)
        found = reference_for(config.parent, stored, dataset)
    tell_notes([found.warning] if found.warning and is_main() else [])
    return found, dataset.truth


def _samples(given: Any, seed: int | None, reference: Any, truth: Any) -> tuple[Any, dict[str, Any], list[Any]]:
    """Samples, how they were made, and what was measured on the model itself."""
    from .. import metrics
    from ..data import load
    from ..training.checkpoint import load_weights

    if seed is None:  # they are there
        how = {name: given[name] for name in ("skip_broken", "cache", "max_pixels")}
        dataset = load(given.samples, **how, hold_out=False)
        tell_notes(dataset.notes)
        return dataset.x, {"model": given.samples}, []
    model = open_model(given).for_items(tuple(reference.shape[1:]), given.model, "the reference")
    of_run = (Path(given.model) / "config.yaml").is_file()
    if given.weights == "raw":
        load_weights(Path(given.model), model.bare, "model")
    extra = metrics.score_errors(model, truth, seed)
    samples, made = samples_of(given, model, seed)
    return samples, {"model": given.model, "weights": given.weights or ("ema" if of_run else "pipeline"), **made}, extra


def _title(given: Any, row: dict[str, Any], seeds: int) -> str:
    kind, data = row["reference_kind"], row["reference"]
    against = data if data.startswith(kind) else f"the {kind} {data}"
    if given.samples is not None:
        return f"{given.samples}: {row['samples']} samples of unknown origin, against {against}"
    which = f"{seeds} seeds" if seeds > 1 else f"seed {row['seed']}"
    of = f" of {row['conditioned_on']}" if row["conditioned_on"] else ""
    how = f"{row['sampler']}, {row['steps']} steps down to noise level {row['last_ratio']:.2g}"
    return f"{given.model}: {row['samples']} samples{of}, {how}, {which}, against {against}"
