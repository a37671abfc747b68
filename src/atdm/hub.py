"""Models on the Hugging Face Hub, as folders on this machine."""

from __future__ import annotations

import re
from pathlib import Path

from .errors import UserError, first_line

NEEDED = ["*.json", "*.safetensors"]
UNNEEDED = ["*.fp16.*", "*non_ema*"]


def is_name(text: str | Path) -> bool:
    """Whether ``text`` has the form OWNER/NAME."""
    return re.fullmatch(r"\w[\w.-]*/[\w.-]+", str(text)) is not None


def fetch(name: str) -> Path:
    """The folder of the model ``name`` (OWNER/NAME): downloaded, or as an earlier download left it.

    Raises:
        UserError: there is no such model, the Hub cannot be reached, or the disk is full.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    try:
        folder = Path(snapshot_download(name, allow_patterns=NEEDED, ignore_patterns=UNNEEDED))
        if not any(folder.rglob("*.safetensors")):  # weights of old; torch reads them without unpickling objects
            folder = Path(snapshot_download(name, allow_patterns=[*NEEDED, "*.bin"], ignore_patterns=UNNEEDED))
        return folder
    except LocalEntryNotFoundError as problem:
        raise UserError(
            f"There is no folder '{name}', and the Hugging Face Hub cannot be reached to look for a model of that name. "
            "Expected a folder, or a connection."
        ) from problem
    except GatedRepoError as problem:
        raise UserError(
            f"The access to '{name}' on the Hub is restricted. Accept its terms there, then log in."
        ) from problem
    except (RepositoryNotFoundError, HFValidationError) as problem:
        raise UserError(
            f"There is no folder '{name}', and no such model on the Hugging Face Hub. "
            "Expected a folder, or a Hub name such as google/ddpm-cifar10-32 (log in first where it is private)."
        ) from problem
    except Exception as problem:  # the HTTP client and the operating system each raise their own
        raise UserError(f"Cannot download '{name}' from the Hugging Face Hub: {first_line(problem)}.") from problem
