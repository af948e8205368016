"""Shared by the tests: exact integrals over Gaussians, and tiny real teachers."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # read once, when huggingface_hub is imported

import json
import math
from importlib.util import find_spec

import numpy as np
import pytest
import torch

# the networks are tiny: on a busy machine two threads spend most of their time waiting for another
torch.set_num_threads(1)

# trees are an extra; on a GPU's machine, say, it may be missing
collect_ignore = [] if find_spec("lightgbm") else ["test_boost.py", "test_layers.py"]


def pytest_configure(config):
    # diffusers' multistep schedulers hand NumPy 2 their tensors; not ours to mend
    for message in ("__array__ implementation doesn't accept a copy", "__array_wrap__ must accept"):
        config.addinivalue_line("filterwarnings", f"ignore:{message}:DeprecationWarning")


def gauss_hermite(count, dimensions=1):
    """Nodes [N, dimensions] and weights [N] of E[f(z)], z ~ N(0, I).

    Exact for polynomials of degree below 2 count.
    """
    node, weight = np.polynomial.hermite_e.hermegauss(count)
    weight = weight / math.sqrt(2 * math.pi)
    nodes = np.stack(np.meshgrid(*[node] * dimensions, indexing="ij"), -1).reshape(-1, dimensions)
    weights = np.stack(np.meshgrid(*[weight] * dimensions, indexing="ij"), -1).reshape(nodes.shape)
    return torch.as_tensor(nodes), torch.as_tensor(weights.prod(1))


def linear_table(count=1000, low=1e-4, high=0.02):
    """alpha_bar of the DDPM paper's linear betas, float64."""
    return (1 - torch.linspace(low, high, count, dtype=torch.float64)).cumprod(0)


@pytest.fixture(scope="session")
def tiny_unet():
    """A function (**config) -> a random UNet2DModel of 8 x 8 images.

    4 groups to 8 channels: with one channel a group it would not hear the time.
    """
    from diffusers import UNet2DModel

    def make(seed=0, **config):
        torch.manual_seed(seed)
        tiny = {
            "sample_size": 8,
            "in_channels": 1,
            "out_channels": 1,
            "block_out_channels": (8, 16),
            "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
            "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
            "layers_per_block": 1,
            "norm_num_groups": 4,
            "attention_head_dim": 8,
        }
        return UNet2DModel(**(tiny | config)).eval()

    return make


@pytest.fixture
def save_teacher(tiny_unet, tmp_path):
    """A function (pipeline class, scheduler, folder, **unet config) -> the pipeline's directory."""

    def save(
        pipeline="DDPMPipeline", scheduler=None, folder="teacher", variant=None, safe=True, **config
    ):
        import diffusers

        scheduler = scheduler or diffusers.DDPMScheduler(clip_sample=False)
        pipe = getattr(diffusers, pipeline)(unet=tiny_unet(**config), scheduler=scheduler)
        pipe.save_pretrained(tmp_path / folder, variant=variant, safe_serialization=safe)
        return tmp_path / folder

    return save


@pytest.fixture
def coarse_pictures(monkeypatch):
    """Inference's pictures of few cells: at their own size they take longer than the layers."""
    from hsivi_cli.report import figures

    monkeypatch.setattr(figures, "SIDE", 12)


def edit_json(file, **changes):
    """Overwrite entries of a JSON file; None removes one."""
    content = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({k: v for k, v in content.items() if v is not None}))


def refused(folder, **options):
    """The one line with which a teacher's folder is refused."""
    from hsivi_cli.errors import HsiviError
    from hsivi_cli.models.loading import load_teacher

    with pytest.raises(HsiviError) as caught:
        load_teacher(str(folder), **options)
    line = str(caught.value)
    assert "\n" not in line and len(line) < 600
    return line
