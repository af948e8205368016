"""A folder of ours: held by one run, or by samplers of one kind, and gone on with by the same run
alone.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

from ..config import flag_of
from ..errors import HsiviError
from .checkpoint import checkpoints
from .places import check_name
from .whole import is_same, writing

try:
    import fcntl
except ImportError:  # Windows, where nothing keeps a second process out
    fcntl = None


@contextlib.contextmanager
def holding(out: Path, shared: bool = False) -> Iterator[None]:
    """Make a folder and keep other processes from running in it. A folder that was made and stays
    empty goes again.

    shared  let those in that hold it shared too
    """
    check_name(out)
    made = not out.exists()
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
    lock = os.open(out, os.O_RDONLY) if fcntl else None
    try:
        try:
            if fcntl:
                kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
                fcntl.flock(lock, kind | fcntl.LOCK_NB)  # ends with the process
        except BlockingIOError:
            raise HsiviError(
                f"another process runs in {out}: wait for it, or choose another --out"
            ) from None
        except OSError:  # a file system without locks
            pass
        yield
    finally:
        if fcntl:
            os.close(lock)
        if made:
            with contextlib.suppress(OSError):  # it holds a run now
                out.rmdir()


def check_resumable(out: Path, info: dict, config) -> None:
    """Stop a run from going on with other settings than it was begun with (more --steps are none),
    and a finished one whose checkpoints are gone from beginning anew over its result.

    info    what the folder tells of the run: `config` by name, `step`, `regressed`
    config  a dataclass of options; those that are `run_only` may change
    """
    old = info["config"]
    for item in fields(config):
        new_value, old_value = getattr(config, item.name), old.get(item.name, item.default)
        more_steps = item.name == "steps" and type(old_value) is int and new_value >= old_value
        alike = is_same(new_value, old_value) or more_steps
        if not item.metadata.get("run_only") and not alike:
            raise HsiviError(
                f"{out} was begun with {flag_of(item.name)} {old_value}, not {new_value}: use that "
                "to resume, or another --out"
            )
    kinds = (("step", "steps"), ("step", "calls"), ("regressed", "regress_steps"))
    done = next(kind for kind in kinds if old.get(kind[1]) or kind is kinds[-1])
    made, wanted = info.get(done[0], 0), old.get(done[1], 0)
    if 0 < wanted <= made and not checkpoints(out / "checkpoint"):
        raise HsiviError(
            f"{out} holds a finished run of {made} steps without its checkpoint: it cannot go on; "
            "choose another --out"
        )
