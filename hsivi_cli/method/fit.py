"""A chain's coefficients fitted to samples: cx, ce and the told times of a deterministic chain are
moved until it sends each x_K to where a longer walk over the same network sends it.

These are K (K+1)/2 + 2K numbers, so a few hundred pairs and some minutes are enough; the network
stays as it is. They are moved as additions to a solver's own, which the fit begins with.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from .chain import Chain, Network
from .schedule import eps_to_x0
from .steps import cosine


class Coefficients(nn.Module):
    """What is added to a chain's cx, ce and told times, nothing at first."""

    def __init__(self, chain: Chain, device: torch.device):
        super().__init__()
        self.chain = chain
        self.unit = chain.time[-1].item() / 10  # of times, to move as coefficients do in ones
        self.cx = nn.Parameter(torch.zeros(chain.nfe + 1, device=device))
        self.ce = nn.Parameter(torch.zeros(chain.nfe + 1, chain.nfe + 1, device=device))
        self.time = nn.Parameter(torch.zeros(chain.nfe + 1, device=device))

    def sample(self, network: Network, x: Tensor, labels: Tensor | None) -> Tensor:
        """chain.sample without noise, differentiable in the additions. x [B, ...] -> [B, ...]"""
        chain, history, kept_x0 = self.chain, {}, {}
        for k in range(chain.nfe, 0, -1):
            told = chain.time[k].float().to(x.device) + self.unit * self.time[k]
            level = chain.alpha_bar[k].to(x.device, torch.float32).expand(len(x))
            history[k] = network(x, told.expand(len(x)), labels, level)
            earlier = sum(chain.c0[k, j].item() * x0 for j, x0 in kept_x0.items())
            if chain.c0[:, k].any():
                kept_x0[k] = eps_to_x0(history[k], x, level)
            x = earlier + (chain.cx[k].item() + self.cx[k]) * x
            for j, eps in history.items():
                x = x + (chain.ce[k, j].item() + self.ce[k, j]) * eps
        return x

    def moved(self) -> Chain:
        """The chain with its additions."""
        cx, ce, time = (p.detach().double().cpu() for p in (self.cx, self.ce, self.time))
        chain = self.chain
        return replace(
            chain,
            time=chain.time + self.unit * time,
            cx=chain.cx + cx,
            ce=(chain.ce + ce).triu(),
        )


def fit_coefficients(
    network: Network,
    chain: Chain,
    x: Tensor,
    wanted: Tensor,
    labels: Tensor | None,
    steps: int,
    rng: torch.Generator,
    batch_size: int = 16,
    rate: float = 5e-3,
) -> Chain:
    """The chain that sends x [N, ...] nearest to `wanted` [N, ...], over the frozen network.

    Least squares by Adam on random batches, its rate falling to 0 as a cosine.

    chain    its noise is left out of the fit and kept in what is returned
    labels   [N] or None
    Returns  the same levels with other cx, ce and told times
    """
    model = Coefficients(chain, x.device)
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = rate * cosine(step, steps)
        pick = torch.randint(len(x), (batch_size,), generator=rng).to(x.device)
        own = None if labels is None else labels[pick]
        loss = (model.sample(network, x[pick], own) - wanted[pick]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return model.moved()
