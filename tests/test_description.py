"""hsivi.json's best evaluation: what of it is used, and what is none."""

import json
import math

import pytest

from hsivi_cli.errors import HsiviError
from hsivi_cli.files.places import embedded
from hsivi_cli.models.description import check_best, read_info

BEST = {"step": 3, "distance": 2.5, "distances": {"2": 2.5}, "count": 9}
BEST |= {"detector": "d", "reference": "r"}


@pytest.mark.parametrize("recall", [0.25, 0, None])
def test_a_best_evaluation_may_know_what_the_training_began_with(recall):
    check_best(None)
    check_best(BEST)  # an earlier version's
    check_best(BEST | {"start": {"distance": 7, "recall": recall}, "moments": [1.0, 2.0]})


def test_a_student_of_the_first_versions_told_one_distance(tmp_path):
    info = json.loads((embedded("embedded:students/4") / "hsivi.json").read_text())
    told = info["best"].pop("distances")
    (tmp_path / "hsivi.json").write_text(json.dumps(info))
    assert read_info(tmp_path)["best"]["distances"] == told == {"4": info["best"]["distance"]}


@pytest.mark.parametrize(
    "start",
    [
        *(None, [], {}, {"distance": 7}, {"recall": 0.25}),
        *({"distance": 7, "recall": wrong} for wrong in (math.nan, "a", {}, [])),
        *({"distance": wrong, "recall": None} for wrong in (math.inf, 9**400, None)),
    ],
)
def test_a_start_of_other_kinds_is_named(start):
    with pytest.raises(HsiviError, match="no usable start: copy it again"):
        check_best(BEST | {"start": start})


TRUE = [  # which to Python is 1
    *({key: True} for key in ("format", "step", "seconds", "regressed")),
    *({"best": BEST | {key: True}} for key in ("step", "distance", "count", "round", "rollbacks")),
    {"best": BEST | {"moments": [True]}},
    {"best": BEST | {"distances": {"2": True}}},
    {"best": BEST | {"start": {"distance": True, "recall": 1}}},
    {"best": BEST | {"start": {"distance": 7, "recall": True}}},
    *({"clip": {"reach": 1, "quantile": 1} | {key: True}} for key in ("reach", "quantile")),
]


@pytest.mark.parametrize("wrong", [{"step": -3}, {"best": {"step": 3}}, *TRUE])
def test_what_no_run_writes_is_refused_with_the_files_name(tmp_path, wrong):
    told = {"format": 1, "teacher": {"name": "n", "digest": "d"}, "config": {}, "seconds": 1}
    (tmp_path / "hsivi.json").write_text(json.dumps(told | {"step": 3, "best": BEST}))
    read_info(tmp_path)
    (tmp_path / "hsivi.json").write_text(json.dumps(told | {"step": 3} | wrong))
    with pytest.raises(HsiviError, match=r"hsivi\.json"):
        read_info(tmp_path)
