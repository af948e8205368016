"""`hsivi boost`: what lies in a run's folder, how it goes on, what it draws, what it refuses."""

import csv
import io
import json
import os
import shutil
import signal

import lightgbm
import numpy as np
import pytest
import torch
from command import finite, hsivi, refusal, rows, tree, warnings_of

from hsivi_cli.files.checkpoint import checkpoints
from hsivi_cli.files.folder import holding
from hsivi_cli.files.whole import write_tensors
from hsivi_cli.tables.learner import Learner
from hsivi_cli.verbs.boost import load

FLAGS = ("--calls", 3, "--trees", 3, "--repeats", 4, "--match", 1, "--threads", 1, "--leaves", 4)


def written(folder, name="t.csv", count=120, seed=0, extra=""):
    """A table of a number, a category with gaps, and two targets."""
    draw = np.random.default_rng(seed)
    lines = [f"size,colour,y,z{extra}"]
    for _ in range(count):
        size, colour = draw.normal(), draw.choice(["red", "blue", ""])
        y = 2 * size + (colour == "red") + 0.3 * draw.normal()
        lines.append(f"{size:.4f},{colour},{y:.4f},{-y + draw.normal():.4f}" + ",0" * bool(extra))
    file = folder / name
    file.write_text("\n".join(lines) + "\n")
    return file


def boost(table, out, *options, **more):
    """`hsivi boost TABLE --target y --out OUT`, small unless the options say otherwise."""
    targets = () if "--target" in options else ("--target", "y")
    return hsivi("boost", table, *targets, "--out", out, *FLAGS, *options, **more)


def refused(table, out, *options):
    targets = () if "--target" in options else ("--target", "y")
    return refusal("boost", table, *targets, "--out", out, *FLAGS, *options)


def read(text):
    return list(csv.DictReader(io.StringIO(text)))


# ---- runs ----------------------------------------------------------------------------------------


def test_a_run_leaves_its_trees_card_scores_and_plots(tmp_path):
    said = boost(written(tmp_path), tmp_path / "r").stderr
    assert {path.name for path in (tmp_path / "r").iterdir()} == {
        *("boost.json", "trees", "README.md", "metrics.jsonl", "checkpoint"),
        *("summary.json", "bands.png", "calibration.png"),
    }
    summary = json.loads((tmp_path / "r" / "summary.json").read_text())
    assert summary["rows"] == 12 and finite(summary["scores"]["y"])
    assert "y, 12 rows held out: rmse" in said and "--predict NEW.csv" in said
    metrics = rows(tmp_path / "r" / "metrics.jsonl")
    assert [row["step"] for row in metrics] == [1, 2, 3] and all(map(finite, metrics))
    info = json.loads((tmp_path / "r" / "boost.json").read_text())
    assert info["step"] == 3 and info["rows"] == 108 and info["cpu_seconds"] > 0
    assert "| colour | a category |" in (tmp_path / "r" / "README.md").read_text()


def test_the_trees_are_lightgbms_own_text(tmp_path):
    boost(written(tmp_path), tmp_path / "r")
    names = {path.stem for path in (tmp_path / "r" / "trees").iterdir()}
    layers = {f"layer-{k}-{what}-0" for k in (1, 2, 3)
              for what in ("mean", "variance", "shift", "spread")}  # fmt: skip
    assert names == layers | {f"prior-{fold}-0" for fold in range(5)}
    read = lightgbm.Booster(model_file=tmp_path / "r" / "trees" / "layer-2-mean-0.txt")
    assert read.num_trees() == 3 and read.num_feature() == 5  # the state, f and x


@pytest.mark.parametrize("options", [(), ("--target", "y", "--target", "z", "--match", 0)])
def test_a_run_that_was_interrupted_ends_as_one_that_was_not(tmp_path, monkeypatch, options):
    table = written(tmp_path)
    boost(table, tmp_path / "whole", *options)
    learned, learn_layer = [], Learner.learn_layer

    def learn_and_interrupt(learner, k):
        learned.append(k)
        if k == 2:
            os.kill(os.getpid(), signal.SIGTERM)  # a shell may have told us to ignore SIGINT
        return learn_layer(learner, k)

    with monkeypatch.context() as patch:
        patch.setattr(Learner, "learn_layer", learn_and_interrupt)
        said = boost(table, tmp_path / "parts", *options, exit_code=143)
    assert learned == [3, 2] and "at layer 2 of 3; to go on, type the same line" in said.stderr
    told = refusal("boost", tmp_path / "parts", "--predict", table)
    assert "has learned 2 of 3 layers" in told
    boost(table, tmp_path / "parts", *options)
    whole, parts = (tree(tmp_path / part) for part in ("whole", "parts"))
    assert whole.keys() == parts.keys()
    same = {name for name in whole if whole[name] == parts[name]}
    assert {str(n) for n in whole.keys() - same if "checkpoint" not in n.parts} <= {
        *("boost.json", "README.md"),  # they tell of seconds and of their folder
    }


def test_a_target_that_is_named_twice_is_one(tmp_path):
    boost(written(tmp_path), tmp_path / "r", "--target", "y", "--target", "y")
    info = json.loads((tmp_path / "r" / "boost.json").read_text())
    assert [column["name"] for column in info["targets"]] == ["y"]


def test_the_same_command_on_a_finished_run_changes_nothing(tmp_path):
    table = written(tmp_path)
    boost(table, tmp_path / "r")
    before = tree(tmp_path / "r")
    boost(table, tmp_path / "r")
    after = tree(tmp_path / "r")
    assert {str(name) for name in after if after[name] != before[name]} <= {"boost.json"}


def test_a_damaged_checkpoint_gives_way_to_the_one_before(tmp_path):
    table = written(tmp_path)
    boost(table, tmp_path / "r", "--seed", 1)
    whole = (tmp_path / "r" / "trees" / "layer-1-mean-0.txt").read_bytes()
    newest = checkpoints(tmp_path / "r" / "checkpoint")[-1]
    (newest / "SHA256SUMS").unlink()
    write_tensors(newest / "tensors.safetensors", {"factor": torch.ones(1, 1)})
    said = boost(table, tmp_path / "r", "--seed", 1)
    assert "it holds no trees" in warnings_of(said)[0]
    assert (tmp_path / "r" / "trees" / "layer-1-mean-0.txt").read_bytes() == whole


def test_a_folder_of_another_run_is_refused(tmp_path):
    table = written(tmp_path)
    boost(table, tmp_path / "r")
    before = tree(tmp_path / "r")
    assert "begun with --calls 3, not 4" in refused(table, tmp_path / "r", "--calls", 4)
    assert "begun with --rate" in refused(table, tmp_path / "r", "--rate", 0.9)
    other = written(tmp_path, "u.csv", seed=1)
    assert "learned another table" in refused(other, tmp_path / "r")
    assert "learned another table" in refused(table, tmp_path / "r", "--target", "z")
    with holding(tmp_path / "r"):
        assert "another process runs in" in refused(table, tmp_path / "r")
    shutil.rmtree(tmp_path / "r" / "checkpoint")
    assert "without its checkpoint" in refused(table, tmp_path / "r")
    after = tree(tmp_path / "r")
    assert after == {name: data for name, data in before.items() if "checkpoint" not in name.parts}
    assert "no run of hsivi boost" in refused(table, tmp_path)


# ---- drawing -------------------------------------------------------------------------------------


def test_draws_are_summed_up_a_line_a_row_or_kept_all(tmp_path):
    table = written(tmp_path)
    boost(table, tmp_path / "r", "--target", "y", "--target", "z")
    new = written(tmp_path, "new.csv", count=70, seed=5, extra=",id")
    options = ("boost", tmp_path / "r", "--predict", new, "--draws", 50)
    said = hsivi(*options)
    assert warnings_of(said) == [f"warning: {new} has columns that the run does not know: id"]
    found = read(said.stdout)
    assert len(found) == 70 and list(found[0])[:3] == ["y mean", "y sd", "y q0.05"]
    told = hsivi(*options, "--out", tmp_path / "o.csv").stderr.splitlines()[-1]
    assert told == f"{tmp_path / 'o.csv'}: 70 rows, 50 draws each"
    assert (tmp_path / "o.csv").read_text() == said.stdout
    hsivi(*options, "--out", tmp_path / "o.npz")
    with np.load(tmp_path / "o.npz") as file:
        drawn = file["y"]
        assert file["targets"].tolist() == ["y", "z"]
    assert drawn.shape == (70, 50, 2)
    for i, name in enumerate(("y", "z")):
        each = [[float(row[f"{name} {what}"]) for row in found] for what in ("mean", "sd", "q0.95")]
        np.testing.assert_allclose(each[0], drawn[..., i].mean(1), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(each[1], drawn[..., i].std(1, ddof=1), rtol=1e-5)
        np.testing.assert_allclose(each[2], np.quantile(drawn[..., i], 0.95, axis=1), rtol=1e-5)
    _, inputs, targets = load(tmp_path / "r")
    assert [c.name for c in (*inputs, *targets)] == ["size", "colour", "y", "z"]
    other = hsivi(*options, "--seed", 1).stdout
    assert other != said.stdout


def test_classes_have_their_shares_and_the_likeliest(tmp_path):
    draw = np.random.default_rng(0)
    lines = [f"{x},{draw.choice(['no', 'yes'], p=[0.1, 0.9] if x else [0.9, 0.1])}"
             for x in draw.integers(0, 2, 200)]  # fmt: skip
    table = tmp_path / "c.csv"
    table.write_text("x,answer\n" + "\n".join(lines) + "\n")
    said = boost(table, tmp_path / "r", "--target", "answer", "--calls", 5, "--trees", 20).stderr
    assert "accuracy" in said and not (tmp_path / "r" / "bands.png").exists()
    card = (tmp_path / "r" / "README.md").read_text()
    assert "tabular-classification" in card and "Its classes are no, yes." in card
    table.write_text("x\n0\n1\n")
    found = read(hsivi("boost", tmp_path / "r", "--predict", table).stdout)
    assert [row["answer"] for row in found] == ["no", "yes"]
    assert float(found[1]["p(yes)"]) > 0.7
    assert all(float(r["p(no)"]) + float(r["p(yes)"]) == pytest.approx(1) for r in found)
    out = tmp_path / "o.npz"
    hsivi("boost", tmp_path / "r", "--predict", table, "--out", out)
    with np.load(out) as file:
        assert file["classes"].tolist() == ["no", "yes"] and file["y"].shape == (2, 1000)


def test_a_new_category_is_taken_as_missing_with_a_warning(tmp_path):
    boost(written(tmp_path), tmp_path / "r")
    new = tmp_path / "new.csv"
    new.write_text("colour,size,z\ngreen,1,0\n,1,0\nred,1,0\n")
    said = hsivi("boost", tmp_path / "r", "--predict", new, "--draws", 500)
    (warning,) = warnings_of(said)
    assert warning.endswith("column colour has categories that the run does not know, taken as "
                            "missing: green")  # fmt: skip
    means = [float(row["y mean"]) for row in read(said.stdout)]
    assert means[0] == pytest.approx(means[1], abs=0.5)


# ---- bad input -----------------------------------------------------------------------------------


def test_what_cannot_be_learned_is_refused_before_anything_is_written(tmp_path):
    table, out = written(tmp_path), tmp_path / "r"
    assert "has no column w: its columns are size, colour, y, z" in refused(
        table, out, "--target", "w"
    )
    assert "No such file" in refused(tmp_path / "no.csv", out)
    few = written(tmp_path, "few.csv", count=13)
    assert "has 12 rows to learn from, fewer than a tree has leaves (--leaves 15)" in refused(
        few, out, "--leaves", 15
    )
    assert "than 10: more rows" in refused(written(tmp_path, "few.csv", count=9), out)
    text = table.read_text().splitlines()
    for row, told in (("1,red,,2", "lacks the target y in 1 row, the first in line 122"),
                      ("1,red,much,2", "has 'much' in line 122 of column y")):  # fmt: skip
        (tmp_path / "bad.csv").write_text("\n".join([*text, row]))
        assert told in refused(tmp_path / "bad.csv", out)
    (tmp_path / "flat.csv").write_text("x,y\n" + "1,5\n" * 50)
    assert "the target y is 5 in all rows" in refused(tmp_path / "flat.csv", out)
    (tmp_path / "flat.csv").write_text("x,y\n" + "1,5\n" * 50 + "1,6\n")
    assert "the same in all rows that are not held out" in refused(
        tmp_path / "flat.csv", out, "--held-out", 0.5
    )
    assert "has no column code" in refused(table, out, "--categories", "code")
    assert not out.exists()


def test_what_cannot_be_drawn_is_refused(tmp_path):
    table = written(tmp_path)
    boost(table, tmp_path / "r")
    new, out = tmp_path / "new.csv", tmp_path / "o.csv"
    for text, told in (
        ("size,z\n1,0\n", "has no column colour"),
        ("size,colour,z\nbig,red,0\n", "has 'big' in line 2 of column size, which held numbers"),
        ("size,colour,z\n1,7,0\n", "no category that the run knows in column colour"),
    ):
        new.write_text(text)
        assert told in refusal("boost", tmp_path / "r", "--predict", new, "--out", out)
    assert not out.exists()
    assert "is no run of hsivi boost" in refusal("boost", tmp_path, "--predict", table)
    draw = ("boost", tmp_path / "r", "--predict", table)
    assert "must be a .csv file" in refusal(*draw, "--out", tmp_path / "o.txt")
    assert "is named twice" in refusal(*draw, "--out", table)


@pytest.mark.parametrize("target", ["y", "colour"])
@pytest.mark.parametrize("name", ["mine.csv", "mine.npz"])
def test_draws_take_the_place_of_draws_and_of_what_is_not_ours_by_force_alone(
    tmp_path, name, target
):
    table, mine = written(tmp_path), tmp_path / name
    table.write_text(table.read_text().replace(",,", ",none,"))
    boost(table, tmp_path / "r", "--target", target)
    if mine.suffix == ".csv":
        shutil.copy(table, mine)
    else:
        np.savez(mine, y=np.zeros(3))
    before = mine.read_bytes()
    draw = ("boost", tmp_path / "r", "--predict", table, "--draws", 5, "--out", mine)
    assert "mine" in (told := refusal(*draw)) and "or say --force" in told
    assert mine.read_bytes() == before
    hsivi(*draw, "--force")
    drawn = mine.read_bytes()
    hsivi(*draw, "--seed", 1)
    assert len({before, drawn, mine.read_bytes()}) == 3
    inside = tmp_path / "r" / name
    shutil.copy(mine, inside)
    assert "in which nothing is written over" in refusal(*draw[:-1], inside, "--force")


def test_a_run_is_not_learned_into_a_file(tmp_path):
    table = written(tmp_path)
    before = table.read_bytes()
    assert "t.csv is a file: name a folder for the run" in refused(table, table)
    assert table.read_bytes() == before


def test_trees_that_were_damaged_are_refused_before_lightgbm_crashes_on_them(tmp_path):
    table = written(tmp_path)
    boost(table, tmp_path / "r")
    draw = ("boost", tmp_path / "r", "--predict", table)
    file = tmp_path / "r" / "trees" / "layer-1-mean-0.txt"
    sound = file.read_text()
    for damaged in (sound.replace("left_child=", "left_child=9"), sound[:-1000], "tree\n", "\0"):
        file.write_text(damaged)
        assert "is not as it was written: boost.json or trees/ were changed" in refusal(*draw)
    file.write_bytes(b"\xff")
    assert "trees cannot be read" in refusal(*draw)
    file.unlink()
    assert "is not as it was written" in refusal(*draw)
    boost(table, tmp_path / "r")  # its checkpoint has them
    assert file.read_text() == sound and hsivi(*draw).stdout


def test_a_damaged_description_is_refused_in_a_line(tmp_path):
    table = written(tmp_path)
    boost(table, tmp_path / "r")
    draw, file = ("boost", tmp_path / "r", "--predict", table), tmp_path / "r" / "boost.json"
    info = json.loads(file.read_text())
    of_later = info["config"] | {"of_later": 1}
    for change in ({"config": of_later}, {"config": []}, {"step": "x"}, {"targets": {}},
                   {"step": True}, {"config": info["config"] | {"trees": True}},
                   {"config": info["config"] | {"calls": "3"}}, {"fingerprint": None}):  # fmt: skip
        file.write_text(json.dumps(info | change))
        assert "boost.json describes no run of this version (" in refusal(*draw)
        assert "boost.json describes no run of this version (" in refused(table, tmp_path / "r")
    fewer, words = info["config"] | {"calls": 2}, info["targets"][0] | {"words": ["a", "b"]}
    for change in ({"factor": [1]}, {"centre": ["x"]}, {"inputs": info["inputs"][:1]},
                   {"targets": [words]}, {"scale": [float("nan")]}, {"config": fewer}):  # fmt: skip
        file.write_text(json.dumps(info | change))
        assert "is not as it was written: boost.json or trees/ were changed" in refusal(*draw)


@pytest.mark.parametrize(
    ("options", "told"),
    [(("t.csv",), "'--target'"), (("r", "--predict", "n.csv", "--calls", "3"), "--calls is for"),
     (("r", "--predict", "n.csv", "--target", "y"), "--target is for learning"),
     (("t.csv", "--target", "y", "--draws", "9"), "--draws is for --predict"),
     (("t.csv", "--target", "y", "--force"), "--force is for --predict")],
)  # fmt: skip
def test_what_does_not_go_together_is_a_line_on_usage(options, told):
    assert told in hsivi("boost", *options, exit_code=2).stderr


def test_without_lightgbm_a_line_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "lightgbm", None)
    assert "pip install 'hsivi[boost]'" in refused(written(tmp_path), tmp_path / "r")
    assert not (tmp_path / "r").exists()
