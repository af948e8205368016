"""Methods beside each other: whose draws they are, and what perfect draws would read."""

import pytest
import torch

from hsivi_cli.config import InferConfig
from hsivi_cli.density import against, nuts
from hsivi_cli.density.family import Family
from hsivi_cli.density.named import load_target
from hsivi_cli.density.networks import make_networks, resolved
from hsivi_cli.density.targets import GaussianMixture

OPTIONS = {"layers": 1, "width": 8, "depth": 1, "chains": 2, "draws": 100}
NAMES = ["hsivi", "full-rank", "mean-field", "flow", "nuts"]
EVERY = {"name", "cpu_seconds", "mean_error", "mean_z", "mean_z_perfect", "sd_error"}


def by_name(comparison):
    assert [row["name"] for row in comparison.rows] == NAMES
    return {row["name"]: row for row in comparison.rows}


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """What is fitted and drawn in seconds, in fewer: these targets need few."""
    monkeypatch.setattr(against, "EXACT_COUNT", 20_000)
    monkeypatch.setattr(against, "LEAST", 0.3)
    monkeypatch.setattr(nuts, "BURN_IN", 150)


def test_every_row_in_the_plane_is_measured_from_exact_draws_beside_its_own_floor():
    """An untrained family, which is N(0, I), beside the others on N(0, I)."""
    target = GaussianMixture(torch.zeros(1, 2), 1.0)
    config = resolved(InferConfig(**OPTIONS), target)
    plane = against.compare(Family(2, config), config, target, 0.5)
    rows = by_name(plane)
    assert plane.truth.kind == "exact" and len(plane.truth.draws) == 20_000
    for name, row in rows.items():
        assert row.keys() >= EVERY | {"js", "js_floor", "w1", "w1_floor", "correlation_error"}
        # every method is right here, so that each reads its floor; NUTS's draws are worth fewer,
        # and a flow of half a second is near
        loose = 1.3 if name in ("nuts", "flow") else 1.15
        assert row["js"] < loose * row["js_floor"], name
    assert len({len(draws) for draws in plane.drawn.values()}) == 1  # as many draws in every row
    assert rows["hsivi"]["js_floor"] == rows["nuts"]["js_floor"]
    assert rows["hsivi"]["cpu_seconds"] > 0.5
    assert min(row["cpu_seconds"] for row in rows.values()) > 0
    # the flow stops at the first update after as many seconds
    assert 0.5 <= rows["flow"]["cpu_seconds"] < rows["hsivi"]["cpu_seconds"] + 5
    assert rows["nuts"].keys() >= {"rhat", "ess", "divergences"}


def test_without_exact_draws_all_are_measured_from_nuts():
    target = load_target("densities:tilted", 3)
    config = resolved(InferConfig(**OPTIONS, count=2000), target)
    family = make_networks(config, target).ema
    found = against.compare(family, config, target, 0.0)
    rows = by_name(found)
    assert found.truth.kind == "nuts" and found.truth.draws.equal(found.drawn["nuts"])
    # correlations of .9: the diagonal Gaussian is .44 as wide as it should be, the full one exact;
    # 200 draws of NUTS know a sd to 5 % each
    assert rows["full-rank"]["sd_error"] < 0.25 < 0.4 < rows["mean-field"]["sd_error"]
    assert rows["full-rank"]["mean_z_perfect"] == pytest.approx(1.33, abs=0.01)  # of three
    assert "mean_error" not in rows["nuts"] and "js_floor" not in rows["hsivi"]
