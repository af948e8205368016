"""What `hsivi train` and `hsivi infer` have in common: a student, a fake score, a resumable run."""

from __future__ import annotations

from dataclasses import dataclass

from .options import COUNTS, DEVICE, RATES, SEEDS, Options, option


@dataclass(frozen=True)
class RunConfig(Options):
    """The optimisation and the run. The defaults are those of images."""

    order: str = option(
        "joint",
        "train all layers together, or one after another from layer K down",
        choices=("joint", "sequential"),
    )
    fake_updates: int = option(5, "fake-score updates between two steps", least=1, below=COUNTS)
    fake_warmup: int = option(60, "fake-score updates before the first step", least=0, below=COUNTS)
    student_rate: float = option(3e-5, "the student's learning rate", above=0, below=RATES)
    fake_rate: float = option(4e-4, "the fake score's learning rate", above=0, below=RATES)
    rate_warmup: int = option(
        10, "steps over which the student's rate rises", least=0, below=COUNTS
    )
    decay: str = option(
        "cosine",
        "how the student's rate falls, to 0 at --steps, in sequential order at each layer's end",
        choices=("cosine", "none"),
    )
    student_beta1: float = option(0.0, "Adam's beta1 for the student", least=0, below=1)
    clip: float = option(
        1.0, "largest gradient norm, of the loss averaged over elements", above=0, below=1e30
    )
    ema: float = option(
        0.98,
        "decay of the averaged student, ramped up as (1 + step) / (10 + step)",
        least=0,
        below=1,
    )
    seed: int = option(0, "decides everything random", least=-SEEDS, below=SEEDS)

    minutes: float | None = option(
        None,
        "stop after this long, saved and ready to resume",
        run_only=True,
        above=0,
        below=COUNTS,
    )
    device: str | None = option(None, DEVICE, run_only=True)
    checkpoint_every: int = option(
        50, "steps between checkpoints", run_only=True, least=1, below=COUNTS
    )
    on_nan: str = option(
        "skip",
        "what is not finite: end; skip that round, 3 in 100 at most; or go back, at half the rates",
        choices=("stop", "skip", "rollback"),
        run_only=True,
    )
