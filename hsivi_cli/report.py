"""Rows of a comparison as a table, sentences, plots and a page. docs/formats.md describes a row
and a training curve.
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Callable, Sequence

from torch import Tensor

from .images import grid_png

WORDS = {"student": "student", "solver": "solver", "teacher": "teacher", "floor": "real data"}
COLUMNS = (
    *("", "kind", "calls", "distance", "range", "precision", "recall", "images/s"),
    *("training min", "count", "how"),
)


def cells(row: dict) -> list[str]:
    """A row in the table's columns."""
    distances = row.get("distances", ())
    return [
        row["name"],
        row["kind"],
        str(row["nfe"] or ""),
        "NaN" if row["distance"] is None else f"{row['distance']:.2f}",
        f"{min(distances):.2f}-{max(distances):.2f}" if len(distances) > 1 else "",
        *("" if row.get(key) is None else f"{row[key]:.2f}" for key in ("precision", "recall")),
        f"{row['count'] / row['seconds']:.0f}" if row.get("seconds") else "",
        "" if row.get("minutes") is None else f"{row['minutes']:.1f}",
        f"{row['count']:,}",
        f"{row['how']} {row.get('date', '')}".strip(),
    ]


def filled(rows: list[dict]) -> list[list[str]]:
    """The head and the rows' cells, by calls and then by distance, without columns that stay
    empty.
    """
    lines = [cells(row) for row in ordered(rows)]
    used = [i for i in range(len(COLUMNS)) if i == 0 or any(line[i] for line in lines)]
    return [[line[i] for i in used] for line in ([*COLUMNS], *lines)]


def table(rows: list[dict]) -> str:
    lines = filled(rows)
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join(
        "  ".join(word.ljust(width) for word, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def ordered(rows: list[dict]) -> list[dict]:
    rank = {"floor": 0, "teacher": 1, "student": 2, "solver": 2}
    return sorted(rows, key=lambda row: (rank[row["kind"]], row["nfe"] or 0, distance_of(row)))


def distance_of(row: dict) -> float:
    """A row's distance, infinite where its sampler drew NaN."""
    return float("inf") if row["distance"] is None else row["distance"]


def best(rows: list[dict], kind: str, nfe: int | None = None) -> dict | None:
    """The row of a kind (and number of calls) with the smallest distance."""
    found = [
        row
        for row in rows
        if row["kind"] == kind and nfe in (None, row["nfe"]) and row["distance"] is not None
    ]
    return min(found, key=distance_of, default=None)


def comparable(rows: list[dict]) -> list[dict]:
    """The rows with a distance of as many images as the measured ones, and the floor: a distance
    falls as the number of images grows.
    """
    counts = [row["count"] for row in rows if row["kind"] != "floor"]
    counts = [row["count"] for row in rows if row["how"] == "measured"] or counts
    return [
        row
        for row in rows
        if row["distance"] is not None and (row["kind"] == "floor" or row["count"] in counts[:1])
    ]


# ---- sentences -----------------------------------------------------------------------------------


def verdicts(rows: list[dict]) -> list[str]:
    """One sentence per number of calls that says who wins, and the excess left (d - d_T) / (d_S -
    d_T) where it can be told.
    """
    budgets = sorted({row["nfe"] for row in rows if row["kind"] in ("student", "solver")})
    return [f"{nfe} call{'s' if nfe > 1 else ''}: {verdict(rows, nfe)}." for nfe in budgets]


def verdict(rows: list[dict], nfe: int) -> str:
    rows = comparable(rows)
    mine = [r for r in ordered(rows) if r["nfe"] == nfe and r["kind"] in ("student", "solver")]
    if not mine:
        return "nothing to compare was drawn"
    first, student, solver = mine[0], best(mine, "student"), best(mine, "solver")
    if len(mine) == 1:
        return f"{first['name']} {value(first)}, with nothing to compare it with"
    if student is None or solver is None:
        lone = "student" if student else "solver"
        other = "no solver" if student else "no student"
        return (
            f"{first['name']} is the best {lone}, {value(first)} against {value(mine[1])} of "
            f"{mine[1]['name']}; there is {other} to compare it with"
        )
    won, lost = (student, solver) if first is student else (solver, student)
    if f"{won['distance']:.2f}" == f"{lost['distance']:.2f}":
        sentence = (
            f"{student['name']} (student) and {solver['name']} (solver) tie, {value(student)} "
            f"against {value(solver)}"
        )
    else:
        sentence = (
            f"{won['name']} ({WORDS[won['kind']]}) wins, {value(won)} against {value(lost)} of "
            f"{lost['name']}"
        )
        if max(won.get("distances") or [0]) >= min(lost.get("distances") or [float("inf")]):
            sentence += ", but their ranges over the repeats overlap"
    return sentence + excess(mine, solver, best(rows, "teacher"))


def value(row: dict) -> str:
    """A row's distance, with the recall that it may have paid with."""
    recall = "" if row.get("recall") is None else f" (recall {row['recall']:.2f})"
    return f"{row['distance']:.2f}{recall}"


def excess(rows: list[dict], solver: dict, teacher: dict | None) -> str:
    """The end of a sentence: the excess left of this teacher's students among rows of equal
    calls.
    """
    students = [r for r in rows if r["kind"] == "student" and r.get("own_teacher", True)]
    if teacher is None or not students:
        return ""
    line = f"the teacher's {teacher['distance']:.2f} at {teacher['nfe']} calls"
    span = solver["distance"] - teacher["distance"]
    if span <= 0:
        return f"; no excess is told, as {solver['name']} itself is not above {line}"
    words = [f"{(row['distance'] - teacher['distance']) / span:.3f}" for row in students]
    if len(students) > 1:
        words = [f"{w} ({row['name']})" for w, row in zip(words, students, strict=True)]
    return f"; excess left {', '.join(words)} over {line}"


def notes(rows: list[dict]) -> list[str]:
    """What a reader of the table must know beside it, a line each."""
    lines = [
        f"{row['name']}, {row['nfe']} calls: {row['error']}." for row in rows if row.get("error")
    ]
    like = comparable(rows)
    kinds = {row["kind"] for row in like}
    if {"student", "solver"} <= kinds and "teacher" not in kinds:
        lines.append(
            "The excess left is not told without the teacher's own line: add --teacher-calls 200."
        )
    if unlike := sum(row["distance"] is not None for row in rows) - len(like):
        lines.append(
            f"{unlike} rows are of another number of images and left out of sentences and plots: "
            "a distance falls as that number grows."
        )
    recorded = {}
    for row in ordered(rows):
        if row["how"] == "recorded":
            name = row["name"] + (f", {row['nfe']} calls" if row["nfe"] else "")
            made = (row.get("date", "undated"), row.get("command", "command unknown"))
            recorded.setdefault(made, []).append(name)
    for (day, command), names in recorded.items():
        lines.append(f"recorded {day}: {'; '.join(names)}\n    {command}")
    return lines


# ---- plots ---------------------------------------------------------------------------------------

WIDE, HIGH = 5.4, 4.4  # inches of a panel, small enough that its words stay readable on a phone


def plot_png(rows: list[dict], curves: Sequence[dict] = ()) -> bytes:
    """Distance by network calls, and where there are students by minutes of training."""
    return figure_png(panels(rows, curves))


def panels(rows: list[dict], curves: Sequence[dict]) -> list[Callable]:
    """Functions that fill an empty axes: the plots that these rows allow."""
    rows = comparable(rows)
    made = [lambda axes: draw_calls(axes, rows)]
    if curves or any(row.get("minutes") is not None for row in rows):
        made.append(lambda axes: draw_minutes(axes, rows, curves))
    return made


def figure_png(fill: Sequence[Callable]) -> bytes:
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter

    figure = Figure(figsize=(WIDE * len(fill), HIGH), dpi=144, layout="constrained")
    parts = figure.subfigures(1, len(fill), squeeze=False)[0]
    for part, draw in zip(parts, fill, strict=True):
        axes = part.subplots()
        draw(axes)
        axes.set(ylabel="Fréchet distance", yscale="log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
        if axes.get_legend_handles_labels()[0]:
            part.legend(loc="outside lower center", ncols=2, fontsize=8, frameon=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def draw_calls(axes, rows: list[dict]) -> None:
    """Every solver family and the best student at each number of calls, the teacher's and the
    data's own lines.
    """
    families = sorted({r["name"].split("-")[0] for r in rows if r["kind"] == "solver"})
    groups = {
        name: [r for r in rows if r["kind"] == "solver" and r["name"].split("-")[0] == name]
        for name in families
    } | {"student": [r for r in rows if r["kind"] == "student"]}
    for name, mine in groups.items():
        nfes = sorted({row["nfe"] for row in mine})
        distances = [min(r["distance"] for r in mine if r["nfe"] == nfe) for nfe in nfes]
        style = {"lw": 2.4, "color": "black"} if name == "student" else {"lw": 1.2, "alpha": 0.85}
        if nfes:
            marker = "s-" if name == "student" else "o--"
            axes.plot(nfes, distances, marker, markersize=5, label=name, **style)
    teacher_line(axes, rows)
    if floor := best(rows, "floor"):
        lowest = min((r["distance"] for r in rows if r is not floor), default=0)
        inside = floor["distance"] > lowest / 5  # else it would squeeze the rest
        line = axes.axhline if inside else lambda y, **style: axes.plot([], [], **style)
        name = floor["name"] if inside else f"{floor['name']}: {floor['distance']:.2g}, far below"
        line(floor["distance"], color="gray", ls=":", label=name)
    calls = sorted({row["nfe"] for row in rows if row["kind"] in ("student", "solver")})
    axes.set(xlabel="network calls per image", xscale="log")
    axes.set_xticks(calls, [str(nfe) for nfe in calls])
    axes.minorticks_off()


def draw_minutes(axes, rows: list[dict], curves: Sequence[dict]) -> None:
    """A run's distances in training, a star where the finished student was measured here, and the
    best solver of its calls, all in the colour of their number of calls.
    """
    from matplotlib import colormaps

    students = [row for row in rows if row.get("minutes") is not None]
    nfes = sorted({entry["nfe"] for entry in (*students, *curves)})
    colors = {nfe: colormaps["Dark2"](i) for i, nfe in enumerate(nfes)}
    for curve in curves:
        counts = "/".join(f"{count:,}" for count in curve["counts"])
        label = f"{curve['nfe']} calls in training, {counts} images"
        axes.plot(
            *zip(*curve["points"], strict=True), ".-", color=colors[curve["nfe"]], label=label
        )
    for row in students:
        label = f"{short(row['name'])}, {row['nfe']} calls"
        point = ([row["minutes"]], [row["distance"]])
        axes.plot(*point, "*", markersize=12, color=colors[row["nfe"]], label=label)
    for nfe in nfes:
        if solver := best(rows, "solver", nfe):
            label = f"{solver['name']}, {nfe} calls"
            axes.axhline(solver["distance"], color=colors[nfe], ls="--", lw=1.2, label=label)
    teacher_line(axes, rows)
    axes.set(xlabel="minutes of training")
    axes.set_xlim(left=0)


def teacher_line(axes, rows: list[dict]) -> None:
    if row := best(rows, "teacher"):
        label = f"teacher, {row['nfe']} calls"
        axes.axhline(row["distance"], color="black", ls=":", label=label)


def short(name: str, length: int = 24) -> str:
    """The end of a long path."""
    return name if len(name) <= length else "..." + name[-(length - 3) :]


# ---- the page ------------------------------------------------------------------------------------

STYLE = """
:root { --ink: #1d2329; --soft: #5c6670; --line: #dfe4e8; --win: #e9f3ec }
* { box-sizing: border-box }
body { font: 16px/1.55 system-ui, sans-serif; color: var(--ink); max-width: 72rem;
  margin: 0 auto; padding: 1.5rem 1.25rem 4rem }
h1 { font-size: 1.7rem; line-height: 1.2; margin: .5rem 0 1rem }
h2 { font-size: 1.2rem; margin: 2.4rem 0 .8rem }
.verdicts { margin: 0; padding: 0; list-style: none }
.verdicts li { padding: .55rem .9rem; margin: 0 0 .5rem; background: var(--win);
  border-left: 4px solid #2f7d4f; border-radius: 0 4px 4px 0 }
.notes { color: var(--soft); font-size: .85rem; padding-left: 1.1rem; overflow-wrap: anywhere;
  white-space: pre-wrap }
.plots { display: grid; gap: 1.5rem; margin-top: 1.5rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 27rem), 1fr)) }
.plots img { width: 100%; height: auto }
.scroll { overflow-x: auto }
table { border-collapse: collapse; width: 100%; font-size: .92rem; white-space: nowrap }
th, td { text-align: left; padding: .35rem .7rem; border-bottom: 1px solid var(--line) }
th { color: var(--soft); font-weight: 600 }
.number { text-align: right; font-variant-numeric: tabular-nums }
tr.student td { background: var(--win); font-weight: 600 }
tr.teacher td, tr.floor td { color: var(--soft) }
.grids { display: grid; gap: 1.25rem;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 10rem), 1fr)) }
figure { margin: 0 }
figure img { width: 100%; height: auto; image-rendering: pixelated; display: block;
  border: 1px solid var(--line) }
figcaption { font-size: .85rem; color: var(--soft); margin-top: .3rem; overflow-wrap: anywhere }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .3rem 1rem; font-size: .9rem }
dt { color: var(--soft) }
dd { margin: 0; overflow-wrap: anywhere }
@media (max-width: 34rem) {
  body { padding: 1rem .9rem 3rem }
  table { font-size: .8rem }
  th, td { padding: .3rem .4rem }
  td:nth-child(2), th:nth-child(2) { display: none }
  dl { grid-template-columns: 1fr }
  dd { margin-bottom: .5rem }
}
"""
WORDY = ("", "kind", "how")  # columns that hold no number


def page(
    rows: list[dict],
    grids: dict[str, Tensor],
    about: dict[str, str],
    curves: Sequence[dict] = (),
) -> str:
    """One HTML page without outside references. grids: {title: images uint8 NHWC}; about: {label:
    value} of the measurement.
    """

    def picture(data: bytes, alt: str) -> str:
        source = f"data:image/png;base64,{base64.b64encode(data).decode()}"
        return f'<img alt="{html.escape(alt)}" src="{source}">'

    def line(tag: str, words: list[str]) -> str:
        kinds = ["" if name in WORDY else ' class="number"' for name in head]
        return "".join(
            f"<{tag}{kind}>{html.escape(word)}</{tag}>"
            for kind, word in zip(kinds, words, strict=True)
        )

    def items(texts: list[str], kind: str) -> str:
        inner = "".join(f"<li>{html.escape(text)}</li>" for text in texts)
        return f'<ul class="{kind}">{inner}</ul>' if texts else ""

    head, *lines = filled(rows)
    body = "\n".join(
        f'<tr class="{row["kind"]}">{line("td", words)}</tr>'
        for row, words in zip(ordered(rows), lines, strict=True)
    )
    titles = ("distance by network calls", "distance by minutes of training")
    plots = "".join(
        picture(figure_png([panel]), title)
        for panel, title in zip(panels(rows, curves), titles, strict=False)
    )
    facts = "".join(f"<dt>{html.escape(k)}</dt><dd>{html.escape(v)}</dd>" for k, v in about.items())
    figures = "".join(
        f"<figure>{picture(grid_png(images), title)}"
        f"<figcaption>{html.escape(title)}</figcaption></figure>"
        for title, images in grids.items()
    )
    seeds = f'<h2>The same seeds, side by side</h2><div class="grids">{figures}</div>'
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>hsivi compare</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>{STYLE}</style></head><body>
<h1>Samplers at equal calls</h1>
{items(verdicts(rows), "verdicts")}
<div class="plots">{plots}</div>
<h2>All rows</h2>
<div class="scroll"><table><thead><tr>{line("th", head)}</tr></thead><tbody>
{body}
</tbody></table></div>
{items(notes(rows), "notes")}
{seeds if grids else ""}
<h2>How it was measured</h2><dl>{facts}</dl>
</body></html>
"""
