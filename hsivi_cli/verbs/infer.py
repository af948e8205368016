"""`hsivi infer`: sample a density by K semi-implicit layers.

In Python, with any torch function of [B, dim] -> [B]:

    from hsivi_cli.density.fit import fit
    family = fit(log_prob, dim=3, layers=4, objective="lb", steps=1000)
    x = family.sample(10_000)

and `load(folder)` gives the family of a run. A run's folder holds model.safetensors (the averaged
layers), infer.json (what they are), samples.npz, summary.json, plots and, where ArviZ is installed,
posterior.nc; beside them metrics.jsonl and checkpoint/ as in training, and with --compare what
other methods make of the target. The same command again goes on where the last checkpoint was,
and with more --steps beyond the end.
"""

from __future__ import annotations

import math
import time
from pathlib import Path

import torch

from ..config import InferConfig
from ..density import halves
from ..density.family import Family
from ..density.fit import check_target
from ..density.named import fingerprint, load_target, probe
from ..density.networks import make_networks, resolved
from ..density.packages import quietly
from ..density.rounds import play_round
from ..density.stored import read_info
from ..density.targets import Target
from ..files.device import pick_device
from ..files.folder import holding
from ..files.logs import trim
from ..files.progress import say
from ..files.run import Run, until_done
from ..files.whole import read_tensors, remove, sweep
from ..runs.inference import Inference, check_out, compare, most, plan_of, report


def load(folder: str | Path) -> Family:
    """The layers of a run's folder."""
    info = read_info(Path(folder))
    family = Family(info["dim"], InferConfig(**info["config"]))
    family.load_state_dict(read_tensors(Path(folder) / "model.safetensors"))
    return family.requires_grad_(False)


def run(config: InferConfig, name: str, dim: int | None, out: Path) -> None:
    """Train, or go on training, the layers in the folder `out`; draw, sum up and plot."""
    begin = (time.monotonic(), time.process_time())
    device = pick_device(config.device)
    target = load_target(name, dim)
    config = resolved(config, target)
    if config.compare:
        for package in ("arviz", "nutpie", "zuko"):
            quietly(package)
    about = {"target": name, "dim": target.dim}
    with holding(out):
        until_done(lambda clocks: learn(config, about, target, device, out, clocks), begin)


def learn(
    config: InferConfig, about: dict, target: Target, device: torch.device, out: Path, begin: tuple
) -> None:
    """`run`, once the target and the folder are there.

    about  the target's name and dim
    begin  the two clocks at its start
    """
    probe(config, target, device)
    about = about | {"fingerprint": fingerprint(target, device)}
    earlier = check_out(out, config, about)
    inference = Inference(out, config, about, target, device)
    state = {"marks": []} if config.auto else {}
    run = Run(out, config, inference, plan_of(config), earlier, begin=begin, **state)
    if not run.resumed:
        inference.networks = make_networks(config, target, None, device)
    sweep(out)  # check_out has found it to be a run's
    inference.export(run)
    trim(out / "metrics.jsonl", run.step)
    done = run.step
    for round_ in run.rounds():
        if halves.settled(run.state.get("marks", []), config.patience):
            break
        measured = play_round(inference.networks, halves.part_at(run.settings, run.step), round_)
        if not all(map(math.isfinite, measured.values())):
            check_target(inference.networks)  # its fault would come again
        run.record(measured)
        if config.auto and run.step in halves.marks(config):
            run.state["marks"].append(halves.measure(inference.networks, config, run.step))
    if run.stopped:
        run.leave(f"at step {run.step} of {most(config)}")
        return
    report(out, inference.networks, config, target, run)
    if config.compare:
        spent = run.state["cpu_seconds"]
        compare(out, inference.networks.ema, config, about["target"], target, spent)
    elif done < run.step:  # it compares samples that are no more
        for file in ("compare.json", "compare.png"):
            remove(out / file)
    minutes = run.state["seconds"] / 60
    say(f"{out}: {config.layers} layers, {run.step} steps, {minutes:.1f} minutes")
