"""Files that are whole or absent, and checkpoints that survive what can happen to them."""

import errno
import hashlib
import json
import math
import os
import shutil
import subprocess

import pytest
import torch
from command import TINY, train, tree, warnings_of
from diffusers import DDPMPipeline, DDPMScheduler
from torch import nn

from hsivi_cli.errors import HsiviError
from hsivi_cli.files import whole
from hsivi_cli.files.checkpoint import (
    checkpoints,
    load_checkpoint,
    load_optimizer,
    optimizer_tensors,
    save_checkpoint,
)
from hsivi_cli.files.places import check_file, check_place
from hsivi_cli.files.whole import read_tensors, replacing, write_tensors, write_text

TENSORS = {
    "a": torch.arange(6.0).reshape(2, 3),
    "b": torch.tensor(3, dtype=torch.int64),
    "c": torch.tensor([1.5], dtype=torch.float64),
}


def equal(a, b):
    same = a.keys() == b.keys()
    return same and all(torch.equal(a[n], b[n]) and a[n].dtype == b[n].dtype for n in a)


def test_tensors_come_back_as_they_went(tmp_path):
    given = TENSORS | {"turned": TENSORS["a"].T, "parameter": nn.Parameter(torch.ones(2))}
    write_tensors(tmp_path / "below" / "x.safetensors", given)
    assert equal(read_tensors(tmp_path / "below" / "x.safetensors"), given)


def test_a_file_is_replaced_only_by_a_whole_one(tmp_path):
    file = tmp_path / "note.txt"
    write_text(file, "old")
    with pytest.raises(ZeroDivisionError), replacing(file) as temporary:
        temporary.write_text("half of the ne")
        raise ZeroDivisionError
    assert file.read_text() == "old" and list(tmp_path.iterdir()) == [file]
    write_text(file, "new")
    assert file.read_text() == "new" and list(tmp_path.iterdir()) == [file]


def test_what_a_killed_process_left_of_a_file_goes_when_it_is_written_again(tmp_path):
    gone = subprocess.Popen(["true"])
    gone.wait()
    for name, pid in (("a[1].json", gone.pid), ("b.json", gone.pid), ("a[1].json", os.getppid())):
        (tmp_path / f".{name}.{pid}.tmp.json").write_text("half")
    write_text(tmp_path / "a[1].json", "whole")
    left = {f".b.json.{gone.pid}.tmp.json", f".a[1].json.{os.getppid()}.tmp.json"}
    assert {path.name for path in tmp_path.iterdir()} == left | {"a[1].json"}


def test_a_folder_is_replaced_whole_and_its_temporary_goes_when_it_fails(tmp_path):
    folder = tmp_path / "made"
    for content in ("one", "two"):
        with replacing(folder) as temporary:
            temporary.mkdir()
            (temporary / content).write_text(content)
    assert [f.name for f in folder.iterdir()] == ["two"]
    with pytest.raises(ZeroDivisionError), replacing(folder) as temporary:
        temporary.mkdir()
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == [folder] and [f.name for f in folder.iterdir()] == ["two"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES, errno.EROFS])
def test_a_disk_that_takes_no_more_is_one_line(tmp_path, monkeypatch, code):
    def fail(*args, **kwargs):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(whole.os, "replace", fail)
    with pytest.raises(HsiviError, match=rf"x\.txt: {os.strerror(code)}; free some space"):
        write_text(tmp_path / "x.txt", "text")
    assert not list(tmp_path.iterdir())


def test_the_newest_two_checkpoints_are_kept_and_the_newest_is_read(tmp_path):
    assert load_checkpoint(tmp_path / "none") is None
    for number in (5, 50, 500):
        save_checkpoint(tmp_path, number, TENSORS | {"n": torch.tensor(number)}, {"round": number})
    assert [p.name for p in checkpoints(tmp_path)] == ["step-000050", "step-000500"]
    tensors, state = load_checkpoint(tmp_path)
    assert state == {"round": 500} and tensors.pop("n") == 500 and equal(tensors, TENSORS)


def test_checkpoints_are_in_order_beyond_a_million(tmp_path):
    for number in (999_999, 1_000_000, 1_000_001):
        save_checkpoint(tmp_path, number, TENSORS, {"round": number})
    assert load_checkpoint(tmp_path)[1]["round"] == 1_000_001


def test_what_a_killed_run_left_half_written_goes_when_it_is_resumed(save_teacher, tmp_path):
    teacher, out = save_teacher(**TINY), tmp_path / "run"
    train(teacher, out)
    before = tree(out)
    (out / "checkpoint" / ".step-000004.123.tmp").mkdir()
    (out / ".hsivi.json.123.tmp.json").write_text("{")
    (out / "eval").mkdir()
    (out / "eval" / ".step-000002.png.123.tmp.png").write_text("")
    (out / ".export-abc").mkdir()
    (out / ".export-abc" / "half").write_text("")
    train(teacher, out)
    assert tree(out) == before


def test_what_a_run_left_that_was_killed_at_once_goes_too(save_teacher, tmp_path):
    teacher, out = save_teacher(**TINY), tmp_path / "run"
    (out / "checkpoint" / ".step-000002.1.tmp").mkdir(parents=True)
    shutil.rmtree(out / "checkpoint")
    (out / ".hsivi.json.77.tmp.json").write_text("{")
    train(teacher, out)
    assert not list(out.rglob(".*"))


def test_folders_that_are_no_checkpoints_are_passed_over(tmp_path):
    save_checkpoint(tmp_path, 5, TENSORS, {"round": 5})
    (tmp_path / "step-000006.bak").mkdir()
    assert load_checkpoint(tmp_path)[1] == {"round": 5}


def test_a_folder_that_may_be_written_needs_no_such_parent(tmp_path, monkeypatch):
    mounted = tmp_path / "data"
    mounted.mkdir()
    allowed = whole.os.access
    monkeypatch.setattr(
        whole.os, "access", lambda path, mode: path != tmp_path and allowed(path, mode)
    )
    check_place(mounted, folder=True)
    with pytest.raises(HsiviError, match="nothing can be written into"):
        check_place(tmp_path / "other", folder=True)


def test_a_place_that_takes_no_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file" / "below", tmp_path / "file" / "far" / "below"):
        with pytest.raises(HsiviError, match="nothing can be written into"):
            check_place(path)
        with pytest.raises(HsiviError, match="could not write"):
            write_text(path, "text")
    check_place(tmp_path / "new" / "folder" / "file")
    check_place(tmp_path, folder=True)
    with pytest.raises(HsiviError, match="is a file"):
        check_place(tmp_path / "file", folder=True)
    with pytest.raises(HsiviError, match="is a folder"):
        check_file(tmp_path)
    with pytest.raises(HsiviError, match="named twice"):
        check_file(tmp_path / "file", None, tmp_path / "x" / ".." / "file")
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]


def test_a_checkpoint_of_the_same_number_is_replaced(tmp_path):
    save_checkpoint(tmp_path, 5, TENSORS, {"round": 5, "seconds": 1})
    save_checkpoint(tmp_path, 5, TENSORS, {"round": 5, "seconds": 2})
    assert load_checkpoint(tmp_path)[1]["seconds"] == 2 and len(checkpoints(tmp_path)) == 1


def test_a_checkpoint_that_fails_leaves_the_earlier_ones(tmp_path, monkeypatch):
    for number in (1, 2):
        save_checkpoint(tmp_path, number, TENSORS, {"round": number})
    before = tree(tmp_path)

    def fail(tensors, file, **kwargs):
        file.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(whole, "save_file", fail)
    with pytest.raises(HsiviError, match="No space left"):
        save_checkpoint(tmp_path, 3, TENSORS, {"round": 3})
    assert tree(tmp_path) == before


def damage_tensors(folder):
    file = folder / "tensors.safetensors"
    file.write_bytes(file.read_bytes()[:-20])


def damage_state(folder):
    (folder / "state.json").write_text('{"round": ')


def forget_round(folder):
    (folder / "state.json").write_text("[]")


def forget_best(folder):
    (folder / "state.json").write_text('{"round": 3, "seconds": 1.0}')


def exchange_tensors(folder):
    write_tensors(folder / "tensors.safetensors", TENSORS)


def lose_tensors(folder):
    (folder / "tensors.safetensors").unlink()


def flip(file, place=None):
    """Turn one bit of a file over, by default in its middle."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2 if place is None else place] ^= 4
    file.write_bytes(content)


def flip_tensors(folder):
    flip(folder / "tensors.safetensors")


def flip_state(folder):
    file = folder / "state.json"
    flip(file, file.read_bytes().index(b'"seconds": ') + len('"seconds": '))


def flip_sums(folder):
    flip(folder / "SHA256SUMS", 3)


def empty_sums(folder):
    (folder / "SHA256SUMS").write_text("")


@pytest.fixture(scope="module")
def finished(tiny_unet, tmp_path_factory):
    """A folder with a teacher and a run of it that keeps two checkpoints."""
    folder = tmp_path_factory.mktemp("finished")
    pipeline = DDPMPipeline(unet=tiny_unet(**TINY), scheduler=DDPMScheduler())
    pipeline.save_pretrained(folder / "teacher")
    train(folder / "teacher", folder / "run", *EVERY_STEP)
    return folder


EVERY_STEP = ("--steps", 3, "--checkpoint-every", 1)
WHOLE_BUT = [damage_tensors, damage_state, forget_round, forget_best, exchange_tensors]
WHOLE_BUT += [lose_tensors, flip_tensors, flip_state, flip_sums, empty_sums]


@pytest.mark.parametrize("damage", WHOLE_BUT)
def test_the_checkpoint_before_takes_over_from_a_damaged_one_and_says_so(
    finished, tmp_path, damage
):
    out = shutil.copytree(finished / "run", tmp_path / "run")
    weights = out / "unet" / "diffusion_pytorch_model.safetensors"
    expected = weights.read_bytes()
    older, newest = checkpoints(out / "checkpoint")
    damage(newest)
    (told,) = warnings_of(train(finished / "teacher", out, *EVERY_STEP))
    assert told.startswith(f"warning: the checkpoint {newest} is damaged (")
    assert told.endswith(f"{older.name} takes over") and weights.read_bytes() == expected
    assert not warnings_of(train(finished / "teacher", out, *EVERY_STEP))  # it was made anew


def forget_sums(folder):
    (folder / "SHA256SUMS").unlink()


def unshape_an_optimizer(folder):
    tensors = read_tensors(folder / "tensors.safetensors")
    tensors["student_optimizer.0.exp_avg"] = torch.zeros(3)
    write_tensors(folder / "tensors.safetensors", tensors)


def say_in_state(**change):
    def damage(folder):
        state = json.loads((folder / "state.json").read_text())
        (folder / "state.json").write_text(json.dumps(state | change))

    return damage


def nest_state(folder):
    (folder / "state.json").write_text("[" * 100_000)


BEST = {"step": 1, "distance": 2.0, "count": 9, "detector": "a"}


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda folder: None, None),
        (unshape_an_optimizer, "student_optimizer.0.exp_avg has the shape [3]"),
        (say_in_state(round=63000), "round 63000"),
        (say_in_state(round=math.inf), "round inf"),
        (say_in_state(seconds=math.inf), "seconds are inf"),
        (say_in_state(seconds=-1.0), "seconds are -1.0"),
        (say_in_state(cpu_seconds=None), "cpu_seconds are None"),
        (say_in_state(skipped=["x"]), "skipped are"),
        (say_in_state(rollbacks=10**9), "rollbacks are 1000000000"),
        (say_in_state(rollbacks=False), "rollbacks are False"),
        (say_in_state(skipped=[True]), "skipped are [True]"),
        (say_in_state(seconds=True), "seconds are True"),
        (say_in_state(best=BEST | {"distance": None}), "no usable distance"),
        (say_in_state(best=7), "no usable step"),
        (nest_state, "cannot be read as JSON"),
    ],
)
def test_what_no_sum_tells_is_found_when_it_is_loaded(finished, tmp_path, damage, reason):
    out = shutil.copytree(finished / "run", tmp_path / "run")
    expected = tree(out / "unet")
    older, newest = checkpoints(out / "checkpoint")
    forget_sums(older), forget_sums(newest)  # as earlier versions wrote them
    damage(newest)
    told = warnings_of(train(finished / "teacher", out, *EVERY_STEP))
    assert len(told) == (reason is not None) and all(reason in line for line in told)
    assert tree(out / "unet") == expected


def test_true_is_no_number_of_a_checkpoint(tmp_path):
    for number in (0, 1):
        save_checkpoint(tmp_path, number, TENSORS, {"round": number})
    forget_sums(tmp_path / "step-000001")
    (tmp_path / "step-000001" / "state.json").write_text('{"round": true}')
    assert load_checkpoint(tmp_path)[1] == {"round": 0}


def test_a_checkpoint_of_another_number_is_not_believed(tmp_path):
    for number in (5, 6):
        save_checkpoint(tmp_path, number, TENSORS, {"round": number})
    (tmp_path / "step-000006").rename(tmp_path / "step-000009")
    assert load_checkpoint(tmp_path)[1] == {"round": 5}


@pytest.mark.parametrize("name", ["SHA256SUMS", "state.json", "tensors.safetensors"])
def test_a_pipe_in_a_checkpoint_is_not_waited_for(tmp_path, name, capsys):
    save_checkpoint(tmp_path, 1, {"x": torch.zeros(1)}, {"round": 1})
    save_checkpoint(tmp_path, 2, {"x": torch.ones(1)}, {"round": 2})
    (tmp_path / "step-000002" / name).unlink()
    os.mkfifo(tmp_path / "step-000002" / name)
    tensors, state = load_checkpoint(tmp_path)
    assert state["round"] == 1 and not tensors["x"].any()
    assert f"{name} is no file, but a pipe" in capsys.readouterr().err


def test_the_sums_are_those_of_sha256sum(tmp_path):
    save_checkpoint(tmp_path, 5, TENSORS, {"round": 5})
    for line in (tmp_path / "step-000005" / "SHA256SUMS").read_text().splitlines():
        told, name = line.split("  ")
        content = (tmp_path / "step-000005" / name).read_bytes()
        assert told == hashlib.sha256(content).hexdigest()


def test_a_later_checkpoint_than_the_one_that_is_written_goes(tmp_path):
    for number in (5, 50):
        save_checkpoint(tmp_path, number, TENSORS, {"round": number})
    flip_tensors(tmp_path / "step-000050")
    save_checkpoint(tmp_path, 7, TENSORS, {"round": 7})
    assert [path.name for path in checkpoints(tmp_path)] == ["step-000005", "step-000007"]


def test_no_checkpoint_that_is_whole_is_one_line_that_says_what_to_do(tmp_path):
    save_checkpoint(tmp_path, 1, TENSORS, {"round": 1})
    damage_tensors(tmp_path / "step-000001")
    with pytest.raises(HsiviError, match=r"damaged: .*step-000001 \(.*another --out"):
        load_checkpoint(tmp_path)
    save_checkpoint(tmp_path, 2, TENSORS, {"round": 2})
    damage_state(tmp_path / "step-000002")
    with pytest.raises(HsiviError, match=r"damaged: .*step-000001 and .*step-000002 \(state"):
        load_checkpoint(tmp_path)


def test_tensors_that_are_no_tensors_are_one_line(tmp_path):
    (tmp_path / "x.safetensors").write_bytes(b"not a tensor")
    with pytest.raises(HsiviError, match=r"x\.safetensors cannot be read"):
        read_tensors(tmp_path / "x.safetensors")


@pytest.mark.parametrize("kind", ["adam", "amsgrad"])
def test_an_optimizer_goes_on_as_if_it_had_not_been_written(tmp_path, kind):
    def fresh():
        torch.manual_seed(0)
        network = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 1))
        network[0].bias.requires_grad_(False)  # a parameter without a state
        return network, torch.optim.Adam(network.parameters(), lr=0.1, amsgrad=kind == "amsgrad")

    def step(network, optimizer, seed):
        torch.manual_seed(seed)
        optimizer.zero_grad()
        network(torch.randn(5, 3)).square().sum().backward()
        optimizer.step()

    network, optimizer = fresh()
    for seed in range(3):
        step(network, optimizer, seed)
    weights = {n: t.clone() for n, t in network.state_dict().items()}
    write_tensors(tmp_path / "o.safetensors", optimizer_tensors(optimizer, "o"))
    step(network, optimizer, 3)

    other, restored = fresh()
    other.load_state_dict(weights)
    load_optimizer(restored, "o", read_tensors(tmp_path / "o.safetensors"))
    step(other, restored, 3)
    assert equal(network.state_dict(), other.state_dict())


@pytest.mark.parametrize(
    ("name", "tensor", "told"),
    [
        ("o.0.exp_avg", torch.tensor(0.0), r"o.0.exp_avg has the shape \[\]"),
        ("o.0.step", torch.zeros(3, 2), r"o.0.step has the shape \[3, 2\]"),
        ("o.1.exp_avg_sq", None, "o.1 lacks exp_avg_sq"),
    ],
)
def test_an_optimizers_tensors_of_other_shapes_are_refused(name, tensor, told):
    network = nn.Linear(2, 3)
    optimizer = torch.optim.Adam(network.parameters())
    network(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    tensors = optimizer_tensors(optimizer, "o") | {name: tensor}
    with pytest.raises(HsiviError, match=told):
        load_optimizer(optimizer, "o", {n: t for n, t in tensors.items() if t is not None})
