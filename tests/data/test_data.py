"""Toys against brute force and autograd, corruptions against their promises, and image folders as people have them."""

import math

import numpy as np
import pytest
import torch
from PIL import Image

from atdm.corruption import CORRUPTIONS, Truth, corrupt, corrupt_items, describe_corruption, parse_corruption, truth_of
from atdm.data import load
from atdm.data.subspace import Subspace
from atdm.data.toy import TOYS, GaussianMixture, Moons, Plane
from atdm.errors import UserError


@pytest.mark.parametrize("toy", [Plane(), GaussianMixture(), GaussianMixture(modes=3, imbalance=5.0)], ids=str)
@pytest.mark.parametrize(("alpha", "sigma"), [(1.0, 0.01), (0.9, 0.1), (0.3, 0.95)])
def test_score_is_the_gradient_of_the_log_density(toy, alpha, sigma):
    d = 3 if isinstance(toy, Plane) else 2
    x = 5 * (2 * torch.rand(400, d, generator=torch.Generator().manual_seed(0)) - 1)
    x.requires_grad_(True)
    (gradient,) = torch.autograd.grad(toy.log_density(x, alpha, sigma).sum(), x)
    score = toy.score(x.detach(), alpha, sigma)
    assert score.isfinite().all()
    assert (gradient - score).norm() < 1e-3 * gradient.norm()


@pytest.mark.parametrize("toy", [Plane(), GaussianMixture(modes=3, imbalance=5.0)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_each_sample_may_have_its_own_noise_level(toy, dtype):
    d = 3 if isinstance(toy, Plane) else 2
    x = torch.rand(4, d, generator=torch.Generator().manual_seed(0), dtype=dtype) * 2 - 1
    alphas, sigmas = torch.tensor([1.0, 0.9, 0.5, 0.1]), torch.tensor([0.02, 0.3, 0.8, 1.0])
    density, score = toy.log_density(x, alphas, sigmas), toy.score(x, alphas, sigmas)
    assert density.dtype == score.dtype == dtype
    for i in range(4):
        one = x[i : i + 1], alphas[i].item(), sigmas[i].item()
        torch.testing.assert_close(density[i : i + 1], toy.log_density(*one))
        torch.testing.assert_close(score[i : i + 1], toy.score(*one))
    torch.testing.assert_close(toy.score(x, alphas[1], sigmas[1]), toy.score(x, 0.9, 0.3), rtol=1e-5, atol=1e-6)
    assert toy.distance(x).dtype == dtype
    assert toy.spread(x) > 0


@pytest.mark.parametrize("toy", [Plane(), GaussianMixture(modes=3, imbalance=5.0)], ids=str)
def test_density_is_that_of_the_noised_draws(toy):
    """The mean of exp(log p) over noise kernels: a Monte-Carlo estimate of the marginal from draws alone."""
    alpha, sigma = 0.8, 0.5
    draws = toy.sample(100_000, torch.Generator().manual_seed(1))
    x = toy.sample(20, torch.Generator().manual_seed(2)) + 0.3
    squared = torch.cdist(x.double(), alpha * draws.double()).square()
    kernel = (-squared / (2 * sigma**2)).exp() / (2 * math.pi * sigma**2) ** (x.shape[1] / 2)
    torch.testing.assert_close(toy.log_density(x, alpha, sigma).exp(), kernel.mean(1).float(), rtol=0.05, atol=1e-4)


@pytest.mark.parametrize("name", sorted(TOYS))
def test_every_toy_lies_on_its_support(name):
    data = load(f"{name}:n=2000", seed=3)
    assert torch.equal(data.x, load(f"{name}:n=2000", seed=3).x)
    assert not torch.equal(data.x, load(f"{name}:n=2000", seed=4).x)
    near = 0.3 if name == "mixture" else 1e-3
    assert data.truth.distance(data.x).max() < near
    moved = data.x + torch.tensor([[3.0] + [0.0] * (data.x.shape[1] - 1)])
    assert data.truth.distance(moved).mean() > 0.5
    assert data.truth.spread(data.test) == pytest.approx(data.truth.true_spread, rel=0.05)


def test_distances_have_known_values():
    plane = Plane()
    x = torch.tensor([[0.3, -0.2]]) @ plane.axes[:2] - 0.7 * plane.axes[2]
    assert plane.distance(x).item() == pytest.approx(0.7, abs=1e-6)
    torch.testing.assert_close(plane.axes @ plane.axes.T, torch.eye(3), rtol=0, atol=1e-6)
    # the point straight above the top of the upper moon
    assert Moons().distance(torch.tensor([[-0.5, 1.75]])).item() == pytest.approx(1.0, abs=1e-3)


def test_mode_mass_counts_what_belongs_to_a_mode():
    mixture = GaussianMixture(modes=4, imbalance=3.0)
    mass = mixture.mode_mass(mixture.sample(50_000, torch.Generator().manual_seed(0)))
    torch.testing.assert_close(mass, mixture.weights, rtol=0.05, atol=0)
    assert mixture.weights[0] / mixture.weights[-1] == pytest.approx(3.0, rel=1e-5)
    assert mixture.mode_mass(torch.zeros(10, 2)).sum() == 0


def test_subspace_is_that_of_pca():
    from sklearn.decomposition import PCA

    x = torch.randn(200, 10, generator=torch.Generator().manual_seed(0)) @ torch.diag(torch.arange(10, 0, -1).float())
    ours, theirs = Subspace.fit(x, 3), PCA(3).fit(x.double().numpy())
    back = theirs.inverse_transform(theirs.transform(x.double().numpy()))
    torch.testing.assert_close(ours.project(x), torch.as_tensor(back).float(), rtol=1e-3, atol=1e-3)
    noisy = ours.project(x) + 0.5 * torch.randn(200, 10, generator=torch.Generator().manual_seed(1))
    assert ours.residual_rms(noisy) == pytest.approx(0.5, rel=0.05)
    assert ours.residual_rms(ours.project(x)) < 1e-5
    with pytest.raises(UserError, match="Expected 1 to 10"):
        Subspace.fit(x, 11)


IMAGES = torch.rand(64, 3, 12, 12, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.mark.parametrize("name", sorted(CORRUPTIONS))
def test_every_corruption_is_pure_per_item_and_keeps_its_truth(name):
    spec = f"{name}:share=0.5"
    dirty, truth = corrupt(IMAGES, spec, seed=7)
    assert torch.equal(dirty, corrupt(IMAGES, spec, seed=7)[0])
    assert not torch.equal(dirty, corrupt(IMAGES, spec, seed=8)[0])
    for index in (0, 13, 63):
        alone = IMAGES[index : index + 1].clone()
        corrupt_items(alone, parse_corruption(spec), 7, [index], [0])
        assert torch.equal(alone[0], dirty[index])
    changed = (dirty != IMAGES).flatten(1).any(1).numpy()
    assert np.array_equal(changed, truth.corrupted)
    assert 15 < changed.sum() < 49
    assert describe_corruption(parse_corruption(truth.spec)) == truth.spec
    assert truth.details[name], "how an item was touched is recorded"
    for values in truth.details[name].values():
        assert np.array_equal(np.isfinite(values), truth.corrupted)


def test_the_truth_says_how_each_item_was_touched():
    x = IMAGES * 0.9  # so that -1, 0 and 1 are dirt
    dirty, truth = corrupt(x, "gaussian:share=0.5,std=0.1,std_max=2", seed=3)
    std = truth.details["gaussian"]["std"]
    assert 0.1 <= np.nanmin(std) < 0.4
    assert 1.5 < np.nanmax(std) <= 2
    for i in np.flatnonzero(truth.corrupted):
        assert (dirty[i] - x[i]).std().item() == pytest.approx(std[i], rel=0.15)

    dirty, truth = corrupt(x, "patch:share=0.5,size=0.3", seed=3)
    top, left, side = (truth.details["patch"][k] for k in ("top", "left", "side"))
    assert len({*top[truth.corrupted]}) > 3
    for i in np.flatnonzero(truth.corrupted):
        rows, columns = slice(int(top[i]), int(top[i] + side[i])), slice(int(left[i]), int(left[i] + side[i]))
        expected = x[i].clone()
        expected[:, rows, columns] = 0
        assert torch.equal(dirty[i], expected)

    dirty, truth = corrupt(x, "salt_pepper:rate=0.2+missing:rate=0.1,share=0.5", seed=3)
    counted = (dirty == 0).all(1).flatten(1).sum(1).numpy()
    assert np.array_equal(counted[truth.touched[1]], truth.details["missing"]["missing"][truth.touched[1]])
    untouched = ~truth.touched[1]
    for value, key in ((-1, "black"), (1, "white")):
        counted = (dirty == value).all(1).flatten(1).sum(1).numpy()
        assert np.array_equal(counted[untouched], truth.details["salt_pepper"][key][untouched])

    twice = corrupt(x, "gaussian:std=0.1+blur:sigma=2+gaussian:std=0.3", seed=3)[1]
    assert [*twice.details] == ["gaussian", "blur", "gaussian_2"]
    assert [v["std"][0] for k, v in twice.details.items() if k != "blur"] == [0.1, 0.3]


def test_a_stream_is_that_of_its_own_generator():
    """One generator is moved from item to item; each must be where a fresh one would start, also after odd draws."""
    x = torch.zeros(3, 5)
    for index in (0, 2, 1):
        dirty = x[index : index + 1].clone()
        corrupt_items(dirty, parse_corruption("gaussian:std=1"), -4, [index], [index])
        rng = np.random.Generator(
            np.random.Philox(counter=[0, 0, 0, index], key=np.array([2**64 - 4, index * 64], np.uint64))
        )
        rng.random()
        assert np.array_equal(dirty[0].numpy(), rng.standard_normal(5, dtype=np.float32))


def test_missing_coordinates_of_vectors_are_zero():
    x = torch.rand(4000, 3, generator=torch.Generator().manual_seed(0)) + 1
    dirty, truth = corrupt(x, "missing:share=0.5,rate=0.3", seed=0)
    gone = dirty == 0
    assert torch.equal(dirty[~gone], x[~gone])
    assert gone[torch.from_numpy(truth.corrupted)].float().mean().item() == pytest.approx(0.3, abs=0.02)
    assert not gone[torch.from_numpy(~truth.corrupted)].any()
    assert gone.any(0).all()
    assert not gone.all(1).all()


def test_none_is_no_part_wherever_it_stands():
    spec = "gaussian:share=0.5,std=0.2"
    for with_none in (f"none+{spec}", f"{spec}+none", f"none+{spec}+ none "):
        dirty, truth = corrupt(IMAGES, with_none, seed=2)
        assert torch.equal(dirty, corrupt(IMAGES, spec, seed=2)[0])
        assert truth.touched.shape == (1, 64)
    assert parse_corruption("none+none") == ()


def test_gaussian_noise_has_its_share_and_std():
    x = torch.zeros(20_000, 3)
    dirty, truth = corrupt(x, "gaussian:share=0.9,std=0.2", seed=0)
    assert truth.corrupted.mean() == pytest.approx(0.9, abs=0.01)
    assert dirty[torch.from_numpy(truth.corrupted)].std().item() == pytest.approx(0.2, rel=0.02)
    outliers, hit = corrupt(x, "outliers:share=0.1", seed=0)
    chosen = outliers[torch.from_numpy(hit.corrupted)]
    assert chosen.abs().max() <= 2
    assert chosen.std().item() == pytest.approx(4 / math.sqrt(12), rel=0.02)


def test_compositions_and_their_truth_survive_a_file(tmp_path):
    spec = "gaussian:share=0.5,std=0.1+jpeg:share=0.5,quality=20"
    dirty, truth = corrupt(IMAGES, spec, seed=1)
    truth.save(tmp_path / "truth.npz")
    back = Truth.load(tmp_path / "truth.npz")
    assert np.array_equal(back.touched, truth.touched)
    assert back.touched.shape == (2, 64)
    assert torch.equal(corrupt(IMAGES, back.spec, back.seed)[0], dirty)
    assert back.details.keys() == truth.details.keys()
    assert np.array_equal(back.details["gaussian"]["std"], truth.details["gaussian"]["std"], equal_nan=True)
    foreseen = truth_of(spec, 64, (3, 12, 12), seed=1)
    assert np.array_equal(foreseen.touched, truth.touched)
    assert corrupt(IMAGES, "none")[1].corrupted.sum() == 0


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("gausian:std=0.1", "Did you mean 'gaussian'"),
        ("gaussian:st=0.1", "Did you mean 'std'"),
        ("gaussian:share=1.5", "from 0 to 1"),
        ("gaussian:std=much", "Expected a number"),
        ("jpeg:quality=0", "from 1 to 95"),
    ],
)
def test_corruption_mistakes_are_sentences(spec, words):
    with pytest.raises(UserError, match=words):
        corrupt(IMAGES, spec)


def test_what_cannot_be_corrupted_is_refused():
    with pytest.raises(UserError, match="is for images"):
        corrupt(torch.zeros(4, 3), "blur")
    with pytest.raises(UserError, match="not finite"):
        corrupt(torch.tensor([[float("nan")]]), "gaussian")


def photo(side=16, mode="RGB"):
    pixels = np.random.default_rng(0).integers(0, 255, (side, side, 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def test_a_folder_as_people_have_them(tmp_path):
    photo().save(tmp_path / "a.png")
    photo(mode="CMYK").save(tmp_path / "b.jpg")
    (tmp_path / "class").mkdir()
    photo(mode="L").save(tmp_path / "class" / "c.png")
    Image.fromarray(np.full((16, 16), 65535, dtype=np.uint16)).save(tmp_path / "d.png")
    photo().save(tmp_path / "e.gif", save_all=True, append_images=[photo(mode="L").convert("RGB")])
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(UserError, match=r"text\.png") as caught:
        load(str(tmp_path))
    assert "skip_broken" in str(caught.value)
    photo().save(tmp_path / "half.jpg", quality=95)
    whole = (tmp_path / "half.jpg").read_bytes()
    (tmp_path / "half.jpg").write_bytes(whole[: len(whole) // 2])
    data = load(str(tmp_path), skip_broken=True)
    assert data.x.shape == (5, 3, 16, 16)
    assert data.x.min() >= -1
    assert data.x.max() <= 1
    assert data.x[3].min() == 1, "the white 16-bit image is white"
    said = " ".join(data.notes)
    for word in ("2 unreadable", "half.jpg", "CMYK", "16 bits", "first frame", "gray to RGB"):
        assert word in said, word


def test_folder_mistakes_are_sentences(tmp_path):
    with pytest.raises(UserError, match="There is no folder"):
        load(str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="holds no image"):
        load(str(tmp_path))
    photo(16).save(tmp_path / "a.png")
    photo(24).save(tmp_path / "b.png")
    with pytest.raises(UserError, match=r"different sizes: a.png is 16x16, b.png is 24x24.*image_size"):
        load(str(tmp_path))
    assert load(str(tmp_path), image_size=8).x.shape == (2, 3, 8, 8)
    with pytest.raises(UserError, match="Did you mean 'plane'"):
        load("plain")


def test_parquet_in_the_hub_layout(tmp_path):
    import datasets

    rows = {"img": [photo(), photo(mode="L").convert("RGB")], "label": [0, 1]}
    features = datasets.Features({"img": datasets.Image(), "label": datasets.Value("int64")})
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "x.parquet")
    data = load(str(tmp_path / "x.parquet"))
    torch.testing.assert_close(data.x[0], torch.from_numpy(np.array(photo())).permute(2, 0, 1) / 127.5 - 1)
    with pytest.raises(UserError, match="no column 'image'"):
        load(f"parquet:path={tmp_path / 'x.parquet'},column=image")


def test_a_crop_says_what_becomes_of_the_edges(tmp_path):
    for i in range(2):  # a wide image with a white left edge
        pixels = np.zeros((20, 60, 3), np.uint8)
        pixels[:, :8] = 255
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
    assert load(str(tmp_path), image_size=16).x.max() < -0.9, "the middle has no edge"
    squeezed = load(str(tmp_path), image_size=16, crop="none").x
    assert squeezed[:, :, :, 0].min() > 0.5
    assert squeezed.shape == (2, 3, 16, 16)
    wide = load(str(tmp_path), image_size=16, crop="random")
    assert wide.item_shape == wide.x.shape[1:] == (3, 16, 16)
    assert wide.items.item_shape == (3, 18, 18)
    assert torch.equal(wide.x, wide.items[torch.arange(2)][:, :, 1:17, 1:17])
    with pytest.raises(UserError, match="Did you mean 'random'"):
        load(str(tmp_path), image_size=16, crop="randon")
    with pytest.raises(UserError, match="needs image_size"):
        load(str(tmp_path), crop="random")


def test_torchvision_reads_what_is_there(tmp_path):
    import struct

    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 255, (5, 28, 28), dtype=np.uint8)
    for split in ("train", "t10k"):
        (raw / f"{split}-images-idx3-ubyte").write_bytes(
            struct.pack(">HBBIII", 0, 8, 3, *pixels.shape) + pixels.tobytes()
        )
        (raw / f"{split}-labels-idx1-ubyte").write_bytes(struct.pack(">HBBI", 0, 8, 1, 5) + bytes(5))
    data = load(f"torchvision:name=FashionMNIST,root={tmp_path}")
    assert data.x.shape == (5, 1, 28, 28), "gray stays gray"
    assert torch.equal(data.x[:, 0], torch.from_numpy(pixels) / 127.5 - 1)
    with pytest.raises(UserError, match="Did you mean 'FashionMNIST'"):
        load(f"torchvision:name=FashionMnist,root={tmp_path}")
    with pytest.raises(UserError, match="download=true"):
        load(f"torchvision:name=CIFAR10,root={tmp_path}")


def test_digits_are_in_range_and_split():
    data = load("digits")
    assert data.x.shape == (1500, 1, 8, 8)
    assert data.test.shape == (297, 1, 8, 8)
    assert data.x.min() == -1
    assert data.x.max() == 1
    flat = load("digits:subspace=16")
    assert flat.truth.residual_rms(flat.x) < 1e-5
    assert torch.linalg.matrix_rank(flat.x.flatten(1) - flat.x.flatten(1).mean(0), atol=1e-2) == 16
