"""Latent diffusion by the command line: encoded once, resumed exactly, decoded by all who draw, opened by diffusers."""

import json

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, LDMPipeline, UNet2DModel
from PIL import Image
from safetensors.torch import load_file

from atdm.cli import main
from atdm.corruption import corrupt
from atdm.data import load
from atdm.data.encoded import Encoded
from atdm.data.items import Floats
from atdm.data.source import Source
from atdm.diffusion.latent import Latents
from atdm.diffusion.model import load_pipeline
from atdm.diffusion.sampling import generators, sample
from atdm.errors import UserError
from atdm.nets import weights_hash
from atdm.training import run
from atdm.training.config import ObjectiveConfig, TrainConfig
from atdm.training.parts import build

NET = "digits:channels=8,head_dim=8"


def autoencoder(**changes):
    torch.manual_seed(changes.pop("seed", 0))
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    options = {"block_out_channels": (4, 8), "norm_num_groups": 2, "latent_channels": 2, "scaling_factor": 3.0}
    return AutoencoderKL(**blocks, **{**options, **changes})


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for i in range(20):
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(folder / f"{i:02d}.png")
    return folder


@pytest.fixture(scope="module")
def vae(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vae")
    autoencoder().save_pretrained(folder)
    return folder


def words(photos, vae, out, *more):
    plain = ["--net", NET, "--batch_size", "8", "--warmup", "0", "--ema", "0.5", "--save_every", "2", "--threads", "1"]
    plain += ["--process", "linear:steps=25", "--objective", "robust_adv"]
    return ["train", "--data", str(photos), "--vae", str(vae), *plain, "--out", str(out), "--steps", "3", *more]


def atdm(capsys, *given):
    with pytest.raises(SystemExit) as end:
        main([str(word) for word in given])
    out = capsys.readouterr()
    return end.value.code, out.out, out.err


def train(photos, vae, out, *more):
    with pytest.raises(SystemExit) as end:
        main(words(photos, vae, out, "--json", *more))
    assert end.value.code == 0
    return out


@pytest.fixture(scope="module")
def trained(photos, vae, tmp_path_factory):
    return train(photos, vae, tmp_path_factory.mktemp("runs") / "run", "--corrupt", "gaussian:share=0.5,std=0.3")


def stored(folder):
    return load_file(folder / "checkpoints" / "step-00000003" / "state.safetensors")


def test_the_corrupted_images_are_what_is_encoded(photos, vae, trained):
    (kept,) = trained.glob("latents-*.npy")
    dirty, _ = corrupt(load(str(photos)).x, "gaussian:share=0.5,std=0.3", 0)
    with torch.no_grad():
        wanted = 3.0 * AutoencoderKL.from_pretrained(vae).encode(dirty).latent_dist.mode()
    torch.testing.assert_close(torch.from_numpy(np.load(kept)), wanted)
    assert weights_hash(AutoencoderKL.from_pretrained(vae)) in kept.name


def test_a_run_that_resumes_is_the_one_that_never_stopped(capsys, photos, vae, trained, tmp_path, monkeypatch):
    train(photos, vae, tmp_path / "cut", "--corrupt", "gaussian:share=0.5,std=0.3", "--steps", "1")
    capsys.readouterr()
    monkeypatch.setattr(Encoded, "__getitem__", lambda *_: pytest.fail("encoded again"))
    train(photos, vae, tmp_path / "cut", "--corrupt", "gaussian:share=0.5,std=0.3")
    first, second = stored(trained), stored(tmp_path / "cut")
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_samples_are_decoded(capsys, trained, photos, tmp_path):
    network, process, clip = load_pipeline(trained, latent=True)
    latents = Latents.load(trained)
    assert not clip, "latents are not in [-1, 1]"
    drawing = ["--sampler", "ddim", "--sampling_steps", "5", "--seed", "3"]
    code, out, err = atdm(capsys, "sample", trained, "--n", "3", *drawing, "--out", tmp_path / "drawn.npz", "--json")
    assert code == 0, err
    assert json.loads(out)["item_shape"] == [3, 16, 16]
    wanted = latents.decode(sample(network, process, 3, (2, 8, 8), sampler="ddim", steps=5, seed=3))
    np.testing.assert_allclose(np.load(tmp_path / "drawn.npz")["samples"], wanted.numpy(), rtol=1e-4, atol=1e-4)
    code, out, err = atdm(capsys, "evaluate", trained, "--n", "4", *drawing, "--json")
    assert code == 0, err
    assert {"noise_std", "frechet_pixels"} <= {row["metric"] for row in json.loads(out)["rows"]}
    picture = Image.open(trained / "samples" / "step-00000003.png")
    assert picture.size == (8 * 17 + 1, 8 * 17 + 1), "64 images of 16x16 with lines between them"
    code, out, _ = atdm(capsys, "show", "run", trained, "--out", tmp_path / "curves.png", "--json")
    assert code == 0
    assert json.loads(out)["samples"].endswith("step-00000003.png")


def by_the_card(folder, seed, steps):
    """What a person draws who puts the lines of the card together."""
    blocks = [part.split("```")[0] for part in (folder / "README.md").read_text().split("```python\n")[1:]]
    lines = "\n".join(blocks).replace("seed = 0", f"seed = {seed}").replace("scheduler, 0", f"scheduler, {seed}")
    lines = lines.replace("=16", "=4").replace("range(16)", "range(4)").replace("=250)", f"={steps})")
    lines = lines.replace("timesteps(250)", f"timesteps({steps})")
    assert "atdm" not in lines
    if "generator" not in lines:  # the lines for EDM draw other images each time
        lines = lines.replace("batch_size=4", "batch_size=4, generator=generators")
    names = {"generators": generators(seed, range(4))}
    exec(lines, names)
    return np.stack([np.asarray(image) for image in names["images"]])


@pytest.mark.parametrize("case", ["as trained", "shift", "flow", "edm"])
def test_a_stranger_draws_the_same_images_by_the_lines_of_the_card(
    capsys, case, trained, photos, vae, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)  # the card names the folder as it was given
    made, steps = trained, 5
    if case == "shift":
        autoencoder(shift_factor=0.5).save_pretrained(tmp_path / "vae")
        made = train(photos, tmp_path / "vae", tmp_path / "run")
    elif case != "as trained":  # steps of which each is a row of the table of T = 28
        made, steps = train(photos, vae, tmp_path / "run", "--process", f"{case}:steps=28"), 28
    code, _, err = atdm(capsys, "export", made, "--out", "shared")
    assert code == 0, err
    card = (tmp_path / "shared" / "README.md").read_text()
    assert "A latent diffusion model of images" in card
    assert str(photos.parent) not in card
    theirs = by_the_card(tmp_path / "shared", 3, steps)
    sampler = "euler" if case in ("flow", "edm") else "ddim"
    options = [
        "--n",
        "4",
        "--sampler",
        sampler,
        "--sampling_steps",
        steps,
        "--seed",
        "3",
        "--out",
        tmp_path / "ours.npz",
    ]
    for where in (made, tmp_path / "shared"):  # the run, and what was exported
        code, _, err = atdm(capsys, "sample", where, *options)
        assert code == 0, err
        ours = torch.from_numpy(np.load(tmp_path / "ours.npz")["samples"])
        ours = (255 * (ours / 2 + 0.5).clamp(0, 1)).permute(0, 2, 3, 1).numpy()
        assert ((ours > 0) & (ours < 255)).mean() > 0.3, "nothing to compare: all is clipped"
        np.testing.assert_allclose(theirs, ours, atol=1)


def test_diffusers_opens_it_by_itself(trained):
    pipeline = LDMPipeline.from_pretrained(trained / "model")
    assert (type(pipeline.vqvae), type(pipeline.unet)) == (AutoencoderKL, UNet2DModel)
    assert isinstance(pipeline.scheduler, DDIMScheduler)
    original = autoencoder().state_dict()
    assert all(torch.equal(value, original[name]) for name, value in pipeline.vqvae.state_dict().items()), "frozen"


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["--vae", "nowhere"], "There is no folder 'nowhere'"),
        (["--vae", "."], "Cannot load an autoencoder from '.'"),
        (["--vae", "unet"], "There is a UNet2DModel"),
        (["--vae", "pickled"], "Cannot load an autoencoder from 'pickled'"),
        (["--flip", "true"], "each image is encoded once, so it cannot change from epoch to epoch: flip"),
        (["--corrupt", "gaussian", "--corrupt_fresh", "true"], "from epoch to epoch: corrupt_fresh"),
        (["--image_size", "8", "--crop", "random"], "from epoch to epoch: crop random"),
        (["--image_size", "15"], "divides sides by 2; the images have 15x15 pixels"),
        (["--data", "digits"], "takes images of 3 channels; these have 1"),
        (["--data", "plane"], "The autoencoder is for images"),
        (["--objective.name", "sure"], "works by the noise of pixels"),
    ],
)
def test_mistakes_are_sentences_and_exit_2(capsys, photos, vae, tmp_path, monkeypatch, more, sentence):
    monkeypatch.chdir(tmp_path)
    UNet2DModel(
        block_out_channels=(8,),
        norm_num_groups=4,
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
        layers_per_block=1,
    ).save_pretrained("unet")
    autoencoder().save_pretrained("pickled", safe_serialization=False)
    code, _, err = atdm(capsys, *words(photos, vae, tmp_path / "out", *more))
    assert code == 2
    assert sentence in err
    assert not (tmp_path / "out").exists(), "a mistake must leave nothing behind"


def test_a_run_knows_its_autoencoder_and_its_data(photos, vae, trained, tmp_path):
    options = {"data": str(photos), "net": NET, "vae": str(vae), "out": str(tmp_path / "run"), "batch_size": 4}
    options |= {"process": "linear:steps=25", "objective": ObjectiveConfig("ddpm")}
    for _ in run.train(TrainConfig(**options, steps=1)):
        pass
    with pytest.raises(UserError, match="its vae is"):
        next(run.train(TrainConfig(**{**options, "vae": None}, steps=2)))
    parts = build(TrainConfig(**options))
    assert not isinstance(parts.source.items, Encoded), "what was encoded is found again"
    autoencoder(seed=1).save_pretrained(tmp_path / "other")
    with pytest.raises(UserError, match="not the one the run began with"):
        build(TrainConfig(**{**options, "vae": str(tmp_path / "other")}))
    with pytest.raises(UserError, match="holds 20 latents"):
        build(TrainConfig(**{**options, "limit": 10}))


def test_the_autoencoder_of_a_run_or_pipeline_is_found_in_it(trained, tmp_path):
    pipeline = LDMPipeline.from_pretrained(trained / "model")
    pipeline.vqvae.save_pretrained(tmp_path / "vae")
    hashes = [weights_hash(Latents.load(p).vae) for p in (trained, trained / "model", tmp_path)]
    assert len(set(hashes)) == 1


def test_what_works_on_pixels_refuses_latents(capsys, trained, photos, tmp_path):
    for given in (["purify", trained, "--noise", "0.3", "--data", photos], ["attack", trained, "--data", photos]):
        code, _, err = atdm(capsys, *given, "--out", tmp_path / "out")
        assert code == 2
        assert "is a latent diffusion model, and this works on pixels" in err


def test_latents_that_are_not_finite_are_refused(tmp_path):
    broken = autoencoder()
    with torch.no_grad():
        broken.quant_conv.bias[0] = float("inf")
    encoded = Encoded(Source(Floats(torch.zeros(3, 3, 8, 8))), Latents(broken))
    with pytest.raises(UserError, match="not finite of the items 0 to 2"):
        encoded.save(tmp_path / "latents.npy")


def test_dry_run_costs_latents_without_a_folder(capsys, photos, vae, tmp_path):
    code, out, err = atdm(capsys, *words(photos, vae, tmp_path / "out", "--dry_run", "--json"))
    assert code == 0, err
    assert json.loads(out)["config"]["vae"] == str(vae)
    assert not (tmp_path / "out").exists()


def test_a_recipe_may_name_it(capsys, photos, vae, tmp_path):
    (tmp_path / "recipe.yaml").write_text(
        f"data: {photos}\nvae: {vae}\nnet: {NET}\nsteps: 1\nbatch_size: 4\nprocess: linear:steps=25\n"
    )
    code, _, err = atdm(capsys, "train", "--config", tmp_path / "recipe.yaml", "--out", tmp_path / "run", "--json")
    assert code == 0, err
    assert isinstance(Latents.load(tmp_path / "run"), Latents)
