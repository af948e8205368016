"""Seeds to images: as many network calls as promised, and noise that only the seed decides."""

import math
from dataclasses import replace

import pytest
import torch
from command import TINY, train

from hsivi_cli.errors import HsiviError
from hsivi_cli.files.digest import digest
from hsivi_cli.method.chain import with_noise_share
from hsivi_cli.models import draw as draws
from hsivi_cli.models.draw import (
    LARGEST_BATCH,
    batch_that_fits,
    chain_digest,
    draw,
    fitting,
    noise_of,
    seed_noise,
    shard_of,
    solver_sampler,
    student_sampler,
)
from hsivi_cli.models.loading import load_teacher
from hsivi_cli.models.spacings import SOLVERS
from hsivi_cli.models.student import load_student


@pytest.fixture
def teacher(save_teacher):
    """Predicting x0, a random network draws grey levels, not saturated pixels."""
    from diffusers import DDPMScheduler

    folder = save_teacher(scheduler=DDPMScheduler(prediction_type="sample"), **TINY)
    return load_teacher(str(folder))


def counted(sampler):
    """The sampler, and the batch sizes of the calls that its network will have seen."""
    seen = []

    def network(x, *rest):
        seen.append(len(x))
        return sampler.network(x, *rest)

    return replace(sampler, network=network), seen


def noisy(teacher, nfe=3):
    """A sampler that adds noise at every layer but the last."""
    sampler = solver_sampler(teacher, "ddim", nfe)
    return replace(sampler, chain=with_noise_share(sampler.chain, 0.5))


def all_of(sampler, seeds, batch_size, **more):
    return torch.cat(list(draw(sampler, seeds, batch_size, "cpu", **more)))


@pytest.mark.parametrize("family", SOLVERS)
@pytest.mark.parametrize("nfe", [1, 3, 5])
def test_a_solver_makes_exactly_nfe_calls_an_image(teacher, family, nfe):
    sampler, seen = counted(solver_sampler(teacher, family, nfe))
    assert all_of(sampler, range(5), 5).shape == (5, 8, 8, 1)
    assert seen == [5] * nfe and sampler.nfe == nfe


@pytest.mark.parametrize(
    "options",
    ["", "--noise-share 0.3", "--noise-share 0", "--start deis --noise-share 0 --nfe 4", "--nfe 1"],
)
def test_a_student_makes_exactly_nfe_calls_an_image(save_teacher, tmp_path, options):
    train(save_teacher(**TINY), tmp_path / "run", "--steps", 0, *options.split())
    sampler, seen = counted(student_sampler(load_student(tmp_path / "run")))
    list(draw(sampler, range(6), 3, "cpu"))
    assert seen == [3] * 2 * sampler.nfe
    assert sampler.nfe == {"--nfe 1": 1}.get(options, 4 if "4" in options else 2)


def test_a_chain_of_top_sd_one_has_the_digest_of_before_there_were_others(teacher):
    sampler = noisy(teacher)
    chain = sampler.chain
    parts = (chain.time, chain.alpha_bar, chain.cx, chain.ce, chain.s0, sampler.log_scale)
    assert chain_digest(sampler) == digest(*parts)
    wide = replace(sampler, chain=replace(chain, top_sd=torch.tensor(1.1).double()))
    assert chain_digest(wide) != chain_digest(sampler)


def test_every_image_is_computed_at_the_same_batch_shape(teacher):
    sampler, seen = counted(noisy(teacher))
    images = all_of(sampler, range(10), 4)
    assert len(images) == 10 and set(seen) == {4}
    assert torch.equal(all_of(noisy(teacher), [8, 9], 4), images[8:])  # bit for bit, place or not
    assert torch.equal(all_of(noisy(teacher), [9, 2, 8], 4), images[[9, 2, 8]])


def test_seeds_decide_images_not_their_order_nor_how_many(teacher):
    sampler = noisy(teacher)
    images = all_of(sampler, range(6), 6)
    assert torch.equal(all_of(sampler, [4, 1, 0, 5, 2, 3], 6), images[[4, 1, 0, 5, 2, 3]])
    assert len({image.numpy().tobytes() for image in images}) == 6


def test_another_batch_size_changes_at_most_a_grey_level_in_a_thousandth_of_pixels(teacher):
    sampler = noisy(teacher)
    one = all_of(sampler, range(48), 48).int()
    for size in (1, 7, 32):
        difference = (all_of(sampler, range(48), size).int() - one).abs()
        assert difference.max() <= 1 and (difference > 0).float().mean() < 1e-3


def test_samplers_of_all_lengths_share_x_k_seed_by_seed(teacher):
    starts = []
    for nfe in (1, 2, 5):
        sampler = solver_sampler(teacher, "dpm++2", nfe)
        seen = []

        def first(x, *rest, seen=seen, sampler=sampler):
            seen.append(x)
            return sampler.network(x, *rest)

        all_of(replace(sampler, network=first), [3, 4], 2)
        starts.append(seen[0])
    assert torch.equal(starts[0], starts[1]) and torch.equal(starts[0], starts[2])
    assert torch.equal(seed_noise(3, 1, (1, 8, 8), None)[0], starts[0][:1])


def test_noises_of_a_seed_are_independent_standard_normal():
    drawn = [seed_noise(seed, 3, (1, 8, 8), 10) for seed in range(400)]
    noise = torch.stack([torch.cat([x, *noises]) for x, _, noises in drawn])  # [400, 3, ...]
    assert noise.mean().abs() < 0.02 and (noise.std() - 1).abs() < 0.02  # 5 standard errors
    flat = noise.transpose(0, 1).flatten(1)
    assert (torch.corrcoef(flat) - torch.eye(3)).abs().max() < 0.04
    assert {label.item() for _, label, _ in drawn} == set(range(10))


def test_seeds_that_differ_above_32_bits_draw_other_images(teacher):
    low = torch.cat([seed_noise(5, 3, (1, 8, 8), 10)[0], *seed_noise(5, 3, (1, 8, 8), 10)[2]])
    rng = torch.Generator().manual_seed(5)
    x = torch.randn(1, 8, 8, generator=rng)
    torch.randint(10, (), generator=rng)
    told = [x, *(torch.randn(1, 8, 8, generator=rng) for _ in range(2))]
    assert torch.equal(low, torch.stack(told))  # below 2^32 as ever
    seeds = [5, 6, *(2**32 * high + seed for high in (1, 2, 2**29) for seed in (5, 6))]
    images = all_of(noisy(teacher), seeds, len(seeds))
    assert len({image.numpy().tobytes() for image in images}) == len(seeds)
    assert torch.equal(all_of(noisy(teacher), seeds[::-1], len(seeds)), images.flip(0))


def test_noises_of_seeds_above_32_bits_are_independent_standard_normal_too():
    first = 2**32 + 7
    drawn = [seed_noise(seed, 3, (1, 8, 8), 10) for seed in range(first, first + 400)]
    noise = torch.stack([torch.cat([x, *noises]) for x, _, noises in drawn])  # [400, 3, ...]
    low = torch.stack([seed_noise(seed, 1, (1, 8, 8), 10)[0] for seed in range(7, 407)])
    assert noise.mean().abs() < 0.02 and (noise.std() - 1).abs() < 0.02  # 5 standard errors
    flat = torch.cat([noise, low], 1).transpose(0, 1).flatten(1)
    assert (torch.corrcoef(flat) - torch.eye(4)).abs().max() < 0.04
    assert {label.item() for _, label, _ in drawn} == set(range(10))


def test_labels_are_each_seeds_own_unless_given(save_teacher):
    teacher = load_teacher(str(save_teacher(num_class_embeds=3, **TINY)))
    sampler, told = solver_sampler(teacher, "ddim", 2), []

    def network(x, time, labels, alpha_bar):
        told.append(labels.tolist())
        return sampler.network(x, time, labels, alpha_bar)

    spied = replace(sampler, network=network)
    own = [seed_noise(seed, 2, (1, 8, 8), 3)[1].item() for seed in range(5)]
    all_of(spied, range(5), 3)
    assert told == [own[:3], own[:3], [own[3], own[4], own[4]], [own[3], own[4], own[4]]]
    told.clear()
    all_of(spied, range(2), 2, labels=[2, 1])
    assert told == [[2, 1]] * 2


def test_labels_that_do_not_exist_are_refused(save_teacher, teacher):
    with pytest.raises(HsiviError, match="has no labels"):
        all_of(solver_sampler(teacher, "ddim", 1), [0], 1, labels=[0])
    classes = load_teacher(str(save_teacher(folder="classes", num_class_embeds=3, **TINY)))
    for label in (-1, 3):
        with pytest.raises(HsiviError, match=r"0\.\.2"):
            all_of(solver_sampler(classes, "ddim", 1), [0], 1, labels=[label])


def test_nothing_global_decides_or_is_changed(teacher):
    sampler = noisy(teacher)
    torch.manual_seed(1)
    first = all_of(sampler, range(3), 3)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    assert torch.equal(all_of(sampler, range(3), 3), first)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_runs_images_are_its_students(save_teacher, tmp_path):
    train(save_teacher(**TINY), tmp_path / "run", "--steps", 0)
    sampler, seen = counted(student_sampler(load_student(tmp_path / "run")))
    size, batches = shard_of(sampler, range(5), 256, "cpu")
    ours = torch.cat(list(batches))
    assert size == 5 and seen == [5, 5]
    seen.clear()
    assert torch.equal(all_of(sampler, range(5), 5), ours) and seen == [5, 5]


def test_many_calls_of_large_images_are_drawn_few_at_once(teacher, monkeypatch):
    """Where nobody says how many: their noises would take more memory than there is."""
    sampler = noisy(teacher)
    image = 4 * sampler.nfe * math.prod(sampler.shape)
    expected = all_of(sampler, range(5), 2)
    monkeypatch.setattr(draws, "NOISE", 3 * image - 1)
    size, batches = shard_of(sampler, range(5), None, torch.device("cpu"))
    assert size == 2 and torch.equal(torch.cat(list(batches)), expected)
    assert batch_that_fits(sampler, torch.device("cpu")) == 2  # which `sample` asks
    assert shard_of(sampler, range(5), 4, torch.device("cpu"))[0] == 4


def test_a_network_that_yields_nan_is_named_not_drawn(teacher):
    broken = replace(noisy(teacher), network=lambda x, *rest: x * float("nan"))
    with pytest.raises(HsiviError, match="NaN"):
        all_of(broken, range(2), 2)


@pytest.mark.parametrize("shape", [(1, 4, 4), (3, 5, 7)])  # sixteens, and not
@pytest.mark.parametrize("classes", [None, 10])
@pytest.mark.parametrize("threads", [1, 3])
def test_the_noise_of_many_seeds_is_that_of_each(shape, classes, threads):
    seeds = [0, 7, 2**32 - 1, 2**32 + 7]
    noise, labels = noise_of(seeds, 3, shape, classes, threads=threads)
    for i, seed in enumerate(seeds):
        x, label, rest = seed_noise(seed, 3, shape, classes)
        assert torch.equal(noise[i], torch.cat([x, *rest]))
        assert labels is None if label is None else labels[i] == label


@pytest.mark.parametrize(
    ("each", "free", "size"),
    [(2**20, 2**40, LARGEST_BATCH), (2**30, 80 * 2**30, 32), (2**30, 2**30, 1), (2**40, 0, 1)],
)
def test_as_many_images_are_drawn_at_once_as_fit_with_room_to_spare(each, free, size):
    assert fitting(each, free) == size
    assert size == 1 or size * each < 0.75 * free
