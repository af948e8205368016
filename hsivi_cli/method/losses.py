"""Losses of the score-matching minimax between student and fake score, in eps units.

At a draw x of a layer at level tau: `layer_eps` is the conditional's exact noise prediction,
`teacher_eps` and `f_eps` are the teacher's and the fake score's at (x, tau), and

    gap = f_eps - teacher_eps.

`weight` [B] is the level's weight; sigma_tau^2 is the HSIVI paper's. Every function returns one
value per sample [B], summed over the elements of x.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import softplus


def dot(a: Tensor, b: Tensor) -> Tensor:
    """The inner product of each pair of samples. a, b [B, ...] -> [B]."""
    return (a * b).flatten(1).sum(1)


def fake_score_loss(f_eps: Tensor, layer_eps: Tensor, weight: Tensor) -> Tensor:
    """weight |f_eps - layer_eps|^2: denoising score matching, whose minimum is the marginal's own
    noise prediction.

    The student is held: let no graph of it reach here.
    """
    gap = f_eps - layer_eps
    return weight * dot(gap, gap)


def score_matching_loss(
    f_eps: Tensor, teacher_eps: Tensor, layer_eps: Tensor, weight: Tensor, a: float = 0.5
) -> Tensor:
    """weight gap . ((layer_eps - teacher_eps) - a gap): the student's side of the minimax.

    a = 1/2 is half of HSIVI-SM's: with f exact, its mean is weight / 2 times that of |gap|^2,
    sigma^2 times the Fisher divergence, and so is its gradient. a in [1, 1.2] is SiD's [Zhou et
    al. 2024]. Differentiate through x into both networks (their weights held) and through layer_eps
    into log_scale.
    """
    gap = f_eps - teacher_eps
    return weight * dot(gap, layer_eps - teacher_eps - a * gap)


def reverse_kl_loss(x: Tensor, f_eps: Tensor, teacher_eps: Tensor, weight: Tensor) -> Tensor:
    """-weight stop_gradient(gap) . x: its gradient is weight sigma times that of reverse KL,
    KL(student || teacher), at this level.

    [Diff-Instruct, Luo et al. 2023; DMD, Yin et al. 2023.] No backward pass through the teacher or
    the fake score.
    """
    return -weight * dot((f_eps - teacher_eps).detach(), x)


HUBER = 0.03  # of images in [-1, 1], four grey levels: below it errors count by their squares


def regression_loss(x0: Tensor, wanted: Tensor) -> Tensor:
    """Pseudo-Huber distance sqrt(d^2 + HUBER^2) - HUBER of each element, d = x0 - wanted."""
    return ((x0 - wanted).square() + HUBER**2).sqrt().sub(HUBER).flatten(1).sum(1)


# ---- real images ---------------------------------------------------------------------------------
# The fake score's encoder tells real from drawn images at a level: logits [B, 1, h, w], high where
# an image looks real. BCE(logit, 1) = softplus(-logit), BCE(logit, 0) = softplus(logit).


def discriminator_loss(real: Tensor, drawn: Tensor) -> Tensor:
    """(BCE(real, 1) + BCE(drawn, 0)) / 2 of logits, averaged over space."""
    return (softplus(-real) + softplus(drawn)).flatten(1).mean(1) / 2


MOST_LOGIT = 10.0  # beyond it the student learns nothing from a logit


def adversarial_loss(drawn: Tensor) -> Tensor:
    """BCE(drawn, 1) of logits within MOST_LOGIT, averaged over space: the student's side."""
    return softplus(-drawn.clamp(-MOST_LOGIT, MOST_LOGIT)).flatten(1).mean(1)


def divergence_bound(f_eps: Tensor, teacher_eps: Tensor, layer_eps: Tensor) -> Tensor:
    """2 gap.(layer_eps - teacher_eps) - |gap|^2: its mean is at most E|eps_q - teacher_eps|^2, and
    equal when f is exact.
    """
    return 2 * score_matching_loss(f_eps, teacher_eps, layer_eps, 1.0, a=0.5)


def pick_objective(name: str, prediction: str) -> str:
    """The objective of this name; auto is reverse KL, but where the network predicts v score
    matching.
    """
    if name != "auto":
        return name
    return "score-matching" if prediction == "v_prediction" else "reverse-kl"


def output_weight(prediction: str, alpha_bar: Tensor) -> Tensor:
    """The weight [B] that turns a squared error of eps into one of the network's own output: of eps
    1, of x0 sigma^2 / alpha_bar, of v 1 / alpha_bar.
    """
    match prediction:
        case "epsilon":
            return torch.ones_like(alpha_bar).float()
        case "sample":
            return ((1 - alpha_bar) / alpha_bar).float()
        case "v_prediction":
            return (1 / alpha_bar).float()
    raise ValueError(f"no network predicts {prediction!r}")


def gap_weight(prediction: str, alpha_bar: Tensor, linear: bool) -> Tensor:
    """The weight [B] of an eps gap in the student's loss that counts it as the network's own output
    would, but at most as it is: min(1, `output_weight`), its root where the loss is linear in it.

    Where the network predicts x0, its eps at low levels is its x0's error divided by sigma.
    """
    weight = output_weight(prediction, alpha_bar).clamp(max=1)
    return weight.sqrt() if linear else weight


def apart(x0: Tensor, teacher_x0: Tensor) -> Tensor:
    """mean |x0 - teacher_x0| [B], without gradient: what SiD divides an image's losses by."""
    return (x0 - teacher_x0).detach().abs().flatten(1).mean(1).clamp(min=1e-5)


def level_weight(
    kind: str, alpha_bar: Tensor, x0: Tensor | None = None, teacher_x0: Tensor | None = None
) -> Tensor:
    """The weight [B] of observing at a level, relative to the loss in eps units.

    flat    1
    sigma2  sigma^2, HSIVI's
    ratio   sigma / sqrt(alpha_bar): an eps gap times it is the gap of x0, so with a loss linear in
            the gap (reverse KL) levels weigh alike in units of x0
    sid     (sigma^2 / alpha_bar) / mean |x0 - teacher_x0|, without gradient [SiD, eq. 28]

    alpha_bar       [B]
    x0, teacher_x0  [B, ...]  for sid: the layer's own clean sample, and the teacher's at the level
    """
    sigma2 = 1 - alpha_bar
    if kind == "flat":
        return sigma2.new_ones(sigma2.shape).float()
    if kind == "sigma2":
        return sigma2.float()
    if kind == "ratio":
        return (sigma2 / alpha_bar).sqrt().float()
    if kind == "sid":
        return (sigma2 / alpha_bar).float() / apart(x0, teacher_x0)
    raise ValueError(f"no weight is called {kind!r}")


# ---- against a density ---------------------------------------------------------------------------
# At sigma = 1 an eps is minus a score, and the losses above serve densities as they stand:
# teacher_eps = -score p, layer_eps = noise / std = -score q(x | x_k). Two more need no fake score.


def normal_log_density(x: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """log N(x; mean, std^2) summed over the last dimension; all broadcast. [..., dim] -> [...]"""
    size = ((x - mean) / std).square() + 2 * std.log() + math.log(2 * math.pi)
    return -size.sum(-1) / 2


def lower_bound_loss(own: Tensor, others: Tensor, target: Tensor) -> Tensor:
    """log 1/(J+1) (q(x | z_0) + sum_j q(x | z_j)) - log p(x), the negative of SIVI's bound
    [Yin & Zhou 2018].

    Its mean is at least KL(q || p) (less the log of p's constant) and falls to it with J.

    own     [B]     log q(x | z_0), z_0 the one that x was drawn from
    others  [B, J]  log q(x | z_j), z_j fresh
    target  [B]     log p(x)
    """
    both = torch.cat([own[:, None], others], 1)
    return both.logsumexp(1) - math.log(both.shape[1]) - target


def squared_distances(x: Tensor) -> Tensor:
    """Of all pairs of x [B, dim], [B, B]; differentiable where pairs coincide."""
    return (x[:, None] - x[None]).square().sum(-1)


def median_bandwidth(x: Tensor) -> Tensor:
    """The median distance of pairs of x [B, dim], without gradient."""
    with torch.no_grad():
        above = torch.ones(len(x), len(x), dtype=torch.bool, device=x.device).triu(1)
        return squared_distances(x)[above].median().sqrt().clamp(min=1e-6)


def kernel_stein_loss(
    x: Tensor, teacher_eps: Tensor, layer_eps: Tensor, bandwidth: Tensor
) -> Tensor:
    """The U-statistic of the kernel Stein discrepancy of q's marginal [KSIVI, Cheng et al. 2024].

    mean over pairs i != j of a_i . a_j k(x_i, x_j)
    a = score p - score q(x | z) = layer_eps - teacher_eps
    k(x, x') = exp(-|x - x'|^2 / 2 bandwidth^2)

    Its mean is that of the marginal's own scores, so it is 0 exactly at the truth and never below.

    x, teacher_eps, layer_eps  [B, dim], independent rows
    Returns                    [B], each row's mean over the others
    """
    pull = layer_eps - teacher_eps
    kernel = (-squared_distances(x) / (2 * bandwidth.square())).exp()
    pairs = (pull @ pull.T) * kernel
    return (pairs.sum(1) - pairs.diagonal()) / (len(x) - 1)
