"""NUTS against a Gaussian's own moments, and the table of methods."""

import pytest
import torch

from hsivi_cli.density import nuts as nuts_module
from hsivi_cli.density.gaussian import Affine
from hsivi_cli.density.nuts import Chains, diagnosis, doubt, nuts
from hsivi_cli.density.targets import Density, GaussianMixture, funnel
from hsivi_cli.density.truth import nuts_truth
from hsivi_cli.errors import HsiviError
from hsivi_cli.report.methods import table

MEAN, COV = torch.tensor([3.0, -1.0]), torch.tensor([[4.0, 1.5], [1.5, 1.0]])


@pytest.fixture(scope="module")
def chains():
    """NUTS on a correlated Gaussian, in a frame that is not its own."""
    target = GaussianMixture(MEAN[None], COV)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nuts_module, "BURN_IN", 200)  # is enough of a Gaussian
        return nuts(Affine(target, torch.ones(2), 2 * torch.eye(2)), 2, 400, 0)


def test_nuts_draws_a_gaussian(chains):
    assert chains.draws.shape == (2, 400, 2)
    x = chains.draws.flatten(0, 1)
    found = diagnosis(chains)
    assert found["rhat"] < 1.03 and found["ess"] > 150 and found["divergences"] == 0
    # 4 standard errors at 150 effective draws: .33 sd of a mean, 33 % of a variance's entries
    torch.testing.assert_close((x.mean(0) - MEAN) / COV.diagonal().sqrt(), torch.zeros(2),
                               rtol=0, atol=0.33)  # fmt: skip
    torch.testing.assert_close(x.T.cov(), COV, rtol=0.35, atol=0.35)
    truth = nuts_truth(chains)
    assert (truth.error < 3 * COV.diagonal().sqrt() / found["ess"] ** 0.5).all()


def test_chains_that_have_mixed_leave_no_doubt():
    normal = torch.randn(4, 1000, 2, generator=torch.Generator().manual_seed(0))
    assert doubt(diagnosis(Chains(normal, 0)), 4000) is None
    apart = normal + torch.tensor([0.0, 0.0, 0.0, 0.5])[:, None, None]
    assert "R-hat 1.0" in doubt(diagnosis(Chains(apart, 0)), 4000)
    assert doubt({"rhat": float("nan"), "divergences": 0}, 4000) is not None


def test_divergences_are_counted_and_doubted():
    chains = nuts(Affine(funnel(), torch.zeros(2), torch.eye(2)), 2, 50, 0)  # its neck throws off
    assert 0 < chains.divergences <= 100
    assert f"{chains.divergences} of 100 draws diverged" in doubt(diagnosis(chains), 100)


def test_the_table_leaves_out_what_no_row_has():
    text = table([{"name": "hsivi", "mean_error": 0.01}, {"name": "nuts", "rhat": 1.002}])
    first, second, third = text.splitlines()
    assert first.split() == ["mean", "error", "R-hat"]
    assert second.split() == ["hsivi", "0.010"] and third.split() == ["nuts", "1.002"]


def test_a_density_that_nuts_cannot_start_on_is_refused_in_one_line():
    target = Density(lambda x: (x * torch.nan).sum(1), 2)
    with pytest.raises(HsiviError, match="NUTS fails on this target"):
        nuts(Affine(target, torch.zeros(2), torch.eye(2)), 1, 10, 0)
