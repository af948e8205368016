"""What a training keeps as its best."""

import pytest
import torch
from command import TINY, save_detector, train

from hsivi_cli.config import TrainConfig, settings_of
from hsivi_cli.files.images import save_npz
from hsivi_cli.method.steps import student_rate
from hsivi_cli.metrics import evaluation
from hsivi_cli.metrics.evaluation import TRUSTED, better, recall_of
from hsivi_cli.models.loading import load_teacher
from hsivi_cli.models.student import load_student

RULER = {"count": 9, "detector": "d", "moments": [1.0, 60.0, 3.0]}  # a variance of 60


def found(distance, recall=0.8, error=0.1, reference="teacher", moved=1.0, **more):
    told = {"distance": distance, "recall": recall, "error": error, "reference": reference}
    return told | {"moved": moved} | RULER | more


def test_of_data_the_least_distance_is_the_best_whatever_its_recall():
    start = better(found(5.0, reference="data"), None)
    assert better(found(4.99, 0.1, reference="data"), start)["distance"] == 4.99
    assert better(found(5.0, reference="data"), start) is None


def test_as_far_as_the_default_moves_a_student_has_to_keep_the_starts_recall_alone():
    start, near = better(found(5.0, moved=0.0), None), {"moved": TRUSTED}
    assert start["start"] == {"distance": 5.0, "recall": 0.8}
    kept = better(found(9.0, recall=0.71, **near), start)
    assert kept["distance"] == 9.0 and kept["start"] == start["start"]
    assert better(found(4.0, recall=0.7, **near), start) is None
    assert better(found(18.1, **near), start) is None  # of a variance of 60: it is lost
    far = better(found(20.0, moved=0.0), None)
    assert better(found(20.0, **near), far) and better(found(20.1, **near), far) is None


@pytest.mark.parametrize("steps", [90, 120, 199, 200])
def test_the_default_moves_a_student_as_far_in_fewer_steps(steps):
    for nfe in range(2, 11):
        default = TrainConfig(**settings_of({"nfe": str(nfe), "steps": steps}))
        moved = sum(student_rate(default, step) for step in range(steps))
        assert 0.9 * TRUSTED < moved <= TRUSTED


def test_what_moves_on_and_keeps_the_starts_recall_may_leave_the_teacher_a_little():
    start = better(found(2.0, moved=0.0), None)
    kept = better(found(5.9, recall=0.78), start)
    assert kept["distance"] == 5.9 and kept["start"] == start["start"]
    assert better(found(6.1), start) is None  # of a variance of 60: it is far
    assert better(found(5.9, recall=0.77), start) is None
    assert better(found(5.9, recall=None), start) is None
    far = better(found(20.0, moved=0.0), None)
    assert better(found(20.0), far) and better(found(20.1), far) is None


def test_what_began_far_away_and_collapses_is_not_kept():
    start = better(found(50.0, recall=0.0, moved=0.0), None)
    learnt = better(found(7.0, recall=0.7), start)
    assert learnt["distance"] == 7.0
    assert better(found(40.0, recall=0.7), learnt) is None
    assert better(found(6.9, recall=0.6), learnt) is None
    assert better(found(6.9, recall=0.69), learnt)["distance"] == 6.9


def test_what_moves_on_and_loses_recall_has_to_come_nearer_by_more_than_chance():
    kept = better(found(6.0, recall=0.79, moved=TRUSTED), better(found(5.0, moved=0.0), None))
    assert better(found(5.9, recall=0.77), kept) is None  # two sets of one sampler differ by .14
    assert better(found(5.8, recall=0.7), kept) is None  # of the start's recall, not its own
    assert better(found(5.8, recall=0.73), kept)["distance"] == 5.8
    assert better(found(5.8, recall=None), kept)["distance"] == 5.8


@pytest.mark.parametrize(
    ("rows", "kept"),
    [  # trainings of 2,000 and 800 steps: hundreds of steps, distance and recall
        ({0: (0.383, 0.93), 1: (0.228, 0.952), 5: (0.784, 0.948), 20: (1.128, 0.966)}, 20),  # x0
        ({0: (1.97, 0.926), 1: (3.0, 0.918), 2: (2.94, 0.87), 19: (4.73, 0.614)}, 1),  # colour
        ({0: (0.2, 0.962), 1: (1.03, 0.946), 2: (2.23, 0.94), 8: (4.31, 0.832)}, 1),  # a weak one
    ],
)
def test_over_two_thousand_steps_what_recalls_its_teacher_is_kept(rows, kept):
    """The last average of the first is nearer to the data than its default's student and recalls
    more; the last one's is twice as far as its start; colour's is nearer, which nothing tells.
    """
    variance, best = {20: 26.0, 19: 27.4, 8: 8.8}[max(rows)], None
    for step, (distance, recall) in rows.items():
        row = found(distance, recall, moved=step * 1e-3, step=step, moments=[1.0, variance, 3.0])
        best = better(row, best) or best
    assert best["step"] == kept


def test_steps_are_judged_from_what_regression_made_of_the_start():
    start = better(found(50.0, recall=0.1, moved=0.0), None)
    regressed = better(found(5.0, moved=0.0), start)
    assert regressed["start"] == {"distance": 5.0, "recall": 0.8}
    assert better(found(9.0, recall=0.7, moved=TRUSTED), regressed) is None
    assert better(found(51.0, moved=0.0), start) is None


def test_another_ruler_begins_anew_and_a_best_of_earlier_versions_has_no_start():
    start = better(found(5.0), None)
    other = better(found(9.0, count=10), start)
    assert other["distance"] == other["start"]["distance"] == 9.0
    old = {key: value for key, value in found(5.0).items() if key not in ("recall", "error")}
    assert better(found(4.99, recall=0.1), old)["distance"] == 4.99


def test_recall_is_of_as_many_as_the_student_has_and_none_without_features():
    features = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    assert recall_of(features, features) == 1.0 and recall_of(features + 99, features) == 0.0
    assert recall_of(None, features) is None and recall_of(features[:3], features) is None
    assert recall_of(torch.cat([features] * 3), features) == 1.0


@pytest.mark.parametrize("distances", [(3.0, 3.5, 4.0), (3.0, 2.0, 4.0)])
def test_no_student_is_exported_that_judges_worse_than_the_start(
    save_teacher, tmp_path, monkeypatch, distances
):
    teacher, falling = save_teacher(**TINY), iter(distances)
    monkeypatch.setattr(evaluation, "frechet_distance", lambda *a: next(falling))
    save_detector(tmp_path / "detector")
    save_npz(torch.randint(256, (9, 8, 8, 1), dtype=torch.uint8), tmp_path / "real.npz")
    judged = ("--reference", tmp_path / "real.npz", "--detector", tmp_path / "detector")
    options = ("--eval-count", 9, "--eval-every", 1, "--steps", 2)
    told = train(teacher, tmp_path / "x", *judged, *options).stderr
    best = distances.index(min(distances))
    student, untrained = load_student(tmp_path / "x"), load_teacher(str(teacher)).unet
    pairs = zip(student.model.unet.parameters(), untrained.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs) == (best == 0)
    assert ("no snapshot was judged better than the untrained start" in told) == (best == 0)
    assert student.info["best"]["step"] == best
    stays = ("start stays kept, distance 3.00", "step 1 stays kept, distance 2.00")[best]
    assert told.count("; kept\n") == 1 + (best == 1) and told.count(f"; {stays}\n") == 2 - best
    assert f"{('start', 'step 1')[best]} is kept, distance {min(distances):.2f}\n" in told


def test_what_is_kept_of_a_student_judged_by_its_teacher_is_told_so(
    save_teacher, tmp_path, monkeypatch
):
    """Within the trusted movement it need not be what is nearest."""
    distances = iter((1.97, 1.98, 1.99))
    monkeypatch.setattr(evaluation, "frechet_distance", lambda *a: next(distances))
    monkeypatch.setattr(evaluation, "KEPT", 0.0)
    monkeypatch.setattr(evaluation, "LOST", 1e9)
    options = ("--reference", "teacher", "--eval-count", 20, "--eval-every", 1)
    told = train(save_teacher(**TINY), tmp_path / "x", *options, "--student-rate", 1e-5).stderr
    lines = told.splitlines()
    for step, distance in (("start", 1.97), ("step 1", 1.98), ("step 2", 1.99)):
        line = next(line for line in lines if line.startswith(f"{step}: distance {distance}"))
        assert line.endswith("(20 images); kept")
    assert "; step 2 is kept, distance 1.99" in told and "best" not in told
    card = (tmp_path / "x" / "README.md").read_text()
    assert "at step 2, which this is, were at a Fréchet distance of 1.99 from the teacher's" in card
