"""What a command is asked to do: frozen dataclasses, presets, and the one error that users see.

A field's `help` is its command-line help: cli.py makes the options from these classes, so an
option, its default and its explanation stand here and nowhere else. Nothing here imports torch, so
that `hsivi --help` is instant.
"""

from __future__ import annotations

import math
import shlex
import sys
from dataclasses import dataclass, field, fields
from pathlib import Path


class HsiviError(Exception):
    """A problem the user can solve: one line that says what is wrong, what was found and what to
    do. Exit status 1.
    """


def weights_folder() -> Path:
    """The embedded teacher, detector, reference and students: beside the package in a wheel, above
    it in a checkout.
    """
    inside = Path(__file__).parent / "weights"
    return inside if inside.is_dir() else Path(__file__).parent.parent / "weights"


def embedded(source: str | Path) -> Path:
    """A path, where "embedded:students/4" and the like name what comes with the package."""
    text = str(source)
    return (
        weights_folder() / text.removeprefix("embedded:")
        if text.startswith("embedded:")
        else Path(source)
    )


def command_line() -> str:
    """What was typed, to type again."""
    return shlex.join(["hsivi", *sys.argv[1:]])


# what several verbs say alike
DEVICE = "cuda, cuda:1, cpu, ...; the default is CUDA where there is one"
DETECTOR = "feature network: inception, fashion-mnist or a folder; default: "
DETECTOR_WEIGHTS = "weights file of the Inception network"
DATA_ROOT = "where torchvision's data sets lie"
DATA_HERE = DATA_ROOT + "; default: data"
MINUTES = "stop after this long, saved and ready to resume"
SEED = "decides everything random"
EMA_RAMP = "ramped up as (1 + step) / (10 + step)"
JOINT = "train all layers together, or one after another from the "
REVISION = "a hub teacher's revision, for example one with EMA weights"
VARIANT = "a teacher's weights variant, such as fp16 or ema"
SUBFOLDER = "a folder within the teacher's"
DTYPES = ("float32", "bfloat16")
ORIGIN = ("revision", "variant", "subfolder")  # of a teacher: which of what lies at its name
RATES = 1e6  # learning rates lie below; Adam's arithmetic ends at some 1e38
SEEDS = 2**62  # seeds of images lie below: torch's generators take 64 bits, and counts come on top


def option(default, help: str, **extra):
    """A dataclass field that cli.py turns into a command-line option.

    Of extra, `choices` are the values there are, and `least`, `above` and `below` bound a number.
    """
    return field(default=default, metadata={"help": help, **extra})


def flag_of(name: str) -> str:
    return "--" + name.replace("_", "-")


def check_options(config) -> None:
    """Refuse values that mean nothing: a choice that there is not, numbers outside the bounds of
    their options, NaN or infinite.
    """
    for item in fields(config):
        value, bounds = getattr(config, item.name), item.metadata
        if value not in (item.default, *bounds.get("choices", (value,))):
            there = ", ".join(bounds["choices"])
            raise HsiviError(f"{flag_of(item.name)} {value} is none of {there}")
        if isinstance(value, bool) or not isinstance(value, int | float):
            continue
        if not math.isfinite(value):
            wrong = "must be a finite number"
        elif value < bounds.get("least", value):
            wrong = f"must be at least {bounds['least']}"
        elif "above" in bounds and value <= bounds["above"]:
            wrong = f"must be above {bounds['above']}"
        elif "below" in bounds and value >= bounds["below"]:
            wrong = f"must be below {bounds['below']}"
        else:
            continue
        raise HsiviError(f"{flag_of(item.name)} {value} {wrong}")


def parse_numbers(text: str, flag: str, least: int = 1) -> list[int]:
    words = text.split(",")
    if not all(word.strip().isdecimal() and int(word) >= least for word in words):
        raise HsiviError(
            f"{flag} {text} must be whole numbers from {least} up, separated by commas"
        )
    return [int(word) for word in words]


@dataclass(frozen=True)
class TrainConfig:
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
    grid_top: int | None = option(None, "the last time of the grid, in place of its own rule")
    start: str = option(
        "ddim",
        "what the layers are before training: ddim, a solver whose times and coefficients they "
        "take (dpm++2, dpm++3, unipc, deis or ipndm, with -linspace, -leading, -trailing, "
        "-karras, -lu, -quad, -log-snr or -auto where it has them), or auto for the one whose "
        "images lie nearest to the teacher's own; unipc-leading for one budget from --nfe 5 up",
    )
    fit_steps: int = option(
        0,
        "before training, fit the start's coefficients and told times to the teacher's own images "
        "by this many updates (300 are enough); with --steps 0 they are all that is trained",
        least=0,
    )
    regress_steps: int = option(
        0,
        "before distilling, updates that teach every call the end of the teacher's own path from "
        "where the call begins; for layers that keep only x0. 6000 at --nfe 1, 640 at 2 and 3, "
        "where that is the only budget",
        least=0,
    )
    regress_rate: float = option(
        3e-4, "the student's learning rate in --regress-steps", above=0, below=RATES
    )
    noise_share: str = option(
        "1",
        "noise share s0/sigma of each layer in [0, 1]: one number, K numbers from layer 1 up, or "
        "eta:0.2 for DDIM's eta; 0.2 for one budget from --nfe 5 up",
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
    a: float = option(0.5, "score-matching's a: 0.5 is HSIVI-SM, 1 to 1.2 SiD")
    weight: str = option(
        "flat",
        "weight of a level in the student's loss",
        choices=("flat", "sigma2", "ratio", "sid"),
    )
    fake_weight: str = option(
        "flat", "weight of a level in the fake score's loss", choices=("flat", "sigma2", "ratio")
    )
    levels: str = option(
        "segment",
        "where a layer is judged: its own segment of levels, all above it, or its own level",
        choices=("segment", "above", "own"),
    )
    level_power: float = option(
        1.0,
        "levels are drawn at low + (high - low) u^power, u uniform: above 1 the low ones are seen "
        "more often",
        above=0,
    )
    fake_score: str = option(
        "auto",
        "whether the fake score is told which layer it judges, of which budget, or shared by all "
        "at a level; auto tells it where levels are those of several layers",
        choices=("auto", "told", "shared"),
    )
    order: str = option(
        "joint",
        JOINT + "top",
        choices=("joint", "sequential"),
    )

    # the optimisation
    steps: int = option(
        300,
        "student updates in all; 0 writes the untrained or regressed student, and is the default "
        "at --nfe 1; for one budget 100 at --nfe 2, 150 at 3, 100 from 5 up",
        least=0,
    )
    batch_size: int = option(32, "samples per update, over all devices", least=1)
    accumulate: int = option(
        1, "split each update's batch into this many parts, to save memory", least=1
    )
    fake_updates: int = option(5, "fake-score updates between two student updates", least=1)
    fake_warmup: int = option(60, "fake-score updates before the first student update", least=0)
    student_rate: float = option(
        3e-5,
        "the student's learning rate; 1e-5 for one budget from --nfe 5 up",
        above=0,
        below=RATES,
    )
    fake_rate: float = option(4e-4, "the fake score's learning rate", above=0, below=RATES)
    rate_warmup: int = option(10, "student updates over which its rate rises", least=0)
    decay: str = option(
        "cosine", "how the student's rate falls, to 0 at --steps", choices=("cosine", "none")
    )
    optimizer: str = option("adam", "the optimizer of both", choices=("adam", "adamw", "amsgrad"))
    student_beta1: float = option(0.0, "Adam's beta1 for the student", least=0, below=1)
    fake_beta1: float = option(0.9, "Adam's beta1 for the fake score", least=0, below=1)
    clip: float = option(1.0, "largest gradient norm, of the loss averaged over elements", above=0)
    ema: float = option(0.98, "decay of the averaged student, " + EMA_RAMP, least=0, below=1)
    seed: int = option(0, SEED)
    dtype: str = option(
        "float32",
        "networks' precision; losses and weights stay float32",
        choices=DTYPES,
    )

    init: str | None = option(
        None, "begin with another run's student (and fake score) of the same teacher"
    )

    # the run
    minutes: float | None = option(None, MINUTES, run_only=True, above=0)
    device: str | None = option(None, DEVICE, run_only=True)
    checkpoint_every: int = option(50, "steps between checkpoints", run_only=True, least=1)
    reference: str | None = option(
        None,
        "statistics, images or data set to score the student against in training",
        run_only=True,
    )
    data_root: str | None = option(None, DATA_ROOT, run_only=True)
    detector: str | None = option(
        None,
        DETECTOR + "the reference's own",
        run_only=True,
    )
    detector_weights: str | None = option(None, DETECTOR_WEIGHTS, run_only=True)
    eval_every: int = option(100, "steps between evaluations", run_only=True, least=1)
    eval_count: int = option(1000, "images of an evaluation", run_only=True, least=2)
    log_with: str | None = option(
        None, "also log to tensorboard or wandb", choices=("tensorboard", "wandb"), run_only=True
    )

    @property
    def budgets(self) -> list[int]:
        """The numbers of calls of --nfe."""
        found = parse_numbers(self.nfe, "--nfe")
        if len(set(found)) < len(found):
            raise HsiviError(f"--nfe {self.nfe} names a number of calls twice")
        return found

    @property
    def tells(self) -> bool:
        """Whether the fake score is told its layer."""
        several = len(self.budgets) > 1 or (self.levels == "above" and self.budgets != [1])
        return self.fake_score == "told" or (self.fake_score == "auto" and several)


# defaults of single budgets where they differ from those above (docs/results.md). Up to three calls
# regression comes first, where solvers are poor; at one, distillation was seen to undo what it
# learns. From five up the best solver is near, and a small share at a small rate keeps what it has
REGRESSED = {
    "1": {"regress_steps": 6000, "steps": 0},
    "2": {"regress_steps": 640, "steps": 100},
    "3": {"regress_steps": 640, "steps": 150},
}
SOLVER_IS_NEAR = 5  # calls
SOLVED = {"start": "unipc-leading", "noise_share": "0.2", "student_rate": 1e-5, "steps": 100}
# who chooses one of these, chooses another chain, which has the defaults above
CHAIN_OPTIONS = {"start", "noise_share", "grid", "grid_top", "regress_steps", "levels"}


def is_one(share: str) -> bool:
    """Whether a --noise-share is 1 in every layer, however it is spelt."""
    try:
        return all(float(word) == 1 for word in share.split(","))
    except ValueError:  # not numbers; its own check says so
        return False


def of_nfe(chosen: dict) -> dict:
    """The defaults of the number of calls, where it is one, beside what a user chose."""
    nfe = chosen["nfe"]
    if nfe in REGRESSED:
        return REGRESSED[nfe] if is_one(chosen.get("noise_share", "1")) else {}
    near = nfe.strip().isdecimal() and int(nfe) >= SOLVER_IS_NEAR
    return SOLVED if near and not CHAIN_OPTIONS & chosen.keys() else {}


PRESETS = {
    "default": {},
    # the paper's CIFAR-10 settings; its 200,000 fake-score updates are 10,000 student updates
    "hsivi": {
        "nfe": "10", "grid": "quad", "noise_share": "eta:0.2", "log_scale": "pixel",
        "objective": "score-matching", "a": 0.5, "weight": "sigma2", "fake_weight": "sigma2",
        "levels": "own", "steps": 10_000, "batch_size": 128, "fake_updates": 20, "fake_warmup": 0,
        "student_rate": 1.6e-5, "fake_rate": 8e-5, "rate_warmup": 125, "optimizer": "amsgrad",
        "student_beta1": 0.9, "ema": 0.999,
    },
    # score identity distillation, one call
    "sid": {
        "nfe": "1", "grid_top": 440, "objective": "score-matching", "a": 1.0, "weight": "sid",
        "levels": "above", "steps": 10_000, "batch_size": 256, "fake_updates": 1, "fake_warmup": 0,
        "student_rate": 1e-5, "fake_rate": 1e-5, "decay": "none", "fake_beta1": 0.0, "ema": 0.999,
    },
}  # fmt: skip


@dataclass(frozen=True)
class FidConfig:
    """`hsivi fid A B`: the distance between two sets of images.

    Each is a folder, an .npz file of images or of statistics, a run directory, or a data set by
    name.
    """

    a: str
    b: str | None = None
    detector: str | None = option(
        None,
        DETECTOR + "that of the statistics files, else inception",
    )
    detector_weights: str | None = option(None, DETECTOR_WEIGHTS)
    save_stats: str | None = option(
        None, "write A's statistics to this .npz file; B may then be left out"
    )
    kid: bool = option(False, "the kernel distance, precision and recall too")
    json: bool = option(False, "print one JSON object")
    data_root: str | None = option(None, DATA_HERE)
    nfe: int | None = option(
        None, "calls per image of a run; default: what it was trained for", least=1
    )
    count: int = option(5000, "images drawn from a run; of files, all are used", least=2)
    seed: int = option(
        0, "seed of the first image drawn, and of KID's subsets", least=0, below=SEEDS
    )
    batch_size: int = option(256, "images per batch", least=1)
    device: str | None = option(None, DEVICE)


@dataclass(frozen=True)
class SampleConfig:
    """`hsivi sample`: images of a student, or of a solver on a teacher."""

    source: str
    nfe: int | None = option(
        None, "network calls per image; default: what the run was trained for", least=1
    )
    solver: str | None = option(
        None,
        "draw a teacher's own images by this solver: ddim, dpm++2, dpm++3, unipc, deis, ipndm, "
        "heun, with -SPACING",
    )
    count: int | None = option(None, "how many images: seeds 0 to N-1; default 64", least=1)
    seeds: str | None = option(None, "A-B, the seeds to draw, both ends included")
    labels: str | None = option(
        None,
        "class of every image, or one an image separated by commas; default: drawn by each seed",
    )
    out: str | None = option(None, "a folder of PNGs named by seed, or a FILE.npz")
    grid: str | None = option(None, "also save all images in one PNG")
    batch_size: int = option(256, "images per batch; changes no noise", least=1)
    dtype: str = option("float32", "the network's precision", choices=DTYPES)
    device: str | None = option(None, DEVICE)
    revision: str | None = option(None, REVISION)
    variant: str | None = option(None, VARIANT)
    subfolder: str | None = option(None, SUBFOLDER)


@dataclass(frozen=True)
class CompareConfig:
    """`hsivi compare`: students, the best solvers and the teacher at equal calls, seeds and noises,
    judged by one distance.
    """

    sources: tuple[str, ...]
    nfe: str | None = option(
        None, "numbers of calls, such as 2,4,8; default: those the runs were trained for"
    )
    reference: str | None = option(
        None,
        "statistics, images or data set to measure from; default: the embedded teacher's, for it "
        "and its students",
    )
    solvers: str = option(
        "ddim,dpm++2,dpm++3,unipc,deis,ipndm,heun",
        "solvers to compare with, each at its best spacing, or at the one named (dpm++3-lu); none "
        "for no solver",
    )
    teacher_calls: str = option(
        "0", "also draw the teacher's own images with this many calls; 0 does not"
    )
    teacher_solver: str = option("dpm++2-linspace", "the solver of --teacher-calls")
    count: int = option(5000, "images of every row", least=2)
    tune_count: int = option(
        1000,
        "images by which a solver's best spacing is chosen, after a heat on an eighth of them",
        least=2,
    )
    seed: int = option(
        0, "seed of the first image; the same noises for every row", least=0, below=SEEDS
    )
    repeats: int = option(
        1,
        "measure every row this often, on other seeds: the distance is their mean, the range is "
        "kept",
        least=1,
    )
    detector: str | None = option(None, "feature network; default: the reference's own")
    detector_weights: str | None = option(None, DETECTOR_WEIGHTS)
    data_root: str | None = option(None, DATA_HERE)
    recorded: bool = option(
        False, "add the slow rows that were measured before, where the teacher is the embedded one"
    )
    batch_size: int = option(250, "images per batch", least=1)
    dtype: str = option("float32", "the networks' precision", choices=DTYPES)
    device: str | None = option(None, DEVICE)
    json: str | None = option(None, "write all rows to this file")
    plot: str | None = option(
        None, "draw distance by calls, and by minutes of training, into this PNG file"
    )
    grids: str | None = option(
        None, "save a grid of each row's first images, equal seeds, into this folder"
    )
    html: str | None = option(
        None, "write one self-contained page with the table, the plot and the grids"
    )
    cache: str | None = option(
        None, "where what was drawn before is kept; default: $HSIVI_CACHE or ~/.cache/hsivi"
    )
    revision: str | None = option(None, REVISION)
    variant: str | None = option(None, VARIANT)
    subfolder: str | None = option(None, SUBFOLDER)


@dataclass(frozen=True)
class InferConfig:
    """`hsivi infer`: a density by K semi-implicit layers."""

    # the family
    layers: int = option(4, "conditional layers (K)", least=1)
    noise_dim: int = option(0, "extra normal inputs of every layer", least=0)
    width: int = option(128, "units of a hidden block, in layers and fake scores", least=1)
    depth: int = option(2, "hidden blocks", least=1)
    sines: int | None = option(
        None,
        "octaves of sines of x that the networks see beside it; default: 6 for one or two "
        "coordinates, else 0",
        least=0,
        below=24,
    )
    start_scale: float = option(0.5, "every layer's sd before training", above=0)
    base_scale: float = option(1.0, "sd of the base that x_K is drawn from, in the frame", above=0)
    frame: str = option(
        "auto",
        "coordinates of the layers: those in which the target's best Gaussian is N(0, I), or the "
        "target's own; auto: the target's own where they are one or two or with --bridge "
        "diffusion, else the Gaussian's",
        choices=("auto", "gaussian", "none"),
    )

    # the objective
    objective: str = option(
        "auto",
        "the lower bound with --mixing samples, reverse KL by a fake score, score matching, or "
        "kernel Stein; auto: lb up to two coordinates, else reverse-kl",
        choices=("auto", "lb", "reverse-kl", "sm", "ksivi"),
    )
    bridge: str = option(
        "auto",
        "what the layers are matched to: powers of base and target, or the diffused target, auto "
        "where it is known (mixtures, checkerboard, swiss-roll, circles)",
        choices=("auto", "geometric", "diffusion"),
    )
    lambdas: str = option(
        "auto",
        "the target's share at layers 0 to K: auto, or K+1 numbers falling from 1 to 0",
    )
    levels: str = option(
        "falling",
        "where a layer is judged over the diffusion bridge: falling from the level above to its "
        "own in the first half of the steps (sm: from the base's, 70 %), or at its own throughout",
        choices=("falling", "own"),
    )
    mixing: int = option(500, "lb's fresh mixing samples (J)", least=1)
    kernel_width: float = option(
        1.0,
        "ksivi's kernel width in median distances of the samples; below 1 it sees finer detail",
        above=0,
    )
    a: float = option(0.5, "sm's a: 0.5 is the paper's, 1 to 1.2 pushes harder where q is narrow")
    order: str = option(
        "joint",
        JOINT + "base",
        choices=("joint", "sequential"),
    )

    # the optimisation
    steps: int = option(2000, "updates of the layers; 0 writes the untrained family", least=0)
    batch_size: int = option(256, "samples of each layer per update", least=2)
    fake_updates: int = option(5, "fake-score updates between two steps", least=1)
    fake_warmup: int = option(60, "fake-score updates before the first step", least=0)
    student_rate: float = option(1e-3, "the layers' learning rate", above=0, below=RATES)
    fake_rate: float = option(2e-3, "the fake scores' learning rate", above=0, below=RATES)
    rate_warmup: int = option(10, "steps over which the layers' rate rises", least=0)
    decay: str = option(
        "cosine", "how the layers' rate falls, to 0 at --steps", choices=("cosine", "none")
    )
    student_beta1: float = option(0.9, "Adam's beta1 for the layers", least=0, below=1)
    clip: float = option(10.0, "largest gradient norm, of the loss averaged over elements", above=0)
    ema: float = option(0.99, "decay of the averaged layers, " + EMA_RAMP, least=0, below=1)
    seed: int = option(0, SEED)

    # the run
    count: int = option(10_000, "samples to draw at the end", run_only=True, least=2)
    minutes: float | None = option(None, MINUTES, run_only=True, above=0)
    checkpoint_every: int = option(200, "steps between checkpoints", run_only=True, least=1)
    device: str | None = option(None, DEVICE, run_only=True)
    compare: bool = option(
        False,
        "also run mean-field and full-rank Gaussian inference and NUTS, and measure all",
        run_only=True,
    )
    chains: int = option(4, "NUTS chains of --compare", run_only=True, least=2)
    draws: int = option(2000, "draws of each chain, after 500 to adapt", run_only=True, least=10)

    @property
    def nfe(self) -> int:
        """Network calls of a draw."""
        return self.layers
