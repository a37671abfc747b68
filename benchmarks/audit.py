"""Processor time and memory of ``atdm audit``: the whole of it, and its parts beside what they took the place of.

python benchmarks/audit.py                                # synthetic images, 2,000 and 10,000
python benchmarks/audit.py --data photos/ --items 50000
python benchmarks/audit.py --duplicates 1000000           # near duplicates alone, and the memory they take
"""

from __future__ import annotations

import argparse
import json
import resource

import numpy as np
import torch
from _timing import interleaved
from torch import Tensor, nn

from atdm.audit import audit
from atdm.audit.duplicates import CANDIDATE, NEIGHBOURS, image_duplicates
from atdm.audit.outliers import image_outliers, shrink
from atdm.data import load
from atdm.data.items import Pixels, to_uint8
from atdm.data.source import Source


def synthetic(n: int, side: int = 32) -> Tensor:
    """Smooth images of many frequencies, each with an edge: as unlike each other as small photographs."""
    rng = torch.Generator().manual_seed(0)
    out = []
    for rows in torch.arange(n).split(4096):
        x = torch.zeros(len(rows), 3, side, side)
        for cells, weight in ((3, 0.4), (6, 0.25), (12, 0.12)):
            coarse = torch.randn(len(rows), 3, cells, cells, generator=rng)
            x += weight * nn.functional.interpolate(coarse, size=(side, side), mode="bicubic", align_corners=True)
        edge = torch.randint(4, side - 4, (len(rows),), generator=rng)
        out.append(to_uint8(x + 0.4 * (torch.arange(side)[None] > edge[:, None]).float()[:, None, None]))
    return torch.cat(out)


def all_pairs(small: Tensor) -> int:
    """Near neighbours by products of all thumbnails with all: what the index of ``image_duplicates`` took the place of."""
    flat = (small - small.mean((1, 2, 3), keepdim=True)).mean(1, keepdim=True)
    thumbs = nn.functional.adaptive_avg_pool2d(flat, 8)
    found = 0
    for other in (thumbs, thumbs.flip(-1)):
        rows, others = (nn.functional.normalize(x.flatten(1), dim=1) for x in (thumbs, other))
        for at in range(0, len(rows), 1024):
            found += int(((rows[at : at + 1024] @ others.T).topk(NEIGHBOURS, dim=1).values >= CANDIDATE).sum())
    return found


def random_start(small: Tensor) -> None:
    """The robust covariance from random subsets (scikit-learn), in as many dimensions as outliers are judged by."""
    from sklearn.covariance import MinCovDet

    x = nn.functional.adaptive_avg_pool2d(small, 8).flatten(1).double().numpy()
    centered = x - x.mean(0)
    MinCovDet(support_fraction=0.75, random_state=0).fit(centered @ np.linalg.eigh(centered.T @ centered)[1][:, -15:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", help="a data set as atdm audit takes it; synthetic images where it is left out")
    parser.add_argument("--items", type=int, nargs="+", default=[2000, 10_000])
    parser.add_argument("--duplicates", type=int, help="only look for near duplicates among so many synthetic images")
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.duplicates:
        small = torch.cat([shrink(part.float() / 127.5 - 1) for part in synthetic(given.duplicates).split(4096)])
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        seconds = interleaved({"duplicates": lambda: image_duplicates(small, np.zeros(len(small)))}, 1)
        more = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1e6
        print(json.dumps({"items": given.duplicates, **seconds, "gigabytes_more": round(more, 3)}))
        return
    for n in given.items:
        pixels = synthetic(n).numpy() if given.data is None else load(given.data, limit=n, hold_out=False).items.pixels
        source = Source(Pixels(pixels))
        small = torch.cat([shrink(source.items[rows]) for rows in torch.arange(len(source)).split(1024)])
        none = np.zeros(len(small))
        functions = {
            "audit": lambda source=source: audit(source),
            "outliers": lambda small=small, none=none: image_outliers(small, none),
            "outliers, random start": lambda small=small: random_start(small),
            "duplicates": lambda small=small, none=none: image_duplicates(small, none),
            "duplicates, all pairs": lambda small=small: all_pairs(small),
        }
        audit(Source(Pixels(pixels[:300])))  # loads what is loaded late
        print(json.dumps({"items": len(source), **interleaved(functions, given.rounds)}))


if __name__ == "__main__":
    main()
