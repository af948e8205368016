"""What inference is compared with: NUTS by nutpie, Gaussians, and the distances to a truth.

All draws are float32 [count, dim] in the target's own coordinates; NUTS's are [chains, draws, dim].
"""

from __future__ import annotations

import importlib
import importlib.util
import warnings
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .config import HsiviError
from .gaussian import Affine
from .points import jensen_shannon, sliced_w1

EXTRA = "pip install 'hsivi[infer]' first"
BURN_IN = 500  # draws of each chain, in which nutpie adapts


def quietly(name: str):
    """A package of the extra; what it has to announce when imported is not the user's concern."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # ArviZ 0.23 announces 1.0
            return importlib.import_module(name)
    except ImportError as error:
        raise HsiviError(f"this needs {name} ({error}): {EXTRA}") from error


# ---- NUTS ----------------------------------------------------------------------------------------


def nuts(frame: Affine, chains: int, draws: int, seed: int) -> Tensor:
    """NUTS chains [chains, draws, dim] of the frame's target [Hoffman & Gelman 2014].

    They run in the frame's coordinates, where few steps go far; they begin at draws of N(0, 4 I)
    there. The frame changes no posterior.
    """
    quietly("arviz")
    nutpie, pyfunc = quietly("nutpie"), quietly("nutpie.compiled_pyfunc")
    dim = frame.dim

    def make_log_density():
        def log_density(y: np.ndarray) -> tuple[float, np.ndarray]:
            point = torch.as_tensor(y[None]).to(frame.centre).requires_grad_()
            with torch.enable_grad():
                value = frame.log_prob(point)
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
        reason = str(error).strip().splitlines()[0]
        raise HsiviError(f"NUTS fails on this target: {reason}") from error
    y = torch.as_tensor(trace.posterior["y"].to_numpy().copy()).to(frame.centre)
    if y.shape[:2] != (chains, draws) or y.isnan().all(-1).any():  # nutpie ends so on a Ctrl-C
        raise KeyboardInterrupt
    if not y.isfinite().all():
        raise HsiviError("NUTS fails on this target: its draws are not finite")
    return frame.out(y.flatten(0, 1)).view(chains, draws, dim)


def diagnosis(chains: Tensor) -> dict[str, float]:
    """ArviZ's worst R-hat and effective sample size of NUTS chains [chains, draws, dim]."""
    arviz = quietly("arviz")
    data = arviz.convert_to_dataset(chains.double().numpy())
    rhat, ess = (function(data)["x"].to_numpy() for function in (arviz.rhat, arviz.ess))
    return {"rhat": float(np.max(rhat)), "ess": float(np.min(ess))}


# ---- the distance to a truth ---------------------------------------------------------------------


@dataclass(frozen=True)
class Truth:
    """What the others are measured from.

    kind   exact (independent draws) or nuts
    draws  [N, dim]
    error  [dim]  standard error of the draws' mean
    """

    kind: str
    draws: Tensor
    error: Tensor


def exact_truth(draws: Tensor) -> Truth:
    return Truth("exact", draws, draws.double().std(0) / len(draws) ** 0.5)


def nuts_truth(chains: Tensor) -> Truth:
    arviz = quietly("arviz")
    error = arviz.mcse(arviz.convert_to_dataset(chains.double().numpy()))["x"].to_numpy()
    return Truth("nuts", chains.flatten(0, 1), torch.as_tensor(error.copy()))


def errors(draws: Tensor, truth: Truth, own_error: Tensor | None = None) -> dict[str, float]:
    """How far draws [N, dim] are from the truth; each the worst over coordinates or pairs.

    mean_error         |difference of the means| in the truth's sds
    mean_z             the same in Monte Carlo standard errors of the two means together
    sd_error           |ratio of the sds - 1|
    correlation_error  |difference of the correlations|
    js, w1             Jensen-Shannon divergence (60 x 60 bins over all the truth) and sliced W1,
                       in two dimensions

    own_error  [dim]  standard error of the draws' mean; that of independent ones if left out
    """
    x, y = draws.double(), truth.draws.double()
    gap, sd = (x.mean(0) - y.mean(0)).abs(), y.std(0)
    own_error = x.std(0) / len(x) ** 0.5 if own_error is None else own_error
    found = {
        "mean_error": (gap / sd).max(),
        "mean_z": (gap / (own_error.square() + truth.error.square()).sqrt()).max(),
        "sd_error": (x.std(0) / sd - 1).abs().max(),
    }
    if x.shape[1] > 1:
        found["correlation_error"] = (x.T.corrcoef() - y.T.corrcoef()).abs().max()
    found = {key: value.item() for key, value in found.items()}
    if x.shape[1] == 2:
        count = min(len(x), len(y))
        found["js"] = jensen_shannon(draws, truth.draws, reach=1.01 * y.abs().max().item())
        found["w1"] = sliced_w1(draws[:count], truth.draws[:count])
    return found


COLUMNS = {
    "name": ("", "{}"),
    "mean_error": ("mean error", "{:.3f}"),
    "mean_z": ("in MC errors", "{:.1f}"),
    "sd_error": ("sd error", "{:.3f}"),
    "correlation_error": ("corr. error", "{:.3f}"),
    "js": ("JS", "{:.4f}"),
    "w1": ("W1", "{:.4f}"),
    "rhat": ("R-hat", "{:.3f}"),
    "ess": ("ESS", "{:.0f}"),
    "cpu_seconds": ("CPU s", "{:.0f}"),
}


def table(rows: list[dict]) -> str:
    """The rows in columns; a column that no row has is left out."""
    used = [key for key in COLUMNS if any(row.get(key) is not None for row in rows)]
    lines = [[COLUMNS[key][0] for key in used]]
    for row in rows:
        lines.append(
            [COLUMNS[key][1].format(row[key]) if row.get(key) is not None else "" for key in used]
        )
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )
