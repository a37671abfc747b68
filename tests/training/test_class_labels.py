"""Classes that the network is told: from sub-folders and tables through training and guidance to a shared pipeline."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from atdm.data import load
from atdm.data.classes import Classes
from atdm.data.items import Floats
from atdm.data.source import Source
from atdm.diffusion.model import Model
from atdm.diffusion.process import Process
from atdm.errors import UserError
from atdm.nets import build_net, call, weights_hash
from atdm.objective import KINDS, OBJECTIVES, Objective
from atdm.training.config import ObjectiveConfig, Settings, TrainConfig
from atdm.training.run import train
from atdm.training.train import State, fit
from helpers import LINEAR, atdm, seeded

NAMES = ("cats", "dogs", "eels")
QUIET = Process(torch.ones(10), torch.linspace(1e-3, 2e-3, 10))  # so little noise that an item is known by its state


def picture(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((8, 8, 3), value, np.uint8)).save(path)


@pytest.fixture(scope="module")
def stock(tmp_path_factory):
    """Gray images, 10 of a class, whose brightness tells the class."""
    root = tmp_path_factory.mktemp("stock")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ATDM_CACHE", str(root / "cache"))
        for place, name in enumerate(NAMES):
            for i in range(10):
                picture(root / "photos" / name / f"{i}.png", 20 + 100 * place + i)
        yield root / "photos"


@pytest.fixture
def folders(stock, tmp_path):
    """A copy of them that may be changed."""
    return shutil.copytree(stock, tmp_path / "photos")


def by_brightness(x):
    return ((x.flatten(1).mean(1) + 1) * 127.5 / 100).long()


# --- where classes come from ------------------------------------------------------------------------------------------
@pytest.mark.parametrize("limit", [None, 12])
def test_sub_folders_are_classes_also_where_some_images_are_broken_or_left_out(folders, limit):
    (folders / "cats" / "3.png").write_bytes(b"no image")
    (folders / "eels" / "0.png").write_bytes(b"no image")
    dataset = load(str(folders), limit=limit, skip_broken=True)
    assert dataset.classes.names == NAMES
    assert torch.equal(dataset.classes.of, by_brightness(dataset.x))
    assert len(dataset.classes.of) == len(dataset.items)


@pytest.mark.parametrize("kind", ["class", "number", "text"])
def test_a_column_of_labels_is_classes(tmp_path, kind):
    import datasets

    column = {"class": datasets.ClassLabel(names=list(NAMES)), "number": datasets.Value("int64")}
    values = [i % 3 for i in range(9)] if kind != "text" else [NAMES[i % 3] for i in range(9)]
    rows = {"image": [], "label": values}
    for i in range(9):
        picture(tmp_path / "one.png", 20 + 100 * (i % 3))
        rows["image"].append({"bytes": (tmp_path / "one.png").read_bytes(), "path": None})
    features = datasets.Features({"image": datasets.Image(), "label": column.get(kind, datasets.Value("string"))})
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "train.parquet")
    dataset = load(str(tmp_path / "train.parquet"), cache=False)
    assert dataset.classes.names == (("0", "1", "2") if kind == "number" else NAMES)
    assert torch.equal(dataset.classes.of, by_brightness(dataset.x))
    with pytest.raises(UserError, match="no column 'kind'"):
        assert load(f"parquet:path={tmp_path / 'train.parquet'},label=kind", cache=False).classes


def test_data_without_classes_are_refused_in_a_sentence(folders):
    with pytest.raises(UserError, match="None of the 10 items has a sub-folder"):
        assert load(str(folders / "cats")).classes
    picture(folders / "loose.png", 0)
    with pytest.raises(UserError, match="1 of the 31 items have no sub-folder"):
        assert load(str(folders)).classes
    with pytest.raises(UserError, match="plane:n=20 knows of no classes"):
        assert load("plane:n=20").classes


# --- what the network is told -----------------------------------------------------------------------------------------
class Told(nn.Module):
    """Amplifies by a factor of its own for each class, and remembers what it was given."""

    def __init__(self, classes):
        super().__init__()
        self.gain = nn.Parameter(torch.linspace(0.5, 2, classes + 1))
        self.seen = []

    def forward(self, x, t, class_labels):
        assert len(class_labels) == len(x)
        self.seen.append((x.detach(), class_labels))
        return torch.tanh(x * self.gain[class_labels].reshape(-1, *[1] * (x.dim() - 1)))


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_pass_of_an_objective_tells_each_item_its_own_class(name):
    objective = Objective(name, LINEAR, gate=2.0) if name in KINDS else OBJECTIVES[name](LINEAR)
    x = torch.randn(12, 1, 4, 4, generator=seeded(1))
    labels, levels = torch.arange(12) % 3, torch.full((12,), 0.05)
    draws = objective.draw(x.shape, generator=seeded(2), perturbation_generator=seeded(3))
    together = objective(Told(3), x, draws=draws, levels=levels, class_labels=labels)
    for i in range(12):
        row = slice(i, i + 1)
        alone = objective(Told(3), x[row], draws=draws[row], levels=levels[row], class_labels=labels[row])
        assert torch.allclose(together.loss[row], alone.loss, rtol=1e-4), i
        swapped = objective(Told(3), x[row], draws=draws[row], levels=levels[row], class_labels=(labels[row] + 1) % 3)
        assert not torch.allclose(alone.loss, swapped.loss, rtol=1e-4)


def labelled(n=60, classes=3):
    """Items that are their class, and a source that says so."""
    of = torch.arange(n) % classes
    items = Floats(of[:, None].float().expand(n, 4).contiguous())
    return Source(items, classes=Classes(of, NAMES[:classes]))


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("name", ["ddpm", "robust_adv"])
def test_training_tells_each_item_its_class_or_none(name, accumulate):
    net, settings = Told(3), Settings(steps=20, batch_size=24, accumulate=accumulate, warmup=0, label_dropout=0.25)
    for _ in fit(Objective(name, QUIET), State.create(net, settings), labelled(), settings):
        pass
    x, labels = (torch.cat(parts) for parts in zip(*net.seen, strict=True))
    none = labels == 3
    assert torch.equal(x.mean(1).round().long()[~none], labels[~none])
    assert none.float().mean() == pytest.approx(0.25, abs=0.08)


def test_what_is_withheld_is_a_function_of_seed_and_step_alone():
    def labels(seed, begin):
        net, settings = Told(3), Settings(steps=6, batch_size=24, warmup=0, label_dropout=0.5, seed=seed)
        state = State.create(net, settings)
        state.step = begin
        for _ in fit(Objective("ddpm", QUIET), state, labelled(), settings):
            pass
        return [told for _, told in net.seen]

    whole, rest = labels(0, 0), labels(0, 4)
    assert all(torch.equal(a, b) for a, b in zip(whole[4:], rest, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(whole, labels(1, 0), strict=True))


# --- networks ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("spec", ["mlp:width=16", "digits:channels=8,head_dim=8"])
def test_a_network_answers_by_class_and_one_without_classes_is_what_it_was(spec):
    torch.manual_seed(0)
    plain = build_net(spec, (1, 8, 8))
    assert not [name for name in plain.state_dict() if "class" in name]
    net = build_net(spec, (1, 8, 8), 4).eval()
    x, t = torch.randn(3, 1, 8, 8), torch.tensor([5, 50, 500])
    each = call(net, x, t, class_labels=torch.tensor([0, 1, 3]))
    assert torch.allclose(each[1:2], call(net, x[1:2], t[1:2], class_labels=torch.tensor([1])), atol=1e-5)
    assert not torch.allclose(each, call(net, x, t, class_labels=torch.tensor([1])), atol=1e-3)
    with pytest.raises(ValueError, match="class_labels"):
        net(x, t)


# --- a model of two classes -------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def two():
    """Points around -1 (class 0) and around 1 (class 1), a quarter of them of class 0."""
    of = (torch.rand(2000, generator=seeded()) > 0.25).long()
    x = (2 * of[:, None] - 1) + 0.3 * torch.randn(2000, 2, generator=seeded(1))
    torch.manual_seed(0)
    settings = Settings(steps=500, batch_size=256, warmup=20, decay="cosine", lr=5e-3, ema=0.99, label_dropout=0.3)
    state = State.create(build_net("mlp:width=32", (2,), 3), settings)
    for _ in fit(Objective("ddpm", LINEAR), state, Source(Floats(x), classes=Classes(of, ("left", "right"))), settings):
        pass
    return Model(state.ema, LINEAR, classes=("left", "right"), conditioning={"class_labels": torch.tensor([2])})


def samples(two, *labels, scale=1.0):
    model = dataclasses.replace(two, conditioning={"class_labels": torch.tensor(labels)}, conditioned_on="class")
    return (model if scale == 1 else model.guided(scale)).sample(400, steps=25, seed=0)


def test_samples_are_of_their_class_in_turn_and_together(two):
    assert (samples(two, 0) < 0).float().mean() > 0.95
    assert (samples(two, 1) > 0).float().mean() > 0.95
    turns = samples(two, 0, 1)
    assert (turns[0::2] < 0).float().mean() > 0.95
    assert (turns[1::2] > 0).float().mean() > 0.95
    together = two.sample(400, steps=25, seed=0)  # no class: as often as in the data
    assert (together < 0).all(1).float().mean() == pytest.approx(0.25, abs=0.1)


def test_guidance_goes_further_towards_the_class(two):
    plain, guided = samples(two, 1), samples(two, 1, scale=3.0)
    assert guided.mean() > plain.mean() + 0.05
    assert torch.allclose(samples(two, 1, scale=1.0), plain)
    with pytest.raises(UserError, match=r"guidance is 2.*no class is named"):
        two.guided(2.0)


# --- a run ------------------------------------------------------------------------------------------------------------
TINY = {"net": "mlp:width=16", "batch_size": 8, "warmup": 0, "threads": 1, "save_every": 100}
SMALL = "digits:channels=8,head_dim=8"


def config(out, data, **more):
    objective = ObjectiveConfig(more.pop("objective", "ddpm"))
    return TrainConfig(data=str(data), class_labels=True, out=str(out), objective=objective, **{**TINY, **more})


def finished(out, data, **more):
    for _ in train(config(out, data, **more)):
        pass
    return out


@pytest.fixture(scope="module")
def run(stock, tmp_path_factory):
    return finished(tmp_path_factory.mktemp("runs") / "run", stock, steps=3, net=SMALL)


def test_a_run_that_resumes_is_the_run_that_never_stopped(tmp_path, stock):
    whole = finished(tmp_path / "whole", stock, steps=4, objective="robust_adv")
    halted = config(tmp_path / "halted", stock, steps=4, objective="robust_adv")
    steps = iter(range(2))
    for _ in train(halted, stop=lambda: next(steps, None) is None):
        pass
    finished(tmp_path / "halted", stock, steps=4, objective="robust_adv")
    made = [weights_hash(Model.from_pretrained(path).bare) for path in (whole, tmp_path / "halted")]
    assert made[0] == made[1]


def test_an_image_in_another_sub_folder_is_another_data_set(tmp_path, folders):
    finished(tmp_path / "run", folders, steps=2)
    a, b = folders / "cats" / "9.png", folders / "dogs" / "0.png"
    shutil.move(a, folders / "dogs" / "0-.png")  # at the same place among the images, but of another class
    assert a.parent != b.parent
    with pytest.raises(UserError, match="are not those that"):
        finished(tmp_path / "run", folders, steps=4)


def test_a_run_is_a_pipeline_of_diffusers_that_keeps_the_names(run, tmp_path, capsys):
    from diffusers import ConsistencyModelPipeline

    from atdm.diffusion.sampling import generators

    assert json.loads((run / "model" / "classes.json").read_text()) == {"names": [*NAMES], "no_class": 3}
    assert atdm(capsys, "export", str(run), "--out", str(tmp_path / "shared"))[0] == 0
    card = (tmp_path / "shared" / "README.md").read_text()
    assert "0 cats, 1 dogs, 2 eels" in card
    assert "class_labels=[0] * 16" in card
    pipeline = ConsistencyModelPipeline.from_pretrained(tmp_path / "shared")
    pipeline.set_progress_bar_config(disable=True)
    options = {"num_inference_steps": 10, "generator": generators(0, range(3)), "output_type": "np"}
    theirs = pipeline(batch_size=3, class_labels=[0, 1, 2], **options).images
    ours = Model.from_pretrained(tmp_path / "shared", label="all").sample(3, sampler="ddpm", steps=10, seed=0)
    assert np.allclose(theirs, (ours.permute(0, 2, 3, 1) / 2 + 0.5).clamp(0, 1), atol=1e-4)


def test_the_commands_take_a_class_by_name_or_number(run, stock, tmp_path, capsys):
    def drawn(*words):
        out = tmp_path / "drawn.npz"
        code, _, err = atdm(capsys, "sample", str(run), "--n", "4", "--sampling_steps", "5", "--out", str(out), *words)
        assert code == 0, err
        return np.load(out)["samples"]

    assert np.array_equal(drawn("--label", "dogs"), drawn("--label", "1"))
    assert not np.array_equal(drawn("--label", "dogs"), drawn("--label", "cats"))
    assert np.array_equal(drawn("--label", "all")[1], drawn("--label", "dogs")[1])
    assert not np.array_equal(drawn(), drawn("--label", "dogs"))
    assert not np.array_equal(drawn("--label", "dogs", "--guidance", "3"), drawn("--label", "dogs"))
    few = ("--n", "4", "--sampling_steps", "5")
    code, out, err = atdm(capsys, "evaluate", str(run), "--label", "dogs", "--guidance", "2", *few, "--json")
    assert code == 0, err
    assert {row["conditioned_on"] for row in json.loads(out)["rows"]} == {"class dogs, guidance 2"}
    words = f"attack {run} --label all --n 4 --seeds 1 --sampling_steps 2 --budgets 0,0.1 --attack fgsm --checks false --json"
    code, out, err = atdm(capsys, *words.split(), "--out", str(tmp_path / "attack"))
    assert code == 0, err
    assert json.loads(out)["provenance"]["conditioned_on"] == "class all"
    poison = f"poison:model={run},steps=1,draws=2,label=eels"
    code, _, err = atdm(
        capsys, "corrupt", "--data", str(stock), "--corrupt", poison, "--limit", "2", "--out", str(tmp_path / "bad")
    )
    assert code == 0, err


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("--label mice", "from 0 to 2 (cats, dogs, eels)"),
        ("--label 3", "from 0 to 2"),
        ("--guidance 2", "no class is named"),
    ],
)
def test_what_cannot_be_is_said_in_a_sentence(run, tmp_path, capsys, words, sentence):
    out = tmp_path / "none.png"
    code, _, err = atdm(capsys, "sample", str(run), *words.split(), "--out", str(out))
    assert code == 2
    assert sentence in err
    assert not out.exists()
