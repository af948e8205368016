#!/usr/bin/env bash
# diffusers 0.42.1, torch 2.14.1: DDPMScheduler with variance_type="fixed_large_log".
#
# Guess: it draws what "fixed_large" draws, as "fixed_small_log" draws what "fixed_small" does: the
#   same variance, kept as a logarithm.
# Seen: one step gives NaN in every pixel, with no warning: step takes the square root of log(beta),
#   which is below 0. "fixed_small_log" and "fixed_small" agree to rounding.
#
# Output seen:
#   diffusers 0.42.1, torch 2.14.1
#   fixed_small: std 0.1005; fixed_small_log: std 0.1005, NaN in 0% of the pixels
#   fixed_large: std 0.1005; fixed_large_log: std nan, NaN in 100% of the pixels
#
# Exits 0 while this holds, 1 when it does not, 2 when the packages (5 GB) cannot be installed.
# FINDINGS_PYTHON=PYTHON runs it with the packages of that Python instead.
set -u
python=${FINDINGS_PYTHON:-}
if [ -z "$python" ]; then
    folder=$(mktemp -d)
    trap 'rm -rf "$folder"' EXIT
    python3 -m venv "$folder" || exit 2
    "$folder/bin/pip" install -q diffusers==0.42.1 torch==2.14.1 numpy==2.4.6 || exit 2
    python=$folder/bin/python
fi

"$python" - <<'PYTHON'
import sys

import diffusers
import torch
from diffusers import DDPMScheduler


def step(variance_type):
    """One step from time 500 with a network output of 0 and one seed."""
    scheduler = DDPMScheduler(variance_type=variance_type)
    x = torch.zeros(1, 3, 32, 32)
    rng = torch.Generator().manual_seed(0)
    return scheduler.step(torch.zeros_like(x), 500, x, generator=rng).prev_sample


print(f"diffusers {diffusers.__version__}, torch {torch.__version__.split('+')[0]}")
drawn = {f"fixed_{size}": step(f"fixed_{size}") for size in ("small", "large")}
logged = {name: step(f"{name}_log") for name in drawn}
for name in drawn:
    std, std_log = drawn[name].std().item(), logged[name].std().item()
    nan = logged[name].isnan().float().mean().item()
    print(f"{name}: std {std:.4f}; {name}_log: std {std_log:.4f}, NaN in {nan:.0%} of the pixels")
small_agrees = torch.allclose(drawn["fixed_small"], logged["fixed_small"])
sys.exit(not (small_agrees and logged["fixed_large"].isnan().all()))
PYTHON
