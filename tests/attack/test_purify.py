"""Purification against the closed form of the Gaussian, attacks on linear classifiers, and the command."""

import json
import math

import numpy as np
import pytest
import torch
from torch import nn

from atdm.attack import Search
from atdm.attack.purify import ImageAttack, Purifier, auto_attack, correct, doubt_purifier, purify, robust_accuracy
from atdm.errors import UserError
from helpers import LINEAR, STDS, TURN, D, Gaussian, Ideal, S, atdm, seeded


def slope(purifier):
    """The factor on the state: the probability flow rescales by the standard deviations."""
    alpha, sigma = LINEAR.alphas[purifier.t], LINEAR.sigmas[purifier.t]
    return float(S / (alpha**2 * S**2 + sigma**2).sqrt())


def test_purification_is_the_closed_form_of_the_gaussian():
    purifier = Purifier(Ideal(), LINEAR, 0.5, sampler="dpm-solver++", steps=200)
    assert 0.45 < purifier.level <= 0.5
    x = 3 * torch.randn(500, 2, generator=seeded())
    eps = torch.randn(500, 2, generator=seeded(4))
    alpha, sigma = LINEAR.alphas[purifier.t], LINEAR.sigmas[purifier.t]
    out = purifier(x, [seeded(4)])
    assert torch.allclose(out, slope(purifier) * (alpha * x + sigma * eps), atol=0.02)


@pytest.mark.parametrize("sampler", ["ddim", "ddpm", "heun"])
def test_purification_is_differentiable(sampler):
    """On average over the noise the input counts alpha times the slope; ddpm forgets a share more of it."""
    purifier = Purifier(Ideal(), LINEAR, 0.5, sampler=sampler, steps=100)
    x = torch.randn(4, 3, generator=seeded()).requires_grad_()
    (gradient,) = torch.autograd.grad(purifier(x).sum(), x)
    alpha, sigma = float(LINEAR.alphas[purifier.t]), float(LINEAR.sigmas[purifier.t])
    flow = alpha * slope(purifier)
    expected = flow if sampler != "ddpm" else alpha**2 * S**2 / (alpha**2 * S**2 + sigma**2)
    assert gradient.mean() == pytest.approx(expected, rel=0.05)
    assert gradient.std() < 1e-5  # the model is linear


def test_the_noise_of_an_item_is_its_own():
    purifier = Purifier(Ideal(), LINEAR, 0.5, sampler="ddpm", steps=50)
    x = torch.randn(7, 1, 2, 2, generator=seeded())
    whole = purify(purifier, x, seed=3)
    assert torch.allclose(purify(purifier, x, seed=3, batch_size=2), whole, atol=1e-5)
    assert torch.allclose(purify(purifier, x[:3], seed=3), whole[:3], atol=1e-5)
    assert not torch.allclose(purify(purifier, x, seed=4), whole, atol=1e-2)
    assert not torch.equal(purifier(x), purifier(x))  # new noise at each call, for expectation over it


class Linear(nn.Module):
    """Two classes, by the sign of w.x."""

    def __init__(self, w):
        super().__init__()
        self.w = w

    def forward(self, x):
        score = x.flatten(1) @ self.w
        return torch.stack([-score, score], 1)


@pytest.mark.parametrize("purified", [False, True])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_strongest_push_on_a_linear_classifier_is_found(norm, purified):
    """Through a purifier of Gaussians too, which is linear: the push goes along w (its sign for linf)."""
    w = torch.randn(12, generator=seeded(2))
    x = 0.3 * torch.randn(200, 3, 2, 2, generator=seeded()).clamp(-2, 2)
    y = (x.flatten(1) @ w > 0).long()
    purifier = Purifier(Ideal(), LINEAR, 0.3, steps=50) if purified else None
    found = ImageAttack(0.1, Search(3, norm, kappa=math.inf, draws=2))(Linear(w), x, y, purifier) - x
    towards = -(2 * y[:, None] - 1) * (w.sign() if norm == "linf" else w / w.square().mean().sqrt())
    assert torch.allclose(found.flatten(1), 0.1 * towards, atol=2e-3)


def ideal_digits(x0, width):
    """The ideal denoiser of Gaussians of std ``width`` about the images ``x0``: a strong purifier without training."""
    flat = x0.flatten(1)

    def model(x, t):
        alpha, sigma = LINEAR.alpha(t)[:1], LINEAR.sigma(t)[:1]
        v = alpha**2 * width**2 + sigma**2
        x = x.flatten(1)
        near = (-torch.cdist(x, alpha * flat).square() / (2 * v)).softmax(1)
        return (sigma / v * (x - alpha * near @ flat)).reshape(-1, 1, 8, 8)

    return model


def classifier_of_digits():
    from sklearn.datasets import load_digits
    from sklearn.linear_model import LogisticRegression

    x = torch.from_numpy(load_digits().images).float().div(8).sub(1).unsqueeze(1)
    y = torch.from_numpy(load_digits().target).long()
    fitted = LogisticRegression(C=0.1, max_iter=500).fit(x[:1200].flatten(1).numpy(), y[:1200].numpy())
    linear = nn.Linear(64, 10)
    linear.weight.data = torch.from_numpy(fitted.coef_).float()
    linear.bias.data = torch.from_numpy(fitted.intercept_).float()
    return nn.Sequential(nn.Flatten(), linear), x[:1200], x[1200:1300], y[1200:1300]


def test_an_aware_attack_goes_where_the_purifier_lets_it():
    """A classifier that leans on the direction of least variance, which the purifier closes: an attack on the
    classifier alone spends itself there, the aware one in the directions that come through."""
    purifier = Purifier(Gaussian(), LINEAR, 0.3, sampler="dpm-solver++", steps=100)
    alpha, sigma = float(LINEAR.alphas[purifier.t]), float(LINEAR.sigmas[purifier.t])
    passes = alpha * STDS / (alpha**2 * STDS**2 + sigma**2).sqrt()
    w = TURN @ torch.tensor([1.0, 1.0, 1.0, 12.0])
    x = (0.4 * STDS * torch.randn(400, D, generator=seeded())).clamp(-1, 1) @ TURN.T
    y = (x @ w > 0).long()
    attack = ImageAttack(0.05, Search(3, "l2", kappa=math.inf, draws=8))
    through = TURN @ (passes * (TURN.T @ w))
    for attacked, direction in ((None, w), (purifier, through)):
        pushed = attack(Linear(w), x, y, attacked) - x
        cosine = (pushed @ direction) / pushed.norm(dim=1) / direction.norm()
        assert (cosine.abs() > 0.98).float().mean() > 0.95  # but for those at the edge of [-1, 1]
    assert float(w @ through / w.norm() / through.norm()) < 0.95
    found = robust_accuracy(Linear(w), purifier, x, y, attack, draws=8)
    assert found["pgd_adaptive"] < found["pgd_unaware"] - 0.01
    assert found["robust"] == min(found["pgd_adaptive"], found["pgd_unaware"])
    assert doubt_purifier(found).ok


def test_a_purifier_that_hides_its_gradients_is_found_out():
    """The ideal denoiser of the training images themselves lands on one of them: its gradient all but vanishes."""
    classifier, train, x, y = classifier_of_digits()
    attack = ImageAttack(0.4, Search(5, kappa=0.5, draws=2))
    honest = robust_accuracy(classifier, Purifier(ideal_digits(train, 0.5), LINEAR, 0.3, steps=20), x, y, attack)
    assert honest["clean_alone"] > 0.9
    assert honest["clean_purified"] > 0.9
    assert honest["pgd_alone"] < honest["robust"] < honest["clean_purified"] - 0.3
    assert doubt_purifier(honest).ok
    masked = robust_accuracy(classifier, Purifier(ideal_digits(train, 0), LINEAR, 0.3, steps=20), x, y, attack)
    assert masked["pgd_adaptive"] > masked["pgd_unaware"] + 0.03
    assert masked["robust"] == masked["pgd_unaware"]
    assert not doubt_purifier(masked).ok
    images = attack(classifier, x, y, Purifier(ideal_digits(train, 0.5), LINEAR, 0.3, steps=20))
    assert images.abs().max() <= 1
    assert (images - x).abs().max() <= 0.4 + 1e-6


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_autoattack_is_no_weaker_than_pgd(norm):
    pytest.importorskip("torchattacks")
    classifier, _, x, y = classifier_of_digits()
    x, y = x[:20], y[:20]
    before = torch.get_rng_state()
    found = auto_attack(classifier, x, y, 0.15, norm, steps=20)
    assert torch.equal(torch.get_rng_state(), before)
    pushed = (found - x).flatten(1)
    size = pushed.abs().amax(1) if norm == "linf" else pushed.square().mean(1).sqrt()
    assert size.max() <= 0.15 * 1.001
    pgd = correct(classifier, ImageAttack(0.15, Search(20, norm, kappa=0.5))(classifier, x, y), y).mean()
    assert correct(classifier, found, y).mean() <= pgd + 0.05


def test_autoattack_goes_through_the_purifier():
    pytest.importorskip("torchattacks")
    classifier, train, x, y = classifier_of_digits()
    x, y = x[:16], y[:16]
    purifier = Purifier(ideal_digits(train, 0.3), LINEAR, 0.3, steps=20)
    found = robust_accuracy(classifier, purifier, x, y, ImageAttack(0.25, Search(2)), auto_steps=10, draws=2)
    assert found["auto_adaptive"] < found["clean_purified"] - 0.1
    assert found["robust"] == min(found[f"{kind}_{how}"] for kind in ("pgd", "auto") for how in ("unaware", "adaptive"))


def test_autoattack_without_its_library_is_told(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torchattacks", None)
    with pytest.raises(UserError, match="pip install --no-deps torchattacks"):
        auto_attack(nn.Identity(), torch.zeros(1, 1, 2, 2), torch.zeros(1).long(), 0.1)


@pytest.mark.parametrize("noise", [0.0, -1.0, math.nan, 1e-5])
def test_levels_that_cannot_work_are_told(noise):
    with pytest.raises(UserError, match="Expected"):
        Purifier(Ideal(), LINEAR, noise)


def test_the_command_purifies_and_says_how(capsys, tmp_path):
    from diffusers import DDPMPipeline, DDPMScheduler

    from atdm.nets import build_net

    DDPMPipeline(build_net("digits", (1, 8, 8)), DDPMScheduler()).save_pretrained(tmp_path / "model")
    words = [
        "purify",
        str(tmp_path / "model"),
        "--data",
        "digits",
        "--limit",
        "5",
        "--noise",
        "0.3",
        "--sampling_steps",
        "50",
    ]
    words += ["--corrupt", "gaussian:share=1,std=0.2"]
    code, out, err = atdm(capsys, *words, "--out", str(tmp_path / "out.npz"), "--json")
    assert code == 0, err
    told = json.loads(out)
    assert told["evaluations"] == sum(float(LINEAR.sigmas[t] / LINEAR.alphas[t]) <= 0.3 for t in range(19, 1000, 20))
    assert told["noise"] == pytest.approx(float(LINEAR.sigmas[told["t"]] / LINEAR.alphas[told["t"]]), rel=1e-4)
    assert told["rms_to_clean_before"] == pytest.approx(0.2, abs=0.03)
    with np.load(tmp_path / "out.npz", allow_pickle=False) as file:
        assert file["samples"].shape == (5, 1, 8, 8)
    code, out, _ = atdm(capsys, *words, "--out", str(tmp_path / "out.png"))
    assert "before" in out
    assert (tmp_path / "out.png").is_file()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--noise", "1e-4"], "Expected more steps, or a higher level"),
        (["--noise", "0"], "data units"),
        (["--noise", "0.3", "--data", "plane"], "Expected the same"),
        (["--noise", "0.3", "--corrupt", "gausian"], "Did you mean 'gaussian'"),
        (["--noise", "0.3", "--sampler", "dimm"], "Did you mean 'ddim'"),
    ],
)
def test_mistakes_are_sentences_and_leave_nothing(capsys, tmp_path, tmp_path_factory, monkeypatch, words, sentence):
    from diffusers import DDPMPipeline, DDPMScheduler

    from atdm.nets import build_net

    model = tmp_path_factory.mktemp("model") / "m"
    DDPMPipeline(build_net("mlp:width=8", (1, 8, 8)), DDPMScheduler()).save_pretrained(model)
    monkeypatch.chdir(tmp_path)
    data = [] if "--data" in words else ["--data", "digits"]
    code, _, err = atdm(capsys, "purify", str(model), *data, *words)
    assert code == 2
    assert sentence in err
    assert not list(tmp_path.iterdir())
