"""Two machines, as two launchers of one process each that meet on this one: killed, restarted and requeued. Run with ``-m slow``.

Runs of whole networks, of a stream and of a sharded network; each kill at a random moment, ``ATDM_KILLS`` times (by default once).
"""

import io
import os
import random
import signal
import socket
import subprocess
import sys
import tarfile
import time

import psutil
import pytest
from PIL import Image

from atdm.cli.launch import SIZES
from atdm.training import checkpoint

pytestmark = pytest.mark.slow
TRAIN = ["-m", "atdm", "train", "--batch_size=16", "--threads=1", "--json"]
PLANE = ["--data=plane:n=300", "--net=mlp:width=16,depth=1", "--steps=600", "--save_every=100"]
KINDS = {
    "plane": [*PLANE, "--objective=robust_adv"],
    "sharded": [*PLANE, "--objective=ddpm", "--shard=true"],
    "stream": ["--net=digits", "--image_size=8", "--objective=ddpm", "--steps=200", "--save_every=50"],
}
KILLS = range(int(os.environ.get("ATDM_KILLS", "1")))
SECONDS = 400
# Without the second, torchrun keeps the addresses of the processes that ended, and a restart may wait for one of those.
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}


class Nodes:
    """Launchers of ``torchrun`` that share a rendezvous; the first holds it."""

    def __init__(self, out, words):
        self.out, self.words, self.agents = out, words, {}
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]

    def start(self, node):
        how = ["--nnodes=2", "--nproc_per_node=1", "--max_restarts=3", "--rdzv_backend=c10d", "--rdzv_id=run"]
        how += [f"--rdzv_endpoint=127.0.0.1:{self.port}", f"--rdzv_conf=is_host={'false' if node else 'true'}"]
        words = [sys.executable, "-m", "torch.distributed.run", *how, *TRAIN, *self.words, f"--out={self.out}"]
        environment = {k: v for k, v in os.environ.items() if k not in SIZES} | ENVIRONMENT
        with open(self.out.with_name(f"{self.out.name}-{node}.txt"), "a", encoding="utf-8") as log:
            self.agents[node] = subprocess.Popen(words, env=environment, stdout=log, stderr=log)

    def worker(self, node):
        return next(p for p in psutil.Process(self.agents[node].pid).children(recursive=True) if "atdm" in p.cmdline())

    def until(self, true):
        end = time.monotonic() + SECONDS
        while not true():
            assert time.monotonic() < end
            time.sleep(0.1)

    def begun(self):
        """A checkpoint is there, the run is not at its end, and a moment has passed that is another each time."""
        self.until(lambda: checkpoint.latest(self.out) or self.agents[0].poll() is not None)
        time.sleep(random.random() / 2)
        assert self.agents[0].poll() is None, self.told(0)

    def wait(self):
        return [agent.wait(SECONDS) for agent in self.agents.values()]

    def told(self, node):
        return self.out.with_name(f"{self.out.name}-{node}.txt").read_text(encoding="utf-8")


def both(out, words):
    nodes = Nodes(out, words)
    nodes.start(0)
    nodes.start(1)
    return nodes


def state(out):
    return (checkpoint.latest(out) / "state.safetensors").read_bytes()


@pytest.fixture(scope="module", params=KINDS)
def whole(request, tmp_path_factory):
    """A run that nothing stopped, and its options."""
    folder = tmp_path_factory.mktemp("nodes")
    words = list(KINDS[request.param])
    if request.param == "stream":
        for shard in range(4):
            with tarfile.open(folder / f"{shard}.tar", "w") as archive:
                for number in range(12):
                    content, file = 20 * shard + number, io.BytesIO()
                    Image.new("RGB", (8, 8), (content, 255 - content, 128)).save(file, "PNG")
                    entry = tarfile.TarInfo(f"{number}.png")
                    entry.size = file.tell()
                    file.seek(0)
                    archive.addfile(entry, file)
        words.append(f"--data=webdataset:path={folder}/*.tar,streaming=true,buffer=10")
    nodes = both(folder / "whole", words)
    assert nodes.wait() == [0, 0], nodes.told(0)
    assert checkpoint.latest(nodes.out).name in ("step-00000600", "step-00000200")
    return nodes


@pytest.mark.parametrize("kill", KILLS)
def test_a_rank_that_was_killed_restarts_and_the_run_is_the_one_that_never_stopped(whole, tmp_path, kill):
    nodes = both(tmp_path / "run", whole.words)
    nodes.begun()
    nodes.worker(1).kill()
    assert nodes.wait() == [0, 0], nodes.told(0)
    assert "Training goes on from step" in nodes.told(0) + nodes.told(1)
    assert state(nodes.out) == state(whole.out)


@pytest.mark.parametrize("kill", KILLS)
def test_a_machine_that_was_killed_ends_the_others_and_the_same_command_goes_on(whole, tmp_path, kill):
    nodes = both(tmp_path / "run", whole.words)
    nodes.begun()
    worker = nodes.worker(1)
    nodes.agents[1].kill()
    worker.kill()
    nodes.agents[0].terminate()  # as SLURM does to what is left of a job step
    assert 0 not in nodes.wait()
    nodes.start(0)
    nodes.start(1)
    assert nodes.wait() == [0, 0], nodes.told(0)
    assert "Training goes on from step" in nodes.told(0)
    assert state(nodes.out) == state(whole.out)


def test_a_time_limit_saves_and_the_same_command_ends_the_run(whole, tmp_path):
    nodes = both(tmp_path / "run", whole.words)
    nodes.begun()
    for agent in nodes.agents.values():  # as srun passes it on to each machine
        agent.send_signal(signal.SIGTERM)
    assert 0 not in nodes.wait()
    saved = int(checkpoint.latest(nodes.out).name[-8:])
    assert saved % 50, f"saved at the step it was at, not only at {saved}"
    nodes.start(0)
    nodes.start(1)
    assert nodes.wait() == [0, 0], nodes.told(0)
    assert state(nodes.out) == state(whole.out)
