#!/usr/bin/env bash
# diffusers 0.42.1, torch 2.14.1: a model that save_pretrained wrote as shards of .bin.
#
# Guess: from_pretrained reads what save_pretrained has written, whatever the format of the weights
#   and however many files they are: one .bin, one .safetensors and shards of .safetensors all are.
# Seen: with safe_serialization=False and a max_shard_size below the model's, the shards and their
#   index are written without a word, and from_pretrained of that folder fails: it says that no
#   file of one name is there. A single .bin it finds by itself; the shards it reads only where it
#   is told use_safetensors=False.
#
# Output seen:
#   diffusers 0.42.1, torch 2.14.1
#   one .safetensors: read
#   shards of .safetensors: read
#   one .bin: read
#   shards of .bin: OSError
#   shards of .bin, use_safetensors=False: read
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
import tempfile

import diffusers
import torch
from diffusers import UNet2DModel

diffusers.logging.set_verbosity(diffusers.logging.CRITICAL)
diffusers.logging.disable_progress_bar()
print(f"diffusers {diffusers.__version__}, torch {torch.__version__.split('+')[0]}")
unet = UNet2DModel(
    sample_size=8,
    in_channels=1,
    out_channels=1,
    block_out_channels=(8, 8),
    norm_num_groups=4,
    down_block_types=("DownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "UpBlock2D"),
)
kept = dict(unet.named_parameters())


def read(how, **options):
    """What becomes of a model that is written in one way and read again."""
    with tempfile.TemporaryDirectory() as folder:
        unet.save_pretrained(folder, **how)
        try:
            again = UNet2DModel.from_pretrained(folder, **options)
        except Exception as error:
            return type(error).__name__
        return "read" if all(p.equal(kept[n]) for n, p in again.named_parameters()) else "other"


few = {"max_shard_size": "20KB"}
old = {"safe_serialization": False}
same = True
for name, how, options, wanted in [
    ("one .safetensors", {}, {}, "read"),
    ("shards of .safetensors", few, {}, "read"),
    ("one .bin", old, {}, "read"),
    ("shards of .bin", few | old, {}, "OSError"),
    ("shards of .bin, use_safetensors=False", few | old, {"use_safetensors": False}, "read"),
]:
    seen = read(how, **options)
    print(f"{name}: {seen}")
    same = same and seen == wanted
sys.exit(not same)
PYTHON
