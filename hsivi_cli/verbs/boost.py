"""`hsivi boost`: p(y given x) of a table by K layers of boosted trees, and draws from it.

A run's folder holds trees/ (LightGBM's own text files), boost.json (what they are of, and all that
drawing needs beside them), README.md, metrics.jsonl and checkpoint/ as in training, and where rows
were held out summary.json, calibration.png and bands.png of them. The same command again goes on
where the last checkpoint was. `load(folder)` gives the model.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from ..config import BoostConfig, decided
from ..density.packages import quietly
from ..errors import HsiviError, counted
from ..files.digest import digest
from ..files.folder import holding
from ..files.logs import trim
from ..files.outputs import DRAWS, SUMMARIES, check_output, write_npz
from ..files.progress import Bar, say
from ..files.run import Run
from ..files.whole import sweep, write_text
from ..method.steps import rng
from ..report.boosted import how_to_draw
from ..report.drawn import csv_of
from ..runs.boosting import Boosting, check_out, plan_of, report
from ..tables.learner import Learner
from ..tables.stored import load
from ..tables.table import Column, Table, encode, read_cells, read_table, unknown_words

LEAST_ROWS = 10


# ---- learning ------------------------------------------------------------------------------------


def run(config: BoostConfig, path: Path, targets: Sequence[str], out: Path) -> None:
    """Learn, or go on learning, the layers in the folder `out`."""
    begin = (time.monotonic(), time.process_time())
    if out.is_file():
        raise HsiviError(f"--out {out} is a file: name a folder for the run")
    quietly("lightgbm", "boost")
    named = [name.strip() for name in (config.categories or "").split(",") if name.strip()]
    table = read_table(path, tuple(dict.fromkeys(targets)), named, config.classes)
    kept, held = split(table, config)
    check_rows(path, kept, config)
    config = decided(config)
    about = {"table": str(path), "fingerprint": fingerprint(table)}
    with holding(out):
        learn(config, about, kept, held, out, begin)


def split(table: Table, config: BoostConfig) -> tuple[Table, Table]:
    """The rows to learn from, and those that are held out."""
    order = torch.randperm(len(table.x), generator=rng(config.seed, "held out")).numpy()
    held = int(config.held_out * len(order))
    return table.rows(np.sort(order[held:])), table.rows(np.sort(order[:held]))


def check_rows(path: Path, kept: Table, config: BoostConfig) -> None:
    """Refuse rows from which nothing can be learned, those of `path` that are not held out."""
    if len(kept.x) < max(config.leaves, LEAST_ROWS):
        raise HsiviError(
            f"{path} has {counted(len(kept.x), 'row')} to learn from, fewer than a tree has leaves "
            f"(--leaves {config.leaves}) or than {LEAST_ROWS}: more rows are needed"
        )
    same = (kept.y == kept.y[0]).all(0)
    if same.all() if kept.classes else same.any():  # a class may be in none of them
        raise HsiviError(
            f"{path} has a target that is the same in all rows that are not held out: choose "
            "another --seed, or --held-out 0"
        )


def fingerprint(table: Table) -> str:
    """A hash of all that is learned from."""
    columns = repr((table.inputs, table.targets))
    return digest(columns, table.x.tobytes(), table.y.tobytes())


def learn(
    config: BoostConfig, about: dict, kept: Table, held: Table, out: Path, begin: tuple
) -> None:
    """`run`, once the table and the folder are there.

    about  the table's place and fingerprint
    """
    earlier = check_out(out, config, about)
    boosting = Boosting(out, about, Learner.new(kept, config))
    run = Run(out, config, boosting, plan_of(config), earlier, begin=begin)
    sweep(out)  # check_out has found it to be a run's
    boosting.export(run)
    trim(out / "metrics.jsonl", run.step)
    for round_ in run.rounds():
        run.record(boosting.play(round_))
    if run.stopped:
        run.leave(f"at layer {run.step} of {config.calls}")
        return
    if len(held.x):
        report(out, boosting.learner.model, held, config)
    minutes = run.state["seconds"] / 60
    say(f"{out}: {counted(config.calls, 'layer')} of {counted(config.trees, 'tree')}, "
        f"{minutes:.1f} minutes\n{how_to_draw(out)}")  # fmt: skip


# ---- drawing -------------------------------------------------------------------------------------


def predict(config: BoostConfig, folder: Path, out: Path | None, force: bool = False) -> None:
    """Draw the target for every row of --predict: into OUT.csv or on stdout a line a row, into
    OUT.npz the draws themselves.

    force  write over a file that holds something else
    """
    quietly("lightgbm", "boost")
    if out and out.suffix not in (".csv", ".npz"):
        raise HsiviError(f"--out {out} must be a .csv file, or an .npz file for the draws")
    kind = DRAWS if out and out.suffix == ".npz" else SUMMARIES
    check_output(out, kind, [config.predict, folder], force)
    model, inputs, targets = load(folder)
    model.trees = replace(model.trees, config=replace(model.config, threads=config.threads))
    cells = read_cells(Path(config.predict))
    x = encode(cells, inputs)
    tell_of_columns(cells, inputs, targets)
    blocks = bar_over(model.sample(x, config.draws, config.seed), len(x))
    if out is None:
        print(csv_of(blocks, targets), end="")
        return
    if kind == DRAWS:
        write_draws(out, np.concatenate(list(blocks)), targets)
    else:
        write_text(out, csv_of(blocks, targets))
    say(f"{out}: {counted(len(x), 'row')}, {counted(config.draws, 'draw')} each")


def tell_of_columns(cells, inputs: Sequence[Column], targets: Sequence[Column]) -> None:
    """Warn of columns and of categories that the run does not know."""
    known = {column.name for column in (*inputs, *targets)}
    if others := [name for name in cells.columns if name not in known]:
        say(f"warning: {cells.path} has columns that the run does not know: {', '.join(others)}")
    for name, words in unknown_words(cells, inputs).items():
        said = ", ".join(words[:5]) + (", ..." if len(words) > 5 else "")
        say(f"warning: column {name} has categories that the run does not know, taken as missing: "
            f"{said}")  # fmt: skip


def bar_over(blocks: Iterator[np.ndarray], rows: int) -> Iterator[np.ndarray]:
    with Bar(total=rows, unit="rows") as bar:
        for block in blocks:
            yield block
            bar.update(len(block))


def write_draws(out: Path, drawn: np.ndarray, targets: Sequence[Column]) -> None:
    """`y` [N, S, D] and the `targets` [D]; of classes their numbers [N, S] and the `classes`."""
    if targets[0].words:
        content = {"y": drawn.argmax(2), "classes": np.array(targets[0].words)}
    else:
        content = {"y": drawn, "targets": np.array([column.name for column in targets])}
    write_npz(out, DRAWS, content, small=True)
