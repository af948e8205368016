"""The conditional layers x_k -> x_{k-1}, k = K..1, of a hierarchical semi-implicit sampler, over
any network.

    eps_k   = network(x_k, time_k)
    keep    = sqrt(sigma_{k-1}^2 - s0_k^2)
    mean    = cx[k] x_k + sum_{j >= k} ce[k, j] eps_j + sum_{j > k} c0[k, j] x0_j
              - (sigma_{k-1} - keep) eps_k
    x_{k-1} = mean + std_k noise,      std_k = exp(log_scale_k) s0_k

With DDIM's cx and ce and s0 = 0 this is DDIM; with s0 = eta sqrt(...) it is the layer of the HSIVI
paper; with s0 = sigma_{k-1} only x0 is kept and noised anew, as multistep consistency samplers and
SiD do. The *noise share* s0 / sigma_{k-1} names the continuum. cx and ce read off a multistep
solver make the chain that solver; its layers keep earlier predictions whatever the share is, of
eps, or of x0 (c0), into which fresh noise does not come.

Arrays of a chain are indexed by the layer's k = 1..K, so entry 0 of cx, ce, c0 and s0 is unused. A
*network* is a function (x [B, ...], time [B], labels [B] or None, alpha_bar [B]) -> eps [B, ...].
Nothing here knows diffusers or images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ..errors import HsiviError
from .schedule import eps_to_x0, nearest, over, sigma_of

Network = Callable[..., Tensor]


@dataclass(frozen=True)
class Chain:
    """K layers without their network. All tensors float64 on the CPU.

    time       [K+1]       what the network is told at x_k; -1 at entry 0 stands for clean data
    alpha_bar  [K+1]       the level of x_k
    cx         [K+1]       the weight of x_k in layer k's mean
    ce         [K+1, K+1]  ce[k, j], the weight of eps_j, zero for j < k
    s0         [K+1]       the layer's noise before log_scale, in [0, sigma_{k-1}]
    top_sd     []          the sd of x_K in `sample`, 1 in training
    c0         [K+1, K+1]  c0[k, j], the weight of x0_j, zero for j <= k, and where it is not given
    """

    time: Tensor
    alpha_bar: Tensor
    cx: Tensor
    ce: Tensor
    s0: Tensor
    top_sd: Tensor = field(default_factory=lambda: torch.ones((), dtype=torch.float64))
    c0: Tensor | None = None

    def __post_init__(self):
        if self.c0 is None:
            object.__setattr__(self, "c0", torch.zeros_like(self.ce))

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


def with_noise_share(chain: Chain, share: float | Sequence[float]) -> Chain:
    """The same chain with s0_k = share sigma_{k-1}; one share for all layers, or one a layer from
    layer 1 up.

    A step with noise keeps less of its state, so it reaches further along the path of x0: with
    q = sqrt(alpha_bar_k) sigma_{k-1} / (sqrt(alpha_bar_{k-1}) sigma_k), what earlier x0 add to its
    own is multiplied by 1 - q keep / sigma_{k-1}, over what that was before. So DPM-Solver++ of
    second order with the shares of eta 1 is its SDE form [Lu et al. 2022].
    """
    shares = torch.as_tensor(share, dtype=torch.float64).expand(chain.nfe)
    if not ((shares >= 0) & (shares <= 1)).all():  # NaN is not either
        raise HsiviError(f"noise shares lie in [0, 1], not {shares.tolist()}")
    noisy = replace(chain, s0=torch.cat([torch.zeros(1).double(), shares * chain.sigma[:-1]]))
    if not chain.c0.any():
        return noisy
    longer = torch.cat([torch.ones(1).double(), reach(noisy) / reach(chain)])
    own = (1 - longer) * chain.c0.sum(1)  # what x0_k gives to the earlier ones, or takes
    signal, ce = chain.alpha_bar.sqrt(), chain.ce.clone()
    ce.diagonal()[1:] -= (own * chain.sigma / signal)[1:]
    cx = torch.cat([chain.cx[:1], (chain.cx + own / signal)[1:]])
    return replace(noisy, cx=cx, ce=ce, c0=longer[:, None] * chain.c0)


def reach(chain: Chain) -> Tensor:
    """1 - q keep / sigma_{k-1} of layers 1..K [K], as in `with_noise_share`; 1 to clean data."""
    signal, sigma = chain.alpha_bar.sqrt(), chain.sigma
    q = signal[1:] * sigma[:-1] / (signal[:-1] * sigma[1:])
    return 1 - q * (1 - chain.noise_share.square()).clamp(min=0).sqrt()


def eta_shares(alpha_bar: Tensor, eta: float) -> list[float]:
    """The noise shares of DDIM's eta, layers 1..K; 0 where a layer ends at clean data.

    s0 = eta sqrt((1 - alpha_bar_k / alpha_bar_{k-1}) sigma_{k-1}^2 / sigma_k^2)

    alpha_bar  [K+1]
    """
    ratio = torch.where(alpha_bar[:-1] < 1, 1 - alpha_bar[1:] / alpha_bar[:-1], 0.0)
    return (eta * (ratio / (1 - alpha_bar[1:])).sqrt()).tolist()


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
    noise: Sequence[Tensor] = (),
    log_scale: Tensor | None = None,
    labels: Tensor | None = None,
) -> Iterator[Visit]:
    """Visit the layers from x = x_K down, K network calls. The last layer adds no noise: its mean
    is the sample.

    x          [B, ...]      x_K, standard normal
    noise      K-1 x [B, ...] for the layers K..2 in this order; a deterministic chain needs none
    log_scale  [1 or K, ...], of the noise's chains
    labels     [B] or None
    """
    time, alpha_bar, cx, gain, s0 = (
        t.tolist() for t in (chain.time, chain.alpha_bar, chain.cx, chain.gain, chain.s0)
    )
    ce, c0, kept, kept_x0 = chain.ce.tolist(), chain.c0.tolist(), {}, {}
    multistep = any(any(row[k + 1 :]) for k, row in enumerate(ce))
    wanted = chain.c0.any(0).tolist()
    for k in range(chain.nfe, 0, -1):
        level = _each(alpha_bar[k], x)
        eps = network(x, _each(time[k], x), labels, level)
        offset = cx[k] * x
        for weights, history in ((ce[k], kept), (c0[k], kept_x0)):
            for j, earlier in history.items():
                offset = offset + weights[j] * earlier
        mean = offset + gain[k] * eps
        yield Visit(k, x, offset, mean)
        if multistep:
            kept[k] = eps
        if wanted[k]:
            kept_x0[k] = eps_to_x0(eps, x, level)
        x = mean
        if k > 1 and s0[k] > 0:
            own = log_scale[k - 1 if len(log_scale) > 1 else 0]
            x = mean + (own.exp() * s0[k]).to(x.dtype) * noise[chain.nfe - k]


def _each(value: float, x: Tensor) -> Tensor:
    """A number for every sample of x [B, ...], float32 [B]."""
    return torch.full((len(x),), value, device=x.device)


def sample(network, chain: Chain, x, noise=(), log_scale=None, labels=None) -> Tensor:
    """Samples [B, ...]: the end of a walk from x_K = top_sd x. Arguments as in `walk`."""
    x = x if chain.top_sd == 1 else chain.top_sd.item() * x
    for visit in walk(network, chain, x, noise, log_scale, labels):
        x = visit.mean
    return x


Noise = tuple[Tensor, Tensor | None, list[Tensor]]  # x_K, labels, noises of the layers K..2


def draw_noise(
    generator: torch.Generator | None,
    nfe: int,
    shape: Sequence[int],
    label_count: int | None,
    count: int = 1,
) -> Noise:
    """What decides a walk of nfe calls: x_K [count, *shape], labels [count] (None where there are
    none) and nfe - 1 noises like x_K, drawn in this order on the generator's device.
    """
    where = {"generator": generator, "device": generator.device if generator else None}
    x = torch.randn(count, *shape, **where)
    labels = torch.randint(label_count, (count,), **where) if label_count else None
    return x, labels, [torch.randn(count, *shape, **where) for _ in range(nfe - 1)]


def join_noise(drawn: Sequence[Noise], device: torch.device | str) -> Noise:
    """Samples' noises, drawn apart, as those of one batch on a device."""
    x, labels, noises = zip(*drawn, strict=True)
    return (
        torch.cat(x).to(device),
        None if labels[0] is None else torch.cat(labels).to(device),
        [torch.cat(layer).to(device) for layer in zip(*noises, strict=True)],
    )


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
    place    [B]  in [0, 1], from the lowest level to the highest
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
    tau = (low + place.double() * (high - low)).floor().long()
    return torch.minimum(tau, high - 1)  # a place that was rounded to 1
