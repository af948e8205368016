"""Files of weights in every way that diffusers and its users write them."""

import json

import pytest
import torch
from conftest import edit_json, refused
from safetensors.torch import load_file, save_file

from hsivi_cli.models.loading import load_teacher
from hsivi_cli.models.teacher import digest_of
from hsivi_cli.models.weights import chosen, files_of

STEM = "diffusion_pytorch_model"


def file_of(folder, ending="safetensors"):
    return folder / "unet" / f"{STEM}.{ending}"


def shard(folder, ending, variant=None):
    """Replace a teacher's one file by three shards and their index, as diffusers names them."""
    tensors = load_file(file_of(folder))
    file_of(folder).unlink()
    own, index = f".{variant}" if variant else "", {}
    for i in range(3):
        name = f"{STEM}{own}-{i + 1:05d}-of-00003.{ending}"
        part = {key: tensors[key] for key in sorted(tensors)[i::3]}
        path = folder / "unet" / name
        save_file(part, path) if ending == "safetensors" else torch.save(part, path)
        index |= dict.fromkeys(part, name)
    text = json.dumps({"metadata": {"total_size": 0}, "weight_map": index})
    file = folder / "unet" / f"{STEM}.{ending}.index{own}.json"
    file.write_text(text)
    return file


@pytest.mark.parametrize("ending", ["safetensors", "bin"])
@pytest.mark.parametrize("variant", [None, "fp16"])
def test_shards_are_the_network_that_they_are_of(save_teacher, ending, variant):
    folder = save_teacher()
    digest = load_teacher(str(folder)).digest
    shard(folder, ending, variant)
    assert load_teacher(str(folder), variant=variant).digest == digest
    if variant:
        assert "of the variant fp16 alone: give --variant fp16" in refused(folder)


def test_shards_that_are_not_all_there_or_lie_elsewhere_are_refused(save_teacher):
    folder = save_teacher()
    index = shard(folder, "safetensors")
    (folder / "unet" / f"{STEM}-00002-of-00003.safetensors").unlink()
    assert f"{index} names {STEM}-00002-of-00003.safetensors, which is not bes" in refused(folder)
    (folder / "secret.safetensors").write_bytes(b"")
    for told in ({"conv_in.weight": "../secret.safetensors"}, {"conv_in.weight": 3}, [], None):
        edit_json(index, weight_map=told)
        assert "names" in refused(folder)
    index.write_text("[" * 100_000)
    assert f"{index} cannot be read as JSON" in refused(folder)


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "module._orig_mod."])
def test_weights_of_a_wrapped_network_are_its_own(save_teacher, prefix):
    folder = save_teacher()
    digest = load_teacher(str(folder)).digest
    tensors = load_file(file_of(folder))
    save_file({prefix + name: tensor for name, tensor in tensors.items()}, file_of(folder))
    assert load_teacher(str(folder)).digest == digest


def test_attention_of_earlier_versions_is_read(save_teacher):
    folder = save_teacher()
    digest = load_teacher(str(folder)).digest
    old, tensors = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}, {}
    for name, tensor in load_file(file_of(folder)).items():
        for now, then in old.items():
            name = name.replace(f".{now}.", f".{then}.")
        tensors[name] = tensor
    assert any(".proj_attn." in name for name in tensors)
    save_file(tensors, file_of(folder))
    assert load_teacher(str(folder)).digest == digest


def test_weights_that_the_network_has_no_place_for_are_told(save_teacher, tiny_unet, capfd):
    folder = save_teacher()
    tensors = load_file(file_of(folder)) | {"class_embedding.weight": torch.zeros(3, 32)}
    save_file(tensors, file_of(folder))
    assert load_teacher(str(folder)).digest == digest_of(tiny_unet())
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("warning: ") and "1 tensor" in line and "class_embedding.weight" in line


def test_a_variant_that_is_not_there_is_told_with_those_that_are(save_teacher):
    folder = save_teacher()
    assert "has no weights of --variant fp16: give no --variant" in refused(folder, variant="fp16")
    file_of(folder).rename(file_of(folder, "ema.safetensors"))
    told = refused(folder, variant="fp16")
    assert "no weights of --variant fp16: give --variant ema" in told


def test_a_bin_that_holds_no_weights_is_refused_and_runs_nothing(save_teacher):
    folder = save_teacher(safe=False)
    for content in ([1, 2], {"state_dict": {"x": torch.zeros(1)}}, {"x": print}):
        torch.save(content, file_of(folder, "bin"))
        assert f"the weights in {file_of(folder, 'bin')} cannot be loaded" in refused(folder)
    torch.save({"x": torch.tensor(float("nan"))}, file_of(folder, "bin"))
    assert "x holds NaN" in refused(folder)


SHARDS = [f"{STEM}-0000{i}-of-00002.safetensors" for i in (1, 2)]
HALF = [f"{STEM}.fp16-0000{i}-of-00002.safetensors" for i in (1, 2)]
OLD_HALF = [f"{STEM}-0000{i}-of-00002.fp16.safetensors" for i in (1, 2)]
INDEX = f"{STEM}.safetensors.index"


@pytest.mark.parametrize(
    ("names", "variant", "read"),
    [
        ([f"{STEM}.bin", f"{STEM}.safetensors"], None, [f"{STEM}.safetensors"]),
        ([f"{STEM}.bin", f"{STEM}.fp16.safetensors"], None, [f"{STEM}.bin"]),
        ([f"{STEM}.bin", f"{STEM}.fp16.safetensors"], "fp16", [f"{STEM}.fp16.safetensors"]),
        ([f"{STEM}.bin", f"{INDEX}.json", *SHARDS], None, [f"{INDEX}.json", *SHARDS]),
        (
            [f"{INDEX}.json", f"{INDEX}.fp16.json", *SHARDS, *HALF],
            "fp16",
            [f"{INDEX}.fp16.json", *HALF],
        ),
        ([f"{INDEX}.json", f"{INDEX}.fp16.json", *SHARDS, *HALF], None, [f"{INDEX}.json", *SHARDS]),
        ([f"{INDEX}.fp16.json", *OLD_HALF], "fp16", [f"{INDEX}.fp16.json", *OLD_HALF]),
        (["optimizer.bin", f"{STEM}.bin", f"{STEM}_old.bin"], None, [f"{STEM}.bin"]),
    ],
)
def test_the_files_that_are_read_are_one_network_and_safe_where_they_can_be(names, variant, read):
    assert sorted(files_of(chosen(names, variant, "it"), names)) == sorted(read)


def test_weights_of_eight_bit_floats_are_read(save_teacher):
    folder = save_teacher()
    lowered = {n: t.to(torch.float8_e4m3fn) for n, t in load_file(file_of(folder)).items()}
    save_file(lowered, file_of(folder))
    loaded = load_teacher(str(folder)).unet.state_dict()
    assert all(torch.equal(loaded[name], tensor.float()) for name, tensor in lowered.items())


@pytest.mark.parametrize("dtype", [torch.int8, torch.complex64, torch.bool])
def test_weights_that_are_no_fractions_are_refused(save_teacher, dtype):
    folder = save_teacher()
    tensors = load_file(file_of(folder))
    save_file(tensors | {"conv_in.weight": tensors["conv_in.weight"].to(dtype)}, file_of(folder))
    assert f"conv_in.weight holds {dtype} numbers" in refused(folder)
