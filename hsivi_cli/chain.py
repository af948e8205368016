"""The conditional layers x_k -> x_{k-1}, k = K..1, of a hierarchical semi-implicit sampler, over
any network.

    eps_k   = network(x_k, time_k)
    mean    = cx[k] x_k + sum_{j >= k} ce[k, j] eps_j - (sigma_{k-1} - sqrt(sigma_{k-1}^2 - s0_k^2))
            eps_k
    x_{k-1} = mean + std_k noise,      std_k = exp(log_scale_k) s0_k

With DDIM's cx and ce and s0 = 0 this is DDIM; with s0 = eta sqrt(...) it is the layer of the HSIVI
paper; with s0 = sigma_{k-1} only x0 is kept and noised anew, as multistep consistency samplers and
SiD do. The *noise share* s0 / sigma_{k-1} names the continuum. cx and ce read off a multistep
solver make the chain that solver; its layers keep earlier predictions whatever the share is.

Arrays of a chain are indexed by the layer's k = 1..K, so entry 0 of cx, ce and s0 is unused. A
*network* is a function (x [B, ...], time [B], labels [B] or None, alpha_bar [B]) -> eps [B, ...].
Nothing here knows diffusers or images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .config import HsiviError
from .schedule import nearest, over, sigma_of

Network = Callable[..., Tensor]


@dataclass(frozen=True)
class Chain:
    """K layers without their network. All tensors float64 on the CPU.

    time       [K+1]       what the network is told at x_k; -1 at entry 0 stands for clean data
    alpha_bar  [K+1]       the level of x_k
    cx         [K+1]       the weight of x_k in layer k's mean
    ce         [K+1, K+1]  ce[k, j], the weight of eps_j, zero for j < k
    s0         [K+1]       the layer's noise before log_scale, in [0, sigma_{k-1}]
    """

    time: Tensor
    alpha_bar: Tensor
    cx: Tensor
    ce: Tensor
    s0: Tensor

    @property
    def nfe(self) -> int:
        return len(self.time) - 1

    @property
    def sigma(self) -> Tensor:
        return sigma_of(self.alpha_bar)

    @property
    def noise_share(self) -> Tensor:
        """s0_k / sigma_{k-1} of layers 1..K [K]; 0 where the layer ends at clean data."""
        sigma = self.sigma[:-1]
        return torch.where(sigma > 0, self.s0[1:] / sigma.clamp(min=1e-12), 0.0)

    @property
    def gain(self) -> Tensor:
        """d mean / d eps_k [K+1]: what layer k's own prediction is multiplied by."""
        below = torch.cat([self.sigma[:1], self.sigma[:-1]])
        return self.ce.diagonal() - (
            below - (below.square() - self.s0.square()).clamp(min=0).sqrt()
        )


# ---- making chains -------------------------------------------------------------------------------


def ddim_chain(time: Sequence[float], alpha_bar: Tensor) -> Chain:
    """The deterministic DDIM chain through explicit levels [Song et al. 2020], unclipped.

    time       [K+1]  rising
    alpha_bar  [K+1]  falling
    """
    alpha_bar = alpha_bar.double()
    sigma, nfe = sigma_of(alpha_bar), len(alpha_bar) - 1
    cx, ce = torch.zeros(nfe + 1).double(), torch.zeros(nfe + 1, nfe + 1).double()
    cx[1:] = (alpha_bar[:-1] / alpha_bar[1:]).sqrt()
    ce.diagonal()[1:] = sigma[:-1] - cx[1:] * sigma[1:]
    return Chain(torch.as_tensor(time).double(), alpha_bar, cx, ce, torch.zeros_like(cx))


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
    ratio = torch.as_tensor(scheduler.sigmas).double()
    alpha_bar = (1 / (1 + ratio.square())).flip(0)
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
    last = -1.0 if alpha_bar[0] == 1 else 0.0
    time = torch.cat(
        [torch.tensor([last]).double(), torch.as_tensor(scheduler.timesteps).double().cpu().flip(0)]
    )
    return Chain(time, alpha_bar, cx, ce.triu(), torch.zeros_like(cx))


def with_noise_share(chain: Chain, share: float | Sequence[float]) -> Chain:
    """The same chain with s0 = share sigma_{k-1}, one share for all layers or one a layer (k =
    1..K).
    """
    shares = torch.as_tensor(share, dtype=torch.float64).expand(chain.nfe)
    if not ((shares >= 0) & (shares <= 1)).all():  # NaN is not either
        raise HsiviError(f"noise shares lie in [0, 1], not {shares.tolist()}")
    return replace(chain, s0=torch.cat([torch.zeros(1).double(), shares * chain.sigma[:-1]]))


def eta_shares(alpha_bar: Tensor, eta: float) -> list[float]:
    """The noise shares of DDIM's eta, layers 1..K: s0 = eta sqrt((1 - alpha_bar_k /
    alpha_bar_{k-1}) sigma_{k-1}^2 / sigma_k^2).

    alpha_bar  [K+1]
    """
    ratio = 1 - alpha_bar[1:] / alpha_bar[:-1]
    return (eta * (ratio / (1 - alpha_bar[1:])).sqrt()).tolist()


# ---- walking down a chain ------------------------------------------------------------------------


def std_of(chain: Chain, layer: Tensor, log_scale: Tensor) -> Tensor:
    """exp(log_scale) s0 for layers k [B], to multiply x [B, ...]. log_scale is [1 or K, ...], one
    for all or one a layer.
    """
    own = log_scale[(layer - 1) if len(log_scale) > 1 else torch.zeros_like(layer)]
    return own.exp() * over(chain.s0.to(layer.device)[layer], own)


@dataclass(frozen=True)
class Visit:
    """What a roll-out saw at layer k. mean = offset + gain_k eps_k, so a layer is re-run by one
    network call.

    x, offset, mean  [B, ...]
    """

    k: int
    x: Tensor
    offset: Tensor
    mean: Tensor


def walk(
    network: Network,
    chain: Chain,
    x: Tensor,
    noise: Sequence[Tensor] | None,
    log_scale: Tensor,
    labels: Tensor | None = None,
) -> Iterator[Visit]:
    """Visit the layers from x = x_K down, K network calls. The last layer adds no noise: its mean
    is the sample.

    x          [B, ...]      x_K, standard normal
    noise      K-1 x [B, ...] for the layers K..2 in this order; None for a deterministic chain
    log_scale  [1 or K, ...]
    labels     [B] or None
    """
    history = {}
    multistep = bool(chain.ce.triu(1).any())
    for k in range(chain.nfe, 0, -1):
        time = chain.time[k].to(x.device, torch.float32).expand(len(x))
        eps = network(
            x, time, labels, chain.alpha_bar[k].to(x.device, torch.float32).expand(len(x))
        )
        offset = chain.cx[k].item() * x
        for j, earlier in history.items():
            offset = offset + chain.ce[k, j].item() * earlier
        mean = offset + chain.gain[k].item() * eps
        yield Visit(k, x, offset, mean)
        if multistep:
            history[k] = eps
        x = mean
        if k > 1 and chain.s0[k] > 0:
            std = std_of(chain, torch.full((len(x),), k, device=x.device), log_scale)
            x = mean + std.to(x.dtype) * noise[chain.nfe - k]


def sample(network, chain: Chain, x, noise, log_scale, labels=None) -> Tensor:
    """The end of a walk: samples [B, ...]. Arguments as in `walk`."""
    for visit in walk(network, chain, x, noise, log_scale, labels):
        x = visit.mean
    return x


# ---- observing a layer ---------------------------------------------------------------------------


def observe(
    mean: Tensor, std: Tensor, alpha_bar: Tensor, alpha_bar_tau: Tensor, noise: Tensor
) -> tuple[Tensor, Tensor]:
    """A layer's draw, diffused on from its own level to level tau, and the noise prediction of its
    conditional there.

    r = alpha_bar_tau / alpha_bar;  x = sqrt(r) mean + sqrt(var) noise,  var = r std^2 + 1 - r
    layer_eps = sigma_tau / sqrt(var) noise = -sigma_tau * (score of q(x | x_k)), known exactly
    At alpha_bar_tau = alpha_bar this is HSIVI's own x_{k-1}.

    mean, std, noise          [B, ...]  std broadcasts
    alpha_bar, alpha_bar_tau  [B]       float64, alpha_bar_tau <= alpha_bar
    Returns x, layer_eps      [B, ...]
    """
    r = alpha_bar_tau / alpha_bar
    var = over(r, mean) * std.square() + over(1 - r, mean)
    x = over(r.sqrt(), mean) * mean + var.sqrt() * noise
    return x, over(sigma_of(alpha_bar_tau), mean) / var.sqrt() * noise


MARGIN = 5  # times between a layer's own level and the lowest at which it is observed


def draw_levels(chain: Chain, layer: Tensor, place: Tensor, levels: str, table: Tensor) -> Tensor:
    """The integer times tau at which layers are observed, where t_k is the one of x_k's level.

    segment  within [t_{k-1} + MARGIN, t_k); the top layer's segment reaches to the end of the
             schedule. A level then belongs to one layer, and a shared fake score does not learn a
             mixture of layers
    above    within [t_{k-1} + MARGIN, T)
    own      t_{k-1}: the HSIVI paper's

    layer    [B]  k in 1..K
    place    [B]  in [0, 1), from the lowest level to the highest
    table    [T]  alpha_bar by time
    Returns  [B]  long
    """
    time = nearest(-table, -chain.alpha_bar).to(layer.device)  # told times may be others
    low = time[layer - 1]
    if levels == "own":
        return low
    low = low + MARGIN
    high = time[layer].clamp(min=1)  # a last call at time 0 is judged there
    high = torch.where((layer == chain.nfe) | (levels == "above"), len(table), high)
    low = torch.minimum(low, high - 1)
    return (low + place.double() * (high - low)).floor().long()
