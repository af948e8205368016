"""Plots of a comparison."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from .figures import png
from .rows import best, comparable

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
    return png(figure)


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
