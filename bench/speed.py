"""What a training step, sampling and scoring cost here, beside what their arithmetic costs.

    python bench/speed.py [--device cuda] [--channels 128,256,256,256] [--batch-size 128,32]
        [--embedded] [--nfe 4] [--dtype bfloat16] [--minutes 3] [--against DIR] [--json FILE]

Measures one student step of the default recipe (a roll-out, --fake-updates updates of the fake
score, one of the student) as `hsivi train` makes it, with --compile on compiled as well, and that
of another checkout of this project, DIR, in a process of its own: in turns, so that a busy machine
is busy for all. A profile tells a GPU's kernels and the time between them. Further batch sizes, and
with --embedded the embedded teacher at 32, are measured as trained and as the other checkout trains
them. Without --channels the network is the embedded teacher; with it an untrained one of --size.
Sampling and scoring are set against the bare networks. In turns again: a step made step by step;
the paper's way, with a fresh roll-out for every update; the network calls alone, step by step (the
eager floor); and the arithmetic, counted operations at the rate of a measured matrix product. Each
row is printed as it comes; --json keeps all, null where nothing was measured.
--memory 4,32 measures in place of all this what trainings need whose batches pass in parts of 4 and
of 32 samples, activations kept and made again.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import math
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch
from diffusers.models.resnet import ResnetBlock2D
from profiled import inside
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from hsivi_cli.config import TrainConfig
from hsivi_cli.files.pngs import saving
from hsivi_cli.method import distill, draws
from hsivi_cli.metrics.detectors import load_detector
from hsivi_cli.metrics.frechet import frechet_distance
from hsivi_cli.metrics.statistics import moments_of
from hsivi_cli.models.compiled import compiled, quick
from hsivi_cli.models.compiled import forward as plain_forward
from hsivi_cli.models.draw import LARGEST_BATCH, draw, student_sampler
from hsivi_cli.models.loading import load_teacher
from hsivi_cli.models.networks import averaged_sampler, networks_of
from hsivi_cli.models.starts import make_chains
from hsivi_cli.models.student import load_student
from hsivi_cli.models.teacher import recompute

FULL = 50_000  # images of a distance that may be called FID
# A step of another checkout of this project, in either of its layouts, each time a line comes in;
# first, and each time the teacher or settings are others, they come in a line.
CHILD = """
import json, sys, time, torch
from dataclasses import fields
try:
    from hsivi_cli.config import TrainConfig
    from hsivi_cli.method.distill import play_round
    from hsivi_cli.models.loading import load_teacher
    from hsivi_cli.models.starts import make_chains
    try:
        from hsivi_cli.models.networks import networks_of
    except ImportError:
        from hsivi_cli.models.starts import networks_of
    rest = ()
except ModuleNotFoundError:
    from hsivi_cli.config import TrainConfig
    from hsivi_cli.distill import Share, play_round
    from hsivi_cli.teacher import load_teacher
    from hsivi_cli.start import make_chains
    from hsivi_cli.train import make_players as networks_of
    rest = (Share(),)
device, threads = json.loads(sys.argv[1])
torch.set_num_threads(threads)
torch.set_float32_matmul_precision("high")
known = {f.name for f in fields(TrainConfig)}
for line in sys.stdin:
    if told := json.loads(line):
        source, given = told
        teacher = load_teacher(source, torch.device(device))
        config = TrainConfig(**{k: v for k, v in given.items() if k in known})
        networks = networks_of(config, teacher, make_chains(config, teacher, {}))
        round_ = 0
        continue
    begin = time.perf_counter()
    play_round(networks, config, round_, *rest)
    round_ += 1
    if device != "cpu":
        torch.cuda.synchronize()
    print(json.dumps(time.perf_counter() - begin), flush=True)
"""


def surroundings(folder: str) -> dict[str, str]:
    """The environment in which a Python imports the package of this checkout, and all others from
    where this one does.
    """
    paths = [str(Path(folder).resolve()), *filter(None, [os.environ.get("PYTHONPATH")])]
    return os.environ | {"PYTHONPATH": os.pathsep.join(paths)}


class Other:
    """Another checkout's step, as a function that takes one and returns seconds."""

    def __init__(self, folder: str, device: str) -> None:
        if not (Path(folder) / "hsivi_cli").is_dir():
            raise SystemExit(f"--against {folder}: no checkout of this project lies there")
        told = json.dumps([device, torch.get_num_threads()])
        self.process = subprocess.Popen(
            [sys.executable, "-c", CHILD, told], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            text=True, env=surroundings(folder), cwd="/",
        )  # fmt: skip

    def take(self, source: str | None, config: TrainConfig) -> None:
        """Go on with steps of this teacher and these settings."""
        given = {k: getattr(config, k) for k in ("nfe", "batch_size", "dtype", "fake_updates",
                                                 "fake_warmup", "accumulate")}  # fmt: skip
        self.tell([source, given])

    def __call__(self) -> float:
        self.tell(None)
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit("the other checkout's process has ended: its reason stands above")
        return json.loads(line)

    def close(self) -> None:
        with self.process:  # which closes its pipes
            self.process.kill()

    def tell(self, words: list | None) -> None:
        with contextlib.suppress(BrokenPipeError):  # the reading says so
            print(json.dumps(words), file=self.process.stdin, flush=True)


class Step:
    """This checkout's step of a kind, as a function that makes one and returns seconds."""

    def __init__(self, networks, config: TrainConfig, play=distill.play_round) -> None:
        self.networks, self.config, self.play, self.round = networks, config, play, 0

    def __call__(self) -> float:
        return clocked(self.networks.device, self.once)

    def once(self) -> None:
        self.play(self.networks, self.config, self.round)
        self.round += 1


def clocked(device: torch.device, work) -> float:
    """Seconds that a piece of work takes."""
    wait(device)
    begin = time.perf_counter()
    work()
    wait(device)
    return time.perf_counter() - begin


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def paper_step(networks, config: TrainConfig, round_: int) -> None:
    """A step with a roll-out of a batch of chains before every update."""
    layers = list(range(1, networks.chain(round_).nfe + 1))
    fresh = replace(config, fake_updates=2 * len(layers) - 1)  # a pool of one batch
    for i in range(config.fake_updates + 1):
        start = draws.draw_start(networks, fresh, round_ * 100 + i, layers)
        start = moved(start, networks.device)
        pool = distill.roll_out(networks, fresh, round_, layers, start)
        kind = "student" if i == config.fake_updates else "fake score"
        batch = draws.draw_batch(networks, fresh, round_, kind, 0, layers)
        batch = draws.Batch(*moved((batch.sample, batch.layer, batch.tau, batch.noise),
                                     networks.device))  # fmt: skip
        if kind == "student":
            *_, norm = distill.student_update(networks, config, pool, batch)
        else:
            *_, norm = distill.fake_score_update(networks, config, pool, batch)
        norm.item()


def moved(parts, device: torch.device):
    if isinstance(parts, torch.Tensor):
        return parts.to(device)
    return None if parts is None else type(parts)(moved(part, device) for part in parts)


def calls_alone(networks, config: TrainConfig, round_: int) -> None:
    """The network calls of a step, and nothing else."""
    size, nfe = config.batch_size, networks.chain(round_).nfe
    pool = draws.pool_size(config, nfe)
    x = torch.randn(max(size, pool), *networks.shape, device=networks.device)
    times, level = x.new_full((len(x),), 500.0), x.new_full((len(x),), 0.5)

    def call(network, count):
        return network(x[:count], times[:count], None, level[:count])

    with torch.no_grad():
        for _ in range(nfe):
            call(networks.student_eps, pool)
        call(networks.fake_eps, size)
        call(networks.teacher_eps, size)
    networks.train_fake_score(True)
    for network in [networks.fake_eps] * config.fake_updates + [networks.student_eps]:
        call(network, size).square().mean().backward()
    for low, module in (
        (networks.fake_low, networks.fake_score),
        (networks.student_low, networks.student),
    ):
        low.collect()
        module.zero_grad()


def product_rate(device: torch.device, dtype: str) -> float:
    """Operations a second of a large matrix product in a dtype; in float32 on a GPU as TF32."""
    size = 8192 if device.type == "cuda" else 1024
    kind = getattr(torch, dtype) if device.type == "cuda" else torch.float32
    a, b = (torch.randn(size, size, device=device, dtype=kind) for _ in range(2))
    for _ in range(3):
        a @ b
    return 2 * size**3 / min(clocked(device, lambda: a @ b) for _ in range(10))


def ready(report: Report, opened, name: str, networks, config, forward=plain_forward) -> Step:
    """A step that is made ready as a training is, compiled or captured or both, and rows of what
    that took. It stays so until `opened`, an ExitStack, is closed.
    """
    begin = time.perf_counter()
    opened.enter_context(quick(networks, config, forward))
    seconds, step = time.perf_counter() - begin, Step(networks, config)
    report.row(f"made ready, {name.replace('_', ' ')}", f"{seconds:9.1f} s",
               **{f"{name}_seconds": round(seconds, 1)})  # fmt: skip
    first = [step() for _ in range(3)]  # the second is captured
    report.row("its first steps", " ".join(f"{each:9.2f} s" for each in first))
    return step


def further(report: Report, words: str, networks, config, other: dict, seconds: float) -> None:
    """Another network or batch size, as trained and as the other checkout trains it."""
    found = {"case": words, "ours_ms": None, "against_ms": None}
    report.found["further"].append(found)
    with quick(networks, config, plain_forward):
        step = Step(networks, config)
        for _ in range(2):  # the second one is captured
            step()
        in_turns(report, {"ours": step} | other, seconds, words, found)


def judged(weights: str | None, sampler, device: torch.device):
    """What draws and what sees its images: Inception where its weights are given, else the embedded
    detector, which sees images like the embedded student's alone.
    """
    if weights:
        return sampler, load_detector("inception", Path(weights), device)
    if sampler.shape != (1, 28, 28):
        sampler = student_sampler(load_student("embedded:students/4", device))
    return sampler, load_detector("fashion-mnist", None, device)


def scoring(report: Report, sampler, detector, device, size: int, count: int) -> None:
    """Images a second through a detector; and drawn, scored and compared as `hsivi fid RUN
    STATISTICS` does, the part of the time inside the networks.
    """
    images = torch.randint(256, (size, *sampler.shape[1:], sampler.shape[0]), dtype=torch.uint8)
    detector.features(images)
    spent = min(clocked(device, lambda: detector.features(images)) for _ in range(4))
    report.row(f"scoring, {detector.stamp.split()[0]}", f"{size / spent:9.0f} images/s",
               scoring__images_per_second=round(size / spent, 1))  # fmt: skip

    list(draw(sampler, range(size), size, device))
    network, features = Timed(sampler.network), Timed(detector.features)
    begin = time.perf_counter()
    batches = draw(replace(sampler, network=network), range(count), size, device)
    moments, _ = moments_of(batches, replace(detector, features=features))
    each, begin = (time.perf_counter() - begin) / count, time.perf_counter()
    frechet_distance(moments, moments)
    once = time.perf_counter() - begin
    both = (network.seconds + features.seconds) / count
    share = round(FULL * both / (FULL * each + once), 4)
    told = f"{1 / each:9.0f} images/s, then {once:.1f} s; of {FULL} images {share:.1%} in networks"
    report.row(f"{count} drawn, scored and compared", told, scoring__share_in_networks=share,
               scoring__seconds_of_distance=round(once, 2))  # fmt: skip


class Memory:
    """The most memory that is taken from now on: on a GPU beside what is there, else all in all."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.before = device, 0
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            self.before = torch.cuda.memory_allocated(device)

    def peak(self) -> int:
        """Bytes."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) - self.before
        return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


class Report:
    """The rows, printed as they come, and what --json keeps."""

    def __init__(self, path: str | None) -> None:
        self.path = path
        self.found = {
            "step": dict.fromkeys(
                ("ours_ms", "against_ms", "paper_ms", "eager_floor_ms", "limit_ms",
                 "step_by_step_ms", "captured_ms", "compiled_ms", "paper_float32_ms")
            ),
            "waits_per_step": None, "copies_per_step": None, "graphs": None,
            "compiled_seconds": None, "captured_seconds": None,
            "sampling": dict.fromkeys(("images_per_second", "share_in_network", "share_with_pngs")),
            "scoring": dict.fromkeys(
                ("images_per_second", "share_in_networks", "seconds_of_distance")
            ),
            "further": [], "memory": [], "kernels": {}, "peak_memory": None,
            "device": None, "torch": torch.__version__,
        }  # fmt: skip

    def row(self, words: str, value: str, **found) -> None:
        print(f"{words:<58} {value}", flush=True)
        for key, number in found.items():
            part, _, name = key.partition("__")
            if name:
                self.found[part][name] = number
            else:
                self.found[part] = number
        if self.path:
            Path(self.path).write_text(json.dumps(self.found, indent=1) + "\n")

    def same(self, name: str, other: str) -> None:
        """One kind of step is the other one here."""
        self.found["step"][f"{name}_ms"] = self.found["step"][f"{other}_ms"]


def computed_memory(unet, config: TrainConfig, again: bool) -> tuple[int, int, int]:
    """Bytes in float32 of weights and what goes with them (docs/scaling.md), of a sample's
    activations that a backward pass finds, and of the roll-outs' layers, by tensors without
    numbers.
    """
    kept = {}

    def keep(tensor):
        if not isinstance(tensor, torch.nn.Parameter):
            storage = tensor.untyped_storage()
            kept[storage._cdata] = storage.nbytes(), storage  # held, or its place is taken anew
        return tensor

    def keep_given(block, given) -> None:
        for tensor in given:
            keep(tensor)

    with FakeTensorMode():
        own = type(unet).from_config(unet.config)
        if again:
            recompute(own)
            for block in own.modules():
                if isinstance(block, ResnetBlock2D):
                    block.register_forward_pre_hook(
                        lambda _, given: [keep(x) for x in given] and None
                    )
        shape = own.config.in_channels, own.config.sample_size, own.config.sample_size
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            own(torch.empty(1, *shape), torch.zeros(1))
    weights = 40 * sum(p.numel() for p in unet.parameters())
    layers = config.layer_count
    pool = 3 * layers * draws.pool_size(config, layers) * 4 * math.prod(shape)
    return weights, sum(size for size, _ in kept.values()), pool


def memory_of(report: Report, args, source: str | None, config: TrainConfig) -> None:
    """What trainings in parts of so many samples need, activations kept and made again: a step
    each, step by step.
    """
    device = torch.device(args.device)
    for size in map(int, args.memory.split(",")):
        for again in (False, True):
            chosen = replace(
                config,
                accumulate=max(1, config.batch_size // size),
                checkpoint_activations=again,
            )
            words = f"in parts of {size}{', activations made again' * again}"
            weights, each, pool = computed_memory(load_teacher(source).unet, chosen, again)
            all_of_it = weights + size * each + pool
            told = (weights, each, pool, all_of_it)
            report.row(
                f"computed {words}",
                "{:9.2f} weights + {:.3f} a sample + {:.2f} layers = {:.2f} GiB".format(
                    *(part / 2**30 for part in told)
                ),
            )
            memory = Memory(device)
            try:
                teacher = load_teacher(source, device)
                networks = networks_of(chosen, teacher, make_chains(chosen, teacher, {}))
                seconds = Step(networks, chosen)()
            except torch.OutOfMemoryError:
                report.row(f"memory {words}", "more than there is")
                continue
            finally:
                teacher = networks = None
                gc.collect()
            peak = memory.peak()
            report.found["memory"].append({"case": words, "bytes": peak})
            value = f"{peak / 2**30:9.2f} GiB, a first step {seconds:.1f} s"
            report.row(f"memory {words}", value)


def in_turns(
    report: Report, steps: dict, seconds: float, words: str = "step", into: dict | None = None
) -> None:
    """Make steps of all kinds in turns for so long, and at least two; a row for each, their
    medians.
    """
    spent = {name: [] for name in steps}
    into = report.found["step"] if into is None else into
    for step in steps.values():  # the first is of another kind, or of a process that begins
        step()
    begin = time.monotonic()
    while time.monotonic() - begin < seconds or min(map(len, spent.values())) < 2:
        for name, step in steps.items():
            spent[name].append(1000 * step())
    for name, each in spent.items():
        into[f"{name}_ms"] = round(statistics.median(each), 2)
        value = f"{statistics.median(each):9.1f} ms ({len(each)} steps)"
        report.row(f"{words}, {name.replace('_', ' ')}", value)


def untrained(args) -> str:
    """A teacher of --channels in a temporary folder."""
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

    channels = [int(word) for word in args.channels.split(",")]
    at = min(args.attention, len(channels) - 1)

    def kinds(word: str) -> list[str]:
        return [f"{'Attn' * (i == at)}{word}Block2D" for i in range(len(channels))]

    torch.manual_seed(0)
    unet = UNet2DModel(
        sample_size=args.size, in_channels=3, out_channels=3, block_out_channels=tuple(channels),
        down_block_types=tuple(kinds("Down")), up_block_types=tuple(reversed(kinds("Up"))),
        layers_per_block=args.layers, attention_head_dim=None,
        norm_num_groups=min(32, channels[0] // 2),
    )  # fmt: skip
    folder = tempfile.mkdtemp()
    DDPMPipeline(unet, DDPMScheduler(beta_schedule="linear")).save_pretrained(folder)
    return folder


class Timed:
    """A network that adds up the seconds spent in it."""

    def __init__(self, network) -> None:
        self.network, self.seconds = network, 0.0

    def __call__(self, *words):
        begin = time.perf_counter()
        out = self.network(*words)
        wait(out.device)
        self.seconds += time.perf_counter() - begin
        return out


def sampling(report: Report, sampler, device: torch.device, size: int, count: int) -> None:
    """Images a second, and the part of the time inside the network, without and with PNGs."""
    list(draw(sampler, range(size), size, device))
    for words, key in (("sampling", "share_in_network"), ("sampling to PNGs", "share_with_pngs")):
        timed = Timed(sampler.network)
        with tempfile.TemporaryDirectory() as folder:
            begin, done = time.perf_counter(), 0
            with saving(Path(folder)) as save:
                for images in draw(replace(sampler, network=timed), range(count), size, device):
                    if key == "share_with_pngs":
                        save(images, range(done, done + len(images)))
                    done += len(images)
            spent = time.perf_counter() - begin
        share = round(timed.seconds / spent, 4)
        value = f"{count / spent:9.0f} images/s, {share:.1%} inside the network"
        found = {f"sampling__{key}": share, "sampling__images_per_second": round(count / spent, 1)}
        report.row(words, value, **found)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--teacher", help="a diffusers directory; default: the embedded one")
    parser.add_argument("--channels", help="of an untrained network's levels")
    parser.add_argument("--layers", type=int, default=2, help="its residual blocks of a level")
    parser.add_argument("--attention", type=int, default=1, help="its level that attends, from 0")
    parser.add_argument("--size", type=int, default=32, help="its images' side")
    parser.add_argument("--batch-size", default="32", help="or several, separated by commas")
    parser.add_argument("--embedded", action="store_true",
                        help="the embedded teacher too, at batch 32")  # fmt: skip
    parser.add_argument("--nfe", type=int, default=4)
    parser.add_argument("--fake-updates", type=int, default=5)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--minutes", type=float, default=3.0, help="of measuring, not compiling")
    parser.add_argument("--against", help="another checkout of this project")
    parser.add_argument("--compile", default="auto", choices=("auto", "off", "on"),
                        help="auto: captured on a GPU; on: compiled too")  # fmt: skip
    parser.add_argument("--count", type=int, default=2000, help="images of the sampling rows")
    parser.add_argument("--memory", help="parts of a batch, as numbers of samples")
    parser.add_argument("--detector-weights", help="of the Inception network: score by it")
    parser.add_argument("--json")
    args = parser.parse_args()
    device = torch.device(args.device)

    torch.set_float32_matmul_precision("high")
    source = args.teacher and str(Path(args.teacher).resolve())
    source = untrained(args) if args.channels else source
    teacher = load_teacher(source, device)
    size, *sizes = map(int, args.batch_size.split(","))
    config = TrainConfig(
        nfe=str(args.nfe), batch_size=size, dtype=args.dtype, fake_warmup=0,
        fake_updates=args.fake_updates, compile="off",
    )  # fmt: skip
    trained = {"compile": "off" if args.compile == "off" else "auto"}
    report = Report(args.json)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    report.row("device", name, device=name)
    millions = sum(p.numel() for p in teacher.unet.parameters()) / 1e6
    report.row("network", f"{millions:.2f} M parameters, {args.dtype}, batch {size}")

    if args.memory:
        del teacher
        memory_of(report, args, source, config)
        return

    def networks(forward=plain_forward, teacher=teacher, **changes):
        chosen = replace(config, **changes)
        return networks_of(chosen, teacher, make_chains(chosen, teacher, {}), None, forward), chosen

    def other(source: str | None, config: TrainConfig) -> dict:
        if against:
            against.take(source, config)
        return {"against": against} if against else {}

    opened, steps, plain = contextlib.ExitStack(), {}, networks()[0]
    if args.compile == "on":  # before anything is measured, for it may take minutes
        chosen = compiled()
        own = networks(chosen, compile="on")
        step = ready(report, opened, "compiled", *own, chosen)
        steps = {} if chosen.failed else {"compiled": step}
        graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
        report.row("graphs compiled", f"{graphs:9}", graphs=graphs)
    rate, memory = product_rate(device, args.dtype), Memory(device)
    against = Other(args.against, args.device) if args.against else None
    begin = time.monotonic()

    def left(part: float) -> float:
        return part * max(0.0, 60 * args.minutes - (time.monotonic() - begin))

    captures = device.type == "cuda" and args.compile != "off"
    ours = "captured" if captures else "step_by_step"
    own = networks(**trained) if captures else (plain, config)
    steps[ours] = ready(report, opened, ours, *own)
    peak = memory.peak()
    report.row("peak memory of a training", f"{peak / 2**20:9.0f} MiB", peak_memory=peak)
    in_turns(report, steps | other(source, config), left(0.3))
    report.same("ours", ours)
    for name, step in steps.items():
        inside(report, name, step)
    opened.close()
    for each in sizes:
        own = networks(batch_size=each, **trained)
        further(report, f"batch {each}", *own, other(source, own[1]), left(0.2))
    if args.embedded:
        own = networks(teacher=load_teacher(None, device), batch_size=32, **trained)
        further(report, "embedded teacher, batch 32", *own, other(None, own[1]), left(0.2))
    sampler = averaged_sampler(plain, plain.chains[0], teacher, args.dtype)
    sampler = replace(sampler, network=teacher.network(dtype=args.dtype, clip=teacher.clip))
    at_once = min(LARGEST_BATCH, args.count)
    sampling(report, sampler, device, at_once, args.count)
    scoring(report, *judged(args.detector_weights, sampler, device), device, at_once, args.count)

    with FlopCounterMode(display=False) as counter:
        calls_alone(plain, config, 0)
    flops = counter.get_total_flops()
    limit = 1000 * flops / rate
    told = f"{limit:9.1f} ms ({flops / 1e12:.3f} Tflop, {rate / 1e12:.2f} Tflop/s)"
    report.row("arithmetic of a step", told, step__limit_ms=round(limit, 2))
    floors = {
        "step_by_step": Step(plain, config),
        "paper": Step(plain, config, paper_step),
        "eager_floor": Step(plain, config, calls_alone),
    }
    if args.dtype != "float32":
        floors["paper_float32"] = Step(*networks(dtype="float32"), paper_step)
    with quick(plain, config, plain_forward):
        in_turns(report, floors, left(0.5))
    if against:
        against.close()


if __name__ == "__main__":
    main()
