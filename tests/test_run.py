"""The one resumable run, over the least that can be trained: a number."""

import io
import json
import os
import signal
import sys

import pytest
import torch
from command import rows

from hsivi_cli.errors import HsiviError
from hsivi_cli.files import progress
from hsivi_cli.files.checkpoint import checkpoints, load_checkpoint
from hsivi_cli.files.progress import Bar
from hsivi_cli.files.run import Plan, Processes, Run

BROKEN = -1.0


class Number:
    """A number that every round adds its own to; the first two rounds make no step."""

    def __init__(self, out):
        self.out, self.value, self.fails = out, torch.zeros(1), False

    def tensors(self):
        return {"value": self.value}

    def load(self, tensors, state):
        self.value.copy_(tensors["value"])

    def export(self, run):
        if self.fails:
            raise KeyboardInterrupt  # as a kill after the checkpoint
        (self.out / "value.json").write_text(json.dumps([run.step, self.value.item()]))

    def words(self, measured, run):
        return f"value {measured['value']:g}"

    def fault(self):
        return "it draws nothing" if self.value == BROKEN else None

    def not_finite(self, what, round_, kept):
        return HsiviError(f"{what} in round {round_}: {kept}")

    def play(self, round_):
        self.value += round_
        return {"value": self.value.item()}


class Config:
    def __init__(self, minutes=None):
        self.minutes = minutes


def plan(last=8, every=3):
    return Plan(0, last, lambda n: max(0, n - 2), lambda n: n > 2 and (n - 2) % every == 0)


def open_run(out, minutes=None, resume=False, **more):
    out.mkdir(exist_ok=True)
    number = Number(out)
    return number, Run(out, Config(minutes), number, plan(), resume, **more)


def go(out, until=None, **more):
    """Rounds up to a signal in round `until`, or to the end."""
    number, run = open_run(out, **more)
    for round_ in run.rounds():
        if round_ == until:
            os.kill(os.getpid(), signal.SIGTERM)
        run.record(number.play(round_))
    return run


def result(out):
    return json.loads((out / "value.json").read_text()), rows(out / "metrics.jsonl")


@pytest.mark.parametrize("until", range(7))
def test_a_run_that_a_signal_ends_in_any_round_and_that_goes_on_is_the_same(tmp_path, until):
    go(tmp_path / "whole")
    assert go(tmp_path / "broken", until).stopped == signal.SIGTERM
    assert not go(tmp_path / "broken", resume=True).stopped
    assert result(tmp_path / "broken") == result(tmp_path / "whole")
    assert result(tmp_path / "whole")[0] == [6, sum(range(8))]
    assert [row["step"] for row in result(tmp_path / "whole")[1]] == [1, 2, 3, 4, 5, 6]


def test_minutes_end_a_run_after_a_round_and_it_says_how_to_go_on(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["hsivi", "train", "my teacher"])
    run = go(tmp_path / "x", minutes=1e-9)
    assert run.state["round"] == 1 and run.stopped == -1
    run.leave("at step 0 of 6")  # no signal: it returns
    assert "hsivi train 'my teacher'" in capsys.readouterr().err
    run = go(tmp_path / "x", resume=True, until=3)
    with pytest.raises(SystemExit) as end:
        run.leave("at step 2 of 6")
    assert end.value.code == 128 + signal.SIGTERM


def test_what_is_not_finite_ends_the_run_at_its_step_and_is_not_counted(tmp_path):
    number, run = open_run(tmp_path / "x")
    with pytest.raises(HsiviError, match=r"not finite in round 5: .*step-000005 is the last good"):
        for round_ in run.rounds():
            run.record({"value": float("nan")} if round_ == 5 else number.play(round_))
    assert run.state["round"] == 5 and len(rows(tmp_path / "x" / "metrics.jsonl")) == 3


@pytest.mark.parametrize(
    ("value", "told"), [(float("inf"), r"value holds NaN or inf"), (BROKEN, "it draws nothing")]
)
def test_a_state_that_is_not_finite_or_draws_nothing_is_neither_kept_nor_exported(
    tmp_path, value, told
):
    number, run = open_run(tmp_path / "x")
    with pytest.raises(HsiviError, match=rf"{told}.* in round 7: .*step-000005 is the last good"):
        for round_ in run.rounds():
            measured = number.play(round_)
            if round_ == 7:
                number.value.fill_(value)
            run.record(measured)
    assert [p.name for p in checkpoints(tmp_path / "x" / "checkpoint")] == ["step-000005"]
    assert json.loads((tmp_path / "x" / "value.json").read_text())[0] == 3


def test_a_kill_between_a_checkpoint_and_its_export_loses_nothing(tmp_path):
    number, run = open_run(tmp_path / "x")
    number.fails = True
    with pytest.raises(KeyboardInterrupt):
        for round_ in run.rounds():
            run.record(number.play(round_))
    tensors, state = load_checkpoint(tmp_path / "x" / "checkpoint")
    assert state["round"] == 5 and tensors["value"].item() == sum(range(5))
    go(tmp_path / "x", resume=True)
    assert result(tmp_path / "x")[0] == [6, sum(range(8))]


def test_only_the_main_process_writes_and_all_stop_where_one_does(tmp_path):
    waits, stops = [], iter([False, False, True])
    other = Processes(main=False, any=lambda so: next(stops), wait=lambda: waits.append(1))
    run = go(tmp_path / "x", processes=other)
    assert run.state["round"] == 3 and run.stopped and waits == [1]
    assert not list((tmp_path / "x").iterdir())


def test_seconds_add_up_over_the_parts_of_a_run_and_the_one_before(tmp_path):
    _, run = open_run(tmp_path / "x", begin=(0.0, 0.0))
    run.add_seconds(100.0)
    run.clock()
    first = dict(run.state)
    assert first["seconds"] > 100 and first["cpu_seconds"] > 0
    run.keep()
    _, again = open_run(tmp_path / "x", resume=True)
    again.clock()
    assert again.state["seconds"] == pytest.approx(first["seconds"], rel=0.01)


def test_into_a_pipe_a_bar_writes_whole_lines(monkeypatch):
    monkeypatch.setattr(progress, "PAUSE", 0)
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with Bar(total=3, unit="round") as bar:
        for step in range(3):
            bar.set_description(f"step {step}", refresh=False)
            bar.update()
    told = sys.stderr.getvalue()
    assert any(line.startswith("step 1: 2 of 3 round,") for line in told.split("\n"))
    assert "\r" not in told and "\n\n" not in told


def test_a_short_run_says_nothing_into_a_pipe(tmp_path, capsys):
    go(tmp_path / "x")
    assert capsys.readouterr().err == ""
