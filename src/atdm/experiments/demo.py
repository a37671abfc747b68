"""The demonstration: points of a plane and handwritten digits, noisy and clean, learned by ddpm and by the robust objectives.

By default one seed and what a colleague should see in three minutes of two cores. A thorough run adds outliers, the ablations,
the recommended setting, a range of strengths and of stopping levels, and digits on a subspace.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from .. import plot, report
from ..data import load
from ..diffusion.process import Process
from ..objective.auto import GATE, quiet_std
from ..pool import Tell, part
from ..report import Row, Section, Table
from ..training import bench
from ..training.config import ObjectiveConfig
from . import by_scale, digits, plane
from .runner.findings import Claim, Findings, Outcome, at_most, first_seed
from .runner.jobs import AUTO, DDPM, RECOMMENDED, Job, Trained, grid, paths, published, recommended, train
from .runner.rows import means, rows_at_stops, table_of, values_of

CONDITIONS = dict([plane.NOISE, plane.CLEAN])
EARLY = "ddpm, stopped early"
STOPS = (0.1, 0.2, 0.3, 0.5)  # noise levels at which a thorough run also stops ddpm
PLANE, DIGITS, SUBSPACE = "a plane", "handwritten digits", "digits on a subspace"
KEYS = {
    PLANE: "off_support_rms",
    DIGITS: "never_varying_noise",
    SUBSPACE: "off_support_rms",
}  # what is left of the noise
FAR = 1.0  # noise level at which the trajectories of the figures begin
KEPT = 40  # states of a trajectory


@dataclass(frozen=True, kw_only=True)
class Cost(Job):
    """What a training step costs, every objective in turn (:mod:`atdm.training.bench`), in place of a training."""

    @property
    def cost(self) -> float:
        """Seconds on one core, roughly."""
        return 6 + float(self.options["seconds"])

    def __str__(self) -> str:
        return "cost of a step"


def jobs(scale: str, seeds: Sequence[int], data: str | None, thorough: bool = False) -> list[Job]:
    """ddpm, the published method and ``auto`` on noisy and on clean data.

    Args:
        thorough: the rest, too.
    """
    points, images = plane.base(scale), digits.base(scale, steps=1500, samples=500, sampling_steps=125)
    if scale == "cpu":  # converged by then, and half of the samples tell as much
        points = points.but(steps=3000, samples=2000)
    points, images = points.but(options={"set": PLANE}), images.but(options={"set": DIGITS})
    objectives = {"ddpm": DDPM, "robust_adv": published("robust_adv"), AUTO: ObjectiveConfig("auto")}
    if thorough:
        names = ("robust_rand", "inv_adv")
        objectives |= {RECOMMENDED: recommended(**plane.GATED), **{name: published(name) for name in names}}
    todo = grid(points, objectives, CONDITIONS | dict([plane.OUTLIERS] if thorough else []), seeds)
    if thorough:
        objectives |= {RECOMMENDED: recommended(**digits.gated(scale))}
        subspace = images.but(data="digits:subspace=16", options={"set": SUBSPACE})
        todo += grid(subspace, objectives, CONDITIONS, seeds)
        strengths = {f"robust_adv, lambda {lam:g}": published("robust_adv", lam) for lam in (0.1, 1, 3)}
        strengths |= {f"{AUTO}, k {k:g}": ObjectiveConfig(f"auto:k={k:g}") for k in (1, 5, 15)}
        todo += grid(images, strengths, dict([plane.NOISE]), seeds[:1])
    todo += grid(images, objectives, CONDITIONS, seeds)
    todo = [job.but(options={**job.options, "stops": STOPS if thorough else ()}) for job in todo]
    cost = Cost(config=images.config, samples=0, options={"seconds": by_scale(scale, 0.0, 15.0, 60.0)})
    return sorted([*todo, cost], key=lambda job: -job.cost)


def work(job: Job, tell: Tell) -> Outcome:
    """Train, sample and measure; of ddpm also what stopping early returns."""
    if isinstance(job, Cost):
        return _cost(job)
    trained = train(job, part(tell, 0, 0.8))
    stops: dict[str, float] = {}
    if job.label == "ddpm":
        stops[EARLY] = max(GATE * quiet_std(trained.corrupted), 1e-6)
        stops |= {f"ddpm, stopped at {stop:g}": stop for stop in job.options["stops"]}
    rows, drawn = rows_at_stops(trained, part(tell, 0.8, 0.9), stops, {"set": job.options["set"]})
    few = 36 if trained.dataset.kind == "image" else 2000
    tensors = {"samples": {label: x[:few] for label, x in drawn.items()}, "corrupted": trained.corrupted[:few]}
    if job.options["set"] == PLANE:
        tensors["paths"] = _late(trained, part(tell, 0.9, 1))
    return Outcome(job, rows, tensors)


def _late(trained: Trained, tell: Tell) -> torch.Tensor:
    """The last part of trajectories ``[steps, n, 3]`` of the DDIM sampler, which is smooth: noise enters at the start alone."""
    process, count = trained.process, trained.sampling.steps
    stride = process.steps // count  # the sampler's step i is at timestep T - 1 - stride i
    begin = count - 1 - process.timestep_at(FAR) // stride
    return paths(trained, tell, range(begin, count, max(1, (count - begin) // KEPT)), n=200, sampler="ddim")


def _cost(job: Cost) -> Outcome:
    config = job.config
    options = bench.Options(net=config.net, shape="1x8x8", batch_size=config.batch_size, seconds=job.options["seconds"])
    found = bench.measure(options)
    rows = [
        {"method": name, "floor": found["floor"].get(name), "over_ddpm": found["ratio"][name], **found["provenance"]}
        for name in found["ratio"]
    ]
    return Outcome(job, rows)


# --- what was found ---------------------------------------------------------------------------------------------------
ORDER = ("ddpm", EARLY, "robust_adv", AUTO, RECOMMENDED, "robust_rand", "inv_adv")  # then strengths and stops


def findings(scale: str, outcomes: Sequence[Outcome]) -> Findings:
    """A section for each data set, noisy and clean; what a step costs; how far the state is perturbed."""
    costs = [r for o in outcomes if isinstance(o.job, Cost) for r in o.rows]
    trained = sorted(
        (o for o in outcomes if not isinstance(o.job, Cost)), key=lambda o: (o.job.seed, _order(o.job.label))
    )
    rows = sorted((r for o in trained for r in o.rows), key=lambda r: _order(r["method"]))
    figures: dict[str, tuple[str, plot.Figure]] = {}
    sections = []
    claims: list[Claim] = []
    for name in (PLANE, DIGITS, SUBSPACE):
        for condition in values_of([r for r in rows if r["set"] == name], "condition"):
            chosen = [o for o in trained if (o.job.options["set"], o.job.condition) == (name, condition)]
            mine = [r for r in rows if (r["set"], r["condition"]) == (name, condition)]
            pictures = _pictures(first_seed(chosen), mine, f"{name}-{condition}".replace(" ", "-").replace("-%", ""))
            table = _table(mine, name)
            text = _about(name, condition, {o.job.label: o for o in first_seed(chosen)})
            sections.append(Section(f"{name[0].upper()}{name[1:]}, {condition}", text, [*pictures.values()], [table]))
            figures |= pictures
            claims += _claims(mine, name, condition)
    ray = (
        "The radius of the perturbation for several omega, beside the noise itself.",
        plot.ray(Process.linear(), [1.0, 2.0, 4.0]),
    )
    figures["ray"] = ray
    sections += [_cost_section(costs), Section("How far the state is perturbed", RAY, [ray])]
    tables = [table for section in sections for table in section.tables]
    return Findings(LEAD, claims, rows, figures, tables, sections=sections)


LEAD = (
    "A diffusion model learns whatever its training data hold, noise included: a plain one (ddpm) that learns from noisy images "
    "draws noisy images. Adversarial training for diffusion models adds one term to the loss. It perturbs the noisy state by a "
    "small perturbation, and the predicted noise must move by just that perturbation: what looks like noise is to be treated as "
    "noise. Nobody tells the model which items are noisy, or how noisy they are.\n\n"
    "Below, models learn points of a plane and handwritten digits, with noise on nine items in ten and without, and are measured "
    "against clean data that training never saw. robust_adv is the method as published. auto is this project's: it "
    "chooses from the data where and how strongly to regularize, and does so in the second half of the training only. The baseline that "
    "costs nothing is ddpm whose sampling stops early, at the noise level that auto finds in the data, and returns the denoised "
    "state."
)
RAY = (
    "The published radius follows the noise schedule: large while the state is noise, small while content forms. auto perturbs with "
    "one radius, but only at low noise levels, where the content is decided and only the noise of the data is left to be removed, "
    "and only along the direction in which the prediction changes most."
)


def _order(label: str) -> int:
    return ORDER.index(label) if label in ORDER else len(ORDER)


def _table(rows: Sequence[Row], name: str) -> Table:
    columns = {
        PLANE: {"distance off the plane (rms)": "off_support_rms", "spread in it": "spread"},
        DIGITS: {"residual noise (std)": "never_varying_noise", "Frechet distance, pixels": "frechet_pixels"},
        SUBSPACE: {"residual noise (std)": "off_support_rms", "Frechet distance, pixels": "frechet_pixels"},
    }[name] | {"distance from clean data (sliced W2)": "sliced_wasserstein"}
    captions = {
        PLANE: "Distances in data units; the true patch has spread 0.577.",
        DIGITS: "Residual noise on the pixels that never vary in clean digits.",
        SUBSPACE: "Residual noise off the subspace, per coordinate.",
    }
    n = len(values_of(rows, "seed"))
    seeds = "One seed." if n == 1 else f"Mean ± standard deviation over {n} seeds; figures show the first one."
    best: dict[str, report.Better] = {column: "lower" for column in columns if column != "spread in it"}
    return table_of(rows, {"objective": "method"}, columns, f"{captions[name]} Lower is better. {seeds}", best)


def _about(name: str, condition: str, shown: dict[str, Outcome]) -> str:
    """What the data are, and what ``auto`` chose for them."""
    data = {
        PLANE: "Points of a square patch of a tilted plane in three dimensions",
        DIGITS: "scikit-learn's handwritten digits, 8x8 pixels",
        SUBSPACE: "The digits, projected onto their first 16 principal directions, so that the exact error is known",
    }[name]
    noise = {
        plane.NOISE[0]: "nine in ten of them with Gaussian noise of standard deviation 0.2 in all coordinates.",
        plane.CLEAN[0]: "without noise: what does the method cost where there is nothing to remove?",
        plane.OUTLIERS[0]: "one in ten of them replaced by a uniform draw from the cube [-2, 2]^3.",
    }[condition]
    chosen = shown[AUTO].rows[0]["objective"]
    gate = chosen["gate"] or 0.0
    auto = f"auto chose the gate {gate:.3g} (it perturbs at noise levels below), the weight {chosen['weight']} and the radius {chosen['radius']}."
    if gate < 1e-3:
        auto = "auto found directions in which these data do not vary at all, so nothing to remove: it is ddpm here."
    return f"{data}, {noise} {auto}"


def _pictures(shown: Sequence[Outcome], rows: Sequence[Row], name: str) -> dict[str, tuple[str, plot.Figure]]:
    """Samples beside the training data; of the plane, where noisy, also the trajectories that lead to them."""
    samples = {label: x for o in shown for label, x in o.tensors["samples"].items() if label in ORDER}
    panels = {"training data": shown[0].tensors["corrupted"]} | dict(
        sorted(samples.items(), key=lambda item: _order(item[0]))
    )
    data, key = load(shown[0].job.config.data), KEYS[shown[0].job.options["set"]]
    if data.kind == "image":
        grids = plot.image_grids({"clean": data.x[:36]} | panels, columns=6)
        found = {f"samples-{name}": ("Clean digits, the training data, and samples of each model.", grids)}
    else:
        caption = "The training data and samples of each model, coloured by their distance from the true plane."
        found = {f"samples-{name}": (caption, plot.points3d(panels, data.truth))}
    if "paths" in shown[0].tensors and shown[0].job.condition != plane.CLEAN[0]:
        late = {o.job.label: o.tensors["paths"] for o in shown}
        found[f"trajectories-{name}"] = (
            f"A cut across the plane: how samples of the DDIM sampler reach it from noise level {FAR:g} (grey) on. Across: the plane's "
            "widest direction. Up: off the plane.",
            plot.trajectories(late, data.truth),
        )
    main = [r for r in rows if r["method"] in ORDER]
    found[f"noise-{name}"] = ("What is left of the noise. Lower is better.", plot.bars(main, key, ("method",)))
    if len(rows) > len(main) and "frechet_pixels" in rows[0]:
        of, points = means(rows), []
        for label in values_of(rows, "method"):
            objective, _, setting = label.partition(", ")
            points.append((setting, objective, of(label, key), of(label, "frechet_pixels")))
        figure = plot.scatter_tradeoff(points, "residual noise", "Frechet distance, pixels", "y")
        found[f"strength-{name}"] = (
            "Residual noise against distance from clean data, over strengths and stopping levels.",
            figure,
        )
    return found


def _claims(rows: Sequence[Row], name: str, condition: str) -> Iterator[Claim]:
    """What the published method and ``auto`` should do beside ddpm."""
    if condition == plane.CLEAN[0]:
        far = means(rows, "sliced_wasserstein")
        statement = f"{name}, clean: auto is at most 1.1 times as far from clean data as ddpm"
        yield at_most(statement, far(AUTO), far("ddpm"), 1.1, ("auto", "ddpm"))
        return
    left = means(rows, KEYS[name])
    for method, label in (("robust_adv", "robust_adv as published"), (AUTO, "auto")):
        for than, other in (("ddpm", "ddpm"), (EARLY, "ddpm stopped early")):
            statement = f"{name}, {condition}: {label} has less residual noise than {other}"
            yield at_most(statement, left(method), left(than), 1.0, (label, other))


def _cost_section(rows: Sequence[Row]) -> Section:
    """Floor and measurement; the objectives took turns, so what else the machine does falls on all alike."""
    names = {name: name for name in ("ddpm", "robust_adv", AUTO)}
    names[bench.EXAMPLE] = "the training example of diffusers"
    cells = [[names[r["method"]], r["floor"], r["over_ddpm"], r["rounds"]] for r in rows if r["method"] in names]
    caption = (
        "A training step over ddpm's: counted from its passes through the network, and measured (median of the rounds)."
    )
    text = (
        "A forward pass counts 1, a backward pass 2, and one to the input alone 1. Measured was the network of the digits, on one "
        "core; the objectives took turns, step by step, so that other work of the machine falls on all of them alike. auto is "
        "counted over a whole training, of which it perturbs in one of two steps of the second half. A measured ratio can lie below "
        "the count, since the optimizer and the averaging of the weights cost the same for all. atdm bench measures any network."
    )
    return Section(
        "What a training step costs", text, [], [Table(["objective", "counted", "measured", "rounds"], cells, caption)]
    )
