"""What purification by a diffusion model is worth to a classifier of digits, under attacks that know it and that do not.

atdm train --data digits --net mlp:width=384,depth=3,residual=true --objective.name ddpm --out runs/ddpm
python examples/purify_digits.py runs/ddpm [runs/robust ...]
"""

import sys

import torch
from sklearn.datasets import load_digits
from torch import nn

from atdm import Model
from atdm.attack import Search
from atdm.attack.purify import ImageAttack, Purifier, doubt_purifier, robust_accuracy
from atdm.data import load

NOISE, RADIUS, IMAGES = 0.3, 0.3, 150  # sigma_t/alpha_t; l_inf in the scale of [-1, 1]; of the 297 held out


def labels(x: torch.Tensor) -> torch.Tensor:
    """The labels of digits that ``atdm.data.load`` gives in an order of its own."""
    digits = load_digits()
    images = torch.from_numpy(digits.images).float().div(8).sub(1).flatten(1)
    return torch.from_numpy(digits.target)[torch.cdist(x.flatten(1), images).argmin(1)]


def train(x: torch.Tensor, y: torch.Tensor) -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 32, 3, stride=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.LazyLinear(10),
    )
    net(x[:1])
    optimizer = torch.optim.Adam(net.parameters(), 2e-3)
    for _ in range(400):
        rows = torch.randint(len(x), (128,))
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x[rows]), y[rows]).backward()
        optimizer.step()
    return net.eval().requires_grad_(False)


def main(runs: list[str]) -> None:
    data = load("digits")
    assert data.test is not None
    x, y = data.test[:IMAGES], labels(data.test[:IMAGES])
    classifier = train(data.x, labels(data.x))
    attack = ImageAttack(RADIUS, Search(steps=20, kappa=0.5, draws=4))
    for run in runs:
        purifier = Purifier(Model.from_pretrained(run), noise=NOISE, steps=50).requires_grad_(False)
        found = robust_accuracy(classifier, purifier, x, y, attack)
        print(run, {name: round(value, 3) for name, value in found.items()})
        print(" ", doubt_purifier(found).says)


if __name__ == "__main__":
    main(sys.argv[1:])
