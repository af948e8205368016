"""train, sample, infer and boost on full and read-only disks: a line, and nothing is lost.

python -m pytest -m slow -s tests/chaos/test_disks.py
"""

import random
import subprocess

import pytest

from .attack import Harm, Tally, begin, half_written, no_room, status, undisturbed
from .settings import SEED, TRIES, tell

MOST = {"train": 600_000, "sample": 100_000, "infer": 300_000, "boost": 150_000}  # of bytes
verbs = pytest.mark.parametrize("verb", MOST)


@pytest.fixture
def disk(tmp_path):
    """A function (folder, size): a disk in memory of so many bytes, or what there is made as large;
    None for room, "ro" for what may not be written. Skips where nothing may be mounted.
    """
    mounted = []

    def mount(folder, size):
        told = {None: "rw,size=16m", "ro": "ro"}
        options = told[size] if size in told else f"rw,size={max(size, 4096)}"
        options = f"remount,{options}" if folder in mounted else options
        words = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
        done = subprocess.run(words, capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"no disk can be mounted here: {done.stderr}")
        if folder not in mounted:
            mounted.append(folder)

    yield mount
    for folder in mounted:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("verb", ["train", "sample"])
def test_a_command_whose_files_find_no_room_goes_on_when_they_do(commands, tmp_path, verb):
    tally = no_room(*commands[verb], tmp_path, 2, SEED, 150)
    tell(tally, f"{verb}, files of no more than 0 to 150 bytes")
    assert tally.harmed


@pytest.mark.slow
@verbs
def test_a_command_on_a_full_disk_goes_on_when_there_is_room(commands, tmp_path, disk, verb):
    tally = no_room(*commands[verb], tmp_path, TRIES // 2, SEED, MOST[verb], disk)
    tell(tally, f"{verb}, on a disk of 0 to {MOST[verb]:,} bytes")
    assert tally.harmed


@pytest.mark.slow
@verbs
def test_a_command_on_a_read_only_disk_leaves_all_and_goes_on_when_it_may(
    commands, tmp_path, disk, verb
):
    command, result = commands[verb]
    draw, tally, count = random.Random(SEED), Tally(), tmp_path / "count"
    expected, _, done = undisturbed(command, result, tmp_path / "whole", count)
    for number in range(TRIES // 5):
        place, write = tmp_path / f"{number}", draw.randint(1, done["writes"])
        place.mkdir()
        disk(place, None)
        out = place / "out"
        status(begin(command(out), out, count, Harm(write)))
        disk(place, "ro")
        refused = status(begin(command(out), out, count, Harm()))
        tally.harmed += refused == 1
        disk(place, None)
        code = status(begin(command(out), out, count, Harm()))
        same = code == 0 and refused == 1 and result(out) == expected
        told = f"killed before write {write}, then exit {refused}"
        tally.judge(told, code, same, bool(half_written(out)))
    tell(tally, f"{verb}, killed, then on a read-only disk")
