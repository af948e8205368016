"""What a teacher is once it is loaded: its network, copies, digest and names."""

from dataclasses import replace

import pytest
import torch
from diffusers import DDPMScheduler
from walks import images

from hsivi_cli.models.loading import load_teacher
from hsivi_cli.models.schedules import load_schedule
from hsivi_cli.models.teacher import digest_of, eps_network


def test_of_a_learned_variance_only_the_mean_is_used(save_teacher):
    folder = save_teacher(
        in_channels=2, out_channels=4, scheduler=DDPMScheduler(variance_type="learned_range")
    )
    teacher = load_teacher(str(folder))
    x, time = images(teacher)
    with torch.no_grad():
        eps, output = teacher.network()(x, time), teacher.unet(x, time).sample
    assert teacher.shape == (2, 8, 8) and output.shape[1] == 4 and torch.equal(eps, output[:, :2])


def test_a_class_conditional_teacher_hears_its_labels(save_teacher):
    teacher = load_teacher(str(save_teacher(num_class_embeds=5)))
    assert teacher.label_count == 5
    x, time = images(teacher)
    with torch.no_grad():
        one, other = (
            teacher.network()(x, time, torch.tensor(labels)) for labels in ([0, 1], [0, 4])
        )
    torch.testing.assert_close(one[0], other[0])
    assert (one[1] - other[1]).abs().max() > 1e-4


def test_a_teacher_is_frozen_and_deaf_to_dropout_and_its_copy_trains(save_teacher):
    teacher = load_teacher(str(save_teacher(dropout=0.5)))
    assert not teacher.unet.training and not any(p.requires_grad for p in teacher.unet.parameters())
    x, time = images(teacher)
    network = teacher.network()
    assert torch.equal(network(x, time), network(x, time))
    copy = teacher.new_unet()
    assert not copy.training and all(p.requires_grad for p in copy.parameters())
    with torch.no_grad():
        next(copy.parameters()).add_(1)
    assert digest_of(copy) != teacher.digest == digest_of(teacher.unet)
    assert not torch.equal(teacher.network(copy)(x, time), network(x, time))


def test_the_digest_tells_teachers_apart_and_not_their_files(save_teacher):
    one, again, other = (
        load_teacher(str(save_teacher(folder=f, seed=s))) for f, s in (("a", 0), ("b", 0), ("c", 1))
    )
    assert one.digest == again.digest != other.digest


def test_the_schedules_name_tells_schedules_apart_and_survives_saving(save_teacher, tmp_path):
    options = [
        {},
        {"beta_end": 0.03},
        {"num_train_timesteps": 500},
        {"beta_schedule": "scaled_linear"},
        {"beta_schedule": "squaredcos_cap_v2"},
        {"trained_betas": [0.01] * 9, "num_train_timesteps": 9},
        {"trained_betas": [0.02] * 9, "num_train_timesteps": 9},
    ]
    names = set()
    for i, chosen in enumerate(options):
        teacher = load_teacher(str(save_teacher(scheduler=DDPMScheduler(**chosen), folder=f"t{i}")))
        teacher.scheduler.save_pretrained(tmp_path / "again")
        again, _ = load_schedule(tmp_path / "again" / "scheduler_config.json", "again")
        assert replace(teacher, scheduler=again).schedule_name == teacher.schedule_name
        names.add(teacher.schedule_name)
    assert len(names) == len(options) and "linear 0.0001 to 0.02, 1000 times" in names


def test_bfloat16_networks_answer_in_float32(save_teacher):
    teacher = load_teacher(str(save_teacher()))
    x, time = images(teacher)
    with torch.no_grad():
        low, full = teacher.network(dtype="bfloat16")(x, time), teacher.network()(x, time)
    assert low.dtype == torch.float32 and not torch.equal(low, full)
    torch.testing.assert_close(
        low, full, rtol=0, atol=0.1
    )  # bfloat16 keeps 8 bits, some ten layers deep


def test_a_teacher_hears_the_time(save_teacher):
    """Else the tiny teachers would not tell a wrong time from a right one."""
    teacher = load_teacher(str(save_teacher()))
    x, _ = images(teacher)
    with torch.no_grad():
        early, late = (teacher.network()(x, torch.tensor([t, t])) for t in (1, 900))
    assert (early - late).abs().max() > 1e-3


def test_the_embedded_teacher_loads_and_knows_pure_noise():
    teacher = load_teacher()
    assert teacher.name == "embedded:teacher" and teacher.shape == (1, 28, 28)
    x = torch.randn(8, *teacher.shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        eps = teacher.network()(x, torch.full((8,), 999))
    # all but a 1/158 of such an x is noise; an untrained network is off by about 1
    assert (eps - x).square().mean() < 0.01


@pytest.mark.parametrize("classes", [None, 3])
def test_a_network_told_its_row_starts_as_the_teacher_in_every_row(save_teacher, classes):
    teacher = load_teacher(str(save_teacher(num_class_embeds=classes)))
    told = teacher.network(teacher.layer_conditioned_unet(4))
    x = torch.randn(12, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    time, row, label = torch.arange(12) * 80, torch.arange(12) // 3, torch.arange(12) % 3
    heard = row if classes is None else row * classes + label
    with torch.no_grad():
        exact = teacher.network()(x, time, label if classes else None)
        assert torch.equal(told(x, time, heard), exact)
    assert teacher.label_count == classes and teacher.digest == digest_of(teacher.unet)


def test_rows_of_a_told_network_train_apart(save_teacher):
    teacher = load_teacher(str(save_teacher()))
    unet = teacher.layer_conditioned_unet(2)
    network, x, time = teacher.network(unet), torch.ones(2, 1, 8, 8), torch.tensor([300, 300])
    network(x, time, torch.tensor([1, 1])).square().sum().backward()
    gradient = unet.class_embedding.weight.grad
    assert not gradient[0].any() and gradient[1].any()
    assert teacher.unet.class_embedding is None


@pytest.mark.parametrize("labels", [None, torch.tensor([1, 4])])
def test_in_bfloat16_a_frozen_network_is_cast_once_and_says_what_autocast_says(
    save_teacher, labels
):
    options = {} if labels is None else {"num_class_embeds": 5}
    teacher = load_teacher(str(save_teacher(**options)))
    once = teacher.network(dtype="bfloat16")
    each_time = eps_network(teacher.unet, teacher.table, teacher.prediction, "bfloat16")
    (x, time), found, casts = images(teacher), [], []
    for network in (once, each_time):
        with torch.no_grad(), torch.profiler.profile() as seen:
            found.append(network(x, time, labels))
        casts.append(sum(event.name == "aten::_to_copy" for event in seen.events()))
    weights = [
        tensor
        for module in teacher.unet.modules()
        if isinstance(module, torch.nn.Linear | torch.nn.Conv2d)
        for tensor in module.parameters()
    ]
    assert casts[1] - casts[0] >= len(weights)
    # a class's embedding is rounded before it is added to the time's, and not after alone
    torch.testing.assert_close(*found, rtol=0, atol=0 if labels is None else 0.02)
    assert teacher.unet.conv_in.weight.dtype == torch.float32


def test_in_bfloat16_gradients_pass_through_a_frozen_network(save_teacher):
    teacher = load_teacher(str(save_teacher()))
    (x, time), found = images(teacher), []
    for network in (
        teacher.network(dtype="bfloat16"),
        eps_network(teacher.unet, teacher.table, teacher.prediction, "bfloat16"),
    ):
        seen = x.clone().requires_grad_(True)
        network(seen, time).square().sum().backward()
        found.append(seen.grad)
    torch.testing.assert_close(*found, rtol=0, atol=0)
