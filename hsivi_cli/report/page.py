"""A comparison as one HTML page."""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence

from torch import Tensor

from ..files.images import grid_png
from .plots import figure_png, panels
from .rows import WORDY, filled, notes, ordered, verdicts

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
