"""The networks of one training, and what updates them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property

import torch
from torch import Tensor, nn

from ..config import TrainConfig
from .chain import Chain, Network
from .lowered import Lowered
from .steps import Shard, ema_update, make_optimizer


@dataclass(frozen=True)
class TeacherPath:
    """A teacher's own way down through a student's levels.

    chain   a solver, without noise
    places  of the student's layers 1..K: layer k begins where the path's layer places[k-1] does
    """

    chain: Chain
    places: list[int]


@dataclass(frozen=True)
class RealImages:
    """Images that a discriminator sees as real.

    count     how many there are
    read      their places [B] -> uint8 [B, C, H, W], all on the CPU
    labels    [count], None where the teacher has no classes
    mirrored  whether half of those that are drawn are
    digest    what tells them from others
    """

    count: int
    read: Callable[[Tensor], Tensor]
    labels: Tensor | None = None
    mirrored: bool = False
    digest: str = ""


@dataclass(frozen=True)
class Discriminator:
    """The fake score's encoder, which tells real images from drawn ones.

    both    (x, time, labels, alpha_bar) -> (eps, logits [B, 1, h, w]), the fake score in one pass
    logits  (x, time, labels) -> logits [B, 1, h, w] alone
    images  the real ones
    """

    both: Callable[..., tuple[Tensor, Tensor]]
    logits: Callable[..., Tensor]
    images: RealImages


class AtOnce:
    """Does a round's work there and then. A device may have better ways (files.capture)."""

    def __call__(self, round_: int, kind: object, draw: Callable, work: Callable) -> Tensor:
        """What the work returns for the round's draws."""
        return work(draw(round_))

    def on(self, kind: object, tensors: list[Tensor], work: Callable) -> Tensor:
        """What the work returns for tensors that lie on the device."""
        return work(tensors)


@dataclass
class Networks:
    """What one training moves and reads.

    student, fake_score   modules that train; student_eps, fake_eps the same as networks (x, time,
                          labels, alpha_bar) -> eps
    teacher_eps           the frozen teacher as such a network
    ema                   the averaged student, a module like `student`
    log_scale, ema_scale  [1 or K, ...] the noise scale and its average
    chains                one for each budget of calls
    table                 [T] alpha_bar by time, float64
    shape                 of one sample
    label_count           classes of the teacher, None without
    layer_conditioned     whether the fake score's labels are those of `fake_labels`
    prediction            what the modules predict, one of schedule.PREDICTIONS
    discriminator         of a fake score that also tells real images from drawn ones
    paths                 of the teacher through each chain's levels, where the student regresses
    shard                 which part of every global batch is this process's
    batch_shape           samples of the batches that a roll-out is walked in, None for all at once;
                          fixed where networks are compiled for a shape
    perform               does a kind of work on a round's draws, or on tensors, as `AtOnce` does
    student_low, fake_low  what student and fake score are called with in bfloat16: renewed before
                          they are called, collected after a backward pass
    """

    student: nn.Module
    student_eps: Network
    fake_score: nn.Module
    fake_eps: Network
    teacher_eps: Network
    ema: nn.Module
    log_scale: nn.Parameter
    ema_scale: Tensor
    chains: Sequence[Chain]
    table: Tensor
    shape: tuple[int, ...]
    label_count: int | None
    layer_conditioned: bool
    student_optimizer: torch.optim.Optimizer
    fake_optimizer: torch.optim.Optimizer
    prediction: str = "epsilon"
    discriminator: Discriminator | None = None
    paths: Sequence[TeacherPath] = ()
    shard: Shard = field(default_factory=Shard)
    batch_shape: int | None = None
    perform: AtOnce = field(default_factory=AtOnce, repr=False)
    student_low: Lowered = field(default_factory=Lowered, repr=False)
    fake_low: Lowered = field(default_factory=Lowered, repr=False)
    copies: dict[int, tuple] = field(default_factory=dict, repr=False)

    @property
    def device(self) -> torch.device:
        return self.log_scale.device

    def chain(self, round_: int) -> Chain:
        """The chain whose turn a round is."""
        return self.chains[round_ % len(self.chains)]

    def there(self, chain: Chain) -> Chain:
        """The same chain on the networks' device, copied once."""
        if chain.time.device == self.device:
            return chain
        if id(chain) not in self.copies:
            parts = {f.name: getattr(chain, f.name).to(self.device) for f in fields(Chain)}
            self.copies[id(chain)] = chain, Chain(**parts)
        return self.copies[id(chain)][1]

    def train_student(self, wanted: bool) -> None:
        """Whether gradients come to the student's weights."""
        self.student.requires_grad_(wanted)
        self.student_low.requires_grad_(wanted)

    def train_fake_score(self, wanted: bool) -> None:
        """Whether gradients come to the fake score's weights, or pass through it at the most."""
        self.fake_score.requires_grad_(wanted)
        self.fake_low.requires_grad_(wanted)

    def parts(self, count: int, split: int) -> tuple[Tensor, ...]:
        """Indices 0..count-1 in the parts in which they pass through a network where no gradient is
        wanted: as many parts as an update is split into, or as large as networks are compiled for.
        """
        index = torch.arange(count, device=self.device)
        if self.batch_shape:
            return index.split(self.batch_shape)
        return index.tensor_split(min(split, count))

    def filled(self, part: Tensor) -> Tensor:
        """A part [B, ...] as large as networks are compiled for, its last sample repeated."""
        short = (self.batch_shape or len(part)) - len(part)
        return torch.cat([part, part[-1:].expand(short, *part.shape[1:])]) if short else part

    @cached_property
    def table_there(self) -> Tensor:
        return self.table.to(self.device)


def make_networks(
    config: TrainConfig,
    chains: Sequence[Chain],
    student: nn.Module,
    fake_score: nn.Module,
    network: Callable[[nn.Module], tuple[Network, Lowered]],
    teacher_eps: Network,
    table: Tensor,
    shape: tuple[int, ...],
    label_count: int | None = None,
    prediction: str = "epsilon",
    paths: Sequence[TeacherPath] = (),
    shard: Shard | None = None,
    discriminator: Discriminator | None = None,
) -> Networks:
    """The networks of a configuration.

    network  makes a module that trains a network (x, time, labels, alpha_bar) -> eps, and what it
             is called with in place of its weights
    """
    rest = shape if config.log_scale == "pixel" else [1] * len(shape)
    log_scale = nn.Parameter(
        torch.zeros(
            chains[0].nfe if config.log_scale == "layer" else 1,  # which is one chain's own
            *rest,
            device=next(student.parameters()).device,
        ),
        requires_grad=config.log_scale != "frozen",
    )
    trained = [*student.parameters(), *([log_scale] if log_scale.requires_grad else [])]
    student_eps, student_low = network(student)
    fake_eps, fake_low = network(fake_score)
    return Networks(
        student=student,
        student_eps=student_eps,
        student_low=student_low,
        fake_score=fake_score,
        fake_eps=fake_eps,
        fake_low=fake_low,
        teacher_eps=teacher_eps,
        ema=copy.deepcopy(student).requires_grad_(False),
        log_scale=log_scale,
        ema_scale=log_scale.detach().clone(),
        chains=chains,
        table=table,
        shape=shape,
        label_count=label_count,
        prediction=prediction,
        layer_conditioned=config.conditions_layers,
        discriminator=discriminator,
        paths=paths,
        shard=shard or Shard(),
        student_optimizer=make_optimizer(
            config.optimizer, trained, config.student_rate, config.student_beta1
        ),
        fake_optimizer=make_optimizer(
            config.optimizer, fake_score.parameters(), config.fake_rate, config.fake_beta1
        ),
    )


def average_student(networks: Networks, config: TrainConfig, step: int) -> None:
    averages = [*networks.ema.parameters(), networks.ema_scale]
    ema_update(averages, [*networks.student.parameters(), networks.log_scale], config.ema, step)


def draw_labels(networks: Networks, count: int, draw: torch.Generator) -> Tensor | None:
    """This process's shard of `count` labels, None for a teacher without classes."""
    if networks.label_count is None:
        return None
    return networks.shard.of(torch.randint(networks.label_count, (count,), generator=draw))
