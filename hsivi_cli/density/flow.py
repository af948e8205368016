"""A normalising flow on the same density: zuko's neural spline flow [Durkan et al. 2019]."""

from __future__ import annotations

import time

import torch
from torch import Tensor, nn

from ..method.steps import cosine, rng
from .packages import quietly
from .targets import Target

TRANSFORMS, HIDDEN = 3, (64, 64)
BATCH, RATE, CLIP = 256, 1e-3, 10.0


def flow_draws(target: Target, seconds: float, count: int, seed: int, device="cpu") -> Tensor:
    """Draws [count, dim] of a flow of the least KL(flow || target) that this many CPU seconds find,
    at least one update. They are the clock's: another run makes other ones.
    """
    zuko = quietly("zuko")
    began, draw = time.process_time(), rng(seed, "flow").initial_seed()
    with torch.random.fork_rng(devices=[]):  # zuko draws by the global generator
        torch.manual_seed(draw)
        flow = zuko.flows.NSF(target.dim, transforms=TRANSFORMS, hidden_features=HIDDEN).to(device)
        optimizer = torch.optim.Adam(flow.parameters(), lr=RATE)
        spent = 0.0
        while spent < seconds:
            optimizer.param_groups[0]["lr"] = RATE * cosine(spent, seconds)
            x, log_q = flow().rsample_and_log_prob((BATCH,))
            (log_q - target.log_prob(x)).mean().backward()
            norm = nn.utils.clip_grad_norm_(flow.parameters(), CLIP)
            if norm.isfinite():
                optimizer.step()
            optimizer.zero_grad()
            spent = time.process_time() - began
        with torch.no_grad():
            return flow().sample((count,))
