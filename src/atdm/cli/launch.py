"""The processes that ``accelerate launch --cpu --num_processes N`` stands for.

On GPUs accelerate starts N processes. On CPUs it relies on MPI, and without MPI it starts one and says nothing.
Here that one starts the N, which meet over gloo on this machine.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence

from .signals import LAST, PARENT, SIGNALS

SIZES = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")  # of torchrun and the MPIs

PATIENCE = 20.0  # seconds for the others to end when one has failed


def wanted(environment: dict[str, str], launcher: Sequence[str]) -> int:
    """How many processes are still to be started, from what accelerate put into the environment and its own command."""
    alone = environment.get("ACCELERATE_USE_CPU", "").lower() == "true" and not any(k in environment for k in SIZES)
    if not alone or "MASTER_PORT" not in environment:  # it sets a port when asked for more than one process
        return 1
    found = re.search(r"--num[_-]processes[= ](\d+)", " ".join(launcher))
    machines = re.search(r"--num[_-]machines[= ](\d+)", " ".join(launcher))
    return int(found[1]) if found and (machines is None or machines[1] == "1") else 1


def launcher_command() -> list[str]:
    """The command line of the process that started this one."""
    import psutil

    try:
        return psutil.Process(os.getppid()).cmdline()
    except psutil.Error:
        return []


def start(words: Sequence[str], count: int) -> int:
    """Run ``atdm`` with ``words`` in ``count`` processes, and return the exit code: of the first that fails, if any."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), PARENT: str(os.getpid())}
    common |= dict.fromkeys(("WORLD_SIZE", "LOCAL_WORLD_SIZE"), str(count))
    ranks = [dict.fromkeys(("RANK", "LOCAL_RANK"), str(rank)) for rank in range(count)]
    workers = [subprocess.Popen([sys.executable, "-m", "atdm", *words], env=common | rank) for rank in ranks]

    def forward(number: int, _: object) -> None:
        for worker in workers:
            if worker.poll() is None:
                worker.send_signal(number)

    for number in SIGNALS:
        if number == signal.SIGINT or signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, forward)
    code, deadline, parent = 0, float("inf"), os.getppid()
    while any(worker.poll() is None for worker in workers):
        failed = [worker.returncode for worker in workers if worker.poll()]
        if failed and not code:
            code, deadline = failed[0], time.monotonic() + (LAST if failed[0] == 130 else PATIENCE)
            time.sleep(1)  # the others may be about to say the same
            if code != 130:  # one that a signal ended waits for another that saves
                forward(signal.SIGTERM, None)
        if os.getppid() != parent:  # accelerate was killed
            parent = os.getppid()
            forward(signal.SIGTERM, None)
            deadline = min(deadline, time.monotonic() + LAST)
        if time.monotonic() > deadline:  # they wait for one that is gone
            forward(signal.SIGKILL, None)
        time.sleep(0.05)
    return code or next((worker.returncode for worker in workers if worker.returncode), 0)
