"""When a training of --steps auto ends."""

import pytest
import torch

from hsivi_cli.config import InferConfig
from hsivi_cli.density import halves, targets
from hsivi_cli.density.fit import fit
from hsivi_cli.density.halves import doubt, gaps, marks, part_at, settled
from hsivi_cli.errors import HsiviError


def mark(step, mean=0.0, sd=1.0, bound=0.0, error=0.01):
    kept = {"lower_bound": bound, "standard_error": error}
    return {"step": step, **kept, "mean": [0.0, mean], "sd": [2.0, sd]}


def test_a_training_is_measured_after_twice_as_many_steps_each_time():
    assert marks(InferConfig(steps="auto", most_steps=9000)) == [1000, 2000, 4000, 8000, 9000]
    assert marks(InferConfig(steps="auto", most_steps=4000)) == [1000, 2000, 4000]
    assert marks(InferConfig(steps=4000)) == [4000]


def test_each_part_is_a_training_that_ends_at_its_mark():
    config = InferConfig(steps="auto", most_steps=4000)
    steps = {step: part_at(config, step).steps for step in (0, 999, 1000, 1999, 2000, 3999)}
    assert list(steps.values()) == [1000, 1000, 2000, 2000, 4000, 4000]
    assert part_at(InferConfig(steps=10), 3) == InferConfig(steps=10)


def test_halves_differ_by_their_worst_coordinate_and_beyond_two_errors_of_the_bound():
    found = gaps(mark(1, sd=1.1, bound=-0.2), mark(2, mean=0.05, bound=-0.1))
    assert found["mean"] == pytest.approx(0.05 / 1.1)
    assert found["sd"] == pytest.approx(0.1)
    assert found["bound"] == pytest.approx(0.1 - 2 * 0.01 * 2**0.5)


@pytest.mark.parametrize("change", [{"mean": 0.05}, {"sd": 1.05}, {"bound": 0.1}])
def test_halves_that_differ_are_not_done_and_patience_asks_for_more_of_them(change):
    same, other = mark(1000), mark(2000, **change)
    assert not settled([same], 1) and settled([same, same], 1)
    assert not settled([same, other], 1) and settled([same, other, other], 1)
    assert not settled([same, other, other], 2) and settled([same, other, other, other], 2)
    said = doubt([same, other], 1)
    assert said.startswith("after 1000 and 2000 steps means differ by up to")
    assert said.endswith("give a higher --most-steps")
    assert doubt([same, same], 1) is None


def test_patience_that_the_most_steps_leave_no_room_for_is_refused():
    InferConfig(steps="auto", most_steps=4000, patience=2)
    with pytest.raises(HsiviError, match="--patience 3 compares: give at least 8000"):
        InferConfig(steps="auto", most_steps=4000, patience=3)
    with pytest.raises(HsiviError, match="goes with --order joint"):
        InferConfig(steps="auto", order="sequential")
    InferConfig(steps=4000, patience=9)  # which nobody reads


def test_steps_as_text_are_a_number_or_auto():
    assert InferConfig(steps="30") == InferConfig(steps=30) and not InferConfig(steps="30").auto
    with pytest.raises(HsiviError, match=r"--steps 1\.5 is neither auto nor a whole number"):
        InferConfig(steps="1.5")


def test_a_fit_ends_where_halves_agree(monkeypatch):
    monkeypatch.setattr(halves, "FIRST_MARK", 2)
    monkeypatch.setattr(halves, "COUNT", 500)
    played, measured = [], []
    from hsivi_cli.density import fit as module

    play, measure = module.play_round, module.measure
    monkeypatch.setattr(module, "play_round", lambda *a: played.append(a[1].steps) or play(*a))
    monkeypatch.setattr(module, "measure", lambda *a: measured.append(a[2]) or measure(*a))
    options = {"layers": 1, "width": 4, "depth": 1, "batch_size": 8, "mixing": 8}
    options |= {"path_steps": 0, "student_rate": 1e-9, "objective": "lb"}  # nothing moves
    fit(targets.two_gaussians(), 2, False, **options, steps="auto")
    assert measured == [2, 4] and played == [2, 2, 4, 4]


def test_the_mark_of_a_family_is_what_its_draws_are():
    from hsivi_cli.density.networks import make_networks, resolved

    target = targets.GaussianMixture(torch.zeros(1, 2), 1.0)
    config = resolved(InferConfig(layers=1, width=4, steps=0), target)
    found = halves.measure(make_networks(config, target), config, 7)
    assert found["step"] == 7 and abs(found["lower_bound"]) < 0.1
    # 20,000 draws of N(0, I)
    torch.testing.assert_close(torch.tensor(found["mean"]), torch.zeros(2), rtol=0, atol=0.03)
    torch.testing.assert_close(torch.tensor(found["sd"]), torch.ones(2), rtol=0, atol=0.02)
