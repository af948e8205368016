"""Students as diffusers pipelines: loaded, called, written again, with the images they had."""

import json
import os
import shutil
import subprocess
import sys

import diffusers
import numpy as np
import pytest
import torch
from command import TINY, refusal, train, tree
from diffusers import UNet2DModel
from safetensors.torch import load_file, save_file

import hsivi_cli
from hsivi_cli.errors import HsiviError
from hsivi_cli.files.images import to_images
from hsivi_cli.files.places import shipped_students
from hsivi_cli.method.schedule import Clip
from hsivi_cli.models.description import is_student
from hsivi_cli.models.draw import chain_digest, draw, student_sampler
from hsivi_cli.models.loading import load_teacher
from hsivi_cli.models.spacings import solver
from hsivi_cli.models.student import HSIVIPipeline, load_student

SCALED = ("--objective", "score-matching", "--noise-share", 0.5, "--log-scale", "pixel")
SCALED += ("--top-sd", 1.2)


@pytest.fixture(scope="module")
def run(tiny_unet, tmp_path_factory):
    """A trained run of 2 calls with a noise scale that is not 0."""
    folder = tmp_path_factory.mktemp("student")
    # predicting x0, a random network draws grey levels, not saturated pixels
    scheduler = diffusers.DDPMScheduler(prediction_type="sample")
    pipe = diffusers.DDPMPipeline(unet=tiny_unet(**TINY), scheduler=scheduler)
    pipe.save_pretrained(folder / "teacher")
    train(folder / "teacher", folder / "run", *SCALED)
    return folder / "run"


@pytest.fixture(scope="module")
def conditional(tiny_unet, tmp_path_factory):
    """An untrained run of 3 classes and 3 channels, 2 calls."""
    folder = tmp_path_factory.mktemp("conditional")
    unet = tiny_unet(num_class_embeds=3, in_channels=3, out_channels=3, **TINY)
    scheduler = diffusers.DDPMScheduler(prediction_type="sample")
    diffusers.DDPMPipeline(unet=unet, scheduler=scheduler).save_pretrained(folder / "teacher")
    train(folder / "teacher", folder / "run", "--steps", 0)
    return folder / "run"


def generators(*seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def pixels(pipe, **call):
    return pipe(output_type="pt", **call).images


def test_the_pipeline_draws_in_every_output_type(run):
    pipe = HSIVIPipeline.from_pretrained(run)
    call = {"batch_size": 3, "num_inference_steps": 2}
    pt, array, pil = (
        pipe(**call, generator=generators(5)[0], output_type=kind).images
        for kind in ("pt", "np", "pil")
    )
    assert pt.shape == (3, 1, 8, 8) and 0 <= pt.min() < pt.max() <= 1
    assert array.shape == (3, 8, 8, 1) and np.array_equal(array[..., 0], pt[:, 0].numpy())
    assert [image.size for image in pil] == [(8, 8)] * 3
    assert np.array_equal(np.asarray(pil[1]), (array[1, ..., 0] * 255).round().astype(np.uint8))
    (listed,) = pipe(**call, generator=generators(5)[0], output_type="pt", return_dict=False)
    assert torch.equal(listed, pt)


def test_one_generator_an_image_draws_what_hsivi_draws_of_those_seeds(run):
    drawn = next(draw(student_sampler(load_student(run)), [7, 3, 11], 3, "cpu"))
    pipe = HSIVIPipeline.from_pretrained(run)
    ours = pixels(pipe, batch_size=3, num_inference_steps=2, generator=generators(7, 3, 11))
    assert torch.equal((ours * 255).round().to(torch.uint8).permute(0, 2, 3, 1), drawn)


def test_one_generator_an_image_draws_what_hsivi_draws_of_those_seeds_and_labels(conditional):
    drawn = next(draw(student_sampler(load_student(conditional)), [7, 3], 2, "cpu", [2, 0]))
    pipe = HSIVIPipeline.from_pretrained(conditional)
    ours = pixels(pipe, batch_size=2, generator=generators(7, 3), class_labels=[2, 0])
    assert torch.equal((ours * 255).round().to(torch.uint8).permute(0, 2, 3, 1), drawn)


def test_the_package_gives_the_pipeline_and_loads_torch_only_then():
    assert hsivi_cli.HSIVIPipeline is HSIVIPipeline
    assert not hasattr(hsivi_cli, "Pipeline")
    code = "import sys, hsivi_cli; assert not {'torch', 'diffusers', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_generator_decides_the_images(run):
    pipe = HSIVIPipeline.from_pretrained(run)
    first, again, other = (
        pixels(pipe, batch_size=2, generator=generators(s)[0]) for s in (1, 1, 2)
    )
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_as_many_generators_as_images_are_wanted(run):
    pipe = HSIVIPipeline.from_pretrained(run)
    with pytest.raises(ValueError, match="2 generators for a batch of 3"):
        pipe(batch_size=3, generator=generators(1, 2))


def test_a_number_of_calls_that_was_not_trained_says_which_was(run):
    pipe = HSIVIPipeline.from_pretrained(run)
    with pytest.raises(ValueError, match=r"\[2\] calls, not 5"):
        pipe(num_inference_steps=5)
    with pytest.raises(HsiviError, match="trained for 2 calls, not 5: use --nfe 2"):
        load_student(run).budget(5)


def test_written_and_read_again_it_draws_the_same_images(run, tmp_path):
    pipe = HSIVIPipeline.from_pretrained(run)
    pipe.save_pretrained(tmp_path / "copy")
    again = HSIVIPipeline.from_pretrained(tmp_path / "copy")
    images = [pixels(p, batch_size=4, generator=generators(1)[0]) for p in (pipe, again)]
    assert torch.equal(*images)
    assert again.log_scales[2].any()
    again.log_scales[2] = torch.zeros(1, 1, 1, 1)
    assert not torch.equal(pixels(again, batch_size=4, generator=generators(1)[0]), images[0])


def test_plain_diffusers_loads_the_network(run):
    unet = UNet2DModel.from_pretrained(run, subfolder="unet")
    ours = load_student(run).model.unet.state_dict()
    assert all(torch.equal(tensor, ours[name]) for name, tensor in unet.state_dict().items())
    scheduler = diffusers.DDPMScheduler.from_pretrained(run, subfolder="scheduler")
    assert scheduler.config.prediction_type == "sample"


def test_labels_choose_the_class(conditional):
    pipe = HSIVIPipeline.from_pretrained(conditional)
    call = {"batch_size": 2, "num_inference_steps": 2}
    ones, listed, twos = (
        pixels(pipe, **call, generator=generators(1)[0], class_labels=labels)
        for labels in ([1, 1], torch.tensor([1, 1]), [1, 2])
    )
    assert ones.shape == (2, 3, 8, 8) and torch.equal(ones, listed)
    assert torch.equal(ones[0], twos[0]) and not torch.equal(ones[1], twos[1])


@pytest.mark.parametrize("labels", [None, [1]])
def test_labels_that_do_not_fit_are_refused(conditional, labels):
    pipe = HSIVIPipeline.from_pretrained(conditional)
    with pytest.raises(ValueError, match="class_labels"):
        pipe(batch_size=2, class_labels=labels)


@pytest.mark.parametrize("labels", [[0, 3], [-1, 0]])
def test_labels_that_there_are_not_are_refused_with_those_there_are(conditional, labels):
    pipe = HSIVIPipeline.from_pretrained(conditional)
    with pytest.raises(ValueError, match=r"class_labels .* lie in 0\.\.2"):
        pipe(batch_size=2, class_labels=labels)


def test_a_pipeline_in_half_precision_draws_nearly_the_same(run):
    pipe = HSIVIPipeline.from_pretrained(run)
    half = HSIVIPipeline.from_pretrained(run).to(torch.bfloat16)
    exact, low = (pixels(p, batch_size=2, generator=generators(1)[0]) for p in (pipe, half))
    assert (exact - low.float()).abs().max() < 0.05  # bfloat16 has 8 bits


def test_a_folder_without_a_student_says_what_it_is(run, tmp_path):
    teacher = run.parent / "teacher"
    assert is_student(run) and not is_student(teacher)
    readers = {load_student: "hsivi.json", HSIVIPipeline.from_pretrained: "chain.safetensors"}
    for place in (teacher, tmp_path, tmp_path / "nothing", run / "README.md", "someone/student"):
        for read, part in readers.items():
            with pytest.raises(HsiviError, match=f"no student at {place}: {part} is missing; give"):
                read(place)


PARTS = ("chain.safetensors", "model_index.json", "scheduler", "unet")


@pytest.mark.parametrize("parts", [*([part] for part in PARTS), ["unet/config.json"], PARTS])
def test_a_run_that_exported_nothing_or_half_of_it_says_so(run, tmp_path, parts):
    half = tmp_path / "half"
    shutil.copytree(run, half)
    for part in parts:
        shutil.rmtree(half / part) if (half / part).is_dir() else (half / part).unlink()
    for read in (load_student, HSIVIPipeline.from_pretrained):
        with pytest.raises(HsiviError, match="half holds no whole student: its training stopped"):
            read(half)
    assert "and the same line again goes on" in refusal("sample", half)


def test_a_student_in_a_folder_that_is_no_utf_8_is_told_to_be_renamed(run, tmp_path):
    shutil.copytree(run, tmp_path / "b\udcff")
    for read in (load_student, HSIVIPipeline.from_pretrained):
        with pytest.raises(HsiviError, match=r"no valid UTF-8.*rename it"):
            read(tmp_path / "b\udcff")


def test_another_format_and_a_chain_with_a_missing_part_are_refused(run, tmp_path):
    pipe = HSIVIPipeline.from_pretrained(run)
    pipe.log_scales = {}
    pipe.save_pretrained(tmp_path)
    shutil.copy(run / "hsivi.json", tmp_path)
    with pytest.raises(HsiviError, match=r"2\.log_scale"):
        load_student(tmp_path)
    (tmp_path / "hsivi.json").write_text(json.dumps({"format": 9}))
    with pytest.raises(HsiviError, match="format 9, this version reads 1"):
        load_student(tmp_path)


@pytest.mark.parametrize(
    ("name", "wrong", "told"),
    [
        ("2.time", torch.zeros(4).double(), "not float64 [3]"),
        ("2.time", torch.tensor([0, 600, 300]).double(), "2.time does not rise"),
        ("2.time", torch.tensor([0, 300, 600]), "2.time is torch.int64 [3]"),
        ("2.ce", torch.zeros(3).double(), "not float64 [3, 3]"),
        ("2.c0", torch.zeros(3).double(), "2.c0 is torch.float64 [3], not float64 [3, 3]"),
        ("2.cx", torch.zeros(()).double(), "not float64 [3]"),
        ("2.alpha_bar", torch.tensor([1, 0.5, 0]).double(), "2.alpha_bar lies in (0, 1]"),
        ("2.top_sd", torch.ones(3).double(), "2.top_sd is torch.float64 [3], not float64 []"),
        ("2.top_sd", torch.zeros(()).double(), "2.top_sd is no sd"),
        ("2.log_scale", torch.zeros(3, 1, 1, 1), "2.log_scale is [3, 1, 1, 1]"),
        ("2.log_scale", torch.zeros(1, 1, 8, 9), "2.log_scale is [1, 1, 8, 9]"),
        ("2.log_scale", torch.zeros(()), "2.log_scale is []"),
        ("3.time", torch.zeros(4).double(), "3.alpha_bar is missing"),
        ("0.time", torch.zeros(1).double(), "0.alpha_bar is missing"),
    ],
)
def test_a_chain_of_other_shapes_is_refused_by_its_part(run, tmp_path, name, wrong, told):
    shutil.copytree(run, tmp_path / "run")
    file = tmp_path / "run" / "chain.safetensors"
    save_file(load_file(file) | {name: wrong}, file)
    assert told in refusal("sample", tmp_path / "run", "--nfe", 2, "--out", tmp_path / "images")
    with pytest.raises(HsiviError, match="is no chain"):
        HSIVIPipeline.from_pretrained(tmp_path / "run")


def test_a_chain_without_a_top_sd_draws_from_one(run, tmp_path):
    assert load_student(run).chains[2].top_sd.item() == 1.2
    shutil.copytree(run, tmp_path / "run")
    file = tmp_path / "run" / "chain.safetensors"
    save_file({n: t for n, t in load_file(file).items() if n != "2.top_sd"}, file)
    assert load_student(tmp_path / "run").chains[2].top_sd == 1
    pixels(HSIVIPipeline.from_pretrained(tmp_path / "run"), batch_size=1)


def test_a_chain_without_weights_of_earlier_x0_keeps_none(run, tmp_path):
    """As earlier versions wrote it."""
    shutil.copytree(run, tmp_path / "run")
    file = tmp_path / "run" / "chain.safetensors"
    before = load_student(run)
    save_file({n: t for n, t in load_file(file).items() if n != "2.c0"}, file)
    after = load_student(tmp_path / "run")
    assert torch.equal(after.chains[2].c0, torch.zeros(3, 3).double())
    told = [chain_digest(student_sampler(student)) for student in (before, after)]
    assert told[0] == told[1]


def test_a_student_keeps_what_its_start_keeps_of_earlier_x0(save_teacher, tmp_path):
    """From a solver that adds noise, by that noise, too; drawn by the pipeline as by `sample`."""
    out, start = tmp_path / "run", ("--start", "sde-dpm++2-auto", "--noise-share", "own")
    train(save_teacher(**TINY), out, "--nfe", 4, *start, "--steps", 2)
    student = load_student(out)
    chain = student.chains[4]
    own = solver("sde-dpm++2-auto", 4, student.model.scheduler, student.model.table)
    assert chain.c0.any() and torch.equal(chain.c0, own.c0)
    torch.testing.assert_close(chain.s0, own.s0, rtol=1e-12, atol=0)
    theirs = torch.cat([*draw(student_sampler(student), [7, 3], 2, "cpu")])
    ours = pixels(HSIVIPipeline.from_pretrained(out), batch_size=2, generator=generators(7, 3))
    assert torch.equal(to_images(2 * ours - 1), theirs)


def test_a_file_without_a_chain_is_none(run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    save_file({"time": torch.zeros(3)}, tmp_path / "run" / "chain.safetensors")
    with pytest.raises(HsiviError, match="is no chain: it holds none"):
        load_student(tmp_path / "run")


def test_drawing_writes_nothing_into_a_run(run):
    before = tree(run)
    HSIVIPipeline.from_pretrained(run)(batch_size=1)
    assert tree(run) == before


def test_an_exported_student_can_be_read_by_whom_the_umask_lets(run):
    modes = {file.stat().st_mode & 0o777 for file in run.rglob("*") if file.is_file()}
    mask = os.umask(0)
    os.umask(mask)
    assert modes == {0o666 & ~mask}


def test_the_embedded_students_are_of_the_embedded_teacher_and_draw_as_pipelines():
    identity = load_teacher().identity
    for nfe in (1, 2, 3, 4, 5, 8):
        assert load_student(f"embedded:students/{nfe}").info["teacher"] == identity
    pipe = HSIVIPipeline.from_pretrained("embedded:students/2")
    images = pixels(pipe, batch_size=4, num_inference_steps=2, generator=generators(0)[0])
    assert images.shape == (4, 1, 28, 28)
    assert 0.15 < images.mean() < 0.45  # the data's mean is 0.286; noise would be 0.5


@pytest.mark.parametrize("calls", shipped_students())
def test_a_shipped_student_is_drawn_with_x0_in_range_if_it_was_trained_so(calls):
    student = load_student(f"embedded:students/{calls}")
    told = student.info.get("clip")
    assert student.model.clip == (told and Clip(**told))
