"""Draws of a table's target, summed up as a CSV file."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from ..tables.scores import class_shares
from ..tables.table import Column

LEVELS = (0.05, 0.25, 0.5, 0.75, 0.95)  # of the quantiles that are told of a number


def csv_of(blocks: Iterable[np.ndarray], targets: Sequence[Column]) -> str:
    """A line of names, and one for each row of blocks of draws [n, S, D]."""
    text = io.StringIO()
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow(head(targets))
    lines.writerows(line for drawn in blocks for line in summary(drawn, targets))
    return text.getvalue()


def head(targets: Sequence[Column]) -> list[str]:
    """The names of a line's cells."""
    if targets[0].words:
        return [targets[0].name, *(f"p({word})" for word in targets[0].words)]
    told = ("mean", "sd", *(f"q{level:g}" for level in LEVELS))
    return [f"{column.name} {what}" for column in targets for what in told]


def summary(drawn: np.ndarray, targets: Sequence[Column]) -> Iterator[list]:
    """A line of cells for each row of draws [N, S, D]: of every target mean, sd and quantiles; of
    classes the likeliest, and the share of each in the draws.
    """
    if words := targets[0].words:
        for share in class_shares(drawn):
            yield [words[share.argmax()], *share.tolist()]
        return
    quantiles = np.quantile(drawn, LEVELS, axis=1)  # [levels, N, D]
    sd = drawn.std(1, ddof=1) if drawn.shape[1] > 1 else np.zeros_like(drawn[:, 0])
    told = np.concatenate([drawn.mean(1)[None], sd[None], quantiles])
    for row in told.transpose(1, 2, 0):
        yield [f"{value:.7g}" for value in row.ravel()]
