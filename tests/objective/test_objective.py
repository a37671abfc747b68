"""Closed-form oracles (docs/method.md) and the promises of the objective."""

import math

import pytest
import torch
from torch import nn

from atdm.diffusion.process import Process
from atdm.errors import UserError
from atdm.nets.passes import remember_random
from atdm.objective import KINDS, Draws, Objective
from atdm.objective.perturb import (
    ConstantRadius,
    ConstantWeight,
    OverRadius,
    Perturbation,
    PublishedRadius,
    PublishedWeight,
    RelativeWeight,
)

PROCESS = Process.linear()
CORNER = Perturbation("linf", steps=1, kappa=math.inf)


class Diagonal(nn.Module):
    """eps(x) = a x, one gain for each coordinate."""

    def __init__(self, d, a=0.5):
        super().__init__()
        self.a = nn.Parameter(torch.full((d,), float(a)))

    def forward(self, x, t):
        return self.a * x


class Small(nn.Module):
    """A nonlinear network with dropout."""

    def __init__(self, d=6, dropout=0.0):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(d, 32), nn.SiLU(), nn.Dropout(dropout), nn.Linear(32, d))

    def forward(self, x, t, scale=None):
        out = self.net(x)
        return out if scale is None else out * scale.reshape(-1, 1)


def optimum(s, t, lambda_c):
    """a* = sigma (1 + lambda c) / (alpha^2 s^2 + sigma^2 + lambda c sigma^2): docs/method.md."""
    alpha, sigma = PROCESS.alphas[t].item(), PROCESS.sigmas[t].item()
    return sigma * (1 + lambda_c) / (alpha**2 * s**2 + sigma**2 + lambda_c * sigma**2)


def train_linear(objective, s, t, steps=250, batch=4096):
    model = Diagonal(len(s))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    generator = torch.Generator().manual_seed(1)
    scale = torch.tensor(s)
    for _ in range(steps):
        x0 = torch.randn(batch, len(s), generator=generator) * scale
        draws = objective.draw(x0.shape, generator=generator)
        draws = Draws(torch.full((batch,), t), draws.noise, draws.beta, draws.start)
        optimizer.zero_grad()
        objective(model, x0, draws=draws).loss.mean().backward()
        optimizer.step()
        schedule.step()
    return model.a.detach()


@pytest.mark.parametrize("t", [60, 300, 700])
@pytest.mark.parametrize("detach", [False, True])
@pytest.mark.parametrize("name", ["robust_rand", "robust_adv"])
def test_linear_gaussian_optimum(name, detach, t):
    r, lam, s = 0.8, 2.0, (1.0, 0.3)
    c = r**2 / 3 if name == "robust_rand" else r**2  # uniform, corner
    objective = Objective(name, PROCESS, ConstantRadius(r), ConstantWeight(lam), CORNER, detach_target=detach)
    a = train_linear(objective, s, t)
    for got, std in zip(a.tolist(), s, strict=True):
        assert got == pytest.approx(optimum(std, t, lam * c), rel=0.02)


@pytest.mark.parametrize(("weight", "bias"), [(PublishedWeight(), 1), (OverRadius(), 0)])
def test_training_reaches_the_plain_optimum_and_that_of_the_published_radius(weight, bias):
    """With beta = 1, lambda_t c of a uniform push is lam sqrt(3) r^2 / 3 over the ray, or over r with the bias inside."""
    plain = train_linear(Objective("ddpm", PROCESS), (0.5,), 100).item()
    assert plain == pytest.approx(optimum(0.5, 100, 0.0), rel=0.02)
    ray = PROCESS.sigmas[100].item() ** 2
    r = ray + 8 / 255
    got = train_linear(Objective("robust_rand", PROCESS, PublishedRadius(beta="one"), weight), (0.5,), 100).item()
    lambda_c = 0.3 * math.sqrt(3) * r**2 / 3 / (ray if bias else r)
    assert got == pytest.approx(optimum(0.5, 100, lambda_c), rel=0.005)
    assert got > plain


def test_relative_weight_shrinks_by_one_plus_k_for_the_l2_push():
    objective = Objective("robust_adv", PROCESS, ConstantRadius(3), RelativeWeight(5), Perturbation("l2", 1, math.inf))
    a = train_linear(objective, (0.4,), 200).item()  # one dimension: the push is all there is
    assert a == pytest.approx(optimum(0.4, 200, 5.0), rel=0.02)


def test_l2_ascent_is_one_power_iteration_on_the_jacobian(generator):
    matrix = torch.randn(5, 5, generator=generator)
    perturbation = Perturbation("l2", 1, math.inf)
    start = perturbation.start((3, 5), generator)
    delta = perturbation.find(lambda d: (d @ matrix.T).square().mean(1), start, torch.ones(3))
    expected = start @ matrix.T @ matrix
    expected = expected / expected.square().mean(1, keepdim=True).sqrt()
    torch.testing.assert_close(delta, expected, rtol=1e-4, atol=1e-5)


def test_the_ideal_network_is_equivariant_off_the_subspace(generator):
    """Data on a plane: eps*(x + sigma delta) - eps*(x) = delta for delta orthogonal to it, and only there."""
    t = torch.full((64,), 400)
    alpha, sigma = PROCESS.alphas[400], PROCESS.sigmas[400]
    variance = torch.tensor([1.0, 0.5, 0.0])  # the third coordinate is off the plane
    ideal = lambda x, t: sigma * x / (alpha**2 * variance + sigma**2)  # noqa: E731
    x0 = torch.randn(64, 3, generator=generator) * variance.sqrt()
    objective = Objective("robust_rand", PROCESS)
    draws = objective.draw(x0.shape, generator=generator)
    for axis in range(3):
        start = torch.zeros(64, 3)
        start[:, axis] = draws.start[:, axis]
        terms = objective(ideal, x0, draws=Draws(t, draws.noise, draws.beta, start))
        relative = (terms.regularizer / terms.delta_rms.square()).mean().item()
        shrink = (alpha**2 * variance[axis] / (alpha**2 * variance[axis] + sigma**2)).item()
        assert relative == pytest.approx(shrink**2, rel=1e-3, abs=1e-8)


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("name", sorted(set(KINDS) - {"ddpm"}))
def test_equivariance_of_eps_is_invariance_of_the_denoised_image(name, prediction, generator):
    """eps(x^d) - eps(x) - d = -(alpha/sigma) [D(x^d) - D(x)], whichever way the same denoiser is written."""
    denoiser = Small().double()

    def model(x, t):
        d = denoiser.net(x.double())
        alpha, sigma = process.alpha(t, x).double(), process.sigma(t, x).double()
        eps = (x - alpha * d) / sigma
        return {"epsilon": eps, "sample": d, "v_prediction": alpha * eps - sigma * d}[prediction].float()

    process = Process.linear(prediction=prediction)
    objective = Objective(name, process)
    x0 = torch.randn(16, 6, generator=generator)
    draws = objective.draw(x0.shape, generator=generator)
    draws = Draws(draws.t.clamp(min=50), draws.noise, draws.beta, draws.start)
    terms = objective(model, x0, draws=draws)
    reference = Objective(name, PROCESS)(
        lambda x, t: (x - PROCESS.alpha(t, x) * denoiser.net(x.double()).float()) / PROCESS.sigma(t, x), x0, draws=draws
    )
    torch.testing.assert_close(terms.regularizer, reference.regularizer, rtol=2e-3, atol=1e-5)
    torch.testing.assert_close(terms.weight / process.eps_weight(draws.t), reference.weight)
    if KINDS[name].equivariant and not KINDS[name].adversarial:
        x_t = process.mix(x0, draws.noise, draws.t)
        delta = terms.radius.reshape(-1, 1) * draws.start
        moved = denoiser.net((x_t + process.sigma(draws.t, x_t) * delta).double()) - denoiser.net(x_t.double())
        ratio = (process.alpha(draws.t) / process.sigma(draws.t)) ** 2
        torch.testing.assert_close(terms.regularizer, ratio * moved.float().square().mean(1), rtol=2e-3, atol=1e-5)


def test_fgsm_from_zero_does_nothing_and_from_a_random_start_raises_the_gain(generator):
    model = Small()
    x = torch.randn(32, 6, generator=generator)
    gain = lambda delta: (model(x + delta, None) - model(x, None).detach()).square().mean(1)  # noqa: E731
    fgsm, r = Perturbation("linf", 1), torch.full((32,), 0.3)
    assert fgsm.find(gain, torch.zeros(32, 6), r).eq(0).all()
    start = fgsm.start((32, 6), generator)
    delta = fgsm.find(gain, start, r)
    assert gain(delta).mean() > 1.5 * gain(0.3 * start).mean()
    pgd = Perturbation("linf", 10, 0.5).find(gain, start, r)
    assert gain(pgd).mean() >= gain(delta).mean()


@pytest.mark.parametrize("name", sorted(KINDS))
def test_an_exactly_equivariant_network_pays_only_for_invariance(name, generator):
    equivariant = lambda x, t: x / PROCESS.sigma(t, x)  # moves by delta when x moves by sigma delta  # noqa: E731
    terms = Objective(name, PROCESS)(equivariant, torch.randn(64, 6, generator=generator), generator=generator)
    kind = KINDS[name]
    if kind.perturbs and not kind.equivariant:
        torch.testing.assert_close(terms.regularizer, terms.delta_rms.square(), rtol=1e-3, atol=1e-6)
        assert (terms.regularizer > 0).all()
    else:
        assert terms.regularizer.max() < 1e-6


@pytest.mark.parametrize("gate", [None, 0.5])
@pytest.mark.parametrize("name", sorted(KINDS))
def test_it_leaves_everything_else_as_it_was(name, gate, generator):
    model = Small(dropout=0.5).train()
    model.net[0].eval()
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 7.0)
    x0 = torch.randn(64, 6, generator=generator)
    objective = Objective(name, PROCESS, gate=gate)
    draws = objective.draw(x0.shape, generator=generator)
    torch.manual_seed(3)
    Objective("ddpm", PROCESS)(model, x0, draws=draws)
    after_plain = torch.get_rng_state()
    torch.manual_seed(3)
    objective(model, x0, draws=draws)
    assert torch.equal(torch.get_rng_state(), after_plain), "the push moved the global random stream"
    assert all(p.grad.eq(7).all() and p.requires_grad for p in model.parameters())
    assert [m.training for m in model.modules()] == [True, True, False, True, True, True]


def test_every_objective_draws_the_same_data_randomness():
    draws = [Objective(n, PROCESS).draw((8, 3), generator=torch.Generator().manual_seed(5)) for n in KINDS]
    for other in draws[1:]:
        assert torch.equal(other.t, draws[0].t)
        assert torch.equal(other.noise, draws[0].noise)


@pytest.mark.parametrize("gate", [None, 0.5])
def test_all_passes_see_the_same_dropout_masks(gate, generator):
    """A network that adds dropout noise *independent of x*: with shared masks it cancels in the difference."""

    class Noisy(nn.Module):
        def forward(self, x, t):
            return x / PROCESS.sigma(t, x) + 100 * nn.functional.dropout(torch.ones_like(x), 0.5, training=True)

    objective = Objective("robust_adv", PROCESS, gate=gate)
    terms = objective(Noisy(), torch.randn(256, 6, generator=generator), generator=generator)
    assert terms.regularizer.max() < 1e-3


def test_the_gate_pushes_only_below_it_and_changes_nothing_there(generator):
    model, x0 = Small(), torch.randn(512, 6, generator=generator)
    gated, plain = (Objective("robust_adv", PROCESS, gate=g) for g in (0.5, None))
    draws = gated.draw(x0.shape, generator=generator)
    inside = PROCESS.ratio(draws.t) < 0.5
    got, reference = gated(model, x0, draws=draws), plain(model, x0, draws=draws)
    assert torch.equal(got.perturbed, inside)
    assert 0 < inside.sum() < 512
    assert got.regularizer[~inside].eq(0).all()
    torch.testing.assert_close(got.regularizer[inside], reference.regularizer[inside], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(got.loss[~inside], got.denoise[~inside])
    nothing = Objective("robust_adv", PROCESS, gate=1e-6)(model, x0, draws=draws)
    assert torch.equal(nothing.loss, nothing.denoise)


@pytest.mark.parametrize("options", [{}, {"gate": 0.5}, {"gate": 0.5, "perturbation": Perturbation("l2", 2, math.inf)}])
@pytest.mark.parametrize("name", sorted(set(KINDS) - {"ddpm"}))
def test_stacked_passes_are_the_passes_one_by_one(name, options, generator):
    """Values and gradients of the parameters; a network known to draw random numbers is passed through one by one."""
    x0 = torch.randn(256, 6, generator=generator)
    objective, scale = Objective(name, PROCESS, **options), torch.linspace(0.5, 2, 256)
    draws = objective.draw(x0.shape, generator=generator)
    model = Small()
    values = []
    for _ in range(2):
        terms = objective(model, x0, draws=draws, scale=scale)
        values.append((terms, torch.autograd.grad(terms.loss.mean(), list(model.parameters()))))
        remember_random(model)
    (stacked, gradients), (single, expected) = values
    for name, value in vars(single).items():
        torch.testing.assert_close(getattr(stacked, name), value, rtol=1e-5, atol=1e-7)
    for got, want in zip(gradients, expected, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5 * want.abs().max().item())


@pytest.mark.parametrize("gate", [None, 0.5])
def test_the_attack_asks_for_no_gradient_of_the_parameters(gate, generator):
    asked = []

    class Watched(Small):
        def forward(self, x, t, scale=None):
            asked.append((x.requires_grad, self.net[0].weight.requires_grad))
            return super().forward(x, t, scale)

    objective = Objective("robust_adv", PROCESS, gate=gate)
    objective(Watched(), torch.randn(256, 6, generator=generator), generator=generator)
    attack, training = (True, False), (False, True)
    assert asked == ([attack, training] if gate else [training, attack, training])


@pytest.mark.parametrize("gate", [None, 0.5])
def test_conditioning_follows_its_samples(gate, generator):
    model, x0 = Small(), torch.randn(64, 6, generator=generator)
    scale = torch.linspace(0, 3, 64)
    objective = Objective("robust_adv", PROCESS, gate=gate)
    draws = objective.draw(x0.shape, generator=generator)
    terms = objective(model, x0, draws=draws, scale=scale)
    row = int(terms.perturbed.nonzero()[-1])
    alone = objective(model, x0[row : row + 1], draws=draws[row : row + 1], scale=scale[row : row + 1])
    torch.testing.assert_close(alone.loss[0], terms.loss[row], rtol=1e-4, atol=1e-5)


def test_gradients_reach_the_parameters_through_both_terms(generator):
    x0 = torch.randn(32, 6, generator=generator)
    for detach in (False, True):
        model = Small()
        objective = Objective("robust_adv", PROCESS, detach_target=detach)
        terms = objective(model, x0, generator=torch.Generator().manual_seed(0))
        both = torch.autograd.grad(terms.loss.mean(), model.net[0].weight, retain_graph=True)[0]
        one = torch.autograd.grad(terms.denoise.mean(), model.net[0].weight, retain_graph=True)[0]
        two = torch.autograd.grad((terms.weight * terms.regularizer).mean(), model.net[0].weight)[0]
        torch.testing.assert_close(both, one + two)
        assert two.norm() > 0


def test_diffusers_output_and_tuple_are_understood(generator):
    from diffusers.models.unets.unet_2d import UNet2DOutput

    x0 = torch.randn(4, 6, generator=generator)
    model = Small()
    values = [
        Objective("robust_adv", PROCESS)(form, x0, generator=torch.Generator().manual_seed(0)).loss
        for form in (model, lambda x, t: UNet2DOutput(sample=model(x, t)), lambda x, t: (model(x, t),))
    ]
    assert torch.equal(values[0], values[1])
    assert torch.equal(values[0], values[2])


@pytest.mark.parametrize("gate", [None, 0.5])
@pytest.mark.parametrize("name", sorted(KINDS))
def test_passes_are_those_the_network_sees(name, gate):
    """Forward rows counted in the network itself, over many draws of t."""
    rows = 0

    def count(x, t):
        nonlocal rows
        rows += len(x)
        return 0.5 * x

    objective, generator = Objective(name, PROCESS, gate=gate), torch.Generator().manual_seed(0)
    objective(count, torch.randn(20_000, 2, generator=generator), generator=generator)
    assert rows / 20_000 == pytest.approx(objective.passes()["forwards"], abs=0.02)
    assert Objective("robust_adv", PROCESS).passes()["floor_over_ddpm"] == pytest.approx(8 / 3)
    assert Objective("robust_rand", PROCESS).passes()["floor_over_ddpm"] == pytest.approx(2)


def test_radius_and_weight_may_be_specs():
    found = Objective("robust_adv", PROCESS, "constant:r=0.3", "relative:k=2")
    assert found == Objective("robust_adv", PROCESS, ConstantRadius(0.3), RelativeWeight(2.0))


def test_mistakes_are_sentences():
    for make, words in [
        (lambda: Objective("robust_advv", PROCESS), "Did you mean 'robust_adv'"),
        (lambda: Objective("robust_adv", PROCESS, ascent="loss"), "Unknown ascent"),
        (lambda: Objective("robust_adv", PROCESS, gate=-1), "gate is -1"),
        (lambda: Objective("robust_adv", PROCESS, perturbation=Perturbation(steps=0)), "robust_rand"),
        (lambda: Objective("robust_adv", PROCESS, radius="publishd"), "Did you mean 'published'"),
        (lambda: Objective("robust_adv", PROCESS, weight=0.3), "The weight is 0.3. Expected a weight or its spec"),
    ]:
        with pytest.raises(UserError, match=words):
            make()


def test_pushing_in_one_of_so_many_steps_is_the_same_loss_on_average():
    """Over many batches: the push counts as often as it is left out, times its weight."""
    options = {"radius": ConstantRadius(0.5), "weight": RelativeWeight(2.0), "perturbation": Perturbation("l2")}
    process = Process.linear(50)
    always, seldom = (Objective("robust_adv", process, **options, every=n) for n in (1, 4))
    model = lambda x, t: 0.3 * x  # noqa: E731
    x0 = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))
    pushed, terms = [], {1: [], 4: []}
    for seed in range(400):
        for n, objective in ((1, always), (4, seldom)):
            draws = objective.draw(
                x0.shape,
                generator=torch.Generator().manual_seed(seed),
                perturbation_generator=torch.Generator().manual_seed(1),
            )
            found = objective(model, x0, draws=draws)
            terms[n].append((found.weight * found.regularizer).mean())
            if n == 4:
                pushed.append(bool(found.perturbed.all()))
                assert bool(found.perturbed.any()) == pushed[-1]
    assert sum(pushed) / 400 == pytest.approx(1 / 4, abs=0.07)
    ratio = torch.stack(terms[4]).mean() / torch.stack(terms[1]).mean()
    assert float(ratio) == pytest.approx(1, abs=0.3)
    # Where the push is made, the term is that of the dense objective, four times.
    made = next(i for i, p in enumerate(pushed) if p)
    torch.testing.assert_close(terms[4][made], 4 * terms[1][made])


def test_the_floor_of_a_seldom_push():
    process = Process.linear()
    dense, seldom = (Objective("robust_rand", process, every=n).passes()["floor_over_ddpm"] for n in (1, 4))
    assert dense == pytest.approx(2)
    assert seldom == pytest.approx(1.25)
    with pytest.raises(UserError, match="every is 0"):
        Objective("robust_rand", process, every=0)
