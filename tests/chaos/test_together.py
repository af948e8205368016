"""Two commands at once on one folder: one wins, the other gets a line or shares it.

python -m pytest -m slow -s tests/chaos/test_together.py
"""

import pytest

from .attack import together
from .settings import SEED, TRIES, tell

PAIRS = [
    ("sample", "sample by another"),
    ("sample", "sample"),
    ("train", "train"),
    ("infer", "infer"),
    ("train", "sample"),
    ("infer", "sample"),
    ("train", "infer"),
    ("boost", "boost"),
    ("boost", "train"),
    ("compare", "compare"),
]
pairs = pytest.mark.parametrize("names", PAIRS, ids=" and ".join)


def attacked(commands, folder, names, tries):
    """Each result is a folder's files by its own verb: what is compared is that of the winner."""
    made, results = zip(*(commands[name] for name in names), strict=True)
    tally = together(list(made), list(results), folder, tries, SEED)
    tell(tally, f"{' and '.join(names)} at once")


@pytest.mark.parametrize("names", [PAIRS[0], PAIRS[4]], ids=" and ".join)
def test_two_at_once_never_mix(commands, tmp_path, names):
    attacked(commands, tmp_path, names, 1)


@pytest.mark.slow
@pairs
def test_two_at_once_never_mix_however_often(commands, tmp_path, names):
    attacked(commands, tmp_path, names, TRIES)
