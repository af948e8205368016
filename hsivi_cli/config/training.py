"""`hsivi train`: settings, the defaults of a number of calls, and presets."""

from __future__ import annotations

from dataclasses import dataclass, fields

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
        "s0/sigma of each layer in [0, 1]: one number, K numbers from layer 1 up, or eta:0.2",
    )
    log_scale: str = option(
        "frozen",
        "what the trained noise scale is",
        choices=("frozen", "scalar", "layer", "pixel"),
    )

    # the objective
    objective: str = option(
        "reverse-kl",
        "the student's loss: reverse-kl or score-matching",
        choices=("reverse-kl", "score-matching"),
    )
    a: float = option(
        0.5, "score-matching's a: 0.5 is HSIVI-SM, 1 to 1.2 SiD", least=-100, below=100
    )
    weight: str = option(
        "flat",
        "weight of a level in the student's loss",
        choices=("flat", "sigma2", "ratio", "sid"),
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
    def layer_count(self) -> int:
        """Layers of the longest chain."""
        return max(self.budgets)

    @property
    def conditions_layers(self) -> bool:
        """Whether the fake score is told its layer."""
        several = len(self.budgets) > 1 or (self.levels == "above" and self.budgets != [1])
        return self.fake_score == "told" or (self.fake_score == "auto" and several)


# defaults of single budgets where they differ from those above (docs/results.md). Up to three calls
# regression comes first, where solvers are poor; at one, distillation was seen to undo what it
# learns. From four up the best solver is near, and a small share at a small rate keeps what it has
REGRESSED = {
    1: {"regress_steps": 6000, "steps": 0},
    2: {"regress_steps": 2000, "student_rate": 1e-5, "steps": 200},
    3: {"regress_steps": 2000, "student_rate": 1e-5, "steps": 200},
}
SOLVER_IS_NEAR = 4  # calls
SOLVED = {"start": "auto", "noise_share": "0.2", "student_rate": 1e-5, "steps": 200}
# who chooses one of these, chooses another chain, which has the defaults above
CHAIN_OPTIONS = {"start", "noise_share", "grid", "grid_top", "regress_steps", "levels"}
RECIPE = CHAIN_OPTIONS | SOLVED.keys()  # all that differs by the number of calls
PLANNED = {"steps", "regress_steps"}  # what --minutes decides where nobody names it


def is_one(share: str) -> bool:
    """Whether a --noise-share is 1 in every layer, however it is spelt."""
    try:
        return all(float(word) == 1 for word in share.split(","))
    except ValueError:  # not numbers; its own check says so
        return False


def of_nfe(chosen: dict) -> dict:
    """The defaults of the number of calls, where it is one, beside what a user chose."""
    budgets = parse_numbers(chosen.get("nfe", TrainConfig.nfe), "--nfe")
    if len(budgets) > 1:
        return {}
    if found := REGRESSED.get(budgets[0]):
        fits = is_one(chosen.get("noise_share", "1")) and chosen.get("regress_steps") != 0
        return found if fits else {}
    return SOLVED if budgets[0] >= SOLVER_IS_NEAR and not CHAIN_OPTIONS & chosen.keys() else {}


def settings_of(chosen: dict, by_nfe: bool = True) -> dict:
    """Every setting of a training by name: what a user chose, over the defaults.

    by_nfe  whether defaults are those of the number of calls: not beside a preset
    """
    plain = {item.name: item.default for item in fields(TrainConfig)}
    return plain | (of_nfe(chosen) if by_nfe else {}) | chosen


def choices_in(settings: dict, chosen: dict) -> dict:
    """The fewest settings of which `settings_of` makes these: the number of calls, and what
    differs from its defaults.

    chosen  what a user, or a preset, chose among them
    """
    kept = {"nfe": settings["nfe"]} | chosen
    found = settings_of(kept)
    kept |= {name: value for name, value in settings.items() if found[name] != value}
    for names in (RECIPE, *({name} for name in kept if name != "nfe")):
        fewer = {name: value for name, value in kept.items() if name not in names}
        if settings_of(fewer) == settings:
            kept = fewer
    return kept


def pinned(read: dict, typed: dict) -> list[str]:
    """The defaults that a --config file holds of another number of calls than was typed, each with
    the one whose place it takes.
    """
    if "nfe" not in read or "nfe" not in typed:
        return []
    then, now = (settings_of({"nfe": part["nfe"]}) for part in (read, typed))
    return [
        f"{flag_of(name)} {read[name]} (not {now[name]})"
        for name in sorted(RECIPE & read.keys() - typed.keys())
        if read[name] == then[name] != now[name]
    ]


# score identity distillation, one call
SID = {
    "nfe": "1", "grid_top": 440, "objective": "score-matching", "a": 1.0, "weight": "sid",
    "levels": "above", "steps": 10_000, "batch_size": 256, "fake_updates": 1, "fake_warmup": 0,
    "student_rate": 1e-5, "fake_rate": 1e-5, "decay": "none", "fake_beta1": 0.0, "ema": 0.999,
    "fake_weight": "flat", "clip_x0": "off",
}  # fmt: skip
PRESETS = {
    "default": {},
    # the paper's CIFAR-10 settings; its 200,000 fake-score updates are 10,000 student updates
    "hsivi": {
        "nfe": "10", "grid": "quad", "noise_share": "eta:0.2", "log_scale": "pixel",
        "objective": "score-matching", "a": 0.5, "weight": "sigma2", "fake_weight": "sigma2",
        "levels": "own", "steps": 10_000, "batch_size": 128, "fake_updates": 20, "fake_warmup": 0,
        "student_rate": 1.6e-5, "fake_rate": 8e-5, "rate_warmup": 125, "optimizer": "amsgrad",
        "student_beta1": 0.9, "ema": 0.999, "clip_x0": "off",
    },
    "sid": SID,
    # with real images [SiDA]; its average's half-life is half a million images
    "sida": {name: value for name, value in SID.items() if name != "grid_top"} | {
        "levels": "segment", "adversarial": 0.5, "fake_warmup": 400, "adversarial_after": 100_000,
        "ema": 0.99965,
    },
}  # fmt: skip
