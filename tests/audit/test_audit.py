"""The audit against known truth: seeded dirt on smooth images and on digits, planted duplicates, outliers and broken files."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from sklearn.covariance import MinCovDet
from torch import nn

from atdm.audit import audit, outliers, sheet
from atdm.audit.duplicates import ALIKE, image_duplicates
from atdm.audit.outliers import image_outliers, shrink
from atdm.audit.recipe import recommend
from atdm.cli import main
from atdm.corruption import corrupt
from atdm.data import load
from atdm.data.items import Floats
from atdm.data.source import Source
from atdm.errors import UserError
from atdm.noise import Gauge, estimate_noise, mixture, noise_levels, noise_stds
from atdm.noise.filters import LEAST
from atdm.noise.pixels import replaced_share
from atdm.training.config import TrainConfig


def atdm(capsys, *words):
    with pytest.raises(SystemExit) as end:
        main([*map(str, words)])
    out = capsys.readouterr()
    return end.value.code, out.out, out.err


def smooth(n: int, side: int = 32, channels: int = 3, seed: int = 0) -> torch.Tensor:
    """Images of few, low frequencies with edges: no noise, and little that looks like it."""
    rng = torch.Generator().manual_seed(seed)
    coarse = torch.randn(n, channels, 5, 5, generator=rng) * 0.3 + torch.randn(n, 1, 5, 5, generator=rng) * 0.5
    x = nn.functional.interpolate(coarse, size=(side, side), mode="bicubic", align_corners=True)
    edge = torch.randint(4, side - 4, (n,), generator=rng)
    x = x + 0.4 * (torch.arange(side)[None] > edge[:, None]).float()[:, None, None]
    return x.clamp(-1, 1)


@pytest.fixture(scope="module")
def photos() -> torch.Tensor:
    return smooth(300)


def looked(x: torch.Tensor):
    return audit(Source(Floats(x)))


# --- noise ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("share", "std", "saved"),
    [(0.3, 0.05, True), (0.9, 0.05, False), (0.6, 0.1, True), (0.3, 0.2, False), (1.0, 0.2, True)],
)
def test_share_and_std_of_seeded_noise_are_found(photos, share, std, saved):
    dirty, truth = corrupt(photos, f"gaussian:share={share},std={std}", 1)
    if saved:
        dirty = ((dirty.clamp(-1, 1) + 1) * 127.5).round() / 127.5 - 1
    found = estimate_noise(dirty)
    assert found.noise.share == pytest.approx(truth.corrupted.mean(), abs=0.02)
    assert found.noise.std == pytest.approx(std, rel=0.08)
    assert ((found.stds > 0) == truth.corrupted).mean() > 0.98


def test_nothing_is_found_in_clean_images(photos):
    found = estimate_noise(photos)
    assert found.noise.share == 0
    assert found.noise.std is None
    assert not noise_stds(photos).any()


def test_each_image_is_given_its_own_std(photos):
    dirty, truth = corrupt(photos, "gaussian:share=0.7,std=0.05,std_max=0.3", 1)
    true = np.nan_to_num(truth.details["gaussian"]["std"])
    told = noise_stds(dirty).numpy()
    assert ((told > 0) == truth.corrupted).mean() > 0.97
    both = (told > 0) & truth.corrupted
    assert np.median(np.abs(told[both] / true[both] - 1)) < 0.06


@pytest.mark.parametrize("data", ["photos", "digits", "vectors"])
def test_a_gauge_tells_of_batches_what_the_set_shows(photos, data):
    rng = torch.Generator().manual_seed(0)
    vectors = 7 * torch.randn(400, 6, generator=rng) @ torch.linalg.qr(torch.randn(40, 40, generator=rng)).Q[:6]
    clean = {"photos": photos, "digits": load("digits").x, "vectors": vectors}[data]
    dirty, truth = corrupt(clean, f"gaussian:share=0.5,std={1 if data == 'vectors' else 0.2}", 1)
    rows = torch.arange(len(dirty))
    gauge = Gauge.fit(dirty, rows)
    parts = torch.randperm(len(dirty), generator=rng).split(200)
    assert torch.equal(
        torch.cat([gauge.stds(dirty[part], rows[part]) for part in parts]), noise_stds(dirty)[torch.cat(parts)]
    )
    some = torch.randperm(len(dirty), generator=rng)[: int(0.9 * len(dirty))]
    seen = Gauge.fit(dirty[some], some).stds(dirty, rows) > 0
    assert (seen.numpy() == truth.corrupted).mean() > 0.95


def test_levels_are_the_std_of_noise_over_nothing():
    stds = torch.linspace(0.05, 0.5, 300)
    noise = stds[:, None, None, None] * torch.randn(300, 3, 24, 24, generator=torch.Generator().manual_seed(3))
    assert (noise_levels(noise) / stds - 1).abs().mean() < 0.06
    doubled = noise_levels(2 * noise)
    # places near black and white are left out at an absolute limit, which is nearly all that scale can change
    assert (doubled / (2 * stds) - 1).abs().mean() < 0.08


def test_gray_noise_in_color_images_is_called_common(photos):
    gray = torch.randn(len(photos), 1, 32, 32, generator=torch.Generator().manual_seed(2))
    hit = torch.rand(len(photos), generator=torch.Generator().manual_seed(4)) < 0.5
    found = estimate_noise(photos + 0.1 * hit[:, None, None, None] * gray)
    assert found.common
    assert found.noise.share == pytest.approx(hit.float().mean().item(), abs=0.03)
    assert found.noise.std == pytest.approx(0.1, rel=0.15)


@pytest.mark.parametrize(("share", "std"), [(0.3, 0.2), (0.9, 0.1)])
def test_noise_of_digits_is_found_along_whole_items(share, std):
    dirty, truth = corrupt(load("digits").x, f"gaussian:share={share},std={std}", 0)
    found = estimate_noise(dirty)
    assert found.noise.share == pytest.approx(truth.corrupted.mean(), abs=0.05)
    assert found.noise.std == pytest.approx(std, rel=0.05)


def test_vectors_of_many_dimensions_are_told_in_their_own_scale():
    """On a subspace everything off it is noise, so the truth is exact."""
    rng = torch.Generator().manual_seed(0)
    clean = 7 * torch.randn(2000, 6, generator=rng) @ torch.linalg.qr(torch.randn(40, 40, generator=rng)).Q[:6]
    dirty, truth = corrupt(clean, "gaussian:share=0.5,std=1", 0)
    found = estimate_noise(dirty)
    assert found.noise.share == pytest.approx(truth.corrupted.mean(), abs=0.02)
    assert found.noise.std == pytest.approx(1.0, rel=0.05)


def test_vectors_of_few_dimensions_have_no_noise_that_could_be_told():
    plane = load("plane:n=500").x
    assert looked(plane).as_dict()["noise"] == {"share": None, "std": None, "measurable": False}
    with pytest.raises(UserError, match="cannot be distinguished from content"):
        noise_stds(plane)


def test_the_mixture_finds_the_law_that_drew_the_levels():
    rng = np.random.default_rng(0)
    content = np.exp(rng.normal(np.log(0.03), 0.4, 3000))
    hit = rng.random(3000) < 0.25
    levels = np.hypot(content, 0.08 * hit) * np.exp(0.04 * rng.standard_normal(3000))
    found = mixture.fit(levels, 0.04, 0.02)
    assert found.share == pytest.approx(hit.mean(), abs=0.03)
    assert found.std == pytest.approx(0.08, rel=0.05)
    assert found.content == pytest.approx(0.03, rel=0.15)
    assert found.width == 0


def test_small_images_have_no_levels():
    with pytest.raises(UserError, match=f"Expected {LEAST}x{LEAST}"):
        noise_levels(torch.zeros(4, 3, LEAST - 1, 40))


# --- dirt that is not Gaussian noise ----------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "spec", ["salt_pepper:share=0.3,rate=0.1", "missing:share=0.3,rate=0.3", "patch:share=0.3,size=0.4"]
)
@pytest.mark.parametrize("channels", [1, 3])
def test_replaced_pixels_are_told_and_are_no_gaussian_noise(spec, channels):
    dirty, truth = corrupt(smooth(200, channels=channels), spec, 0)
    found = looked(dirty)
    hit = found.replaced > 0
    assert hit[truth.corrupted].mean() > 0.8
    assert not hit[~truth.corrupted].any()
    assert found.as_dict()["noise"]["share"] < 0.05
    assert set(found.most_replaced) == set(np.flatnonzero(hit))


def test_the_share_of_replaced_pixels_is_that_of_the_truth():
    ramp = torch.linspace(-0.5, 0.5, 32)[:, None].expand(50, 3, 32, 32).contiguous()
    dirty, truth = corrupt(ramp, "salt_pepper:rate=0.05", 0)
    details = truth.details["salt_pepper"]
    assert replaced_share(dirty).numpy() == pytest.approx(
        (details["black"] + details["white"]) / 32**2, abs=1.5 / 32**2
    )


@pytest.mark.parametrize("drawn", ["lines", "strokes", "pixel art"])
def test_in_drawings_nothing_looks_replaced(drawn):
    generator = torch.Generator().manual_seed(0)
    if drawn == "lines":
        x = torch.ones(60, 1, 32, 32)
        for image in x:
            row, column = torch.randint(2, 30, (2,), generator=generator).tolist()
            image[:, row, :] = image[:, :, column] = -1
    else:
        how = {"mode": "nearest"} if drawn == "pixel art" else {"mode": "bicubic", "align_corners": False}
        x = torch.nn.functional.interpolate(load("digits").x[:300], size=28, **how)
        x = (2.5 * x).clamp(-1, 1) if drawn == "strokes" else x
    assert not replaced_share(((x + 1) * 127.5).round() / 127.5 - 1).any()


def test_clipped_noise_is_not_called_replaced(photos):
    dirty, _ = corrupt(photos, "gaussian:std=0.2", 0)
    assert (replaced_share(((dirty.clamp(-1, 1) + 1) * 127.5).round() / 127.5 - 1) > 0).float().mean() < 0.02


def test_images_that_are_noise_alone_are_outliers_and_no_noisy_images(photos):
    dirty, truth = corrupt(photos, "outliers:share=0.1", 0)
    found = looked(dirty)
    alone = [i for i, why in found.outliers.why.items() if why == "noise alone"]
    assert set(alone) == set(np.flatnonzero(truth.corrupted))
    assert found.as_dict()["noise"]["share"] < 0.01


def test_digits_that_are_noise_alone_do_not_make_the_others_noisy():
    dirty, truth = corrupt(load("digits").x, "outliers:share=0.1+gaussian:share=0.5,std=0.2", 0)
    noisy = truth.touched[1] & ~truth.touched[0]
    assert looked(dirty).as_dict()["noise"]["share"] == pytest.approx(noisy.mean(), abs=0.06)


def test_far_points_are_outliers_of_a_plane():
    points, truth = corrupt(load("plane:n=2000").x, "outliers:share=0.05", 0)
    far = truth.corrupted & (points.abs().amax(1) > 1.6).numpy()
    found = np.array(sorted(looked(points).outliers.why))
    assert np.isin(np.flatnonzero(far), found).mean() > 0.9
    assert truth.corrupted[found].mean() > 0.9


# --- duplicates -------------------------------------------------------------------------------------------------------
def test_planted_duplicates_are_found_and_nothing_else(photos):
    copies = torch.stack([photos[3], photos[5].flip(-1), photos[8] * 0.97 + 0.02, photos[9]])
    noise = 0.05 * torch.randn(copies.shape, generator=torch.Generator().manual_seed(0))
    x = torch.cat([photos, copies + torch.tensor([0.0, 0, 0, 1])[:, None, None, None] * noise])
    found = looked(x).duplicates
    assert {(p.first, p.second, p.mirrored) for p in found.pairs} == {
        (3, 300, False),
        (5, 301, True),
        (8, 302, False),
        (9, 303, False),
    }
    assert found.extra == 4
    assert found.groups == [[3, 300], [5, 301], [8, 302], [9, 303]]


def test_three_copies_are_one_group():
    x = torch.randn(100, 3, generator=torch.Generator().manual_seed(0))
    x[[40, 70]] = x[10].clone()
    found = looked(x).duplicates
    assert found.groups == [[10, 40, 70]]
    assert found.extra == 2


def test_the_index_finds_what_a_look_at_all_pairs_finds(photos):
    rng = torch.Generator().manual_seed(1)
    copies = photos[:60] + 0.03 * torch.randn(60, 3, 32, 32, generator=rng)
    copies[::3] = copies[::3].flip(-1)
    small = shrink(torch.cat([photos, copies]))
    flat = small - small.mean((1, 2, 3), keepdim=True)
    contrast = flat.square().mean((1, 2, 3)).sqrt()
    expected = set()
    for mirrored in (False, True):
        other = flat.flip(-1) if mirrored else flat
        distance = (flat[:, None] - other[None]).square().mean((2, 3, 4)).sqrt()
        near = distance / (contrast[:, None] * contrast).sqrt() < ALIKE
        expected |= {(int(i), int(j)) for i, j in near.nonzero() if i < j}
    found = image_duplicates(small, np.zeros(len(small)))
    assert {(pair.first, pair.second) for pair in found.pairs} == expected
    assert len(expected) >= 60


def test_many_copies_of_one_image_are_one_group(photos):
    small = shrink(torch.cat([photos, photos[7:8].repeat(200, 1, 1, 1)]))
    found = image_duplicates(small, np.zeros(len(small)))
    assert sorted(i for group in found.groups for i in group) == [7, *range(300, 500)]


# --- outliers ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("spec", ["none", "outliers:share=0.1", "blur:share=0.1,sigma=2", "patch:share=0.2,size=0.5"])
@pytest.mark.parametrize("data", ["photos", "digits"])
def test_outliers_are_those_of_a_covariance_from_random_starts_or_more_of_the_planted_ones(photos, data, spec):
    clean = photos if data == "photos" else load("digits").x[:600]
    dirty, truth = corrupt(clean, spec, 0)
    small = shrink(dirty)
    found = image_outliers(small, np.zeros(len(small)))
    with pytest.MonkeyPatch.context() as patch:
        theirs = MinCovDet(support_fraction=0.75, random_state=0)
        patch.setattr(outliers, "_robust_distances", lambda x: theirs.fit(x).mahalanobis(x))
        expected = image_outliers(small, np.zeros(len(small)))
    clear = (np.abs(expected.score - 1) > 0.1) & (np.abs(found.score - 1) > 0.1)
    ours, others = found.score[clear] >= 1, expected.score[clear] >= 1
    planted = truth.corrupted[clear]
    assert (ours & planted).sum() >= (others & planted).sum()
    assert (ours & ~planted).sum() <= (others & ~planted).sum()
    assert clear.mean() > 0.9


# --- the command ------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def folder(tmp_path_factory, photos):
    """300 images of which 60 % are noisy, two are alike, and three files are broken."""
    where = tmp_path_factory.mktemp("photos")
    x, _ = corrupt(photos, "gaussian:share=0.6,std=0.1", 5)
    x[299] = x[0]
    pixels = ((x.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
    for i, image in enumerate(pixels):
        Image.fromarray(image).save(where / f"{i:03}.png")
    whole = (where / "000.png").read_bytes()
    for name, content in (("a.png", b""), ("b.png", whole[:200]), ("c.png", b"no image")):
        (where / name).write_bytes(content)
    return where


@pytest.fixture(scope="module")
def audited(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "audit"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: False)
        with pytest.raises(SystemExit) as end:
            main(["audit", str(folder), "--out", str(out)])
    assert end.value.code == 0
    return out


def test_a_folder_is_audited(folder, audited):
    told = json.loads((audited / "audit.json").read_text())
    assert told["items"] == 300
    assert told["item_shape"] == [3, 32, 32]
    assert told["noise"]["share"] == pytest.approx(0.6, abs=0.08)
    assert told["noise"]["std"] == pytest.approx(0.1, rel=0.05)
    assert told["noise"]["quantiles"]["0.05"] > 0.08
    assert told["duplicates"]["closest"][0] == {"first": 0, "second": 299, "distance": 0.0, "mirrored": False}
    assert sorted(name.rsplit("/")[-1] for name in told["broken"]["names"]) == ["a.png", "b.png", "c.png"]
    assert told["broken"]["count"] == 3
    assert {"count", "share", "worst"} <= set(told["outliers"])
    assert told["recipe"]["cost"]["seconds_on_this_cpu"] > 0
    with Image.open(audited / "sheet.png") as sheet:
        assert sheet.size[0] > 800


def test_the_recipe_is_one_that_training_takes(capsys, folder, audited, tmp_path):
    code, out, _ = atdm(
        capsys, "train", "--config", audited / "recipe.yaml", "--out", tmp_path / "run", "--dry_run", "--json"
    )
    assert code == 0
    planned = json.loads(out)["cost"]
    text = (audited / "recipe.yaml").read_text()
    values = yaml.safe_load(text)
    assert values["data"] == str(folder)
    assert values["skip_broken"] is True
    assert "limit" not in values
    assert values["objective"]["name"] == "auto"
    assert planned["parameters"] == json.loads((audited / "audit.json").read_text())["recipe"]["cost"]["parameters"]
    for line in json.loads((audited / "audit.json").read_text())["recipe"]["reasons"]:
        assert f"# {line}\n" in text


def test_json_is_json_and_an_earlier_audit_is_replaced(capsys, tmp_path):
    def refuse(word):
        raise AssertionError(f"{word} is no JSON")

    words = ("audit", "digits", "--limit", 300, "--out", tmp_path / "a", "--json")
    for spec in ("none", "gaussian:share=0.6,std=0.2"):
        code, out, _ = atdm(capsys, *words, "--corrupt", spec)
        assert code == 0
        told = json.loads(out, parse_constant=refuse)
        assert set(told) == {
            "items",
            "item_shape",
            "noise",
            "replaced",
            "outliers",
            "duplicates",
            "broken",
            "recipe",
        }
    assert json.loads((tmp_path / "a" / "audit.json").read_text()) == told


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["digit"], "Did you mean 'digits'"),
        (["digits", "--corrupt", "gausian"], "Did you mean 'gaussian'"),
        (["digits", "--limt", "3"], "Did you mean 'limit'"),
        (["digits", "--limit", "1"], "Expected at least 2"),
        (["digits", "--crop", "random"], "Expected center or none"),
        (["no/such/folder"], "There is no folder"),
    ],
)
def test_bad_input_is_a_sentence(capsys, tmp_path, words, sentence):
    code, _, err = atdm(capsys, "audit", *words, "--out", tmp_path / "audit")
    assert code == 2
    assert sentence in err
    assert not (tmp_path / "audit").exists()


def test_a_folder_with_other_files_is_left_alone(capsys, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    code, _, err = atdm(capsys, "audit", "digits", "--out", tmp_path)
    assert code == 2
    assert "other files" in err
    assert [f.name for f in tmp_path.iterdir()] == ["notes.txt"]


# --- recipes ----------------------------------------------------------------------------------------------------------
def test_clean_data_get_ddpm_and_outliers_of_vectors_a_push(photos):
    assert recommend(TrainConfig(), looked(photos), False)[0].objective.name == "ddpm"
    points, _ = corrupt(load("plane:n=2000").x, "outliers:share=0.1", 0)
    config, reasons = recommend(TrainConfig(data="plane"), looked(points), False)
    assert config.objective.name == "auto"
    assert "far from the others" in reasons[0]


def test_auto_is_for_replaced_pixels_and_the_eye_for_few(photos):
    config, reasons = recommend(TrainConfig(), looked(corrupt(photos, "salt_pepper:share=0.2,rate=0.1", 0)[0]), False)
    assert config.objective.name == "auto"
    assert "of the pixels look replaced" in reasons[0]
    few = looked(corrupt(photos, "salt_pepper:share=0.1,rate=0.02", 0)[0])
    config, reasons = recommend(TrainConfig(), few, False)
    assert config.objective.name == "ddpm"
    assert any(f"Look at the {len(few.most_replaced)} images with replaced pixels" in line for line in reasons)


def test_near_duplicates_are_mentioned(photos):
    _, reasons = recommend(TrainConfig(), looked(torch.cat([photos, photos[:20]])), False)
    assert any("near duplicates" in line for line in reasons)


def test_images_of_the_sheet_are_square_and_stand_one_below_the_other():
    x = {i: torch.zeros(3, 16, 16) for i in range(20)}
    figure = sheet.images([("noisiest", [(i, "#") for i in range(20)]), ("outliers", []), ("broken", [(0, "#")])], x)
    wide, high = figure.get_size_inches()
    boxes = [axis.get_position() for axis in figure.axes]
    assert all(box.width * wide == pytest.approx(box.height * high, rel=1e-6) for box in boxes)
    assert all(box.y0 >= 0 and box.y1 <= 1 for box in boxes)
    assert boxes[0].y0 > boxes[12].y1 > boxes[12].y0 > boxes[20].y1
    assert (boxes[0].y0 - boxes[12].y1) * high < 0.5 * boxes[0].height * high  # a word, and no gap
