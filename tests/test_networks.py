"""The networks of a training: their averages."""

import copy

import torch
from gaussians import CONFIG, make

from hsivi_cli.method.networks import average_student


def test_the_averaged_student_moves_by_the_ramped_decay():
    networks = make(scale=True)
    with torch.no_grad():
        networks.log_scale.add_(2)
        for p in networks.student.parameters():
            p.add_(1)
    for step, decay in ((0, 0.1), (8, 0.5), (10_000, 0.98)):
        p = copy.deepcopy(networks)
        average_student(p, CONFIG, step)
        torch.testing.assert_close(p.student.mean - p.ema.mean, torch.full((2,), decay))
        torch.testing.assert_close(p.ema_scale, torch.full((1, 1), 2 * (1 - decay)))
