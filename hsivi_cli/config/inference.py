"""`hsivi infer`: settings."""

from __future__ import annotations

from dataclasses import dataclass

from .options import DEVICE, EMA_RAMP, JOINT, MINUTES, RATES, SEED, option


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
    base_scale: float = option(
        1.0, "sd of the base that x_K is drawn from, in whitened coordinates", above=0
    )
    frame: str = option(
        "auto",
        "whitening by the target's best Gaussian, or none; auto: none up to two coordinates and "
        "with --bridge diffusion",
        choices=("auto", "gaussian", "none"),
    )

    # the objective
    objective: str = option(
        "auto",
        "the lower bound, reverse KL, score matching or kernel Stein; auto: lb up to two "
        "coordinates, else reverse-kl",
        choices=("auto", "lb", "reverse-kl", "sm", "ksivi"),
    )
    bridge: str = option(
        "auto",
        "what layers are matched to: powers of base and target, or the diffused target; auto: the "
        "latter where it is known",
        choices=("auto", "geometric", "diffusion"),
    )
    lambdas: str = option(
        "auto",
        "the tempering schedule, the target's share at layers 0 to K: auto, or K+1 numbers falling "
        "from 1 to 0",
    )
    levels: str = option(
        "falling",
        "where the diffusion bridge judges a layer: at its own level, or at one that falls to it "
        "as it trains",
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
    def layer_count(self) -> int:
        """The number of layers, by the name that method.steps knows."""
        return self.layers
