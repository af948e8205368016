"""`hsivi infer`: settings."""

from __future__ import annotations

from dataclasses import dataclass

from .options import COUNTS, SCALE, option, option_like
from .run import RunConfig

# in the order of density/, which a test compares
TARGETS = (
    "banana", "two-gaussians", "x-shape", "checkerboard", "swiss-roll", "circles", "25-gaussians",
    "funnel", "diffusion-path", "logistic-waveform", "logistic-breast-cancer", "logistic-digits",
    "regression-diabetes", "regression-abalone",
)  # fmt: skip


@dataclass(frozen=True)
class InferConfig(RunConfig):
    """`hsivi infer`: a density by K semi-implicit layers, which are the student here."""

    # the family
    layers: int = option(4, "conditional layers (K)", least=1, below=1000)
    noise_dim: int = option(0, "extra normal inputs of every layer", least=0, below=100000)
    width: int = option(
        128, "units of a hidden block, in layers and fake scores", least=1, below=100000
    )
    depth: int = option(2, "hidden blocks", least=1, below=1000)
    sines: int | None = option(
        None,
        "octaves of sines of x that the networks see too; default: 6 up to two coordinates, else 0",
        least=0,
        below=24,
    )
    start_scale: float = option(0.5, "every layer's sd before training", **SCALE)
    base_scale: float = option(
        1.0, "sd of the base that x_K is drawn from, in whitened coordinates", **SCALE
    )
    frame: str = option(
        "auto",
        "coordinates of the layers: where the target's best Gaussian is N(0, I), or its own",
        choices=("auto", "gaussian", "none"),
    )

    # the objective
    objective: str = option(
        "auto",
        "the layers' loss; auto: the lower bound up to two coordinates, else reverse KL",
        choices=("auto", "lb", "reverse-kl", "sm", "ksivi"),
    )
    bridge: str = option(
        "auto",
        "what the layers are matched to: powers of base and target, or the diffused target",
        choices=("auto", "geometric", "diffusion"),
    )
    lambdas: str = option(
        "auto",
        "the tempering schedule, the target's share at layers 0 to K: auto, or K+1 numbers falling "
        "from 1 to 0",
    )
    levels: str = option(
        "falling",
        "where layers are judged over the diffusion bridge: falling to their own level, or at it",
        choices=("falling", "own"),
    )
    mixing: int = option(500, "lb's fresh mixing samples (J)", least=1, below=COUNTS)
    kernel_width: float = option(
        1.0,
        "ksivi's kernel width in median distances of the samples; below 1 it sees finer detail",
        **SCALE,
    )
    a: float = option(
        0.5,
        "sm's a: 0.5 is the paper's, 1 to 1.2 pushes harder where q is narrow",
        least=-100,
        below=100,
    )

    # the optimisation
    steps: int = option(2000, "steps in all; 0 writes the untrained family", least=0, below=COUNTS)
    batch_size: int = option(256, "samples of each layer per update", least=2, below=COUNTS)
    student_rate: float = option_like(RunConfig, "student_rate", 1e-3)
    fake_rate: float = option_like(RunConfig, "fake_rate", 2e-3)
    student_beta1: float = option_like(RunConfig, "student_beta1", 0.9)
    clip: float = option_like(RunConfig, "clip", 10.0)
    ema: float = option_like(RunConfig, "ema", 0.99)

    # the run
    checkpoint_every: int = option_like(RunConfig, "checkpoint_every", 200)
    count: int = option(10_000, "samples to draw at the end", run_only=True, least=2, below=COUNTS)
    compare: bool = option(
        False,
        "also run mean-field and full-rank Gaussian inference and NUTS, and measure all",
        run_only=True,
    )
    chains: int = option(4, "NUTS chains of --compare", run_only=True, least=2, below=1000)
    draws: int = option(
        2000, "draws of each chain, after 500 to adapt", run_only=True, least=10, below=COUNTS
    )

    @property
    def layer_count(self) -> int:
        """The number of layers, by the name that method.steps knows."""
        return self.layers
