"""Train a UNet2DModel; by default the embedded teacher: eps-prediction on linear betas,
unconditional, on Fashion-MNIST, 28 x 28.

    python weights/train_teacher.py --data-root DIR --out runs/teacher

DIR holds FashionMNIST/raw as torchvision lays it out. `bench/cifar10.py` trains larger ones,
`bench/teachers.py` other kinds. The same command again resumes; `--minutes` stops early and saves.
--out receives `state.safetensors` (weights, averaged weights, Adam's moments, all at one step) and,
at every save, the averaged weights as a diffusers DDPMPipeline. float16 on disk: half the size, and
2^-11 is far below Adam's own jitter.
"""

import argparse
import copy
import json
import math
import os
import time
from pathlib import Path

import numpy as np
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from hsivi_cli.metrics.statistics import image_batches

EMA_DECAY = 0.9995
WARMUP = 300  # steps of linear rate warm-up
SAVE_EVERY = 250
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
    later = time > 0
    raw, gap, time = raw[later], (eps - noise)[later], time[later]
    table, betas = scheduler.alphas_cumprod.to(time.device), scheduler.betas.to(time.device)
    beta, alpha_bar, before = (
        values[:, None, None, None] for values in (betas[time], table[time], table[time - 1])
    )
    log_q = ((1 - before) / (1 - alpha_bar) * beta).log()
    log_p = log_q + (1 + raw) / 2 * (beta.log() - log_q)
    means = gap.square() * beta.square() / ((1 - beta) * (1 - alpha_bar))  # squared difference
    kl = (log_p - log_q - 1 + (log_q - log_p).exp() + means * (-log_p).exp()) / 2
    return kl.sum() / noise.numel()


def save(out: Path, step: int, unet, ema, optimizer, scheduler) -> None:
    """Everything that resume needs, in one atomic file; the averaged weights beside it as a
    pipeline.
    """
    names = [name for name, _ in unet.named_parameters()]
    tensors = {f"unet.{n}": p.detach() for n, p in unet.named_parameters()}
    tensors |= {f"ema.{n}": p.detach() for n, p in ema.named_parameters()}
    for index, moments in optimizer.state_dict()["state"].items():
        tensors |= {f"adam.{key}.{names[index]}": moments[key] for key in ("exp_avg", "exp_avg_sq")}
    save_file(
        {k: v.contiguous() for k, v in tensors.items()},
        out / "state.tmp",
        metadata={"step": json.dumps(step)},
    )
    os.replace(out / "state.tmp", out / "state.safetensors")
    DDPMPipeline(copy.deepcopy(ema).half(), scheduler).save_pretrained(out / "pipeline")


def load(out: Path, unet, ema, optimizer) -> int:
    """Restore the state written by `save`. Returns the step to go on from, 0 for a new folder."""
    if not (out / "state.safetensors").exists():
        return 0
    with safe_open(out / "state.safetensors", "pt") as file:
        step = json.loads(file.metadata()["step"])
        for module, prefix in ((unet, "unet"), (ema, "ema")):
            module.load_state_dict(
                {n: file.get_tensor(f"{prefix}.{n}") for n in module.state_dict()}
            )
        state = optimizer.state_dict()
        for index, name in enumerate(n for n, _ in unet.named_parameters()):
            moments = {
                key: file.get_tensor(f"adam.{key}.{name}") for key in ("exp_avg", "exp_avg_sq")
            }
            state["state"][index] = {"step": torch.tensor(float(step)), **moments}
        optimizer.load_state_dict(state)
    return step


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", default="fashion-mnist-train",
                        help="a data set by name, a folder or an .npz file of images")  # fmt: skip
    parser.add_argument("--data-root", default="data", help="where torchvision's data sets lie")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=5500)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--minutes", type=float, default=math.inf)
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
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    if args.learned_variance and args.prediction != "epsilon":
        parser.error("--learned-variance goes with --prediction epsilon alone")
    args.out.mkdir(parents=True, exist_ok=True)

    images = torch.cat(list(image_batches(args.images, args.data_root)[1])).permute(0, 3, 1, 2)
    labels = torch.from_numpy(np.load(args.images)["labels"]) if args.classes else None
    classes = len(labels.unique()) if args.classes else None
    channels = [int(word) for word in args.channels.split(",")]
    torch.manual_seed(0)
    unet = build_unet(images.shape[2], images.shape[1], channels, args.layers, args.attention,
                      args.learned_variance, classes).to(args.device)  # fmt: skip
    ema = copy.deepcopy(unet)
    scheduler = DDPMScheduler(
        num_train_timesteps=1000,
        beta_schedule=args.betas,
        prediction_type=args.prediction,
        variance_type="learned_range" if args.learned_variance else "fixed_small",
    )
    optimizer = torch.optim.Adam(unet.parameters(), lr=args.rate)
    first = load(args.out, unet, ema, optimizer)
    kind = torch.device(args.device).type
    half = torch.autocast(kind, torch.bfloat16, enabled=kind == "cuda")

    begin, mean_loss = time.time(), None
    for step in range(first, args.steps):
        # all that is random is a function of the step: a resumed run sees what an unbroken one sees
        rng = torch.Generator().manual_seed(step)
        epoch, offset = divmod(step * args.batch_size, len(images))
        order = torch.randperm(
            len(images), generator=torch.Generator().manual_seed(1_000_000 + epoch)
        )
        rows = order[offset : offset + args.batch_size]
        x0 = images[rows].float().div(127.5).sub(1)
        told = labels[rows].to(args.device) if args.classes else None
        noise = torch.randn(x0.shape, generator=rng)
        strata = (torch.arange(len(x0)) + torch.rand(len(x0), generator=rng)) / len(x0)
        time_ = (strata * scheduler.config.num_train_timesteps).long()
        if args.flip:
            mirrored = torch.rand(len(x0), generator=rng) < 0.5
            x0[mirrored] = x0[mirrored].flip(-1)
        x0, noise, time_ = (part.to(args.device) for part in (x0, noise, time_))

        rate = args.rate * min(
            (step + 1) / WARMUP, 0.5 * (1 + math.cos(math.pi * step / args.steps))
        )
        optimizer.param_groups[0]["lr"] = rate
        with half:
            output = unet(scheduler.add_noise(x0, noise, time_), time_, class_labels=told).sample
        predicted, *raw = output.float().split(x0.shape[1], 1)
        loss = (predicted - target_of(x0, noise, time_, scheduler)).square().mean()
        if args.learned_variance:  # the hybrid loss: no gradient of it goes through eps
            loss = loss + variance_loss(*raw, predicted.detach(), noise, time_, scheduler)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
        decay = min(EMA_DECAY, (1 + step) / (10 + step))
        with torch.no_grad():
            for average, parameter in zip(ema.parameters(), unet.parameters(), strict=True):
                average.lerp_(parameter, 1 - decay)

        mean_loss = loss.item() if mean_loss is None else 0.99 * mean_loss + 0.01 * loss.item()
        out_of_time = time.time() - begin > 60 * args.minutes
        if (step + 1) % SAVE_EVERY == 0 or step + 1 == args.steps or out_of_time:
            save(args.out, step + 1, unet, ema, optimizer, scheduler)
            speed = (step + 1 - first) * args.batch_size / (time.time() - begin)
            minutes = time.process_time() / 60
            print(
                f"step {step + 1} loss {mean_loss:.4f} {speed:.0f} images/s "
                f"{minutes:.1f} CPU minutes",
                flush=True,
            )
        if out_of_time:
            break


if __name__ == "__main__":
    main()
