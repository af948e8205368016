"""`hsivi train`: distil a teacher into a student of K calls, or of several budgets of calls.

A run's folder is the student (student.py) and beside it what the training says and needs:
metrics.jsonl (what must repeat), timing.jsonl (what need not), evaluations.jsonl, eval/ (image
grids), checkpoint/ (all that resume needs). The same command again goes on where the last
checkpoint was.
"""

from __future__ import annotations

import contextlib
import importlib.util
import time
from collections.abc import Set
from dataclasses import asdict, replace
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import reduce

from ..config import OWN, PLANNED, TrainConfig
from ..errors import HsiviError, counted
from ..files.device import check_processes, enough_memory, launched, once, pick_dtype
from ..files.folder import holding
from ..files.progress import Bar, say
from ..files.run import Processes, Run, until_done
from ..files.whole import sweep
from ..method.distill import play_round
from ..method.losses import pick_objective
from ..method.networks import Networks, RealImages
from ..method.plan import plan_of
from ..method.steps import Shard
from ..metrics.judge import check_named, make_judge
from ..metrics.own import OwnImages, start_judge
from ..metrics.planned import planned, with_length
from ..metrics.real import real_images
from ..metrics.statistics import check_images
from ..models.clips import find_clip
from ..models.compiled import chosen_forward, quick
from ..models.description import is_student, read_info
from ..models.loading import load_teacher
from ..models.memory import advice, where_in
from ..models.networks import begin_from, networks_of
from ..models.spacings import solver_names
from ..models.starts import FINALISTS, find_chains, widened
from ..models.student import open_run
from ..models.teacher import Teacher
from ..report.card import of_length
from ..runs.training import Training, check_out


def run(config: TrainConfig, teacher_options: dict, out: Path, plans: Set[str]) -> None:
    """Train, or go on training, the student in the folder `out`.

    teacher_options  source, revision, variant, subfolder of `load_teacher`
    plans            settings that nobody chose: those of PLANNED are to be what fits into
                     config.minutes, and FOLLOWS what goes with the steps
    """
    begin = (time.monotonic(), time.process_time())
    if config.log_with and not importlib.util.find_spec(config.log_with):
        raise HsiviError(f"--log-with {config.log_with}: pip install {config.log_with} first")
    check_named(config, config.reference)
    if config.data:
        check_images(config.data)
    if config.init and not is_student(out):  # of a run that goes on it may be gone
        open_run(config.init)
    accelerator, device = launched(config.device, log_with=config.log_with, project_dir=out)
    config = replace(config, dtype=pick_dtype(config.dtype, device))
    torch.set_float32_matmul_precision("high")
    check_processes(accelerator.num_processes, config.batch_size)
    teacher = load_teacher(**teacher_options, device=device)
    config = replace(config, objective=pick_objective(config.objective, teacher.prediction))
    with accelerator.main_process_first():  # which may fetch a data set
        images = real_images(config, teacher)
    about = (config, teacher, images, out, accelerator, plans)
    with holding(out) if accelerator.is_main_process else contextlib.nullcontext():
        until_done(lambda clocks: distil(*about, clocks), begin)


def distil(
    config: TrainConfig,
    teacher: Teacher,
    images: RealImages | None,
    out: Path,
    accelerator: Accelerator,
    plans: Set[str],
    begin: tuple,
) -> None:
    """`run`, once devices, teacher and folder are there. begin: the two clocks at its start."""
    main = accelerator.is_main_process
    fits = plans & PLANNED
    if plans and is_student(out):  # what an earlier part has
        then = read_info(out)["config"]
        config = replace(config, **{name: then[name] for name in plans & then.keys()})
    earlier = check_out(out, config, teacher, images)
    if main:
        sweep(out)  # check_out has found it to be a run's
    begun = (out if earlier else None, once(accelerator))
    own, teacher = OwnImages(teacher), replace(teacher, clip=find_clip(config, teacher, *begun))
    bar = Bar(
        total=len(config.budgets) * (1 + len(solver_names()) + FINALISTS),
        unit="starts",
        disable=not main or earlier or config.start != "auto",
        leave=False,
    )

    def seen() -> None:
        bar.update()
        if fits and time.monotonic() - begin[0] > 60 * config.minutes:
            raise HsiviError(
                f"--minutes {config.minutes:g} are over before a start is found: give more, or "
                "name one by --start"
            )

    why = "name one by --start, and leave out --fit-steps"
    with enough_memory("in finding the start", why), bar:
        starts, chains = find_chains(
            config, teacher, *begun, start_judge(teacher, own.teacher), seen
        )
    with enough_memory("in seeing the reference", "--reference none judges by nothing"):
        judged = plan_of(config).last or config.reference != OWN  # the teacher's images take long
        judge = make_judge(config, own, out) if main and judged else None
    shard = Shard(
        accelerator.process_index, accelerator.num_processes, lambda t: reduce(t, reduction="mean")
    )
    forward = chosen_forward(config, teacher, plan_of(config).last, shard.world)

    def make(settings: TrainConfig) -> Networks:
        with enough_memory("for the networks", "their weights alone are too large for --device"):
            return networks_of(settings, teacher, chains, shard, forward, images)

    if fits and not earlier:
        with enough_memory("in a trial of a few rounds", advice(config, shard.world)):
            spent = time.monotonic() - begin[0]
            length = planned(config, plans, make, teacher, judge, forward, spent)
        config = with_length(config, plans, begun[1](lambda: length))
        if main:
            say(f"--minutes {config.minutes:g}: {of_length(config)} fit")
    chains = widened(config, teacher, chains)
    networks = make(config)
    if not earlier and main:
        for nfe, name in starts.items():
            say(f"--start auto at {counted(nfe, 'call')}: {name}")
    training = Training(out, config, teacher, networks, starts, judge, accelerator)
    run = Run(
        *(out, config, training, plan_of(config), earlier),
        Processes(main, lambda so: shard.any(so, networks.device), accelerator.wait_for_everyone),
        begin,
        best=None,
    )
    if config.init and not run.resumed:
        run.add_seconds(begin_from(networks, config.init, teacher))

    accelerator.wait_for_everyone()  # all have looked at the folder as it was
    training.open(run)
    if config.log_with:  # which writes into the folder, now that it says what it is
        accelerator.init_trackers("hsivi", config=asdict(config))
    if judge and not run.resumed:
        training.evaluate(run)
    with quick(networks, config, forward, main):
        for round_ in run.rounds():
            with enough_memory(where_in(config, round_), advice(config, shard.world)):
                measured = play_round(networks, run.settings, round_)
            run.record(measured)
            training.follow(run, measured)
    if not run.plan.last and not run.resumed:
        run.save()
    training.close(run)
