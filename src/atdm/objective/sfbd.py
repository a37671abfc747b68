"""Training on trusted items, then on the noisy ones as well, denoised by what was learned so far (SFBD)."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass

from ..diffusion.process import PerItem, States, Timesteps
from ..errors import expect
from .ambient import require_directions
from .terms import Baseline, Draws, LevelsFrom, Predict, Terms


@dataclass(frozen=True)
class Sfbd(Baseline):
    """Stochastic forward-backward deconvolution (Lu 2025, arXiv 2502.05446): ddpm's loss on data that change from round to round.

    Training begins on trusted items alone. Before each round the averaged network follows every noisy item from its noise level back
    to level 0 (:func:`atdm.diffusion.backward.backward`), and the round learns from the trusted items, those that look clean and
    these draws, at all timesteps. Were the network right, the draws would have the distribution of clean data. Of Gaussian data with
    noise of std s one round takes the share ``(c / (c + s^2))^2`` off the error of a variance that the network believes to be c.

    :func:`atdm.training.train.fit` and ``atdm train`` make the rounds; in a loop of one's own the loss is ddpm's.

    Args:
        pretrain: share of the training on trusted items alone.
        rounds: how often the noisy items are denoised; the rest of the training is split among them evenly.
        evaluations: of the network on the way of an item, as many steps of the backward process.
        known: the noise of each item is known, as :class:`Ambient` knows it; otherwise it is estimated from the items.
    """

    pretrain: float = 0.5
    rounds: int = 2
    evaluations: int = 20
    known: bool = False

    def __post_init__(self) -> None:
        share = "a share of the training in (0, 1), such as 0.5: sfbd begins on trusted items alone"
        expect(0 < self.pretrain < 1, "pretrain", f"{self.pretrain:g}", share)
        for name, low in (("rounds", 1), ("evaluations", 2)):
            expect(getattr(self, name) >= low, name, getattr(self, name), f"an integer >= {low}")

    @property
    def levels_from(self) -> LevelsFrom:  # type: ignore[override]
        return "truth" if self.known else "items"

    def require_items(self, item_shape: tuple[int, ...]) -> None:
        if not self.known:
            require_directions("sfbd", item_shape, "sfbd:known=true")

    def round(self, step: int, steps: int) -> tuple[int, int, int]:
        """Which round step ``step`` of ``steps`` is in, 0 on trusted items alone; its first step, and that of the next."""
        share = (1 - self.pretrain) / self.rounds
        firsts = [0, *(max(1, round(steps * (self.pretrain + k * share))) for k in range(self.rounds)), steps]
        found = bisect_right(firsts, step, hi=self.rounds + 1) - 1
        return found, firsts[found], firsts[found + 1]

    def terms(self, predict: Predict, x0: States, t: Timesteps, draws: Draws, levels: PerItem | None) -> Terms:
        output = predict(self.process.mix(x0, draws.noise, t), t)
        return Terms.unperturbed(t, self.denoising(output, x0, draws.noise, t))
