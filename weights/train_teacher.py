"""Train the embedded teacher: an unconditional eps-prediction UNet2DModel on Fashion-MNIST, 28 x
28, linear betas.

    python weights/train_teacher.py --data-root DIR --out runs/teacher

DIR holds FashionMNIST/raw as torchvision lays it out. The same command again resumes; `--minutes`
stops early and saves.
--out receives `state.safetensors` (weights, averaged weights, Adam's moments, all at one step) and,
at every save, the averaged weights as a diffusers DDPMPipeline. float16 on disk: half the size, and
2^-11 is far below Adam's own jitter.
"""

import argparse
import json
import math
import os
import time
from pathlib import Path

import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from safetensors import safe_open
from safetensors.torch import save_file
from torchvision.datasets import FashionMNIST

EMA_DECAY = 0.9995
WARMUP = 300  # steps of linear rate warm-up
SAVE_EVERY = 250


def build_unet() -> UNet2DModel:
    return UNet2DModel(
        sample_size=28,
        in_channels=1,
        out_channels=1,
        block_out_channels=(16, 32, 64),
        down_block_types=("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        attention_head_dim=8,
        norm_num_groups=8,  # as many groups as channels would cancel the time embedding
    )


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
    half = build_unet().to(torch.float16)
    half.load_state_dict(ema.state_dict())
    DDPMPipeline(half, scheduler).save_pretrained(out / "pipeline")


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
    parser.add_argument("--data-root", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=5500)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--minutes", type=float, default=math.inf)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)

    torch.manual_seed(0)
    unet, ema = build_unet(), build_unet()
    ema.load_state_dict(unet.state_dict())
    scheduler = DDPMScheduler(num_train_timesteps=1000, beta_schedule="linear")
    optimizer = torch.optim.Adam(unet.parameters(), lr=args.rate)
    first = load(args.out, unet, ema, optimizer)
    images = FashionMNIST(args.data_root, train=True).data
    x_all = images.float().div(127.5).sub(1).unsqueeze(1)

    begin, mean_loss = time.time(), None
    for step in range(first, args.steps):
        # all that is random is a function of the step: a resumed run sees what an unbroken one sees
        rng = torch.Generator().manual_seed(step)
        epoch, offset = divmod(step * args.batch_size, len(x_all))
        order = torch.randperm(
            len(x_all), generator=torch.Generator().manual_seed(1_000_000 + epoch)
        )
        x0 = x_all[order[offset : offset + args.batch_size]]
        noise = torch.randn(x0.shape, generator=rng)
        strata = (torch.arange(len(x0)) + torch.rand(len(x0), generator=rng)) / len(x0)
        time_ = (strata * scheduler.config.num_train_timesteps).long()

        rate = args.rate * min(
            (step + 1) / WARMUP, 0.5 * (1 + math.cos(math.pi * step / args.steps))
        )
        optimizer.param_groups[0]["lr"] = rate
        loss = (unet(scheduler.add_noise(x0, noise, time_), time_).sample - noise).square().mean()
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
            print(f"step {step + 1} loss {mean_loss:.4f} {speed:.0f} images/s", flush=True)
        if out_of_time:
            break


if __name__ == "__main__":
    main()
