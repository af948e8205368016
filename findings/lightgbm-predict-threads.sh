#!/usr/bin/env bash
# lightgbm 4.7.0: how many threads a booster predicts with that was trained with num_threads=1.
#
# Guess: one; the setting is the booster's, its `params` hold it, and a booster read back from its
#   text says num_threads 1 as well.
# Seen: as many as OpenMP is allowed. `predict` heeds num_threads only where the call itself names
#   it. A few rows at a time, beside other work on the machine, took 40 times as long for it.
#
# Output seen:
#   lightgbm 4.7.0, OpenMP allowed 3 threads
#   trained: 0 new threads
#   predict(x, num_threads=1): 0 new threads
#   read back, params say 1: 2 new threads of predict(x)
#
# Exits 0 while this holds, 1 when it does not, 2 when the packages (170 MB) cannot be installed.
# FINDINGS_PYTHON=PYTHON runs it with the packages of that Python instead.
set -u
python=${FINDINGS_PYTHON:-}
if [ -z "$python" ]; then
    folder=$(mktemp -d)
    trap 'rm -rf "$folder"' EXIT
    python3 -m venv "$folder" || exit 2
    "$folder/bin/pip" install -q lightgbm==4.7.0 numpy==2.4.6 scipy==1.17.1 || exit 2
    python=$folder/bin/python
fi

OMP_NUM_THREADS=3 OPENBLAS_NUM_THREADS=1 "$python" - <<'PYTHON'
import os
import sys

import lightgbm
import numpy


def threads():
    return len(os.listdir("/proc/self/task"))


print(f"lightgbm {lightgbm.__version__}, OpenMP allowed {os.environ['OMP_NUM_THREADS']} threads")
x = numpy.random.default_rng(0).standard_normal((2000, 5))
settings, begin = {"num_threads": 1, "verbose": -1}, threads()
booster = lightgbm.train(settings, lightgbm.Dataset(x, x[:, 0], params=settings), 5)
trained = threads() - begin
print(f"trained: {trained} new threads")
booster.predict(x, num_threads=1)
named = threads() - begin
print(f"predict(x, num_threads=1): {named} new threads")
again = lightgbm.Booster(model_str=booster.model_to_string())
again.predict(x)
unnamed = threads() - begin
print(f"read back, params say {again.params['num_threads']}: {unnamed} new threads of predict(x)")
sys.exit((trained, named, unnamed) != (0, 0, 2))
PYTHON
