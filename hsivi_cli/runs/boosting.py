"""Layers of trees in training and their run's folder: what is kept of them, and measured on rows
that were held out.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .. import __version__
from ..config import BoostConfig
from ..errors import HsiviError, counted
from ..files.checkpoint import checkpoints
from ..files.folder import check_resumable
from ..files.progress import say
from ..files.run import Plan, Run
from ..files.whole import is_fresh, replacing, write_bytes, write_json, write_text
from ..report.boosted import card
from ..report.calibration import bands_png, calibration_png
from ..tables import scores
from ..tables.layers import Model
from ..tables.learner import Learner
from ..tables.stored import digest_of, read_info
from ..tables.table import Table

SHOWN = 1000  # most rows and draws that a finished run is measured on


def plan_of(config: BoostConfig) -> Plan:
    """A round for f, and then one a layer, which is a step."""

    def step(rounds: int) -> int:
        return max(0, rounds - 1)

    def due(rounds: int) -> bool:
        return step(rounds) > 0 and step(rounds) % config.checkpoint_every == 0

    return Plan(0, config.calls + 1, step, due)


def check_out(out: Path, config: BoostConfig, about: dict) -> bool:
    """Whether the folder holds an earlier part of this very run. Refuses another's.

    about  the table's place and fingerprint
    """
    if is_fresh(out):
        return False
    if not (out / "boost.json").is_file():
        raise HsiviError(f"{out} exists and is no run of hsivi boost: choose another --out")
    info = read_info(out)
    if not info["step"] and not checkpoints(out / "checkpoint"):
        return False  # it stopped before anything was kept: nothing binds its settings
    if info["fingerprint"] != about["fingerprint"]:
        raise HsiviError(
            f"{out} learned another table ({info['table']}, or its rows and --target of then): "
            "choose another --out"
        )
    check_resumable(out, info, config)
    return True


def to_tensor(text: str) -> Tensor:
    """A text's bytes in UTF-8."""
    return torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)


@dataclass
class Boosting:
    """Layers in training and their run's folder (files.run.Trained)."""

    out: Path
    about: dict
    learner: Learner

    def play(self, round_: int) -> dict[str, float]:
        """f in round 0, then the layers from K down."""
        if not round_:
            return self.learner.learn_prior()
        return self.learner.learn_layer(self.learner.model.config.calls + 1 - round_)

    def tensors(self) -> dict[str, Tensor]:
        model = self.learner.model
        texts = {f"text.{name}": to_tensor(text) for name, text in model.texts.items()}
        return {"factor": torch.as_tensor(model.factor)} | texts

    def load(self, tensors: dict[str, Tensor], state: dict) -> None:
        model = self.learner.model
        texts = {
            name.removeprefix("text."): bytes(tensor.numpy()).decode()
            for name, tensor in tensors.items()
            if name.startswith("text.")
        }
        if state["round"] and "prior-0-0" not in texts:
            raise HsiviError("it holds no trees")
        model.texts, model.factor = texts, tensors["factor"].numpy()

    def export(self, run: Run) -> None:
        """boost.json, trees/ and README.md."""
        table, model = self.learner.table, self.learner.model
        info = {
            "format": 1,
            "hsivi": __version__,
            **self.about,
            "rows": len(table.x),
            "inputs": [asdict(column) for column in table.inputs],
            "targets": [asdict(column) for column in table.targets],
            "centre": model.centre.tolist(),
            "scale": model.scale.tolist(),
            "factor": model.factor.tolist(),
            "config": asdict(model.config),
            "step": run.step,
            "seconds": round(run.state["seconds"], 1),
            "cpu_seconds": round(run.state["cpu_seconds"], 2),
        }
        info["digest"] = digest_of(info, model.texts)
        write_json(self.out / "boost.json", info)  # first: it says whose folder this is
        with replacing(self.out / "trees") as temporary:
            temporary.mkdir()
            for name, text in model.texts.items():
                (temporary / f"{name}.txt").write_text(text, encoding="utf-8")
        write_text(self.out / "README.md", card(info, self.out))

    def words(self, measured: dict[str, float], run: Run) -> str:
        if not run.step:
            return f"f leaves {measured['left']:.3g} of the target's sd"
        return f"layer {run.step} of {run.config.calls}, loss {measured['loss']:.3g}"

    def fault(self) -> str | None:
        """Trees of finite numbers are finite."""

    def not_finite(self, what: str, round_: int, kept: str) -> HsiviError:
        return HsiviError(f"{what} at layer {round_}; {kept}. Scale the target's column")


def report(out: Path, model: Model, held: Table, config: BoostConfig) -> None:
    """summary.json, calibration.png and bands.png, of rows that were held out; a line on stderr."""
    rows = slice(0, SHOWN)
    drawn = np.concatenate([*model.sample(held.x[rows], SHOWN, config.seed)])
    y = held.y[rows]
    if held.classes:
        found = {held.targets[0].name: scores.of_classes(drawn, y)}
        drawn, names = scores.class_shares(drawn), held.classes
    else:
        names = [column.name for column in held.targets]
        found = {n: scores.of_numbers(drawn[..., d], y[:, d]) for d, n in enumerate(names)}
        write_bytes(out / "bands.png", bands_png(drawn, y, names))
    write_json(out / "summary.json", {"rows": len(y), "scores": found})
    write_bytes(out / "calibration.png", calibration_png(drawn, y, names))
    for name, each in found.items():
        told = ", ".join(f"{key} {value:.3g}" for key, value in each.items())
        say(f"{name}, {counted(len(y), 'row')} held out: {told}")
