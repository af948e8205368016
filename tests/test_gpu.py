"""What only a GPU shows: `python -m pytest -m gpu`, within a minute."""

import json
from dataclasses import replace

import diffusers
import pytest
import torch
from command import TINY, hsivi, load_bench, read_folder, save_detector

from hsivi_cli.config import TrainConfig
from hsivi_cli.files.capture import Captured
from hsivi_cli.files.images import save_npz
from hsivi_cli.method.distill import play_round
from hsivi_cli.method.networks import RealImages
from hsivi_cli.models.compiled import Compiled, forward, quick
from hsivi_cli.models.draw import draw, student_sampler
from hsivi_cli.models.loading import load_teacher
from hsivi_cli.models.networks import networks_of, training_tensors
from hsivi_cli.models.starts import make_chains
from hsivi_cli.models.student import load_student

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("default")]
CONFIG = TrainConfig(
    nfe="2", batch_size=8, fake_updates=2, fake_warmup=4, steps=20, rate_warmup=1, compile="off",
    student_rate=1e-3, fake_rate=1e-3,
)  # fmt: skip
ROUNDS = 7  # two of warm-up, five of steps: of each kind the first is not captured, the rest are


@pytest.fixture(scope="module")
def home(tiny_unet, tmp_path_factory):
    """A small colour teacher, a detector of its images and some images of its kind."""
    folder = tmp_path_factory.mktemp("gpu")
    unet = tiny_unet(in_channels=3, out_channels=3, **TINY)
    scheduler = diffusers.DDPMScheduler(prediction_type="sample")
    diffusers.DDPMPipeline(unet=unet, scheduler=scheduler).save_pretrained(folder / "teacher")
    save_detector(folder / "detector", channels=3)
    return folder


@pytest.fixture(scope="module")
def teacher(home):
    torch.set_float32_matmul_precision("high")
    return load_teacher(str(home / "teacher"), "cuda")


def made(teacher, config=CONFIG, forward=forward):
    images = None
    if config.adversarial:
        some = torch.arange(64 * 3 * 8 * 8).mul(37).remainder(256).byte().view(64, 3, 8, 8)
        images = RealImages(64, lambda place: some[place], mirrored=True)
    return networks_of(config, teacher, make_chains(config, teacher, {}), None, forward, images)


def played(networks, config=CONFIG, rounds=ROUNDS, forward=forward):
    """Measurements of rounds as `hsivi train` plays them."""
    with quick(networks, config, forward):
        return [play_round(networks, config, round_) for round_ in range(rounds)]


def assert_near(ours, theirs, networks, others, relative):
    for one, other in zip(ours, theirs, strict=True):
        assert one == pytest.approx(other, rel=relative, abs=relative)
    for module in ("student", "fake_score"):
        pair = (getattr(n, module).parameters() for n in (networks, others))
        for one, other in zip(*pair, strict=True):
            assert (one - other).norm() <= relative * (1 + other.norm())


def test_images_of_the_same_seeds_are_those_of_the_cpu():
    name, found = "embedded:students/4", []
    for device in ("cpu", "cuda"):
        sampler = student_sampler(load_student(name, device))
        found.append(torch.cat(list(draw(sampler, range(32), 32, device))).int())
    far = (found[0] - found[1]).abs() > 1
    assert far.double().mean() < 1e-3


@pytest.mark.parametrize("changes", [{}, {"nfe": "1,2"}, {"accumulate": 2, "regress_steps": 70},
                                     {"checkpoint_activations": True},
                                     {"adversarial": 0.5, "data": "some", "adversarial_after": 16},
                                     {"objective": "score-matching", "log_scale": "layer",
                                      "noise_share": "0.5", "optimizer": "amsgrad"}])  # fmt: skip
def test_captured_rounds_are_those_made_step_by_step(teacher, changes):
    config = replace(CONFIG, **changes)
    plain, captured = made(teacher, config), made(teacher, config)
    expected = played(plain, config)
    found = played(captured, replace(config, compile="auto"))
    assert isinstance(captured.perform, Captured) and not captured.perform.failed
    assert captured.perform.graphs
    # the same kernels, but for sums in another order: TF32's 10 bits, and Adam's first steps
    assert_near(found, expected, captured, plain, 2e-2)


def test_compiled_rounds_are_those_of_the_plain_networks_within_rounding(teacher):
    plain, compiled = made(teacher), Compiled()
    networks = made(teacher, forward=compiled)
    expected = played(plain)
    found = played(networks, replace(CONFIG, compile="on"), forward=compiled)
    assert not compiled.failed and not networks.perform.failed
    assert_near(found, expected, networks, plain, 5e-2)


def test_bfloat16_measures_what_float32_does(teacher):
    low = replace(CONFIG, dtype="bfloat16", compile="auto")
    expected, found = played(made(teacher), rounds=3), played(made(teacher, low), low, 3)
    assert found[-1]["fake_loss"] == pytest.approx(expected[-1]["fake_loss"], rel=0.05)
    assert found[-1]["loss"] == pytest.approx(expected[-1]["loss"], rel=0.2, abs=0.02)


def test_memory_does_not_grow(teacher):
    networks, config = made(teacher), replace(CONFIG, compile="auto")
    with quick(networks, config, forward):
        for round_ in range(20):
            play_round(networks, config, round_)
            if round_ == 8:
                torch.cuda.synchronize()
                before = torch.cuda.memory_allocated()
        torch.cuda.synchronize()
        assert torch.cuda.memory_allocated() <= before + 2**20


def test_a_gradient_that_is_not_finite_makes_no_step_in_a_graph(teacher):
    networks, config = made(teacher), replace(CONFIG, compile="auto")
    with quick(networks, config, forward):
        for round_ in range(5):
            play_round(networks, config, round_)
        networks.log_scale.data.fill_(float("nan"))  # a number that the graph reads
        networks.fake_score.conv_in.bias.data.fill_(float("nan"))
        before = {n: t.clone() for n, t in training_tensors(networks).items()}
        measured = play_round(networks, config, 5)
    assert measured["norm"] != measured["norm"] and measured["fake_norm"] != measured["fake_norm"]
    for name, tensor in networks.student.named_parameters():
        assert torch.equal(tensor, before[f"student.{name}"])


def test_a_teacher_trains_in_captured_steps_and_goes_on(home, tmp_path, capsys):
    script = load_bench("train_teacher", "weights")
    save_npz(torch.randint(256, (64, 8, 8, 3), dtype=torch.uint8), tmp_path / "images.npz")
    words = f"--images {tmp_path / 'images.npz'} --channels 8,8 --attention 1 --flip --device cuda"
    words += f" --batch-size 16 --out {tmp_path / 'teacher'}"
    script.main([*words.split(), "--steps", "20"])
    script.main([*words.split(), "--steps", "40"])
    told = capsys.readouterr()
    assert "step 20 " in told.out and "step 40 " in told.out and "warning" not in told.err
    assert load_teacher(str(tmp_path / "teacher" / "pipeline"), "cuda").shape == (3, 8, 8)


def test_the_verbs_as_typed(home, tmp_path):
    options = ("--device", "cuda", "--nfe", 2, "--batch-size", 4, "--fake-updates", 1,
               "--fake-warmup", 1, "--regress-steps", 0, "--steps", 6, "--dtype", "auto",
               "--checkpoint-every", 2)  # fmt: skip
    train = ("train", home / "teacher", *options)
    hsivi(*train, "--out", tmp_path / "once")
    told = json.loads((tmp_path / "once" / "hsivi.json").read_text())
    assert told["config"]["dtype"] == "bfloat16"
    hsivi(*train, "--out", tmp_path / "parts", "--minutes", 1e-6)
    hsivi(*train, "--out", tmp_path / "parts")
    once, parts = (load_student(tmp_path / name).model.unet for name in ("once", "parts"))
    for one, other in zip(once.parameters(), parts.parameters(), strict=True):
        assert (one - other).norm() <= 0.02 * (1 + one.norm())
    ten = ("--nfe", 10, "--device", "cuda", "--count", 40)
    hsivi("sample", home / "teacher", "--solver", "unipc", *ten, "--out", tmp_path / "images")
    assert read_folder(tmp_path / "images").shape == (40, 8, 8, 3)
    ruler = ("--detector", home / "detector", "--device", "cuda")
    told = hsivi("fid", tmp_path / "once", tmp_path / "images", "--count", 40, *ruler).stdout
    assert told.startswith("frechet0.04k")
    told = hsivi("compare", tmp_path / "once", home / "teacher", "--nfe", "2", "--count", 40,
                 "--solvers", "ddim-leading", "--reference", tmp_path / "images",
                 "--cache", tmp_path / "cache", *ruler).stdout  # fmt: skip
    assert "once" in told
