"""What to use: for each kind of corruption and what is known of the data, the method that the stored results bear out."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from ...diffusion.process import Process
from ...report import Table, markdown
from ...training.config import ObjectiveConfig

NAME = "guide.md"
PAGES = ("baselines", "images", "larger", "replaced-pixels", "trusted")  # the experiments that compare methods
LARGE = {
    "images": "images", "cifar10": "CIFAR-10", "celeba": "CelebA", "bedroom": "bedrooms",
    "cifar10-32": "CIFAR-10 at 32x32", "celeba-64": "CelebA at 64x64",
}  # fmt: skip
VECTORS = ("plane", "photos on a subspace")
ITEMS = ("images of 12x12 pixels or more", "smaller images", "vectors")
WRONG = {  # in the order of the table: what a condition is called
    "nothing": r"clean",
    "noise on some items, replaced pixels on others": r"noise or salt",
    "Gaussian noise on every item": r"100 ?% noise",
    "Gaussian noise on some items": r"noise",
    "replaced pixels": r"salt|missing pixels",
    "blank patches": r"patches",
    "JPEG": r"JPEG",
    "blur": r"blur",
    "outliers": r"outlier",
}
UNSEEN = ("blank patches", "JPEG", "blur", "outliers")  # the estimated noise of larger images does not measure these
FARTHER = 1.05  # than ddpm, on average: no method to recommend
BLIND = (
    "ddpm", "ddpm, stopped by auto", "auto", "auto, stopped at half its gate", "auto:k=2", "robust_rand", "robust_adv",
    "input_perturbation", "pseudo_huber", "free", "ambient_blind",
)  # fmt: skip
KNOWN = {  # what is known, and the methods that it allows
    "nothing": BLIND,
    "the noise of each item": (*BLIND, "ambient", "sure"),
    "a few clean items": (*BLIND, "omni", "sfbd"),  # from these alone a network learns to copy them
}


class Measured(NamedTuple):
    """What one page says of one benchmark under one corruption.

    Args:
        wrong: a key of ``WRONG``.
        known: what is known at most.
        numbers: residual corruption and distance from clean data of each method.
        costs: of a step, over ddpm's, where the page says it.
    """

    page: str
    benchmark: str
    items: str
    wrong: str
    known: str
    seeds: int
    numbers: Mapping[str, tuple[float, float]]
    costs: Mapping[str, float]

    @property
    def unseen(self) -> bool:
        """Whether the distance alone counts: nothing is wrong, or the page has no measure of what is."""
        return self.wrong == "nothing" or (self.items == ITEMS[0] and self.wrong in UNSEEN)

    def gain(self, method: str) -> tuple[float, float]:
        """Both numbers over ddpm's."""
        own, plain = self.numbers[method], self.numbers["ddpm"]
        return own[0] / plain[0], own[1] / plain[1]


def measured(records: Mapping[str, Mapping[str, Any]]) -> Iterator[Measured]:
    """What pages say, from their JSON by name."""
    for page, record in records.items():
        if record["experiment"] not in PAGES:
            continue
        seeds = len(re.findall(r"--seeds ([\d,]+)", record["command"] + " --seeds 0")[0].split(","))
        for table in record["tables"]:
            yield from _of_table(page, record, table, seeds)


def _of_table(page: str, record: Mapping[str, Any], table: Mapping[str, Any], seeds: int) -> Iterator[Measured]:
    columns: list[str] = table["columns"]
    method = next((columns.index(name) for name in ("method", "model", "objective") if name in columns), None)
    first = next((i for i, value in enumerate(table["rows"][0]) if not isinstance(value, str)), None)
    distances = ("distance from clean", "frechet pixels", *(name for name in columns if name.startswith("frechet")))
    distance = next((columns.index(name) for name in distances if name in columns), None)
    if "training data" not in columns or None in (method, first, distance):
        return  # it compares no methods
    condition = columns.index("training data")
    cost = columns.index("step cost") if "step cost" in columns else None
    found: dict[tuple[str, str], dict[str, tuple[float, float]]] = {}
    costs: dict[tuple[str, str], dict[str, float]] = {}
    for row in table["rows"]:
        benchmark = row[columns.index("data")] if "data" in columns else _benchmark(record, table)
        place, pair = (benchmark, row[condition]), (_mean(row[first]), _mean(row[distance]))
        if all(isinstance(value, float | int) for value in pair):  # else it diverged
            found.setdefault(place, {})[row[method]] = pair
        if cost is not None:
            costs.setdefault(place, {})[row[method]] = _mean(row[cost])
    for (benchmark, label), numbers in found.items():
        wrong = next((name for name, pattern in WRONG.items() if re.search(pattern, label)), None)
        if wrong and "ddpm" in numbers:
            items = ITEMS[0 if benchmark in LARGE else 2 if benchmark in VECTORS else 1]
            known = "a few clean items" if record["experiment"] == "trusted" else "the noise of each item"
            yield Measured(
                page,
                LARGE.get(benchmark, benchmark),
                items,
                wrong,
                known,
                seeds,
                numbers,
                costs.get((benchmark, label), {}),
            )


def _mean(value: Any) -> Any:
    """Of a cell, which is a number, or a mean and a spread."""
    return value[0] if isinstance(value, list) else value


def _benchmark(record: Mapping[str, Any], table: Mapping[str, Any]) -> str:
    """The data of a table that has them in no column: in its caption, or in the heading of the page."""
    named = re.match(r"([\w ]+): ", table["caption"])
    own = str(record["heading"]).rpartition(", ")[2]
    return own if own in LARGE else named[1] if named else own


def choose(those: Sequence[Measured], methods: Sequence[str]) -> list[str]:
    """The methods that at least half of ``those`` measured, the best first: by the mean of the logs of both numbers.

    Each is compared where it was measured: with auto's numbers where something is wrong and all measured it, else with ddpm's. Methods
    whose distance is more than ``FARTHER`` ddpm's on average come after the others. Where nothing is wrong, or residual corruption is not
    measured, the distance alone counts.
    """
    corrupted = those[0].wrong != "nothing"
    beside = "auto" if corrupted and all("auto" in each.numbers for each in those) else "ddpm"

    def mean(method: str, number: int, beside: str) -> float:
        logs = [
            math.log(max(each.gain(method)[number], 1e-9) / max(each.gain(beside)[number], 1e-9))
            for each in those
            if method in each.numbers
        ]
        return statistics.fmean(logs)

    def score(method: str) -> tuple[bool, float]:
        residual, distance = (mean(method, number, beside) for number in (0, 1))
        far = mean(method, 1, "ddpm") > math.log(FARTHER)
        return far, distance if those[0].unseen else residual + distance

    return sorted((m for m in methods if sum(m in each.numbers for each in those) >= len(those) / 2), key=score)


def table(records: Mapping[str, Mapping[str, Any]]) -> Table:
    """What to use, what it costs, and what it gains over ddpm and over the next best."""
    every, rows = [*measured(records)], []
    for items in ITEMS:
        for wrong in WRONG:
            for known, methods in KNOWN.items():
                informed = set(methods) - set(BLIND)
                own = known == "a few clean items"  # pages of their own, where auto has them, too
                those = [m for m in every if (m.items, m.wrong) == (items, wrong)]
                if own:
                    those = [m for m in those if m.known == known]
                else:
                    those = [
                        m for m in those if m.known != "a few clean items" and (not informed or informed & {*m.numbers})
                    ]
                best = choose(those, methods) if those else []
                if len(best) > 1 and (not informed or own or best[0] in informed):
                    rows.append([items, wrong, known, *_line(those, best, every)])
    columns = ["items", "what is wrong", "what is known", "use", "cost of a step", "residual", "distance"]
    return Table([*columns, "next best: residual, distance", "measured on (seeds)"], rows)


def _line(those: Sequence[Measured], best: Sequence[str], every: Sequence[Measured]) -> list[str]:
    """The chosen method, its cost, its gains, the next with its own, and where this was measured."""
    gains = [
        [_span([each.gain(method)[number] for each in those if method in each.numbers]) for number in (0, 1)]
        for method in best[:2]
    ]
    if those[0].unseen and those[0].wrong != "nothing":
        gains = [["–", distance] for _, distance in gains]
    where = dict.fromkeys(f"[{m.benchmark}]({m.page}.md) ({m.seeds})" for m in those)
    return [best[0], _cost(best[0], every), *gains[0], f"{best[1]}: {', '.join(gains[1])}", ", ".join(where)]


def _span(ratios: Sequence[float]) -> str:
    """Ratios as changes in percent, from the least to the largest."""
    low, high = (f"{100 * (value - 1):+.0f}".replace("-", "−") for value in (min(ratios), max(ratios)))
    return f"{low} %" if low == high else f"{low} to {high} %"


def _cost(method: str, every: Sequence[Measured]) -> str:
    """Of a step, over ddpm's: what pages say of it, from the least to the largest, or what its passes imply."""
    found = [each.costs[method] for each in every if method in each.costs]
    if not found and not method.startswith("auto"):
        found = [ObjectiveConfig(method.split(",")[0]).cost(Process.linear())]
    if not found:
        return "–"
    low, high = (f"{value:.3g}" for value in (min(found), max(found)))
    return low if low == high else f"{low} to {high}"


def page(records: Mapping[str, Mapping[str, Any]]) -> str:
    """The page, from the JSON of the others by name."""
    return (
        "# What to use\n\n<!-- Written by atdm reproduce --pages from the JSON of the other pages; edits are lost. -->\n\n"
        "For each kind of corruption, and what is known of the data: of all methods that half of the pages or more measured, the one with the least "
        "residual corruption and distance from clean data, by the mean of the logs of both (over auto's on the same data where something is wrong), and no more than 5 % farther than ddpm. Percentages are changes against "
        "ddpm, from the least to the largest over all benchmarks and strengths of the corruption; negative is better. More knowledge has a line where "
        "it gains more. Early stops that are known in hindsight do not count, and less corruption is not better where nothing is wrong: there "
        "the distance decides, as it does for larger images where no noise is added and residual corruption is not measured (–). "
        f"With a few clean items auto has them, too.\n\n{markdown(table(records))}\n"
    )
