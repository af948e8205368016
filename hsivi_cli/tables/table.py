"""Tables in CSV files: which columns hold numbers and which categories, and both as numbers.

A category is the number of its word in the sorted list that the column was learned with. What is
missing, and a word that the list does not hold, is NaN, which LightGBM takes as it is.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import HsiviError, counted

WIDEST = 1e100  # of a target, and 1 / it the narrowest: beyond, its variance is no float64
MISSING = {"", "na", "n/a", "nan", "null"}  # in small letters


@dataclass(frozen=True)
class Column:
    """A column of the table that was learned.

    words  of its categories, sorted; None where it holds numbers
    """

    name: str
    words: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Cells:
    """A file's cells, as text, by column; `lines` [N] are the rows' lines in the file."""

    path: Path
    columns: dict[str, list[str]]
    lines: list[int]

    def check_has(self, names: Collection[str]) -> None:
        if absent := [name for name in names if name not in self.columns]:
            raise HsiviError(
                f"{self.path} has no column {', '.join(absent)}: its columns are "
                f"{', '.join(self.columns)}"
            )


def read_cells(path: Path) -> Cells:
    """A CSV file with a line of names above its rows."""
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file)
            found = [(reader.line_num, line) for line in reader if line]
    except (OSError, ValueError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or error
        raise HsiviError(f"{path} cannot be read as a CSV file in UTF-8: {reason}") from error
    if len(found) < 2:
        raise HsiviError(f"{path} holds no rows: a line of column names and then rows are needed")
    (_, *lines), (names, *rows) = zip(*found, strict=True)
    names = [name.strip() for name in names]
    if twice := {name for name in names if names.count(name) > 1}:
        raise HsiviError(f"{path} has several columns {', '.join(sorted(twice))}: rename them")
    for line, row in zip(lines, rows, strict=True):
        if len(row) != len(names):
            raise HsiviError(
                f"{path} has {counted(len(row), 'cell')} in line {line} and {len(names)} names "
                "above: mend that line"
            )
    columns = ([cell.strip() for cell in column] for column in zip(*rows, strict=True))
    return Cells(path, dict(zip(names, columns, strict=True)), lines)


def is_missing(cell: str) -> bool:
    return cell.lower() in MISSING


def number_in(cell: str) -> float | None:
    """The number in a cell, NaN where it is missing, None where it is no finite number."""
    if is_missing(cell):
        return math.nan
    try:
        value = float(cell)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def column_of(cells: Cells, name: str, categories: bool = False) -> Column:
    """What a column holds: words where a cell is none of a number, or where it is said so. Refuses
    a column of numbers that words have strayed into.
    """
    filled = [cell for cell in cells.columns[name] if not is_missing(cell)]
    strays = [cell for cell in filled if number_in(cell) is None]
    if not categories and not strays:
        return Column(name)
    if not categories and 2 * len(strays) < len(filled):
        line = cells.lines[cells.columns[name].index(strays[0])]
        raise HsiviError(
            f"{cells.path} has {strays[0]!r} in line {line} of column {name}, which holds numbers: "
            "mend it, leave it empty, or name the column in --categories"
        )
    return Column(name, tuple(sorted(set(filled))))


def values_of(cells: Cells, column: Column) -> np.ndarray:
    """A column's numbers [N], float64. Refuses one of another type than was learned."""
    found = cells.columns[column.name]
    if column.words is None:
        values = [number_in(cell) for cell in found]
        if None in values:
            row = values.index(None)
            raise HsiviError(
                f"{cells.path} has {found[row]!r} in line {cells.lines[row]} of column "
                f"{column.name}, which held numbers when it was learned: mend it or leave it empty"
            )
        return np.array(values, dtype=float)
    code = {word: float(i) for i, word in enumerate(column.words)}
    values = np.array([code.get(cell, math.nan) for cell in found])
    filled = [cell for cell in found if not is_missing(cell)]
    if filled and np.isnan(values).all():
        raise HsiviError(
            f"{cells.path} has {filled[0]!r} and no category that the run knows in column "
            f"{column.name}: it learned {', '.join(column.words[:5])}"
            + (", ..." if len(column.words) > 5 else "")
        )
    return values


def encode(cells: Cells, columns: Sequence[Column]) -> np.ndarray:
    """The columns' numbers [N, C], float64."""
    cells.check_has([column.name for column in columns])
    return np.column_stack([values_of(cells, column) for column in columns])


def unknown_words(cells: Cells, columns: Sequence[Column]) -> dict[str, list[str]]:
    """By column, the categories that were not there when it was learned."""
    found = {
        column.name: sorted(
            {cell for cell in cells.columns[column.name] if not is_missing(cell)}
            - set(column.words)
        )
        for column in columns
        if column.words is not None
    }
    return {name: words for name, words in found.items() if words}


# ---- what is to be learned -----------------------------------------------------------------------


@dataclass(frozen=True)
class Table:
    """Rows to learn from.

    inputs    the columns of x, and x [N, C]
    targets   the columns of y: numbers, or one of categories; y [N, D], one column of 0 and 1 a
              class there
    """

    inputs: tuple[Column, ...]
    targets: tuple[Column, ...]
    x: np.ndarray
    y: np.ndarray

    @property
    def classes(self) -> tuple[str, ...] | None:
        return self.targets[0].words

    def rows(self, which: np.ndarray) -> Table:
        return Table(self.inputs, self.targets, self.x[which], self.y[which])


def read_table(
    path: Path, targets: Sequence[str], categories: Collection[str] = (), classes: bool = False
) -> Table:
    """A file's rows. Refuses targets that are missing in a row or the same in all, and tables that
    hold nothing beside them.
    """
    cells = read_cells(path)
    cells.check_has([*targets, *categories])
    inputs = tuple(
        column_of(cells, name, name in categories) for name in cells.columns if name not in targets
    )
    if not inputs:
        raise HsiviError(f"{path} has no column beside the target: there is nothing to learn from")
    wanted = tuple(column_of(cells, name, classes) for name in targets)
    if len(wanted) > 1 and any(column.words for column in wanted):
        raise HsiviError(
            f"{', '.join(targets)} are several targets of which not all are numbers: classes are "
            "learned one target a run"
        )
    for column in wanted:
        check_target(cells, column)
    y = encode(cells, wanted)
    if wanted[0].words:
        y = np.eye(len(wanted[0].words))[y[:, 0].astype(int)]
    return Table(inputs, wanted, encode(cells, inputs), y)


def check_target(cells: Cells, column: Column) -> None:
    found = cells.columns[column.name]
    missing = [i for i, cell in enumerate(found) if is_missing(cell)]
    if missing:
        raise HsiviError(
            f"{cells.path} lacks the target {column.name} in {counted(len(missing), 'row')}, the "
            f"first in line {cells.lines[missing[0]]}: leave such rows out"
        )
    values = values_of(cells, column)
    low, high = float(values.min()), float(values.max())
    if low == high:
        raise HsiviError(
            f"the target {column.name} is {found[0]} in all rows of {cells.path}: there is nothing "
            "to learn"
        )
    if not 1 / WIDEST <= high - low <= WIDEST:
        raise HsiviError(
            f"the target {column.name} of {cells.path} runs from {low:g} to {high:g}, of which "
            "there is no variance: scale the column"
        )
