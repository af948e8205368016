"""Compiled and captured steps: few graphs, the same numbers, a line where nothing compiles."""

from dataclasses import replace

import pytest
import torch
from command import TINY

from hsivi_cli.config import PRESETS, TrainConfig
from hsivi_cli.files.capture import Ahead, Parcel
from hsivi_cli.method.distill import play_round
from hsivi_cli.method.draws import draw_round
from hsivi_cli.models.compiled import Compiled, forward, quick, rehearse
from hsivi_cli.models.loading import load_teacher
from hsivi_cli.models.networks import networks_of, training_tensors
from hsivi_cli.models.starts import make_chains

SMALL = {"batch_size": 4, "fake_updates": 2, "fake_warmup": 0, "device": "cpu"}


@pytest.fixture
def teacher(save_teacher):
    return load_teacher(str(save_teacher(mid_block_type=None, **TINY)))  # a graph takes seconds


def made(teacher, config, forward=forward):
    return networks_of(config, teacher, make_chains(config, teacher, {}), None, forward)


def played(networks, config, rounds=3):
    return [play_round(networks, config, round_) for round_ in range(rounds)]


def assert_equal(networks, others):
    ours, theirs = training_tensors(networks), training_tensors(others)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


FURTHER = (
    ({"accumulate": 2}, 2), (PRESETS["hsivi"], 3), (PRESETS["sid"], 3), ({"dtype": "bfloat16"}, 2),
    ({"nfe": "2", "regress_steps": 1}, 2), ({"checkpoint_activations": True}, 2),
)  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "most"),
    [({}, 2), ({"nfe": "1,2"}, 4), *(pytest.param(*c, marks=pytest.mark.slow) for c in FURTHER)],
)
def test_a_training_asks_for_few_compiled_graphs_and_all_before_it_begins(teacher, settings, most):
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    config, compiled = replace(TrainConfig(), **settings | SMALL), Compiled("aot_eager")
    networks = made(teacher, config, compiled)
    rehearse(networks, config, compiled)
    played(networks, config)
    assert not compiled.failed
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= most


@pytest.mark.parametrize("changes", [{"nfe": "1,2"}, {"nfe": "2", "regress_steps": 66}])
def test_draws_made_ahead_by_a_thread_change_nothing(teacher, changes):
    config = replace(TrainConfig(), **SMALL | changes)
    at_once, ahead = made(teacher, config), made(teacher, config)
    with quick(ahead, config, forward):
        assert isinstance(ahead.perform, Ahead)
        assert played(ahead, config) == played(at_once, config)
    assert_equal(ahead, at_once)


def test_a_rounds_draws_travel_as_one_buffer_a_dtype(teacher):
    config = replace(TrainConfig(), **SMALL)
    draws = draw_round(made(teacher, config), config, 0, 0, True)
    parcel = Parcel(draws.tensors(), pinned=False)
    assert set(parcel.buffers) == {torch.float32, torch.int64}
    for view, tensor in zip(parcel.views(parcel.buffers), draws.tensors(), strict=True):
        assert torch.equal(view, tensor)


@pytest.mark.filterwarnings("ignore:Warning. Profiler clears events")  # torch 2.11 says so
def test_a_round_waits_once_for_its_device(teacher):
    config = replace(TrainConfig(), **SMALL)
    networks = made(teacher, config)
    played(networks, config, 2)
    with torch.profiler.profile() as found:
        play_round(networks, config, 2)
    reads = [e for e in found.events() if e.name == "aten::_local_scalar_dense"]
    assert all(e.cpu_parent.cpu_parent.name.startswith("aten::_fused_adam") for e in reads)


@pytest.mark.parametrize("phase", ["forward", "backward"])
def test_where_nothing_compiles_a_line_says_so_and_the_training_is_the_same(teacher, phase, capsys):
    def broken(graph, inputs):
        raise RuntimeError("no compiler here")

    torch._dynamo.reset()
    if phase == "backward":
        from torch._dynamo.backends.common import aot_autograd

        backend = aot_autograd(fw_compiler=lambda graph, inputs: graph, bw_compiler=broken)
    else:
        backend = broken
    config, compiled = replace(TrainConfig(), **SMALL), Compiled(backend)
    networks, plain = made(teacher, config, compiled), made(teacher, config)
    with quick(networks, config, compiled):
        assert played(networks, config) == played(plain, config)
    told = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
    assert len(told) == 1 and "networks are not compiled" in told[0] and "no compiler" in told[0]
    assert_equal(networks, plain)
