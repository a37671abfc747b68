"""Time of a training step: atdm's objectives beside the loop of diffusers' unconditional example, interleaved in one run.

    python benchmarks/step_time.py [--net digits] [--batch_size 64] [--rounds 8] [--json]

Same network, batch, optimizer, clipping and averaging. Prints each step time over ddpm's, and the floor that the passes imply.
"""

import argparse
import itertools
import json
import statistics
import time

import torch
from accelerate import Accelerator
from diffusers import DDPMScheduler
from diffusers.training_utils import EMAModel

from atdm import ConstantRadius, Objective, Perturbation, Process, RelativeWeight, Settings, State, build_net, fit, load

STEPS_A_ROUND = 4


def diffusers_steps(net, data, batch_size):
    """What a user of diffusers runs: a loader, a scheduler that adds noise, mse, clipping, AdamW, EMAModel."""
    accelerator = Accelerator(cpu=True)
    scheduler = DDPMScheduler(num_train_timesteps=1000)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(data), batch_size, shuffle=True, drop_last=True)
    average = EMAModel(net.parameters(), decay=0.999, use_ema_warmup=True)
    model, optimizer, loader = accelerator.prepare(net, optimizer, loader)
    while True:
        for (clean,) in loader:
            noise = torch.randn_like(clean)
            t = torch.randint(0, 1000, (len(clean),))
            prediction = model(scheduler.add_noise(clean, noise, t), t).sample
            loss = torch.nn.functional.mse_loss(prediction, noise)
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            average.step(net.parameters())
            yield loss.item()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--net", default="digits")
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()

    data, process = load("digits").x, Process.linear()
    push = Perturbation("l2", 1, float("inf"))
    objectives = {name: Objective(name, process) for name in ("ddpm", "robust_rand", "robust_adv")}
    objectives["robust_adv recommended"] = Objective(
        "robust_adv", process, ConstantRadius(1), RelativeWeight(5), push, gate=0.2
    )
    settings = Settings(steps=10**9, batch_size=given.batch_size)
    loops = {"diffusers": diffusers_steps(build_net(given.net, data.shape[1:]).train(), data, given.batch_size)}
    for name, objective in objectives.items():
        loops[name] = fit(objective, State.create(build_net(given.net, data.shape[1:]), settings), data, settings)
    times = {name: [] for name in loops}
    for turn in range(given.rounds + 1):
        for name, loop in loops.items():
            begin = time.perf_counter()
            for _ in itertools.islice(loop, STEPS_A_ROUND):
                pass
            if turn:  # the first round warms up
                times[name].append((time.perf_counter() - begin) / STEPS_A_ROUND)
    ratio = {n: statistics.median(a / b for a, b in zip(t, times["ddpm"], strict=True)) for n, t in times.items()}
    passes = {name: objective.passes() for name, objective in objectives.items()}
    if given.json:
        print(
            json.dumps(
                {"ratio": ratio, "seconds": {n: statistics.median(t) for n, t in times.items()}, "passes": passes}
            )
        )
        return
    for name in loops:
        floor = f"floor {passes[name]['floor_over_ddpm']:.2f}" if name in passes else ""
        print(f"{name:<24}{1000 * statistics.median(times[name]):8.1f} ms   {ratio[name]:5.2f} x ddpm   {floor}")


if __name__ == "__main__":
    main()
