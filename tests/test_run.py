"""The one resumable run, over the least that can be trained: a number."""

import io
import json
import os
import signal
import sys
from dataclasses import dataclass

import pytest
import torch
from command import rows

from hsivi_cli.errors import HsiviError
from hsivi_cli.files import progress
from hsivi_cli.files.checkpoint import checkpoints, go_back, load_checkpoint, save_checkpoint
from hsivi_cli.files.logs import trim
from hsivi_cli.files.progress import Bar
from hsivi_cli.files.run import Plan, Processes, RolledBack, Run, until_done

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


@dataclass(frozen=True)
class Config:
    minutes: float | None = None
    on_nan: str = "stop"
    student_rate: float = 8.0


def plan(last=8, every=3):
    return Plan(0, last, lambda n: max(0, n - 2), lambda n: n > 2 and (n - 2) % every == 0)


def open_run(out, minutes=None, resume=False, on_nan="stop", **more):
    out.mkdir(exist_ok=True)
    number = Number(out)
    return number, Run(out, Config(minutes, on_nan), number, plan(), resume, **more)


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


# ---- what is not finite --------------------------------------------------------------------------


def go_with_nan(out, bad, until=None, **more):
    """`go`, where in the rounds `bad` a measure is not finite and the number stays as it is."""
    number, run = open_run(out, **more)
    for round_ in run.rounds():
        if round_ == until:
            os.kill(os.getpid(), signal.SIGTERM)
        broken = {"value": number.value.item(), "norm": float("inf")}
        run.record(broken if round_ in bad else number.play(round_))
    return run


def test_a_round_that_is_not_finite_is_skipped_and_counted(tmp_path, capsys):
    run = go_with_nan(tmp_path / "x", [1, 5], on_nan="skip")
    assert run.state["skipped"] == [1, 5]
    (_, value), told = result(tmp_path / "x")
    assert value == sum(range(8)) - 6 and told[3] == {"step": 4, "skipped": ["norm"]}
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("warning: norm not finite before the first step: skipped, 1 of ")
    assert second.startswith("warning: norm not finite at step 4: skipped, 2 of the 3")


@pytest.mark.parametrize("until", range(7))
def test_a_run_that_skipped_and_was_broken_off_in_any_round_goes_on_the_same(tmp_path, until):
    bad = [3, 4, 6]
    go_with_nan(tmp_path / "whole", bad, on_nan="skip")
    stopped = go_with_nan(tmp_path / "broken", bad, until, on_nan="skip").stopped
    assert stopped or until == 6  # it waits for a round that is finite, which is the last
    go_with_nan(tmp_path / "broken", bad, on_nan="skip", resume=True)
    assert result(tmp_path / "broken") == result(tmp_path / "whole")


def test_three_rounds_in_a_hundred_may_be_skipped_and_no_fourth(tmp_path):
    long = Plan(0, 210, lambda n: n, lambda n: False)

    def run_to_the_end(name, bad):
        (tmp_path / name).mkdir()
        run = Run(tmp_path / name, Config(on_nan="skip"), Number(tmp_path / name), long)
        for round_ in run.rounds():
            run.record({"value": float("nan") if round_ in bad else 1.0})

    run_to_the_end("few", [1, 3, 5, 101, 103, 105, 201])
    with pytest.raises(HsiviError, match="loss is not finite in round 100"):
        run_to_the_end("many", [1, 3, 5, 100])


def test_a_state_after_a_skipped_round_is_not_kept_but_the_next_is(tmp_path):
    go_with_nan(tmp_path / "x", [4], on_nan="skip")  # after five rounds a checkpoint is due
    names = [path.name for path in checkpoints(tmp_path / "x" / "checkpoint")]
    assert names == ["step-000006", "step-000008"]


def test_a_run_whose_last_rounds_were_not_finite_has_not_succeeded(tmp_path):
    go_with_nan(tmp_path / "one", [7], on_nan="skip")
    with pytest.raises(HsiviError, match=r"not finite in round 7: .*step-000005"):
        go_with_nan(tmp_path / "two", [6, 7], on_nan="skip")


def go_with_rates(out, least, until=None, resume=False):
    """Rounds of which those from 6 on are not finite at a rate above `least`; the run is opened
    again as often as it rolls back. Returns it, and the rounds with their rates.
    """
    seen = []

    def part(begin):
        number, run = open_run(out, resume=resume or bool(seen), on_nan="rollback", begin=begin)
        trim(out / "metrics.jsonl", run.step)
        for round_ in run.rounds():
            rate = run.settings.student_rate
            seen.append((round_, rate))
            if len(seen) == until:
                os.kill(os.getpid(), signal.SIGTERM)
            broken = round_ >= 6 and rate > least
            run.record({"value": float("nan")} if broken else number.play(round_))
        return run

    runs = []
    until_done(lambda begin: runs.append(part(begin)), (0.0, 0.0))
    return runs[-1], seen


def test_a_rollback_goes_to_the_checkpoint_before_the_last_at_half_the_rates(tmp_path, capsys):
    handler = signal.getsignal(signal.SIGTERM)
    run, seen = go_with_rates(tmp_path / "x", 2.0)
    # checkpoints after 5 rounds only: there it goes back to, twice
    assert seen == [
        *((n, 8.0) for n in range(7)),
        (5, 4.0),
        (6, 4.0),
        *((n, 2.0) for n in (5, 6, 7)),
    ]
    assert run.state["rollbacks"] == 2 and run.config.student_rate == 8.0
    assert result(tmp_path / "x") == result_of_a_whole_run(tmp_path)
    told = capsys.readouterr().err.splitlines()
    assert [line.split(": ", 2)[2] for line in told] == [
        "back to step-000005, at rates times 0.5",
        "back to step-000005, at rates times 0.25",
    ]
    assert signal.getsignal(signal.SIGTERM) == handler


def result_of_a_whole_run(tmp_path):
    go(tmp_path / "whole")
    return result(tmp_path / "whole")


@pytest.mark.parametrize("until", range(1, 12))
def test_a_run_that_rolled_back_and_was_broken_off_goes_on_the_same(tmp_path, until):
    run, before = go_with_rates(tmp_path / "x", 2.0, until)
    run, after = go_with_rates(tmp_path / "x", 2.0, resume=True)
    assert result(tmp_path / "x") == result_of_a_whole_run(tmp_path)
    assert (before + after)[-1] == (7, 2.0) and run.state["rollbacks"] == 2


def test_of_two_checkpoints_the_older_is_gone_back_to_and_the_newer_goes(tmp_path):
    for number in (5, 8):
        save_checkpoint(tmp_path, number, {"value": torch.tensor(number)}, {"round": number})
    assert go_back(tmp_path, {"rollbacks": 1}) == tmp_path / "step-000005"
    tensors, state = load_checkpoint(tmp_path)
    assert tensors["value"] == 5 and state == {"round": 5, "rollbacks": 1}
    assert checkpoints(tmp_path) == [tmp_path / "step-000005"]


def test_rolling_back_ends_where_nothing_helps_and_where_nothing_was_kept(tmp_path):
    with pytest.raises(HsiviError, match="loss is not finite in round 6"):
        go_with_rates(tmp_path / "x", 0.0)
    assert load_checkpoint(tmp_path / "x" / "checkpoint")[1]["rollbacks"] == 5
    with pytest.raises(HsiviError, match="round 1: there was no checkpoint yet"):
        go_with_nan(tmp_path / "y", [1], on_nan="rollback")


def test_a_state_that_draws_nothing_rolls_back_too(tmp_path):
    number, run = open_run(tmp_path / "x", on_nan="rollback")
    with pytest.raises(RolledBack):
        for round_ in run.rounds():
            measured = number.play(round_)
            if round_ == 7:
                number.value.fill_(BROKEN)
            run.record(measured)
    assert load_checkpoint(tmp_path / "x" / "checkpoint")[1]["round"] == 5


# ---- kills ---------------------------------------------------------------------------------------


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
    waits, stops = [], iter([False, False, True, False])
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
    with Bar(total=3, unit="rounds") as bar:
        for step in range(3):
            bar.set_description(f"step {step}", refresh=False)
            bar.update()
    told = sys.stderr.getvalue()
    assert any(line.startswith("step 1: 2 of 3 rounds,") for line in told.split("\n"))
    assert "\r" not in told and "\n\n" not in told


def test_a_run_tells_how_many_of_its_rounds_are_over(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(progress, "PAUSE", 0)
    count = go(tmp_path / "x").plan.last
    assert f"{count} of {count} rounds, " in capsys.readouterr().err.splitlines()[-1]


def test_a_short_run_says_nothing_into_a_pipe(tmp_path, capsys):
    go(tmp_path / "x")
    assert capsys.readouterr().err == ""
