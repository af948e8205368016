#!/usr/bin/env bash
# ngboost 0.5.4, scikit-learn 1.5.0: what random_state=0 repeats.
#
# Guess: two fits of NGBRegressor(random_state=0) on the same rows predict the same.
# Seen: they do not. The default tree was made without a random_state, so which of two splits of
#   equal gain it takes is drawn from NumPy's global generator: errors on held rows differ in the
#   third digit from fit to fit. With a tree of its own random_state they are equal.
#
# Output seen (the last two digits of its errors are chance on the first line):
#   ngboost 0.5.4, scikit-learn 1.5.0
#   random_state=0: 0.5845 0.5836 0.5862 0.5821
#   its tree seeded too: 0.5935 0.5935 0.5935 0.5935
#   NumPy's generator seeded: 0.5835 0.5835 0.5835 0.5835
#
# Exits 0 while this holds, 1 when it does not, 2 when the packages (300 MB) cannot be installed.
set -u
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder" || exit 2
"$folder/bin/pip" install -q ngboost==0.5.4 scikit-learn==1.5.0 numpy==1.26.4 || exit 2

cat > "$folder/fit.py" <<'PYTHON'
import sys
import warnings
from importlib.metadata import version

warnings.simplefilter("ignore")
import numpy
from ngboost import NGBRegressor
from sklearn.datasets import load_wine
from sklearn.tree import DecisionTreeRegressor

rows = load_wine().data
x, y = rows[:, 1:], rows[:, 0]


def error(seed=None, **options):
    """Of the odd rows, by a fit of the even ones."""
    if seed is not None:
        numpy.random.seed(seed)
    model = NGBRegressor(random_state=0, verbose=False, **options).fit(x[::2], y[::2])
    return numpy.sqrt(((model.predict(x[1::2]) - y[1::2]) ** 2).mean())


tree = DecisionTreeRegressor(criterion="friedman_mse", max_depth=3, random_state=0)
alone = [error() for _ in range(4)]
seeded = [error(Base=tree) for _ in range(4)]
drawn = [error(seed=1) for _ in range(4)]
print(f"ngboost {version('ngboost')}, scikit-learn {version('scikit-learn')}")
print("random_state=0:", *(f"{value:.4f}" for value in alone))
print("its tree seeded too:", *(f"{value:.4f}" for value in seeded))
print("NumPy's generator seeded:", *(f"{value:.4f}" for value in drawn))
sys.exit(not (len(set(alone)) > 1 and len(set(seeded)) == len(set(drawn)) == 1))
PYTHON
"$folder/bin/python" "$folder/fit.py"
