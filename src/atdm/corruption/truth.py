"""What a corruption did, kept apart from what training sees."""

from __future__ import annotations

import json
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from ..errors import UserError
from ..files import atomic


@dataclass(frozen=True)
class Truth:
    """What a corruption did, apart from what training sees.

    Args:
        touched: which items were damaged, by each part of the corruption.
        spec: the corruption.
        seed: of it.
        about: further facts, such as the options of each part.
        details: how: for each part and each number that defines its damage one value per item, NaN where untouched, such
            as ``details["gaussian"]["std"][i]``. Of a mask it is the number of pixels hit. A second part of the same
            kind is ``gaussian_2``.
    """

    touched: Bool[np.ndarray, "parts n"]
    spec: str
    seed: int
    about: dict[str, Any] = field(default_factory=dict)
    details: dict[str, dict[str, Float[np.ndarray, "n"]]] = field(default_factory=dict)

    @property
    def corrupted(self) -> Bool[np.ndarray, "n"]:
        """Which items were damaged at all."""
        return np.asarray(self.touched.any(0))

    def save(self, path: Path) -> None:
        """Write ``path`` (.npz, no objects), whole or not at all."""
        about = json.dumps({"spec": self.spec, "seed": self.seed, **self.about})
        details: Any = {f"{part}/{key}": v for part, values in self.details.items() for key, v in values.items()}
        with atomic(path) as scratch:
            np.savez_compressed(scratch, touched=self.touched, about=np.array(about), **details)

    @classmethod
    def load(cls, path: str | Path) -> Truth:
        """What :meth:`save` wrote.

        Raises:
            UserError: there is no such file, or it is not a truth file.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                about = json.loads(str(file["about"]))
                details: dict[str, dict[str, Any]] = {}
                for name in file.files:
                    part, slash, key = name.partition("/")
                    if slash:
                        details.setdefault(part, {})[key] = file[name]
                return cls(file["touched"], about.pop("spec"), about.pop("seed"), about, details)
        except FileNotFoundError:
            raise UserError(f"There is no truth file {path}.") from None
        except (OSError, ValueError, KeyError, EOFError, TypeError, AttributeError, zipfile.BadZipFile) as problem:
            raise UserError(f"{path} is not a truth file. Expected an .npz that atdm corrupt wrote.") from problem
