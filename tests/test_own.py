"""A teacher as its own judge: its features of images, and images of its own."""

import math
from dataclasses import replace

import pytest
import torch
from command import TINY, refusal, rows, train
from test_detectors import random_images

from hsivi_cli.config import TrainConfig
from hsivi_cli.files.images import to_images
from hsivi_cli.method.schedule import Clip
from hsivi_cli.metrics import own
from hsivi_cli.metrics.frechet import Moments, frechet_distance
from hsivi_cli.metrics.judge import OWN_FILE, make_judge
from hsivi_cli.metrics.own import OwnImages, own_detector, own_sampler, start_judge
from hsivi_cli.metrics.statistics import load_statistics, save_statistics
from hsivi_cli.models.draw import draw
from hsivi_cli.models.loading import load_teacher
from hsivi_cli.models.spacings import solver
from hsivi_cli.models.starts import images
from hsivi_cli.models.student import load_student


@pytest.fixture
def folder(save_teacher):
    return save_teacher(**TINY)


def test_features_are_the_middle_block_at_a_low_level_averaged_over_space(folder):
    teacher, images = load_teacher(str(folder)), random_images(5)
    detector = own_detector(teacher)
    x = images.permute(0, 3, 1, 2).float().div(127.5).sub(1) * teacher.table[20].sqrt().float()
    seen = []
    hook = teacher.unet.mid_block.register_forward_hook(lambda m, given, out: seen.append(out))
    teacher.unet(x, 20)
    hook.remove()
    assert torch.equal(detector.features(images), seen[0].mean((2, 3)))
    assert detector.feature_dim == detector.features(images).shape[1] == 8
    assert teacher.digest in detector.stamp and not teacher.unet.mid_block._forward_hooks


def test_a_teacher_with_classes_and_one_without_a_middle_block_have_features(save_teacher):
    for kind in ({"num_class_embeds": 3}, {"mid_block_type": None}):
        detector = own_detector(load_teacher(str(save_teacher(**kind, **TINY))))
        assert detector.features(random_images(4)).shape == (4, detector.feature_dim)


def test_own_images_are_of_many_calls_and_of_seeds_that_no_evaluation_has(folder):
    teacher = load_teacher(str(folder))
    sampler = own_sampler(teacher)
    assert sampler.nfe == own.OWN_CALLS and sampler.chain.time[-1] > 900
    assert (sampler.chain.s0[2:] > 0).all()  # noise forgets what a solver without would keep
    seeds = range(own.OWN_SEED, own.OWN_SEED + 3)
    drawn = torch.cat([*OwnImages(teacher).batches(3)])
    assert torch.equal(drawn, next(draw(sampler, seeds, own.START_IMAGES, "cpu")))


def spreads(teacher, images):
    """By block, the standard deviations over space of what it makes of images."""
    seen, unet = [], teacher.unet
    for block in (*unet.down_blocks, unet.mid_block, *unet.up_blocks):
        hook = block.register_forward_hook(lambda m, given, out: seen.append(out))
        x = (images.permute(0, 3, 1, 2) / 127.5 - 1) * teacher.table[20].sqrt().float()
        unet(x, 20)
        hook.remove()
    outs = [out[0] if isinstance(out, tuple) else out for out in seen]
    return [out.var((2, 3), correction=0).sqrt() for out in outs]


def test_a_start_is_judged_by_its_images_as_a_set(save_teacher, monkeypatch):
    monkeypatch.setattr(own, "START_IMAGES", 12)
    teacher = load_teacher(str(save_teacher()))
    chain = solver("ddim-leading", 2, teacher.scheduler, teacher.table)
    drawn = spreads(teacher, to_images(images(teacher, chain, 12)))
    wanted = spreads(teacher, torch.cat([*OwnImages(teacher, "unipc-auto").batches(12)]))
    assert len(wanted) == len(teacher.unet.down_blocks) * 2 + 1 == 5
    known = 0.0
    for a, b in zip(drawn, wanted, strict=True):
        a, b = ((x.double().mean(0), x.double().T.cov()) for x in (a, b))
        moments = [Moments(12, mean, cov) for mean, cov in (a, b)]
        known += frechet_distance(*moments) / b[1].trace().item()
    judge = start_judge(teacher)
    assert judge(chain) == pytest.approx(known, rel=1e-4)


def test_a_start_whose_images_lost_their_contrast_is_far(folder, monkeypatch):
    """Means over space tell nothing of it: they misled the choice on a rough colour teacher."""
    teacher, drawn = load_teacher(str(folder)), {}
    monkeypatch.setattr(own, "START_IMAGES", 64)
    monkeypatch.setattr(own, "images", lambda teacher, chain, count: drawn[chain])
    every = (
        torch.cat([*OwnImages(teacher, "unipc-auto").batches(128)]).permute(0, 3, 1, 2) / 127.5 - 1
    )
    drawn["others"] = every[64:]
    level = every[64:].mean((2, 3), keepdim=True)
    drawn["flat"] = level + 0.7 * (every[64:] - level)
    judge = start_judge(teacher)
    assert judge("flat") > 3 * judge("others")


def test_blocks_of_one_pixel_and_teachers_whose_images_are_all_alike_judge_starts(
    save_teacher, monkeypatch
):
    monkeypatch.setattr(own, "START_IMAGES", 6)
    teacher = load_teacher(str(save_teacher(sample_size=2)))
    chain = solver("ddim-leading", 2, teacher.scheduler, teacher.table)
    assert 0 < start_judge(teacher)(chain) < 1e6
    alike = torch.full((6, 2, 2, 1), 7, dtype=torch.uint8)
    monkeypatch.setattr(OwnImages, "batches", lambda *a: iter([alike]))
    assert math.isfinite(start_judge(teacher)(chain))


def judged(folder, out, *more):
    return train(folder, out, "--reference", "teacher", "--eval-count", 20, *more)


def test_a_training_without_data_is_judged_by_its_teacher_which_draws_once(
    folder, tmp_path, monkeypatch
):
    told = judged(folder, tmp_path / "x", "--minutes", 1e-9, "--steps", 3).stderr
    assert "start: distance" in told and "recall" in told and "(20 images)" in told
    kept = load_statistics(tmp_path / "x" / OWN_FILE)
    assert kept.moments.count == len(kept.features) == 20
    with monkeypatch.context() as context:
        context.setattr(OwnImages, "batches", None)
        judged(folder, tmp_path / "x", "--steps", 3)
    best = load_student(tmp_path / "x").info["best"]
    assert best["reference"] == "teacher" and "middle block" in best["detector"]
    assert rows(tmp_path / "x" / "evaluations.jsonl")[0]["round"] == 0


@pytest.mark.parametrize("damaged", [True, False])
def test_a_judge_whose_file_was_damaged_or_is_gone_is_the_same(
    save_teacher, tmp_path, monkeypatch, damaged
):
    monkeypatch.setattr(own, "START_IMAGES", 8)
    folder = save_teacher(**TINY)
    judged(folder, tmp_path / "x", "--start", "auto", "--noise-share", 0.2)
    file = tmp_path / "x" / OWN_FILE
    before = load_statistics(file)
    file.write_text("damaged") if damaged else file.unlink()
    judged(folder, tmp_path / "x", "--start", "auto", "--noise-share", 0.2)
    after = load_statistics(file)
    assert torch.equal(after.moments.cov, before.moments.cov)
    assert torch.equal(after.features, before.features)


@pytest.mark.parametrize("change", ["clip", "schedule", "level", "file"])
def test_images_of_a_teacher_that_was_another_are_drawn_anew(folder, tmp_path, change):
    teacher = load_teacher(str(folder))
    config, file = TrainConfig(eval_count=6), tmp_path / OWN_FILE
    judge = make_judge(config, OwnImages(teacher), tmp_path)
    save_statistics(file, judge.reference)
    again = make_judge(config, OwnImages(teacher), tmp_path)
    assert torch.equal(again.reference.moments.mean, load_statistics(file).moments.mean)
    if change == "file":  # as earlier versions wrote it
        save_statistics(file, replace(judge.reference, drawn_by=None, features=None))
    elif change == "clip":
        teacher = replace(teacher, clip=Clip(reach=0.1))
    elif change == "level":  # of the features alone, which no call of the images has
        table = teacher.table.clone()
        table[20] *= 0.99
        teacher = replace(teacher, table=table)
    else:
        changed = dict(teacher.scheduler.config) | {"beta_end": 0.015}
        scheduler = type(teacher.scheduler).from_config(changed)
        table = scheduler.alphas_cumprod.double()
        teacher = replace(teacher, scheduler=scheduler, table=table)
    own = OwnImages(teacher)
    found = make_judge(config, own, tmp_path).reference
    drawn = own_detector(teacher).features(next(own.batches(6)))
    assert torch.equal(found.features, drawn) and found.drawn_by == own.drawn_by
    same = torch.equal(found.moments.mean, judge.reference.moments.mean)
    assert same == (change == "file")


def test_too_few_images_for_a_recall_judge_by_distance_alone(folder, tmp_path):
    train(folder, tmp_path / "x", "--reference", "teacher", "--eval-count", 3)
    assert load_student(tmp_path / "x").info["best"]["recall"] is None


def test_another_count_of_images_is_drawn_anew(folder, tmp_path):
    judged(folder, tmp_path / "x")
    judged(folder, tmp_path / "x", "--eval-count", 24)
    assert load_statistics(tmp_path / "x" / OWN_FILE).moments.count == 24


def test_a_teacher_whose_images_are_all_alike_judges_nothing(folder, tmp_path, monkeypatch):
    alike = [torch.full((20, 8, 8, 1), 7, dtype=torch.uint8)]
    monkeypatch.setattr(OwnImages, "batches", lambda *a: iter(alike))
    command = ("train", folder, "--out", tmp_path / "x", "--nfe", 2, "--device", "cpu")
    told = refusal(*command, "--eval-count", 20, "--steps", 1, "--regress-steps", 0)
    assert "own images are all alike" in told and not (tmp_path / "x").exists()


def test_a_detector_goes_with_the_teachers_own_images(folder, tmp_path):
    from command import save_detector

    save_detector(tmp_path / "detector")
    teacher = load_teacher(str(folder))
    config = TrainConfig(detector=str(tmp_path / "detector"), eval_count=9)
    judge = make_judge(config, OwnImages(teacher), tmp_path)
    assert judge.detector.feature_dim == 6 and judge.reference.moments.count == 9
