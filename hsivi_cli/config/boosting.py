"""`hsivi boost`: settings."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from .options import COUNTS, SEEDS, Options, option, option_like
from .run import RunConfig

TREES, RATE = 20, 0.1  # of a layer, where few layers do the work of many
ALL_TREES = 200  # of all layers, which few layers stay below and many do not
FEW = 100  # calls up to which a layer's variance is worth trees of its own
MANY = 100_001  # above all that is sensible of what takes memory or time alike
MATCH, MATCHED = 5, 20  # trees that match a marginal, and calls up to which it pays
DRAWING = ("predict", "draws", "seed", "threads")  # the options of drawing
BOOST_OUT = (
    "the run's folder, where the same command again resumes; default: runs/TABLE-CALLS. With "
    "--predict a .csv, or an .npz of all draws; default: stdout"
)


@dataclass(frozen=True)
class BoostConfig(Options):
    """`hsivi boost`: p(y given x) of a table, by K layers of boosted trees."""

    calls: int = option(
        10, "layers (K): ensembles of trees; from 200 up a tree each", least=1, below=MANY
    )
    classes: bool = option(False, "the target's values are classes even where they are numbers")
    categories: str | None = option(
        None,
        "columns of numbers that are categories, separated by commas; text always is",
    )

    # the trees
    trees: int | None = option(
        None,
        "trees of an ensemble; default: 200 / calls, at least 1 and at most 20",
        least=1,
        below=MANY,
    )
    rate: float | None = option(
        None, "how much of a tree is added; default: 2 / trees, at most 1", above=0, below=1.01
    )
    leaves: int = option(15, "most leaves of a tree", least=2, below=MANY)
    min_rows: int = option(
        20, "fewest rows of the table in a leaf of a layer's tree", least=1, below=COUNTS
    )
    repeats: int = option(10, "noises that each row is seen with in a layer", least=2, below=MANY)
    prediction_type: str = option(
        "v_prediction",
        "what trees predict: y itself, its noise, or what the best Gaussian lacks",
        choices=("sample", "epsilon", "v_prediction"),
    )
    variance: str = option(
        "auto",
        "a layer's variance: learned, or the posterior's, y known; auto: learned up to 100 calls",
        choices=("auto", "learned", "posterior"),
    )
    match: int | None = option(
        None,
        "further trees that match a layer's marginal on drawn states; default: 5 up to 20 calls",
        least=0,
        below=MANY,
    )
    held_out: float = option(
        0.1, "part of the rows that is kept from training, to measure on", least=0, below=0.9
    )

    # drawing
    predict: str | None = option(
        None, "a table to draw the target for, by the run named before it", run_only=True
    )
    draws: int = option(
        1000, "draws of each row of --predict", run_only=True, least=1, below=COUNTS
    )

    # the run
    seed: int = option(0, "decides everything random", least=0, below=SEEDS)
    threads: int = option(
        0,
        "threads of LightGBM; 0: OMP_NUM_THREADS, or all cores",
        run_only=True,
        least=0,
        below=MANY,
    )
    minutes: float | None = option_like(RunConfig, "minutes", None)
    checkpoint_every: int | None = option(
        None,
        "layers between checkpoints; default: a twentieth of them",
        run_only=True,
        least=1,
        below=COUNTS,
    )
    on_nan: ClassVar[str] = "stop"  # what files.run asks: trees of finite numbers are finite

    @property
    def learns_variance(self) -> bool:
        return self.variance == "learned" or (self.variance == "auto" and self.calls <= FEW)


def decided(config: BoostConfig) -> BoostConfig:
    """Every default that depends on other settings filled in."""
    trees = config.trees or min(TREES, max(1, ALL_TREES // config.calls))
    return replace(
        config,
        trees=trees,
        rate=config.rate or min(1.0, TREES * RATE / trees),
        match=config.match if config.match is not None else MATCH * (config.calls <= MATCHED),
        checkpoint_every=config.checkpoint_every or max(1, config.calls // 20),
    )
