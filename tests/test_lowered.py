"""Weights that train, called in bfloat16: cast once an update, with the numbers of autocast."""

from collections import Counter
from dataclasses import replace

import pytest
import torch
from command import TINY
from torch.utils._python_dispatch import TorchDispatchMode

from hsivi_cli.config import TrainConfig
from hsivi_cli.method.distill import play_round
from hsivi_cli.models.loading import load_teacher
from hsivi_cli.models.networks import networks_of, training_tensors
from hsivi_cli.models.starts import make_chains

CONFIG = TrainConfig(
    nfe="2", batch_size=4, fake_updates=2, fake_warmup=0, dtype="bfloat16", device="cpu"
)


class Counted(TorchDispatchMode):
    """Counts what is called."""

    def __init__(self):
        super().__init__()
        self.calls = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.calls[function.overloadpacket] += 1
        return function(*args, **(kwargs or {}))


@pytest.fixture
def teacher(save_teacher):
    return load_teacher(str(save_teacher(**TINY)))


def made(teacher, config):
    return networks_of(config, teacher, make_chains(config, teacher, {}))


def under_autocast(teacher, config):
    """The same networks, whose weights autocast casts at every call."""
    networks = made(teacher, replace(config, dtype="float32"))
    networks.student_eps = teacher.network(networks.student, "bfloat16")
    networks.fake_eps = teacher.network(networks.fake_score, "bfloat16")
    networks.teacher_eps = teacher.network(dtype="bfloat16")
    return networks


@pytest.mark.parametrize("changes", [{}, {"accumulate": 2}, {"objective": "score-matching"},
                                     {"regress_steps": 66, "batch_size": 2}])  # fmt: skip
def test_weights_cast_once_an_update_train_as_under_autocast_to_the_bit(teacher, changes):
    config = replace(CONFIG, **changes)
    ours, expected = made(teacher, config), under_autocast(teacher, config)
    for round_ in range(4):
        assert play_round(ours, config, round_) == play_round(expected, config, round_)
    own = training_tensors(ours)
    assert all(torch.equal(own[name], t) for name, t in training_tensors(expected).items())


def test_a_round_in_bfloat16_casts_fewer_times_than_a_network_has_weights(teacher):
    networks = made(teacher, CONFIG)
    play_round(networks, CONFIG, 0)
    with Counted() as found:
        play_round(networks, CONFIG, 1)
    casts = found.calls[torch.ops.aten._to_copy] + found.calls[torch.ops.aten.copy_]
    assert casts < len(networks.student_low.weights) + 60  # of times, levels and activations


def test_weights_that_were_loaded_are_those_that_are_called(teacher):
    networks = made(teacher, CONFIG)
    networks.student.conv_in.weight.data.zero_()
    play_round(networks, CONFIG, 0)
    assert not networks.student_low.copies[0].any()
