"""Columns of text, by eye."""

from hsivi_cli.report.text import columns


def test_words_begin_at_the_left_and_numbers_end_at_the_right():
    lines = [["", "kind", "distance"], ["ddim", "solver", "12.00"], ["a", "", "1.50"]]
    assert columns(lines, left=(0, 1)).splitlines() == [
        "      kind    distance",
        "ddim  solver     12.00",
        "a                 1.50",
    ]


def test_nothing_follows_the_last_cell_of_a_line():
    assert columns([["a", "long word"], ["b", ""]], left=(0, 1)) == "a  long word\nb"
