"""A student in training and its run's folder: what is kept of it, judged and said."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from accelerate import Accelerator
from torch import Tensor

from .. import __version__
from ..config import OWN, TrainConfig
from ..errors import HsiviError
from ..files.checkpoint import checkpoints, slow
from ..files.folder import check_resumable
from ..files.logs import append, trim
from ..files.progress import say
from ..files.run import Run, slowed
from ..files.whole import is_fresh
from ..method.networks import Networks, RealImages
from ..method.regress import regress_rounds, regressed
from ..metrics.evaluation import EVALUATIONS, better, evaluate, has_collapsed
from ..metrics.judge import OWN_FILE, Judge
from ..metrics.real import check_same
from ..metrics.statistics import save_statistics
from ..models.description import check_best, is_student, read_info, write_info
from ..models.memory import calmer, where_in
from ..models.networks import broken_budget, load_training, training_tensors
from ..models.student import is_whole, save_student
from ..models.teacher import Teacher, difference
from ..report.card import how_to_go_on, model_card, of_end, of_evaluation

LOGS = ("metrics.jsonl", "timing.jsonl")


def check_out(out: Path, config: TrainConfig, teacher: Teacher, images: RealImages | None) -> bool:
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
    check_same(out, config, info, images)
    return True


@dataclass
class Training:
    """A student in training and its run's folder (files.run.Trained)."""

    out: Path
    config: TrainConfig
    teacher: Teacher
    networks: Networks
    starts: dict[int, str]
    judge: Judge | None
    accelerator: Accelerator
    divergence: float | None = None  # its running mean
    last: float = 0.0  # seconds when the last round was over

    def tensors(self) -> dict[str, Tensor]:
        return training_tensors(self.networks)

    def load(self, tensors: dict[str, Tensor], state: dict) -> None:
        check_best(state["best"])
        load_training(self.networks, tensors)
        slow(self.networks.fake_optimizer, slowed(state["rollbacks"]))

    def open(self, run: Run) -> None:
        """Write the run's description, mend the export where it is not the checkpoint's, drop log
        lines that the checkpoint does not know.
        """
        if not run.processes.main:
            return
        told = run.resumed and read_info(self.out).get("best")
        if told and told["step"] > run.step:  # its checkpoint was damaged: it is exported still
            run.state["best"] = told
        if run.state["best"] and not is_whole(self.out):
            run.state["best"] = None
            say(
                f"the kept student's files in {self.out} are gone: the last average takes its place"
            )
        if run.state["round"]:
            self.export(run)
        else:
            write_info(self.out, self.info(run))
        for name in LOGS:  # none has a line of step 0
            trim(self.out / name, run.step)
        trim(self.out / "evaluations.jsonl", run.state["round"] if run.resumed else -1, "round")
        if self.judge and self.config.reference == OWN:
            save_statistics(self.out / OWN_FILE, self.judge.reference)
        self.last = run.state["seconds"]

    def info(self, run: Run) -> dict:
        """hsivi.json, but for its format."""
        return {
            "hsivi": __version__,
            "teacher": self.teacher.identity,
            "nfe": self.config.budgets,
            "config": asdict(self.config),
            "starts": self.starts,
            "clip": self.teacher.clip and asdict(self.teacher.clip),
            "data": self.networks.discriminator and self.networks.discriminator.images.digest,
            "step": run.step,
            "regressed": regressed(self.config, run.state["round"]),
            "seconds": round(run.state["seconds"], 1),
            "best": run.state["best"],
        }

    def export(self, run: Run) -> None:
        """The student of now where it is the best or nothing judges it, else the description."""
        best, info = run.state["best"], self.info(run)
        now = {"step": run.step, **run.state}
        if best and any(best.get(k, now[k]) != now[k] for k in ("step", "round", "rollbacks")):
            write_info(self.out, info)
            return
        chains = {chain.nfe: chain for chain in self.networks.chains}
        save_student(
            self.out,
            self.networks.ema,
            self.teacher.clipping_scheduler(),
            chains,
            {nfe: self.networks.ema_scale.clone() for nfe in chains},  # safetensors shares none
            info,
            model_card(self.teacher, self.config, info, self.out),
        )

    def words(self, measured: dict[str, float], run: Run) -> str:
        if "regression_loss" in measured:
            return f"regressing, error {measured['regression_loss']:.4f}"
        if not run.step:
            return "warming the fake score up"
        bound = measured["divergence"]
        before = bound if self.divergence is None else self.divergence
        self.divergence = 0.95 * before + 0.05 * bound
        return f"step {run.step} of {self.config.steps}, divergence {self.divergence:.3g}"

    def fault(self) -> str | None:
        return broken_budget(self.networks, self.teacher, self.config.dtype)

    def not_finite(self, what: str, round_: int, kept: str) -> HsiviError:
        config = self.config
        if round_ < 0:
            return HsiviError(f"{what} before any training: the teacher or its chain is at fault")
        where, change = where_in(config, round_), calmer(config, round_)
        return HsiviError(f"{what} {where}; {kept}. Begin in another --out with {change}")

    def follow(self, run: Run, measured: dict[str, float]) -> None:
        """What a round that was recorded leads to: timing, trackers, an evaluation."""
        if not run.processes.main:
            return
        now, step = run.state["seconds"], run.step
        if step:
            samples = self.config.batch_size * (self.config.fake_updates + 1)
            rate = samples / max(1e-9, now - self.last)
            row = {"step": step, "seconds": round(now, 3), "images_per_second": round(rate, 1)}
            append(self.out / "timing.jsonl", row)
            if self.config.log_with:
                self.accelerator.log(measured | {"images_per_second": rate}, step=step)
        self.last = now
        start = run.state["round"] == regress_rounds(self.config)
        if start:
            say(
                f"{self.config.regress_steps} updates of regression on the teacher's paths: error "
                f"{measured['regression_loss']:.4f} an element"
            )
        last = run.state["round"] == run.plan.last
        if self.judge and (start or last or (step and step % self.config.eval_every == 0)):
            self.evaluate(run)

    def evaluate(self, run: Run) -> None:
        """Judge the averaged student, and keep it if it is better than the one kept so far."""
        at = {"step": run.step, "round": run.state["round"]}
        found = evaluate(self.networks, self.teacher, self.judge, self.config, at, self.out)
        best = run.state["best"]
        if self.config.log_with:
            each = {f"distance_{nfe}": distance for nfe, distance in found["distances"].items()}
            self.accelerator.log({"distance": found["distance"]} | each, step=run.step)
        kept = better(found, best)
        say(of_evaluation(found, None if kept else best))
        if kept:
            back = run.state["rollbacks"]  # a step may come again, at other rates
            run.state["best"] = kept | {"rollbacks": back}
            run.keep()
        elif has_collapsed(self.out / "evaluations.jsonl", best):
            say(
                f"warning: the distance has been above twice the kept one {EVALUATIONS} times: the "
                f"student may have collapsed; {self.out} keeps that of step {best['step']}"
            )

    def close(self, run: Run) -> None:
        """The run's last words."""
        config = self.config
        if run.stopped:
            where = f"at step {run.step} of {config.steps}"
            done = regressed(config, run.state["round"])
            if done < config.regress_steps:
                where = f"after {done} of {config.regress_steps} updates of regression"
            run.leave(where)
            return
        if config.log_with:
            self.accelerator.end_training()
        if run.processes.main:
            if self.judge and run.resumed and run.state["best"] is None:
                say(f"the student in {self.out} has not been judged: it is now")
                self.evaluate(run)
            say(of_end(self.out, config, run.state["seconds"], run.state["best"]))
            say(how_to_go_on(self.out, self.teacher, config))
