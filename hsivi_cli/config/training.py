"""`hsivi train`: its settings. The defaults of a number of calls, and presets: recipe.py."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..errors import HsiviError
from .options import (
    CLIPS,
    COUNTS,
    DATA_ROOT,
    DETECTOR,
    DETECTOR_WEIGHTS,
    DTYPES,
    RATES,
    flag_of,
    option,
    parse_numbers,
)
from .run import RunConfig

OWN = "teacher"  # of --reference: images that the teacher itself draws
NARROWEST, WIDEST = 0.5, 2.0  # of --top-sd


@dataclass(frozen=True)
class TrainConfig(RunConfig):
    """`hsivi train`: the method's settings and the run's. The defaults are the recipe that measured
    best.
    """

    # the chain
    nfe: str = option(
        "4", "network calls of the student (K); several, as in 2,4,8, for one student of all"
    )
    grid: str = option(
        "auto", "times: auto, quad, uniform, log-snr, or K+1 rising times such as 0,300,650"
    )
    grid_top: int | None = option(
        None, "the last time of the grid, in place of its own rule", least=1, below=COUNTS
    )
    start: str = option(
        "ddim",
        "what the layers are before training: ddim, a solver with spacing, or auto for the best",
    )
    clip_x0: str = option(
        "auto",
        "keep every network's x0 in range; auto: as the teacher's pipeline does, if that matters",
        choices=CLIPS,
    )
    fit_steps: int = option(
        0,
        "updates that fit the start's coefficients to the teacher's images, before training",
        least=0,
        below=COUNTS,
    )
    regress_steps: int = option(
        0,
        "updates of regression on the teacher's own paths, before distilling",
        least=0,
        below=COUNTS,
    )
    regress_rate: float = option(
        3e-4, "the student's learning rate in --regress-steps", above=0, below=RATES
    )
    noise_share: str = option(
        "1",
        "s0/sigma of each layer in [0, 1]: one, K from layer 1 up, eta:0.2, or own: the start's",
    )
    top_sd: str = option(
        "1",
        "sd of the x_K that a student draws from, once trained; auto: 1, of x0 and v teachers 1.03",
    )
    log_scale: str = option(
        "frozen",
        "what the trained noise scale is",
        choices=("frozen", "scalar", "layer", "pixel"),
    )

    # the objective
    objective: str = option(
        "reverse-kl",
        "the student's loss; auto: reverse-kl, of v teachers score-matching",
        choices=("reverse-kl", "score-matching", "auto"),
    )
    a: float = option(
        0.5, "score-matching's a: 0.5 is HSIVI-SM, 1 to 1.2 SiD", least=-100, below=100
    )
    weight: str = option(
        "flat",
        "weight of a level in the student's loss; output: that of what the network predicts",
        choices=("flat", "sigma2", "ratio", "sid", "output"),
    )
    fake_weight: str = option(
        "output",
        "weight of a level in the fake score's loss; output: flat in what the network predicts",
        choices=("flat", "sigma2", "ratio", "output"),
    )
    levels: str = option(
        "segment",
        "where a layer is judged: its own segment of levels, all above it, or its own level",
        choices=("segment", "above", "own"),
    )
    level_power: float = option(
        1.0,
        "levels are low + (high - low) u^power, u uniform: above 1 the low ones come more often",
        above=0,
        below=1000,
    )
    adversarial: float = option(
        0.0,
        "share of the student's loss that real images judge, by the fake score's encoder; 0: none",
        least=0,
        below=1,
    )
    fake_adversarial: float = option(
        1.0,
        "what telling real from drawn images weighs in the fake score's loss",
        above=0,
        below=RATES,
    )
    adversarial_after: int = option(
        0,
        "images that the student learns from before --adversarial joins in",
        least=0,
        below=COUNTS,
    )
    data: str | None = option(
        None,
        "real images for --adversarial: a folder, an .npz, or a data set such as cifar10-train",
        run_only=True,
    )
    flip: bool = option(
        False, "mirror the images of --data, each half of the times that it is drawn"
    )
    fake_score: str = option(
        "auto",
        "whether the fake score is told which layer it judges; auto: where layers share levels",
        choices=("auto", "told", "shared"),
    )

    # the optimisation
    steps: int = option(
        300,
        "steps (student updates) in all; 0 writes the untrained or regressed student",
        least=0,
        below=COUNTS,
    )
    batch_size: int = option(32, "samples per update, over all devices", least=1, below=COUNTS)
    accumulate: int = option(
        1, "split each update's batch into this many parts, to save memory", least=1, below=COUNTS
    )
    optimizer: str = option("adam", "the optimizer of both", choices=("adam", "adamw", "amsgrad"))
    fake_beta1: float = option(0.9, "Adam's beta1 for the fake score", least=0, below=1)
    dtype: str = option(
        "float32",
        "networks' precision; auto: bfloat16 where a GPU has it; losses and weights stay float32",
        choices=("auto", *DTYPES),
    )

    init: str | None = option(
        None, "begin with another run's student (and fake score) of the same teacher"
    )

    # the run
    checkpoint_activations: bool = option(
        False,
        "make activations again for a backward pass, not keep them: memory for a third more time",
        run_only=True,
    )
    compile: str = option(
        "auto",
        "on a GPU capture steps as CUDA graphs and compile: on; auto, where it pays; off, neither",
        choices=("auto", "off", "on"),
        run_only=True,
    )
    reference: str = option(
        OWN,
        "judge by the teacher's own images; or by statistics, images or a data set; or by none",
        run_only=True,
    )
    data_root: str | None = option(None, DATA_ROOT, run_only=True)
    detector: str | None = option(
        None,
        DETECTOR + "the reference's own",
        run_only=True,
    )
    detector_weights: str | None = option(None, DETECTOR_WEIGHTS, run_only=True)
    eval_every: int = option(100, "steps between evaluations", run_only=True, least=1, below=COUNTS)
    eval_count: int = option(500, "images of an evaluation", run_only=True, least=2, below=COUNTS)
    log_with: str | None = option(
        None, "also log to tensorboard or wandb", choices=("tensorboard", "wandb"), run_only=True
    )

    def __post_init__(self):
        """Refuse values that mean nothing, and settings that exclude one another."""
        super().__post_init__()
        object.__setattr__(self, "nfe", ",".join(map(str, self.budgets)))  # 04 is 4
        if len(self.budgets) > 1:
            for flag, text in (("--grid", self.grid), ("--noise-share", self.noise_share)):
                if "," in text:
                    raise HsiviError(
                        f"{flag} {text} has a number a layer, which cannot suit --nfe {self.nfe} "
                        "at once: name a rule, or train a student for each"
                    )
            if self.log_scale != "frozen":
                raise HsiviError(
                    f"--log-scale {self.log_scale} is one budget's own: keep it frozen, or give "
                    f"--nfe one number, not {self.nfe}"
                )
        for name in ("grid", "grid_top") if self.start not in ("ddim", "auto") else ():
            if (value := getattr(self, name)) != getattr(TrainConfig, name):
                raise HsiviError(
                    f"{flag_of(name)} {value} is for --start ddim: {self.start} has its own times"
                )
        if self.own_top_sd is not None:
            object.__setattr__(self, "top_sd", f"{self.own_top_sd:g}")  # 1.0 is 1
        if self.grid_top is not None and "," in self.grid:
            raise HsiviError(
                f"--grid-top {self.grid_top} is for the rules of --grid: {self.grid} names its own "
                "last time"
            )
        if self.adversarial and self.data is None:
            raise HsiviError(
                f"--adversarial {self.adversarial:g} needs real images: name them by --data"
            )
        for name in ("data", "flip") if not self.adversarial else ():
            if getattr(self, name):
                raise HsiviError(
                    f"{flag_of(name)} is for --adversarial, which is 0: give a share of the loss, "
                    "or --preset sida"
                )
        for name in ("detector", "detector_weights") if self.reference == "none" else ():
            if value := getattr(self, name):
                raise HsiviError(
                    f"{flag_of(name)} {value} scores nothing with --reference none: give another, "
                    "or leave it out"
                )

    @property
    def budgets(self) -> list[int]:
        """The numbers of calls of --nfe."""
        found = parse_numbers(self.nfe, "--nfe")
        if len(set(found)) < len(found):
            raise HsiviError(f"--nfe {self.nfe} names a number of calls twice")
        return found

    @property
    def own_top_sd(self) -> float | None:
        """The number of --top-sd, None for auto."""
        if self.top_sd == "auto":
            return None
        try:
            sd = float(self.top_sd)
        except ValueError:
            sd = math.nan
        if not NARROWEST <= sd <= WIDEST:  # NaN is not either
            raise HsiviError(
                f"--top-sd {self.top_sd:.80} is neither auto nor a number from {NARROWEST:g} to "
                f"{WIDEST:g}"
            )
        return sd

    @property
    def layer_count(self) -> int:
        """Layers of the longest chain."""
        return max(self.budgets)

    @property
    def conditions_layers(self) -> bool:
        """Whether the fake score is told its layer."""
        several = len(self.budgets) > 1 or (self.levels == "above" and self.budgets != [1])
        return self.fake_score == "told" or (self.fake_score == "auto" and several)
