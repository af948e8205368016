"""NUTS by nutpie, and its diagnosis by ArviZ."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..errors import HsiviError, reason_of
from .gaussian import Affine
from .packages import quietly

BURN_IN = 500  # draws of each chain, in which nutpie adapts


HIGHEST_RHAT = 1.01  # of chains that have mixed [Vehtari et al. 2021]


@dataclass(frozen=True)
class Chains:
    """What NUTS drew.

    draws        [chains, draws, dim]
    divergences  how many of them come from a trajectory that was thrown off
    """

    draws: Tensor
    divergences: int


def nuts(white: Affine, chains: int, draws: int, seed: int) -> Chains:
    """NUTS chains of a target [Hoffman & Gelman 2014].

    They run in whitened coordinates, where few steps go far; they begin at draws of N(0, 4 I)
    there. Whitening changes no posterior.
    """
    quietly("arviz")
    nutpie, pyfunc = quietly("nutpie"), quietly("nutpie.compiled_pyfunc")
    dim = white.dim

    def make_log_density():
        def log_density(y: np.ndarray) -> tuple[float, np.ndarray]:
            point = torch.as_tensor(y[None]).to(white.centre).requires_grad_()
            with torch.enable_grad():
                value = white.log_prob(point)
                (gradient,) = torch.autograd.grad(value.sum(), point)
            return value.item(), gradient[0].double().cpu().numpy()

        return log_density

    model = pyfunc.from_pyfunc(
        dim,
        make_log_density,
        lambda *seeds: lambda y: {"y": y},
        [np.dtype("float64")],
        [(dim,)],
        ["y"],
        make_initial_point_fn=lambda seed: 2 * np.random.default_rng(seed).normal(size=dim),
    )
    options = {"draws": draws, "tune": BURN_IN, "chains": chains, "cores": 1, "seed": seed}
    try:
        trace = nutpie.sample(model, progress_bar=False, **options)
    except (RuntimeError, ValueError) as error:
        raise HsiviError(f"NUTS fails on this target: {reason_of(error)}") from error
    y = torch.as_tensor(trace.posterior["y"].to_numpy().copy()).to(white.centre)
    if y.shape[:2] != (chains, draws) or y.isnan().all(-1).any():  # nutpie ends so on a Ctrl-C
        raise KeyboardInterrupt
    if not y.isfinite().all():
        raise HsiviError("NUTS fails on this target: its draws are not finite")
    thrown_off = int(trace.sample_stats["diverging"].to_numpy().sum())
    return Chains(white.out(y.flatten(0, 1)).view(chains, draws, dim), thrown_off)


def diagnosis(chains: Chains) -> dict[str, float]:
    """ArviZ's worst R-hat and effective sample size of NUTS's chains, beside their divergences."""
    arviz = quietly("arviz")
    data = arviz.convert_to_dataset(chains.draws.cpu().double().numpy())
    rhat, ess = (function(data)["x"].to_numpy() for function in (arviz.rhat, arviz.ess))
    return {
        "rhat": float(np.max(rhat)),
        "ess": float(np.min(ess)),
        "divergences": chains.divergences,
    }


def doubt(found: dict[str, float], count: int) -> str | None:
    """Why NUTS's `count` draws are not to be trusted, by their diagnosis; None where they are."""
    reasons = []
    if not found["rhat"] <= HIGHEST_RHAT:  # also where it is nan
        reasons.append(f"R-hat {found['rhat']:.3f} is above {HIGHEST_RHAT}")
    if found["divergences"]:
        reasons.append(f"{found['divergences']} of {count} draws diverged")
    if not reasons:
        return None
    return f"NUTS has not drawn this target well ({', '.join(reasons)}): give more --draws"
