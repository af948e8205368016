"""Layers of a density in training and their run's folder: what is kept of them, drawn, summed up
and compared.
"""

from __future__ import annotations

import importlib.util
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .. import __version__
from ..config import InferConfig
from ..density import against, halves, quality
from ..density.bridge import check_density
from ..density.elsewhere import missed
from ..density.family import Family
from ..density.fit import first_round, last_round, not_finite
from ..density.networks import Networks, make_networks
from ..density.packages import quietly
from ..density.stored import FORMAT, read_info
from ..density.targets import Target
from ..errors import HsiviError
from ..files.checkpoint import (
    checkpoints,
    load_modules,
    load_optimizer,
    module_tensors,
    optimizer_tensors,
    slow,
)
from ..files.folder import check_resumable
from ..files.progress import say
from ..files.run import Plan, Run, slowed
from ..files.whole import is_fresh, remove, replacing, write_bytes, write_json, write_tensors
from ..method.steps import warmup_rounds
from ..report.figures import band_png, densities_png, layers_png, pairs_png
from ..report.methods import table

LEVELS = (0.05, 0.25, 0.5, 0.75, 0.95)  # of the summary's quantiles


def most(config: InferConfig) -> str:
    return f"{config.steps} at most" if config.auto else f"{config.steps}"


def plan_of(config: InferConfig) -> Plan:
    """Rounds of warming the fake scores up, and of steps."""
    warmup = warmup_rounds(config)

    def step(rounds: int) -> int:
        return max(0, rounds - warmup)

    def due(rounds: int) -> bool:
        made = step(rounds)
        return made > 0 and (made % config.checkpoint_every == 0 or made in halves.marks(config))

    return Plan(first_round(config), last_round(config), step, due)


def check_out(out: Path, config: InferConfig, about: dict) -> bool:
    """Whether the folder holds an earlier part of this very run. Refuses another's.

    about  the target's name, dim and fingerprint
    """
    if is_fresh(out):
        return False
    if not (out / "infer.json").is_file():
        raise HsiviError(f"{out} exists and is no run of hsivi infer: choose another --out")
    info = read_info(out)
    if not (out / "samples.npz").exists() and not checkpoints(out / "checkpoint"):
        return False  # it stopped before anything was kept: nothing binds its settings
    if (info["target"], info["dim"]) != (about["target"], about["dim"]):
        raise HsiviError(
            f"{out} samples another target ({info['target']}, {info['dim']} coordinates): choose "
            "another --out"
        )
    old, new = (torch.tensor(one.get("fingerprint") or []) for one in (info, about))
    if len(old) == len(new) and not torch.allclose(old, new, rtol=1e-3, atol=1e-3):
        raise HsiviError(
            f"{out} was begun on {about['target']} when it was another density: undo its change, "
            "or choose another --out"
        )
    begun = info["config"]
    if begun.get("auto", False) != config.auto:
        steps = "auto" if begun.get("auto") else begun["steps"]
        raise HsiviError(f"{out} was begun with --steps {steps}: use that, or another --out")
    if config.auto and (out / "samples.npz").exists():
        begun["steps"] = info["step"]  # it has ended there
    # the objective is told before the rate, whose default goes with it
    check_resumable(out, info, replace(config, student_rate=begun["student_rate"]))
    check_resumable(out, info, config)
    return True


MODULES = ("family", "ema", "fake_scores")


@dataclass
class Inference:
    """Layers in training and their run's folder (files.run.Trained).

    about     the target's name, dim and fingerprint
    networks  made anew, or by `load`
    """

    out: Path
    config: InferConfig
    about: dict
    target: Target
    device: torch.device
    networks: Networks | None = None

    def tensors(self) -> dict[str, Tensor]:
        tensors = module_tensors(self.networks, MODULES)
        tensors |= optimizer_tensors(self.networks.optimizer, "optimizer")
        return tensors | optimizer_tensors(self.networks.fake_optimizer, "fake_optimizer")

    def load(self, tensors: dict[str, Tensor], state: dict) -> None:
        whitening = (tensors["family.centre"], tensors["family.factor"])
        self.networks = make_networks(self.config, self.target, whitening, self.device, False)
        load_modules(self.networks, MODULES, tensors)
        load_optimizer(self.networks.optimizer, "optimizer", tensors)
        load_optimizer(self.networks.fake_optimizer, "fake_optimizer", tensors)
        slow(self.networks.fake_optimizer, slowed(state["rollbacks"]))

    def export(self, run: Run) -> None:
        """model.safetensors and infer.json."""
        info = {
            "format": FORMAT,
            "hsivi": __version__,
            **self.about,
            "config": asdict(self.config),
            "step": run.step,
            "seconds": round(run.state["seconds"], 1),
            "cpu_seconds": round(run.state["cpu_seconds"], 2),
        }
        write_json(self.out / "infer.json", info)  # first: it says whose folder this is
        write_tensors(self.out / "model.safetensors", self.networks.ema.state_dict())

    def words(self, measured: dict[str, float], run: Run) -> str:
        if not run.step:
            return "warming the fake scores up"
        divergence = measured.get("divergence_1", 0)
        return f"step {run.step} of {most(self.config)}, divergence {divergence:.3g}"

    def fault(self) -> str | None:
        """Finite weights may be large enough to draw what is not."""
        finite = self.networks.ema.sample(100, self.config.seed).isfinite().all()
        return None if finite else "the averaged layers draw NaN or infinite values"

    def not_finite(self, what: str, round_: int, kept: str) -> HsiviError:
        return not_finite(self.networks, what, plan_of(self.config).step(round_ + 1), kept)


def report(out: Path, networks: Networks, config: InferConfig, target: Target, run: Run) -> None:
    """samples.npz, summary.json, the plots and, where ArviZ is installed, posterior.nc; a line on
    the samples' quality.
    """
    drawn = networks.ema.sample(config.count, config.seed)
    quality.check_samples(drawn)
    with torch.no_grad():
        check_density(torch.cat([target.log_prob(x) for x in drawn[:2000].split(500)]), drawn)
    samples = drawn.cpu()
    with replacing(out / "samples.npz") as temporary:
        np.savez_compressed(temporary, x=samples.numpy())
    divergence = quality.lower_bound(networks.ema, networks.bridge.target, 2000, 500, config.seed)
    seeds = quality.between_seeds(networks.ema, samples, config.seed)
    about = {"step": run.step} | summary(samples) | {"divergence": divergence, "seeds": seeds}
    marks = run.state.get("marks", [])
    if len(marks) > 1:
        about["halves"] = halves.gaps(*marks[-2:])
    write_json(out / "summary.json", about)
    say(quality.in_words(divergence, seeds))
    unsettled = halves.doubt(marks, config.patience) if config.auto else None
    unseen = missed(networks, config)
    doubts = [unsettled, unseen, quality.doubt(divergence), quality.strayed(samples)]
    if (any(doubts) or quality.loose(divergence)) and (why := quality.improper(target, config)):
        doubts = [why]  # which no advice on the training can mend
    for doubt in doubts:
        if doubt:
            say(f"warning: {doubt}")
    if samples.shape[1] == 2:
        marginals = networks.ema.marginals(config.count, config.seed)
        write_bytes(out / "layers.png", layers_png(marginals, networks.bridge.log_prob))
    else:
        write_bytes(out / "pairs.png", pairs_png(samples))
        write_bytes(out / "marginals.png", band_png(samples))
    if importlib.util.find_spec("arviz"):
        try:
            write_arviz(out / "posterior.nc", samples)
        except Exception as error:  # whatever ArviZ raises, the run is over and its samples stand
            remove(out / "posterior.nc")  # of fewer steps
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            say(f"warning: no posterior.nc, samples.npz has the same draws: {reason}")


def write_arviz(path: Path, samples: Tensor) -> None:
    """ArviZ's own netCDF file: one chain of independent draws of x."""
    arviz = quietly("arviz")
    draws = {"x": samples.numpy()[None]}  # chain x draw x coordinate
    old = arviz.__version__.startswith("0.")
    data = arviz.from_dict(posterior=draws) if old else arviz.from_dict({"posterior": draws})
    with replacing(path) as temporary:
        data.to_netcdf(temporary)


def compare(
    out: Path, family: Family, config: InferConfig, name: str, target: Target, trained: float
) -> None:
    """compare.json, compare.png and a table on stdout. `trained` is the CPU seconds that the family
    took.
    """
    found = against.compare(family, config, target, trained)
    truth, drawn = found.truth, found.drawn
    about = {"target": name, "step": config.steps}
    about |= {"truth": truth.kind, "truth_count": len(truth.draws)}
    about |= {"chains": config.chains, "draws": config.draws}
    write_json(out / "compare.json", {"rows": found.rows, "about": about})
    if target.dim == 2:
        drawn = drawn | ({"exact": truth.draws} if target.exact else {})
        write_bytes(out / "compare.png", densities_png(drawn))
    else:
        write_bytes(out / "compare.png", band_png(drawn["hsivi"], truth.draws))
        write_bytes(out / "pairs.png", pairs_png(drawn["hsivi"], truth.draws))
    print(f"measured from {truth.kind} draws")
    print(table(found.rows))
    if found.doubt:
        say(f"warning: {found.doubt}")


def summary(samples: Tensor) -> dict:
    """The count, and mean, sd and quantiles of each coordinate."""
    draws = samples.double()
    sd = draws.std(0) if len(draws) > 1 else torch.zeros(draws.shape[1])
    quantiles = draws.quantile(torch.tensor(LEVELS, dtype=torch.float64), dim=0)
    return {
        "count": len(draws),
        "mean": draws.mean(0).tolist(),
        "sd": sd.tolist(),
        "quantiles": {
            f"{level:g}": row.tolist() for level, row in zip(LEVELS, quantiles, strict=True)
        },
    }
