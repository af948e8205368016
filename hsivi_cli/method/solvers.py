"""Training-free solvers as chains: DDIM, iPNDM and Heun by their formulas, multistep schedulers by
reading their coefficients.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..errors import HsiviError
from .chain import Chain, eta_shares, with_noise_share
from .schedule import sigma_of


def ddim_chain(time: Sequence[float], alpha_bar: Tensor, below: Tensor | None = None) -> Chain:
    """The deterministic DDIM chain through explicit levels [Song et al. 2020], unclipped.

    time       [K+1]  rising
    alpha_bar  [K+1]  falling: the levels at which the network is called
    below      [K]    the levels to which layers 1..K step, by default those of the next call
    """
    alpha_bar = alpha_bar.double()
    below = alpha_bar[:-1] if below is None else below.double()
    nfe = len(below)
    cx, ce = torch.zeros(nfe + 1).double(), torch.zeros(nfe + 1, nfe + 1).double()
    cx[1:] = (below / alpha_bar[1:]).sqrt()
    ce.diagonal()[1:] = sigma_of(below) - cx[1:] * sigma_of(alpha_bar[1:])
    return Chain(torch.as_tensor(time).double(), alpha_bar, cx, ce, torch.zeros_like(cx))


def ancestral_chain(time: Sequence[float], alpha_bar: Tensor) -> Chain:
    """DDPM's own sampler, with the posterior's variance [Ho et al. 2020]: DDIM with eta 1.
    Arguments as in `ddim_chain`.
    """
    chain = ddim_chain(time, alpha_bar)
    return with_noise_share(chain, eta_shares(chain.alpha_bar, 1.0))


def ipndm_chain(time: Sequence[float], alpha_bar: Tensor, order: int = 4) -> Chain:
    """DDIM's transfer with Adams-Bashforth averages of the predictions: iPNDM [Zhang & Chen 2022].

    The first layers use the lower orders, as there is no earlier prediction yet.
    """
    chain = ddim_chain(time, alpha_bar)
    weights = {
        1: [1],
        2: [3 / 2, -1 / 2],
        3: [23 / 12, -16 / 12, 5 / 12],
        4: [55 / 24, -59 / 24, 37 / 24, -9 / 24],
    }
    ce = torch.zeros_like(chain.ce)
    for k in range(1, chain.nfe + 1):
        for j, weight in enumerate(weights[min(order, chain.nfe - k + 1)], start=k):
            ce[k, j] = chain.ce[k, k] * weight
    return replace(chain, ce=ce)


def heun_chain(time: Sequence[float], alpha_bar: Tensor) -> Chain:
    """Heun's second order along DDIM's direction, 2 n - 1 calls for n steps [Karras et al. 2022].

    A step is two layers: DDIM's to the lower level, then x + ce (eps_there - eps_here) / 2 at that
    level, with DDIM's ce. The last step, to clean data, is DDIM's alone. All is linear in a state
    and the predictions, so the state between the halves is a state like any other, and its level
    stands in the chain twice.

    time       [n+1]  rising
    alpha_bar  [n+1]  falling
    """
    euler = ddim_chain(time, alpha_bar)
    nfe = 2 * euler.nfe - 1
    level = (torch.arange(nfe + 1) + 1) // 2  # 0, 1 (corrected), 1, 2 (corrected), 2, ..., n
    cx, ce = torch.ones(nfe + 1).double(), torch.zeros(nfe + 1, nfe + 1).double()
    cx[0] = 0
    for k in range(1, nfe + 1):
        step = int(level[k])
        if k % 2:  # down to the next level
            cx[k], ce[k, k] = euler.cx[step], euler.ce[step, step]
        else:  # corrects the step that layer k + 1 took
            ce[k, k] = euler.ce[step + 1, step + 1] / 2
            ce[k, k + 1] = -ce[k, k]
    return Chain(euler.time[level], euler.alpha_bar[level], cx, ce, torch.zeros_like(cx))


SOLVERS_TO_USE = "use ddim, dpm++2, dpm++3, unipc, deis, ipndm or heun"


def solver_chain(scheduler) -> Chain:
    """The chain that a linear multistep scheduler *is*: its coefficients, read by stepping it with
    one-hot inputs.

    scheduler  any object with diffusers' set_timesteps already called, `timesteps`, `sigmas`
               (noise-to-signal ratios),
               `init_noise_sigma`, `scale_model_input` and a deterministic, linear `step`, fed with
               eps
    Raises HsiviError for one that is not linear (clipping, thresholding) or not deterministic.
    """
    kind = type(scheduler).__name__
    if not hasattr(scheduler, "sigmas"):
        raise HsiviError(f"{kind} keeps no sigmas to read its levels from: {SOLVERS_TO_USE}")
    nfe = len(scheduler.timesteps)
    time, alpha_bar = levels_of(scheduler)
    # coordinates: entry 0 is x_K, entry 1 + i the i-th prediction; the last two check that the step
    # is linear
    basis = torch.cat(
        [torch.eye(nfe + 1), torch.randn(2, nfe + 1, generator=torch.Generator().manual_seed(0))]
    )
    basis = basis.double().reshape(nfe + 3, nfe + 1, 1, 1)
    sample = basis[:, :1] * scheduler.init_noise_sigma
    states = []
    for i, t in enumerate(scheduler.timesteps):
        states.append(scheduler.scale_model_input(sample, t).double())
        sample = scheduler.step(basis[:, i + 1 : i + 2].to(sample.dtype), t, sample).prev_sample
    states.append(sample.double())
    states = torch.stack(states).flatten(1)  # [K+1 (from the top), coordinates]
    linear = states[:, : nfe + 1] @ basis[-2:].flatten(1).T
    if not torch.allclose(linear, states[:, -2:], rtol=1e-3, atol=1e-3):
        options = getattr(scheduler, "config", {})
        causes = [name for name in ("thresholding", "clip_sample") if options.get(name)]
        raise HsiviError(
            f"{kind} is not a deterministic linear solver as configured: switch off "
            f"{' and '.join(causes) or 'the noise that it adds'}, or {SOLVERS_TO_USE}"
        )
    states = states[:, : nfe + 1].flip(0)  # row k is x_k
    x_part, eps_part = (
        states[:, 0],
        torch.cat([torch.zeros(nfe + 1, 1).double(), states[:, 1:].flip(1)], dim=1),
    )
    cx, ce = torch.zeros(nfe + 1).double(), torch.zeros(nfe + 1, nfe + 1).double()
    cx[1:] = x_part[:-1] / x_part[1:]
    ce[1:] = eps_part[:-1] - cx[1:, None] * eps_part[1:]
    return Chain(time, alpha_bar, cx, ce.triu(), torch.zeros_like(cx))


def levels_of(scheduler) -> tuple[Tensor, Tensor]:
    """The times and alpha_bar [K+1], rising in time, of a scheduler as `solver_chain` takes it; -1
    stands for clean data.
    """
    ratio = torch.as_tensor(scheduler.sigmas).double()
    alpha_bar = (1 / (1 + ratio.square())).flip(0)
    last = -1.0 if alpha_bar[0] == 1 else 0.0
    times = torch.as_tensor(scheduler.timesteps).double().cpu().flip(0)
    return torch.cat([torch.tensor([last]).double(), times]), alpha_bar


def data_chain(scheduler) -> Chain:
    """The chain that a DPM-Solver++ scheduler is, its earlier predictions kept as x0, and the noise
    that its SDE form adds [Lu et al. 2022]: read by one-hot inputs, each step by itself.

    scheduler  as for `solver_chain`, but fed with x0, and each step takes `variance_noise`
    """
    nfe = len(scheduler.timesteps)
    time, alpha_bar = levels_of(scheduler)
    # coordinates: the state that a step takes, its noise, x0_j at 2 + nfe - j
    state, noise, *x0 = torch.eye(nfe + 2).reshape(nfe + 2, 1, nfe + 2, 1, 1)
    rows = []
    for step, t in enumerate(scheduler.timesteps):
        told = scheduler.step(x0[step], t, state, variance_noise=noise).prev_sample
        rows.append(told.flatten().double())
    own, added, *weights = torch.stack(rows).flip(0).T  # of layers 1..K
    weights = torch.stack(weights).flip(0).T  # [K, K], weights[k - 1, j - 1] of x0_j
    signal, sigma = alpha_bar.sqrt(), sigma_of(alpha_bar)
    cx, s0 = torch.zeros(nfe + 1).double(), torch.zeros(nfe + 1).double()
    ce, c0 = (torch.zeros(nfe + 1, nfe + 1).double() for _ in range(2))
    s0[1:] = added.minimum(sigma[:-1])
    cx[1:] = own + weights.diagonal() / signal[1:]
    keep = (sigma[:-1].square() - s0[1:].square()).sqrt()
    ce.diagonal()[1:] = sigma[:-1] - keep - weights.diagonal() * sigma[1:] / signal[1:]
    c0[1:, 1:] = weights.triu(1)
    return Chain(time, alpha_bar, cx, ce, s0, c0=c0)
