"""Logs lose the lines that were damaged, and no others."""

import json
import shutil

import pytest
from command import TINY, hsivi, rows, save_detector, train

from hsivi_cli.files.logs import append, rows_of, trim

ROWS = [{"step": step, "loss": step / 3} for step in range(5)]


@pytest.fixture
def log(tmp_path):
    for row in ROWS:
        append(tmp_path / "log.jsonl", row)
    return tmp_path / "log.jsonl"


def test_rows_come_back_as_they_went_and_those_of_later_steps_go(log):
    assert rows_of(log) == ROWS and rows_of(log.parent / "none.jsonl") == []
    before = log.read_bytes()
    trim(log, 9)
    assert log.read_bytes() == before
    trim(log, 2)
    assert rows(log) == ROWS[:3]


def test_a_line_of_whichever_byte_was_flipped_is_dropped_or_read_and_the_others_stay(log):
    content = log.read_bytes()
    second = range(content.index(b"\n") + 1, content.index(b"\n", content.index(b"\n") + 1))
    dropped = 0
    for place in second:
        for bit in range(8):
            broken = bytearray(content)
            broken[place] ^= 1 << bit
            log.write_bytes(broken)
            found = rows_of(log, "loss")
            assert [row for row in ROWS if row in found] >= ROWS[:1] + ROWS[2:]
            dropped += len(found) < 5
            trim(log, 9)
            assert all(json.loads(line) for line in log.read_text().splitlines())
    assert dropped > len(second) * 4  # the rest changed a digit


@pytest.mark.parametrize(
    "line", ["", "7", "[]", "{}", '{"step": "1"}', '{"step": 2.5}', "[" * 100_000, '{"step": 3, "l']
)
def test_what_is_no_row_is_dropped(log, line):
    log.write_text(f"{line}\n" + log.read_text())
    assert rows_of(log) == ROWS


def test_damaged_logs_stop_neither_a_training_nor_a_comparison(save_teacher, tmp_path):
    teacher, out = save_teacher(**TINY), tmp_path / "run"
    save_detector(tmp_path / "detector")
    hsivi("sample", teacher, "--solver", "ddim", "--nfe", 2, "--count", 9, "--out",
          tmp_path / "real.npz", "--device", "cpu")  # fmt: skip
    judged = ("--reference", tmp_path / "real.npz", "--detector", tmp_path / "detector")
    options = (*judged, "--eval-count", 9, "--eval-every", 1, "--steps", 3)
    train(teacher, out, *options)
    kept, odd = {name: rows(out / name) for name in LOGS}, {}
    for name in kept:
        lines = (out / name).read_bytes().splitlines(keepends=True)
        lines[1] = b"\xff" + lines[1][1:]
        (out / name).write_bytes(b"".join(lines))
        odd[name] = {key: [] for key in kept[name][0]} | {"step": 1}  # of no kind that a row has
        append(out / name, odd[name])
    shutil.copytree(out, tmp_path / "other")
    count = ("--count", 9, "--tune-count", 8, "--solvers", "ddim", "--device", "cpu")
    hsivi("compare", out, *judged, *count, "--cache", tmp_path / "cache")
    train(teacher, out, *options)
    odd["evaluations.jsonl"] = None  # it has no round
    for name in LOGS:
        left = [odd[name]] if odd[name] else []
        assert rows(out / name) == kept[name][:1] + kept[name][2:] + left


LOGS = ("metrics.jsonl", "timing.jsonl", "evaluations.jsonl")
