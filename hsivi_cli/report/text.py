"""Text in columns."""

from __future__ import annotations

from collections.abc import Collection


def columns(lines: list[list[str]], left: Collection[int] = (0,)) -> str:
    """Lines of cells, equally many in each, below one another; two spaces between columns.

    left  the columns that hold words and begin at the left; the others, numbers, end at the right
    """
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i in left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )
