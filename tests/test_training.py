"""The settings of a training, as Python makes them: refused where they mean nothing."""

from dataclasses import replace

import pytest

from hsivi_cli.config import REGRESSED, TrainConfig, of_nfe
from hsivi_cli.errors import HsiviError


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"nfe": "2,4", "noise_share": "0.5", "log_scale": "layer"}, "--log-scale layer is one"),
        ({"nfe": "2,4", "noise_share": "0.5,0.5"}, "--noise-share 0.5,0.5 has a number a layer"),
        ({"nfe": "2,2"}, "names a number of calls twice"),
        ({"nfe": "two"}, "--nfe two must be whole numbers"),
        ({"start": "deis", "grid": "quad"}, "--grid quad is for --start ddim"),
        ({"grid": "0,5,9", "grid_top": 9}, "names its own last time"),
        (
            {"detector": "inception", "reference": "none"},
            "scores nothing with --reference none",
        ),
        ({"objective": "kl"}, "--objective kl is none of reverse-kl, score-matching, auto"),
        ({"student_rate": float("nan")}, "--student-rate nan must be a finite number"),
        ({"batch_size": 0}, "--batch-size 0 must be at least 1"),
        ({"top_sd": "wide"}, "--top-sd wide is neither auto nor a number from 0.5 to 2"),
        ({"top_sd": "nan"}, "--top-sd nan is neither"),
        ({"top_sd": "3"}, "--top-sd 3 is neither"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_settings_that_mean_nothing_are_refused_in_python_too(options, told):
    with pytest.raises(HsiviError, match=told):
        TrainConfig(**options)
    with pytest.raises(HsiviError, match=told):
        replace(TrainConfig(), **options)


def test_a_top_sd_is_one_number_however_it_is_spelt():
    assert TrainConfig(top_sd="1.0") == TrainConfig(top_sd="1")
    assert TrainConfig(top_sd="1.030").own_top_sd == 1.03
    assert TrainConfig(top_sd="auto").own_top_sd is None


@pytest.mark.parametrize("nfe", ["1", "2", "3"])
def test_who_wants_no_regression_distils_by_the_usual_steps(nfe):
    chosen = {"nfe": nfe, "regress_steps": 0}
    config = TrainConfig(**of_nfe(chosen) | chosen)
    assert config.regress_steps == 0 and config.steps == TrainConfig().steps > 0
    assert of_nfe({"nfe": nfe, "regress_steps": 7}) == of_nfe({"nfe": nfe}) == REGRESSED[int(nfe)]
