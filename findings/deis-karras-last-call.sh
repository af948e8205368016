#!/usr/bin/env bash
# diffusers 0.42.1, torch 2.14.1: the last call of DEISMultistepScheduler with use_karras_sigmas.
#
# Guess: each network call moves the sample to a lower noise level, the last one to sigma 0 as in
#   DPMSolverMultistepScheduler with the same setting, or to the sigma of time 0 as in DEIS without.
# Seen: set_timesteps repeats the last Karras sigma, so the last step goes from a noise level to
#   itself and its network call has weight 0: the last of n calls is wasted, and one call hands back
#   the starting noise, whatever the network says. Nothing is logged.
#
# Output seen:
#   diffusers 0.42.1, torch 2.14.1
#   DEIS, Karras, call 1 of 1: last sigmas [157.407, 157.407], counts: False
#   DEIS, Karras, call 10 of 10: last sigmas [0.074, 0.01, 0.01], counts: False
#   DEIS, call 1 of 1: last sigmas [157.407, 0.01], counts: True
#   DEIS, call 10 of 10: last sigmas [0.724, 0.342, 0.01], counts: True
#   DPM-Solver++, Karras, call 1 of 1: last sigmas [157.407, 0.0], counts: True
#   DPM-Solver++, Karras, call 10 of 10: last sigmas [0.074, 0.01, 0.0], counts: True
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
from diffusers import DEISMultistepScheduler, DPMSolverMultistepScheduler


def last_call_counts(scheduler, calls):
    """Whether the last call changes the sample; the network's outputs are random."""
    scheduler.set_timesteps(calls)
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(1, 3, 8, 8, generator=rng)
    for time in scheduler.timesteps:
        before = x
        x = scheduler.step(torch.randn(x.shape, generator=rng), time, x).prev_sample
    return not torch.equal(x, before)


print(f"diffusers {diffusers.__version__}, torch {torch.__version__.split('+')[0]}")
same = True
for name, kind, karras, counts in [
    ("DEIS, Karras", DEISMultistepScheduler, True, False),
    ("DEIS", DEISMultistepScheduler, False, True),
    ("DPM-Solver++, Karras", DPMSolverMultistepScheduler, True, True),
]:
    for calls in (1, 10):
        scheduler = kind(use_karras_sigmas=karras)
        seen = last_call_counts(scheduler, calls)
        sigmas = [round(sigma, 3) for sigma in scheduler.sigmas[-3:].tolist()]
        print(f"{name}, call {calls} of {calls}: last sigmas {sigmas}, counts: {seen}")
        same = same and seen == counts
sys.exit(not same)
PYTHON
