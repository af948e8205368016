"""Targets by name and from a user's module: what is loaded, and what is refused in one line."""

import pytest
import torch

from hsivi_cli.config import InferConfig
from hsivi_cli.density.named import POSTERIORS, load_target, probe
from hsivi_cli.density.networks import resolved
from hsivi_cli.density.targets import TARGETS
from hsivi_cli.errors import HsiviError, reason_of


def refused(name, dim=2, **options):
    """The line with which a target is refused."""
    with pytest.raises(HsiviError) as found:
        target = load_target(name, dim)
        probe(resolved(InferConfig(**options), target), target)
    (line,) = str(found.value).splitlines()
    return line


def test_a_function_of_the_users_is_a_target_without_levels_or_exact_draws():
    target = load_target("densities:good", 3)
    assert (target.dim, target.levels, target.exact) == (3, False, False)
    x = torch.randn(5, 3)
    torch.testing.assert_close(target.score(x), -2 * x)
    with pytest.raises(ValueError, match="no exact sampler"):
        target.sample(1, torch.Generator())


@pytest.mark.parametrize("name", TARGETS)
def test_a_target_draws_where_it_says_so_and_takes_the_levels_that_it_says_it_knows(name):
    target = load_target(name, None)
    x = torch.randn(4, target.dim)
    if target.exact:
        assert target.sample(3, torch.Generator().manual_seed(0)).shape == (3, target.dim)
    if target.levels:
        assert target.log_prob(x, torch.full((4,), 0.5)).shape == (4,)
    assert target.exact is (name != "diffusion-path")


def test_the_packaged_data_have_the_sizes_that_are_said():
    sizes = {name: make().dim for name, make in POSTERIORS.items()}
    # hidden units 10: 10 D + 10 + 10 + 1 + 1
    assert sizes == {
        "logistic-waveform": 22,
        "logistic-breast-cancer": 31,
        "logistic-digits": 62,
        "regression-diabetes": 122,
        "regression-abalone": 112,
    }


def test_a_density_that_cannot_be_used_is_told_why():
    assert "gradient is nan in coordinate 1 at x = (" in refused("densities:steep")
    assert "one number a point, [64], not [64, 2]" in refused("densities:wide")
    assert "no gradient in x" in refused("densities:held")
    assert "[64, 2]: KeyError: 2" in refused("densities:lost")
    assert "[64, 2]: AssertionError" in refused("densities:mute")
    assert "log density is -inf at x = (-" in refused("densities:cut")
    assert "no callable 'number'" in refused("densities:number")


@pytest.mark.parametrize("objective", ["sm", "ksivi"])
def test_a_score_that_has_no_gradient_is_refused_where_it_is_differentiated(objective):
    line = refused("densities:once", objective=objective)
    assert "differentiates the target's score" in line
    probe(InferConfig(objective="reverse-kl"), load_target("densities:once", 2))


def test_a_name_that_is_none_is_told_which_there_are():
    for name in ("bananas", ":f", "banana:"):
        assert "is no target: banana" in refused(name)
    assert "has 2 coordinates" in refused("banana", 3)
    assert "needs --dim" in refused("densities:good", None)
    assert "from 1 to 9999" in refused("densities:good", 2**64)


def test_the_diffusion_bridge_wants_a_target_and_a_base_that_fit_it():
    assert "--bridge diffusion needs" in refused("densities:good", 3, bridge="diffusion")
    assert "--base-scale 2 goes with" in refused("circles", base_scale=2.0)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("import no_such_package", "ModuleNotFoundError: No module named 'no_such_package'"),
        ("raise SystemExit('usage: my_script')", "SystemExit: usage"),
    ],
)
def test_a_module_that_cannot_be_imported_is_told_why(tmp_path, monkeypatch, text, expected):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_broken.py").write_text(text)
    assert expected in refused("my_broken:f")


def test_what_a_users_module_sets_of_torchs_own_ends_with_its_import(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_doubles.py").write_text(
        "import torch\n"
        "from densities import good\n"
        "torch.set_default_dtype(torch.float64)\n"
        "torch.set_grad_enabled(False)\n"
    )
    target = load_target("my_doubles:good", 2)
    assert torch.get_default_dtype() == torch.float32 and torch.is_grad_enabled()
    assert target.score(torch.ones(1, 2)).dtype == torch.float32


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (RuntimeError(), "RuntimeError"),
        (ValueError("\n"), "ValueError"),
        (TypeError("one\ntwo"), "TypeError: one"),
    ],
)
def test_an_error_that_says_nothing_is_told_by_its_kind(error, told):
    assert reason_of(error) == told


def test_a_target_that_fails_without_a_word_is_refused_by_its_errors_kind(tmp_path, monkeypatch):
    (tmp_path / "mute.py").write_text("def p(x):\n    raise RuntimeError\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert refused("mute:p").endswith(": RuntimeError")
