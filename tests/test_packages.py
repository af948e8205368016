"""Packages: those of an extra that are missing, or fail when they are imported; which versions."""

import re
import sys
import tomllib

import pytest
from command import ROOT

from hsivi_cli.density.packages import quietly
from hsivi_cli.errors import HsiviError


def test_a_package_that_is_missing_says_how_to_have_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "nutpie", None)
    with pytest.raises(HsiviError, match=r"needs nutpie .*pip install 'hsivi\[infer\]'"):
        quietly("nutpie")


@pytest.mark.parametrize(
    "text", ["import sys\nsys.no_such_thing", "raise RuntimeError('too old\\nand more')", "1 / 0"]
)
def test_a_package_that_fails_when_imported_is_one_line_with_its_reason(
    monkeypatch, tmp_path, text
):
    (tmp_path / "broken_package.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(HsiviError, match=r"broken_package cannot be imported .*Error: ") as found:
        quietly("broken_package")
    assert "\n" not in str(found.value)


def test_the_lowest_versions_that_were_tried_are_the_bounds():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = [*project["dependencies"], *extras["infer"], *extras["boost"], *extras["dev"][1:]]
    bounds = [re.fullmatch(r"([\w-]+)>=([\d.]+)", one).groups() for one in wanted]
    for name in ("lowest", "newest"):
        lines = (ROOT / "constraints" / f"{name}.txt").read_text().splitlines()[1:]
        tried = [tuple(line.split("==")) for line in lines]
        assert [package for package, _ in tried] == [package for package, _ in bounds]
        for (package, version), (_, least) in zip(tried, bounds, strict=True):
            found, parts = ([int(part) for part in v.split(".")] for v in (version, least))
            same = found[: len(parts)] == parts
            assert same if name == "lowest" else found >= parts, package
