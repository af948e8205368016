"""Rows of a comparison as a table, sentences, a plot and a page. docs/formats.md describes a
row.
"""

from __future__ import annotations

import base64
import html
import io

from torch import Tensor

from .images import grid_png

WORDS = {"student": "student", "solver": "solver", "teacher": "teacher", "floor": "real data"}


def table(rows: list[dict]) -> str:
    """The rows in columns, by calls and then by distance."""
    lines = [
        (
            "",
            "kind",
            "calls",
            "distance",
            "range",
            "precision",
            "recall",
            "images/s",
            "count",
            "how",
        )
    ]
    for row in ordered(rows):
        span = (
            f"{min(row['distances']):.2f}-{max(row['distances']):.2f}"
            if len(row.get("distances", ())) > 1
            else ""
        )
        shares = [
            f"{row[key]:.2f}" if row.get(key) is not None else "" for key in ("precision", "recall")
        ]
        speed = f"{row['count'] / row['seconds']:.0f}" if row.get("seconds") else ""
        lines.append(
            (
                row["name"],
                row["kind"],
                str(row["nfe"] or ""),
                f"{row['distance']:.2f}",
                span,
                *shares,
                speed,
                str(row["count"]),
                row["how"],
            )
        )
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join(
        "  ".join(word.ljust(width) for word, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def ordered(rows: list[dict]) -> list[dict]:
    rank = {"floor": 0, "teacher": 1, "student": 2, "solver": 2}
    return sorted(rows, key=lambda row: (rank[row["kind"]], row["nfe"] or 0, row["distance"]))


def best(rows: list[dict], kind: str, nfe: int | None = None) -> dict | None:
    """The row of a kind (and number of calls) with the smallest distance."""
    found = [row for row in rows if row["kind"] == kind and nfe in (None, row["nfe"])]
    return min(found, key=lambda row: row["distance"], default=None)


def verdicts(rows: list[dict]) -> list[str]:
    """One sentence per number of calls that says who wins, and the excess left (d - d_T) / (d_S -
    d_T) where it can be told.
    """
    sentences, teacher = [], best(rows, "teacher")
    for nfe in sorted({row["nfe"] for row in rows if row["kind"] in ("student", "solver")}):
        student, solver = best(rows, "student", nfe), best(rows, "solver", nfe)
        if student is None or solver is None:
            only = student or solver
            sentences.append(
                f"{nfe} calls: {only['name']} {only['distance']:.2f}, with nothing to compare it "
                "with."
            )
            continue
        won, lost = sorted((student, solver), key=lambda row: row["distance"])
        sentence = (
            f"{nfe} calls: {won['name']} ({WORDS[won['kind']]}) wins, {won['distance']:.2f} "
            f"against {lost['distance']:.2f} of {lost['name']}"
        )
        span = solver["distance"] - teacher["distance"] if teacher else 0.0
        if span > 0:
            mine = [row for row in ordered(rows) if (row["kind"], row["nfe"]) == ("student", nfe)]
            left = [(row["distance"] - teacher["distance"]) / span for row in mine]
            words = [f"{value:.3f}" for value in left]
            if len(mine) > 1:
                words = [f"{w} ({row['name']})" for w, row in zip(words, mine, strict=True)]
            sentence += (
                f"; excess left {', '.join(words)} over the teacher's {teacher['distance']:.2f} "
                f"at {teacher['nfe']} calls"
            )
        sentences.append(sentence + ".")
    return sentences


def plot_png(rows: list[dict]) -> bytes:
    """Distance by number of calls: every student, the best solver, the teacher's and the data's own
    lines.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.2), dpi=120, layout="constrained")
    axes = figure.subplots()
    for kind, style in (("solver", "o--"), ("student", "s-")):
        names = sorted(
            {
                row["name"].split("-")[0] if kind == "solver" else "students"
                for row in rows
                if row["kind"] == kind
            }
        )
        for name in names:
            mine = [
                r
                for r in rows
                if r["kind"] == kind and (kind == "student" or r["name"].split("-")[0] == name)
            ]
            points = [
                (nfe, best(mine, kind, nfe)["distance"]) for nfe in sorted({r["nfe"] for r in mine})
            ]
            axes.plot(
                *zip(*points, strict=True),
                style,
                label=name,
                linewidth=2.4 if kind == "student" else 1.2,
            )
    for kind, color in (("teacher", "black"), ("floor", "gray")):
        row = best(rows, kind)
        if row:
            label = f"teacher, {row['nfe']} calls" if kind == "teacher" else "real data"
            axes.axhline(row["distance"], color=color, linestyle=":", label=label)
    axes.set(xlabel="network calls per image", ylabel="Fréchet distance", yscale="log")
    calls = sorted({row["nfe"] for row in rows if row["kind"] in ("student", "solver")})
    axes.set_xscale("log")
    axes.set_xticks(calls, [str(nfe) for nfe in calls])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def page(rows: list[dict], grids: dict[str, Tensor], about: dict[str, str]) -> str:
    """One HTML page without outside references. grids: {title: images uint8 NHWC}; about: {label:
    value} of the measurement.
    """

    def picture(data: bytes, alt: str) -> str:
        source = f"data:image/png;base64,{base64.b64encode(data).decode()}"
        return f'<img alt="{html.escape(alt)}" src="{source}">'

    head = "".join(
        f"<th>{name}</th>"
        for name in (
            "",
            "kind",
            "calls",
            "distance",
            "precision",
            "recall",
            "images/s",
            "count",
            "how",
        )
    )
    body = ""
    for row in ordered(rows):
        speed = f"{row['count'] / row['seconds']:.0f}" if row.get("seconds") else ""
        shares = [
            f"{row[key]:.2f}" if row.get(key) is not None else "" for key in ("precision", "recall")
        ]
        cells = (
            row["name"],
            row["kind"],
            row["nfe"] or "",
            f"{row['distance']:.2f}",
            *shares,
            speed,
            row["count"],
            row["how"],
        )
        body += (
            f'<tr class="{row["kind"]}">'
            + "".join(f"<td>{html.escape(str(cell))}</td>" for cell in cells)
            + "</tr>\n"
        )
    sentences = "".join(f"<li>{html.escape(s)}</li>" for s in verdicts(rows))
    facts = "".join(f"<dt>{html.escape(k)}</dt><dd>{html.escape(v)}</dd>" for k, v in about.items())
    figures = "".join(
        f"<figure>{picture(grid_png(images), title)}"
        f"<figcaption>{html.escape(title)}</figcaption></figure>"
        for title, images in grids.items()
    )
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>hsivi compare</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 68rem; padding: 0 1rem;
color: #222 }} table {{ border-collapse: collapse; width: 100% }} th, td {{ text-align: left;
padding: .25rem .7rem; border-bottom: 1px solid #ddd }} td:nth-child(n+3):nth-child(-n+8),
th:nth-child(n+3):nth-child(-n+8) {{ text-align: right; font-variant-numeric: tabular-nums }}
tr.student {{ background: #eef6ee; font-weight: 600 }} tr.teacher, tr.floor {{ color: #666 }} figure
{{ display: inline-block; margin: .5rem 1rem .5rem 0 }} figure img {{ image-rendering: pixelated;
min-width: 14rem }} dt {{ font-weight: 600; float: left; clear: left; margin-right: .6rem }} img {{
max-width: 100% }} </style></head><body> <h1>Samplers at equal calls</h1>
<ul>{sentences}</ul>
{picture(plot_png(rows), "distance by number of network calls")}
<table><thead><tr>{head}</tr></thead><tbody>
{body}</tbody></table>
<h2>The same seeds</h2>
{figures}
<h2>How it was measured</h2><dl>{facts}</dl>
</body></html>
"""
