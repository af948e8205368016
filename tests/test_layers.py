"""Layers of boosted trees on tables whose conditional law is known."""

import math

import lightgbm
import numpy as np
import pytest

from hsivi_cli.config import BoostConfig, decided
from hsivi_cli.tables import scores
from hsivi_cli.tables.layers import BLOCK, normals
from hsivi_cli.tables.learner import Learner, crps_gradient
from hsivi_cli.tables.table import Column, Table

RNG = np.random.default_rng(0)
NUMBER = Column("y")


@pytest.fixture(autouse=True)
def same_numbers():
    """Every test draws its own, whichever run before it."""
    global RNG
    RNG = np.random.default_rng(0)


def table(x, y, inputs=None, targets=None):
    inputs = inputs or tuple(Column(f"x{i}") for i in range(x.shape[1]))
    return Table(inputs, targets or (NUMBER,) * y.shape[1], x, y)


def learned(rows, **options):
    config = decided(BoostConfig(**({"threads": 1, "calls": 5} | options)))
    learner = Learner.new(rows, config)
    learner.learn_prior()
    for k in range(config.calls, 0, -1):
        learner.learn_layer(k)
    return learner.model


def drawn(model, x, count=2000):
    """Draws [N, S, D] for rows."""
    return np.concatenate(list(model.sample(np.atleast_2d(x), count, 0)))


@pytest.mark.parametrize("options", [{}, {"calls": 40, "match": 2}, {"match": 0}, {"calls": 1}])
def test_a_linear_normal_has_its_mean_and_its_sd_whatever_the_calls(options):
    """y ~ N(1000 + 60 x, 15^2): the units are the table's own."""
    x = RNG.uniform(-1, 1, (1500, 1))
    y = 1000 + 60 * x + 15 * RNG.standard_normal(x.shape)
    at = np.linspace(-0.9, 0.9, 30)[:, None]
    found = drawn(learned(table(x, y), **options), at, 500)[..., 0]
    # the steps of the trees, and what 1,500 rows do not tell: a third of the sd
    assert np.abs(found.mean(1) - 1000 - 60 * at[:, 0]).mean() < 5
    assert found.std(1).mean() == pytest.approx(15, rel=0.1)


def test_a_width_that_changes_with_x_is_learned_and_calibrated():
    def rows(count):
        x = RNG.uniform(-1, 1, (count, 2))
        return x, (0.2 + np.abs(x[:, :1])) * RNG.standard_normal((count, 1))

    model = learned(table(*rows(2000)), calls=10)
    x, y = rows(500)
    found = drawn(model, x, 200)[..., 0]
    sd, true = found.std(1), 0.2 + np.abs(x[:, 0])
    for part in (true < 0.4, (true > 0.6) & (true < 0.8), true > 1):
        assert sd[part].mean() == pytest.approx(true[part].mean(), rel=0.3)
    measured = scores.of_numbers(found, y[:, 0])
    assert measured["picp"] == pytest.approx(0.95, abs=0.04) and measured["qice"] < 0.03


def test_two_modes_are_drawn_and_nothing_between_them():
    x = RNG.uniform(-1, 1, (2000, 1))
    y = np.where(RNG.random(x.shape) < 0.3, -1, 1) + 0.1 * RNG.standard_normal(x.shape)
    found = drawn(learned(table(x, y), calls=10), [[0.5]])[0, :, 0]
    assert (found < 0).mean() == pytest.approx(0.3, abs=0.08)
    assert (np.abs(found) < 0.5).mean() < 0.1  # a normal of their mean and sd has .34
    assert found[found > 0].mean() == pytest.approx(1, abs=0.15)


def test_several_targets_keep_their_correlation():
    x = RNG.uniform(-1, 1, (2000, 1))
    noise = RNG.multivariate_normal([0, 0], [[1, 0.8], [0.8, 1]], len(x))
    y = np.column_stack([x, -x]) * 3 + noise
    found = drawn(learned(table(x, y), calls=10), [[0.5]])[0]
    np.testing.assert_allclose(found.mean(0), [1.5, -1.5], atol=0.35)
    assert np.corrcoef(found.T)[0, 1] == pytest.approx(0.8, abs=0.1)


def test_classes_are_drawn_as_often_as_they_come():
    x = RNG.integers(0, 2, (1000, 1)).astype(float)
    share = np.array([[0.7, 0.2, 0.1], [0.1, 0.3, 0.6]])
    number = [RNG.choice(3, p=share[int(row[0])]) for row in x]
    target = (Column("y", ("a", "b", "c")),)
    model = learned(table(x, np.eye(3)[number], targets=target), calls=10)
    found = scores.class_shares(drawn(model, [[0.0], [1.0]]))
    np.testing.assert_allclose(found, share, atol=0.08)


def test_what_is_missing_and_categories_tell_of_y():
    """A mean of its own where x is missing, and for each of three categories in no order."""
    code = RNG.integers(0, 3, 2000)
    x = np.column_stack([np.where(RNG.random(2000) < 0.3, np.nan, 1.0), code])
    y = (np.isnan(x[:, 0]) * 4.0 + np.array([0, 9, 2])[code])[:, None]
    y = y + 0.5 * RNG.standard_normal(y.shape)
    columns = (Column("x"), Column("code", ("p", "q", "r")))
    model = learned(table(x, y, columns))
    at = np.array([[np.nan, 0], [1, 1], [np.nan, 2], [1, np.nan]])
    found = drawn(model, at)[..., 0]
    np.testing.assert_allclose(found.mean(1)[:3], [4, 9, 6], atol=0.3)
    np.testing.assert_allclose(found.std(1)[:3], 0.5, atol=0.15)
    assert np.isfinite(found).all()  # a category that was never seen
    for kind, place in (("prior", 1), ("layer", 3)):  # behind x, and behind the state, f and x
        kinds = {}
        for name, text in model.texts.items():
            if name.startswith(kind):
                for tree in lightgbm.Booster(model_str=text).dump_model()["tree_info"]:
                    for feature, decision in splits(tree["tree_structure"]):
                        kinds.setdefault(feature, set()).add(decision)
        assert kinds.pop(place) == {"=="} and set.union(*kinds.values()) == {"<="}


def splits(node):
    """Every feature that a tree splits by, and how."""
    if "split_feature" in node:
        yield node["split_feature"], node["decision_type"]
        for child in ("left_child", "right_child"):
            yield from splits(node[child])


def test_matching_mends_the_width_that_two_calls_of_the_posteriors_variance_lack():
    """Of N(0, 1) they draw half the sd: r_1 has the variance 1/2 of the step alone, and r_0 is
    sqrt(ab_1) r_1 = r_1 / sqrt(2).
    """
    x, y = RNG.uniform(-1, 1, (1000, 1)), RNG.standard_normal((1000, 1))
    plain, matched = (
        drawn(learned(table(x, y), calls=2, variance="posterior", match=match), [[0.0]]).std()
        for match in (0, 40)
    )
    assert plain == pytest.approx(0.5, abs=0.07)
    assert matched == pytest.approx(1, abs=0.12)


def test_a_target_that_x_tells_entirely_is_drawn_as_it_is():
    x = RNG.integers(0, 2, (400, 1)).astype(float)
    found = drawn(learned(table(x, 7 * x)), [[0.0], [1.0]])[..., 0]
    np.testing.assert_allclose(found, np.repeat([[0.0], [7.0]], 2000, 1), atol=0.1)


def test_draws_of_a_block_do_not_depend_on_what_follows():
    x, y = RNG.uniform(-1, 1, (BLOCK + 5, 1)), RNG.standard_normal((BLOCK + 5, 1))
    model = learned(table(x, y))
    np.testing.assert_array_equal(drawn(model, x, 3)[:BLOCK], drawn(model, x[:BLOCK], 3))
    assert not np.array_equal(normals((3,), 0, "a"), normals((3,), 0, "b"))


def test_the_gradient_of_crps_is_that_by_differences():
    draws, y = RNG.standard_normal((5, 8)), RNG.standard_normal(5)
    gradient = crps_gradient(draws, y, 1.0) / 8
    for j in range(8):
        moved = draws.copy()
        moved[:, j] += 1e-7
        found = (scores.crps(moved, y) - scores.crps(draws, y)) / 1e-7
        np.testing.assert_allclose(gradient[:, j], found, atol=1e-6)


def test_over_noised_y_the_gradient_of_crps_is_its_mean():
    draws, y, alpha_bar = RNG.standard_normal((1, 4)), np.array([0.7]), 0.6
    noised = math.sqrt(0.6) * y + math.sqrt(0.4) * RNG.standard_normal(200_000)
    each = crps_gradient(np.repeat(draws, len(noised), 0), noised, 1.0)
    exact = crps_gradient(draws, y, alpha_bar)[0]
    np.testing.assert_allclose(each.mean(0), exact, atol=0.01)  # 4 standard errors


def test_defaults_that_depend_on_the_number_of_calls():
    told = {calls: decided(BoostConfig(calls=calls)) for calls in (5, 10, 100, 1000)}
    assert [c.trees for c in told.values()] == [20, 20, 2, 1]
    assert [c.rate for c in told.values()] == [0.1, 0.1, 1.0, 1.0]
    assert [c.match for c in told.values()] == [5, 5, 0, 0]
    assert [c.learns_variance for c in told.values()] == [True, True, True, False]
    assert decided(BoostConfig(trees=3, rate=0.5)).rate == 0.5
