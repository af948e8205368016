"""Train a UNet2DModel; by default the embedded teacher: eps-prediction on linear betas,
unconditional, on Fashion-MNIST, 28 x 28.

    python weights/train_teacher.py --data-root DIR --out runs/teacher

DIR holds FashionMNIST/raw as torchvision lays it out. `bench/cifar10.py` trains larger ones,
`bench/teachers.py` other kinds. The same command again resumes. `--minutes` in place of `--steps`
plans as many steps as fit, once their speed is known; a run that resumes keeps to its plan.
On a GPU images and noise lie there, steps are captured as a CUDA graph, in bfloat16, and nothing
is read between saves.
--out receives `state.safetensors` (weights, averaged weights, Adam's moments, all at one step) and,
at every save, the averaged weights as a diffusers DDPMPipeline. float16 on disk: half the size, and
2^-11 is far below Adam's own jitter.
"""

import argparse
import copy
import itertools
import json
import os
import time
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from hsivi_cli.files.capture import Parcel, performer
from hsivi_cli.files.images import read_labels
from hsivi_cli.method.steps import Shard, cosine, ema_update, make_optimizer, set_rate, update
from hsivi_cli.metrics.statistics import image_batches
from hsivi_cli.models.compiled import compiled, forward

EMA_DECAY = 0.9995
WARMUP = 300  # steps of linear rate warm-up
STEPS = 5500
SAVE_SECONDS = 60
TRIAL = 0.1  # of the minutes, after which the steps are planned
LOOK_EVERY = 10  # steps, until then
RESERVE = 0.03  # of what is left then, for saving
PREDICTIONS = ("epsilon", "sample", "v_prediction")
BETAS = ("linear", "scaled_linear", "squaredcos_cap_v2")


def build_unet(
    size: int,
    in_channels: int,
    channels: list[int],
    layers: int,
    attention: int,
    learned_variance: bool = False,
    classes: int | None = None,
) -> UNet2DModel:
    """A UNet2DModel of size x size images with one level of attention, counted from 0 at the
    finest; a learned variance comes out as as many channels again.
    """

    def kinds(word: str) -> list[str]:
        return [f"{'Attn' * (i == attention)}{word}Block2D" for i in range(len(channels))]

    return UNet2DModel(
        sample_size=size,
        in_channels=in_channels,
        out_channels=in_channels * (2 if learned_variance else 1),
        num_class_embeds=classes,
        block_out_channels=tuple(channels),
        down_block_types=tuple(kinds("Down")),
        up_block_types=tuple(reversed(kinds("Up"))),
        layers_per_block=layers,
        attention_head_dim=8,
        norm_num_groups=8,  # as many groups as channels would cancel the time embedding
    )


def target_of(x0: Tensor, noise: Tensor, time: Tensor, scheduler: DDPMScheduler) -> Tensor:
    """What the network is to predict at each image's time, all [B, C, H, W]."""
    match scheduler.config.prediction_type:
        case "epsilon":
            return noise
        case "sample":
            return x0
        case "v_prediction":
            return scheduler.get_velocity(x0, noise, time)


def variance_loss(
    raw: Tensor, eps: Tensor, noise: Tensor, time: Tensor, scheduler: DDPMScheduler
) -> Tensor:
    """KL(q(x_{t-1} | x_t, x0), p(x_{t-1} | x_t)) in nats, averaged over elements.

    log var p = share log beta + (1 - share) log var q, with share = (1 + raw) / 2: diffusers'
    variance_type "learned_range". Over 1000 times it is L_vlb / 1000, the hybrid loss's share, but
    for L_vlb's last term [Nichol & Dhariwal 2021].

    raw, eps, noise  [B, C, H, W]  the output's two halves, and the noise that eps should be
    time             [B]           those of time 0 count as 0: samplers add no noise there
    """
    later = time.clamp(min=1)
    table, betas = (t.to(time.device) for t in (scheduler.alphas_cumprod, scheduler.betas))
    beta, alpha_bar, before = (
        values[:, None, None, None] for values in (betas[later], table[later], table[later - 1])
    )
    log_q = ((1 - before) / (1 - alpha_bar) * beta).log()
    log_p = log_q + (1 + raw) / 2 * (beta.log() - log_q)
    gap = eps - noise
    means = gap.square() * beta.square() / ((1 - beta) * (1 - alpha_bar))  # squared difference
    kl = (log_p - log_q - 1 + (log_q - log_p).exp() + means * (-log_p).exp()) / 2
    return (kl * (time > 0)[:, None, None, None]).sum() / noise.numel()


@dataclass(frozen=True)
class Plan:
    """The steps of a training, and from which of them on the rate falls."""

    begin: int
    steps: int

    def rate(self, step: int) -> float:
        """The part of its rate that a step takes."""
        fall = cosine(step - self.begin, self.steps - self.begin) if step > self.begin else 1.0
        return min(rise(step), fall)


def rise(step: int) -> float:
    return min(1.0, (step + 1) / WARMUP)


@lru_cache(maxsize=1)
def order(count: int, epoch: int, device: torch.device) -> Tensor:
    """The order of the images in an epoch."""
    rng = torch.Generator(device).manual_seed(1_000_000 + epoch)
    return torch.randperm(count, generator=rng, device=device)


def stratified_times(uniform: Tensor, count: int) -> Tensor:
    """Times [B] in 0..count-1, one from each of B strata, of numbers [B] in 0..1."""
    share = (torch.arange(len(uniform), device=uniform.device) + uniform) / len(uniform)
    return (share * count).long().clamp(max=count - 1)  # in float32 the last share may be 1


def draw_batch(
    images: Tensor, labels: Tensor | None, step: int, size: int, flip: bool, time_count: int
) -> list[Tensor]:
    """A step's x0 and noise [B, C, H, W], times [B] and labels [B], where there are labels, on the
    images' device. A function of the step: a resumed run sees what an unbroken one sees.
    """
    device = images.device
    epoch, place = divmod(step, len(images) // size)
    rows = order(len(images), epoch, device)[place * size : (place + 1) * size]
    x0 = images[rows].float().div(127.5).sub(1)
    rng = torch.Generator(device).manual_seed(step)
    noise = torch.randn(x0.shape, generator=rng, device=device)
    uniform = torch.rand(size, generator=rng, device=device)
    if flip:
        coin = torch.rand(size, generator=rng, device=device)
        x0 = torch.where(coin[:, None, None, None] < 0.5, x0.flip(-1), x0)
    found = [x0, noise, stratified_times(uniform, time_count)]
    return found if labels is None else [*found, labels[rows]]


def loss_of(
    unet, forward, scheduler: DDPMScheduler, x0: Tensor, noise: Tensor, time: Tensor, labels=None
) -> Tensor:
    """The loss of a batch; that of a learned variance beside it where the network has one."""
    x = scheduler.add_noise(x0, noise, time)
    with torch.autocast(x.device.type, torch.bfloat16, enabled=x.is_cuda):
        output = forward(unet, x, time, labels)
    predicted, *raw = output.float().split(x0.shape[1], 1)
    loss = (predicted - target_of(x0, noise, time, scheduler)).square().mean()
    if raw:  # the hybrid loss: no gradient of it goes through eps
        loss = loss + variance_loss(*raw, predicted.detach(), noise, time, scheduler)
    return loss


def save(out: Path, step: int, plan: Plan | None, unet, ema, optimizer, scheduler) -> None:
    """Everything that resume needs, in one atomic file; the averaged weights beside it as a
    pipeline.
    """
    names = [name for name, _ in unet.named_parameters()]
    tensors = {f"unet.{n}": p.detach() for n, p in unet.named_parameters()}
    tensors |= {f"ema.{n}": p.detach() for n, p in ema.named_parameters()}
    for index, moments in optimizer.state_dict()["state"].items():
        tensors |= {f"adam.{key}.{names[index]}": moments[key] for key in ("exp_avg", "exp_avg_sq")}
    told = {"step": step, "plan": plan and (plan.begin, plan.steps)}
    save_file(
        {k: v.contiguous() for k, v in tensors.items()},
        out / "state.tmp",
        metadata={key: json.dumps(value) for key, value in told.items()},
    )
    os.replace(out / "state.tmp", out / "state.safetensors")
    DDPMPipeline(copy.deepcopy(ema).half(), scheduler).save_pretrained(out / "pipeline")


def load(out: Path, unet, ema, optimizer) -> tuple[int, Plan | None]:
    """Restore the state written by `save`. Returns the step to go on from, 0 for a new folder, and
    the plan where there is one.
    """
    if not (out / "state.safetensors").exists():
        return 0, None
    with safe_open(out / "state.safetensors", "pt") as file:
        told = {key: json.loads(value) for key, value in file.metadata().items()}
        for module, prefix in ((unet, "unet"), (ema, "ema")):
            module.load_state_dict(
                {n: file.get_tensor(f"{prefix}.{n}") for n in module.state_dict()}
            )
        state = optimizer.state_dict()
        for index, name in enumerate(n for n, _ in unet.named_parameters()):
            moments = {
                key: file.get_tensor(f"adam.{key}.{name}") for key in ("exp_avg", "exp_avg_sq")
            }
            state["state"][index] = {"step": torch.tensor(float(told["step"])), **moments}
        optimizer.load_state_dict(state)
    return told["step"], Plan(*told["plan"]) if told.get("plan") else None


class Clock:
    """Plans the steps of a training that is given minutes: when a tenth of them is over, as many
    more as the rest allows.
    """

    def __init__(self, minutes: float, device: torch.device) -> None:
        self.seconds, self.device, self.begin, self.mark = 60 * minutes, device, time.time(), None

    def plan(self, step: int) -> Plan | None:
        """The plan, once it can be made; `step` have been made."""
        if step % LOOK_EVERY:
            return None
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        now = time.time()
        if not self.mark:  # what comes before is slower
            self.mark = step, now
        elif now - self.begin > TRIAL * self.seconds:
            speed = (step - self.mark[0]) / (now - self.mark[1])
            left = (1 - RESERVE) * (self.seconds - (now - self.begin))
            return Plan(step, step + max(0, int(speed * left)))
        return None


def parse(words: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", default="fashion-mnist-train",
                        help="a data set by name, a folder or an .npz file of images")  # fmt: skip
    parser.add_argument("--data-root", default="data", help="where torchvision's data sets lie")
    parser.add_argument("--out", type=Path, required=True)
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--steps", type=int, default=STEPS)
    length.add_argument("--minutes", type=float, help="as many steps as fit, all in all")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--channels", default="16,32,64", help="one number a level, finest first")
    parser.add_argument("--layers", type=int, default=1, help="residual blocks of a level")
    parser.add_argument("--attention", type=int, default=2, help="the level that attends, from 0")
    parser.add_argument("--flip", action="store_true", help="mirror every second image")
    parser.add_argument("--prediction", default="epsilon", choices=PREDICTIONS)
    parser.add_argument("--betas", default="linear", choices=BETAS)
    parser.add_argument("--classes", action="store_true",
                        help="condition on the labels beside an .npz file's images")  # fmt: skip
    parser.add_argument("--learned-variance", action="store_true",
                        help="diffusers' learned_range; with --prediction epsilon")  # fmt: skip
    parser.add_argument("--compile", action="store_true",
                        help="compile first: a minute or two, for large networks")  # fmt: skip
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args(words)
    if args.learned_variance and args.prediction != "epsilon":
        parser.error("--learned-variance goes with --prediction epsilon alone")
    return args


def main(words: list[str] | None = None) -> None:
    args = parse(words)
    args.out.mkdir(parents=True, exist_ok=True)
    device = torch.device(args.device)
    clock = args.minutes and Clock(args.minutes, device)

    torch.set_float32_matmul_precision("high")
    images = torch.cat(list(image_batches(args.images, args.data_root)[1])).permute(0, 3, 1, 2)
    labels = read_labels(Path(args.images)) if args.classes else None
    classes = len(labels.unique()) if args.classes else None
    images, labels = images.to(device), None if labels is None else labels.to(device)
    channels = [int(word) for word in args.channels.split(",")]
    torch.manual_seed(0)
    unet = build_unet(images.shape[2], images.shape[1], channels, args.layers, args.attention,
                      args.learned_variance, classes).to(device)  # fmt: skip
    ema = copy.deepcopy(unet).requires_grad_(False)
    scheduler = DDPMScheduler(
        num_train_timesteps=1000,
        beta_schedule=args.betas,
        prediction_type=args.prediction,
        variance_type="learned_range" if args.learned_variance else "fixed_small",
    )
    scheduler.betas = scheduler.betas.to(device)
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.to(device)
    optimizer = make_optimizer("adam", unet.parameters(), args.rate, 0.9)
    first, plan = load(args.out, unet, ema, optimizer)
    if not clock:
        plan = Plan(0, args.steps)
    size, call = min(args.batch_size, len(images)), compiled() if args.compile else forward

    def work(batch: list[Tensor]) -> Tensor:
        loss = loss_of(unet, call, scheduler, *batch)
        loss.backward()
        update(optimizer, 1.0, Shard())
        return loss.detach()

    trained, averages = list(unet.parameters()), list(ema.parameters())
    does, begin, mean_loss = performer(device, captures=True), time.time(), None
    saved = begin
    for step in range(first, plan.steps) if plan else itertools.count(first):
        set_rate(optimizer, args.rate * (plan.rate(step) if plan else rise(step)), 0.9)
        batch = draw_batch(images, labels, step, size, args.flip, len(scheduler.betas))
        loss = does.perform("step", work, Parcel(batch, pinned=False))
        ema_update(averages, trained, EMA_DECAY, step)
        mean_loss = loss if mean_loss is None else mean_loss.lerp(loss, 0.01)
        if not plan and (plan := clock.plan(step + 1)):
            print(f"{plan.steps} steps fit into {args.minutes:g} minutes", flush=True)
        done = bool(plan) and step + 1 >= plan.steps
        if done or time.time() - saved > SAVE_SECONDS:
            save(args.out, step + 1, plan, unet, ema, optimizer, scheduler)
            saved = time.time()
            speed = (step + 1 - first) * size / (saved - begin)
            print(
                f"step {step + 1} loss {mean_loss.item():.4f} {speed:.0f} images/s "
                f"{(saved - begin) / 60:.1f} minutes",
                flush=True,
            )
        if done:
            break
    does.close()


if __name__ == "__main__":
    main()
