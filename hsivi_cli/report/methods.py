"""Methods of inference in a table."""

from __future__ import annotations

from .text import columns

COLUMNS = {
    "name": ("", "{}"),
    "mean_error": ("mean error", "{:.3f}"),
    "mean_z": ("in MC errors", "{:.1f}"),
    "mean_z_perfect": ("perfect", "{:.1f}"),
    "sd_error": ("sd error", "{:.3f}"),
    "correlation_error": ("corr. error", "{:.3f}"),
    "js": ("JS", "{:.4f}"),
    "js_floor": ("floor", "{:.4f}"),
    "w1": ("W1", "{:.4f}"),
    "w1_floor": ("floor", "{:.4f}"),
    "rhat": ("R-hat", "{:.3f}"),
    "ess": ("ESS", "{:.0f}"),
    "divergences": ("divergences", "{:.0f}"),
    "cpu_seconds": ("CPU s", "{:.0f}"),
}


def table(rows: list[dict]) -> str:
    """The rows in columns; a column that no row has is left out."""
    used = [key for key in COLUMNS if any(row.get(key) is not None for row in rows)]
    lines = [[COLUMNS[key][0] for key in used]]
    for row in rows:
        lines.append(
            [COLUMNS[key][1].format(row[key]) if row.get(key) is not None else "" for key in used]
        )
    return columns(lines)
