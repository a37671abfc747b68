"""Shape and type annotations of the package are checked while the tests run."""

from jaxtyping import install_import_hook

install_import_hook("atdm", "typecheck.check")

import pytest  # noqa: E402
import torch  # noqa: E402


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)
