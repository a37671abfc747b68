"""The features of a network in an ONNX file."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UserError
from .features import FeatureSpace
from .networks import Network, NetworkFeatures
from .weights import package


@dataclass(frozen=True)
class Onnx(NetworkFeatures):
    """Any ONNX file whose first input is ``[n, 3, size, size]``; its first output is averaged over positions.

    Args:
        file: the ONNX file.
        size: side to resize to; default: what the file says.
        mean: subtracted from values in [0, 1].
        std: divided by.
    """

    file: str
    size: int | None = None
    mean: float = 0.0
    std: float = 1.0

    def load(self) -> FeatureSpace:
        runtime = package("onnxruntime", "onnxruntime", "onnx")
        path = Path(self.file).expanduser()
        if not path.is_file():
            raise UserError(f"There is no file {path}. Expected an ONNX file.")
        try:
            session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        except Exception as problem:  # onnxruntime raises its own
            raise UserError(f"onnxruntime cannot open {path}: {problem}. Expected an ONNX file.") from problem
        shape = session.get_inputs()[0].shape
        size = self.size or (shape[-1] if isinstance(shape[-1], int) else None)
        if len(shape) != 4 or size is None:
            raise UserError(
                f"The first input of {path} is {shape}. Expected [n, 3, height, width], and size=N where it is open."
            )
        try:
            network = Network(Session(session), size, (self.mean,) * 3, (self.std,) * 3)
        except Exception as problem:
            raise UserError(f"{path} does not take images of {size} pixels: {problem}") from problem
        content = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
        return FeatureSpace(f"onnx-{path.stem}", network, network.preprocessing, content)


class Session(nn.Module):
    """An ONNX session as a module, on the CPU, in batches of the size that the file may fix."""

    def __init__(self, session: Any) -> None:
        super().__init__()
        self.session = session
        self.input = session.get_inputs()[0]

    def forward(self, x: Tensor) -> Tensor:
        fixed = self.input.shape[0]
        together = fixed if isinstance(fixed, int) else len(x)
        whole = torch.cat([x, x[:1].expand(-len(x) % together, -1, -1, -1)])  # a fixed batch has to be full
        outputs = [
            torch.from_numpy(self.session.run(None, {self.input.name: part.cpu().contiguous().numpy()})[0])
            for part in whole.split(together)
        ]
        features = torch.cat(outputs)[: len(x)].to(x.device)
        return features.mean((2, 3)) if features.dim() == 4 else features.flatten(1)
