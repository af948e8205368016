"""Files that were damaged: every command that reads one ends as it should, or in a line.

    python -m pytest -m slow -s tests/chaos/test_mutations.py

HSIVI_CHAOS_SEED repeats an attack of HSIVI_CHAOS_MUTATIONS on each kind of file.
"""

import functools
import io
import json
import os
import shutil
import traceback
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from command import QUICK, TINY, hsivi, save_detector, train
from diffusers import DDPMPipeline, DDPMScheduler
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from safetensors.numpy import load, save

from hsivi_cli.cli import main
from hsivi_cli.files.images import save_npz
from hsivi_cli.models import loading

from .conftest import BOOST, write_table
from .settings import SEED

MUTATIONS = int(os.environ.get("HSIVI_CHAOS_MUTATIONS", 1000))
LAYERS = ("--layers", 2, "--width", 8, "--depth", 1, "--batch-size", 8, "--mixing", 8)
# a step, and no more: pictures take a hundred times as long as to read a run and go on, and to
# choose a bridge ten times
BRIEF = ("--bridge", "geometric", "--path-steps", 1, "--steps", 9, "--minutes", 1e-9)
INFER = ("infer", "banana", *LAYERS, *BRIEF)
CPU = ("--device", "cpu")


@pytest.fixture(scope="module")
def place(tiny_unet, tmp_path_factory):
    """A folder with one file of every kind that is read."""
    folder = tmp_path_factory.mktemp("mutations")
    pipeline = DDPMPipeline(unet=tiny_unet(**TINY), scheduler=DDPMScheduler())
    pipeline.save_pretrained(folder / "teacher")
    save_detector(folder / "detector")
    rng = torch.Generator().manual_seed(0)
    real = torch.randint(256, (30, 8, 8, 1), dtype=torch.uint8, generator=rng)
    save_npz(real, folder / "real.npz")
    judged = ("--reference", folder / "real.npz", "--detector", folder / "detector")
    train(folder / "teacher", folder / "run", *judged, "--eval-count", 9)
    hsivi(*gone_on(folder))
    hsivi("sample", folder / "run", "--count", 3, *CPU, "--out", folder / "drawn")
    hsivi("fid", folder / "real.npz", *judged[2:], "--save-stats", folder / "stats.npz", *CPU)
    hsivi(*INFER, *CPU, "--out", folder / "inferred")
    write_table(folder / "table.csv")
    hsivi(*learned(folder))
    (folder / "settings.json").write_text(hsivi("train", *QUICK, "--dry-run").stdout)
    hsivi(*compared(folder))
    return folder


def compared(place):
    judged = ("--reference", place / "stats.npz", "--detector", place / "detector")
    few = ("--solvers", "none", "--count", 9, "--cache", place / "cache", *CPU)
    return ("compare", place / "run", *judged, *few)


def again(place):
    judged = ("--reference", place / "real.npz", "--detector", place / "detector")
    run = ("train", place / "teacher", "--out", place / "run", *QUICK)
    return (*run, *judged, "--eval-count", 9)


def learned(place):
    return ("boost", place / "table.csv", *BOOST, "--held-out", 0, "--out", place / "learned")


def predicted(place):
    return ("boost", place / "learned", "--predict", place / "table.csv", "--draws", 2)


def gone_on(place):
    return ("train", place / "teacher", "--out", place / "begun", *QUICK)  # without a judge


# a file, or a pattern that it alone fits, and a command that reads it
READERS = [
    ("run/hsivi.json", lambda p: ("info", p / "run")),
    ("run/hsivi.json", compared),
    ("run/hsivi.json", again),
    ("run/chain.safetensors", lambda p: ("info", p / "run")),
    ("run/chain.safetensors", again),
    ("run/unet/config.json", lambda p: ("info", p / "run")),
    ("run/unet/diffusion_pytorch_model.safetensors", lambda p: ("info", p / "run")),
    ("run/scheduler/scheduler_config.json", lambda p: ("info", p / "run")),
    ("run/model_index.json", lambda p: ("info", p / "run")),
    ("run/metrics.jsonl", again),
    ("run/evaluations.jsonl", compared),
    ("run/timing.jsonl", compared),
    ("run/checkpoint/*3/state.json", again),
    ("begun/checkpoint/*3/tensors.safetensors", gone_on),
    ("begun/checkpoint/*3/SHA256SUMS", gone_on),
    ("teacher/unet/config.json", lambda p: ("info", p / "teacher")),
    ("teacher/scheduler/scheduler_config.json", lambda p: ("info", p / "teacher")),
    ("drawn/hsivi-samples.json", lambda p: ("info", p / "drawn")),
    ("drawn/00001.png", lambda p: ("fid", p / "drawn", p / "stats.npz", *detector(p))),
    ("real.npz", lambda p: ("fid", p / "real.npz", p / "stats.npz", *detector(p))),
    ("stats.npz", lambda p: ("fid", p / "real.npz", p / "stats.npz", "--kid", *detector(p))),
    ("detector/config.json", lambda p: ("fid", p / "real.npz", p / "real.npz", *detector(p))),
    ("detector/model.safetensors", lambda p: ("fid", p / "real.npz", p / "real.npz", *detector(p))),
    ("cache/*.json", compared),
    ("cache/*[0-9a-f].npz", compared),
    ("cache/*.first.npz", lambda p: (*compared(p), "--grids", p / "grids")),
    ("inferred/infer.json", lambda p: (*INFER, *CPU, "--out", p / "inferred")),
    ("inferred/checkpoint/*/state.json", lambda p: (*INFER, *CPU, "--out", p / "inferred")),
    (
        "inferred/checkpoint/*/tensors.safetensors",
        lambda p: (*INFER, *CPU, "--out", p / "inferred"),
    ),
    ("inferred/metrics.jsonl", lambda p: (*INFER, *CPU, "--out", p / "inferred")),
    ("table.csv", lambda p: (*learned(p)[:-1], p / "another")),
    ("learned/boost.json", predicted),
    ("learned/trees/layer-1-mean-0.txt", predicted),
    ("learned/checkpoint/*3/state.json", learned),
    ("learned/checkpoint/*3/tensors.safetensors", learned),
    ("learned/metrics.jsonl", learned),
    ("settings.json", lambda p: ("train", "--config", p / "settings.json", "--dry-run")),
]


def detector(place):
    return ("--detector", place / "detector", *CPU)


# ---- mutations -----------------------------------------------------------------------------------

STRANGE = st.one_of(
    st.none(), st.booleans(), st.integers(), st.integers(2**62, 2**70), st.floats(),
    st.sampled_from(["", "x", "-1", "²", "9" * 5000, "\0", [], {}, [[]], {"a": {}}, 1e308, 9**400]),
)  # fmt: skip


def places_in(part, path=()):
    """Every place in a JSON value."""
    yield path
    if isinstance(part, dict | list):
        keys = part if isinstance(part, dict) else range(len(part))
        for key in keys:
            yield from places_in(part[key], (*path, key))


def changed(part, path, value, drop):
    """The JSON value with another at one of its places, or without it."""
    if not path:
        return value
    copy = part.copy()
    if len(path) == 1 and drop:
        del copy[path[0]]
    else:
        copy[path[0]] = changed(part[path[0]], path[1:], value, drop)
    return copy


def others(draw, whole, name):
    """The bytes of an .npz or a safetensors file with one array of another kind, or without it."""
    archive = name.endswith(".npz")
    arrays = dict(np.load(io.BytesIO(whole))) if archive else load(whole)
    key = draw(st.sampled_from(sorted(arrays)))
    kinds = ("int8", "float16", "float64", "bool")
    shape = draw(st.sampled_from([(), (0,), (1,), (2, 3), (3, 1, 2), arrays[key].shape]))
    kind, value = draw(st.sampled_from(kinds)), draw(st.sampled_from([0, 1, -1, np.nan, np.inf]))
    with np.errstate(invalid="ignore"):
        arrays[key] = np.full(shape, value).astype(kind)
    if draw(st.integers(0, 4)) == 0:
        del arrays[key]
    if not archive:
        return save(arrays)
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


@st.composite
def mutants(draw, whole, name):
    """The bytes of a file with one fault: a flipped bit, a cut, a hole, doubled or strange text; of
    JSON a strange value or none at a place; of arrays and tensors others.
    """
    if name.endswith(".json") and draw(st.booleans()):
        content = json.loads(whole)
        path = draw(st.sampled_from(sorted(places_in(content), key=str)))
        made = changed(content, path, draw(STRANGE), draw(st.booleans()))
        return json.dumps(made).encode()
    if name.endswith(".jsonl") and draw(st.booleans()):
        lines = whole.splitlines()
        at = draw(st.integers(0, len(lines) - 1))
        lines[at] = draw(mutants(lines[at], "line.json"))
        return b"\n".join(lines)
    if name.endswith((".npz", ".safetensors")) and draw(st.booleans()):
        return others(draw, whole, name)
    at = draw(st.integers(0, len(whole) - 1))
    end = draw(st.integers(at, len(whole)))
    strange = draw(st.sampled_from([b"", b"\0", b"\xff", b"[" * 100_000, b"1e999", b"9" * 5000]))
    flipped = bytes([whole[at] ^ 1 << draw(st.integers(0, 7))])
    return draw(
        st.sampled_from([
            whole[:at] + flipped + whole[at + 1 :],
            whole[:at],
            whole[:at] + whole[end:],
            whole[:end] + whole[at:],
            whole[:at] + strange + whole[at:],
            strange,
        ])
    )  # fmt: skip


def end_of(words):
    """How a command ends: "as it should", "in a line", or else its fault."""
    result = CliRunner().invoke(main, list(map(str, words)))
    told = [line for line in result.stderr.splitlines() if line.lower().startswith("error: ")]
    if result.exception and not isinstance(result.exception, SystemExit):
        *_, last = traceback.extract_tb(result.exception.__traceback__)
        where = f"{Path(last.filename).name}:{last.lineno}"
        return f"{where} {type(result.exception).__name__}: {result.exception}"[:150]
    if len(told) != (result.exit_code > 0):
        return f"exit {result.exit_code}: {result.stderr[-150:]}"
    return "in a line" if told else "as it should"


def attack(place, folder, name, reader, count, begin):
    """Mutate a file `count` times; how often the command that reads it ended how."""
    file, ended = sorted(place.glob(name))[-1], Counter()
    target, whole = folder / file.relative_to(place), file.read_bytes()
    own = (
        name.split("/")[0] if "/" in name else ""
    )  # where the command writes, as far as it matters
    words = reader(folder)
    writes = words[0] not in ("info", "fid") and "--predict" not in words

    @seed(begin)
    @settings(
        max_examples=count, deadline=None, database=None, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(mutants(whole, name), st.booleans())
    def try_one(mutant, summed):
        if writes or not folder.exists():
            part = own if folder.exists() else ""
            shutil.rmtree(folder / part, ignore_errors=True)
            shutil.copytree(place / part, folder / part)
        if not summed and "learned" not in name:  # as earlier versions of train and infer wrote
            (target.parent / "SHA256SUMS").unlink(missing_ok=True)
        target.write_bytes(mutant)
        ended[end_of(words)] += 1

    try_one()
    faults = {how: n for how, n in ended.items() if how not in ("as it should", "in a line")}
    assert not faults, f"seed {begin}, {name}: {faults}"
    return ended


@pytest.fixture
def loaded_once(monkeypatch):
    """A function (name of a file): where it is no network's, networks are loaded once and kept."""
    load = functools.cache(loading.load_unet)

    def prepare(name):
        if not {"unet", "scheduler", "teacher"} & {*name.split("/")}:
            monkeypatch.setattr(loading, "load_unet", load)

    return prepare


each_file = pytest.mark.parametrize(
    ("name", "reader"), READERS, ids=[f"{name} {reader(Path())[0]}" for name, reader in READERS]
)


@each_file
def test_a_few_damaged_files_end_in_a_line(place, tmp_path, name, reader):
    attack(place, tmp_path / "copy", name, reader, 3, 0)


@pytest.mark.slow
@each_file
def test_a_thousand_damaged_files_end_in_a_line(place, tmp_path, loaded_once, name, reader):
    loaded_once(name)
    ended, read_by = (
        attack(place, tmp_path / "copy", name, reader, MUTATIONS, SEED),
        reader(place)[0],
    )
    cells = (name, read_by, ended.total(), ended["in a line"], ended.total())
    print(f"\nseed {SEED} | {' | '.join(map(str, cells))} |")
