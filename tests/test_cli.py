"""The command line: which setting wins, what help shows, how it ends."""

import json
import re
import subprocess
import sys
from dataclasses import MISSING, asdict, fields

import click
import pytest
import torch
from click.testing import CliRunner
from command import QUICK, TINY, hsivi, refusal, train

import hsivi_cli
from hsivi_cli import cli
from hsivi_cli.config import (
    PRESETS,
    REGRESSED,
    SOLVED,
    CompareConfig,
    FidConfig,
    SampleConfig,
    TrainConfig,
)
from hsivi_cli.errors import HsiviError
from hsivi_cli.models.student import load_student

VERBS = {"train": TrainConfig, "sample": SampleConfig, "fid": FidConfig, "compare": CompareConfig}


def dry_run(*arguments):
    return json.loads(hsivi("train", *arguments, "--dry-run").stdout)


def written(folder, content):
    file = folder / "config.json"
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    return file


# ---- which setting wins --------------------------------------------------------------------------


def test_a_dry_run_prints_every_setting_and_writes_nothing(tmp_path):
    told = dry_run("some/teacher", "--out", tmp_path / "x", "--nfe", 8)
    others = {"teacher": "some/teacher", "out": str(tmp_path / "x")}
    others |= dict.fromkeys(("revision", "variant", "subfolder"))
    assert told == asdict(TrainConfig(nfe="8", **SOLVED)) | others and not (tmp_path / "x").exists()


@pytest.mark.parametrize("preset", PRESETS)
def test_what_a_dry_run_prints_is_read_back_as_it_was(tmp_path, preset):
    options = ("--preset", preset, "--noise-share", "0.5", "--minutes", 2.5, "--out", "runs/x")
    told = dry_run("google/ddpm-cifar10-32", "--revision", "abc", *options)
    assert told["noise_share"] == "0.5" and told["teacher"] == "google/ddpm-cifar10-32"
    assert dry_run("--config", written(tmp_path, told)) == told


def test_a_run_from_its_own_dry_run_is_the_same_run(save_teacher, tmp_path):
    teacher = save_teacher(**TINY)
    told = dry_run(teacher, "--out", tmp_path / "run", *QUICK)
    hsivi("train", "--config", written(tmp_path, told))
    train(teacher, tmp_path / "run")  # typed out: the same, so it resumes
    assert load_student(tmp_path / "run").info["config"]["student_rate"] == 1e-3


def test_a_preset_wins_over_defaults_a_file_over_it_and_typing_over_all(tmp_path):
    assert PRESETS["sid"]["batch_size"] == 256 and PRESETS["sid"]["nfe"] == "1"
    file = written(tmp_path, {"batch_size": 64, "seed": 5})
    told = dry_run("--preset", "sid", "--config", file, "--seed", 7)
    assert (told["batch_size"], told["seed"], told["nfe"]) == (64, 7, "1")
    assert told["clip"] == TrainConfig().clip
    # typed, a value wins even where it is the default
    assert dry_run("--config", file, "--batch-size", 32)["batch_size"] == 32


def test_one_call_has_defaults_of_its_own_which_presets_files_and_typing_win_over(tmp_path):
    own = REGRESSED["1"]
    told = dry_run("--nfe", 1)
    assert {key: told[key] for key in own} == own != {k: getattr(TrainConfig(), k) for k in own}
    assert dry_run("--nfe", 1, "--steps", 7)["steps"] == 7
    file = written(tmp_path, {"nfe": "1", "regress_steps": 0})
    assert dry_run("--config", file)["regress_steps"] == 0
    assert dry_run("--preset", "sid")["regress_steps"] == 0
    for share in ("1.0", "1,1"):
        assert dry_run("--nfe", 2, "--noise-share", share)["regress_steps"] == 640
    assert dry_run("--nfe", 1, "--noise-share", 0.5)["regress_steps"] == 0  # which refuses it
    cli.checked(TrainConfig(nfe="1", **own))


@pytest.mark.parametrize(
    ("chosen", "own"),
    [
        ((), {}),
        (("--nfe", 5), SOLVED),
        (("--nfe", 15, "--seed", 3), SOLVED),
        (("--nfe", 5, "--steps", 7), SOLVED | {"steps": 7}),
        (("--nfe", "5,8"), {}),
        (("--nfe", 6, "--noise-share", 1), {}),
        (("--nfe", 5, "--grid-top", 600), {"grid_top": 600}),
        (("--nfe", 5, "--start", "ddim"), {}),
        (("--nfe", 5, "--levels", "own"), {"levels": "own"}),
        (("--nfe", 5, "--regress-steps", 5), {"regress_steps": 5}),
        (("--preset", "hsivi"), {k: PRESETS["hsivi"][k] for k in ("noise_share", "student_rate")}),
    ],
)
def test_from_five_calls_up_a_run_starts_from_a_solver_unless_the_chain_is_chosen(chosen, own):
    told = dry_run(*chosen)
    keys = SOLVED.keys() | own.keys()
    wanted = {key: getattr(TrainConfig(), key) for key in keys} | own
    if "--preset" in chosen:
        wanted["steps"] = PRESETS["hsivi"]["steps"]
    assert {key: told[key] for key in keys} == wanted
    cli.checked(TrainConfig(**{f.name: told[f.name] for f in fields(TrainConfig)}))


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_name_settings_that_exist_and_pass(preset):
    cli.checked(TrainConfig(**PRESETS[preset]))
    choices = {
        f.name: f.metadata["choices"] for f in fields(TrainConfig) if "choices" in f.metadata
    }
    for name, value in PRESETS[preset].items():
        assert name not in choices or value in choices[name]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ({"nfe": 2, "stpes": 3, "color": "red"}, "color, stpes"),
        ("[1, 2]", "list"),
        ("{", "cannot be read as JSON"),
        ({"teacher": ""}, "teacher is empty"),
    ],
)
def test_a_config_file_that_is_none_is_refused_by_name(tmp_path, content, told):
    assert told in refusal("train", "--config", written(tmp_path, content), "--dry-run")


def test_a_config_file_that_is_missing_is_refused(tmp_path):
    assert "nowhere.json" in refusal("train", "--config", tmp_path / "nowhere.json", "--dry-run")


@pytest.mark.parametrize(
    "content",
    [*({"steps": value} for value in ("four", 2.5, None, [4], True)), {"objective": "x"}],
)
def test_a_config_files_values_pass_as_if_typed(tmp_path, content):
    result = hsivi("train", "--config", written(tmp_path, content), "--dry-run", exit_code=2)
    assert f"--{next(iter(content))}" in result.stderr


# ---- help ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", VERBS)
def test_help_shows_every_option_and_its_default(verb):
    text = hsivi(verb, "--help").stdout
    blocks = [" ".join(block.split()) for block in re.split(r"\n  (?=-)", text)]
    for item in fields(VERBS[verb]):
        if "help" not in item.metadata:
            assert item.default is MISSING or item.name in ("a", "b", "sources")  # arguments
            continue
        flag = "--" + item.name.replace("_", "-")
        (block,) = (block for block in blocks if block.startswith(flag + " "))
        if item.default is not None and not isinstance(item.default, bool):
            assert f"[default: {item.default}" in block


def test_the_version_is_the_packages():
    assert hsivi("--version").stdout.split()[-1] == hsivi_cli.__version__


@pytest.mark.parametrize("arguments", [["train", "--dry-run", "--preset", "hsivi"], ["infer"]])
def test_settings_and_usage_errors_need_no_torch(arguments):
    code = (
        "import sys\n"
        "from hsivi_cli.cli import main\n"
        "try:\n"
        f"    main({arguments!r})\n"
        "except SystemExit:\n"
        "    pass\n"
        "sys.exit('torch' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# ---- how it ends ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["train", "--steps", "four", "--out", "x"], "--steps"),
        (["train"], "--out"),
        (["train", "--out", ""], "--out"),
        (["train", "", "--out", "x"], "TEACHER"),
        (["compare", "runs/x", ""], "RUN|TEACHER"),
        (["info", ""], "PATH"),
        (["train", "--objective", "l2", "--out", "x"], "score-matching"),
        (["train", "--preset", "best", "--out", "x"], "--preset"),
        (["train", "--colour", "red", "--out", "x"], "--colour"),
        (["sample"], "RUN|TEACHER"),
        (["fly"], "fly"),
    ],
)
def test_usage_errors_exit_2_and_name_the_option(arguments, told):
    assert told in hsivi(*arguments, exit_code=2).stderr


def run_verb(monkeypatch, act):
    """`hsivi info` with `act` in place of its work."""
    monkeypatch.setattr(cli, "verb", lambda name: type("verb", (), {"run": staticmethod(act)}))
    return CliRunner().invoke(cli.main, ["info"])


def test_a_problem_the_user_can_solve_is_one_line_and_exit_1(monkeypatch):
    def act(*args):
        raise HsiviError("this is wrong: do that")

    result = run_verb(monkeypatch, act)
    assert (result.exit_code, result.stderr) == (1, "error: this is wrong: do that\n")
    assert result.stdout == ""


def test_out_of_memory_outside_training_names_the_batch_size(monkeypatch):
    def act(*args):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")

    result = run_verb(monkeypatch, act)
    assert result.exit_code == 1 and "--batch-size" in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_a_file_that_cannot_be_read_is_one_line(monkeypatch):
    def act(*args):
        raise PermissionError(13, "Permission denied", "images/0.png")

    result = run_verb(monkeypatch, act)
    assert (result.exit_code, result.stderr) == (1, "error: images/0.png: Permission denied\n")


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried")]
)
def test_too_much_memory_on_a_cpu_is_one_line(monkeypatch, error):
    def act(*args):
        raise error

    result = run_verb(monkeypatch, act)
    assert result.exit_code == 1 and result.stderr.startswith("error: out of memory: take")


def test_a_bug_keeps_its_traceback(monkeypatch):
    def act(*args):
        raise RuntimeError("a bug")

    result = run_verb(monkeypatch, act)
    assert isinstance(result.exception, RuntimeError) and str(result.exception) == "a bug"


def test_ctrl_c_exits_130_with_a_line(monkeypatch):
    def act(*args):
        raise KeyboardInterrupt

    result = run_verb(monkeypatch, act)
    assert result.exit_code == 130 and len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("nfe", "0"), ("nfe", "four"), ("nfe", "2,"), ("nfe", "2,4,2"),
        ("batch_size", 0), ("accumulate", 0), ("fake_updates", 0), ("steps", -1),
        ("fake_warmup", -1), ("rate_warmup", -1), ("checkpoint_every", 0), ("eval_every", 0),
        ("eval_count", 1), ("student_rate", 0.0), ("fake_rate", -1.0), ("clip", 0.0),
        ("level_power", 0.0),
        ("student_rate", float("nan")), ("student_beta1", 1.0), ("fake_beta1", -0.1), ("ema", 1.0),
        ("student_rate", 1e300), ("objective", "l2"),
        ("minutes", 0.0), ("minutes", -1.0), ("student_rate", float("inf")), ("a", float("nan")),
        ("nfe", "²"),
    ],
)  # fmt: skip
def test_numbers_that_mean_nothing_are_refused_by_name(option, value):
    with pytest.raises(HsiviError, match="--" + option.replace("_", "-")):
        cli.checked(TrainConfig(**{option: value}))


def test_a_presets_grid_makes_way_for_the_times_that_are_typed():
    told = dry_run("--preset", "sid", "--grid", "0,440")
    assert (told["grid"], told["grid_top"]) == ("0,440", None)
    assert dry_run("--preset", "sid")["grid_top"] == PRESETS["sid"]["grid_top"]
    told = dry_run("--preset", "hsivi", "--start", "unipc-leading", "--noise-share", 0.2)
    assert told["grid"] == "auto" and told["objective"] == PRESETS["hsivi"]["objective"]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ("--start unipc --noise-share 0 --grid quad", "--grid quad is for --start ddim"),
        ("--start unipc --noise-share 0 --grid-top 500", "--grid-top 500 is for --start ddim"),
        ("--nfe 2 --grid 0,300,500 --grid-top 600", "--grid-top 600"),
        ("--detector inception", "--detector inception scores nothing without --reference"),
        ("--nfe 2,4 --grid 0,300,500", "--grid 0,300,500 has a number a layer"),
    ],
)
def test_settings_that_would_say_nothing_are_refused_in_a_dry_run_too(options, told):
    assert told in refusal("train", "--out", "x", *options.split(), "--dry-run")


def test_every_option_of_training_is_read_with_its_type():
    given = {f.name: value_of(f) for f in fields(TrainConfig)}
    typed = [w for name, v in given.items() for w in ("--" + name.replace("_", "-"), str(v))]
    told = dry_run(*typed)
    assert {name: told[name] for name in given} == given


def value_of(item):
    """A value of an option that is not its default."""
    if "choices" in item.metadata:
        return next(choice for choice in item.metadata["choices"] if choice != item.default)
    if "below" in item.metadata:
        return 0.5
    if isinstance(item.default, (int, float)):
        return item.default + 1
    others = {"nfe": "3", "start": "auto", "minutes": 1.5, "grid_top": 700}
    return others.get(item.name, "other")


def test_main_is_the_command_that_the_package_installs():
    assert isinstance(cli.main, click.Group) and set(cli.main.commands) >= {*VERBS, "info"}
