"""Processor time of the metrics beside their peers, in turns: torchmetrics for Frechet, prdc (pip install prdc) for neighbours.

python benchmarks/metrics.py
"""

from __future__ import annotations

import argparse
import importlib.util
import json

import numpy as np
import torch
from _timing import interleaved

from atdm.metrics.distances import frechet_distance, moments, neighbours


def features(n: int, d: int, seed: int) -> torch.Tensor:
    """Features whose variances fall off, as those of networks do."""
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=rng, dtype=torch.float64) * torch.arange(1, d + 1).pow(-0.5)


def frechet_row(d: int, n: int, rounds: int) -> dict[str, float]:
    """The Frechet distance from moments."""
    from torchmetrics.image.fid import _compute_fid

    a, b = moments(features(n, d, 0)), moments(features(n, d, 1) + 0.1)
    both = {
        "atdm": lambda: frechet_distance(a.mean, a.covariance, b.mean, b.covariance),
        "peer": lambda: _compute_fid(a.mean, a.covariance, b.mean, b.covariance),
    }
    return interleaved(both, rounds)


def neighbours_row(d: int, n: int, rounds: int) -> dict[str, float]:
    """Precision, recall, density and coverage for k = 3 and 5; of prdc for each k in turn."""
    x, y = features(n, d, 0), features(n, d, 1) + 0.1
    both = {"atdm": lambda: neighbours(x, y)}
    if importlib.util.find_spec("prdc"):
        from prdc import compute_prdc

        a, b = (np.asarray(z, dtype=np.float32) for z in (y, x))
        both["peer"] = lambda: [compute_prdc(a, b, nearest_k=k) for k in (3, 5)]
    return interleaved(both, rounds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--items", type=int, default=5000)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    torch.set_num_threads(1)
    for name, row, dims in (("frechet", frechet_row, (768, 2048)), ("neighbours", neighbours_row, (64, 768))):
        for d in dims:
            taken = row(d, given.items, given.rounds)
            ratio = {"ratio": taken["atdm"] / taken["peer"]} if "peer" in taken else {}
            print(json.dumps({"metric": name, "d": d, **{k: round(v, 3) for k, v in (taken | ratio).items()}}))


if __name__ == "__main__":
    main()
