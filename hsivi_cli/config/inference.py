"""`hsivi infer`: settings."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import HsiviError
from .options import COUNTS, RATES, SCALE, option, option_like
from .run import RunConfig

# in the order of density/, which a test compares
TARGETS = (
    "banana", "two-gaussians", "x-shape", "checkerboard", "swiss-roll", "circles", "25-gaussians",
    "uneven-gaussians", "25-uneven", "funnel", "diffusion-path", "logistic-waveform",
    "logistic-breast-cancer", "logistic-digits", "regression-diabetes",
    "regression-abalone",
)  # fmt: skip


FIRST_MARK = 1000  # steps after which --steps auto measures first; then at twice as many, ...


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
        "above",
        "where layers are judged over the diffusion bridge: at their own level, or half of the "
        "samples at levels above it",
        choices=("above", "own"),
    )
    mixing: int | None = option(
        None,
        "fresh mixing samples (J) of lb, and of sm's mixture; default: 500, of the mixture 2000",
        least=1,
        below=COUNTS,
    )
    kernel_width: float = option(
        1.0,
        "ksivi's kernel width in median distances of the samples; below 1 it sees finer detail",
        **SCALE,
    )
    fake_score: str = option(
        "auto",
        "what knows the layers' own score for sm: a network, or a roll-out's mixture; auto: the "
        "mixture in the plane",
        choices=("auto", "network", "mixture"),
    )
    a: float | None = option(
        None,
        "sm's a: 0.5 is the paper's, 1 to 1.2 pushes harder where q is narrow; default: 1 with "
        "--fake-score mixture, else 0.5",
        least=-100,
        below=100,
    )

    # the optimisation
    steps: int = option(
        2000,
        "steps in all; auto: until two halves of the training agree; 0: the untrained family",
        least=0,
        below=COUNTS,
        word="auto",
    )
    most_steps: int = option(
        16_000, "the most steps of --steps auto", run_only=True, least=2000, below=COUNTS
    )
    patience: int = option(
        1,
        "how many halves in a row must agree for --steps auto to end",
        run_only=True,
        least=1,
        below=20,
    )
    batch_size: int = option(256, "samples of each layer per update", least=2, below=COUNTS)
    path_steps: int = option(
        500,
        "updates that teach the layers the diffusion bridge's own paths before the first step",
        least=0,
        below=COUNTS,
    )
    student_rate: float | None = option(
        None,
        "the layers' learning rate; default: 3e-3 for the lower bound in the plane, else 1e-3",
        above=0,
        below=RATES,
    )
    fake_rate: float = option_like(RunConfig, "fake_rate", 2e-3)
    student_beta1: float = option_like(RunConfig, "student_beta1", 0.9)
    clip: float = option_like(RunConfig, "clip", 10.0)
    ema: float = option_like(RunConfig, "ema", 0.99)

    # the run
    checkpoint_every: int = option_like(RunConfig, "checkpoint_every", 200)
    count: int = option(10_000, "samples to draw at the end", run_only=True, least=2, below=COUNTS)
    compare: bool = option(
        False,
        "also run mean-field and full-rank Gaussian inference, a flow and NUTS, and measure all",
        run_only=True,
    )
    chains: int = option(4, "NUTS chains of --compare", run_only=True, least=2, below=1000)
    draws: int = option(
        2000, "draws of each chain, after 500 to adapt", run_only=True, least=10, below=COUNTS
    )

    auto: bool = False  # whether training may end before `steps`, which then is most_steps

    def __post_init__(self):
        if isinstance(self.steps, str):
            auto = self.steps == "auto"
            object.__setattr__(self, "steps", self.most_steps if auto else whole(self.steps))
            object.__setattr__(self, "auto", auto)
        super().__post_init__()
        if not self.auto:
            return
        if self.order == "sequential":
            raise HsiviError("--steps auto goes with --order joint: layers' parts must be known")
        if self.steps < (least := FIRST_MARK * 2**self.patience):
            raise HsiviError(
                f"--most-steps {self.steps} ends before {self.patience + 1} halves are over, which "
                f"--patience {self.patience} compares: give at least {least}"
            )

    @property
    def layer_count(self) -> int:
        """The number of layers, by the name that method.steps knows."""
        return self.layers


def whole(steps: str) -> int:
    try:
        return int(steps)
    except ValueError:
        raise HsiviError(f"--steps {steps} is neither auto nor a whole number") from None
