"""The command line: which setting wins, what help shows, how it ends."""

import json
import os
import re
import subprocess
import sys
from dataclasses import asdict, fields
from pathlib import Path
from types import SimpleNamespace

import click
import pytest
import torch
from click.testing import CliRunner
from command import QUICK, ROOT, TINY, hsivi, refusal, train

import hsivi_cli
from hsivi_cli import cli
from hsivi_cli.config import (
    PRESETS,
    RECIPE,
    REGRESSED,
    TARGETS,
    BoostConfig,
    CompareConfig,
    FidConfig,
    InferConfig,
    SampleConfig,
    TrainConfig,
    flag_of,
    solved,
)
from hsivi_cli.density.named import POSTERIORS
from hsivi_cli.density.targets import TARGETS as DENSITIES
from hsivi_cli.errors import HsiviError
from hsivi_cli.models.student import load_student

VERBS = {
    "train": TrainConfig,
    "sample": SampleConfig,
    "fid": FidConfig,
    "compare": CompareConfig,
    "infer": InferConfig,
    "boost": BoostConfig,
}


def dry_run(*arguments):
    """What differs from the defaults."""
    return json.loads(hsivi("train", *arguments, "--dry-run").stdout)


@pytest.fixture
def resolved(monkeypatch):
    """A function (*arguments) -> the settings of `hsivi train`, with its teacher and folder."""
    found = {}

    def run(config, teacher, out, plans):
        found.update(asdict(config), teacher=teacher["source"], out=str(out))

    def settings(*arguments):
        with monkeypatch.context() as patch:
            patch.setattr(cli, "verb", lambda name: SimpleNamespace(run=run))
            hsivi("train", *arguments)
        return dict(found)

    return settings


def written(folder, content):
    file = folder / "config.json"
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    return file


# ---- which setting wins --------------------------------------------------------------------------


def test_a_dry_run_prints_what_differs_from_the_defaults_and_writes_nothing(tmp_path):
    assert dry_run() == {"nfe": "4"}
    told = dry_run("some/teacher", "--out", tmp_path / "x", "--nfe", 8, "--seed", 3, "--clip", 1)
    chosen = {"nfe": "8", "seed": 3}  # the clip is the default
    assert told == {"teacher": "some/teacher", "out": str(tmp_path / "x")} | chosen
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("preset", PRESETS)
def test_what_a_dry_run_prints_is_read_back_as_it_was(resolved, tmp_path, preset):
    options = ("--preset", preset, "--noise-share", "0.5", "--minutes", 2.5, "--out", "runs/x")
    options = ("google/ddpm-cifar10-32", "--revision", "abc", *options)
    options += ("--data", "cifar10-train", "--flip") if preset == "sida" else ()
    told, settings = dry_run(*options), resolved(*options)
    assert told["noise_share"] == "0.5" and told["revision"] == "abc"
    file = written(tmp_path, told)
    assert resolved("--config", file) == settings and dry_run("--config", file) == told


@pytest.mark.parametrize(
    "chosen",
    [
        *((), ("--nfe", 8, "--start", "ddim"), ("--nfe", 8, "--noise-share", 0.2)),
        *(("--nfe", 1, "--regress-steps", 0), ("--nfe", 2, "--steps", 100), ("--nfe", "2,8")),
        *(("--nfe", 8, "--start", "unipc-quad"), ("--nfe", 4, "--noise-share", 0.5, "--steps", 70)),
        *(("--steps", 100), ("--steps", 100, "--student-rate", 1e-5), ("--steps", 70, "--nfe", 1)),
        *(("--preset", "sid"), ("--preset", "sid", "--nfe", 8), ("--preset", "hsivi", "--a", 1)),
    ],
)
def test_a_dry_runs_file_makes_the_same_run_and_so_does_one_of_all_settings(
    resolved, tmp_path, chosen
):
    settings = resolved(*chosen)
    assert resolved("--config", written(tmp_path, dry_run(*chosen))) == settings
    file = written(tmp_path, settings)
    assert resolved("--config", file) == settings
    fewest = dry_run("--config", file)
    assert len(fewest) <= 2 + len(dry_run(*chosen).keys() | RECIPE)
    assert resolved("--config", written(tmp_path, fewest)) == settings


def test_a_file_of_all_defaults_pins_nothing(resolved, tmp_path):
    for nfe in (1, 4, 8):
        settings = resolved("--nfe", nfe)
        settings = {key: value for key, value in settings.items() if key not in ("teacher", "out")}
        assert dry_run("--config", written(tmp_path, settings)) == {"nfe": str(nfe)}


def test_the_rate_goes_with_the_steps_where_neither_a_preset_nor_a_chain_is_named(resolved):
    for steps, rate in ((54, 3.7e-5), (100, 2e-5), (200, 1e-5), (2000, 1e-5), (20, 4e-5)):
        for nfe in (2, 4, 8):
            assert resolved("--nfe", nfe, "--steps", steps)["student_rate"] == rate
    assert resolved("--steps", 100, "--student-rate", 1e-4)["student_rate"] == 1e-4
    assert resolved("--steps", 0)["student_rate"] == 1e-5
    assert resolved("--steps", 100, "--start", "ddim")["student_rate"] == 3e-5
    assert resolved("--steps", 100, "--preset", "sid")["student_rate"] == 1e-5


def test_a_file_that_pins_another_budgets_recipe_is_told(resolved, tmp_path):
    settings = resolved("--nfe", 3)
    file = written(tmp_path, settings)
    told = hsivi("train", "--config", file, "--nfe", 8, "--dry-run").stderr
    assert told.startswith(f"warning: --config {file} was made for --nfe 3 and keeps its ")
    for part in ("--start ddim (not dpm++3-auto)", "--noise-share 1 (not eta:1)"):
        assert part in told
    assert len(told.splitlines()) == 1 and "clip" not in told
    assert hsivi("train", "--config", file, "--nfe", "03", "--dry-run").stderr == ""
    told = hsivi("train", "--config", file, "--steps", 100, "--dry-run").stderr
    assert told.endswith(
        "keeps its --student-rate 1e-05 (not 2e-05): leave them out of it for the defaults of "
        "--steps 100\n"
    )
    told = hsivi("train", "--config", file, "--nfe", 1, "--dry-run").stderr
    assert "--steps 200 (not 0)" in told and told.endswith("the defaults of --nfe 1\n")
    file = written(tmp_path, {"nfe": "3", "seed": 3})
    for option in ("--nfe", "--steps"):
        assert hsivi("train", "--config", file, option, 8, "--dry-run").stderr == ""
    assert resolved("--config", file, "--nfe", 7)["start"] == "auto"


def test_numbers_of_calls_are_the_same_however_they_are_spelt(resolved):
    assert resolved("--nfe", "08") == resolved("--nfe", 8)
    assert resolved("--nfe", " 2,04")["nfe"] == TrainConfig(nfe="02, 4").nfe == "2,4"


@pytest.mark.parametrize(
    ("arguments", "out"),
    [
        ((), "runs/embedded-4"),
        (("--nfe", "2,8"), "runs/embedded-2-8"),
        (("google/ddpm-cifar10-32", "--nfe", 10), "runs/ddpm-cifar10-32-10"),
        (("teachers/mine/", "--preset", "sid"), "runs/mine-1"),
        (("teachers/mine", "--out", "x"), "x"),
    ],
)
def test_a_run_without_out_is_named_after_its_teacher_and_calls(resolved, arguments, out):
    assert resolved(*arguments)["out"] == out


def test_training_without_out_makes_a_run_and_the_same_line_resumes_it(
    save_teacher, tmp_path, monkeypatch
):
    teacher = save_teacher(**TINY)
    monkeypatch.chdir(tmp_path)
    told = hsivi("train", teacher, *QUICK, "--steps", 1).stderr.splitlines()
    assert load_student("runs/teacher-2").info["step"] == 1
    assert "runs/teacher-2: a student of 2 calls, 1 step," in told[-3]
    draw, compare = (line.split(":  hsivi ")[1] for line in told[-2:])
    hsivi(*draw.split(), "--count", 3)
    assert len(list(Path("samples/teacher-2").glob("*.png"))) == 3
    assert compare == "compare runs/teacher-2 --reference IMAGES"
    hsivi("train", teacher, *QUICK, "--steps", 2)
    assert load_student("runs/teacher-2").info["step"] == 2


def test_inference_without_out_is_named_after_its_target_and_layers(
    tmp_path, monkeypatch, coarse_pictures
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text("def log_prob(x):\n    return -(x**2).sum(1) / 2\n")
    small = ("--width", 4, "--steps", 0, "--count", 20, "--mixing", 4, "--path-steps", 0)
    small = (*small, "--bridge", "geometric")
    hsivi("infer", "banana", "--layers", 3, *small)
    hsivi("infer", "mine:log_prob", "--dim", 2, "--layers", 1, *small)
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == [
        "banana-3",
        "mine-log_prob-1",
    ]


def test_a_missing_target_and_a_wrong_one_are_told_what_there_are():
    for name in TARGETS:
        assert name in hsivi("infer", exit_code=2).stderr
        assert name in refusal("infer", "bananna", "--out", "x")
    assert tuple(DENSITIES | POSTERIORS) == TARGETS


def test_a_run_from_its_own_dry_run_is_the_same_run(save_teacher, tmp_path):
    teacher = save_teacher(**TINY)
    told = dry_run(teacher, "--out", tmp_path / "run", *QUICK)
    hsivi("train", "--config", written(tmp_path, told))
    train(teacher, tmp_path / "run")  # typed out: the same, so it resumes
    assert load_student(tmp_path / "run").info["config"]["student_rate"] == 1e-3


def test_a_preset_wins_over_defaults_a_file_over_it_and_typing_over_all(resolved, tmp_path):
    assert PRESETS["sid"]["batch_size"] == 256 and PRESETS["sid"]["nfe"] == "1"
    file = written(tmp_path, {"batch_size": 64, "seed": 5})
    told = resolved("--preset", "sid", "--config", file, "--seed", 7)
    assert (told["batch_size"], told["seed"], told["nfe"]) == (64, 7, "1")
    assert told["clip"] == TrainConfig().clip
    # typed, a value wins even where it is the default
    assert resolved("--config", file, "--batch-size", 32)["batch_size"] == 32


def test_one_call_has_defaults_of_its_own_which_presets_files_and_typing_win_over(
    resolved, tmp_path
):
    own = REGRESSED[1]
    told = resolved("--nfe", 1)
    assert {key: told[key] for key in own} == own != {k: getattr(TrainConfig(), k) for k in own}
    assert resolved("--nfe", 1, "--steps", 7)["steps"] == 7
    file = written(tmp_path, {"nfe": "1", "regress_steps": 0})
    assert resolved("--config", file)["regress_steps"] == 0
    assert resolved("--preset", "sid")["regress_steps"] == 0
    for share in ("1.0", "1,1"):
        assert resolved("--nfe", 2, "--noise-share", share)["regress_steps"] == 2000
    told = resolved("--nfe", 1, "--noise-share", 0.5)  # regression would refuse it
    assert told["regress_steps"] == 0


@pytest.mark.parametrize("nfe", REGRESSED)
def test_without_its_regression_a_run_of_few_calls_has_the_plain_steps(resolved, nfe):
    told = resolved("--nfe", nfe, "--regress-steps", 0)
    assert (told["regress_steps"], told["steps"]) == (0, TrainConfig().steps)
    assert resolved("--nfe", nfe, "--regress-steps", 5)["steps"] == REGRESSED[nfe]["steps"]


@pytest.mark.parametrize(
    ("chosen", "own"),
    [
        ((), solved(int(TrainConfig().nfe))),
        (("--nfe", 5), solved(5)),
        (("--nfe", 15, "--seed", 3), solved(15)),
        (("--nfe", 5, "--steps", 7), solved(5) | {"steps": 7, "student_rate": 4e-5}),
        (("--nfe", "5,8"), {}),
        (("--nfe", 6, "--noise-share", 1), {}),
        (("--nfe", 5, "--grid-top", 600), {"grid_top": 600}),
        (("--nfe", 5, "--start", "ddim"), {}),
        (("--nfe", 7), solved(7, plain=True)),
        (("--nfe", 8), solved(8) | {"start": "dpm++3-auto", "noise_share": "eta:1"}),
        (("--nfe", 8, "--start", "dpm++3-karras"), solved(5) | {"start": "dpm++3-karras"}),
        (("--nfe", 8, "--start", "auto"), solved(5)),
        (("--nfe", 10, "--noise-share", 0.5), solved(5) | {"noise_share": "0.5"}),
        (("--nfe", 10, "--fit-steps", 9), solved(5)),
        (("--nfe", 8, "--fit-steps", 0), solved(8)),
        (("--nfe", 4, "--noise-share", 0.5), solved(4) | {"noise_share": "0.5"}),
        (
            ("--nfe", 4, "--start", "auto", "--steps", 100),
            solved(4) | {"steps": 100, "student_rate": 2e-5},
        ),
        (("--nfe", 4, "--start", "unipc", "--noise-share", 1), {"start": "unipc"}),
        (("--nfe", 4, "--start", "ddim", "--noise-share", 0.5), {"noise_share": "0.5"}),
        (("--nfe", 4, "--grid", "quad", "--noise-share", "eta:0.2"), {"noise_share": "eta:0.2"}),
        (("--nfe", 2, "--noise-share", 0.5), {"noise_share": "0.5"}),
        (("--nfe", 5, "--levels", "own"), {"levels": "own"}),
        (("--nfe", 5, "--regress-steps", 5), {"regress_steps": 5}),
        (("--preset", "hsivi"), {k: PRESETS["hsivi"][k] for k in ("noise_share", "student_rate")}),
    ],
)
def test_from_four_calls_up_a_run_starts_from_a_solver_unless_the_chain_is_chosen(
    resolved, chosen, own
):
    told = resolved(*chosen)
    keys = solved(4).keys() | own.keys()
    wanted = {key: getattr(TrainConfig(), key) for key in keys} | own
    if "--preset" in chosen:
        wanted["steps"] = PRESETS["hsivi"]["steps"]
    assert {key: told[key] for key in keys} == wanted


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_name_settings_that_exist_and_pass(preset):
    TrainConfig(**{"data": "images" if preset == "sida" else None} | PRESETS[preset])


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ({"nfe": 2, "stpes": 3, "color": "red"}, "color, stpes"),
        ("[1, 2]", "list"),
        ("{", "cannot be read as JSON"),
        ({"teacher": ""}, "teacher is empty"),
        ({"out": "a\0b"}, "out holds a zero byte"),
        ({"out": "a\udcff"}, "a\\udcff is no valid UTF-8"),
        ({"teacher": "\ud800"}, "\\ud800 is no valid UTF-8"),  # which no name can hold
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


@pytest.mark.parametrize("columns", [80, 40])
def test_help_tells_each_verb_in_a_whole_short_sentence(columns):
    text = CliRunner().invoke(cli.main, ["--help"], terminal_width=columns).stdout
    told = dict(re.findall(r"^  (\w+) +((?:.|\n   +)*)", text.partition("Commands:")[2], re.M))
    assert told.keys() == VERBS.keys() | {"info"}
    for name, summary in told.items():
        one_line = "\n" not in summary
        summary = " ".join(summary.split())
        assert summary.endswith(".") and not summary.endswith(".."), name
        assert one_line or columns < 80, name
        own = CliRunner().invoke(cli.main, [name, "--help"]).stdout.split("\n\n")[1]
        assert summary == own.strip(), name


AT_FOUR = {"start": "auto", "noise_share": "0.2", "student_rate": "1e-05", "steps": "200"}
AT_FOUR |= {
    "top_sd": "auto",
    "regress_steps": "0",
    "objective": "reverse-kl",
    "a": "0.5",
    "weight": "flat",
    "fake_rate": "0.0004",
}


@pytest.mark.parametrize("verb", VERBS)
def test_help_shows_every_option_and_its_default(verb):
    text = hsivi(verb, "--help").stdout
    blocks = [" ".join(block.split()) for block in re.split(r"\n  (?=-)", text)]
    for item in fields(VERBS[verb]):
        if "help" not in item.metadata:
            assert item.name in ("source", "sources", "a", "b", "auto")  # arguments, --steps auto
            continue
        flag = "--" + item.name.replace("_", "-")
        (block,) = (block for block in blocks if block.startswith(flag + " "))
        if verb == "train" and item.name in AT_FOUR:
            assert f"[default: ({AT_FOUR[item.name]} at 4 calls)]" in block
        elif item.default is not None and not isinstance(item.default, bool):
            told = block.replace("- ", "-")  # of a default that is wrapped
            assert f"[default: {item.default}" in told


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
        (["train", "--out", ""], "--out"),
        (["train", "", "--out", "x"], "TEACHER"),
        (["compare", "runs/x", ""], "RUN|TEACHER"),
        (["info", ""], "PATH"),
        (["train", "--objective", "l2", "--out", "x"], "score-matching"),
        (["train", "--preset", "best", "--out", "x"], "--preset"),
        (["train", "--colour", "red", "--out", "x"], "--colour"),
        (["infer"], "TARGET"),
        (["sample", "--count", "many"], "--count"),
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


def test_what_a_problem_quotes_stays_in_its_line_and_commands_no_terminal(monkeypatch):
    def act(*args):
        raise HsiviError("no teacher at a\nb\x1b[2J\udcff é")

    result = run_verb(monkeypatch, act)
    assert result.stderr == "error: no teacher at a\\nb\\x1b[2J\\udcff é\n"


NO_UTF_8 = "b\udcff"  # as Python hands on the bytes b"b\xff"
TEXTS = [
    (name, parameter)
    for name, verb in cli.main.commands.items()
    for parameter in verb.params
    if isinstance(parameter.type, (click.Path, type(click.STRING)))
]


@pytest.mark.parametrize(("verb", "parameter"), TEXTS, ids=lambda one: getattr(one, "name", one))
def test_text_that_is_no_utf_8_is_refused_before_anything_is_done(verb, parameter):
    named = isinstance(parameter, click.Option)
    needed = ["x.csv"] if verb == "boost" and named else []
    told = refusal(verb, *needed, *([parameter.opts[0]] if named else []), NO_UTF_8)
    assert told.startswith("error: b\\udcff is no valid UTF-8")


def test_bytes_that_are_no_utf_8_are_refused_and_leave_nothing(tmp_path):
    command = [sys.executable, "-m", "hsivi_cli", "train", "--out", b"b\xff"]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=env)
    assert done.returncode == 1 and not any(tmp_path.iterdir())
    assert done.stderr.startswith("error: b\\udcff is no valid UTF-8") and "rename" in done.stderr


def test_a_folder_here_that_is_no_utf_8_names_no_run(save_teacher, tmp_path, monkeypatch):
    (tmp_path / NO_UTF_8).mkdir()
    monkeypatch.chdir(
        save_teacher(folder=f"{NO_UTF_8}/mine").rename(tmp_path / NO_UTF_8 / "c\udcfe")
    )
    assert "runs/c\\udcfe-2 is no valid UTF-8" in refusal("train", ".", *QUICK)
    train(".", "run", "--steps", 0)
    hsivi("sample", "run", "--count", 1, "--out", "images")  # what lies above is not named
    sub = ("--solver", "ddim", "--nfe", 1, "--count", 1)
    assert "samples/c\\udcfe-ddim-1 is no valid" in refusal("sample", ".", *sub)


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


def test_a_presets_grid_makes_way_for_the_times_that_are_typed(resolved):
    told = resolved("--preset", "sid", "--grid", "0,440")
    assert (told["grid"], told["grid_top"]) == ("0,440", None)
    assert resolved("--preset", "sid")["grid_top"] == PRESETS["sid"]["grid_top"]
    told = resolved("--preset", "hsivi", "--start", "unipc-leading", "--noise-share", 0.2)
    assert told["grid"] == "auto" and told["objective"] == PRESETS["hsivi"]["objective"]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ("--start unipc --noise-share 0 --grid quad", "--grid quad is for --start ddim"),
        ("--start unipc --noise-share 0 --grid-top 500", "--grid-top 500 is for --start ddim"),
        ("--nfe 2 --grid 0,300,500 --grid-top 600", "--grid-top 600"),
        (
            "--reference none --detector inception",
            "--detector inception scores nothing with --reference none",
        ),
        ("--nfe 2,4 --grid 0,300,500", "--grid 0,300,500 has a number a layer"),
    ],
)
def test_settings_that_would_say_nothing_are_refused_in_a_dry_run_too(options, told):
    assert told in refusal("train", *options.split(), "--dry-run")


def test_every_option_of_training_is_read_with_its_type(resolved):
    given = {f.name: value_of(f) for f in fields(TrainConfig)}
    typed = [w for name, v in given.items() for w in (flag_of(name), str(v)) if w != "True"]
    told = resolved(*typed)
    assert {name: told[name] for name in given} == given


def value_of(item):
    """A value of an option that is not its default."""
    if "choices" in item.metadata:
        return next(choice for choice in item.metadata["choices"] if choice != item.default)
    if isinstance(item.default, bool):
        return not item.default
    if isinstance(item.default, float):
        return item.default / 2 or 0.5
    if isinstance(item.default, int):
        return item.default + 1
    others = {"nfe": "3", "start": "auto", "minutes": 1.5, "grid_top": 700, "top_sd": "1.1"}
    return others.get(item.name, "other")


def test_main_is_the_command_that_the_package_installs():
    assert isinstance(cli.main, click.Group) and set(cli.main.commands) >= {*VERBS, "info"}
