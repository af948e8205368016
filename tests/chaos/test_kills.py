"""Every verb that leaves something, killed: the same command again ends as if nothing had happened.

    python -m pytest -m slow -s tests/chaos

prints the seed, by which HSIVI_CHAOS_SEED repeats an attack of HSIVI_CHAOS_TRIES, and the table of
docs/experiments/chaos.md.
"""

import pytest

from .attack import kills
from .settings import SEED, TRIES, tell

WHEN = {
    "writes": "before a random write",
    "moves": "with a file half written",
    "moment": "at a random moment",
}
verbs = pytest.mark.parametrize("verb", ["train", "sample", "infer", "boost", "predict"])


@pytest.mark.parametrize(
    ("verb", "how"),
    [("train", "writes"), ("sample", "moves"), ("infer", "moves"), ("boost", "moves")],
)
def test_a_command_killed_in_writing_ends_the_same(commands, tmp_path, verb, how):
    tally = kills(*commands[verb], tmp_path, 1, SEED, how)
    tell(tally, f"{verb}, killed twice {WHEN[how]}")
    assert tally.harmed


@pytest.mark.slow
@verbs
@pytest.mark.parametrize("how", WHEN)
def test_a_command_killed_a_hundred_times_ends_the_same(commands, tmp_path, verb, how):
    tally = kills(*commands[verb], tmp_path, TRIES, SEED, how)
    tell(tally, f"{verb}, killed twice {WHEN[how]}")
    assert (
        tally.harmed >= TRIES // 2
    )  # the undisturbed run, whose time is the measure, is the slowest
    assert how != "moves" or tally.half_written >= tally.harmed / 2
