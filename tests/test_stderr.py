"""Streams that do not take what is said."""

import os
import shlex
import subprocess
import sys

import pytest
import torch
from command import QUICK, TINY, rows, save_detector

from hsivi_cli.files.images import save_npz
from hsivi_cli.models.student import load_student


@pytest.fixture
def command(save_teacher, tmp_path):
    """A short training that is judged, as a shell's line."""
    save_detector(tmp_path / "detector")
    save_npz(torch.randint(256, (9, 8, 8, 1), dtype=torch.uint8), tmp_path / "real.npz")
    judged = ("--reference", tmp_path / "real.npz", "--detector", tmp_path / "detector")
    options = ("--eval-count", 9, "--eval-every", 1, "--out", tmp_path / "rün")
    words = [sys.executable, "-m", "hsivi_cli", "train", save_teacher(**TINY), *QUICK]
    return shlex.join(map(str, [*words, *judged, *options]))


ASCII = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}


@pytest.mark.parametrize(
    "redirection",
    ["2>&-", "2>/dev/full", pytest.param("2> >(exec 0<&-)", marks=pytest.mark.slow)],
)
def test_a_stderr_that_takes_nothing_and_a_locale_of_ascii_end_no_training(
    command, tmp_path, redirection
):
    words = ["bash", "-c", f"{command} {redirection}"]
    done = subprocess.run(words, capture_output=True, env=os.environ | ASCII)
    assert done.returncode == 0 and done.stdout == b""
    assert len(rows(tmp_path / "rün" / "evaluations.jsonl")) == 3  # the start's too
    assert load_student(tmp_path / "rün").info["best"]
    assert "Fréchet" in (tmp_path / "rün" / "README.md").read_text(encoding="utf-8")


def test_what_a_locale_cannot_say_is_said_with_a_question_mark():
    code = "from hsivi_cli.files.stderr import settle_streams as s; s(); print(chr(233))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, env=os.environ | ASCII)
    assert done.returncode == 0 and done.stdout == b"?\n", done.stderr
