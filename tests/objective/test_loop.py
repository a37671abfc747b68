"""The loss in a person's own loop: what is chosen from the data, when it pushes, on several processes, in half precision."""

import textwrap

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from atdm.data import load
from atdm.data.items import Floats
from atdm.data.source import Source
from atdm.errors import UserError
from atdm.objective import BASELINES, KINDS, OBJECTIVES, Objective, auto
from atdm.training.config import ObjectiveConfig, Settings
from atdm.training.train import State, fit
from helpers import LINEAR, seeded


class Small(nn.Module):
    def __init__(self, d=6, out=None):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(d, 32), nn.SiLU(), nn.Linear(32, out or d))

    def forward(self, x, t):
        return self.net(x)


@pytest.fixture(scope="module")
def images():
    flat = torch.randn(200, 6, generator=seeded()) * torch.tensor([1.0, 1, 1, 0.5, 0.3, 0.2])
    return flat


def chosen(objective):
    return objective.radius, objective.weight, objective.perturbation, objective.gate, objective.every, objective.start


def test_auto_is_what_training_gets_from_the_same_data(images, capsys):
    found = Objective.auto(images, LINEAR, k=3)
    config = ObjectiveConfig("auto:k=3").fitted(Source(Floats(images)).some(auto.ITEMS))
    trained = config.build(LINEAR)
    assert chosen(found)[:5] == chosen(trained)[:5]
    assert found.start == config.start == auto.START
    assert found.note == auto.explain(vars(config), len(images))
    assert found.note in capsys.readouterr().out


@pytest.mark.parametrize(
    "form",
    [
        lambda x: TensorDataset(x, torch.zeros(len(x))),
        lambda x: DataLoader(TensorDataset(x), batch_size=50),
        lambda x: iter(x.split(30)),
        lambda x: [{"label": 3, "images": part} for part in x.split(64)],
    ],
)
def test_auto_looks_at_whatever_holds_the_images(images, form):
    found = auto.items_of(form(images))
    assert torch.equal(found.sort(0).values, images.sort(0).values)


def test_auto_sees_the_noise_that_only_files_show(tmp_path, monkeypatch):
    monkeypatch.setenv("ATDM_CACHE", str(tmp_path / "cache"))
    rng = np.random.default_rng(0)
    (tmp_path / "photos").mkdir()
    for i in range(40):
        a, b = rng.uniform(-0.5, 0.5, (2, 3))
        ramp = np.linspace(-1, 1, 64)
        x = ramp[:, None, None] * a + ramp[None, :, None] * b + 0.2 * rng.normal(size=(64, 64, 3))
        pixels = ((x.clip(-1, 1) + 1) * 127.5).round().astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{i}.jpg", quality=75)
    dataset = load(str(tmp_path / "photos"), image_size=16)
    assert dataset.hidden_std > 0.01
    source = Source(dataset.items, files=dataset.files)
    trained = ObjectiveConfig("auto").fitted(source.some(auto.ITEMS), source.hidden_std).build(LINEAR)
    for images in (dataset, source):
        assert chosen(Objective.auto(images, LINEAR))[:5] == chosen(trained)[:5]
    assert Objective.auto(dataset.x, LINEAR).name == "ddpm"  # of pixels alone it cannot be seen


def test_no_more_is_taken_from_an_iterator_than_is_looked_at():
    taken = []

    def batches():
        for index in range(100):
            taken.append(index)
            yield torch.randn(1000, 2)

    assert len(auto.items_of(batches())) == auto.ITEMS
    assert len(taken) == 5


def test_a_schedule_cannot_be_forgotten(images):
    objective, model = Objective.auto(images, LINEAR), Small()
    with pytest.raises(UserError, match=r"first 50% of the training.*step=step, steps=steps"):
        objective(model, images)
    pushed = []
    gated = Objective("robust_adv", LINEAR, every=2, start=0.5)
    for step in range(10):
        pushed.append(bool(gated(model, images, step=step, steps=10).perturbed.any()))
    assert pushed == [False] * 5 + [True, False, True, False, True]


def test_fit_keeps_the_schedule_of_an_objective(images):
    settings = Settings(steps=8, batch_size=16, warmup=0)
    objective = Objective("robust_rand", LINEAR, start=0.5)
    steps = fit(objective, State.create(Small(), settings), images, settings)
    assert [bool(step.terms.perturbed.any()) for step in steps] == [False] * 4 + [True] * 4


@pytest.mark.parametrize("scheduler", [DDPMScheduler(), FlowMatchEulerDiscreteScheduler()])
def test_a_scheduler_stands_for_its_process(scheduler):
    objective = Objective("robust_adv", scheduler)
    assert torch.equal(objective.process.sigmas, type(objective.process).from_scheduler(scheduler).sigmas)
    assert objective(Small(), torch.randn(4, 6)).loss.isfinite().all()


@pytest.mark.parametrize("name", [*OBJECTIVES, "auto"])
def test_every_name_makes_an_objective_or_says_what_does(name):
    if name in KINDS:
        assert Objective(name, LINEAR).name == name
        return
    with pytest.raises(UserError, match=r"Objective.auto\(images" if name == "auto" else rf"OBJECTIVES\['{name}'\]"):
        Objective(name, LINEAR)
    if name in BASELINES:
        assert OBJECTIVES[name](LINEAR).process is LINEAR


@pytest.mark.parametrize(("out", "words"), [(12, "learned variances"), (1, "same shape")])
@pytest.mark.parametrize("make", [lambda: Objective("robust_adv", LINEAR), lambda: OBJECTIVES["pseudo_huber"](LINEAR)])
def test_an_output_of_another_shape_is_refused(make, out, words):
    with pytest.raises(UserError, match=words):
        make()(Small(out=out), torch.randn(4, 6))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("own", [torch.float32, None])
def test_networks_in_half_precision_learn(dtype, own, images):
    x0 = images.to(own or dtype)
    model = Small()
    objective = Objective("robust_adv", LINEAR, gate=0.5)
    draws = objective.draw(x0.shape, generator=seeded(1))
    expected = objective(model, images, draws=draws)
    half = Small()
    half.load_state_dict(model.state_dict())
    found = objective(half.to(dtype), x0, draws=draws)
    assert found.loss.dtype == torch.float32
    torch.testing.assert_close(found.denoise, expected.denoise, rtol=0.1, atol=0.05)
    found.denoise.mean().backward()
    assert all(p.grad is not None and p.grad.dtype == dtype for p in half.parameters())


PROCESSES = """
    import os
    import torch
    from torch import nn
    from torch.nn.parallel import DistributedDataParallel
    from atdm import Objective, Process
    from atdm.errors import UserError
    rank = int(os.environ["RANK"])
    torch.distributed.init_process_group("gloo")
    process = Process.linear()
    objective = Objective("robust_adv", process)
    torch.manual_seed(0)
    model = nn.Linear(4, 4)
    network = lambda m: (lambda x, t: m(x))
    start = objective.draw((8, 4)).start
    starts = [torch.zeros(8, 4) for _ in range(2)]
    torch.distributed.all_gather(starts, start)
    assert not torch.equal(*starts), "the same push on both"
    whole = torch.randn(16, 4, generator=torch.Generator().manual_seed(2))
    draws = objective.draw(whole.shape, generator=torch.Generator().manual_seed(3), perturbation_generator=torch.Generator().manual_seed(4))
    objective(network(model), whole, draws=draws).loss.mean().backward()
    alone = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    mine = slice(8 * rank, 8 * rank + 8)
    spread = DistributedDataParallel(model)
    objective(network(spread), whole[mine], draws=draws[mine]).loss.mean().backward()
    for found, expected in zip(model.parameters(), alone):
        torch.testing.assert_close(found.grad, expected, rtol=1e-4, atol=1e-5)
    seldom = Objective("robust_adv", process, every=2)
    try:
        seldom(network(model), whole)
    except UserError as problem:
        assert "step=step" in str(problem)
    else:
        raise AssertionError("every without a step")
    pushed = torch.tensor([float(seldom(network(model), whole, step=s).perturbed.any()) for s in range(4)])
    assert pushed.tolist() == [1, 0, 1, 0]
    print("done")
"""


def test_two_processes_of_a_loop_of_ones_own(warm):
    assert warm.succeeds([], textwrap.dedent(PROCESSES), ranks=2).split() == ["done", "done"]
