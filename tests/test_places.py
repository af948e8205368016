"""Names of what comes with the package, and of what is written by default."""

from pathlib import Path

import pytest

from hsivi_cli.errors import HsiviError
from hsivi_cli.files.places import check_name, embedded, embedded_names, name_of, shipped_students


@pytest.mark.parametrize(
    ("source", "name"),
    [
        (None, "embedded"),
        ("embedded:teacher", "embedded"),
        ("embedded:students/4", "embedded-students-4"),
        ("google/ddpm-cifar10-32", "ddpm-cifar10-32"),
        ("teachers/mine/", "mine"),
        ("/a/b", "b"),
        ("../mine", "mine"),
    ],
)
def test_a_default_folder_is_called_after_the_last_part_of_a_name(source, name):
    assert name_of(source) == name


def test_a_teacher_here_is_called_as_its_folder_is(tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    monkeypatch.chdir(tmp_path / "mine")
    assert name_of(".") == "mine"


def test_shipped_students_are_told_by_their_calls_fewest_first():
    found = [int(name) for name in shipped_students()]
    assert found == sorted(found) and 4 in found
    assert f"embedded:students/{found[0]}" in embedded_names()


def test_a_name_is_utf_8():
    for name in ("a", "größe/ß", "/x/日本"):
        check_name(name)
    for name in ("a\udcff", Path("/x\udcff/a"), "\ud800"):
        with pytest.raises(HsiviError, match=r"no valid UTF-8.*: rename it, or choose another"):
            check_name(name)


def test_what_does_not_come_with_the_package_is_refused():
    assert str(embedded("mine/students/4")) == "mine/students/4"
    with pytest.raises(HsiviError, match="does not come with hsivi"):
        embedded("embedded:references.npz")
