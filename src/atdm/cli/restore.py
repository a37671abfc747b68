"""``atdm restore``: denoise a data set with the model trained on it, each item at its own noise level."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ..errors import UserError, expect
from .common import (
    Printing,
    answered,
    destination,
    open_model,
    print_table,
    reading,
    reading_options,
    require_outside,
    silent,
    tell_notes,
)
from .parser import make_parser, positional
from .progress import following, preparing, progress_bar


@dataclass(frozen=True, kw_only=True)
class Options(Printing):
    """What is restored, and with which model.

    Args:
        data: what to restore, named as for atdm train.
        model: run folder, diffusers pipeline folder or Hub name of a model that was trained on these data.
        out: new folder for the restored images, under the names they have.
        corrupt: known corruption to add first, such as gaussian:share=0.9,std=0.2, to measure what restoring gains.
        seed: seed of the corruption and of the choice of --limit.
        compare: with --corrupt, number of noisy images on which to try non-local means, wavelets and BM3D (if installed) as well.
        label: class of all items, by name or number, for a model of classes.
    """

    data: str = positional()
    model: str
    out: str
    corrupt: str = "none"
    seed: int = 0
    compare: int = 0
    label: str | None = None


def run(words: list[str]) -> None:
    given = make_parser("restore", Options, reading_options()).parse_args(words)
    from ..corruption import parse_corruption
    from ..data import load
    from ..data.source import Source
    from ..files import require_empty
    from ..restoration import Restoration, gauge
    from ..restoration.write import write

    folder = destination(given.out)
    require_empty(folder)
    require_outside(folder, given.data)
    if given.label == "all":
        raise UserError("The items to restore are not of all classes in turn. Expected one --label, or none.")
    parts = parse_corruption(given.corrupt)
    images = "a number of images, with --corrupt: without it the clean images are not known"
    expect(given.compare == 0 or (given.compare > 0 and bool(parts)), "--compare", given.compare, images)
    with progress_bar(silent(given)) as bar:
        dataset = load(given.data, seed=given.seed, **reading(given), hold_out=False, progress=preparing(bar))
        dataset.require_whole("atdm restore")
        source = Source(dataset.items, parts, given.seed, files=dataset.files)
        model = open_model(given, pixels=True).for_items(dataset.item_shape, given.model, given.data)
        truth = _truth(given, source)
        look, work = (following(bar, name, len(source)) for name in ("looking", "restoring"))
        stds = gauge(source, look)
        about = {name: given[name] for name in ("data", "model", "corrupt", "seed")} | reading(given)
        about["checkpoint"] = model.hash
        result = write(folder, Restoration(source, model, stds), dataset.files, about, truth, work)
    tell_notes(dataset.notes)
    if answered(given, {key: value for key, value in result.items() if key not in ("names", "stds")}):
        return
    print_table(f"{given.data}: {result['restored']:,} of {result['items']:,} items restored", [*_rows(result)])
    if len(result["formats"]) > 1:
        print_table("by file format", result["formats"])
    if result.get("compared"):
        print_table("on the same noisy images, with the same estimated noise", result["compared"])
    print(f"The restored set is in {folder}, what was done to each item in {folder}/atdm-restore.")


def _truth(given: Any, source: Any) -> Any:
    """What is known of a set that is made noisy here; None: nothing."""
    if not source.corruption:
        return None
    import torch

    from ..restoration.classical import denoisers
    from ..restoration.write import CleanReference

    if given.compare:
        denoisers(source.item_shape)  # what is missing is said before the work
    indices = torch.arange(len(source))
    return CleanReference(source.items, source.levels(indices, torch.zeros_like(indices)), given.compare)


def _rows(result: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield {"what": "untouched, for they look clean", "found": f"{result['items'] - result['restored']:,}"}
    for level in result["histogram"]:
        if level["items"]:
            upper = "above" if level["up_to"] is None else f"to {level['up_to']:g}"
            yield {"what": f"noise std {level['above']:g} {upper}", "found": f"{level['items']:,}"}
    if "noisy" not in result:
        return
    yield {
        "what": "noisy items that were missed, clean ones restored",
        "found": f"{result['missed']:,} of {result['noisy']:,}, {result['clean_restored']:,} of {result['items'] - result['noisy']:,}",
    }
    for key, name in (("psnr", "PSNR of the noisy items, dB"), ("ssim", "SSIM of the noisy items")):
        if f"{key}_before" in result:
            found = " -> ".join(f"{result[f'{key}_{when}']:.4g}" for when in ("before", "after"))
            yield {"what": name, "found": found}
