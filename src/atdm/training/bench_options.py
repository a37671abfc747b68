"""What :mod:`.bench` measures. Nothing heavy is imported to list it."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import UserError, expect, require_known
from ..memory import require_threads
from ..spec import parse_spec

SHAPES = {"mlp": (3,), "digits": (1, 8, 8), "tiny": (3, 16, 16), "cifar10": (3, 32, 32), "celeba64": (3, 64, 64)}
PRECISIONS = ("no", "bf16", "fp16")


@dataclass(frozen=True)
class Options:
    """What is measured, and how.

    Args:
        net: network, such as digits or mlp:width=128.
        shape: shape of an item, such as 3x16x16; null: the usual one of the network.
        batch_size: samples per step.
        seconds: how long to measure, in all; at least one round is made.
        precision: mixed precision.
        channels_last, compile, gradient_checkpointing: as of atdm train; compiling takes up to a minute more.
        threads: CPU threads; 0: as many as torch takes.
        device: cpu or cuda; auto takes cuda where there is one.
        gate: noise-level threshold with which to measure ``auto``: twice the noise of the data, 0.4 for std 0.2.
        baselines: measure the baselines as well, in half of the time.
    """

    net: str = "digits"
    shape: str | None = None
    batch_size: int = 64
    seconds: float = 30.0
    precision: str = "no"
    channels_last: bool = False
    compile: bool = False
    gradient_checkpointing: bool = False
    threads: int = 0
    device: str = "auto"
    gate: float = 0.4
    baselines: bool = False

    def __post_init__(self) -> None:
        for name, low in [("batch_size", 1), ("seconds", 0)]:
            expect(getattr(self, name) >= low, name, getattr(self, name), f"a number >= {low}")
        require_threads(self.threads)
        expect(self.device in ("auto", "cpu", "cuda"), "The device", f"'{self.device}'", "cpu, cuda or auto")
        require_known("precision", self.precision, PRECISIONS)
        import torch

        if self.device == "cuda" and not torch.cuda.is_available():
            raise UserError("There is no CUDA device here. Expected --device cpu or auto.")

    def item_shape(self) -> tuple[int, ...]:
        """The shape of an item."""
        from ..nets import NETS

        name, _ = parse_spec(self.net)
        require_known("network", name, NETS)
        if self.shape is None and name not in SHAPES:
            raise UserError(f"The usual item shape of the network '{name}' is not known. Expected one, as in 3x32x32.")
        try:
            return SHAPES[name] if self.shape is None else tuple(int(side) for side in self.shape.split("x"))
        except ValueError:
            raise UserError(
                f"Cannot read the shape '{self.shape}'. Expected numbers joined by x, as in 3x16x16."
            ) from None
