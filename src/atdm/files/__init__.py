"""Files: written whole or not at all, read with one sentence for whatever is wrong, checked against damage, one writer at a time."""

from .checksums import Damaged, Sums, load_tensors, require_sealed, save_tensors, seal, tensor_metadata
from .locks import Hold
from .reading import checked, kinds_of, misfit, read_json, read_lines, read_text, read_yaml, shown
from .writing import TEMPORARY, atomic, cause, remove, require_empty, require_writable, scratch_beside, write_text

__all__ = [
    "TEMPORARY",
    "Damaged",
    "Hold",
    "Sums",
    "atomic",
    "cause",
    "checked",
    "kinds_of",
    "load_tensors",
    "misfit",
    "read_json",
    "read_lines",
    "read_text",
    "read_yaml",
    "remove",
    "require_empty",
    "require_sealed",
    "require_writable",
    "save_tensors",
    "scratch_beside",
    "seal",
    "shown",
    "tensor_metadata",
    "write_text",
]
