"""A student's README.md."""

from __future__ import annotations

import shlex
from dataclasses import asdict
from pathlib import Path

from ..config import OWN, TrainConfig
from ..errors import counted
from ..models.teacher import Teacher


def one_of(numbers: list[int]) -> str:
    """Numbers in words: 4, or 1, 2 or 4."""
    *rest, last = map(str, numbers)
    return f"{', '.join(rest)} or {last}" if rest else last


def of_budgets(distances: dict[str, float]) -> str:
    """Distances by number of calls, in words: 2.30, or 9.12 at 1 call, 2.30 at 4 calls."""
    if len(distances) == 1:
        return f"{next(iter(distances.values())):.2f}"
    return ", ".join(
        f"{distance:.2f} at {counted(nfe, 'call')}" for nfe, distance in distances.items()
    )


def when(found: dict) -> str:
    """Of which step an evaluation is, in words."""
    return "start" if found.get("round") == 0 else f"step {found['step']}"


def of_evaluation(found: dict, before: dict | None) -> str:
    """An evaluation in training, and the one before it that stays kept, or None where it is kept
    itself: "step 100: distance 2.30, recall 0.78 (1000 images); step 50 stays kept, distance 2.25".
    """
    distances = found["distances"]
    return (
        f"{when(found)}: distance {of_budgets(distances)}"
        + (f", mean {found['distance']:.2f}" if len(distances) > 1 else "")
        + (f", recall {found['recall']:.2f}" if found["recall"] is not None else "")
        + f" ({found['count']} images); "
        + (f"{when(before)} stays kept, distance {before['distance']:.2f}" if before else "kept")
    )


def of_length(config: TrainConfig) -> str:
    """How long a training is: 2000 updates of regression and 120 steps."""
    parts = []
    if config.regress_steps:
        parts.append(f"{counted(config.regress_steps, 'update')} of regression")
    if config.steps:
        parts.append(counted(config.steps, "step"))
    return " and ".join(parts)


def of_end(out: Path, config: TrainConfig, seconds: float, best: dict | None) -> str:
    """What a finished run says of its student."""
    words = (
        f"{out}: a student of {counted(one_of(config.budgets), 'call')}, "
        f"{counted(config.steps, 'step')}, {seconds / 60:.1f} minutes"
    )
    if not best:
        return words
    words += f"; {when(best)} is kept, distance {best['distance']:.2f}"
    if best.get("round") != 0:
        return words
    words += "\nno snapshot was judged better than the untrained start, so it holds that"
    if config.reference == OWN:
        words += "; --reference IMAGES judges by data, --reference none keeps the last average"
    return words


def how_to_go_on(out: Path, teacher: Teacher, config: TrainConfig) -> str:
    """What to type with a finished run: a line that draws, and one that compares."""
    sample, compare = ["hsivi", "sample", str(out)], ["hsivi", "compare", str(out)]
    if len(config.budgets) > 1:
        sample += ["--nfe", str(config.budgets[0])]
    if config.reference not in (OWN, "none"):
        compare += ["--reference", config.reference]
    elif teacher.name != "embedded:teacher":  # which has a reference of its own
        compare += ["--reference", "IMAGES"]
    return f"draw its images:  {shlex.join(sample)}\nset it beside solvers:  {shlex.join(compare)}"


def model_card(teacher: Teacher, config: TrainConfig, info: dict, out: Path) -> str:
    """The student's README.md."""
    best, calls, most = info["best"], one_of(config.budgets), max(config.budgets)
    measured = "No distance was measured in training (`--reference` measures it)."
    if best:
        place, doubt = f"`{best['reference']}`", "the least of several, so a little low"
        if best["reference"] == OWN:  # by which no least distance is sought
            place, doubt = "the teacher's own images", "which tells little of data"
        measured = (
            f"In training, {best['count']} images of the averaged student at step {best['step']}, "
            f"which this is, were at a Fréchet distance of {of_budgets(best['distances'])} from "
            f"{place} (detector: {best['detector']}), {doubt}: measure it anew with `hsivi fid`."
        )
    made = f"{info['step']} student updates"
    if config.regress_steps:
        made = f"{config.regress_steps} updates of regression on its paths, then {made}"
    with_data = f"with the images of {config.data}" if config.data else "without data"
    settings = "\n".join(
        f"| {key} | {value} |" for key, value in asdict(config).items() if value is not None
    )
    return f"""---
library_name: diffusers
tags: [hsivi, diffusion-distillation]
---
# A sampler of {counted(calls, "network call")}

Distilled {with_data} from {teacher.name} (weights {teacher.digest}) by hsivi {info["hsivi"]}:
{made}, {info["seconds"] / 60:.1f} minutes.

```python
from hsivi_cli import HSIVIPipeline
pipe = HSIVIPipeline.from_pretrained("{out}")
images = pipe(batch_size=16, num_inference_steps={most}).images
```

or `hsivi sample {out} --nfe {most} --count 16 --grid grid.png`.

{measured}

| setting | value |
|---|---|
{settings}
"""
