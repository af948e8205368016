"""Teachers as they lie on disks, sound and broken."""

import shutil
import subprocess
import sys

import pytest
import torch
from conftest import edit_json, refused
from diffusers import DDIMScheduler, DDPMPipeline, DDPMScheduler, DPMSolverMultistepScheduler
from safetensors.torch import load_file, save_file
from walks import BETAS, assert_walks_agree, images, start, trajectory, walk

from hsivi_cli.errors import HsiviError
from hsivi_cli.method import schedule
from hsivi_cli.models.loading import load_teacher
from hsivi_cli.models.spacings import solver
from hsivi_cli.models.teacher import digest_of


def assert_predicts_as(teacher, unet, prediction="epsilon"):
    x, time = images(teacher)
    with torch.no_grad():
        output = unet(x, time).sample
        told = schedule.to_eps(output, x, teacher.table[time], prediction)
        # the same weights, and the same arithmetic
        torch.testing.assert_close(teacher.network()(x, time), told, rtol=0, atol=1e-6)


@pytest.mark.parametrize("pipeline", ["DDPMPipeline", "DDIMPipeline"])
def test_a_pipeline_directory_loads(save_teacher, pipeline):
    scheduler = DDIMScheduler() if pipeline == "DDIMPipeline" else DDPMScheduler()
    folder = save_teacher(pipeline, scheduler)
    teacher = load_teacher(str(folder))
    assert (
        teacher.shape == (1, 8, 8)
        and teacher.label_count is None
        and teacher.prediction == "epsilon"
    )
    assert torch.equal(teacher.table, scheduler.alphas_cumprod.double())
    assert_predicts_as(teacher, DDPMPipeline.from_pretrained(folder).unet)


@pytest.mark.parametrize("beside", ["scheduler_config.json", "scheduler/scheduler_config.json"])
def test_a_bare_network_loads_with_its_schedule_beside_it(save_teacher, tmp_path, beside):
    folder = save_teacher()
    shutil.copytree(folder / "unet", tmp_path / "bare")
    (tmp_path / "bare" / beside).parent.mkdir(exist_ok=True)
    shutil.copy(folder / "scheduler" / "scheduler_config.json", tmp_path / "bare" / beside)
    assert load_teacher(str(tmp_path / "bare")).digest == load_teacher(str(folder)).digest


def test_an_older_pipeline_keeps_its_parts_at_the_root(save_teacher, tmp_path):
    # google/ddpm-cifar10-32 and its kin
    folder = save_teacher()
    shutil.copytree(folder / "unet", tmp_path / "old")
    shutil.copy(folder / "scheduler" / "scheduler_config.json", tmp_path / "old")
    shutil.copy(folder / "model_index.json", tmp_path / "old")
    assert load_teacher(str(tmp_path / "old")).digest == load_teacher(str(folder)).digest


def test_a_pipelines_parts_need_no_index(save_teacher):
    folder = save_teacher()
    digest = load_teacher(str(folder)).digest
    (folder / "model_index.json").unlink()
    assert load_teacher(str(folder)).digest == digest


def test_a_bare_network_beside_a_folder_unet_is_the_teacher(save_teacher, tiny_unet):
    folder = save_teacher(seed=1)
    (folder / "model_index.json").unlink()
    tiny_unet().save_pretrained(folder)
    assert load_teacher(str(folder)).digest == digest_of(tiny_unet())


def test_a_teacher_may_lie_in_a_subfolder(save_teacher, tmp_path):
    save_teacher(folder="outer/inner")
    assert load_teacher(str(tmp_path / "outer"), subfolder="inner").shape == (1, 8, 8)
    with pytest.raises(HsiviError, match="has no subfolder other"):
        load_teacher(str(tmp_path / "outer"), subfolder="other")


def test_bin_weights_load(save_teacher):
    folder = save_teacher(safe=False)
    assert list((folder / "unet").glob("*.bin")) and not list(
        (folder / "unet").glob("*.safetensors")
    )
    assert load_teacher(str(folder)).digest == load_teacher(str(save_teacher(folder="safe"))).digest


def test_bin_weights_load_without_a_word(save_teacher):
    folder = save_teacher(safe=False)
    # in a process of its own: diffusers' handler keeps the stderr that it found when imported
    code = f"from hsivi_cli.models.loading import load_teacher; load_teacher({str(folder)!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_an_fp16_variant_loads_in_float32(tiny_unet, tmp_path):
    half = tiny_unet().half()
    DDPMPipeline(unet=half, scheduler=DDPMScheduler()).save_pretrained(
        tmp_path / "t", variant="fp16"
    )
    teacher = load_teacher(str(tmp_path / "t"), variant="fp16")
    assert {p.dtype for p in teacher.unet.parameters()} == {torch.float32}
    assert teacher.digest == digest_of(half)  # half widened to float32 is exact


@pytest.mark.parametrize("prediction", schedule.PREDICTIONS)
def test_every_prediction_type_loads_as_an_eps_network(save_teacher, prediction):
    folder = save_teacher(scheduler=DDPMScheduler(prediction_type=prediction))
    teacher = load_teacher(str(folder))
    assert teacher.prediction == prediction
    assert_predicts_as(teacher, DDPMPipeline.from_pretrained(folder).unet, prediction)


@pytest.mark.parametrize(
    "options",
    [{"beta_schedule": kind} for kind in (*BETAS, "sigmoid")]
    + [
        {"trained_betas": torch.linspace(1e-3, 0.3, 40).tolist(), "num_train_timesteps": 40},
        {"num_train_timesteps": 250, "beta_start": 4e-4, "beta_end": 0.08},
        {"num_train_timesteps": 4000, "beta_schedule": "squaredcos_cap_v2"},
    ],
    ids=lambda options: "-".join(map(str, options))[:40],
)
def test_every_beta_schedule_loads_and_its_solvers_follow_it(save_teacher, options):
    told = DDPMScheduler(**options)
    teacher = load_teacher(str(save_teacher(scheduler=told)))
    assert torch.equal(teacher.table, told.alphas_cumprod.double())
    chain = solver("dpm++2", 3, teacher.scheduler, teacher.table)
    if options.get("beta_schedule") == "sigmoid":  # which the solver does not know by name
        options = {"trained_betas": told.betas.tolist()}
    own = DPMSolverMultistepScheduler(**options)
    own.set_timesteps(3)
    assert_walks_agree(walk(chain, "epsilon", start()), trajectory(own, start()), chain)
    # diffusers keeps the ratios in float32
    levels = teacher.table[chain.time[1:].long()]
    torch.testing.assert_close(chain.alpha_bar[1:], levels, rtol=1e-6, atol=0)


def test_a_teacher_need_not_be_square(save_teacher):
    folder = save_teacher()
    edit_json(folder / "unet" / "config.json", sample_size=[8, 16])
    assert load_teacher(str(folder)).shape == (1, 8, 16)


# ---- refusals ------------------------------------------------------------------------------------


def test_latent_and_text_conditioned_pipelines_are_refused_by_name(save_teacher):
    folder = save_teacher()
    for kind in ("StableDiffusionPipeline", "LDMPipeline", "DiTPipeline", None):
        edit_json(folder / "model_index.json", _class_name=kind)
        line = refused(folder)
        assert f"is a {kind}" in line and "DDPMPipeline" in line


def test_other_networks_are_refused_by_name(save_teacher):
    folder = save_teacher()
    edit_json(folder / "unet" / "config.json", _class_name="UNet2DConditionModel")
    assert "is a UNet2DConditionModel; only UNet2DModel" in refused(folder)
    edit_json(folder / "model_index.json", unet=["diffusers", "Transformer2DModel"])
    assert "has a Transformer2DModel as its unet; only UNet2DModel" in refused(folder)


def test_zero_terminal_snr_is_refused(save_teacher):
    scheduler = DDIMScheduler(rescale_betas_zero_snr=True)
    folder = save_teacher("DDIMPipeline", scheduler)
    assert "zero terminal SNR" in refused(folder)
    betas = [0.01] * 9 + [1.0]
    scheduler = DDPMScheduler(trained_betas=betas, num_train_timesteps=10)
    assert "zero terminal SNR" in refused(save_teacher(scheduler=scheduler, folder="other"))


@pytest.mark.parametrize(
    "kind",
    [
        "FlowMatchEulerDiscreteScheduler",
        "EDMEulerScheduler",
        "ScoreSdeVeScheduler",
        "KarrasVeScheduler",
    ],
)
def test_foreign_schedulers_are_refused_by_name(save_teacher, kind):
    folder = save_teacher()
    edit_json(folder / "scheduler" / "scheduler_config.json", _class_name=kind)
    assert f"has a {kind}; only variance-preserving" in refused(folder)


def test_schedules_that_say_nothing_are_refused(save_teacher):
    file = (folder := save_teacher()) / "scheduler" / "scheduler_config.json"
    edit_json(file, prediction_type="flow_prediction")
    assert "predicts 'flow_prediction'; supported are epsilon, sample, v_prediction" in refused(
        folder
    )
    edit_json(file, prediction_type="epsilon", beta_schedule="mystery")
    assert f"{file} describes no schedule" in refused(folder)


def test_a_folder_that_is_not_there_or_no_teacher_is_refused(tmp_path, save_teacher):
    assert "there is no teacher at" in refused(tmp_path / "nowhere")
    (tmp_path / "file").write_text("")
    assert "there is no teacher at" in refused(tmp_path / "file")
    (tmp_path / "empty").mkdir()
    assert "empty is an empty folder: a training leaves one that" in refused(tmp_path / "empty")
    (tmp_path / "empty" / "notes.txt").write_text("")
    assert "is no diffusers teacher" in refused(tmp_path / "empty")
    folder = save_teacher()
    shutil.rmtree(folder / "scheduler")
    assert "scheduler_config.json is missing" in refused(folder)


def test_broken_json_is_refused(save_teacher):
    folder = save_teacher()
    file = folder / "unet" / "config.json"
    file.write_text(file.read_text()[:-20])
    assert f"{file} cannot be read as JSON" in refused(folder)
    file.write_text("[1]")
    assert f"{file} holds no JSON object but a list" in refused(folder)
    (folder / "model_index.json").write_text('{"_class_name": "DDPMPipeline", "unet": null}')
    assert "has a None as its unet" in refused(folder)


def weights_file(folder):
    return folder / "unet" / "diffusion_pytorch_model.safetensors"


@pytest.mark.parametrize("kept", [0, 4, 100, 5000, -1])
def test_truncated_weights_are_refused(save_teacher, kept):
    folder = save_teacher()
    content = weights_file(folder).read_bytes()
    weights_file(folder).write_bytes(content[:kept])
    line = refused(folder)
    assert f"{weights_file(folder)} cannot be read" in line and "again" in line


def test_corrupt_and_absent_weights_are_refused(save_teacher):
    folder = save_teacher()
    weights_file(folder).write_bytes(b"not weights" * 1000)
    assert "cannot be read" in refused(folder)
    weights_file(folder).unlink()
    assert "cannot be loaded" in refused(folder)


def test_a_truncated_bin_is_refused(save_teacher):
    folder = save_teacher(safe=False)
    file = folder / "unet" / "diffusion_pytorch_model.bin"
    file.write_bytes(file.read_bytes()[:5000])
    assert "cannot be loaded" in refused(folder)


def test_weights_that_lack_a_key_or_have_another_shape_are_refused_by_its_name(save_teacher):
    folder = save_teacher()
    weights = load_file(weights_file(folder))
    lacking = {k: v for k, v in weights.items() if k != "conv_in.weight"}
    save_file(lacking, weights_file(folder), metadata={"format": "pt"})
    line = refused(folder)
    assert "conv_in.weight" in line and "missing" in line
    save_file(
        weights | {"conv_in.weight": torch.zeros(8, 3, 3, 3)},
        weights_file(folder),
        metadata={"format": "pt"},
    )
    assert "conv_in.weight" in refused(folder)


def test_networks_with_odd_channels_are_refused(save_teacher):
    assert "has 3 channels in and 4 out" in refused(save_teacher(in_channels=3, out_channels=4))


def test_other_conditions_than_class_labels_are_refused(save_teacher):
    assert "is conditioned by 'timestep'" in refused(save_teacher(class_embed_type="timestep"))


def test_a_variant_that_is_not_there_is_refused(save_teacher):
    assert "fp16" in refused(save_teacher(), variant="fp16")


def test_a_teacher_that_has_one_variant_alone_is_told_of_it(save_teacher):
    folder = save_teacher(variant="fp16")
    assert "give --variant fp16" in refused(folder)
    assert load_teacher(str(folder), variant="fp16").origin == {"variant": "fp16"}


def test_a_damaged_configuration_is_one_line(save_teacher):
    folder = save_teacher()
    unet, scheduler = (
        folder / "unet" / "config.json",
        folder / "scheduler" / "scheduler_config.json",
    )
    for file, change in (
        *((unet, {"sample_size": size}) for size in (8.0, True, [8, "8"], {"a": 1})),
        *((unet, {"in_channels": "1"}), (unet, {"block_out_channels": []})),
        *((scheduler, {"num_train_timesteps": n}) for n in (0, "1000")),
        *((scheduler, {"beta_start": beta}) for beta in (-0.1, float("nan"))),
        (scheduler, {"trained_betas": []}),
    ):
        before = file.read_text()
        edit_json(file, **change)
        assert len(refused(folder).splitlines()) == 1, change
        file.write_text(before)
    (folder / "unet" / "diffusion_pytorch_model_old").mkdir()
    load_teacher(str(folder))


@pytest.mark.parametrize("size", [7, [8, 6], 0])
def test_a_size_that_the_network_cannot_draw_is_refused(save_teacher, size):
    folder = save_teacher(
        block_out_channels=(8, 8, 8),
        down_block_types=("DownBlock2D",) * 3,
        up_block_types=("UpBlock2D",) * 3,
    )
    assert load_teacher(str(folder)).shape == (1, 8, 8)
    edit_json(folder / "unet" / "config.json", sample_size=size)
    assert "that 4 divides" in refused(folder)


def test_a_network_that_does_not_say_its_size_is_refused(save_teacher):
    folder = save_teacher()
    edit_json(folder / "unet" / "config.json", sample_size=None)
    assert "does not say its image size: set sample_size in" in refused(folder)
