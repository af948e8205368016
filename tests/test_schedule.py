"""Levels and conversions against closed forms and diffusers; grids against their rules."""

from itertools import pairwise

import pytest
import torch
from conftest import linear_table

from hsivi_cli.errors import HsiviError
from hsivi_cli.method import schedule
from hsivi_cli.method.schedule import eps_to_x0, grid, noise_to_signal, over, to_eps


@pytest.fixture
def draws():
    """x0, noise [6, 3, 4, 4] and alpha_bar [6], float64."""
    torch.manual_seed(0)
    x0, noise = torch.randn(2, 6, 3, 4, 4, dtype=torch.float64)
    return x0, noise, torch.linspace(0.05, 0.99, 6, dtype=torch.float64)


def test_every_prediction_type_stands_for_the_same_noise(draws):
    x0, noise, alpha_bar = draws
    x = schedule.add_noise(x0, noise, alpha_bar)
    v = over(alpha_bar.sqrt(), x) * noise - over((1 - alpha_bar).sqrt(), x) * x0
    for output, prediction in ((noise, "epsilon"), (x0, "sample"), (v, "v_prediction")):
        # x0 divides by sigma, 0.1 at the least: float64 rounding
        torch.testing.assert_close(
            to_eps(output, x, alpha_bar, prediction), noise, atol=1e-12, rtol=0
        )
    with pytest.raises(ValueError, match="prediction must be one of"):
        to_eps(noise, x, alpha_bar, "flow")


def test_x0_undoes_add_noise(draws):
    x0, noise, alpha_bar = draws
    x = schedule.add_noise(x0, noise, alpha_bar)
    torch.testing.assert_close(eps_to_x0(noise, x, alpha_bar), x0, atol=1e-12, rtol=0)


def test_noise_and_velocity_are_diffusers(draws):
    from diffusers import DDPMScheduler

    x0, noise, _ = draws
    scheduler = DDPMScheduler()
    times = torch.tensor([0, 1, 50, 400, 800, 999])
    alpha_bar = scheduler.alphas_cumprod.double()[times]
    x = scheduler.add_noise(x0, noise, times)
    # diffusers rounds alpha_bar to x's dtype, float64, but takes its root in float32
    close = {"rtol": 1e-6, "atol": 1e-6}
    torch.testing.assert_close(schedule.add_noise(x0, noise, alpha_bar), x, **close)
    velocity = scheduler.get_velocity(x0, noise, times)
    torch.testing.assert_close(to_eps(velocity, x, alpha_bar, "v_prediction"), noise, **close)


def test_a_level_takes_the_dtype_of_what_it_multiplies():
    x = torch.zeros(2, 3, 4, dtype=torch.float32)
    stretched = over(torch.tensor([0.1, 0.2], dtype=torch.float64), x)
    assert stretched.shape == (2, 1, 1) and stretched.dtype == torch.float32


def test_the_ratio_at_the_top_of_linear_betas():
    """What an eps network's error is multiplied by in its x0, as the method quotes it."""
    ratio = noise_to_signal(linear_table())
    told = {999: 157.4, 800: 25.7, 650: 8.52, 500: 3.44}
    for time, value in told.items():
        assert ratio[time].item() == pytest.approx(value, rel=2e-3)  # three digits are quoted
    assert (1 - linear_table()[0]).item() ** 2 == pytest.approx(1e-8)  # the last layer's weight


# ---- grids ---------------------------------------------------------------------------------------


def test_the_quad_grid_is_the_papers():
    table = linear_table()
    assert grid("quad", 5, table) == [0, 32, 128, 288, 512, 800]
    assert grid("quad", 10, table) == [0, 8, 32, 72, 128, 200, 288, 392, 512, 648, 800]


def test_the_uniform_grid_has_equal_steps_to_the_end():
    assert grid("uniform", 4, linear_table()) == [0, 250, 500, 749, 999]


def test_the_log_snr_grid_has_equal_steps_of_log_snr():
    table = linear_table()
    times = grid("log-snr", 4, table)
    log_snr = table.log() - (1 - table).log()
    steps = log_snr[times].diff()
    assert times[0] == 0 and times[-1] == 999
    # a step can be off by half a time at either end; at time 4 that is .1 of 4.8
    torch.testing.assert_close(steps, steps.mean().expand(4), rtol=0.05, atol=0)


@pytest.mark.parametrize("nfe", [1, 2, 3, 4, 8])
def test_the_auto_grid_begins_where_its_rule_says(nfe):
    table = linear_table()
    times = grid("auto", nfe, table)
    ratio = noise_to_signal(table)
    top = 1.3 if nfe == 1 else 3.4 * nfe**1.4
    assert ratio[times[-1] - 1] < top <= ratio[times[-1]]
    depth = (-table.log()).sqrt()
    told = depth[times[-1]] * torch.linspace(0, 1, nfe + 1, dtype=torch.float64) ** 1.2
    half_a_time = depth.diff().max() / 2
    assert ((depth[times] - told).abs()[1:] <= half_a_time).all()


def test_the_auto_grid_ends_at_the_schedules_end_where_the_rule_asks_for_more():
    short = linear_table(1000, 1e-5, 2e-3)  # its ratio never reaches 3.4
    assert noise_to_signal(short)[-1] < 3.4
    assert grid("auto", 2, short)[-1] == 999


@pytest.mark.parametrize("kind", ["quad", "uniform", "log-snr", "auto"])
@pytest.mark.parametrize(("count", "nfe"), [(1000, 1), (1000, 15), (100, 8), (20, 15), (10, 9)])
def test_grids_rise_strictly_from_0_whatever_the_schedules_length(kind, count, nfe):
    # betas that reach the same noise in fewer times
    times = grid(kind, nfe, linear_table(count, 1e-4 * 1000 / count, min(0.9, 0.02 * 1000 / count)))
    assert len(times) == nfe + 1 and times[0] == 0 and times[-1] <= count - 1
    assert all(low < high for low, high in pairwise(times))


def test_a_log_snr_grid_keeps_its_times_apart_at_a_cosine_schedules_steep_end():
    from diffusers import DDPMScheduler

    table = DDPMScheduler(beta_schedule="squaredcos_cap_v2").alphas_cumprod.double()
    times = grid("log-snr", 12, table)
    assert times[0] == 0 and times[-1] == 999
    assert all(low < high for low, high in pairwise(times))


@pytest.mark.parametrize("kind", ["quad", "uniform", "log-snr", "auto"])
def test_the_top_can_be_given(kind):
    assert grid(kind, 3, linear_table(), top=650)[-1] == 650


def test_times_can_be_given_by_hand():
    assert grid("0, 150,340", 2, linear_table()) == [0, 150, 340]


@pytest.mark.parametrize(
    "text", ["0,150", "0,150,150", "0,300,200", "10,150,340", "0,150,1000", "0,1,2,3"]
)
def test_times_that_do_not_fit_are_refused_and_told_what_would(text):
    with pytest.raises(HsiviError, match="3 rising times from 0 to at most 999 for 2 calls"):
        grid(text, 2, linear_table())


def test_a_grid_that_is_no_grid_is_refused_with_the_ones_there_are():
    with pytest.raises(HsiviError, match="'cosine' is neither one of auto, quad, uniform, log-snr"):
        grid("cosine", 2, linear_table())


def test_more_calls_than_times_are_refused():
    with pytest.raises(HsiviError, match="12 calls do not fit into a schedule of 10 times"):
        grid("uniform", 12, linear_table(10))
    with pytest.raises(
        HsiviError, match=r"--grid-top 1000 does not fit: 2 calls need a time from 2"
    ):
        grid("uniform", 2, linear_table(), top=1000)
    with pytest.raises(HsiviError, match="--grid-top 1 does not fit"):
        grid("uniform", 2, linear_table(), top=1)


def test_nearest_is_the_nearest_also_beyond_the_ends():
    rising = torch.tensor([0.0, 1.0, 3.0, 7.0])
    values = torch.tensor([-5.0, 0.4, 0.6, 1.9, 2.1, 4.9, 5.1, 99.0])
    assert schedule.nearest(rising, values).tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
