"""A target by its name, or from a user's own module; whether it can be used."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable

import torch
from torch import Tensor

from ..config import InferConfig
from ..errors import HsiviError, reason_of
from ..method.steps import rng
from .bridge import check_density, check_score
from .datasets import abalone, breast_cancer, diabetes, digits, waveform
from .posteriors import logistic_regression, neural_regression
from .smoothed import PLANE
from .targets import TARGETS, Density, Target

WAVEFORMS = 400  # rows, the number that the field trains on; always the same ones
POSTERIORS = {
    "logistic-waveform": lambda: logistic_regression(*waveform(WAVEFORMS, rng(0, "waveform"))),
    "logistic-breast-cancer": lambda: logistic_regression(*breast_cancer()),
    "logistic-digits": lambda: logistic_regression(*digits()),
    "regression-diabetes": lambda: neural_regression(*diabetes()),
    "regression-abalone": lambda: neural_regression(*abalone()),
}


DIMS = 10_000  # coordinates lie below: a Gaussian's covariance has as many times as many


def load_target(name: str, dim: int | None) -> Target:
    """A target by its name, or a user's log density module:callable of `dim` coordinates."""
    known = TARGETS | POSTERIORS
    if name in known:
        target = known[name]()
        if dim not in (None, target.dim):
            raise HsiviError(f"--dim {dim}: {name} has {target.dim} coordinates; leave --dim out")
        return target
    module, _, attribute = name.partition(":")
    if not module or not attribute:
        raise HsiviError(
            f"{name} is no target: {', '.join(known)}, or your own as module:callable with --dim"
        )
    if dim is None or not 1 <= dim < DIMS:
        raise HsiviError(f"{name} needs --dim, the number of its coordinates, from 1 to {DIMS - 1}")
    return Density(guarded(imported(module, attribute)), dim)


def guarded(function: Callable) -> Callable:
    """A user's log density whose own errors are a line for the user, wherever they are met."""

    def log_prob(x: Tensor) -> Tensor:
        try:
            return function(x)
        except (Exception, SystemExit) as error:
            raise HsiviError(failure(error, x)) from error

    return log_prob


def failure(error: BaseException, x: Tensor) -> str:
    return f"the target fails on points {list(x.shape)}: {reason_of(error)}"


def imported(module: str, attribute: str) -> Callable:
    """module.attribute, modules of the working directory among them. What the module sets of
    torch's own, such as its default dtype, ends with the import.
    """
    dtype, gradient = torch.get_default_dtype(), torch.is_grad_enabled()
    sys.path.insert(0, "")
    try:
        found = importlib.import_module(module)
    except (Exception, SystemExit) as error:  # whatever a user's module raises is theirs to read
        raise HsiviError(f"importing {module} failed: {reason_of(error)}") from error
    finally:
        sys.path.remove("")
        torch.set_default_dtype(dtype)
        torch.set_grad_enabled(gradient)
    function = getattr(found, attribute, None)
    if not callable(function):
        raise HsiviError(f"{module} has no callable {attribute!r}")
    return function


def probe(config: InferConfig, target: Target, device="cpu") -> None:
    """Refuse a target whose density or gradient cannot be used, before anything is written."""
    if config.bridge == "diffusion" and not target.levels and target.dim > PLANE:
        raise HsiviError(
            f"--bridge diffusion needs a target of at most {PLANE} coordinates, or one whose "
            "diffused density is known"
        )
    if config.bridge == "diffusion" and config.base_scale != 1:
        raise HsiviError(
            f"--base-scale {config.base_scale:g} goes with --bridge geometric: diffused, every "
            "target ends at sd 1"
        )
    x = config.base_scale * torch.randn(64, target.dim, generator=rng(config.seed, "probe"))
    x = x.to(device)
    try:
        score = target.score(x.requires_grad_())
        check_score(score.detach(), x.detach())
        check_density(target.log_prob(x).detach(), x)
    except HsiviError:
        raise
    except Exception as error:  # whatever a user's function raises is theirs to read
        raise HsiviError(failure(error, x)) from error
    if config.objective in ("sm", "ksivi") and not score.requires_grad:
        raise HsiviError(
            f"--objective {config.objective} differentiates the target's score, which has no "
            "gradient in x here: compute it by torch functions, or take reverse-kl or lb"
        )


def fingerprint(target: Target, device="cpu") -> list[float] | None:
    """Log densities at four fixed points, less that at a fifth, by which a resumed run knows its
    target; None where they are not finite or random.
    """
    x = torch.randn(5, target.dim, generator=rng(0, "fingerprint")).to(device)
    with torch.no_grad():
        once, twice = (target.log_prob(x).double() for _ in range(2))
    known = torch.equal(once, twice) and once.isfinite().all()
    return (once[1:] - once[0]).tolist() if known else None
