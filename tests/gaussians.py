"""Networks of Gaussians, where every one can be exact and every law is known."""

import copy
import math
from functools import partial

import torch
from conftest import linear_table
from torch import nn

from hsivi_cli.config import TrainConfig
from hsivi_cli.method.chain import with_noise_share
from hsivi_cli.method.networks import Networks
from hsivi_cli.method.schedule import over
from hsivi_cli.method.solvers import ddim_chain
from hsivi_cli.method.steps import make_optimizer

CONFIG = TrainConfig(
    nfe="2", steps=10, batch_size=16, fake_updates=3, fake_warmup=6, rate_warmup=1,
    student_rate=0.05, fake_rate=0.05, fake_beta1=0.5, seed=7,
)  # fmt: skip
TIMES = [0, 300, 650]


class Gaussian(nn.Module):
    """The eps of N(mean, var) noised, one Gaussian for each stretch of times between `edges`."""

    def __init__(self, edges=(), mean=1.0, var=0.25):
        super().__init__()
        self.mean = nn.Parameter(torch.full((len(edges) + 1,), mean))
        self.log_var = nn.Parameter(torch.full((len(edges) + 1,), math.log(var)))
        self.register_buffer("edges", torch.tensor(edges, dtype=torch.float32))

    def forward(self, x, time, labels=None, alpha_bar=None):
        part = torch.bucketize(time.float().contiguous(), self.edges, right=True)
        level = alpha_bar.to(x.dtype)
        mean, var = level.sqrt() * self.mean[part], level * self.log_var.exp()[part] + 1 - level
        return over((1 - level).sqrt(), x) * (x - over(mean, x)) / over(var, x)


def make(
    config=CONFIG, times=TIMES, share=1.0, maker=ddim_chain, scale=False, labels=None, width=2
):
    """A student of N(0.4, 0.6), a teacher of N(1, 0.25); the fake score starts as the teacher."""
    table = linear_table()
    inner = times[1:-1]
    student = Gaussian([t + 1 for t in inner], 0.4, 0.6)  # layer k is called at time[k] itself
    fake_score, teacher = Gaussian(inner), Gaussian().requires_grad_(False)
    log_scale = nn.Parameter(torch.zeros(1, 1), requires_grad=scale)
    trained = [*student.parameters(), *([log_scale] if scale else [])]
    optimizer = partial(make_optimizer, "adam")
    return Networks(
        student=student,
        student_eps=student,
        fake_score=fake_score,
        fake_eps=fake_score,
        teacher_eps=teacher,
        ema=copy.deepcopy(student).requires_grad_(False),
        log_scale=log_scale,
        ema_scale=log_scale.detach().clone(),
        chains=[with_noise_share(maker(times, table[times]), share)],
        table=table,
        shape=(width,),
        label_count=labels,
        layer_conditioned=False,
        student_optimizer=optimizer(trained, config.student_rate, config.student_beta1),
        fake_optimizer=optimizer(fake_score.parameters(), config.fake_rate, config.fake_beta1),
    )


def weights(networks):
    return torch.cat(
        [
            p.detach().flatten()
            for m in (networks.student, networks.fake_score, networks.ema)
            for p in m.parameters()
        ]
    )


def weights_of(module):
    return torch.cat([p.detach().flatten() for p in module.parameters()])
