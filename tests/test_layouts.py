"""Folders that people have: other pipelines' names, training checkpoints, the hub's cache."""

import shutil

import diffusers
import pytest
from conftest import edit_json, refused

from hsivi_cli.models.loading import load_teacher
from hsivi_cli.models.teacher import digest_of


@pytest.mark.parametrize("kind", ["PNDMPipeline", "MyPipeline", ["pipeline", "MyPipeline"]])
def test_a_pipeline_around_a_unet_is_a_teacher_whatever_it_is_called(save_teacher, kind):
    folder = save_teacher()
    digest = load_teacher(str(folder)).digest
    edit_json(folder / "model_index.json", _class_name=kind, image_size=[32, 32])
    assert load_teacher(str(folder)).digest == digest


def test_a_pipeline_with_other_parts_is_refused_by_them(save_teacher):
    folder = save_teacher()
    for kind in ("MyPipeline", "DDPMPipeline"):
        parts = {"vqvae": ["diffusers", "VQModel"], "bert": [None, None]}
        edit_json(folder / "model_index.json", _class_name=kind, **parts)
        assert f"is a {kind} with vqvae; a teacher is" in refused(folder)
    edit_json(
        folder / "model_index.json",
        vqvae=None,
        _class_name="MyPipeline",
        unet=["my", "UNet2DModel"],
    )
    assert "has a my.UNet2DModel as its unet" in refused(folder)


@pytest.fixture
def training(save_teacher, tiny_unet):
    """What diffusers' training example leaves: the pipeline, and checkpoints of two networks."""
    from diffusers.training_utils import EMAModel

    folder = save_teacher()
    for step in (500, 1000):
        checkpoint = folder / f"checkpoint-{step}"
        tiny_unet(seed=step).save_pretrained(checkpoint / "unet")
        network = tiny_unet(seed=step + 1)
        ema = EMAModel(
            network.parameters(), model_cls=diffusers.UNet2DModel, model_config=network.config
        )
        ema.save_pretrained(checkpoint / "unet_ema")
        (checkpoint / "optimizer.bin").write_bytes(b"")
    return folder


def test_either_network_of_a_training_checkpoint_loads_with_the_pipelines_schedule(
    training, tiny_unet, capfd
):
    averaged = digest_of(tiny_unet(seed=501))
    for source, subfolder in (
        (training, "checkpoint-500/unet_ema"),
        (training / "checkpoint-500", "unet_ema"),
        (training / "checkpoint-500" / "unet_ema", None),
    ):
        assert load_teacher(str(source), subfolder=subfolder).digest == averaged
    plain = load_teacher(str(training), subfolder="checkpoint-500/unet")
    assert plain.digest == digest_of(tiny_unet(seed=500))
    assert capfd.readouterr().err == ""
    shutil.rmtree(training / "checkpoint-500" / "unet")  # then there is nothing to choose
    assert load_teacher(str(training), subfolder="checkpoint-500").digest == averaged


def test_a_checkpoint_of_two_networks_says_what_to_type(training, tiny_unet):
    told = refused(training / "checkpoint-500")
    assert "holds two networks: give --subfolder unet_ema for the averaged" in told
    told = refused(training, subfolder="checkpoint-500")
    assert "give --subfolder checkpoint-500/unet_ema for the averaged" in told
    assert "or --subfolder checkpoint-500/unet for" in told


def test_a_training_that_has_not_ended_is_told_by_its_last_checkpoint(training):
    (training / "model_index.json").unlink()
    shutil.rmtree(training / "unet")
    assert "holds checkpoints: give --subfolder checkpoint-1000" in refused(training)
    shutil.rmtree(training / "scheduler")
    told = refused(training, subfolder="checkpoint-500/unet_ema")
    assert "scheduler_config.json is missing" in told
    # what it says to type makes it a teacher
    code = told[told.index('"') + 1 : told.rindex('"')]
    exec(code)
    assert load_teacher(str(training), subfolder="checkpoint-500/unet_ema").shape == (1, 8, 8)


def cache_of(save_teacher, tmp_path, *revisions):
    """The hub's cache of one teacher at these revisions; weights differ."""
    cache = tmp_path / "models--someone--something"
    for seed, revision in enumerate(revisions):
        save_teacher(folder=cache / "snapshots" / revision, seed=seed)
    return cache


def test_a_folder_of_the_hubs_cache_is_its_snapshot(save_teacher, tmp_path, tiny_unet):
    cache = cache_of(save_teacher, tmp_path, "aa11", "bb22")
    told = refused(cache)
    assert "give --revision, one of aa11, bb22" in told
    assert load_teacher(str(cache), revision="bb22").digest == digest_of(tiny_unet(seed=1))
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text("bb22")
    assert load_teacher(str(cache)).digest == digest_of(tiny_unet(seed=1))
    assert load_teacher(str(cache), revision="aa11").digest == digest_of(tiny_unet())
    assert "give --revision" in refused(cache, revision="cc")
    shutil.rmtree(cache / "refs")
    shutil.rmtree(cache / "snapshots" / "bb22")
    assert load_teacher(str(cache)).digest == digest_of(tiny_unet())
