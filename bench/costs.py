"""Where the time of training and sampling goes, on the embedded teacher with the demo's settings.

    python bench/costs.py [--nfe 4] [--rounds 10] [--device cpu]

Prints seconds per student update, the share of it inside the networks (forward; the rest is
backward, optimizer, noise), images per second when sampling and the share inside the network there,
and the peak memory of the process.
"""

import argparse
import resource
import time
from dataclasses import replace

import torch

from hsivi_cli.config import TrainConfig
from hsivi_cli.files.device import pick_device
from hsivi_cli.method import distill
from hsivi_cli.models.draw import draw, solver_sampler
from hsivi_cli.models.loading import load_teacher
from hsivi_cli.models.networks import networks_of
from hsivi_cli.models.starts import make_chains


class Timed:
    """A network that adds up the seconds spent in it."""

    def __init__(self, network):
        self.network, self.seconds = network, 0.0

    def __call__(self, *args):
        begin = time.perf_counter()
        out = self.network(*args)
        if out.is_cuda:
            torch.cuda.synchronize()
        self.seconds += time.perf_counter() - begin
        return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nfe", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--device")
    args = parser.parse_args()
    device = pick_device(args.device)
    teacher = load_teacher(device=device)
    config = TrainConfig(nfe=str(args.nfe), fake_warmup=0)
    networks = networks_of(config, teacher, make_chains(config, teacher, {}))
    networks = {
        name: Timed(getattr(networks, name)) for name in ("student_eps", "fake_eps", "teacher_eps")
    }
    for name, network in networks.items():
        setattr(networks, name, network)
    distill.play_round(networks, config, 0)  # warms allocators and caches up
    for network in networks.values():
        network.seconds = 0.0
    begin = time.perf_counter()
    for round_ in range(1, args.rounds + 1):
        distill.play_round(networks, config, round_)
    spent = time.perf_counter() - begin
    inside = {name: network.seconds / spent for name, network in networks.items()}
    shares = ", ".join(f"{name} {share:.0%}" for name, share in inside.items())
    print(
        f"training: {spent / args.rounds:.2f} s per student update; forward passes "
        f"{sum(inside.values()):.0%} ({shares})"
    )

    sampler = solver_sampler(teacher, "ddim", args.nfe)
    timed = Timed(sampler.network)
    begin = time.perf_counter()
    for _ in draw(replace(sampler, network=timed), range(args.count), 250, device):
        pass
    spent = time.perf_counter() - begin
    print(
        f"sampling: {args.count / spent:.0f} images/s at {args.nfe} calls; inside the network "
        f"{timed.seconds / spent:.1%}"
    )
    peak = (
        torch.cuda.max_memory_allocated()
        if device.type == "cuda"
        else 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    )
    print(f"peak memory {peak / 2**20:.0f} MiB on {device.type}, {torch.get_num_threads()} threads")


if __name__ == "__main__":
    main()
