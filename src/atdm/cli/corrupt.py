"""``atdm corrupt``: write a corrupted data set and its truth."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .common import Printing, answered, destination, open_model, reading, reading_options, silent, tell_notes
from .parser import make_parser
from .progress import following, preparing, progress_bar


@dataclass(frozen=True, kw_only=True)
class Options(Printing):
    """What is corrupted, and how.

    Args:
        data: what to corrupt, named as for atdm train.
        corrupt: corruption to add, such as gaussian:share=0.9,std=0.2 or poison:model=RUN,share=0.5.
        out: folder for samples.npz, a preview and truth.npz.
        seed: seed of the corruption.
    """

    data: str
    corrupt: str
    out: str
    seed: int = 0


def run(words: list[str]) -> None:
    given = make_parser("corrupt", Options, reading_options()).parse_args(words)
    from ..attack.poison import parse_poison
    from ..corruption import parse_corruption, truth_of
    from ..data import load
    from ..data.source import Source
    from ..files import atomic, require_empty
    from ..plot.samples import save_samples

    folder = destination(given.out)
    require_empty(folder)
    how = {"seed": given.seed, **reading(given)}
    poisoner = parse_poison(given.corrupt)
    with progress_bar(silent(given)) as bar:
        dataset = load(given.data, **how, hold_out=False, progress=preparing(bar))
    dataset.require_whole("atdm corrupt")
    if poisoner:
        source, truth = _poisoned(given, poisoner, dataset)
    else:
        source = Source(dataset.items, parse_corruption(given.corrupt), given.seed)
        truth = truth_of(given.corrupt, len(source), dataset.item_shape, given.seed)
    with atomic(folder) as scratch:
        scratch.mkdir()
        source.save(scratch / "samples.npz")
        truth.save(scratch / "truth.npz")
    if dataset.kind == "image":
        save_samples(source.first(min(64, len(source))), folder / "preview.png")
    tell_notes(dataset.notes)
    counts = dict(zip(truth.details, truth.touched.sum(1).tolist(), strict=True))
    result = {
        "items": len(source),
        "corrupted": int(truth.corrupted.sum()),
        "parts": [{"part": part, "touched": count} for part, count in counts.items()],
        "files": sorted(str(file) for file in folder.iterdir()),
        "notes": list(dataset.notes),
    }
    if not answered(given, result):
        each = "".join(f"\n  {count} by {part}" for part, count in counts.items()) if len(counts) > 1 else ""
        print(
            f"{len(source)} items, {result['corrupted']} of them corrupted, are in {folder}; "
            f"the truth is in {folder}/truth.npz.{each}"
        )


def _poisoned(given: Any, how: Any, dataset: Any) -> tuple[Any, Any]:
    """The source of poisoned items, and the truth."""
    from ..attack.poison import poison
    from ..data.items import Floats
    from ..data.source import Source

    model = open_model(how, pixels=True).for_items(dataset.item_shape, f"The surrogate {how.model}", given.data)
    with progress_bar(silent(given)) as bar:
        show = following(bar, "poisoning", len(dataset.items))
        items, truth = poison(dataset.items, model, how, given.seed, progress=show)
    return Source(Floats(items)), truth
