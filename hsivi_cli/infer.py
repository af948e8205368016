"""`hsivi infer`: sample a density by K semi-implicit layers.

In Python, with any torch function of [B, dim] -> [B]:

    from hsivi_cli.infer import fit
    family = fit(log_prob, dim=3, layers=4, objective="lb", steps=1000)
    x = family.sample(10_000)

and `load(folder)` gives the family of a run. A run's folder holds model.safetensors (the averaged
layers), infer.json (what they are), samples.npz, summary.json, plots and, where ArviZ is installed,
posterior.nc; beside them metrics.jsonl and checkpoint/ as in training, and with --compare what
other methods make of the target. The same command again goes on where the last checkpoint was,
and with more --steps beyond the end.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import math
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, fields
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from . import __version__
from .baselines import diagnosis, errors, exact_truth, nuts, nuts_truth, quietly, table
from .checkpoint import (
    checkpoints,
    is_fresh,
    load_checkpoint,
    load_modules,
    load_optimizer,
    module_tensors,
    optimizer_tensors,
    read_tensors,
    remove,
    replacing,
    save_checkpoint,
    sweep,
    usable,
    write_tensors,
    write_text,
    writing,
)
from .config import HsiviError, InferConfig, check_options, command_line
from .device import pick_device
from .distill import rng, warmup_rounds
from .figures import band_png, densities_png, layers_png, pairs_png
from .gaussian import Affine
from .inference import (
    Family,
    Players,
    best_gaussian,
    check_density,
    check_score,
    has_fake_scores,
    lower_bound,
    make_players,
    play_round,
    resolved,
)
from .runs import Interrupt, append, check_resumable, holding, say, trim
from .targets import TARGETS, Density, logistic_regression, neural_regression, waveform

LEVELS = (0.05, 0.25, 0.5, 0.75, 0.95)  # of the summary's quantiles

# ---- targets -------------------------------------------------------------------------------------


def waveform_posterior() -> Density:
    """400 waveforms, the number that the field trains on, always the same ones."""
    return logistic_regression(*waveform(400, rng(0, "waveform")))


def breast_cancer_posterior() -> Density:
    data = packaged("sklearn.datasets").load_breast_cancer()
    return logistic_regression(standard(data.data), torch.as_tensor(data.target))


def digits_posterior() -> Density:
    """Whether a digit is odd, by its 61 pixels that vary."""
    data = packaged("sklearn.datasets").load_digits()
    varies = data.data.std(0) > 0
    return logistic_regression(standard(data.data[:, varies]), torch.as_tensor(data.target % 2))


def diabetes_posterior() -> Density:
    return neural_regression(*(standard(part) for part in diabetes()))


def abalone_posterior() -> Density:
    return neural_regression(*(standard(part) for part in abalone()))


def diabetes() -> tuple[np.ndarray, np.ndarray]:
    """442 patients' 10 measures, and the disease's progress."""
    data = packaged("sklearn.datasets").load_diabetes()
    return data.data, data.target


def abalone() -> tuple[np.ndarray, np.ndarray]:
    """4,177 shells' sex as two indicators and 7 measures, and their rings."""
    shells = packaged("sklego.datasets").load_abalone(as_frame=True)
    sex, rings = shells.pop("sex"), shells.pop("rings")
    inputs = np.column_stack([sex == "M", sex == "F", shells.to_numpy(float)])
    return inputs, rings.to_numpy(float)


POSTERIORS = {
    "logistic-waveform": waveform_posterior,
    "logistic-breast-cancer": breast_cancer_posterior,
    "logistic-digits": digits_posterior,
    "regression-diabetes": diabetes_posterior,
    "regression-abalone": abalone_posterior,
}


def packaged(module: str):
    """A module of data sets that lie within their package."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise HsiviError(
            f"this target's data come with another package ({error}): pip install 'hsivi[infer]' "
            "first"
        ) from error


def standard(values) -> Tensor:
    """Columns of mean 0 and sd 1, float32."""
    values = torch.as_tensor(np.asarray(values), dtype=torch.float64)
    return ((values - values.mean(0)) / values.std(0)).float()


def load_target(name: str, dim: int | None):
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
    if dim is None or dim < 1:
        raise HsiviError(f"{name} needs --dim, the number of its coordinates (at least 1)")
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
    reason = f"{type(error).__name__}: {error}".splitlines()[0]
    return f"the target fails on points {list(x.shape)}: {reason}"


def imported(module: str, attribute: str) -> Callable:
    """module.attribute, modules of the working directory among them. What the module sets of
    torch's own, such as its default dtype, ends with the import.
    """
    dtype, gradient = torch.get_default_dtype(), torch.is_grad_enabled()
    sys.path.insert(0, "")
    try:
        found = importlib.import_module(module)
    except (Exception, SystemExit) as error:  # whatever a user's module raises is theirs to read
        text = f"{type(error).__name__}: {error}".splitlines()[0]
        raise HsiviError(f"importing {module} failed: {text}") from error
    finally:
        sys.path.remove("")
        torch.set_default_dtype(dtype)
        torch.set_grad_enabled(gradient)
    function = getattr(found, attribute, None)
    if not callable(function):
        raise HsiviError(f"{module} has no callable {attribute!r}")
    return function


def probe(config: InferConfig, target, device="cpu") -> None:
    """Refuse a target whose density or gradient cannot be used, before anything is written."""
    if config.bridge == "diffusion" and not getattr(target, "levels", False):
        raise HsiviError(
            "--bridge diffusion needs a target whose diffused density is known: two-gaussians, "
            "x-shape, 25-gaussians, checkerboard, swiss-roll, circles"
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


def fingerprint(target, device="cpu") -> list[float] | None:
    """Log densities at four fixed points, less that at a fifth, by which a resumed run knows its
    target; None where they are not finite or random.
    """
    x = torch.randn(5, target.dim, generator=rng(0, "fingerprint")).to(device)
    with torch.no_grad():
        once, twice = (target.log_prob(x).double() for _ in range(2))
    known = torch.equal(once, twice) and once.isfinite().all()
    return (once[1:] - once[0]).tolist() if known else None


# ---- the verb ------------------------------------------------------------------------------------


def fit(log_prob: Callable, dim: int, progress: bool = True, **options) -> Family:
    """The trained layers for a log density; the options are InferConfig's.

    log_prob  a torch function of x [B, dim] -> [B], up to a constant; or an object with log_prob,
              score and dim, as in targets.py
    Returns   the averaged family: .sample(count, seed) draws [count, dim]
    """
    target = log_prob if hasattr(log_prob, "score") else Density(log_prob, dim)
    if dim != target.dim or dim < 1:
        raise HsiviError(f"dim is {dim}: it must be the target's, and at least 1")
    for item in fields(InferConfig):
        if item.metadata.get("run_only") and item.name in options and item.name != "device":
            raise HsiviError(f"fit has no {item.name}: it is an option of a run in a folder")
    config = resolved(InferConfig(**options), target)
    check_options(config)
    device = pick_device(config.device)
    probe(config, target, device)
    players = make_players(config, target, None, device)
    first = first_round(config)
    for round_ in tqdm(range(first, last_round(config)), disable=not progress, unit="step"):
        if not all(map(math.isfinite, play_round(players, config, round_).values())):
            raise not_finite(players, config, round_ - warmup_rounds(config), "")
    return players.ema


def first_round(config: InferConfig) -> int:
    """Rounds are numbered with the fake scores' warm-up, which not all objectives have."""
    return 0 if has_fake_scores(config) else warmup_rounds(config)


def last_round(config: InferConfig) -> int:
    return warmup_rounds(config) + config.steps if config.steps else first_round(config)


def load(folder: str | Path) -> Family:
    """The layers of a run's folder."""
    info = read_info(Path(folder))
    family = Family(info["dim"], InferConfig(**info["config"]))
    family.load_state_dict(read_tensors(Path(folder) / "model.safetensors"))
    return family.requires_grad_(False)


def read_info(out: Path) -> dict:
    try:
        info = json.loads((out / "infer.json").read_text())
        names = {item.name for item in fields(InferConfig)}
        if {"target", "dim", "config", "step", "cpu_seconds"} <= info.keys() and (
            info["config"].keys() <= names
        ):
            return info
        reason = "it describes no run of this version"
    except (OSError, ValueError, AttributeError) as error:
        reason = error
    raise HsiviError(f"{out / 'infer.json'} cannot be used ({reason}): choose another folder")


def run(config: InferConfig, name: str, dim: int | None, out: Path) -> None:
    """Train, or go on training, the layers in the folder `out`; draw, sum up and plot."""
    begin = (time.monotonic(), time.process_time())
    device = pick_device(config.device)
    target = load_target(name, dim)
    config = resolved(config, target)
    if config.compare:
        for package in ("arviz", "nutpie"):
            quietly(package)
    about = {"target": name, "dim": target.dim}
    with holding(out):
        learn(config, about, target, device, out, begin)


def learn(
    config: InferConfig,
    about: dict,
    target,
    device: torch.device,
    out: Path,
    begin: tuple[float, float],
) -> None:
    """`run`, once the target and the folder are there.

    about  the target's name and dim
    begin  the two clocks at its start
    """
    probe(config, target, device)
    about = about | {"fingerprint": fingerprint(target, device)}
    earlier = check_out(out, config, about)
    state = {"round": first_round(config), "seconds": 0.0, "cpu_seconds": 0.0}
    resumed = load_checkpoint(out / "checkpoint") if earlier else None
    if resumed:
        with usable(out / "checkpoint"):
            frame = (resumed[0]["family.centre"], resumed[0]["family.factor"])
            players = make_players(config, target, frame, device)
            state = restore(players, *resumed)
    else:
        players = make_players(config, target, None, device)
    before, cpu_before = state["seconds"], state["cpu_seconds"]
    warmup, last = warmup_rounds(config), last_round(config)

    def save(step: int) -> None:
        state["seconds"] = before + time.monotonic() - begin[0]
        state["cpu_seconds"] = cpu_before + time.process_time() - begin[1]
        save_checkpoint(out / "checkpoint", state["round"], snapshot(players), state)
        export(out, players.ema, config, about, step, state)

    sweep(out)  # check_out has found it to be a run's
    export(out, players.ema, config, about, max(0, state["round"] - warmup), state)
    trim(out / "metrics.jsonl", state["round"] - warmup)
    done = max(0, state["round"] - warmup)
    steps = tqdm(total=config.steps, initial=done, unit="step", disable=None)
    with Interrupt() as interrupt, steps as bar:
        for round_ in range(state["round"], last):
            step = round_ - warmup + 1  # updates made when this round is over
            measured = play_round(players, config, round_)
            if not all(map(math.isfinite, measured.values())):
                raise not_finite(players, config, step, out)
            state["round"] = round_ + 1
            if step > 0:
                with writing(out):
                    append(out / "metrics.jsonl", {"step": step} | measured)
                bar.set_description(
                    f"divergence {measured.get('divergence_1', 0):.3g}", refresh=False
                )
                bar.update()
            over_time = config.minutes and time.monotonic() - begin[0] > 60 * config.minutes
            stop = bool(interrupt.number or over_time)
            if stop or round_ + 1 == last or (step > 0 and step % config.checkpoint_every == 0):
                save(max(0, step))
            if stop and round_ + 1 < last:
                say(
                    f"stopped and saved at step {max(0, step)} of {config.steps}; to go on, type "
                    f"the same line again:\n  {command_line()}"
                )
                if interrupt.number:
                    sys.exit(128 + interrupt.number)
                return
    report(out, players, config, target)
    if config.compare:
        compare(out, players.ema, config, about["target"], target, state["cpu_seconds"])
    elif done < config.steps:  # it compares samples that are no more
        for file in ("compare.json", "compare.png"):
            remove(out / file)
    say(f"{out}: {config.layers} layers, {config.steps} steps, {state['seconds'] / 60:.1f} minutes")


def not_finite(players: Players, config: InferConfig, step: int, out: Path | str) -> HsiviError:
    """What to say of a loss that is not finite: the target's own fault first."""
    for k, x in enumerate(players.ema.marginals(1000)[:-1]):
        players.bridge.score(x, k)
        check_density(players.bridge.log_prob(x, k), x)
    found = checkpoints(Path(out) / "checkpoint") if out else []
    kept = f"{found[-1]} is the last good state" if found else "there was no checkpoint yet"
    return HsiviError(
        f"the loss is not finite at step {max(0, step)}; {kept}. Begin anew with a lower "
        "--student-rate or --fake-rate, more --layers, or a larger --start-scale"
    )


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
    check_resumable(out, info, config)
    return True


# ---- checkpoints ---------------------------------------------------------------------------------

MODULES = ("family", "ema", "fake_scores")


def snapshot(players: Players) -> dict[str, Tensor]:
    """Everything that changes in training, as named tensors."""
    tensors = module_tensors(players, MODULES)
    tensors |= optimizer_tensors(players.optimizer, "optimizer")
    return tensors | optimizer_tensors(players.fake_optimizer, "fake_optimizer")


def restore(players: Players, tensors: dict[str, Tensor], state: dict) -> dict:
    """The inverse of `snapshot`. Returns the state that lay beside the tensors."""
    state = {"round": int(state["round"])} | {
        key: float(state[key]) for key in ("seconds", "cpu_seconds")
    }
    load_modules(players, MODULES, tensors)
    load_optimizer(players.optimizer, "optimizer", tensors)
    load_optimizer(players.fake_optimizer, "fake_optimizer", tensors)
    return state


# ---- what is written -----------------------------------------------------------------------------


def export(
    out: Path, family: Family, config: InferConfig, about: dict, step: int, state: dict
) -> None:
    """model.safetensors and infer.json. `about` is the target's name, dim and fingerprint."""
    info = {
        "format": 1,
        "hsivi": __version__,
        **about,
        "config": asdict(config),
        "step": step,
        "seconds": round(state["seconds"], 1),
        "cpu_seconds": round(state["cpu_seconds"], 2),
    }
    write_json(out / "infer.json", info)  # first: it says whose folder this is
    write_tensors(out / "model.safetensors", family.state_dict())


def write_json(path: Path, content: dict) -> None:
    """A JSON file in which what is not finite is null."""

    def strict(part):
        if isinstance(part, dict):
            return {key: strict(value) for key, value in part.items()}
        if isinstance(part, list):
            return [strict(value) for value in part]
        return None if isinstance(part, float) and not math.isfinite(part) else part

    write_text(path, json.dumps(strict(content), indent=1, allow_nan=False) + "\n")


def report(out: Path, players: Players, config: InferConfig, target) -> None:
    """samples.npz, summary.json, the plots and, where ArviZ is installed, posterior.nc."""
    drawn = players.ema.sample(config.count, config.seed)
    with torch.no_grad():
        check_density(torch.cat([target.log_prob(x) for x in drawn[:2000].split(500)]), drawn)
    samples = drawn.cpu()
    with replacing(out / "samples.npz") as temporary:
        np.savez_compressed(temporary, x=samples.numpy())
    write_json(out / "summary.json", {"step": config.steps} | summary(players, samples, config))
    if samples.shape[1] == 2:
        marginals = players.ema.marginals(config.count, config.seed)
        write_bytes(out / "layers.png", layers_png(marginals, players.bridge.log_prob))
    else:
        write_bytes(out / "pairs.png", pairs_png(samples))
        write_bytes(out / "marginals.png", band_png(samples))
    if importlib.util.find_spec("arviz"):
        write_arviz(out / "posterior.nc", samples)


def write_arviz(path: Path, samples: Tensor) -> None:
    """ArviZ's own netCDF file: one chain of independent draws of x."""
    arviz = quietly("arviz")
    draws = {"x": samples.numpy()[None]}  # chain x draw x coordinate
    old = arviz.__version__.startswith("0.")
    data = arviz.from_dict(posterior=draws) if old else arviz.from_dict({"posterior": draws})
    with replacing(path) as temporary:
        data.to_netcdf(temporary)


def write_bytes(path: Path, data: bytes) -> None:
    with replacing(path) as temporary:
        temporary.write_bytes(data)


EXACT_COUNT = 200_000  # draws of all but NUTS, where there are exact ones: histograms need many


def compare(
    out: Path, family: Family, config: InferConfig, name: str, target, trained: float
) -> None:
    """compare.json, compare.png and a table on stdout: the samples, the nearest Gaussians and NUTS,
    all measured from exact draws where the target has them, else from NUTS. `trained` is the CPU
    seconds that the family took.
    """
    rows, drawn, device = [], {}, family.centre.device
    exact = bool(getattr(target, "draw", None)) or not isinstance(target, Density)
    count = max(config.count, EXACT_COUNT) if exact else config.count

    def timed(label: str, make: Callable):
        began = time.process_time()
        made = make()
        rows.append({"name": label, "cpu_seconds": time.process_time() - began})
        return made

    drawn["hsivi"] = timed("hsivi", lambda: family.sample(count, config.seed)).cpu()
    rows[-1]["cpu_seconds"] += trained
    frames = {}
    for label in ("full-rank", "mean-field"):
        full = label == "full-rank"
        found = timed(label, lambda full=full: best_gaussian(config, target, full, device))
        frames[label] = Affine(target, *found)
        noise = torch.randn(count, target.dim, generator=rng(config.seed, label))
        drawn[label] = frames[label].out(noise.to(device)).cpu()
    frame = frames["full-rank"]
    chains = timed("nuts", lambda: nuts(frame, config.chains, config.draws, config.seed)).cpu()
    drawn["nuts"] = chains.flatten(0, 1)
    truth = nuts_truth(chains)
    own_error = truth.error
    if exact:
        truth = exact_truth(target.sample(count, rng(config.seed, "truth")))
    for row in rows:
        if row["name"] == "nuts":
            row |= diagnosis(chains)
        if row["name"] != truth.kind:
            own = own_error if row["name"] == "nuts" else None
            row |= errors(drawn[row["name"]], truth, own)
    about = {"target": name, "step": config.steps}
    about |= {"truth": truth.kind, "truth_count": len(truth.draws)}
    about |= {"chains": config.chains, "draws": config.draws}
    write_json(out / "compare.json", {"rows": rows, "about": about})
    if target.dim == 2:
        drawn |= {"exact": truth.draws} if exact else {}
        write_bytes(out / "compare.png", densities_png(drawn))
    else:
        write_bytes(out / "compare.png", band_png(drawn["hsivi"], truth.draws))
        write_bytes(out / "pairs.png", pairs_png(drawn["hsivi"], truth.draws))
    print(f"measured from {truth.kind} draws")
    print(table(rows))


def summary(players: Players, samples: Tensor, config: InferConfig) -> dict:
    """Mean, sd and quantiles of each coordinate, and how far the samples are from the target."""
    draws = samples.double()
    sd = draws.std(0) if len(draws) > 1 else torch.zeros(draws.shape[1])
    quantiles = draws.quantile(torch.tensor(LEVELS, dtype=torch.float64), dim=0)
    found = lower_bound(players.ema, players.bridge.target, 2000, 500, config.seed)
    return {
        "count": len(draws),
        "mean": draws.mean(0).tolist(),
        "sd": sd.tolist(),
        "quantiles": {
            f"{level:g}": row.tolist() for level, row in zip(LEVELS, quantiles, strict=True)
        },
        "divergence": found,
    }
