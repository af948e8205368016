"""Tables in CSV files: what a column holds, as numbers, and what is refused."""

import math

import numpy as np
import pytest

from hsivi_cli.errors import HsiviError
from hsivi_cli.tables.table import Column, encode, read_cells, read_table, unknown_words


def written(folder, text, name="t.csv"):
    file = folder / name
    file.write_text(text, encoding="utf-8")
    return file


def test_numbers_words_and_what_is_missing(tmp_path):
    file = written(tmp_path, "size,colour,y\n1.5,red,3\n NA , blue ,4\n,red,5\n-2e3,,6\n")
    table = read_table(file, ["y"])
    assert table.inputs == (Column("size"), Column("colour", ("blue", "red")))
    nan = math.nan
    np.testing.assert_array_equal(table.x, [[1.5, 1], [nan, 0], [nan, 1], [-2000, nan]])
    np.testing.assert_array_equal(table.y, [[3], [4], [5], [6]])
    assert table.classes is None


def test_words_in_the_target_are_classes_and_numbers_where_it_is_said(tmp_path):
    words = read_table(written(tmp_path, "x,y\n1,b\n2,a\n3,b\n"), ["y"])
    assert words.classes == ("a", "b")
    np.testing.assert_array_equal(words.y, [[0, 1], [1, 0], [0, 1]])
    numbers = written(tmp_path, "x,y\n1,0\n2,1\n3,1\n")
    assert read_table(numbers, ["y"]).classes is None
    assert read_table(numbers, ["y"], classes=True).classes == ("0", "1")


def test_numbers_are_categories_where_it_is_said(tmp_path):
    table = read_table(written(tmp_path, "code,y\n70,1\n8,2\n70,3\n"), ["y"], ["code"])
    assert table.inputs == (Column("code", ("70", "8")),)
    np.testing.assert_array_equal(table.x[:, 0], [0, 1, 0])


def test_several_targets_are_numbers_beside_one_another(tmp_path):
    table = read_table(written(tmp_path, "a,x,b\n1,5,2\n3,6,4\n"), ["b", "a"])
    np.testing.assert_array_equal(table.y, [[2, 1], [4, 3]])
    assert [column.name for column in table.inputs] == ["x"]


def test_quoted_cells_blank_lines_and_a_byte_order_mark_are_read(tmp_path):
    cells = read_cells(written(tmp_path, '\ufeffname,y\n"Smith, J",1\n\n"a\nb",2\n'))
    assert cells.columns == {"name": ["Smith, J", "a\nb"], "y": ["1", "2"]}
    assert cells.lines == [2, 5]  # a row's last line in the file


@pytest.mark.parametrize(
    ("text", "targets", "told"),
    [
        ("a,y\n1,2\n2,3\n", ["z"], "has no column z: its columns are a, y"),
        ("a,y\n1,2\n2,\n3,NA\n", ["y"], "lacks the target y in 2 rows, the first in line 3"),
        ("a,y\n1,2\n2,2\n", ["y"], "the target y is 2 in all rows"),
        ("a,y\n1,2\n2,2.0\n", ["y"], "the target y is 2 in all rows"),
        ("a,y\n1,b\n2,b\n", ["y"], "the target y is b in all rows"),
        ("a,y\n1,1e200\n2,3e200\n", ["y"], "runs from 1e\\+200 to 3e\\+200, of which"),
        ("a,y\n1,-1e308\n2,1e308\n", ["y"], "no variance: scale the column"),
        ("a,y\n1,1e-200\n2,0\n", ["y"], "the target y of .* runs from 0 to 1e-200"),
        ("y\n1\n2\n", ["y"], "has no column beside the target"),
        ("a,y\n", ["y"], "holds no rows"),
        ("", ["y"], "holds no rows"),
        ("a,y\n1,2\n1\n", ["y"], "has 1 cell in line 3 and 2 names above"),
        ("a,a,y\n1,2,3\n", ["y"], "several columns a"),
        ("a,y\n1,2\n2,3\nx,4\n", ["y"], "has 'x' in line 4 of column a, which holds numbers"),
        ("a,y\n1,2\n2,3\n3,inf\n", ["y"], "has 'inf' in line 4 of column y"),
        ("a,y,z\n1,2,p\n2,3,q\n", ["y", "z"], "classes are learned one target a run"),
    ],
)
def test_tables_that_cannot_be_learned_are_refused_by_name(tmp_path, text, targets, told):
    with pytest.raises(HsiviError, match=told):
        read_table(written(tmp_path, text), targets)


def test_files_that_are_no_tables_are_refused(tmp_path):
    with pytest.raises(HsiviError, match="No such file"):
        read_cells(tmp_path / "nowhere.csv")
    (tmp_path / "x.csv").write_bytes(b"a,y\n\xff\xfe,1\n")
    with pytest.raises(HsiviError, match="CSV file in UTF-8"):
        read_cells(tmp_path / "x.csv")


LEARNED = (Column("size"), Column("colour", ("blue", "red")))


def test_a_new_table_is_read_as_the_learned_one_in_any_order_of_columns(tmp_path):
    cells = read_cells(written(tmp_path, "id,colour,size\n1,red,2\n2,green,3\n"))
    np.testing.assert_array_equal(encode(cells, LEARNED), [[2, 1], [3, math.nan]])
    assert unknown_words(cells, LEARNED) == {"colour": ["green"]}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("size,id\n1,2\n", "has no column colour: its columns are size, id"),
        ("size,colour\nbig,red\n", "has 'big' in line 2 of column size, which held numbers"),
        ("size,colour\n1,7\n2,8\n", "has '7' and no category that the run knows in column colour"),
    ],
)
def test_new_tables_with_other_columns_or_types_are_refused_by_name(tmp_path, text, told):
    with pytest.raises(HsiviError, match=told):
        encode(read_cells(written(tmp_path, text)), LEARNED)
