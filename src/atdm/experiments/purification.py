"""Diffusion models as purifiers: accuracy of a classifier of digits behind them, under attacks that know them or do not."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from .. import plot
from ..attack import Search, bootstrap
from ..attack.purify import ImageAttack, Purifier, adversaries, answers, doubt_purifier, purify, with_robust
from ..data import Dataset
from ..nets import weights_hash
from ..plot.lines import curve_panels
from ..pool import Tell, part
from ..report import Row
from . import by_scale, digits
from .runner.findings import Claim, Findings, Outcome, by_condition, first_seed
from .runner.jobs import DDPM, RECOMMENDED, Job, grid, recommended, train
from .runner.rows import mean_over_seeds, number, row, table_of, values_of

CONDITIONS = {"clean": "none", "noise 0.2": digits.NOISE["noise 0.2"]}
NOISE = 0.3  # sigma_t/alpha_t that inputs are diffused to
MAIN = 0.3  # the radius of claims, AutoAttack and pictures; l_inf in the scale of [-1, 1]
ALONE = "no purifier"
KINDS = {"unaware": "PGD that ignores the purifier", "adaptive": "PGD through the purifier"}
SHOWN = 12
LEAD = (
    "A diffusion model can clean a classifier's input of adversarial noise: diffuse the input a little and denoise it "
    "(DiffPure, Nie 2022). Is a model that was trained adversarially the better purifier? And what is left when the "
    "attacker knows the purifier, follows its gradients and averages over its noise?"
)


def jobs(scale: str, seeds: Sequence[int], data: str | None) -> list[Job]:
    """ddpm and robust_adv, trained on clean digits and on noisy ones; at the scale of the paper stronger attacks."""
    options = {
        "images": by_scale(scale, 8, 200, 297),
        "radii": by_scale(scale, (MAIN,), (0.1, 0.2, MAIN, 0.5), (0.1, 0.2, MAIN, 0.4, 0.5)),
        "search": by_scale(
            scale, Search(2, draws=2), Search(20, kappa=0.5, draws=4), Search(50, kappa=0.5, draws=16, restarts=2)
        ),
        "steps": by_scale(scale, 20, 50, 100),
        "draws": by_scale(scale, 2, 4, 16),
        "classifier_steps": by_scale(scale, 20, 400, 1000),
        "auto_steps": 100 if scale != "smoke" and find_spec("torchattacks") else 0,
    }
    base = digits.base("smoke" if scale == "smoke" else "cpu", steps=2500).but(options=options)
    conditions = {"clean": "none"} if scale == "smoke" else CONDITIONS
    return grid(base, {"ddpm": DDPM, RECOMMENDED: recommended(**digits.gated("cpu"))}, conditions, seeds)


def labels(x: Tensor) -> Tensor:
    """Which digit each image shows: that of the nearest of scikit-learn's, which came in an order of its own."""
    from sklearn.datasets import load_digits

    known = load_digits()
    images = torch.from_numpy(known.images).float().div(8).sub(1).flatten(1)
    return torch.from_numpy(known.target).long()[torch.cdist(x.flatten(1), images).argmin(1)]


def classifier_of(dataset: Dataset, steps: int, seed: int) -> nn.Module:
    """A small convolutional network that learned the clean digits; the same seed, the same network."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = nn.Sequential(
            *(nn.Conv2d(1, 32, 3, padding=1), nn.ReLU()),
            *(nn.Conv2d(32, 32, 3, stride=2), nn.ReLU()),
            *(nn.Flatten(), nn.Linear(288, 10)),
        )
        x, y = dataset.x, labels(dataset.x)
        optimizer = torch.optim.Adam(net.parameters(), 2e-3)
        for _ in range(steps):
            indices = torch.randint(len(x), (128,))
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(x[indices]), y[indices]).backward()
            optimizer.step()
    return net.eval().requires_grad_(False)


def work(job: Job, tell: Tell) -> Outcome:
    """Train the model and the classifier; attack with and without knowledge of the purifier at each radius."""
    trained, options = train(job, part(tell, 0, 0.4)), job.options
    device = next(trained.net.parameters()).device
    classifier = classifier_of(trained.dataset, options["classifier_steps"], job.seed).to(device)
    x = trained.dataset.reference[: options["images"]].to(device)
    y = labels(x.cpu()).to(device)
    trained.net.requires_grad_(False)
    purifier = Purifier(trained.model, noise=NOISE, steps=options["steps"])
    about = {"classifier": weights_hash(classifier), "images": len(x), "purifier_noise": purifier.level}
    about |= {"purifier_evaluations": purifier.evaluations, "sampler": "ddim", "steps": options["steps"]}
    about["auto_attack_steps"] = options["auto_steps"]
    rows, right, shown = [], {}, {}
    for turn, radius in enumerate(options["radii"]):
        attack = ImageAttack(radius, options["search"], job.seed)
        images = adversaries(classifier, purifier, x, y, attack, options["auto_steps"] if radius == MAIN else 0)
        found = answers(classifier, purifier, x, y, images, draws=options["draws"], seed=job.seed)
        values: Row = dict(with_robust({name: v.mean().item() for name, v in found.items()}))
        for name, v in found.items():
            values[f"{name}_low"], values[f"{name}_high"] = bootstrap(v.tolist())
        check = doubt_purifier(values)
        rows.append(row(trained, None, {"radius": radius, **values, "check": check.as_dict()}, **about))
        right[radius] = found
        if radius == MAIN:
            moved = images["pgd_adaptive"]
            shown = {"clean": x, "attacked": moved, "attacked, purified": purify(purifier, moved, seed=job.seed + 1)}
        tell(0.4 + 0.6 * (turn + 1) / len(options["radii"]))
    return Outcome(job, rows, {"right": right, "shown": {k: v[:SHOWN].cpu() for k, v in shown.items()}})


def gained(outcomes: Sequence[Outcome], condition: str, method: str, key: str) -> tuple[float, float, float]:
    """By how much the method is more often right than ddpm at the main radius, item by item, with its 95 % interval."""
    pairs: dict[int, dict[str, Tensor]] = {}
    for o in outcomes:
        if o.job.condition == condition:
            pairs.setdefault(o.job.seed, {})[o.job.label] = o.tensors["right"][MAIN][key]
    differences = torch.cat([p[method] - p["ddpm"] for p in pairs.values()]).tolist()
    return sum(differences) / len(differences), *bootstrap(differences)


def findings(scale: str, outcomes: Sequence[Outcome]) -> Findings:
    """Accuracy against radius, what knowledge of the purifier is worth, and which model purifies better."""
    rows = [r for o in outcomes for r in o.rows]
    conditions, methods = values_of(rows, "condition"), values_of(rows, "method")

    def of(condition: str, method: str, key: str, radius: float = MAIN) -> float:
        return mean_over_seeds(rows, key, condition=condition, method=method, radius=radius)

    clean = of(conditions[0], "ddpm", "clean_alone")
    claims = [*_claims(of, outcomes, conditions, methods)]
    panels, bands = _curves(outcomes)
    figures = {
        "accuracy": (
            f"Accuracy on {rows[0]['images']} held-out digits against the radius of the attack, with 95 % intervals over "
            f"the digits: attacks that ignore the purifier (left) and that go through it (right).",
            curve_panels(panels, "radius (l_inf, scale of [-1, 1])", "accuracy", bands=bands),
        )
    }
    for o in first_seed(outcomes):
        name = f"{o.job.label}-{o.job.condition}".replace(" ", "-")
        figures[f"purified-{name}"] = (
            f"{o.job.label}, trained on {o.job.condition} digits: PGD through the purifier at radius {MAIN:g}.",
            plot.image_grids(o.tensors["shown"], columns=4),
        )
    columns = {
        "clean": "clean_purified",
        "PGD, unaware": "pgd_unaware",
        "PGD, adaptive": "pgd_adaptive",
        "AutoAttack, unaware": "auto_unaware",
        "AutoAttack, adaptive": "auto_adaptive",
        "robust": "robust",
        "no purifier, PGD": "pgd_alone",
        "no purifier, AutoAttack": "auto_alone",
    }
    table = table_of(
        rows,
        {"trained on": "condition", "purifier": "method", "radius": "radius"},
        {heading: key for heading, key in columns.items() if any(r.get(key) is not None for r in rows)},
        f"Accuracies of a classifier ({_percent(clean)} on clean digits) behind a purifier that diffuses to sigma/alpha "
        f"{rows[0]['purifier_noise']:.2g} and denoises in {rows[0]['purifier_evaluations']} ddim evaluations. robust: the "
        "lowest of those under attack.",
    )
    notes = [
        f"{r['method']}, trained on {r['condition']} digits, radius {r['radius']:g}: {r['check']['says']}"
        for r in rows
        if not r["check"]["ok"]
    ]
    if scale != "smoke" and not outcomes[0].job.options["auto_steps"]:
        notes.append("AutoAttack was left out: torchattacks is not installed (pip install --no-deps torchattacks).")
    return Findings(LEAD, claims, rows, figures, [table], notes)


def _claims(
    of: Callable[..., float], outcomes: Sequence[Outcome], conditions: Sequence[str], methods: Sequence[str]
) -> Iterator[Claim]:
    """What a purifier restores, what is left when the attacker knows it, and whether the robust model is the better one."""
    clean, alone = of(conditions[0], "ddpm", "clean_alone"), of(conditions[0], "ddpm", "pgd_alone")
    auto = of(conditions[0], "ddpm", "auto_alone")
    weakest = alone if math.isnan(auto) else min(alone, auto)
    yield Claim(
        f"without a purifier PGD of radius {MAIN:g} takes more than half of the classifier's accuracy",
        alone < clean / 2,
        f"{_percent(clean)} clean, {_percent(alone)} under PGD",
    )
    for condition in conditions:
        for method in methods:
            name = f"{method}, trained on {condition} digits"
            behind, aware = of(condition, method, "pgd_unaware"), of(condition, method, "pgd_adaptive")
            robust = of(condition, method, "robust")
            yield Claim(
                f"{name}: the purifier restores accuracy under PGD that ignores it",
                behind > alone + 0.05,
                f"{_percent(behind)}, without purifier {_percent(alone)}; clean inputs "
                f"{_percent(of(condition, method, 'clean_purified'))}",
            )
            yield Claim(
                f"{name}: PGD through the purifier is the stronger attack",
                aware < behind,
                f"{_percent(aware)}, PGD that ignores it {_percent(behind)}",
            )
            yield Claim(
                f"{name}: under the strongest attack there is more accuracy than without purifier under the strongest there",
                robust > weakest + 0.05,
                f"{_percent(robust)}, without purifier {_percent(weakest)}",
            )
        for method in [m for m in methods if m != "ddpm"]:
            more, low, high = gained(outcomes, condition, method, "pgd_adaptive")
            yield Claim(
                f"trained on {condition} digits, {method} purifies better than ddpm under PGD through the purifier",
                low > 0,
                f"{_percent(of(condition, method, 'pgd_adaptive'))}, ddpm {_percent(of(condition, 'ddpm', 'pgd_adaptive'))}; "
                f"difference {number(100 * more)} points, 95 % interval [{number(100 * low)}, {number(100 * high)}]",
            )


def _percent(value: float) -> str:
    return f"{number(100 * value)} %"


def _curves(outcomes: Sequence[Outcome]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Lines and intervals by panel and name; radius 0 is the accuracy on clean images."""
    panels: dict[str, dict[str, Any]] = {}
    bands: dict[str, dict[str, Any]] = {}
    for condition, chosen in by_condition(outcomes):
        for kind, says in KINDS.items():
            title = f"trained on {condition} digits: {says}"
            panels[title], bands[title] = {}, {}
            for name, o, keys in [
                (ALONE, chosen[0], ("clean_alone", "pgd_alone")),
                *((o.job.label, o, ("clean_purified", f"pgd_{kind}")) for o in chosen),
            ]:
                points = [(0.0, o.rows[0], keys[0]), *((r["radius"], r, keys[1]) for r in o.rows)]
                panels[title][name] = ([x for x, _, _ in points], [r[k] for _, r, k in points])
                bands[title][name] = tuple([r[f"{k}_{end}"] for _, r, k in points] for end in ("low", "high"))
    return panels, bands
