"""`hsivi train`: distil a teacher into a student of K calls, or of several budgets of calls.

A run's folder is the student (student.py) and beside it what the training says and needs:
metrics.jsonl (what must repeat), timing.jsonl (what need not), evaluations.jsonl, eval/ (image
grids), checkpoint/ (all that resume needs). The same command again goes on where the last
checkpoint was.
"""

from __future__ import annotations

import contextlib
import importlib.util
import math
import sys
import time
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs, broadcast_object_list, reduce
from torch import Tensor
from tqdm import tqdm

from .. import __version__
from ..config import TrainConfig
from ..errors import HsiviError
from ..files.checkpoint import (
    checkpoints,
    last_good,
    load_checkpoint,
    load_modules,
    load_optimizer,
    module_tensors,
    optimizer_tensors,
    save_checkpoint,
    usable,
)
from ..files.device import pick_device
from ..files.images import has_picture, save_grid
from ..files.run import Interrupt, append, check_resumable, command_line, holding, say, trim
from ..files.whole import is_fresh, sweep, writing
from ..method.chain import Chain
from ..method.distill import opening_rounds, play_round
from ..method.networks import Networks
from ..method.regress import regress_rounds, regressed
from ..method.steps import Shard
from ..metrics.detectors import Detector
from ..metrics.frechet import frechet_distance
from ..metrics.judge import make_judge
from ..metrics.statistics import Statistics, moments_of
from ..models.draw import Sampler, draw
from ..models.loading import load_teacher
from ..models.starts import choose_starts, make_chains, networks_of
from ..models.student import (
    is_student,
    is_whole,
    load_chains,
    load_student,
    read_info,
    save_student,
    write_info,
)
from ..models.teacher import Teacher, difference
from ..report.card import model_card, of_budgets, one_of

SAVE_REGRESSION = 4  # rounds of regression between checkpoints, as long as some 50 steps
EVAL_SEED = 1_000_000_000  # the seeds that judge a training are none that a user is likely to draw
GRID_COUNT = 64  # images of a kept grid


def run(config: TrainConfig, teacher_options: dict, out: Path) -> None:
    """Train, or go on training, the student in the folder `out`.

    teacher_options  source, revision, variant, subfolder of `load_teacher`
    """
    begin = time.monotonic()
    if config.log_with and not is_installed(config.log_with):
        raise HsiviError(f"--log-with {config.log_with}: pip install {config.log_with} first")
    patience = InitProcessGroupKwargs(
        timeout=timedelta(hours=12)
    )  # the others wait while one process evaluates
    accelerator = Accelerator(
        cpu=config.device == "cpu",
        log_with=config.log_with,
        project_dir=out,
        kwargs_handlers=[patience],
    )
    device = accelerator.device if accelerator.num_processes > 1 else pick_device(config.device)
    torch.set_float32_matmul_precision("high")
    if config.batch_size % accelerator.num_processes:
        raise HsiviError(
            f"--batch-size {config.batch_size} does not divide over {accelerator.num_processes} "
            "processes"
        )
    if 8 % accelerator.num_processes:
        raise HsiviError(
            f"{accelerator.num_processes} processes: a round's chains divide over 1, 2, 4 or 8 of "
            "them"
        )
    teacher = load_teacher(**teacher_options, device=device)
    with holding(out) if accelerator.is_main_process else contextlib.nullcontext():
        distil(config, teacher, out, accelerator, begin)


def distil(
    config: TrainConfig, teacher: Teacher, out: Path, accelerator: Accelerator, begin: float
) -> None:
    """`run`, once devices, teacher and folder are there. begin is time.monotonic() at its start."""
    device = teacher.unet.device
    earlier = check_out(out, config, teacher)
    if accelerator.is_main_process:
        sweep(out)  # check_out has found it to be a run's
    starts = find_starts(out if earlier else None, config, teacher, accelerator)
    chains = find_chains(out if earlier else None, config, teacher, starts, accelerator)
    judge = make_judge(config, teacher) if accelerator.is_main_process else None
    shard = Shard(
        accelerator.process_index, accelerator.num_processes, lambda t: reduce(t, reduction="mean")
    )
    networks = networks_of(config, teacher, chains, shard)
    state = {"round": 0, "best": None, "seconds": 0.0}
    resumed = load_checkpoint(out / "checkpoint") if earlier else None
    if resumed:
        with usable(out / "checkpoint"):
            state = restore(networks, *resumed)
    elif config.init:
        state["seconds"] = start_from(networks, config.init, teacher, device)
    book = Book(out, config, teacher, networks, starts, accelerator, judge, state, begin)
    accelerator.wait_for_everyone()  # all have looked at the folder as it was
    book.open()
    opening = opening_rounds(config)
    regression = regress_rounds(config)
    last = opening + config.steps if config.steps else regression
    bar = tqdm(
        total=config.regress_steps + config.steps,
        initial=regressed(config, state["round"]) + max(0, state["round"] - opening),
        unit="step",
        disable=None if book.writes else True,
    )
    with Interrupt() as interrupt, bar:
        for round_ in range(state["round"], last):
            step = max(0, round_ - opening + 1)  # student updates when this round is over
            try:
                measured = play_round(networks, config, round_)
            except torch.OutOfMemoryError as error:
                hint = f"--accumulate {2 * config.accumulate} halves what an update needs"
                raise HsiviError(
                    f"out of memory at step {step}: {hint}; or take a smaller --batch-size"
                ) from error
            if not all(map(math.isfinite, measured.values())):
                raise not_finite(step, out, config)
            state["round"] = round_ + 1
            book.log(step, measured, bar)

            stop = bool(
                interrupt.number
                or (config.minutes and time.monotonic() - begin > 60 * config.minutes)
            )
            if shard.world > 1:  # signals and clocks differ; all stop at the same round
                stop = shard.mean(torch.tensor(float(stop), device=device)).item() > 0
            last_step = round_ + 1 == last
            start = round_ + 1 == regression  # the student is regressed and not yet distilled
            if start:
                book.regressed(measured)
            if judge and (start or last_step or (step > 0 and step % config.eval_every == 0)):
                book.evaluate(step)
            due = step > 0 and step % config.checkpoint_every == 0
            due = due or (round_ < regression and round_ % SAVE_REGRESSION == 0)
            if stop or last_step or start or due:
                book.save(step)
            if stop and not last_step:
                book.leave(interrupt.number, step)
                return
    if state["round"] == last and not resumed and last == 0:
        book.save(0)
    book.close(config.steps)


def is_installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def not_finite(step: int, out: Path, config: TrainConfig) -> HsiviError:
    kept = last_good(out)
    advice = "a lower --student-rate or --fake-rate, or more --fake-updates"
    advice += ", or --dtype float32" if config.dtype == "bfloat16" else ""
    return HsiviError(
        f"the loss is not finite at step {step}; {kept}. Begin in another --out with {advice}"
    )


def check_out(out: Path, config: TrainConfig, teacher: Teacher) -> bool:
    """Whether the folder holds an earlier part of this very run. Refuses a folder that is not ours
    or another run's.
    """
    if is_fresh(out):
        return False
    if not is_student(out):
        raise HsiviError(f"{out} exists and is no run of hsivi: choose another --out")
    info = read_info(out)
    if not (out / "chain.safetensors").exists() and not checkpoints(out / "checkpoint"):
        return False  # it stopped before anything was kept: nothing binds its settings
    if other := difference(info["teacher"], teacher.identity):
        raise HsiviError(
            f"{out} distils another teacher, with {other}: use that one to resume, or another --out"
        )
    check_resumable(out, info, config)
    return True


def find_starts(
    earlier: Path | None, config: TrainConfig, teacher: Teacher, accelerator: Accelerator
) -> dict[int, str]:
    """What --start auto chose: in an earlier part of this run, or now, by the main process."""
    if earlier:
        stored = read_info(earlier).get("starts") or {}
        return {int(nfe): name for nfe, name in stored.items()}
    found = [choose_starts(config, teacher) if accelerator.is_main_process else None]
    starts = broadcast_object_list(found)[0]
    if accelerator.is_main_process:
        for nfe, name in starts.items():
            say(f"--start auto at {nfe} calls: {name}")
    return starts


def find_chains(
    earlier: Path | None,
    config: TrainConfig,
    teacher: Teacher,
    starts: dict[int, str],
    accelerator: Accelerator,
) -> list[Chain]:
    """The chains of the budgets; fitted ones as an earlier part of this run, or the main process,
    has them.
    """
    if not config.fit_steps:
        return make_chains(config, teacher, starts)
    if earlier and (earlier / "chain.safetensors").exists():
        stored, _ = load_chains(earlier)
        return [stored[nfe] for nfe in config.budgets]
    found = [make_chains(config, teacher, starts) if accelerator.is_main_process else None]
    if accelerator.is_main_process:
        say(f"fitted the coefficients of {one_of(config.budgets)} calls")
    return broadcast_object_list(found)[0]


def start_from(networks: Networks, path: str, teacher: Teacher, device: torch.device) -> float:
    """--init: begin with another run's averaged student, its noise scale where the shapes agree,
    and its fake score. Returns the seconds that it took.
    """
    other = load_student(path, device)
    if unlike := difference(other.info["teacher"], teacher.identity):
        raise HsiviError(f"--init {path} is a student of another teacher, with {unlike}")
    networks.student.load_state_dict(other.model.unet.state_dict())
    networks.ema.load_state_dict(other.model.unet.state_dict())
    scale = other.log_scales[max(other.chains)].to(device)
    if scale.shape == networks.log_scale.shape and networks.log_scale.requires_grad:
        networks.log_scale.data.copy_(scale)
        networks.ema_scale.copy_(scale)
    found = load_checkpoint(Path(path) / "checkpoint")
    if found:  # all but the rows of a fake score that is told other layers
        own = networks.fake_score.state_dict()
        theirs = {name: found[0].get(f"fake_score.{name}") for name in own}
        fit = {n: t for n, t in theirs.items() if t is not None and t.shape == own[n].shape}
        networks.fake_score.load_state_dict(own | fit)
    return other.info["seconds"]


MODULES = ("student", "ema", "fake_score")


def snapshot(networks: Networks) -> dict[str, Tensor]:
    """Everything that changes in training, as named tensors."""
    tensors = module_tensors(networks, MODULES)
    tensors |= {"log_scale": networks.log_scale, "ema_scale": networks.ema_scale}
    tensors |= optimizer_tensors(networks.student_optimizer, "student_optimizer")
    return tensors | optimizer_tensors(networks.fake_optimizer, "fake_optimizer")


def restore(networks: Networks, tensors: dict[str, Tensor], state: dict) -> dict:
    """The inverse of `snapshot`. Returns the state that lay beside the tensors."""
    state |= {"round": int(state["round"]), "seconds": float(state["seconds"])}
    state["best"]  # may be null, but must be there
    load_modules(networks, MODULES, tensors)
    networks.log_scale.data.copy_(tensors["log_scale"])
    networks.ema_scale.copy_(tensors["ema_scale"])
    load_optimizer(networks.student_optimizer, "student_optimizer", tensors)
    load_optimizer(networks.fake_optimizer, "fake_optimizer", tensors)
    return state


@dataclass
class Book:
    """A run's folder as the main process writes it; on the others every method only keeps step.

    state  round, best (the best evaluation) and seconds, as a checkpoint keeps them
    begin  time.monotonic() when this part of the run began
    """

    out: Path
    config: TrainConfig
    teacher: Teacher
    networks: Networks
    starts: dict[int, str]
    accelerator: Accelerator
    judge: tuple[Detector, Statistics] | None
    state: dict
    begin: float

    def __post_init__(self):
        self.writes = self.accelerator.is_main_process
        self.divergence = None
        self.before = self.last = self.state["seconds"]

    def open(self) -> None:
        """Write the run's description, drop metrics that the checkpoint does not know, start the
        trackers.
        """
        if self.config.log_with:
            self.accelerator.init_trackers("hsivi", config=asdict(self.config))
        if not self.writes:
            return
        if self.state["best"] and not is_whole(self.out):
            self.state["best"] = None
            say(
                f"the best student's files in {self.out} are gone: the last average takes its place"
            )
        if self.state["round"] and self.state["best"] is None:  # whatever befell the exported files
            self.export()
        else:
            write_info(self.out, self.info())
        begun = self.state["round"] >= regress_rounds(self.config)  # step 0 is over
        for name in ("metrics.jsonl", "timing.jsonl", "evaluations.jsonl"):
            trim(self.out / name, self.step() if begun else -1)

    def step(self) -> int:
        """Student updates so far."""
        return max(0, self.state["round"] - opening_rounds(self.config))

    def seconds(self) -> float:
        """Spent on this student so far, over all parts of this run and the one of --init."""
        return self.before + time.monotonic() - self.begin

    def info(self) -> dict:
        """hsivi.json, but for its format."""
        return {
            "hsivi": __version__,
            "teacher": self.teacher.identity,
            "nfe": self.config.budgets,
            "config": asdict(self.config),
            "starts": self.starts,
            "step": self.step(),
            "regressed": regressed(self.config, self.state["round"]),
            "seconds": round(self.state["seconds"], 1),
            "best": self.state["best"],
        }

    def log(self, step: int, measured: dict[str, float], bar: tqdm) -> None:
        """A round's line in metrics.jsonl and timing.jsonl, the bar, the trackers."""
        if not self.writes:
            return
        now = self.seconds()
        if step == 0:
            bar.set_description("warming the fake score up")
            if "regression_loss" in measured:
                bar.set_description(f"regressing, error {measured['regression_loss']:.4f}")
                bar.update(regressed(self.config, self.state["round"]) - bar.n)
            self.last = now
            return
        bound = measured["divergence"]
        self.divergence = (
            bound if self.divergence is None else 0.95 * self.divergence + 0.05 * bound
        )
        samples = self.config.batch_size * (self.config.fake_updates + 1)
        rate = samples / max(1e-9, now - self.last)
        self.last = now
        with writing(self.out):
            append(self.out / "metrics.jsonl", {"step": step} | measured)
            append(
                self.out / "timing.jsonl",
                {"step": step, "seconds": round(now, 3), "images_per_second": round(rate, 1)},
            )
        bar.set_description(f"divergence {self.divergence:.3g}")
        bar.set_postfix_str(f"{rate:.0f} images/s")
        bar.update()
        if self.config.log_with:
            self.accelerator.log(measured | {"images_per_second": rate}, step=step)

    def regressed(self, measured: dict[str, float]) -> None:
        """Say how near the calls came to the ends of the teacher's paths."""
        if self.writes:
            say(
                f"{self.config.regress_steps} updates of regression on the teacher's paths: error "
                f"{measured['regression_loss']:.4f} an element"
            )

    def sampler(self, chain: Chain) -> Sampler:
        return Sampler(
            name="student",
            kind="student",
            network=self.teacher.network(self.networks.ema, self.config.dtype),
            chain=chain,
            log_scale=self.networks.ema_scale,
            shape=self.teacher.shape,
            label_count=self.teacher.label_count,
            digest="",  # it still changes
        )

    def evaluate(self, step: int) -> None:
        """Judge the averaged student by its distance to the reference at every budget; if their
        geometric mean is the least so far, so that every budget counts by ratios, export it, with a
        checkpoint that knows of it.
        """
        detector, reference = self.judge
        count, device = self.config.eval_count, self.networks.log_scale.device
        ruled = {"count": count, "detector": detector.stamp, "reference": self.config.reference}
        distances = {}
        for chain in self.networks.chains:
            seeds = range(EVAL_SEED, EVAL_SEED + count)
            batches = list(draw(self.sampler(chain), seeds, min(count, 256), device))
            file = self.out / "eval" / f"step-{step:06d}-{chain.nfe}.png"
            if has_picture(self.teacher.shape[0]):
                save_grid(torch.cat(batches)[:GRID_COUNT], file)
            moments, _ = moments_of(batches, detector)
            distance = distances[str(chain.nfe)] = frechet_distance(moments, reference.moments)
            row = {"step": step, "nfe": chain.nfe, "distance": distance}
            with writing(self.out):
                append(self.out / "evaluations.jsonl", row | ruled)
        mean = math.prod(max(0.0, d) for d in distances.values()) ** (1 / len(distances))
        found = {"step": step, "distance": mean, "distances": distances} | ruled
        if self.config.log_with:
            each = {f"distance_{nfe}": distance for nfe, distance in distances.items()}
            self.accelerator.log({"distance": mean} | each, step=step)
        best = self.state["best"]
        say(
            f"step {step}: distance {of_budgets(distances)}"
            + (f", mean {mean:.2f}" if len(distances) > 1 else "")
            + f" ({count} images)"
            + (f", best {best['distance']:.2f}" if best else "")
        )
        ruler = ("count", "detector", "reference")  # by another one a distance says something else
        if (
            best is None
            or found["distance"] < best["distance"]
            or any(found[key] != best.get(key) for key in ruler)
        ):
            self.state["best"] = found
            self.state["seconds"] = self.seconds()
            self.export()
            self.checkpoint()

    def save(self, step: int) -> None:
        """A checkpoint, and the export: of the last average where nothing judges it."""
        self.state["seconds"] = self.seconds()
        if self.writes:
            self.checkpoint()
            if self.state["best"] is None:
                self.export()
            else:
                write_info(self.out, self.info())
        self.accelerator.wait_for_everyone()

    def checkpoint(self) -> None:
        folder = self.out / "checkpoint"
        save_checkpoint(folder, self.state["round"], snapshot(self.networks), self.state)

    def export(self) -> None:
        info = self.info()
        chains = {chain.nfe: chain for chain in self.networks.chains}
        save_student(
            self.out,
            self.networks.ema,
            self.teacher.scheduler,
            chains,
            {nfe: self.networks.ema_scale.clone() for nfe in chains},  # safetensors shares none
            info,
            model_card(self.teacher, self.config, info, self.out),
        )

    def leave(self, signal_number: int, step: int) -> None:
        """Say how to go on; exit as the shell expects after a signal."""
        where = f"at step {step} of {self.config.steps}"
        done = regressed(self.config, self.state["round"])
        if done < self.config.regress_steps:
            where = f"after {done} of {self.config.regress_steps} updates of regression"
        if self.writes:
            say(
                f"stopped and saved {where}; to go on, type the same line again:\n"
                f"  {command_line()}"
            )
        if signal_number:
            sys.exit(128 + signal_number)

    def close(self, step: int) -> None:
        if self.config.log_with:
            self.accelerator.end_training()
        if self.writes:
            best = self.state["best"]
            measured = (
                f", best distance {best['distance']:.2f} at step {best['step']}" if best else ""
            )
            say(
                f"{self.out}: a student of {one_of(self.config.budgets)} calls, {step} steps, "
                f"{self.state['seconds'] / 60:.1f} minutes{measured}"
            )
