"""Shape and type annotations of the package are checked while the tests run."""

import typecheck

typecheck.install("atdm")

import pytest  # noqa: E402
import torch  # noqa: E402

from atdm.cli import main  # noqa: E402
from helpers import Warm  # noqa: E402


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _checks_of_this_test():
    typecheck.CALLS.clear()


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ATDM_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def warm(tmp_path_factory):
    process = Warm(tmp_path_factory.mktemp("warm"))
    yield process
    process.close()


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "plane"
    with pytest.raises(SystemExit) as end:
        main(
            [
                "train",
                "--data",
                "plane:n=300",
                "--corrupt",
                "outliers:share=0.1",
                "--net",
                "mlp:width=32",
                "--steps",
                "20",
                "--batch_size",
                "32",
                "--log_every",
                "5",
                "--out",
                str(out),
                "--json",
            ]
        )
    assert end.value.code == 0
    return out


@pytest.fixture(scope="module")
def stock(tmp_path_factory):
    """A pipeline folder made with diffusers alone."""
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

    folder = tmp_path_factory.mktemp("stock") / "pipeline"
    torch.manual_seed(0)
    unet = UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        norm_num_groups=4,
        layers_per_block=1,
    )
    DDPMPipeline(unet, DDPMScheduler(num_train_timesteps=1000)).save_pretrained(folder)
    return folder
