"""Packages of the extra that are missing, or fail when they are imported."""

import sys

import pytest

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
