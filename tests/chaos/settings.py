"""How often, by which seed, and what is said of it."""

import os
import random

from .attack import HEAD

TRIES = int(os.environ.get("HSIVI_CHAOS_TRIES", 50))
SEED = int(os.environ.get("HSIVI_CHAOS_SEED", random.SystemRandom().randrange(10**6)))


def tell(tally, name):
    """Print a row of the table. Fails where a try did not survive."""
    print(f"\nseed {SEED}\n{HEAD}\n{tally.row(name)}")
    assert not tally.faults, tally.faults
