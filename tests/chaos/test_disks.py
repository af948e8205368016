"""train, sample and infer on full and read-only disks: a line, and nothing is lost.

python -m pytest -m slow -s tests/chaos/test_disks.py
"""

import subprocess

import pytest

from .attack import Harm, begin, half_written, no_room, status, undisturbed
from .settings import SEED, TRIES, tell

verbs = pytest.mark.parametrize("verb", ["train", "sample", "infer"])


@pytest.fixture
def disk(tmp_path):
    """A function (folder, bytes or None): a disk in memory of that size, or room on it, or with
    "ro" nothing to be written. Skips where nothing may be mounted.
    """
    mounted = []

    def mount(folder, size):
        size = "16m" if size is None else size
        new = folder not in mounted
        options = size if size == "ro" else f"rw,size={max(size, 4096) if new else size}"
        words = ["mount", "-t", "tmpfs", "-o", options if new else f"remount,{options}"]
        done = subprocess.run([*words, "tmpfs", str(folder)], capture_output=True)
        if done.returncode:
            pytest.skip(f"no disk can be mounted here: {done.stderr.decode()}")
        if new:
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
    most = {"train": 600_000, "sample": 100_000, "infer": 300_000}[verb]
    tally = no_room(*commands[verb], tmp_path, TRIES // 2, SEED, most, disk)
    tell(tally, f"{verb}, on a disk of 0 to {most:,} bytes")
    assert tally.harmed


@pytest.mark.slow
@verbs
def test_a_command_on_a_read_only_disk_leaves_all_and_goes_on_when_it_may(
    commands, tmp_path, disk, verb
):
    command, result = commands[verb]
    count, place = tmp_path / "count", tmp_path / "disk"
    expected, _, done = undisturbed(command, result, tmp_path / "whole", count)
    place.mkdir()
    disk(place, None)
    out = place / "out"
    status(begin(command(out), out, count, Harm(kill_before=done["writes"] // 2)))
    disk(place, "ro")
    assert status(begin(command(out), out, count, Harm())) == 1
    disk(place, None)
    assert status(begin(command(out), out, count, Harm())) == 0
    assert result(out) == expected and not half_written(out)
