"""The verbs that draw and measure: `hsivi sample`, `fid` and `compare`."""

from __future__ import annotations

from dataclasses import dataclass

from .options import (
    CALLS,
    CLIPS,
    COUNTS,
    DATA_HERE,
    DETECTOR,
    DETECTOR_WEIGHTS,
    DEVICE,
    DTYPES,
    FORCE,
    REVISION,
    SEEDS,
    SUBFOLDER,
    VARIANT,
    Options,
    option,
)

BATCH = "images per batch, which changes no noise; default: 256, on a GPU as many as fit, up to 512"


@dataclass(frozen=True)
class FidConfig(Options):
    """`hsivi fid A B`: the distance between two sets of images.

    Each is a folder, an .npz file of images or of statistics, a run directory, or a data set by
    name; without any, the shipped student of 4 calls and the embedded reference.
    """

    a: str | None = None
    b: str | None = None
    detector: str | None = option(
        None,
        DETECTOR + "that of the statistics files, else inception",
    )
    detector_weights: str | None = option(None, DETECTOR_WEIGHTS)
    save_stats: str | None = option(
        None, "write A's statistics to this .npz file; REFERENCE may then be left out"
    )
    kid: bool = option(False, "the kernel distance, precision and recall too")
    json: bool = option(False, "print one JSON object")
    data_root: str | None = option(None, DATA_HERE)
    nfe: int | None = option(
        None, "calls per image of a run; default: what it was trained for", least=1, below=CALLS
    )
    count: int = option(
        5000, "images drawn from a run; of files, all are used", least=2, below=COUNTS
    )
    seed: int = option(
        0, "seed of the first image drawn, and of KID's subsets", least=0, below=SEEDS
    )
    batch_size: int | None = option(None, BATCH, least=1, below=COUNTS)
    device: str | None = option(None, DEVICE)
    force: bool = option(False, FORCE)


@dataclass(frozen=True)
class SampleConfig(Options):
    """`hsivi sample`: images of a student, or of a solver on a teacher."""

    source: str | None = None
    nfe: int | None = option(
        None, "network calls per image; default: what the run was trained for", least=1, below=CALLS
    )
    clip_x0: str = option(
        "auto", "keep a solver's x0 in range; auto: as the teacher's pipeline does", choices=CLIPS
    )
    solver: str | None = option(
        None, "draw the network's own images by this solver; default of a teacher: the best found"
    )
    count: int | None = option(
        None, "how many images: seeds 0 to N-1; default 64", least=1, below=COUNTS
    )
    seeds: str | None = option(None, "A-B, the seeds to draw, both ends included")
    labels: str | None = option(
        None,
        "class of every image, or one an image separated by commas; default: drawn by each seed",
    )
    out: str | None = option(
        None, "a folder of PNGs named by seed, or a FILE.npz; default: samples/NAME, and its grid"
    )
    grid: str | None = option(None, "also save all images in one PNG")
    force: bool = option(False, FORCE)
    batch_size: int | None = option(None, BATCH, least=1, below=COUNTS)
    dtype: str = option("float32", "the network's precision", choices=DTYPES)
    device: str | None = option(None, DEVICE)
    revision: str | None = option(None, REVISION)
    variant: str | None = option(None, VARIANT)
    subfolder: str | None = option(None, SUBFOLDER)


@dataclass(frozen=True)
class CompareConfig(Options):
    """`hsivi compare`: students, the best solvers and the teacher at equal calls, seeds and noises,
    judged by one distance; without sources, the shipped students.
    """

    sources: tuple[str, ...] = ()
    nfe: str | None = option(
        None, "numbers of calls, such as 2,4,8; default: those the runs were trained for"
    )
    reference: str | None = option(
        None,
        "statistics, images or data set to measure from; default: the embedded teacher's own",
    )
    solvers: str = option(
        "ddim,dpm++2,dpm++3,sde-dpm++2,sde-dpm++3,unipc,deis,ipndm,heun",
        "solvers, each at its best spacing, or at the one named, as in dpm++3-lu; none for none",
    )
    clip_x0: str = option(
        "auto",
        "keep x0 of solvers and the teacher in range; auto: draw both and tell the better",
        choices=CLIPS,
    )
    teacher_calls: str = option(
        "0", "also draw the teacher's own images with this many calls; 0 does not"
    )
    teacher_solver: str = option(
        "dpm++2-linspace,sde-dpm++3-auto",
        "the solvers of --teacher-calls: one without noise, and one that adds it at every step",
    )
    count: int = option(5000, "images of every row", least=2, below=COUNTS)
    tune_count: int = option(
        1000,
        "images by which a solver's best spacing is chosen, after a first round on an eighth",
        least=2,
        below=COUNTS,
    )
    seed: int = option(
        0, "seed of the first image; the same noises for every row", least=0, below=SEEDS
    )
    repeats: int = option(
        1,
        "measure every row this often, on other seeds: the distance is their mean",
        least=1,
        below=COUNTS,
    )
    detector: str | None = option(None, "feature network; default: the reference's own")
    detector_weights: str | None = option(None, DETECTOR_WEIGHTS)
    data_root: str | None = option(None, DATA_HERE)
    recorded: bool = option(
        False, "add the slow rows that were measured before, where the teacher is the embedded one"
    )
    batch_size: int = option(250, "images per batch", least=1, below=COUNTS)
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
    force: bool = option(False, FORCE)
    cache: str | None = option(
        None, "where what was drawn before is kept; default: $HSIVI_CACHE or ~/.cache/hsivi"
    )
    revision: str | None = option(None, REVISION)
    variant: str | None = option(None, VARIANT)
    subfolder: str | None = option(None, SUBFOLDER)
