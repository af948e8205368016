#!/usr/bin/env bash
# torch 2.14.1: F.interpolate(mode="area") to a size that does not divide the image's.
#
# Guess: an output pixel is the mean over the area that it covers, an input pixel cut by an edge
#   counting by the part inside (as OpenCV's INTER_AREA and Pillow's BOX do): each input pixel has
#   the same weight in the picture, and the mean brightness stays.
# Seen: it is adaptive_avg_pool2d: each output pixel is the plain mean over every input pixel that
#   it touches, so a pixel on an edge counts in full, twice. From 28 to 16 columns the weight of
#   a column is between 0.33 and 0.83 (0.57 each by area), the square of that in two dimensions:
#   thin stripes grow 2.5 times as bright by a shift of one pixel. Sizes that divide are exact.
#
# Output seen:
#   torch 2.14.1
#   28 to 14, columns 1, 8, .. lit: mean 0.1429, mode="area" 0.1429, by area 0.1429
#   28 to 14, columns 2, 9, .. lit: mean 0.1429, mode="area" 0.1429, by area 0.1429
#   28 to 16, columns 1, 8, .. lit: mean 0.1429, mode="area" 0.2083, by area 0.1429
#   28 to 16, columns 2, 9, .. lit: mean 0.1429, mode="area" 0.0833, by area 0.1429
#
# Exits 0 while this holds, 1 when it does not, 2 when the packages (5 GB) cannot be installed.
# FINDINGS_PYTHON=PYTHON runs it with the packages of that Python instead.
set -u
python=${FINDINGS_PYTHON:-}
if [ -z "$python" ]; then
    folder=$(mktemp -d)
    trap 'rm -rf "$folder"' EXIT
    python3 -m venv "$folder" || exit 2
    "$folder/bin/pip" install -q torch==2.14.1 numpy==2.4.6 || exit 2
    python=$folder/bin/python
fi

"$python" - <<'PYTHON'
import sys

import torch
import torch.nn.functional as F


def by_area(images, size):
    """The exact resize: cuts each pixel into size x size parts, then averages whole blocks."""
    parts = images.repeat_interleave(size, -1).repeat_interleave(size, -2)
    return F.avg_pool2d(parts, images.shape[-1])


print(f"torch {torch.__version__.split('+')[0]}")
same = True
for size, exact in [(14, True), (16, False)]:
    for first in (1, 2):
        stripes = torch.zeros(1, 1, 28, 28)
        stripes[..., first::7] = 1
        area = F.interpolate(stripes, size=(size, size), mode="area")
        same = same and torch.equal(area, F.adaptive_avg_pool2d(stripes, size))
        same = same and torch.allclose(area, by_area(stripes, size), atol=1e-6) == exact
        print(
            f"28 to {size}, columns {first}, {first + 7}, .. lit: mean {stripes.mean():.4f}, "
            f'mode="area" {area.mean():.4f}, by area {by_area(stripes, size).mean():.4f}'
        )
sys.exit(not same)
PYTHON
