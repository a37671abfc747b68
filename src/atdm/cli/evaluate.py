"""``atdm evaluate``: measure samples against clean data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..config import TrainConfig
from .common import draw, make_parser, print_table


def run(words: list[str]) -> int:
    parser = make_parser("evaluate")
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
    from .. import metrics
    from ..checkpoint import read_config
    from ..data import load

    options: dict[str, Any] = {}
    if given.data is None:
        stored = read_config(Path(given.model))
        given.data = stored["data"]
        options = {k: stored[k] for k in TrainConfig.READING if k in stored}
    dataset = load(given.data, **options)
    drawn, made = draw(given)
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
        print_table(
            f"{given.model}: {len(drawn)} samples, {given.sampler}, {given.steps} steps, seed {given.seed}", shown
        )
    return 0
