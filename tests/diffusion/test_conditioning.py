"""Conditional networks: dropping, guidance, and the objective's passes seeing the condition of their own sample."""

import pytest
import torch

from atdm.diffusion.conditioning import Guided, drop_conditioning
from atdm.diffusion.process import Process
from atdm.diffusion.sampling import sample
from atdm.errors import UserError
from atdm.objective import Draws, Objective

PROCESS = Process.linear()


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_rows_are_dropped_together_by_a_seeded_probability(generator):
    text, label = torch.randn(4000, 3, 2, generator=generator), torch.arange(4000)
    given, null = {"text": text, "label": label}, {"text": torch.full((3, 2), 9.0), "label": torch.tensor(-1)}
    found = drop_conditioning(given, null, 0.1, seeded(3))
    dropped = found["label"] == -1
    assert dropped.float().mean() == pytest.approx(0.1, abs=0.02)
    assert torch.equal((found["text"] == 9.0).flatten(1).all(1), dropped)
    assert torch.equal(found["text"][~dropped], text[~dropped])
    assert torch.equal(found["label"][~dropped], label[~dropped])
    assert torch.equal(drop_conditioning(given, null, 0.1, seeded(3))["label"], found["label"])
    assert not torch.equal(drop_conditioning(given, null, 0.1, seeded(4))["label"], found["label"])
    assert torch.equal(drop_conditioning(given, null, 0.0, seeded(3))["text"], text)
    assert (drop_conditioning(given, null, 1.0, seeded(3))["label"] == -1).all()


@pytest.mark.parametrize("gate", [None, 0.5])
@pytest.mark.parametrize("name", ["robust_rand", "robust_adv"])
def test_pushed_rows_see_the_condition_of_their_own_sample(name, gate, generator):
    """The states carry their sample's number, which every pass finds beside its condition; dropped rows stay dropped."""
    n = 64
    label = torch.arange(n)
    kept = drop_conditioning({"class_labels": label}, {"class_labels": torch.tensor(n)}, 0.4, seeded(1))
    dropped = kept["class_labels"] == n
    assert 10 < dropped.sum() < 50
    seen = []

    def model(x, t, class_labels, encoder_hidden_states):
        seen.append(len(x))
        of = encoder_hidden_states[:, 0, 0].long()  # the sample's number, never dropped
        assert torch.equal(t, draws.t[of])
        assert torch.equal(class_labels, kept["class_labels"][of])
        assert torch.allclose(x[:, 0], x_t[of, 0], atol=0.3 * 4), "a push reaches so far"
        return 0.1 * x + encoder_hidden_states.mean((1, 2))[:, None] * 0

    # So far apart that a state tells its sample: 100 per number.
    x0 = 100.0 * label[:, None] * torch.ones(1, 3)
    objective = Objective(name, PROCESS, gate=gate)
    draws = objective.draw(x0.shape, generator=generator)
    draws = Draws(draws.t.clamp(max=400), draws.noise, draws.beta, draws.start)
    x_t = PROCESS.mix(x0, draws.noise, draws.t)
    hidden = label.float()[:, None, None].expand(n, 5, 2).contiguous()
    terms = objective(model, x0, draws=draws, class_labels=kept["class_labels"], encoder_hidden_states=hidden)
    assert terms.perturbed.any()
    assert sum(seen) > n


def test_a_conditional_unet_of_diffusers_is_one_denoiser_per_condition():
    """The terms of a batch of mixed conditions are those of each sample alone, classes and text."""
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=8,
        in_channels=2,
        out_channels=2,
        layers_per_block=1,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=4,
        attention_head_dim=4,
        norm_num_groups=4,
        num_class_embeds=6,
    ).eval()
    generator = seeded()
    x0, text = torch.randn(4, 2, 8, 8, generator=generator), torch.randn(4, 3, 4, generator=generator)
    given = {"encoder_hidden_states": text, "class_labels": torch.tensor([0, 1, 2, 5])}
    objective = Objective("robust_adv", PROCESS)
    draws = objective.draw(x0.shape, generator=generator)
    together = objective(unet, x0, draws=draws, **given)
    swapped = objective(unet, x0, draws=draws, **{k: v.flip(0) for k, v in given.items()})
    assert not torch.allclose(together.regularizer, swapped.regularizer, rtol=1e-3)
    for i in range(4):
        row = slice(i, i + 1)
        alone = objective(unet, x0[row], draws=draws[row], **{k: v[row] for k, v in given.items()})
        torch.testing.assert_close(alone.denoise[0], together.denoise[i], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(alone.regularizer[0], together.regularizer[i], rtol=2e-2, atol=1e-5)


def test_guidance_extrapolates_and_samples_the_shifted_mean():
    """Data N(c, s^2) given c, and N(0, s^2) for null: guidance by w samples N(w c, s^2)."""
    s = 0.3

    def ideal(x, t, mean):
        alpha, sigma = PROCESS.alpha(t, x), PROCESS.sigma(t, x)
        return sigma * (x - alpha * mean[:, None]) / (alpha**2 * s**2 + sigma**2)

    for scale in (1.0, 2.5):
        guided = Guided(ideal, {"mean": torch.tensor(0.0)}, scale)
        mean = torch.tensor([1.0, -2.0]).repeat_interleave(500)
        x = sample(guided, PROCESS, 1000, (1,), steps=50, conditioning={"mean": mean})
        assert x[:500].mean() == pytest.approx(scale, abs=0.06)
        assert x[500:].mean() == pytest.approx(-2 * scale, abs=0.08)
        assert x[:500].std() == pytest.approx(s, rel=0.12)


def test_samples_get_their_own_rows_also_of_dictionaries():
    """``added_cond_kwargs`` of diffusers hold tensors by name, whose rows go with their samples as others do."""
    n, count = 5, []

    def model(x, t, label, added_cond_kwargs, scale):
        count.append(len(x))
        assert torch.equal(added_cond_kwargs["text_embeds"][:, 0], label)
        assert added_cond_kwargs["size"] == scale == (8, 8)
        return 0 * x + label[:, None, None, None]

    label = torch.arange(n).float()
    conditioning = {
        "label": label,
        "added_cond_kwargs": {"text_embeds": label[:, None], "size": (8, 8)},
        "scale": (8, 8),
    }
    sample(model, PROCESS, n, (1, 2, 2), steps=2, batch_size=2, conditioning=conditioning)
    assert count == [2, 2, 2, 2, 1, 1]


def test_mistakes_are_sentences():
    label = {"class_labels": torch.arange(4)}
    null = {"class_labels": torch.tensor(9)}
    for make, words in [
        (lambda: drop_conditioning(label, null, 1.5), "Expected a number in"),
        (lambda: drop_conditioning(label, {"class_label": torch.tensor(9)}, 0.1), "Valid: class_label"),
        (
            lambda: drop_conditioning({**label, "text": torch.zeros(3, 2)}, {**null, "text": torch.zeros(2)}, 0.1),
            "rows",
        ),
    ]:
        with pytest.raises(UserError, match=words):
            make()
