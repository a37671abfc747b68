"""Trackers hold what the log holds, also of a run that was resumed, and cannot end a training; callbacks see it and can."""

import io
import json
import struct
import warnings

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from atdm import Callback
from atdm.diffusion.process import Process
from atdm.errors import UserError
from atdm.nets import build_net
from atdm.objective import Objective
from atdm.training import checkpoint, run, trackers
from atdm.training.config import ObjectiveConfig, Settings, TrainConfig
from atdm.training.log import read_log
from atdm.training.train import State, fit

SCALARS = ("loss", "denoise", "regularizer", "weight_max", "lr", "samples_per_second", "denoise/q0")


def config(out, **changes):
    options = {
        "data": "plane:n=300",
        "net": "mlp:width=8",
        "steps": 12,
        "batch_size": 32,
        "save_every": 4,
        "log_every": 2,
        "objective": ObjectiveConfig("robust_adv"),
    }
    return TrainConfig(**{**options, "sample_every": 8, "out": str(out), "log_with": "none", **changes})


def stopped_and_resumed(out, log_with):
    """A run that logged step 6, was saved at step 4 and killed, and went on; what its log says."""
    for step in run.train(config(out, log_with=log_with)):
        if step.index == 6:
            break
    list(run.train(config(out, log_with=log_with)))
    return {line["step"]: line for line in read_log(out)}


def test_tensorboard_reads_back_the_log_the_options_and_the_samples(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = stopped_and_resumed(tmp_path, "tensorboard")
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert sorted(log) == [2, 4, 6, 8, 10, 12]
    for name in SCALARS:
        written = {event.step: event.value for event in board.Scalars(name)}
        assert written == pytest.approx({step: line[name] for step, line in log.items() if name in line}, rel=1e-6)
    assert {event.step for event in board.Images("samples")} == {8, 12}
    for image in board.Images("samples"):
        shown = Image.open(io.BytesIO(image.encoded_image_string))
        drawn = Image.open(tmp_path / "samples" / f"step-{image.step:08d}.png").convert("RGB")
        assert shown.tobytes() == drawn.tobytes()
    (options,) = tmp_path.glob("tensorboard/*/hparams.yml")
    assert "net: mlp:width=8\n" in options.read_text()
    assert "objective.kappa: 1.0\n" in options.read_text()


def records(file):
    """The records of a LevelDB log, which W&B writes after seven bytes of its own."""
    place, parts = 7, []
    while place + 7 <= len(file):
        size, kind = struct.unpack_from("<HB", file, place + 4)  # after the checksum
        parts.append(file[place + 7 : place + 7 + size])
        place += 7 + size
        if kind in (1, 4):  # all of a record, or its last part
            yield b"".join(parts)
            parts = []
        if (left := 32768 - place % 32768) < 7:  # no header fits in the rest of the block
            place += left


@pytest.mark.slow
def test_wandb_goes_on_with_its_run_offline(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    from wandb.proto.wandb_internal_pb2 import Record

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_CONSOLE", "off")
    monkeypatch.setenv("WANDB__SERVICE_WAIT", "300")  # seconds, on a busy machine
    log = stopped_and_resumed(tmp_path, "wandb")
    wandb.teardown()  # its own process has written everything then
    (key,) = json.loads((tmp_path / trackers.IDS).read_text()).values()
    files = sorted(tmp_path.glob(f"wandb/offline-run-*/run-{key}.wandb"))
    assert files
    assert len([*tmp_path.glob("wandb/offline-run-*/*.wandb")]) == len(files), "both sittings are one run"
    seen, options, pictures = {}, {}, set()
    for file in files:
        for data in records(file.read_bytes()):
            record = Record.FromString(data)
            items = {i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in record.history.item}
            if items:
                seen.setdefault(items["_step"], {}).update(items)
            pictures |= {items["_step"]} if any(key.startswith("samples/") for key in items) else set()
            options |= {u.key: json.loads(u.value_json) for u in record.config.update}
    for step, line in log.items():
        assert {name: seen[step][name] for name in line if name not in ("step", "samples_per_second")} == {
            name: value for name, value in line.items() if name not in ("step", "samples_per_second")
        }
    assert pictures == {8, 12}
    assert options["net"] == "mlp:width=8"
    assert options["objective.kappa"] == 1.0


@pytest.mark.slow
def test_mlflow_goes_on_with_its_run_in_a_folder(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file://{tmp_path / 'store'}")
    mlflow.set_tracking_uri(None)
    log = stopped_and_resumed(tmp_path / "run", "mlflow")
    key = json.loads((tmp_path / "run" / trackers.IDS).read_text())["mlflow"]
    client = mlflow.MlflowClient()
    for name in SCALARS[:5]:  # the speed of a step that was made twice is another
        written = {metric.step: metric.value for metric in client.get_metric_history(key, name)}
        assert written == pytest.approx({step: line[name] for step, line in log.items() if name in line})
    assert "denoise.q0" in client.get_run(key).data.metrics, "a folder of its store cannot be a file as well"
    kept = client.get_run(key)
    assert kept.info.status == "FINISHED"
    assert kept.data.params["net"] == "mlp:width=8"
    assert kept.data.params["objective.gate"] == "null"
    names = {artifact.path for artifact in client.list_artifacts(key, "samples")}
    assert names == {"samples/step-00000008.png", "samples/step-00000012.png"}


@pytest.mark.parametrize(
    ("log_with", "sentence"),
    [
        (
            "tensorbord",
            "Unknown tracker 'tensorbord'. Did you mean 'tensorboard'? Valid: all, mlflow, none, tensorboard, wandb.",
        ),
        (
            "tensorboard+wandb",
            "The tracker wandb is not installed. Expected: pip install wandb, or another --log_with (tensorboard, none).",
        ),
    ],
)
def test_a_tracker_that_is_not_there_is_refused_before_anything_is_written(log_with, sentence, tmp_path, monkeypatch):
    monkeypatch.setattr(trackers, "_installed", lambda name: name == "tensorboard")
    assert trackers.require("all") == ["tensorboard"]
    with pytest.raises(UserError) as told:
        next(run.train(config(tmp_path / "run", log_with=log_with)))
    assert str(told.value) == sentence
    assert not (tmp_path / "run").exists()


def weights(out):
    return load_file(checkpoint.latest(out) / "state.safetensors")


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


class Broken:
    """A tracker that works, as its parent, until ``method`` is called for the first time."""

    def __init__(self, *given, **more):
        self.asked = []

    def start(self):
        self.asked.append("start")

    def store_init_configuration(self, values):
        self.asked.append("store")

    def log(self, values, step):
        self.asked.append("log")
        raise ConnectionError("the server is gone\nand more lines")

    def finish(self):
        self.asked.append("finish")


def test_a_tracker_that_fails_is_left_out_with_one_warning(tmp_path, monkeypatch):
    from accelerate import tracking

    made = []
    monkeypatch.setattr(tracking, "TensorBoardTracker", lambda *_, **__: made.append(Broken()) or made[-1])
    list(run.train(config(tmp_path / "plain")))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        list(run.train(config(tmp_path / "run", log_with="tensorboard")))
    (told,) = [str(w.message) for w in caught if "tracker" in str(w.message)]
    assert told.startswith("The tracker tensorboard failed (the server is gone). Training goes on without it;")
    assert made[0].asked == ["start", "store", "log", "finish"]
    assert same(weights(tmp_path / "plain"), weights(tmp_path / "run"))
    assert [line["step"] for line in read_log(tmp_path / "run")] == [2, 4, 6, 8, 10, 12]


def test_a_tracker_that_cannot_start_is_refused_at_first_and_left_out_later(tmp_path, monkeypatch):
    from accelerate import tracking

    def start(_):
        raise ValueError("No API key configured.")

    for _ in run.train(config(tmp_path, steps=4, log_with="tensorboard", sample_every=0)):
        pass
    monkeypatch.setattr(tracking.TensorBoardTracker, "start", start)
    with pytest.warns(UserWarning, match=r"The tracker tensorboard failed \(No API key configured\)"):
        assert [s.index for s in run.train(config(tmp_path, steps=5, log_with="tensorboard", sample_every=0))] == [5]
    with pytest.raises(
        UserError, match=r"The tracker tensorboard cannot start: No API key configured\. Expected another"
    ):
        next(run.train(config(tmp_path / "new", log_with="tensorboard")))


class Watch(Callback):
    """Notes what it is called with, and ends the training after a step."""

    def __init__(self, last=None):
        self.last, self.seen = last, []

    def on_step(self, step):
        torch.rand(7)  # whatever it draws
        self.seen.append(("step", step.index))
        return step.index == self.last

    def on_log(self, step, scalars):
        assert scalars["loss"] == pytest.approx(step.terms.loss.mean().item())
        self.seen.append(("log", step.index))

    def on_sample(self, step, path):
        assert path.is_file()
        self.seen.append(("sample", step))

    def on_save(self, step, path):
        assert (path / "state.json").is_file()
        self.seen.append(("save", step))


def test_a_callback_hears_all_and_ends_a_run_which_then_goes_on_exactly(tmp_path):
    list(run.train(config(tmp_path / "whole")))
    first, second = Watch(5), Watch()
    assert [s.index for s in run.train(config(tmp_path / "parts"), callbacks=[first])] == [1, 2, 3, 4, 5]
    assert first.seen == [
        *[("step", 1), ("step", 2), ("log", 2), ("step", 3), ("step", 4), ("log", 4), ("save", 4)],
        *[("step", 5), ("save", 5)],
    ]
    list(run.train(config(tmp_path / "parts"), callbacks=[second]))
    assert [event for event in second.seen if event[0] != "step"] == [
        *[("log", 6), ("log", 8), ("save", 8), ("sample", 8), ("log", 10), ("log", 12), ("save", 12), ("sample", 12)]
    ]
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "parts"))


def test_fit_ends_after_the_step_that_any_callback_names():
    data = torch.randn(100, 3, generator=torch.Generator().manual_seed(0))

    def made(*callbacks):
        torch.manual_seed(0)
        settings = Settings(steps=6, batch_size=16)
        state = State.create(build_net("mlp:width=8", (3,)), settings)
        steps = list(fit(Objective("robust_adv", Process.linear()), state, data, settings, callbacks=callbacks))
        return steps, {k: v.clone() for k, v in state.tensors().items()}

    watch, other = Watch(3), Watch()
    steps, after = made(watch, other)
    assert [(s.index, s.stop) for s in steps] == [(1, False), (2, False), (3, True)]
    assert watch.seen == other.seen == [("step", 1), ("step", 2), ("step", 3)]
    alone, _ = made()
    assert [s.terms.loss.tolist() for s in alone[:3]] == [s.terms.loss.tolist() for s in steps]
    assert len(alone) == 6
    assert not same(after, _)
