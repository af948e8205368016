"""A family beside the nearest Gaussians and NUTS, all measured from one truth."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..config import InferConfig
from ..method.steps import rng
from .family import Family
from .flow import flow_draws
from .gaussian import Affine
from .networks import best_gaussian
from .nuts import diagnosis, doubt, nuts
from .targets import Target
from .truth import Truth, errors, exact_truth, nuts_truth, plane_errors

LEAST = 1.0  # CPU seconds of the flow, where the layers had fewer
EXACT_COUNT = 200_000  # exact draws, where there are any: histograms need many


@dataclass(frozen=True)
class Comparison:
    """What methods make of a target.

    rows   one a method: its name, cpu_seconds to fit and to draw, the errors of its draws
           (truth.errors) and js_floor and w1_floor, what as many exact draws read
    drawn  each method's draws [N, dim], by its name
    doubt  why the truth or NUTS's row is not to be believed, in words
    """

    truth: Truth
    rows: list[dict]
    drawn: dict[str, Tensor]
    doubt: str | None


def compare(family: Family, config: InferConfig, target: Target, trained: float) -> Comparison:
    """The family's samples (hsivi), the Gaussians nearest to the target (full-rank, mean-field), a
    normalising flow that had as many CPU seconds (flow) and NUTS (nuts), measured from exact draws
    where the target has them, else from NUTS's. All have as many draws as NUTS.

    trained  CPU seconds that the family took
    """
    device, seed = family.centre.device, config.seed
    count = config.chains * config.draws
    samples, seconds = timed(family.sample, count, seed)
    drawn, spent, white = {"hsivi": samples.cpu()}, {"hsivi": trained + seconds}, {}
    for name in ("full-rank", "mean-field"):
        fit, spent[name] = timed(best_gaussian, config, target, name == "full-rank", device)
        white[name] = Affine(target, *fit)
        noise = torch.randn(count, target.dim, generator=rng(seed, name))
        drawn[name] = white[name].out(noise.to(device)).cpu()
    own = family.whitened(target)
    budget = max(spent["hsivi"], LEAST)
    draws, spent["flow"] = timed(flow_draws, own, budget, count, seed, device)
    drawn["flow"] = own.out(draws).cpu()
    chains, spent["nuts"] = timed(nuts, white["full-rank"], config.chains, config.draws, seed)
    truth = from_nuts = nuts_truth(chains)
    if target.exact:
        truth = exact_truth(target.sample(EXACT_COUNT, rng(seed, "truth")))
    drawn["nuts"] = from_nuts.draws

    floor = {}
    if target.exact and target.dim == 2:
        perfect = target.sample(count, rng(seed, "floor"))
        found = plane_errors(perfect, truth)
        floor = {f"{key}_floor": value for key, value in found.items()}
    rows = {name: {"name": name, "cpu_seconds": spent[name]} for name in drawn}
    for name in drawn.keys() - {truth.kind}:
        own_error = from_nuts.error if name == "nuts" else None
        rows[name] |= errors(drawn[name], truth, own_error) | floor
    found = diagnosis(chains)
    rows["nuts"] |= found
    return Comparison(truth, list(rows.values()), drawn, doubt(found, len(from_nuts.draws)))


def timed(make: Callable, *arguments):
    """What a function returns, and the CPU seconds that it took."""
    began = time.process_time()
    made = make(*arguments)
    return made, time.process_time() - began
