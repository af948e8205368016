"""Networks whose configuration is wrong in ways that only building or calling them shows."""

import time

import pytest
import torch
from conftest import edit_json, refused
from diffusers import UNet2DModel

from hsivi_cli.models.loading import load_teacher


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"norm_num_groups": 0}, "describes no network"),
        ({"norm_num_groups": "4"}, "describes no network"),
        ({"attention_head_dim": 0}, "describes no network"),
        ({"time_embedding_type": "learned"}, "describes no network"),  # of how many times?
        ({"time_embedding_type": "polar"}, "has the time_embedding_type 'polar'; there are pos"),
        ({"time_embedding_type": ["learned"]}, "has the time_embedding_type ['learned']"),
        ({"layers_per_block": 2}, "do not fit"),
        ({"block_out_channels": [8, 10**6]}, "do not fit"),
        ({"num_class_embeds": 10**12}, "do not fit"),
        ({"act_fn": "mystery"}, "describes no network"),
        ({"mid_block_scale_factor": "1"}, "cannot be called"),
        ({"mid_block_scale_factor": 0}, "not finite"),
        ({"layers_per_block": True}, "has layers_per_block true, and numbers are wanted"),
        ({"in_channels": True}, "has in_channels true"),
        ({"num_class_embeds": True}, "has num_class_embeds true"),
        ({"block_out_channels": [8, True]}, "has block_out_channels [8, true]"),
    ],
)
def test_settings_that_make_no_network_are_one_line(save_teacher, change, told):
    folder = save_teacher()
    edit_json(folder / "unet" / "config.json", **change)
    line = refused(folder)
    assert told in line and "config.json" in line


@pytest.mark.parametrize("change", [{"layers_per_block": 10**6}, {"layers_per_block": 10**12}])
def test_a_network_of_more_layers_than_its_weights_is_not_built(save_teacher, change):
    folder = save_teacher()
    edit_json(folder / "unet" / "config.json", **change)
    begin = time.process_time()
    assert "layers, and they are" in refused(folder)
    assert time.process_time() - begin < 10  # a layer takes some milliseconds


def test_a_network_without_as_many_ways_up_as_down_is_refused(save_teacher):
    folder = save_teacher()
    edit_json(folder / "unet" / "config.json", up_block_types=["UpBlock2D"] * 3)
    assert "describes no network" in refused(folder)


def test_a_network_that_looks_its_times_up_is_a_teacher(save_teacher):
    learned = {"time_embedding_type": "learned", "num_train_timesteps": 1000}
    folder = save_teacher(**learned)
    teacher = load_teacher(str(folder))
    x = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    unet, times = UNet2DModel.from_pretrained(folder / "unet"), torch.tensor([0, 700])
    with torch.no_grad():
        found = teacher.network()(x, times + torch.tensor([0.0, 0.3]))
        torch.testing.assert_close(found, unet(x, times).sample, rtol=0, atol=1e-6)
    few = save_teacher(folder="few", **learned | {"num_train_timesteps": 500})
    assert "cannot be called" in refused(few)  # of 1000 times it knows 500


def test_a_network_of_another_time_scale_is_refused_where_it_divides_by_zero(save_teacher):
    assert "not finite at time 0 or 999" in refused(save_teacher(time_embedding_type="fourier"))
