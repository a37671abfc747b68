"""What an audit writes: its findings as JSON, a recipe and a contact sheet."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from .. import plot
from ..data.source import Source
from ..files import atomic
from ..text import one_line
from ..training.config import TrainConfig
from ..training.parts import build, estimate
from . import sheet
from .look import Audit
from .recipe import recommend

SHOWN = 24


def write(folder: Path, found: Audit, source: Source, base: TrainConfig) -> dict[str, Any]:
    """Write ``audit.json`` and ``recipe.yaml``, then ``sheet.png``, and return what the first holds.

    Args:
        base: says what data the recipe reads.

    Raises:
        UserError: the disk is full or not writable.
    """
    config, reasons = recommend(base, found, torch.cuda.is_available())
    cost = estimate(config, build(config))
    head = "".join(f"# {one_line(line)}\n" for line in ["Recommended by atdm audit.", *reasons])
    text = head + yaml.safe_dump(_chosen(config), sort_keys=False)
    result = found.as_dict() | {"recipe": {"yaml": text, "reasons": reasons, "cost": cost}}
    with atomic(folder) as scratch:
        scratch.mkdir()
        (scratch / "audit.json").write_text(json.dumps(result, indent=1), encoding="utf-8")
        (scratch / "recipe.yaml").write_text(text, encoding="utf-8")
    plot.save(_sheet(found, source), folder / "sheet.png")
    return result


def _chosen(config: TrainConfig) -> dict[str, Any]:
    """The options that differ from the defaults, and the objective; training sees all items."""
    values, defaults = config.as_dict(), TrainConfig().as_dict()
    kept = {k: v for k, v in values.items() if k in ("out", "data", "objective") or (v != defaults[k] and k != "limit")}
    kept["objective"] = {"name": config.objective.name}  # ddpm and auto take no other option
    return kept


def _sheet(found: Audit, source: Source) -> Any:
    if len(found.item_shape) == 1:
        return sheet.vectors(source[torch.arange(len(source))], found.outliers.worst)
    rows: list[sheet.Row] = []
    if found.estimate is not None:
        each = found.noise_of_each
        order = [int(i) for i in np.argsort(-each, kind="stable")[:SHOWN] if each[i] > 0]
        title = f"noisiest ({found.noise_share:.1%} look noisy)"
        rows.append((title, [(i, f"#{i}  {each[i]:.2g}") for i in order]))
    if len(found.sharper):
        title = f"sharper than the others ({len(found.sharper)})"
        rows.append((title, [(int(i), f"#{i}") for i in found.sharper[:SHOWN]]))
    hit = found.most_replaced
    if hit:
        title = f"replaced pixels ({len(hit)})"
        rows.append((title, [(i, f"#{i}  {found.replaced[i]:.0%}") for i in hit[:SHOWN]]))
    unlike = [(i, f"#{i}\n{found.outliers.why[i]}") for i in found.outliers.worst[:SHOWN]]
    rows.append((f"outliers ({len(found.outliers.why)})", unlike))
    alike = [
        (i, f"#{i}  {'mirrored' if pair.mirrored else f'{pair.distance:.2g}'}")
        for pair in found.duplicates.pairs[: SHOWN // 2]
        for i in (pair.first, pair.second)
    ]
    rows.append((f"near duplicates ({len(found.duplicates.pairs)} pairs)", alike))
    if found.broken:
        names = ", ".join(found.broken[:4]) + (", ..." if len(found.broken) > 4 else "")
        rows.append((f"broken ({len(found.broken)}): {names}", []))
    wanted = sorted({i for _, items in rows for i, _ in items})
    x = source[torch.tensor(wanted)] if wanted else ()
    return sheet.images(rows, dict(zip(wanted, x, strict=True)))
