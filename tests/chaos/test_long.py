"""A long training needs no more memory and no more open files than a short one."""

import subprocess
import sys
import time
from pathlib import Path

import pytest
from command import QUICK, TINY

STEPS = 2000


def size_of(pid):
    """Resident pages and open files of a process."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages, len(list(Path(f"/proc/{pid}/fd").iterdir()))


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads Linux's /proc")
def test_memory_and_open_files_stay_flat_over_two_thousand_steps(save_teacher, tmp_path):
    out = tmp_path / "run"
    options = ("--steps", STEPS, "--checkpoint-every", 50, "--out", out)
    words = [sys.executable, "-m", "hsivi_cli", "train", save_teacher(**TINY), *QUICK, *options]
    log, seen = out / "metrics.jsonl", {}
    with subprocess.Popen(list(map(str, words)), stderr=subprocess.DEVNULL) as process:
        while process.poll() is None:
            step = log.read_bytes().count(b"\n") if log.exists() else 0
            try:
                seen[step] = size_of(process.pid)
            except OSError:  # it has ended just now
                break
            time.sleep(0.2)
    assert process.returncode == 0
    early, late = (
        [size for step, size in seen.items() if low <= step < low + STEPS // 4]
        for low in (STEPS // 4, 3 * STEPS // 4)
    )
    pages, files = ([max(size[i] for size in part) for part in (early, late)] for i in (0, 1))
    print(f"\nresident pages {pages}, open files {files}, {len(seen)} looks")
    assert pages[1] < 1.02 * pages[0] and files[1] <= files[0]
