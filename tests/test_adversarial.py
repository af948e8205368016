"""The adversarial term: its losses and gradients, what the discriminator sees, when it takes part,
and what `hsivi train --data` leaves and refuses.
"""

import json
import math
from dataclasses import replace
from itertools import pairwise

import diffusers
import numpy as np
import pytest
import torch
from command import QUICK, TINY, hsivi, refusal, rows, train
from conftest import gauss_hermite, linear_table
from torch.nn.functional import binary_cross_entropy_with_logits as cross_entropy

from hsivi_cli.config import TrainConfig
from hsivi_cli.files.images import image_png, save_npz
from hsivi_cli.method import distill
from hsivi_cli.method.chain import with_noise_share
from hsivi_cli.method.distill import fake_score_update, play_round, roll_out, student_update
from hsivi_cli.method.draws import draw_batch, draw_start
from hsivi_cli.method.losses import adversarial_loss, discriminator_loss
from hsivi_cli.method.lowered import Lowered
from hsivi_cli.method.networks import Discriminator, RealImages, make_networks
from hsivi_cli.method.schedule import add_noise, over
from hsivi_cli.method.solvers import ddim_chain
from hsivi_cli.method.steps import Shard, joins, update
from hsivi_cli.metrics import real
from hsivi_cli.models.discriminator import decode, encode
from hsivi_cli.models.student import load_student

CONFIG = TrainConfig(
    nfe="2", batch_size=4, fake_updates=1, fake_warmup=2, steps=4, objective="score-matching",
    a=1.0, weight="flat", fake_weight="sigma2", student_rate=1e-3, fake_rate=1e-3, rate_warmup=1,
    adversarial=0.3, fake_adversarial=0.7, data="some", adversarial_after=8, clip=1e9, seed=5,
)  # fmt: skip
TIMES = [0, 300, 650]


def real_images(count=6, labels=None, mirrored=False):
    images = torch.randint(256, (count, 1, 8, 8), dtype=torch.uint8,
                           generator=torch.Generator().manual_seed(1))  # fmt: skip
    return RealImages(count, lambda place: images[place], labels, mirrored)


def as_network(unet):
    """A UNet as an eps network in its own precision."""
    return lambda x, time, labels, alpha_bar: decode(unet, encode(unet, x, time, labels), time)


def make(tiny_unet, config=CONFIG, images=None, share=1.0, labels=None, double=True, shard=None):
    """Networks of a small UNet: all three differ a little, so that no gap is zero."""
    kind = {"num_class_embeds": labels} if labels else {}
    kind["block_out_channels"] = (8, 8)
    student, fake, teacher = (tiny_unet(seed=seed, **kind) for seed in (1, 2, 3))
    for unet in (student, fake, teacher):
        unet.double() if double else unet.float()
    teacher.requires_grad_(False)

    def both(x, time, heard, alpha_bar):
        encoded = encode(fake, x, time, heard)
        return decode(fake, encoded, time), encoded.logits

    def logits(x, time, heard):
        return encode(fake, x, time, heard).logits

    table = linear_table()
    networks = make_networks(
        config,
        [with_noise_share(ddim_chain(TIMES, table[TIMES]), share)],
        student=student,
        fake_score=fake,
        network=lambda module: (as_network(module), Lowered()),
        teacher_eps=as_network(teacher),
        table=table,
        shape=(1, 8, 8),
        label_count=labels,
        shard=shard,
        discriminator=Discriminator(both, logits, images or real_images()),
    )
    networks.log_scale.data = networks.log_scale.to(next(student.parameters()).dtype)
    return networks


def drawn(networks, config=CONFIG, purpose="fake score"):
    """A pool and a batch of a round in float64."""
    x, noise, labels = draw_start(networks, config, 0, [1, 2])
    start = x.double(), [n.double() for n in noise], labels
    batch = draw_batch(networks, config, 0, purpose, 0, [1, 2])
    pool = roll_out(networks, config, 0, [1, 2], start)
    return pool, replace(batch, noise=batch.noise.double())


# ---- losses --------------------------------------------------------------------------------------


def test_both_losses_are_cross_entropies_and_their_gradients_what_a_sigmoid_says():
    rng = torch.Generator().manual_seed(0)
    real, fake = (torch.randn(3, 1, 2, 2, generator=rng).double().mul(4).requires_grad_()
                  for _ in range(2))  # fmt: skip
    ones, zeros = torch.ones_like(real), torch.zeros_like(real)
    told = discriminator_loss(real, fake)
    expected = (
        cross_entropy(real, ones, reduction="none") + cross_entropy(fake, zeros, reduction="none")
    ).mean((1, 2, 3)) / 2
    torch.testing.assert_close(told, expected)
    of_real, of_fake = torch.autograd.grad(told.sum(), (real, fake))
    torch.testing.assert_close(of_real, (real.sigmoid() - 1) / 8)  # 4 places, two halves
    torch.testing.assert_close(of_fake, fake.sigmoid() / 8)
    passed = adversarial_loss(fake)
    torch.testing.assert_close(passed, cross_entropy(fake, ones, reduction="none").mean((1, 2, 3)))
    (of_fake,) = torch.autograd.grad(passed.sum(), fake)
    torch.testing.assert_close(of_fake, (fake.sigmoid() - 1) / 4)


def test_the_student_learns_nothing_from_logits_beyond_ten():
    logits = torch.tensor([-30.0, -10.5, -9.5, 9.5, 10.5]).double().reshape(5, 1, 1, 1)
    logits.requires_grad_()
    losses = adversarial_loss(logits)
    torch.testing.assert_close(losses[0].item(), math.log1p(math.exp(10)))
    (slope,) = torch.autograd.grad(losses.sum(), logits)
    assert (slope.flatten() != 0).tolist() == [False, False, True, True, False]


def test_the_best_discriminator_is_the_log_ratio_of_the_densities():
    """Of N(1, 1) real and N(-1, 1) drawn that is 2x: there the gradient is 0, elsewhere not."""
    node, weight = gauss_hermite(64)  # a sigmoid's poles are at i pi: 1e-9

    def slope(scale):
        scale = torch.tensor(scale, dtype=torch.float64, requires_grad=True)
        real, fake = (scale * (node + mean)[..., None, None] for mean in (1, -1))
        (found,) = torch.autograd.grad(weight @ discriminator_loss(real, fake), scale)
        return found.item()

    assert abs(slope(2.0)) < 1e-6 < 1e-2 < min(-slope(1.0), slope(4.0))


# ---- one pass for score and logits ---------------------------------------------------------------

KINDS = {
    "plain": {},
    "classes": {"num_class_embeds": 3},
    "skips": {
        "in_channels": 3,
        "out_channels": 3,
        "down_block_types": ("SkipDownBlock2D", "AttnSkipDownBlock2D"),
        "up_block_types": ("AttnSkipUpBlock2D", "SkipUpBlock2D"),
        "block_out_channels": (32, 64),
        "time_embedding_type": "fourier",
        "norm_num_groups": 8,
    },
    "learned": {"time_embedding_type": "learned", "num_train_timesteps": 1000},
    "centred": {"center_input_sample": True, "add_attention": False},
    "no middle": {"mid_block_type": None},
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_two_halves_of_a_pass_are_the_whole(tiny_unet, kind):
    unet, middle = tiny_unet(**KINDS[kind]), []
    block = unet.mid_block if unet.mid_block is not None else unet.down_blocks[-1]
    block.register_forward_hook(lambda module, given, out: middle.append(out))
    x, times = torch.randn(3, unet.config.in_channels, 8, 8), torch.tensor([3.0, 400.0, 999.0])
    labels = torch.tensor([0, 2, 1]) if kind == "classes" else None
    heard = times.long() if kind == "learned" else times
    with torch.no_grad():
        whole = unet(x, heard, class_labels=labels).sample
        encoded = encode(unet, x, times, labels)
        assert torch.equal(decode(unet, encoded, times), whole)
    out = middle[0][0] if isinstance(middle[0], tuple) else middle[0]
    assert torch.equal(encoded.logits, out.mean(1, keepdim=True))


# ---- gradients -----------------------------------------------------------------------------------


def gradients(monkeypatch, module, make_update):
    """Loss parts of an update, and the gradient that it would step by."""
    kept = []

    def look(optimizer, clip, shard, masked):
        kept[:] = (p.grad.clone() for p in module.parameters())
        optimizer.zero_grad()
        return torch.zeros(())

    monkeypatch.setattr(distill, "update", look)
    found = make_update()
    return found, list(kept)


def slope_along(module, value, size=1e-6):
    """A direction in a module's weights, and the central difference of value() along it."""
    rng = torch.Generator().manual_seed(3)
    way = [torch.randn(p.shape, generator=rng).double() for p in module.parameters()]
    ends = []
    for sign in (1, -1):
        with torch.no_grad():
            for p, step in zip(module.parameters(), way, strict=True):
                p.add_(sign * size * step)
            ends.append(value().item())
            for p, step in zip(module.parameters(), way, strict=True):
                p.sub_(sign * size * step)
    return way, (ends[0] - ends[1]) / (2 * size)


def along(gradient, way):
    return sum((g * w).sum() for g, w in zip(gradient, way, strict=True)).item()


def test_the_fake_scores_gradient_is_that_of_both_its_losses(tiny_unet, monkeypatch):
    """By finite differences of the sum written anew; the level weighs both alike."""
    networks = make(tiny_unet)
    pool, batch = drawn(networks)
    found, gradient = gradients(
        monkeypatch, networks.fake_score,
        lambda: fake_score_update(networks, CONFIG, pool, batch),
    )  # fmt: skip
    alpha_bar = networks.table[batch.tau]
    weight = (1 - alpha_bar).float()  # sigma2, of which losses take that precision
    x0 = pool.mean[batch.layer - 1, batch.sample] / over(
        networks.chains[0].alpha_bar[batch.layer - 1].sqrt(), batch.noise
    )  # of full re-noising the mean is the clean sample, scaled
    x = add_noise(x0, batch.noise, alpha_bar)
    real = add_noise(batch.real.double() / 127.5 - 1, batch.noise, alpha_bar)

    def parts():
        eps = networks.fake_score(x, batch.tau).sample
        score = (weight * (eps - batch.noise).square().mean((1, 2, 3))).mean()
        return score, discriminator_loss(
            *(encode(networks.fake_score, t, batch.tau, None).logits for t in (real, x))
        )

    def value():
        score, told = parts()
        return score + 0.7 * (weight * told).mean()

    way, expected = slope_along(networks.fake_score, value)
    assert along(gradient, way) == pytest.approx(expected, rel=1e-6)
    score, told = parts()
    assert found[0].item() == pytest.approx(score.item(), rel=1e-9)
    assert found[1].item() == pytest.approx(told.mean().item(), rel=1e-9)
    apart = [p.clone() for p in networks.student.parameters()]
    assert all(map(torch.equal, apart, networks.student.parameters()))


@pytest.mark.parametrize("objective", ["score-matching", "reverse-kl"])
def test_the_students_gradient_is_that_of_its_shares_of_both_losses(
    tiny_unet, monkeypatch, objective
):
    """By finite differences: of the losses as returned where they are functions of the weights, and
    of reverse KL, whose gap is held, of the term alone.
    """
    config = replace(CONFIG, objective=objective)
    networks = make(tiny_unet)
    pool, batch = drawn(networks, config, "student")
    share = 0.3

    def losses(share=share):
        return student_update(networks, config, pool, batch, share)[:2]

    _, gradient = gradients(monkeypatch, networks.student, losses)
    assert all(p.grad is None for p in networks.fake_score.parameters())
    if objective == "reverse-kl":  # less what the scores alone give
        _, alone = gradients(monkeypatch, networks.student, lambda: losses(0.0))
        gradient = [g - (1 - share) * own for g, own in zip(gradient, alone, strict=True)]

    def value():
        with torch.enable_grad():
            score, term = losses()
        networks.student.zero_grad()
        return share * term + (0 if objective == "reverse-kl" else (1 - share) * score)

    way, expected = slope_along(networks.student, value)
    assert along(gradient, way) == pytest.approx(expected, rel=1e-5)


def test_the_term_has_sids_normaliser_of_each_image(tiny_unet, monkeypatch):
    config = replace(CONFIG, weight="sid")
    networks = make(tiny_unet)
    pool, batch = drawn(networks, config, "student")
    (_, term, *_), _ = gradients(
        monkeypatch, networks.student, lambda: student_update(networks, config, pool, batch, 0.5)
    )
    chain, alpha_bar = networks.chains[0], networks.table[batch.tau]
    with torch.no_grad():
        x_k, level = pool.x[batch.layer - 1, batch.sample], chain.alpha_bar[batch.layer]
        eps = networks.student(x_k, chain.time[batch.layer]).sample
        x0 = (x_k - over((1 - level).sqrt(), x_k) * eps) / over(level.sqrt(), x_k)
        x = add_noise(x0, batch.noise, alpha_bar)
        teacher_eps = networks.teacher_eps(x, batch.tau, None, None)
        clean = (x - over((1 - alpha_bar).sqrt(), x) * teacher_eps) / over(alpha_bar.sqrt(), x)
        logits = encode(networks.fake_score, x, batch.tau, None).logits
        size = (x0 - clean).abs().mean((1, 2, 3))
        each = cross_entropy(logits, torch.ones_like(logits), reduction="none").mean((1, 2, 3))
    # levels pass through float32 on their way to the student
    assert term.item() == pytest.approx((each / size).mean().item(), rel=1e-5)


def test_elements_of_a_gradient_that_are_not_finite_become_0():
    module = torch.nn.Linear(3, 1, bias=False)
    before, optimizer = module.weight.detach().clone(), torch.optim.SGD(module.parameters(), lr=1)
    module.weight.grad = torch.tensor([[math.nan, math.inf, 0.5]])
    norm = update(optimizer, 1e9, Shard(), masked=True)
    assert norm == 0.5
    assert (before - module.weight)[0].tolist() == pytest.approx([0, 0, 0.5])


# ---- what is real --------------------------------------------------------------------------------


@pytest.mark.parametrize("accumulate", [1, 3])
def test_real_images_have_the_noises_levels_and_layers_of_what_is_drawn(tiny_unet, accumulate):
    """The fake score is told its layer here, and real images their own class of that layer."""
    labels = torch.tensor([2, 0, 1, 1, 2, 0])
    config = replace(CONFIG, fake_score="told", accumulate=accumulate)
    networks = make(tiny_unet, config, real_images(6, labels), labels=3)
    networks.fake_score.class_embedding = torch.nn.Embedding(6, 32).double()
    networks.fake_optimizer = torch.optim.SGD(networks.fake_score.parameters(), lr=0.0)
    pool, batch = drawn(networks, config)
    seen, inner = [], networks.discriminator

    def both(x, time, heard, alpha_bar):
        seen.append([x, time, heard])
        return inner.both(x, time, heard, alpha_bar)

    def logits(x, time, heard):
        seen[-1] += [x, time, heard]
        return inner.logits(x, time, heard)

    networks.discriminator = replace(inner, both=both, logits=logits)
    fake_score_update(networks, config, pool, batch)
    assert len(seen) == accumulate
    x, time, heard, real, real_time, real_heard = (torch.cat(t) for t in zip(*seen, strict=True))
    assert torch.equal(time, batch.tau) and torch.equal(real_time, batch.tau)
    alpha_bar = networks.table[batch.tau]
    mean = pool.mean[batch.layer - 1, batch.sample]
    start = networks.chains[0].alpha_bar[batch.layer - 1]
    clean = over(alpha_bar.sqrt(), x)
    noise = x - clean * mean / over(start.sqrt(), x)
    x0 = batch.real.double() / 127.5 - 1
    torch.testing.assert_close(real - clean * x0, noise)
    assert torch.equal(heard // 3, batch.layer - 1) and torch.equal(real_heard // 3, heard // 3)
    assert torch.equal(real_heard % 3, batch.real_labels)
    assert torch.equal(heard % 3, pool.labels[batch.sample])


def test_real_images_are_a_function_of_seed_round_and_update_and_half_of_them_mirrored(tiny_unet):
    config = replace(CONFIG, batch_size=400)
    images = real_images(50, torch.arange(50))
    networks = make(tiny_unet, config, replace(images, mirrored=True))
    one, other = (draw_batch(networks, config, 3, "fake score", 1, [1, 2]) for _ in range(2))
    assert torch.equal(one.real, other.real) and torch.equal(one.real_labels, other.real_labels)
    for key in ((4, "fake score", 1), (3, "fake score", 0)):
        assert not torch.equal(draw_batch(networks, config, *key, [1, 2]).real, one.real)
    given = images.read(one.real_labels)
    turned = [torch.equal(a, b.flip(2)) for a, b in zip(one.real, given, strict=True)]
    as_is = [torch.equal(a, b) for a, b in zip(one.real, given, strict=True)]
    assert all(a != b for a, b in zip(turned, as_is, strict=True))
    assert 150 < sum(turned) < 250  # five sd
    assert len(one.real_labels.unique()) == 50  # 400 of 50: one is missed once in 70
    assert draw_batch(networks, config, 3, "student", 1, [1, 2]).real is None


def test_processes_deal_out_the_real_images_of_a_batch(tiny_unet):
    config = replace(CONFIG, batch_size=8)
    images = real_images(6, torch.arange(6), mirrored=True)
    whole = draw_batch(make(tiny_unet, config, images), config, 0, "fake score", 0, [1, 2])
    for rank in range(2):
        part = make(tiny_unet, config, images, shard=Shard(rank, 2))
        mine = draw_batch(part, config, 0, "fake score", 0, [1, 2])
        assert torch.equal(mine.real, whole.real[rank::2])
        assert torch.equal(mine.real_labels, whole.real_labels[rank::2])


# ---- the schedule --------------------------------------------------------------------------------


def test_the_term_joins_in_once_the_student_has_learned_from_as_many_images():
    config = replace(CONFIG, batch_size=32, adversarial_after=100)
    assert [joins(config, step) for step in range(6)] == [False] * 4 + [True] * 2
    assert joins(replace(config, adversarial_after=0), 0)
    assert not joins(replace(config, adversarial=0.0, data=None), 50)


def test_first_the_discriminator_then_the_scores_alone_then_both(tiny_unet):
    """Two rounds of warm-up, two steps on the scores (8 images), two on both."""

    def weights(module):
        return torch.cat([p.detach().flatten() for p in module.parameters()])

    found = {}
    for share in (0.3, 0.9):
        config = replace(CONFIG, adversarial=share)
        networks = make(tiny_unet, config, double=False)
        trail = [weights(networks.student)]
        found[share] = trail, [], [weights(networks.fake_score)]
        for round_ in range(6):
            found[share][1].append(play_round(networks, config, round_))
            trail.append(weights(networks.student))
            found[share][2].append(weights(networks.fake_score))
    trail, measured, fake = found[0.3]
    names = [{"loss", "discriminator_loss", "adversarial_loss"} & row.keys() for row in measured]
    assert names[:2] == [{"discriminator_loss"}] * 2
    assert names[2:4] == [{"loss", "discriminator_loss"}] * 2
    assert names[4:] == [{"loss", "discriminator_loss", "adversarial_loss"}] * 2
    moved = [not torch.equal(a, b) for a, b in pairwise(trail)]
    assert moved == [False] * 2 + [True] * 4
    assert all(not torch.equal(a, b) for a, b in pairwise(fake))
    others = found[0.9][0]
    same = [torch.equal(a, b) for a, b in zip(trail, others, strict=True)]
    assert same == [True] * 5 + [False] * 2  # the share counts from the third step on
    assert all(math.isfinite(v) for row in measured for v in row.values())


# ---- hsivi train --data --------------------------------------------------------------------------

TERM = ("--adversarial", 0.5, "--adversarial-after", 8, "--flip")


@pytest.fixture(scope="module")
def teacher(tiny_unet, tmp_path_factory):
    folder = tmp_path_factory.mktemp("teacher")
    scheduler = diffusers.DDPMScheduler()
    diffusers.DDPMPipeline(unet=tiny_unet(**TINY), scheduler=scheduler).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def classes(tiny_unet, tmp_path_factory):
    """A teacher of three classes."""
    folder = tmp_path_factory.mktemp("classes")
    unet = tiny_unet(num_class_embeds=3, **TINY)
    pipeline = diffusers.DDPMPipeline(unet=unet, scheduler=diffusers.DDPMScheduler())
    pipeline.save_pretrained(folder)
    return folder


def grey(count=9, size=8):
    rng = torch.Generator().manual_seed(2)
    return torch.randint(256, (count, size, size, 1), dtype=torch.uint8, generator=rng)


def labelled(path, labels, count=9):
    np.savez(path, images=grey(count).numpy(), labels=np.array(labels))
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    file = tmp_path_factory.mktemp("data") / "grey.npz"
    save_npz(grey(), file)
    return file


def learned(out):
    names = ("unet/diffusion_pytorch_model.safetensors", "metrics.jsonl")
    return [(out / name).read_bytes() for name in names]


@pytest.mark.parametrize("kind", ["one", "told"])
def test_a_run_broken_off_after_every_round_ends_bit_for_bit_like_an_unbroken_one(
    teacher, classes, data, tmp_path, kind
):
    options = (*TERM, "--data", data, "--steps", 4)
    if kind == "told":  # a fake score that hears layer and class
        teacher = classes
        data = labelled(tmp_path / "labelled.npz", [0, 1, 2] * 3)
        options = (*options, "--data", data, "--fake-score", "told", "--nfe", "1,2")
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    train(teacher, whole, *options)
    for done in range(5):  # a round of warm-up and four steps
        train(teacher, broken, *options, "--minutes", 1e-9)
        assert load_student(broken).info["step"] == done
    assert learned(broken) == learned(whole)
    names = [row.keys() & {"adversarial_loss"} for row in rows(whole / "metrics.jsonl")]
    assert list(map(len, names)) == [0, 0, 1, 1]
    assert "discriminator_loss" in rows(whole / "metrics.jsonl")[0]


def test_a_folder_an_npz_and_a_data_set_of_the_same_images_train_alike(
    teacher, data, tmp_path, monkeypatch
):
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "notes.txt").write_text("no image")
    for i, image in enumerate(grey()):
        (folder / f"{i}.png").write_bytes(image_png(image))
    monkeypatch.setattr(real, "labelled_images", lambda name, root: (grey(), torch.zeros(9)))
    for name, source in (("a", data), ("b", folder), ("c", "mnist-train")):
        train(teacher, tmp_path / name, *TERM, "--data", source)
    assert learned(tmp_path / "a") == learned(tmp_path / "b") == learned(tmp_path / "c")


def test_a_folder_is_read_as_it_is_needed(teacher, tmp_path, monkeypatch):
    folder, most = tmp_path / "folder", []
    folder.mkdir()
    for i, image in enumerate(grey(40)):
        (folder / f"{i:02}.png").write_bytes(image_png(image))
    inner = real.read_images
    monkeypatch.setattr(real, "read_images", lambda files: most.append(len(files)) or inner(files))
    train(teacher, tmp_path / "run", *TERM, "--data", folder)
    assert set(most) == {4}  # a batch, of 40


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_activations_that_are_made_again_change_nothing(teacher, data, tmp_path, dtype):
    options = (*TERM, "--data", data, "--dtype", dtype)
    train(teacher, tmp_path / "a", *options)
    train(teacher, tmp_path / "b", *options, "--checkpoint-activations")
    assert learned(tmp_path / "a") == learned(tmp_path / "b")


def test_without_the_term_real_images_change_nothing(teacher, data, tmp_path):
    """Before the term joins in and with a discriminator of next to no weight, the student's first
    step is that of a training without data.
    """
    few = ("--steps", 1, "--fake-warmup", 0)
    train(teacher, tmp_path / "a", *few)
    train(teacher, tmp_path / "b", *few, *TERM, "--data", data, "--fake-adversarial", 1e-30)
    (one,), (other,) = (rows(tmp_path / name / "metrics.jsonl") for name in "ab")
    assert other.pop("discriminator_loss") > 0
    assert other == pytest.approx(one, rel=1e-4)


def test_the_preset_is_sid_with_the_term(data):
    told = json.loads(hsivi("train", "--preset", "sida", "--data", data, "--dry-run").stdout)
    sid = json.loads(hsivi("train", "--preset", "sid", "--dry-run").stdout)
    assert told.pop("data") == str(data) and told.pop("adversarial") == 0.5
    kept = {"objective", "a", "weight", "batch_size", "student_rate", "fake_rate", "fake_beta1"}
    assert {name: told[name] for name in kept} == {name: sid[name] for name in kept}
    assert told["fake_warmup"] * 256 == 102_400 and told["adversarial_after"] == 100_000
    half_life = -256 / math.log2(told["ema"])
    assert half_life == pytest.approx(500_000, rel=0.02)


def test_a_students_card_tells_of_its_data(teacher, data, tmp_path):
    train(teacher, tmp_path / "run", *TERM, "--data", data)
    card = (tmp_path / "run" / "README.md").read_text()
    assert "without data" not in card and str(data) in card


def test_images_that_are_not_the_teachers_are_refused_by_name(teacher, tmp_path):
    def refused(images, name="other.npz"):
        save_npz(images, tmp_path / name)
        told = refusal("train", teacher, "--out", tmp_path / "run", *QUICK, *TERM, "--data",
                       tmp_path / name)  # fmt: skip
        assert name in told and not (tmp_path / "run").exists()
        return told

    assert "9 x 9 grey" in (told := refused(grey(size=9))) and "8 x 8 grey" in told
    assert "8 x 8 RGB" in refused(grey().expand(-1, -1, -1, 3).contiguous())
    assert "3 images" in (told := refused(grey(3))) and "--batch-size" in told


@pytest.mark.parametrize("what", ["size", "mode", "broken", "cut", "empty"])
def test_a_folder_with_an_image_that_will_not_do_is_refused_by_the_files_name(
    teacher, tmp_path, what
):
    folder = tmp_path / "folder"
    folder.mkdir()
    for i, image in enumerate(grey(40)):
        if what != "empty":
            (folder / f"{i:02}.png").write_bytes(image_png(image))
    bad, whole = folder / "33.png", image_png(grey()[0])
    match what:
        case "size":
            bad.write_bytes(image_png(grey(1, 4)[0]))
        case "mode":
            bad.write_bytes(image_png(grey()[0].expand(-1, -1, 3)))
        case "broken":
            bad.write_bytes(b"no picture")
        case "cut":  # its header is whole: it is told when it is drawn
            for file in folder.iterdir():
                file.write_bytes(whole[: len(whole) // 2])
            bad = folder
    out = ("--out", tmp_path / "run")
    told = refusal("train", teacher, *out, *QUICK, *TERM, "--data", folder)
    assert str(folder if what == "empty" else bad) in told


def test_a_teacher_of_classes_wants_their_labels(classes, data, tmp_path):
    def refused(source):
        out = ("--out", tmp_path / "run")
        return refusal("train", classes, *out, *QUICK, *TERM, "--data", source)

    assert "no labels" in (told := refused(data)) and str(data) in told
    assert "8 labels for 9 images" in refused(labelled(tmp_path / "few.npz", [0] * 8))
    assert "classes 0 to 2" in refused(labelled(tmp_path / "three.npz", [0, 3, 1] * 3))
    assert "whole numbers" in refused(labelled(tmp_path / "float.npz", [0.5] * 9))


def test_what_holds_no_images_is_refused(teacher, tmp_path):
    np.savez(tmp_path / "stats.npz", mu=np.zeros(2), sigma=np.eye(2))
    both = tmp_path / "both"
    (both / "unet").mkdir(parents=True)
    (both / "0.png").write_bytes(image_png(grey()[0]))
    (tmp_path / "cut.npz").write_bytes(b"PK\3\4 no more")
    for source, words in (
        (tmp_path / "stats.npz", "statistics"),
        (teacher, "pipeline"),
        (both, "folder of its own"),
        (tmp_path / "cut.npz", "not a readable .npz"),
        (tmp_path / "nothing", "neither a file"),
    ):
        out = ("--out", tmp_path / "run")
        told = refusal("train", teacher, *out, *QUICK, *TERM, "--data", source)
        assert words in told and str(source) in told


def test_term_and_data_come_together(teacher, data, tmp_path):
    out = ("--out", tmp_path / "run")
    assert "--data" in refusal("train", teacher, *out, "--preset", "sida")
    assert "--preset sida" in refusal("train", teacher, *out, "--data", data)
    assert "--flip" in refusal("train", teacher, *out, "--flip")
    assert "--adversarial 1" in refusal("train", teacher, *out, "--adversarial", 1.0)


def test_a_run_does_not_go_on_with_other_images(teacher, data, tmp_path):
    train(teacher, tmp_path / "run", *TERM, "--data", data, "--minutes", 1e-9)
    other = tmp_path / "other.npz"
    save_npz(grey().flip(0), other)
    told = refusal("train", teacher, "--out", tmp_path / "run", *QUICK, *TERM, "--data", other)
    assert str(other) in told and "resume" in told
    moved = tmp_path / "moved.npz"
    save_npz(grey(), moved)
    train(teacher, tmp_path / "run", *TERM, "--data", moved)  # the same ones elsewhere
    train(teacher, tmp_path / "whole", *TERM, "--data", data)
    assert learned(tmp_path / "run") == learned(tmp_path / "whole")


def test_a_run_does_not_go_on_with_a_folder_to_which_images_have_come(teacher, tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    for i, image in enumerate(grey()):
        (folder / f"{i}.png").write_bytes(image_png(image))
    train(teacher, tmp_path / "run", *TERM, "--data", folder, "--minutes", 1e-9)
    (folder / "more.png").write_bytes(image_png(grey()[0]))
    told = refusal("train", teacher, "--out", tmp_path / "run", *QUICK, *TERM, "--data", folder)
    assert str(folder) in told and "other images" in told
