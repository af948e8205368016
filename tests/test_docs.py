"""README and docs: what they name exists, what they show is what the code makes, and they are
short.
"""

import importlib
import importlib.util
import pydoc
import re
from pathlib import Path

import click
import pytest

from hsivi_cli.cli import main

ROOT = Path(__file__).parent.parent
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("weights/**/README.md")]
SOURCES = [
    p for folder in ("hsivi_cli", "bench", "weights") for p in ROOT.glob(f"{folder}/**/*.py")
]
REFERENCES = ("decisions.md", "formats.md", "options.md")  # a line is a field there
page = pytest.mark.parametrize("page", sorted(PAGES), ids=lambda p: str(p.relative_to(ROOT)))


def words(name):
    return len((ROOT / name).read_text().split())


def prose(file):
    """A page's lines without tables and commands."""
    text = re.sub(r"(?ms)^```.*?^```$", "", file.read_text())
    return [line for line in text.splitlines() if not line.startswith(("|", "    "))]


@page
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\(([^)#\s]+)", page.read_text())
    for link in links:
        assert link.startswith("https://") or (page.parent / link).exists(), link


@pytest.mark.parametrize("file", sorted([*PAGES, *SOURCES]), ids=lambda p: str(p.relative_to(ROOT)))
def test_files_that_are_named_exist(file):
    named = r"(?<![\w./])(?:hsivi_cli|bench|docs|tests|weights)/[\w/.-]*\w"
    for path in re.findall(named, file.read_text()):
        if "K" not in path:  # students/K stands for every K
            assert (ROOT / path).exists(), path


@page
def test_names_in_python_exist(page):
    text = page.read_text()
    names = re.findall(r"\bhsivi_cli(?:\.\w+)+", text)
    names += [f"{a}.{b}" for a, b in re.findall(r"from (hsivi_cli[\w.]*) import (\w+)", text)]
    for name in names:
        assert pydoc.locate(name) is not None, name


@page
def test_commands_have_the_options_that_are_shown(page):
    for verb, line in re.findall(r"\bhsivi (\w+)\b([^\n`]*)", page.read_text()):
        command = main.commands.get(verb)
        shown = re.findall(r"(?<!\S)--[a-z][\w-]*", line)
        if command is None:
            assert not shown, f"hsivi {verb}"
            continue
        options = {o for p in command.params if isinstance(p, click.Option) for o in p.opts}
        assert set(shown) <= options | {"--help"}, (verb, line)


def test_tables_are_those_of_the_recorded_rows():
    """`python weights/ship.py table` would change nothing."""
    spec = importlib.util.spec_from_file_location("ship", ROOT / "weights" / "ship.py")
    ship = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(ship)
    for file, text in ship.pages().items():
        assert text == file.read_text(), f"{file.name}: run python weights/ship.py table"


def test_the_table_of_inference_is_that_of_the_recorded_rows(monkeypatch):
    """`python bench/figures2d.py --table` would change nothing."""
    monkeypatch.syspath_prepend(ROOT / "bench")
    figures = importlib.import_module("figures2d")
    assert figures.page() == figures.PAGE.read_text(), "run python bench/figures2d.py --table"


def test_pages_are_short():
    assert words("README.md") <= 900
    assert words("docs/results.md") <= 1200
    lines = len((ROOT / "docs" / "results-infer.md").read_text().splitlines())
    assert lines <= 120


@page
def test_lines_are_short_but_for_tables_and_commands(page):
    if page.name not in REFERENCES and "students" not in page.parts:
        assert all(len(line) <= 160 for line in prose(page))


def test_every_decision_has_its_status_in_the_index():
    text = (ROOT / "docs" / "decisions.md").read_text()
    entries = re.findall(r"(?m)^## (.+)\nStatus: (.+)\.$", text)
    assert len(entries) == len(re.findall(r"(?m)^## ", text))
    assert entries == re.findall(r"(?m)^\| (\d{4}-.+) \| (.+) \|$", text)


def test_every_experiment_is_in_the_map():
    folder = ROOT / "docs" / "experiments"
    text = (folder / "README.md").read_text()
    linked = set(re.findall(r"\]\((\w[\w-]*\.md)\)", text))
    assert linked == {p.name for p in folder.glob("*.md")} - {"README.md"}


def test_pictures_are_light():
    for file in (ROOT / "docs").glob("*.png"):
        assert file.stat().st_size < 100_000, file.name
