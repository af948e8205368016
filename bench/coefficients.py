"""A solver's coefficients trained alone, over the frozen teacher: is it worth its place beside
training the weights?

    python bench/coefficients.py --nfe 4 --start unipc-leading
    python bench/coefficients.py --nfe 4 --start unipc-leading --ground gaussians

The chain's cx and ce (K (K+1)/2 + K numbers) and the times that the network is told are moved, as
additions to the solver's own, until the chain's samples lie near the teacher's many-call ones from
the same x_K (mean squared distance), which is how the literature trains them. Images are scored by
`hsivi fid`, the Gaussians by the metrics of gaussians25.py. Seconds are CPU seconds of one thread,
the teacher's samples included.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace

import gaussians25 as ground
import torch

from hsivi_cli.files.places import embedded
from hsivi_cli.method import chain as chains
from hsivi_cli.method.fit import fit_coefficients
from hsivi_cli.method.steps import rng
from hsivi_cli.metrics.detectors import EMBEDDED, load_detector
from hsivi_cli.metrics.frechet import frechet_distance
from hsivi_cli.metrics.statistics import load_statistics, moments_of
from hsivi_cli.models.draw import draw, solver_sampler
from hsivi_cli.models.loading import load_teacher
from hsivi_cli.models.spacings import solver


def on_images(args) -> None:
    began = time.process_time()
    teacher = load_teacher()
    network = teacher.network()
    start = solver_sampler(teacher, args.start, args.nfe)
    many = solver(args.teacher, args.teacher_calls, teacher.scheduler, teacher.table)
    x = torch.randn(args.pairs, *teacher.shape, generator=rng(args.seed, "pairs"))
    with torch.inference_mode():
        scale = torch.zeros(1, 1, 1, 1)
        wanted = [chains.sample(network, many, part, None, scale) for part in x.split(32)]
    wanted = torch.cat(wanted).clone()
    chain = fit_coefficients(
        network, start.chain, x, wanted, None, args.steps, rng(args.seed, "fit"),
        args.batch_size, args.rate,
    )  # fmt: skip
    spent = time.process_time() - began
    detector = load_detector(EMBEDDED)
    there = load_statistics(embedded("embedded:reference.npz")).moments
    for name, sampler in (("solver", start), ("trained", replace(start, chain=chain))):
        images = draw(sampler, range(args.count), 50, "cpu")
        distance = frechet_distance(moments_of(images, detector)[0], there)
        print(f"{args.nfe} calls, {args.start}, {name}: {distance:.2f} on {args.count} images")
    print(f"{spent:.0f} CPU seconds")


def on_gaussians(args) -> None:
    began = time.process_time()
    start = solver(args.start, args.nfe, ground.SCHEDULER, ground.TABLE)
    many = solver(args.teacher, args.teacher_calls, ground.SCHEDULER, ground.TABLE)
    x = torch.randn(args.pairs, 2, generator=rng(args.seed, "pairs"))
    wanted = chains.sample(ground.exact_eps, many, x, None, torch.zeros(1, 1)).float()
    chain = fit_coefficients(
        ground.exact_eps, start, x, wanted, None, args.steps, rng(args.seed, "fit"),
        args.batch_size, args.rate,
    )  # fmt: skip
    spent = time.process_time() - began
    for name, each in (("solver", start), ("trained", chain)):
        row = ground.measure(ground.draw(ground.exact_eps, each, torch.zeros(1, 1)))
        print(f"{args.nfe} calls, {args.start}, {name}: {ground.show(row)}")
    print(f"{spent:.0f} CPU seconds")


def main() -> None:
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description="Train a solver's coefficients alone.")
    parser.add_argument("--ground", choices=("images", "gaussians"), default="images")
    parser.add_argument("--nfe", type=int, default=4)
    parser.add_argument("--start", default="unipc-leading")
    parser.add_argument("--teacher", default="dpm++2-linspace", help="the many-call solver")
    parser.add_argument("--teacher-calls", type=int, default=20)
    parser.add_argument("--pairs", type=int, default=512)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--rate", type=float, default=5e-3)
    parser.add_argument("--count", type=int, default=1000, help="images that are scored")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_intermixed_args()
    on_images(args) if args.ground == "images" else on_gaussians(args)


if __name__ == "__main__":
    main()
