"""Training-free solvers on a teacher's schedule: families, spacings, and their times.

The names of spacings are those of diffusers' DPM-Solver family, whose times every solver shares:
10 calls of `leading` are at 900, 810, .. 90 of 1000. DDIMScheduler has other times of these names,
900, 800, .. 0, and steps to other levels than its next call's in `linspace`; `ddim` has both as
`diffusers-leading` and `diffusers-linspace`, without clipping.
"""

from __future__ import annotations

import diffusers
import numpy as np
import torch
from diffusers import DDPMScheduler
from torch import Tensor

from ..errors import HsiviError
from ..method import schedule
from ..method.chain import Chain
from ..method.solvers import (
    ancestral_chain,
    data_chain,
    ddim_chain,
    heun_chain,
    ipndm_chain,
    solver_chain,
)

DIFFUSERS_SPACINGS = ("linspace", "leading", "trailing", "karras")
GRID_SPACINGS = ("quad", "log-snr", "auto")  # schedule.grid's
OWN_SPACINGS = (*DIFFUSERS_SPACINGS, *GRID_SPACINGS)
DDIM_SCHEDULER = ("diffusers-leading", "diffusers-linspace")  # of ddim: diffusers' DDIMScheduler
MULTISTEP = {
    "dpm++2": ("DPMSolverMultistepScheduler", {"solver_order": 2}),
    "dpm++3": ("DPMSolverMultistepScheduler", {"solver_order": 3}),
    "sde-dpm++2": (
        "DPMSolverMultistepScheduler", {"solver_order": 2, "algorithm_type": "sde-dpmsolver++"}
    ),
    "sde-dpm++3": (
        "DPMSolverMultistepScheduler", {"solver_order": 3, "algorithm_type": "sde-dpmsolver++"}
    ),
    "unipc": ("UniPCMultistepScheduler", {"solver_order": 3}),
    "deis": ("DEISMultistepScheduler", {"solver_order": 3}),
}  # fmt: skip
OWN = {"ddim": ddim_chain, "ipndm": ipndm_chain, "heun": heun_chain, "ddpm": ancestral_chain}
SOLVERS = {name: OWN_SPACINGS for name in (*OWN, *MULTISTEP)}
SOLVERS |= {name: (*OWN_SPACINGS, "lu") for name in MULTISTEP if "dpm++" in name}
SOLVERS["ddim"] += DDIM_SCHEDULER
NOISY = "it adds noise at every step, and of those only ddpm, sde-dpm++2 and sde-dpm++3 are here"
NOT_HERE = {
    "euler": "under a variance-preserving schedule that is ddim",
    "pndm": "its later form is ipndm",
    "lms": "ipndm is of its kind",
    "auto": "hsivi sample looks for the best where --solver is left out",
} | dict.fromkeys(("euler-a", "dpm++-sde", "lcm", "tcd"), NOISY)


def solver_names(families: tuple[str, ...] = tuple(SOLVERS)) -> list[str]:
    """Every solver with every spacing it has: "ddim-linspace", "dpm++3-lu", ..."""
    return [f"{family}-{spacing}" for family in families for spacing in SOLVERS[family]]


def solver(name: str, nfe: int, scheduler: DDPMScheduler, table: Tensor) -> Chain:
    """A training-free solver as a chain of nfe calls on a teacher's schedule. "dpm++3" is
    "dpm++3-linspace".
    """
    family, spacing = parse_solver(name)
    if not 1 <= nfe <= len(table):
        raise HsiviError(f"{name} cannot take {nfe} calls on a schedule of {len(table)} times")
    if family == "heun" and nfe % 2 == 0:
        raise HsiviError(
            f"{name} takes two calls a step but one for the last: {nfe} calls do not fit, ask for "
            f"{nfe - 1} or {nfe + 1}"
        )
    if keeps_x0(family):
        return data_chain(multistep(family, spacing, nfe, scheduler))
    if family in MULTISTEP:
        chain = solver_chain(multistep(family, spacing, nfe, scheduler))
        if chain.ce.abs().max() < 1e-6:  # deis-karras: its first level is its last
            raise HsiviError(
                f"{name} leaves the noise as it is at {nfe} call: ask for more calls, or another "
                "spacing"
            )
        return chain
    time = own_times(spacing, (nfe + 1) // 2 if family == "heun" else nfe, table)
    check_times(name, time, nfe)
    alpha_bar = torch.cat([torch.ones(1).double(), table[time]])
    if spacing in DDIM_SCHEDULER:  # it steps to the level of t - T // nfe, whatever it calls next
        lower = (torch.tensor(time) - len(table) // nfe).clamp(min=-1)
        below = torch.cat([alpha_bar[:1], table])[lower + 1]
        return ddim_chain([-1, *time], alpha_bar, below)
    return OWN[family]([-1, *time], alpha_bar)


def parse_solver(name: str) -> tuple[str, str]:
    """A solver's family and spacing. Refuses names that there are not, with those that there
    are.
    """
    found = [f for f in SOLVERS if name == f or name.startswith(f + "-")]
    if not found:
        why = f" ({NOT_HERE[name]})" if name in NOT_HERE else ""
        raise HsiviError(
            f"there is no solver {name!r}{why}: solvers are {', '.join(SOLVERS)}, also with a "
            "spacing as in dpm++3-lu"
        )
    family = found[0]
    spacing = name[len(family) + 1 :] or "linspace"
    if spacing not in SOLVERS[family]:
        raise HsiviError(
            f"there is no solver {name!r}: {family} has the spacings {', '.join(SOLVERS[family])}"
        )
    return family, spacing


def keeps_x0(family: str) -> bool:
    """Whether a family's steps keep earlier x0, not eps: DPM-Solver++'s."""
    return "dpm++" in family


def multistep(family: str, spacing: str, nfe: int, scheduler: DDPMScheduler) -> object:
    """The diffusers scheduler of a solver, its timesteps set, fed with what it keeps: x0 of
    DPM-Solver++, eps of the others.
    """
    kind, options = MULTISTEP[family]
    config = {key: scheduler.config[key] for key in ("num_train_timesteps", "beta_schedule")}
    # the betas themselves, as not every solver knows every schedule by name
    told = {"trained_betas": scheduler.betas.tolist()}
    told["prediction_type"] = "sample" if keeps_x0(family) else "epsilon"
    options = options | config | told
    if spacing in ("lu", "karras"):
        options["use_lu_lambdas" if spacing == "lu" else "use_karras_sigmas"] = True
    elif spacing not in GRID_SPACINGS:
        options["timestep_spacing"] = spacing
    made = getattr(diffusers, kind)(**options)
    made.set_timesteps(nfe)
    if spacing in GRID_SPACINGS:
        table = scheduler.alphas_cumprod.double()
        at_times(made, own_times(spacing, nfe, table), table)
    check_times(f"{family}-{spacing}", made.timesteps.tolist(), nfe)
    return made


def at_times(made, times: list[int], table: Tensor) -> None:
    """Move a multistep scheduler, its timesteps set, to other rising times. Only DPM-Solver++
    takes them by `set_timesteps`; all read their levels from `sigmas`, whose last is where they
    end.
    """
    ratio = schedule.noise_to_signal(table[times]).flip(0)
    made.timesteps = torch.tensor(times).flip(0)
    made.sigmas = torch.cat([ratio.to(made.sigmas), made.sigmas[-1:]])


def unipc_at(times: list[int], scheduler: DDPMScheduler, table: Tensor) -> Chain:
    """UniPC of third order over these rising times of network calls, as a chain."""
    made = multistep("unipc", "linspace", len(times), scheduler)
    at_times(made, times, table)
    return solver_chain(made)


def check_times(name: str, times: list, nfe: int) -> None:
    """Refuse a spacing that rounds two calls to one time: diffusers fails there with an IndexError,
    or walks wrongly.
    """
    if len(set(times)) < len(times):
        raise HsiviError(
            f"{name} visits a time twice in {nfe} calls on this schedule; ask for fewer, or "
            "another spacing"
        )


def own_times(spacing: str, count: int, table: Tensor) -> list[int]:
    """`count` times of network calls, rising."""
    end = len(table)
    if spacing == "linspace":
        times = np.linspace(0, end - 1, count + 1).round()[1:]
    elif spacing == "leading":
        times = np.arange(1, count + 1) * (end // (count + 1))
    elif spacing == "diffusers-linspace":
        times = np.linspace(0, end - 1, count).round()
    elif spacing == "diffusers-leading":
        times = np.arange(count) * (end // count)
    elif spacing == "trailing":
        times = (end - np.arange(count) * end / count).round()[::-1] - 1
    elif spacing == "karras":  # equal steps of the 7th root of the ratio [Karras et al. 2022]
        ratio = schedule.noise_to_signal(table)
        low, high = ratio[0] ** (1 / 7), ratio[-1] ** (1 / 7)
        part = torch.linspace(1, 0, count, dtype=torch.float64).flip(0)
        times = schedule.nearest(ratio, (low + part * (high - low)) ** 7)
    else:
        times = schedule.grid(spacing, count, table)[1:]
    return [int(t) for t in times]
