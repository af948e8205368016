"""x0 kept in range: against diffusers' own thresholding, and where it must change nothing."""

import json

import pytest
import torch
from command import QUICK, TINY, hsivi, refusal, save_detector
from conftest import edit_json
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler
from safetensors.torch import load_file, save_file
from walks import assert_walks_agree, images, model, start, trajectory

from hsivi_cli import HSIVIPipeline
from hsivi_cli.config import TrainConfig
from hsivi_cli.method.chain import sample
from hsivi_cli.method.schedule import Clip, eps_to_x0
from hsivi_cli.method.solvers import ancestral_chain
from hsivi_cli.models import clips
from hsivi_cli.models.draw import draw, solver_sampler, student_sampler
from hsivi_cli.models.loading import load_teacher
from hsivi_cli.models.networks import networks_of
from hsivi_cli.models.schedules import clip_of
from hsivi_cli.models.spacings import solver
from hsivi_cli.models.starts import make_chains
from hsivi_cli.models.student import load_student


@pytest.mark.parametrize("clip", [Clip(), Clip(2.0, 0.6), Clip(1.5, 0.9)])
def test_a_clipped_walk_is_dpm_solvers_own_thresholding(clip):
    teacher = DDPMScheduler()
    options = {"dynamic_thresholding_ratio": clip.quantile or 0.995, "sample_max_value": clip.reach}
    scheduler = DPMSolverMultistepScheduler(thresholding=True, solver_order=2, **options)
    scheduler.set_timesteps(5)
    chain = solver("dpm++2-linspace", 5, teacher, teacher.alphas_cumprod.double())

    def clipped(x, time, labels, alpha_bar):
        return clip.eps(model(x, time[0]), x, alpha_bar)

    found = sample(clipped, chain, start(), None, torch.zeros(1, 1, 1, 1))
    assert_walks_agree(found, trajectory(scheduler, start()), chain)
    assert found.abs().max() < 3  # where the plain walk leaves the range
    plain = DPMSolverMultistepScheduler(solver_order=2)
    plain.set_timesteps(5)
    assert trajectory(plain, start()).abs().max() > 10


@pytest.mark.parametrize("clip", [None, Clip(), Clip(0.5)])
@pytest.mark.parametrize("spacing", ["trailing", "leading"])
def test_the_ancestral_solver_is_diffusers_own_ddpm(clip, spacing):
    """With the same noise at every step, x0 clipped in each or not."""
    reach = clip.reach if clip else 1.0
    told = {"clip_sample": clip is not None, "clip_sample_range": reach}
    scheduler = DDPMScheduler(timestep_spacing="trailing", **told)
    scheduler.set_timesteps(5)
    chain = solver("ddpm-trailing", 5, scheduler, scheduler.alphas_cumprod.double())
    if spacing == "leading":  # DDPM's own: 800, 600, .. 0; those of this name here are others
        scheduler = DDPMScheduler(timestep_spacing="leading", **told)
        scheduler.set_timesteps(5)
        table = scheduler.alphas_cumprod.double()
        times = scheduler.timesteps.flip(0).tolist()
        chain = ancestral_chain([-1, *times], torch.cat([torch.ones(1).double(), table[times]]))

    def network(x, time, labels, alpha_bar):
        eps = model(x, time[0])
        return clip.eps(eps, x, alpha_bar) if clip else eps

    rng = torch.Generator().manual_seed(4)
    theirs = start()
    for t in scheduler.timesteps:
        theirs = scheduler.step(model(theirs, t), t, theirs, generator=rng).prev_sample
    rng = torch.Generator().manual_seed(4)
    noise = [torch.randn(start().shape, generator=rng) for _ in range(4)]
    found = sample(network, chain, start(), noise, torch.zeros(1, 1, 1, 1))
    assert_walks_agree(found, theirs, chain)
    assert (chain.s0[2:] > 0).all() and chain.s0[1] == 0  # the last step adds none
    assert (found.abs().max() <= reach + 1e-4) == (clip is not None)


def test_what_is_in_range_is_left_to_the_last_bit_and_the_rest_ends_at_its_edge():
    x, alpha_bar = 0.9 * start(), torch.full((16,), 0.6)
    eps = 0.5 * start().flip(0)
    x0, clipped = (eps_to_x0(e, x, alpha_bar) for e in (eps, Clip(0.8).eps(eps, x, alpha_bar)))
    inside = x0.abs() <= 0.8
    assert inside.any() and not inside.all()
    assert torch.equal(Clip(0.8).eps(eps, x, alpha_bar)[inside], eps[inside])
    torch.testing.assert_close(clipped, x0.clamp(-0.8, 0.8), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("config", "clip"),
    [
        ({}, Clip()),
        ({"_class_name": "DDIMScheduler"}, Clip()),
        ({"clip_sample": False}, None),
        ({"clip_sample_range": 2.0}, Clip(2.0)),
        ({"_class_name": "UniPCMultistepScheduler"}, None),
        ({"_class_name": "PNDMScheduler"}, None),
        ({"thresholding": True, "sample_max_value": 1.5}, Clip(1.5, 0.995)),
    ],
)
def test_a_schedulers_configuration_says_what_its_pipeline_clips(config, clip):
    assert clip_of(config, "x.json") == clip


@pytest.mark.parametrize("scheduler", [DDPMScheduler, DDIMScheduler])
def test_a_teacher_knows_what_its_pipeline_clips(save_teacher, scheduler):
    folder = save_teacher(scheduler=scheduler(clip_sample_range=0.7))
    teacher = load_teacher(str(folder))
    assert teacher.clip == Clip(0.7)
    x, time = images(teacher)
    level = teacher.table[time]
    x0 = eps_to_x0(teacher.network(clip=teacher.clip)(x, time), x, level)
    assert x0.abs().max() < 0.7 + 1e-5 < eps_to_x0(teacher.network()(x, time), x, level).abs().max()
    edit_json(folder / "scheduler" / "scheduler_config.json", clip_sample_range="wide")
    assert "clipping" in refusal("info", folder)


def test_a_clipped_sampler_is_another_and_says_so(save_teacher):
    teacher = load_teacher(str(save_teacher()))
    plain, clipped = (solver_sampler(teacher, "ddim", 2, clip=clip) for clip in (None, Clip(0.2)))
    assert clipped.name == "ddim clipped" and clipped.digest != plain.digest
    a, b = (torch.cat(list(draw(s, range(4), 4, "cpu"))).float() for s in (plain, clipped))
    assert ((a - b).abs().max() > 20) and ((b / 127.5 - 1).abs() < 0.2 + 0.01).all()


def test_a_students_scheduler_says_whether_its_walk_is_clipped(save_teacher, tmp_path):
    out = tmp_path / "run"
    hsivi("train", save_teacher(), "--nfe", 2, "--steps", 0, "--regress-steps", 0, "--out", out)
    assert load_student(out).model.clip is None  # as those of before there was a choice
    edit_json(out / "scheduler" / "scheduler_config.json", clip_sample=True, clip_sample_range=0.3)
    told = torch.cat(list(draw(student_sampler(load_student(out)), range(3), 3, "cpu")))
    assert ((told.float() / 127.5 - 1).abs() < 0.31).all()
    rngs = [torch.Generator().manual_seed(seed) for seed in range(3)]
    drawn = HSIVIPipeline.from_pretrained(out)(3, 2, rngs, output_type="pt").images
    pixels = (drawn * 255).round().to(torch.uint8).permute(0, 2, 3, 1)
    assert (pixels.int() - told.int()).abs().max() <= 1
    assert json.loads((out / "scheduler" / "scheduler_config.json").read_text())["clip_sample"]


def trained(teacher, out, *options):
    hsivi("train", teacher, "--out", out, *QUICK, *options)
    return load_student(out)


def test_auto_clips_where_the_teachers_images_are_others_with_it(save_teacher, tmp_path):
    """A random network leaves the range by far; one that predicts an x0 of zero never does."""
    wide = save_teacher(scheduler=DDPMScheduler(clip_sample_range=0.9), folder="wide", **TINY)
    still = save_teacher(scheduler=DDPMScheduler(prediction_type="sample"), folder="still", **TINY)
    file = still / "unet" / "diffusion_pytorch_model.safetensors"
    save_file({name: 0 * tensor for name, tensor in load_file(file).items()}, file)
    assert trained(wide, tmp_path / "a", "--clip-x0", "auto").model.clip == Clip(0.9)
    assert trained(still, tmp_path / "b", "--clip-x0", "auto").model.clip is None
    assert trained(wide, tmp_path / "c").model.clip is None
    assert trained(still, tmp_path / "d", "--clip-x0", "on").model.clip == Clip()
    told = json.loads((tmp_path / "a" / "hsivi.json").read_text())["clip"]
    assert told == {"reach": 0.9, "quantile": None}


def test_a_run_goes_on_clipped_as_it_began(save_teacher, tmp_path, monkeypatch):
    wide = save_teacher(scheduler=DDPMScheduler(), **TINY)
    whole = trained(wide, tmp_path / "whole", "--steps", 2, "--clip-x0", "auto")
    options = ("--steps", 2, "--clip-x0", "auto")
    trained(wide, tmp_path / "broken", *options, "--minutes", 1e-9)
    monkeypatch.setattr(clips, "clip_that_matters", None)  # not looked at anew
    again = trained(wide, tmp_path / "broken", *options)
    assert again.model.clip == whole.model.clip == Clip()
    assert again.model.digest == whole.model.digest


def test_all_three_networks_are_clipped_in_training(save_teacher):
    teacher = load_teacher(str(save_teacher(scheduler=DDPMScheduler(clip_sample_range=0.5))))
    config = TrainConfig(nfe="2")
    networks = networks_of(config, teacher, make_chains(config, teacher, {}))
    x, time = images(teacher)
    level = teacher.table[time]
    for network in (networks.student_eps, networks.fake_eps, networks.teacher_eps):
        assert eps_to_x0(network(x, time, None, level), x, level).abs().max() < 0.5 + 1e-4


def test_compare_draws_solvers_and_the_teacher_with_and_without(save_teacher, tmp_path):
    teacher = save_teacher(scheduler=DDPMScheduler())
    save_detector(tmp_path / "detector")
    real = tmp_path / "real.npz"
    hsivi("sample", teacher, "--solver", "ddim", "--nfe", 4, "--count", 40, "--out", real)
    judged = ("--reference", real, "--detector", tmp_path / "detector", "--count", 40)
    found = tmp_path / "rows.json"
    hsivi("compare", teacher, "--nfe", 2, "--solvers", "ddim-linspace", "--teacher-calls", 4,
          *judged, "--cache", tmp_path / "cache", "--json", found)  # fmt: skip
    rows = json.loads(found.read_text())["rows"]
    names = {(row["kind"], row["name"]) for row in rows}
    assert ("teacher", "dpm++2-linspace") in names
    assert ("teacher", "dpm++2-linspace clipped") in names
    assert ("solver", "ddim-linspace clipped") in names  # the reference's images are clipped


def test_who_clips_a_teacher_that_does_not_and_leaves_the_range_is_told(save_teacher, tmp_path):
    """A random network of eps leaves the range by far; one that predicts an x0 of zero does not."""
    wide = save_teacher(scheduler=DDPMScheduler(clip_sample=False), folder="wide")
    told = hsivi("train", wide, "--out", tmp_path / "a", *QUICK, "--clip-x0", "on").stderr
    assert "% of what" in told and "lies beyond [-1, 1], and its pipeline does not clip" in told
    scheduler = DDPMScheduler(prediction_type="sample", clip_sample=False)
    still = save_teacher(scheduler=scheduler, folder="still")
    file = still / "unet" / "diffusion_pytorch_model.safetensors"
    save_file({name: 0 * tensor for name, tensor in load_file(file).items()}, file)
    told = hsivi("train", still, "--out", tmp_path / "b", *QUICK, "--clip-x0", "on").stderr
    assert "lies beyond" not in told
