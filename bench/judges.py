"""Which judge of starts, without data, agrees with the data? On the teachers of bench/teachers.py.

    python bench/judges.py --out runs/teachers --cache runs/judges --nfe 4

draws --count images of the finalists of `--start auto` and of NAMES, and as many of the teacher's
own, and sets every judge beside the truth: the distance to the data by a classifier. A judge sees
200 images a side, as the search does, of which the drawn ones have several parts. Images and rows
(--cache/NAME-NFE/rows.jsonl) are kept, so the same command again goes on with what is missing, and
then prints the truth, and for every judge and teacher Spearman's correlation with it over all
starts beside the regret: by how much the start that it takes, of the finalists and of all, is
further from the data than their best. Both are means over the parts.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import mean

import numpy as np
import torch
from across import EMBEDDED, Ground
from scipy.stats import spearmanr
from teachers import TEACHERS
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, avg_pool2d, interpolate, unfold

from hsivi_cli.config import TrainConfig
from hsivi_cli.files.images import from_images, to_images
from hsivi_cli.files.logs import append, rows_of
from hsivi_cli.files.whole import replacing
from hsivi_cli.metrics.frechet import MomentSum, frechet_distance, precision_recall
from hsivi_cli.metrics.own import (
    PLAIN_SOLVER,
    START_IMAGES,
    OwnImages,
    blocks_of,
    clean,
    seen_by,
)
from hsivi_cli.metrics.statistics import Statistics, moments_of
from hsivi_cli.models.clips import find_clip
from hsivi_cli.models.starts import PAIRS, bare_chains, finalists, images, teacher_gap
from hsivi_cli.models.teacher import Teacher

NAMES = (
    *(f"unipc-{spacing}" for spacing in ("auto", "quad", "log-snr", "trailing", "leading")),
    *("unipc-linspace", "dpm++2-auto", "dpm++2-quad", "ipndm-auto", "ipndm-quad", "ddim"),
)
NOISY = (0.02, 0.1, 0.3)  # of the schedule's times: where noised images are seen
BATCH = 256
ENOUGH = 0.9  # of the best recall, for the judge that asks for it


@torch.no_grad()
def seen(teacher: Teacher, x: Tensor, time: int) -> tuple[dict[str, Tensor], Tensor]:
    """Means and standard deviations over space of what every block makes of x [N, C, H, W], and
    what the network predicts.
    """
    blocks = blocks_of(teacher)

    def told(out: Tensor) -> Tensor:
        return torch.stack((out.mean((2, 3)), out.std((2, 3), correction=0)), 1)

    parts = [seen_by(teacher, [*blocks.values()], part, time, told) for part in x.split(BATCH)]
    found = {}
    for i, name in enumerate(blocks):
        maps = torch.cat([each[i] for each, _ in parts])
        found[f"{name} mean"], found[f"{name} sd"] = maps.unbind(1)
    return found, torch.cat([out for _, out in parts])


def patches(x: Tensor, size: int = 5, each: int = 32) -> list[Tensor]:
    """Patches of two levels of a Laplacian pyramid, [N, each, C size^2]."""
    low = avg_pool2d(x, 2)
    high = x - interpolate(low, x.shape[-2:], mode="bilinear", align_corners=False)
    found = []
    for level in (high, low):
        every = unfold(level, min(size, *level.shape[-2:])).movedim(1, 2)
        chosen = torch.randperm(every.shape[1], generator=torch.Generator().manual_seed(0))[:each]
        found.append(every[:, chosen])
    return found


def maps_of(teacher: Teacher, drawn: Tensor) -> dict[str, Tensor]:
    """Everything that judges see of images uint8 [N, H, W, C], by name."""
    found, _ = seen(teacher, *clean(teacher, drawn))
    device, table = teacher.unet.device, teacher.table
    x = from_images(drawn.to(device))
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0)).to(device)
    for part in NOISY:
        time = round(part * len(table))
        signal, sigma = table[time].sqrt().item(), (1 - table[time]).sqrt().item()
        noisy = signal * x + sigma * noise
        maps, out = seen(teacher, noisy, time)
        found |= {f"noisy {name} {part}": m for name, m in maps.items() if name.startswith("mid")}
        kind = teacher.scheduler.config.prediction_type
        target = {"epsilon": noise, "sample": x, "v_prediction": signal * noise - sigma * x}[kind]
        found[f"loss {part}"] = (out - target).square().mean((1, 2, 3))[:, None]
    found["pixels"] = adaptive_avg_pool2d(x, 8).flatten(1)
    found |= {f"patches {i}": p for i, p in enumerate(patches(x))}
    return {name: m.cpu() for name, m in found.items()}


def frechet(a: Tensor, own: Tensor) -> float:
    """The Frechet distance of features [N, D] in units of the own ones' variance."""
    moments = []
    for features in (a, own):
        total = MomentSum()
        total.update(features)
        moments.append(total.result())
    return frechet_distance(*moments) / moments[1].cov.trace().item()


def sliced(a: Tensor, own: Tensor, count: int = 64) -> float:
    """The sliced Wasserstein distance of patches [N, P, D], in units of the own ones' sd."""
    a, own = a.flatten(0, 1), own.flatten(0, 1)
    rng = torch.Generator().manual_seed(0)
    slices = torch.randn(a.shape[1], count, generator=rng)
    slices = slices / slices.norm(dim=0)
    gap = (a @ slices).sort(0).values - (own @ slices).sort(0).values
    return (gap.abs().mean() / own.std()).item()


def judged(maps: dict[str, Tensor], own: dict[str, Tensor]) -> dict[str, float]:
    """What every judge says of a part of a start's images: the less the better."""

    def total(wanted: Callable[[str], bool]) -> float:
        return sum(frechet(maps[n], own[n]) for n in own if wanted(n))

    def of(word: str, *ends: str) -> Callable[[str], bool]:
        return lambda n: n.startswith(word) and (not ends or n.endswith(ends))

    blocks = ("down", "mid", "up")
    last = max(n.split()[0] for n in own if n.startswith("up"))
    mid = "mid" if "mid mean" in own else max(n.split()[0] for n in own if n.startswith("down"))
    losses = [(maps[n].mean() / own[n].mean()).item() for n in own if n.startswith("loss")]
    return {
        "middle block, means": total(of(mid, "mean")),
        "middle block, means and sds": total(of(mid)),
        "middle block, means at three times of noise": total(of("noisy", *map(str, NOISY))),
        "down blocks, means": total(of("down", "mean")),
        "down blocks, means and sds": total(of("down")),
        "up blocks, means": total(of("up", "mean")),
        "up blocks, sds": total(of("up", "sd")),
        "up blocks, means and sds": total(of("up")),
        "last up block, means and sds": total(of(last)),
        "all blocks, means": total(lambda n: n.startswith(blocks) and n.endswith("mean")),
        "all blocks, sds": total(lambda n: n.startswith(blocks) and n.endswith("sd")),
        "all blocks, means and sds": total(lambda n: n.startswith(blocks)),
        "8 x 8 pixels": total(of("pixels")),
        "patches, sliced": sum(sliced(maps[n], own[n]) for n in own if n.startswith("patches")),
        "denoising loss at three times": sum(abs(ratio - 1) for ratio in losses),
        "recall, middle block": -precision_recall(own[f"{mid} mean"], maps[f"{mid} mean"])[1],
    }


class Court(Ground):
    """A teacher, its own images and those of its starts at a number of calls, kept in a folder."""

    def __init__(self, name: str, nfe: int, args: argparse.Namespace) -> None:
        self.folder, self.parts = args.cache / f"{name}-{nfe}", args.count // START_IMAGES
        self.folder.mkdir(parents=True, exist_ok=True)
        self.config = TrainConfig(nfe=str(nfe), start="auto")
        super().__init__(name, TEACHERS, args)
        self.chains = dict(bare_chains(self.config, nfe, self.teacher))

    def own_statistics(self, file: Path) -> Statistics:
        """Of the images that judges see. From here on the teacher keeps x0 as a training does."""
        own, count = OwnImages(self.teacher, PLAIN_SOLVER), self.args.count
        file = self.args.cache / f"{self.name}-own.npy"
        self.own_images = self.kept(file, lambda: torch.cat([*own.batches(count)]))
        clip = find_clip(self.config, self.teacher, None, lambda found: found())
        self.teacher = replace(self.teacher, clip=clip)
        seen = moments_of(self.own_images.split(BATCH), self.detector, True)
        return Statistics(seen[0], self.detector.stamp, seen[1], self.teacher.image)

    def kept(self, file: Path, make: Callable[[], Tensor]) -> Tensor:
        if not file.exists():
            with replacing(file) as temporary, open(temporary, "wb") as stream:
                np.save(stream, make().numpy())
        return torch.from_numpy(np.load(file))

    def images(self, start: str) -> Tensor:
        chain, count = self.chains[start], self.args.count
        file = self.folder / f"{start}.npy"
        return self.kept(file, lambda: to_images(images(self.teacher, chain, count)))

    def gaps(self) -> dict[str, float]:
        """By start, as --start auto finds its finalists."""
        file = self.folder / "gaps.json"
        if not file.exists():
            gap = teacher_gap(self.teacher, PAIRS)
            file.write_text(json.dumps({name: gap(c) for name, c in self.chains.items()}))
        return json.loads(file.read_text())

    def measure(self) -> None:
        """A row for the finalists and every start of NAMES."""
        gaps, file = self.gaps(), self.folder / "rows.jsonl"
        final = finalists(sorted(gaps, key=gaps.get), self.chains)
        there = {row["start"] for row in rows_of(file, "start")}
        left = [n for n in dict.fromkeys((*final, *NAMES)) if n in self.chains and n not in there]
        if not left:
            return
        own = self.split(maps_of(self.teacher, self.own_images))
        for start in left:
            drawn = self.images(start)
            row = {"start": start, "finalist": start in final, "step": 0}
            row |= self.scored(drawn.split(BATCH))
            parts = zip(self.split(maps_of(self.teacher, drawn)), own, strict=True)
            said = [judged(*part) | {"gap, noise for noise": gaps[start]} for part in parts]
            row["judges"] = {name: [each[name] for each in said] for name in said[0]}
            row["judges"]["classifier, to the teacher's own"] = [row["own"]] * self.parts
            append(file, row)
            print(self.name, start, row["data"], row["recall"], flush=True)

    def split(self, maps: dict[str, Tensor]) -> list[dict[str, Tensor]]:
        cut = {name: m.split(START_IMAGES) for name, m in maps.items()}
        return [{name: m[i] for name, m in cut.items()} for i in range(self.parts)]


def verdict(rows: list[dict], scores: list[list[float]]) -> tuple[float, float, float]:
    """Correlation with the truth, and regrets among finalists and among all starts: means over
    parts.

    rows    of starts
    scores  by part, a score a start
    """
    truth, found = [row["data"] for row in rows], []
    final = [i for i, row in enumerate(rows) if row["finalist"]]
    for score in scores:
        picks = [min(of, key=score.__getitem__) for of in (final, range(len(rows)))]
        bests = [min(truth[i] for i in of) for of in (final, range(len(rows)))]
        regrets = [truth[pick] - best for pick, best in zip(picks, bests, strict=True)]
        alike = len(set(score)) == 1  # then it says nothing
        found.append((0.0 if alike else spearmanr(truth, score).statistic, *regrets))
    return tuple(mean(column) for column in zip(*found, strict=True))


def with_recall(rows: list[dict]) -> list[list[float]]:
    """By part, the middle block's distances, but of starts whose recall is far below the best."""
    distance, recall = "middle block, means", "recall, middle block"
    found = []
    for i in range(len(rows[0]["judges"][recall])):
        best = min(row["judges"][recall][i] for row in rows)
        low = [row["judges"][recall][i] > ENOUGH * best for row in rows]
        found.append(
            [row["judges"][distance][i] + 1e6 * b for row, b in zip(rows, low, strict=True)]
        )
    return found


def times_gap(rows: list[dict]) -> list[list[float]]:
    """By part, the distances by deviations times the gaps: both count by ratios."""
    names = ("all blocks, sds", "gap, noise for noise")
    both = [zip(*(row["judges"][name] for name in names), strict=True) for row in rows]
    return [list(part) for part in zip(*([a * b for a, b in each] for each in both), strict=True)]


def table(found: dict[str, list[dict]]) -> None:
    """The truth, and how every judge stands to it.

    found  by teacher, the rows of its starts
    """
    starts = list(dict.fromkeys(row["start"] for rows in found.values() for row in rows))
    lines = {start: [] for start in starts}
    for rows in found.values():
        there = {row["start"]: row for row in rows}
        for start in starts:
            row = there.get(start)
            mark = "" if row is None or not row["finalist"] else " *"
            lines[start].append(f"{row['data']:.2f} ({row['recall']:.2f}){mark}" if row else "")
    show("start", lines, found)
    names = list(next(iter(found.values()))[0]["judges"])
    lines, every = {}, {}
    derived = {
        "middle block, means, of high recall": with_recall,
        "all blocks, sds, times the gap": times_gap,
    }
    for name in (*names, *derived):
        all_of = []
        for rows in found.values():
            if name in names:
                scores = [
                    list(part) for part in zip(*(r["judges"][name] for r in rows), strict=True)
                ]
            else:
                scores = derived[name](rows)
            all_of.append(verdict(rows, scores))
        every[name] = [mean(column) for column in zip(*all_of, strict=True)]
        lines[name] = ["{:.2f}, {:.2f}, {:.2f}".format(*v) for v in (*all_of, every[name])]
    best = sorted(lines, key=lambda name: every[name][1])
    show("judge", {name: lines[name] for name in best}, [*found, "all"])


def show(head: str, lines: dict[str, list[str]], columns) -> None:
    print(f"\n| {head} | {' | '.join(columns)} |\n|{'---|' * (1 + len(columns))}")
    for name, cells in lines.items():
        print(f"| {name} | {' | '.join(cells)} |")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = ",".join((EMBEDDED, *TEACHERS))
    parser.add_argument("--out", type=Path, default="runs/teachers", help="of bench/teachers.py")
    parser.add_argument("--cache", type=Path, default="runs/judges")
    parser.add_argument("--only", default=names, help="teachers, separated by commas")
    parser.add_argument("--nfe", default="4", help="numbers of calls, separated by commas")
    parser.add_argument("--count", type=int, default=1000, help="images of a start")
    parser.add_argument("--device")
    args = parser.parse_args()
    args.cache.mkdir(parents=True, exist_ok=True)
    found = {}
    for name in args.only.split(","):
        for nfe in map(int, args.nfe.split(",")):
            court = Court(name, nfe, args)
            court.measure()
            found[f"{name}, {nfe}"] = rows_of(court.folder / "rows.jsonl", "start")
    table(found)


if __name__ == "__main__":
    main()
