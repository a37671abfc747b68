"""Which class each item is of, where its source says so: sub-folders, a column of a table, the targets of a known set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from ..errors import UserError

COLUMNS = ("label", "labels", "class", "target")  # of tables that do not say which column holds classes
MOST = 100_000  # classes; a column of more is no column of classes


@dataclass(frozen=True, eq=False)
class Classes:
    """The class of each item, by its place in ``names``."""

    of: Int[Tensor, "n"]
    names: tuple[str, ...]

    def __getitem__(self, indices: Sequence[int] | Tensor) -> Classes:
        return Classes(self.of[torch.as_tensor(indices, dtype=torch.long)], self.names)


def of_words(words: Sequence[Any], what: str) -> Classes:
    """Classes by their words (texts or numbers), sorted; None where an item has none.

    Args:
        what: a class is called in the sentence, such as ``sub-folder``.

    Raises:
        UserError: some items have no class, or all the same.
    """
    missing = sum(word is None for word in words)
    if missing == len(words):
        raise UserError(f"None of the {missing:,} items has a {what}. {NEEDED}")
    if missing:
        raise UserError(f"{missing:,} of the {len(words):,} items have no {what}. Expected one for each, its class.")
    names = sorted({*words})
    if not 2 <= len(names) <= MOST:
        raise UserError(f"There are {len(names):,} classes by {what}. Expected two or more, at most {MOST:,}.")
    number = {name: index for index, name in enumerate(names)}
    return Classes(torch.tensor([number[word] for word in words]), tuple(map(str, names)))


NEEDED = (
    "Expected images in sub-folders that are their classes, a table with a column of labels, digits, or CIFAR10 or "
    "FashionMNIST of torchvision; or class_labels false."
)


def of_folders(names: Sequence[str], separator: str) -> Classes:
    """Classes by the first folder in the names of files."""
    return of_words(
        [head if rest else None for head, _, rest in (name.partition(separator) for name in names)], "sub-folder"
    )


def of_table(table: Any, column: str | None, where: str) -> Classes:
    """Classes by a column of a table of Hugging Face ``datasets``.

    Args:
        column: its name; None: the only one that holds classes, or one that is called so.

    Raises:
        UserError: there is none, or there are several.
    """
    import datasets

    features = table.features
    if column is None:
        found = [name for name, kind in features.items() if isinstance(kind, datasets.ClassLabel)]
        found = found or [name for name in COLUMNS if name in features]
        if len(found) != 1:
            several = f"{len(found)} columns of classes ({', '.join(found)})" if found else "no column of classes"
            raise UserError(f"{where} has {several} among {', '.join(features)}. Expected label=NAME of one.")
        (column,) = found
    elif column not in features:
        raise UserError(f"{where} has no column '{column}'. Expected one of {', '.join(features)}.")
    kind, values = features[column], table[column][:]
    if not isinstance(kind, datasets.ClassLabel):
        if not all(value is None or isinstance(value, int | str) for value in values):
            raise UserError(f"The column '{column}' of {where} holds no classes. Expected whole numbers or texts.")
        return of_words(values, f"value in the column '{column}'")
    if absent := sum(value is None or value < 0 for value in values):
        raise UserError(
            f"{absent:,} of the {len(values):,} items of {where} have no '{column}'. Expected one for each."
        )
    return Classes(torch.tensor(values), tuple(kind.names))
