"""What a training keeps in memory, and what it does where there is not enough."""

from dataclasses import replace

import pytest
import torch
from command import TINY

from hsivi_cli.config import TrainConfig
from hsivi_cli.method.distill import play_round
from hsivi_cli.models.compiled import Compiled, forward, rehearse
from hsivi_cli.models.loading import load_teacher
from hsivi_cli.models.networks import networks_of, training_tensors
from hsivi_cli.models.starts import make_chains

SMALL = {"batch_size": 4, "fake_updates": 1, "fake_warmup": 0, "device": "cpu"}


@pytest.fixture
def teacher(save_teacher):
    return load_teacher(str(save_teacher()))


def made(teacher, config, forward=forward):
    return networks_of(config, teacher, make_chains(config, teacher, {}), None, forward)


def kept_by(network, x):
    """Bytes that a call keeps for its backward pass, but for its input and weights."""
    seen = {}

    def keep(tensor):
        if not isinstance(tensor, torch.nn.Parameter):
            seen[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        network(x, x.new_full((len(x),), 500.0), None, x.new_full((len(x),), 0.5))
    return sum(seen.values())


@pytest.mark.parametrize("changes", [{}, {"objective": "score-matching", "nfe": "1,2"},
                                     {"dtype": "bfloat16"}])  # fmt: skip
def test_activations_made_again_are_the_same_and_less_is_kept(teacher, changes):
    config = replace(TrainConfig(), **SMALL | changes)
    plain = made(teacher, config)
    kept = kept_by(plain.student_eps, torch.randn(4, 1, 8, 8))
    expected = [play_round(plain, config, round_) for round_ in range(3)]
    low = replace(config, checkpoint_activations=True)
    networks = made(teacher, low)
    assert kept_by(networks.student_eps, torch.randn(4, 1, 8, 8)) < 0.6 * kept
    assert [play_round(networks, low, round_) for round_ in range(3)] == expected
    ours, theirs = training_tensors(networks), training_tensors(plain)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_activations_made_again_compile(save_teacher):
    torch._dynamo.reset()
    teacher = load_teacher(str(save_teacher(**TINY)))
    config = replace(TrainConfig(), **SMALL, checkpoint_activations=True)
    compiled = Compiled("aot_eager")
    networks = made(teacher, config, compiled)
    rehearse(networks, config, compiled)
    assert not compiled.failed
