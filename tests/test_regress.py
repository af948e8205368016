"""Regression on the teacher's paths, among Gaussians whose flow is known."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from gaussians import CONFIG, make

from hsivi_cli.method import regress
from hsivi_cli.method.chain import walk
from hsivi_cli.method.distill import play_round
from hsivi_cli.method.networks import TeacherPath
from hsivi_cli.method.regress import regress_rounds, walk_paths
from hsivi_cli.method.schedule import eps_to_x0
from hsivi_cli.method.solvers import ddim_chain
from hsivi_cli.method.steps import Shard


def paths_for(networks, steps=60):
    """A fine walk from the top level itself, through a student's levels."""
    time = networks.chains[0].time.tolist()
    fine = sorted({round(t) for t in torch.linspace(0, time[-1], steps + 1).tolist()} | set(time))
    table = networks.table[[int(t) for t in fine]]
    return [TeacherPath(ddim_chain(fine, table), [fine.index(t) for t in time[1:]])]


def test_regression_teaches_each_call_where_the_teachers_path_ends():
    config = replace(CONFIG, regress_steps=1200, regress_rate=0.02, batch_size=64)
    networks = make(config)
    networks.paths = paths_for(networks)
    for round_ in range(regress_rounds(config)):
        measured = play_round(networks, config, round_)
    chain, x = networks.chains[0], torch.linspace(-2, 2, 9)[:, None].repeat(1, 2)
    for k in (1, 2):
        time, level = chain.time[k].float().expand(9), chain.alpha_bar[k].expand(9)
        x0 = eps_to_x0(networks.student_eps(x, time, None, level), x, level)
        # the flow of N(1, 0.25) carries quantiles to quantiles; 60 DDIM steps are 1 % short of it
        scale = (0.25 / (0.25 * level[0] + 1 - level[0])).sqrt().float()
        wanted = 1 + scale * (x - level[0].sqrt().float())
        torch.testing.assert_close(x0, wanted, rtol=0, atol=0.06)
    assert 0 <= measured["regression_loss"] < 0.02 and measured["nfe"] == 2


def test_regression_leaves_the_fake_score_alone_and_hands_on_a_fresh_optimizer():
    config = replace(CONFIG, regress_steps=70)  # one round and six updates
    networks = make(config)
    networks.paths = paths_for(networks)
    before = copy.deepcopy(networks.fake_score.state_dict())
    for round_ in range(2):
        play_round(networks, config, round_)
    assert all(torch.equal(t, before[n]) for n, t in networks.fake_score.state_dict().items())
    steps = [state["step"].item() for state in networks.student_optimizer.state.values()]
    assert set(steps) == {70}
    assert not networks.fake_optimizer.state
    for round_ in range(2, 5):  # two of warm-up and a step
        play_round(networks, config, round_)
    steps = [state["step"].item() for state in networks.student_optimizer.state.values()]
    assert set(steps) == {1}
    assert networks.student_optimizer.param_groups[0]["betas"] == (config.student_beta1, 0.999)


def test_regressions_rate_rises_linearly_and_falls_as_a_cosine_over_all_its_rounds(monkeypatch):
    config = replace(CONFIG, regress_steps=70, regress_rate=0.2, rate_warmup=10)
    networks, rates = make(config), []
    networks.paths = paths_for(networks)
    monkeypatch.setattr(
        regress,
        "update",
        lambda optimizer, *rest: rates.append(optimizer.param_groups[0]["lr"]) or torch.zeros(()),
    )
    for round_ in range(2):  # of 64 updates and of 6
        play_round(networks, config, round_)
    cosine = [(1 + math.cos(math.pi * i / 70)) / 2 for i in range(70)]
    ramp = [min((i + 1) / 10, fall) for i, fall in enumerate(cosine)]
    assert rates == pytest.approx([0.2 * part for part in ramp])


def test_the_paths_of_a_round_are_its_processes_parts_put_together():
    config = replace(CONFIG, regress_steps=10)
    networks = make(labels=10)
    networks.paths = paths_for(networks)
    x, ends, labels = walk_paths(networks, config, 0, 10)
    halves = [replace(networks, shard=Shard(rank, 2)) for rank in range(2)]
    parts = [walk_paths(half, config, 0, 10) for half in halves]
    assert x.shape == (2, 16, 2) and ends.shape == (16, 2)  # 160 uses of pairs, eight of each
    for rank, (own_x, own_ends, own_labels) in enumerate(parts):
        torch.testing.assert_close(own_x, x[:, rank::2], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(own_ends, ends[rank::2], rtol=1e-5, atol=1e-5)
        assert torch.equal(own_labels, labels[rank::2])
    path = networks.paths[0].chain
    again = list(walk(networks.teacher_eps, path, x[1], None, torch.zeros(1, 1), labels))
    torch.testing.assert_close(again[-1].mean, ends)
    assert any(torch.allclose(visit.x, x[0]) for visit in again)


def test_paths_are_walked_in_the_parts_of_an_update():
    networks, sizes = make(labels=3), []
    networks.paths = paths_for(networks)
    inner = networks.teacher_eps
    networks.teacher_eps = lambda x, *rest: sizes.append(len(x)) or inner(x, *rest)
    whole = walk_paths(networks, CONFIG, 0, 40)
    assert max(sizes) == CONFIG.batch_size
    for parts in (3, 16, 1000):
        sizes.clear()
        found = walk_paths(networks, replace(CONFIG, accumulate=parts), 0, 40)
        assert max(sizes) == math.ceil(CONFIG.batch_size / parts)
        for one, other in zip(found, whole, strict=True):
            torch.testing.assert_close(one, other)
