"""What a training keeps in memory, and what it does where there is not enough."""

from dataclasses import replace

import pytest
import torch
from command import QUICK, TINY, refusal, save_detector, train

import hsivi_cli.method.regress as regress_module
import hsivi_cli.models.compiled as compiled_module
import hsivi_cli.verbs.train as train_module
from hsivi_cli.config import TrainConfig
from hsivi_cli.errors import HsiviError
from hsivi_cli.method.distill import play_round
from hsivi_cli.models.compiled import Compiled, forward, quick
from hsivi_cli.models.loading import load_teacher
from hsivi_cli.models.memory import advice, where_in
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


@pytest.mark.parametrize(
    ("changes", "round_", "where"),
    [
        ({"regress_steps": 100}, 0, "after 64 updates of regression"),
        ({"regress_steps": 100}, 1, "after 100 updates of regression"),
        ({"fake_warmup": 4}, 3, "in the fake score's warm-up"),
        ({"fake_warmup": 4}, 4, "at step 1"),
        ({"regress_steps": 100, "fake_warmup": 4}, 6, "at step 1"),
    ],
)
def test_the_place_of_a_round_is_told_in_its_phases_words(changes, round_, where):
    assert where_in(replace(TrainConfig(), **SMALL | changes), round_) == where


@pytest.mark.parametrize(
    ("batch_size", "accumulate", "world", "told"),
    [
        (32, 1, 1, "--accumulate 2 halves"),
        (32, 8, 2, "--accumulate 16 halves"),
        (24, 8, 2, "--accumulate 12 lessens"),
        (32, 16, 2, None),
        (2, 1, 2, None),
        (4, 64, 1, None),
    ],
)
def test_no_more_parts_are_advised_than_a_batch_has_samples(batch_size, accumulate, world, told):
    config = TrainConfig(batch_size=batch_size, accumulate=accumulate)
    said = advice(config, world)
    assert said.startswith(told) if told else "--accumulate" not in said
    assert "--checkpoint-activations" in said
    assert ("--batch-size" in said) == (batch_size > world)
    low = advice(replace(config, checkpoint_activations=True), world)
    assert low and "--checkpoint-activations" not in low


def full(*args, **kwargs):
    raise torch.OutOfMemoryError("CUDA out of memory")


@pytest.mark.parametrize(
    ("module", "name", "told"),
    [
        (train_module, "find_chains", "in finding the start: name one by --start"),
        (train_module, "networks_of", "their weights alone are too large"),
        (regress_module, "walk_paths", "after 1 updates of regression: --accumulate 2"),
    ],
)
def test_a_training_without_memory_names_what_helps_in_that_phase(
    save_teacher, tmp_path, monkeypatch, module, name, told
):
    monkeypatch.setattr(module, name, full)
    line = refusal("train", save_teacher(**TINY), "--out", tmp_path / "run", *QUICK,
                   "--regress-steps", 1)  # fmt: skip
    assert "out of memory " in line and told in line


def test_compiling_without_memory_names_what_helps(teacher, monkeypatch):
    monkeypatch.setattr(compiled_module, "rehearse", full)
    config = replace(TrainConfig(), **SMALL)
    told = "out of memory in compiling the networks: --accumulate 2 halves"
    compiled = Compiled("eager")
    with pytest.raises(HsiviError, match=told), quick(made(teacher, config), config, compiled):
        pass


@pytest.mark.parametrize("size", [1, 2, 9])
def test_drawing_without_memory_names_a_smaller_batch(save_teacher, tmp_path, monkeypatch, size):
    teacher = save_teacher(**TINY)
    ways = [("sample", teacher, "--nfe", 1, "--solver", "ddim-leading", "--out", tmp_path / "x")]
    train(teacher, tmp_path / "run")
    for place in ("models.draw.sample", "verbs.fid.statistics_of_batches"):
        monkeypatch.setattr(f"hsivi_cli.{place}", full)
    save_detector(tmp_path / "detector")
    ways += [("fid", tmp_path / "run", tmp_path / "run", "--detector", tmp_path / "detector")]
    for words in ways:
        line = refusal(*words, "--device", "cpu", "--count", 20, "--batch-size", size)
        assert "out of memory" in line
        assert f"--batch-size {size // 2} halves" in line if size > 1 else "--device" in line
