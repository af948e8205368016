"""What every update needs: who is drawn, rates, layers, optimizers."""

import copy
import math
from collections import Counter
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from gaussians import CONFIG, make, weights
from torch import nn

from hsivi_cli.method.distill import play_round
from hsivi_cli.method.steps import Shard, active_layers, make_optimizer, pick, student_rate, update


@pytest.mark.parametrize(
    ("chains", "layers"), [(8, [1, 2, 3]), (5, [1, 2, 3, 4]), (6, [1, 2, 3]), (4, [2]), (1, [1, 2])]
)
def test_every_pair_of_chain_and_layer_is_used_once_before_any_is_used_twice(chains, layers):
    pairs = chains * len(layers)
    chain, layer = pick(torch.arange(3 * pairs), chains, layers)
    every = Counter((c, k) for c in range(chains) for k in layers)
    for turn in range(3):
        part = slice(turn * pairs, (turn + 1) * pairs)
        used = Counter(zip(chain[part].tolist(), layer[part].tolist(), strict=True))
        assert used == every


def test_the_students_rate_rises_linearly_and_falls_as_a_cosine_to_0():
    config = replace(CONFIG, steps=100, rate_warmup=10, student_rate=2.0)
    rates = [student_rate(config, step) for step in range(101)]
    assert rates[:9] == pytest.approx([0.2 * (i + 1) for i in range(9)])
    assert rates[50] == pytest.approx(1.0) and rates[100] == pytest.approx(0, abs=1e-12)
    assert all(a >= b for a, b in pairwise(rates[10:])) and max(rates) <= 2.0
    flat = replace(config, decay="none")
    assert [student_rate(flat, step) for step in (9, 50, 99)] == [2.0] * 3


@pytest.mark.parametrize("steps", [40, 43])
def test_in_sequential_order_every_layer_has_the_rates_of_a_training_of_its_own(steps):
    config = replace(CONFIG, nfe="4", steps=steps, order="sequential", rate_warmup=3)
    rates = {k: [] for k in (1, 2, 3, 4)}
    for step in range(steps):
        (layer,) = active_layers(config, 4, step)
        rates[layer].append(student_rate(config, step))
    for own in rates.values():
        alone = replace(config, nfe="1", steps=len(own))
        assert own == [student_rate(alone, step) for step in range(len(own))]
        assert sum(own) / len(own) == pytest.approx(config.student_rate / 2, rel=0.2)


def test_jointly_all_layers_train_and_sequentially_one_after_another_from_the_top():
    assert active_layers(CONFIG, 3, 7) == [1, 2, 3]
    config = replace(CONFIG, nfe="3", steps=9, order="sequential")
    assert [active_layers(config, 3, step) for step in range(9)] == [[3]] * 3 + [[2]] * 3 + [
        [1]
    ] * 3
    assert active_layers(config, 3, 10) == [1]  # beyond the end


def test_a_gradient_is_clipped_to_the_norm_and_its_norm_reported():
    parameter = nn.Parameter(torch.zeros(2))
    for clip, moved in ((1.0, [-0.6, -0.8]), (100.0, [-3.0, -4.0])):
        parameter.data.zero_()
        parameter.grad = torch.tensor([3.0, 4.0])
        norm = update(torch.optim.SGD([parameter], 1.0), clip, Shard())
        assert norm == pytest.approx(5.0) and parameter.grad is None
        assert parameter.tolist() == pytest.approx(moved, rel=1e-5)  # clip / (norm + 1e-6)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_leaves_weights_and_optimizer_untouched(bad):
    networks = make()
    for round_ in range(3):
        play_round(networks, CONFIG, round_)
    before = weights(networks)
    state = copy.deepcopy(networks.student_optimizer.state_dict()["state"])
    for optimizer, module in (
        (networks.student_optimizer, networks.student),
        (networks.fake_optimizer, networks.fake_score),
    ):
        for p in module.parameters():
            p.grad = torch.ones_like(p)
        next(module.parameters()).grad[0] = bad
        assert not math.isfinite(update(optimizer, 1.0, Shard()))
        assert all(p.grad is None for p in module.parameters())
    assert torch.equal(weights(networks), before)
    after = networks.student_optimizer.state_dict()["state"]
    assert all(torch.equal(after[i][n], state[i][n]) for i in state for n in state[i])


@pytest.mark.parametrize(
    ("kind", "cls", "amsgrad"),
    [("adam", "Adam", False), ("adamw", "AdamW", False), ("amsgrad", "Adam", True)],
)
def test_optimizers_are_what_they_are_called(kind, cls, amsgrad):
    made = make_optimizer(kind, [nn.Parameter(torch.zeros(1))], 1e-3, 0.3)
    assert type(made).__name__ == cls and made.defaults["amsgrad"] == amsgrad
    assert made.defaults["lr"] == 1e-3 and made.defaults["betas"] == (0.3, 0.999)
