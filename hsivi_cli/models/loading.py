"""Teachers from a folder or the hub: what diffusers wrote, checked."""

from __future__ import annotations

import logging
from pathlib import Path

import torch
from diffusers import UNet2DModel
from safetensors import SafetensorError

from ..config import ORIGIN
from ..errors import HsiviError
from ..files.places import embedded, embedded_names
from ..files.progress import say
from ..files.whole import check_finite, read_json
from .schedules import clip_of, load_schedule, unlike_noise
from .teacher import Teacher, digest_of

WEIGHTS = ("safetensors", "bin")  # files of weights end so, after a variant's name if they have one
PIPELINES = ("DDPMPipeline", "DDIMPipeline", "HSIVIPipeline")


def load_teacher(
    source: str | None = None,
    device: str | torch.device = "cpu",
    revision: str | None = None,
    variant: str | None = None,
    subfolder: str | None = None,
) -> Teacher:
    """A teacher from a local diffusers directory, a hub id, or (None) the embedded one.

    The directory is a DDPM or DDIM pipeline, with or without its model_index.json, its parts in
    folders or at the root, or a bare UNet2DModel with its scheduler_config.json beside it or in
    scheduler/.
    Raises HsiviError for anything else, naming what was found; warns of a schedule that does not
    end in noise.
    """
    teacher = read_teacher(source, device, revision, variant, subfolder)
    if warning := unlike_noise(teacher.table, teacher.name):
        say(warning)
    return teacher


def read_teacher(
    source: str | None = None,
    device: str | torch.device = "cpu",
    revision: str | None = None,
    variant: str | None = None,
    subfolder: str | None = None,
) -> Teacher:
    """`load_teacher` without a warning: a student's own network begins where its chain does."""
    name = "embedded:teacher" if source is None else source
    folder = find_folder(name, revision, subfolder)
    unet_folder, scheduler_file = folder, folder / "scheduler" / "scheduler_config.json"
    pipeline = (folder / "model_index.json").exists()
    if pipeline:
        index = read_json(folder / "model_index.json")
        parts = index.get("unet")
        if index.get("_class_name") not in PIPELINES:
            found = index.get("_class_name")
            raise HsiviError(
                f"{name} is a {found}; a teacher is a pixel-space {PIPELINES[0]} or {PIPELINES[1]}"
            )
        component = parts[1] if isinstance(parts, list) and len(parts) == 2 else parts
        if component != "UNet2DModel":
            raise HsiviError(
                f"{name} has a {component} as its unet; only UNet2DModel teachers can be distilled"
            )
    at_root = (folder / "config.json").exists()  # a bare network, or an older pipeline's
    in_unet = (folder / "unet").is_dir()
    if (pipeline and in_unet) or (not at_root and (pipeline or in_unet)):
        unet_folder = folder / "unet"
    if unet_folder == folder and not scheduler_file.exists():
        scheduler_file = folder / "scheduler_config.json"
    for file in (unet_folder / "config.json", scheduler_file):
        if not file.exists():
            raise HsiviError(f"{name} is no diffusers teacher: {file} is missing")
    scheduler, table = load_schedule(scheduler_file, name)
    clip = clip_of(read_json(scheduler_file), scheduler_file)
    unet = load_unet(unet_folder, name, variant).to(device)
    config = unet.config
    size = config.sample_size
    size = list(size) if isinstance(size, (list, tuple)) else [size] * 2
    if len(size) != 2 or not all(type(side) is int for side in size):
        raise HsiviError(
            f"{name} does not say its image size: set sample_size in {unet_folder / 'config.json'}"
        )
    halved = 2 ** (len(config.down_block_types) - 1)
    if any(side < 1 or side % halved for side in size):
        raise HsiviError(
            f"{name} cannot draw images of {size[0]} x {size[1]}: its network halves a side to a "
            f"{halved}th; set a sample_size in {unet_folder / 'config.json'} that {halved} divides"
        )
    return Teacher(
        name=name,
        unet=unet.requires_grad_(False).eval(),
        scheduler=scheduler,
        table=table,
        prediction=scheduler.config.prediction_type,
        shape=(config.in_channels, *size),
        label_count=config.num_class_embeds,
        digest=digest_of(unet),
        clip=clip,
        origin={k: v for k, v in zip(ORIGIN, (revision, variant, subfolder), strict=True) if v},
    )


def find_folder(source: str, revision: str | None, subfolder: str | None) -> Path:
    """The local folder of a teacher: itself, or the hub's snapshot of the files that a teacher can
    need.
    """
    path = embedded(source)
    if not path.is_dir():
        if path.exists() or source.startswith((".", "/", "~")) or source.count("/") != 1:
            raise HsiviError(
                f"there is no teacher at {source}: give a diffusers directory, a hub id such as "
                f"google/ddpm-cifar10-32, or one of {', '.join(embedded_names())}"
            )
        from huggingface_hub import snapshot_download

        patterns = ["*.json", "*.safetensors", "*.bin"]
        patterns += [f"{part}/{p}" for part in ("unet", "scheduler") for p in patterns]
        patterns = [f"{subfolder}/{p}" for p in patterns] if subfolder else patterns
        try:
            path = Path(snapshot_download(source, revision=revision, allow_patterns=patterns))
        except Exception as error:  # the hub's client raises some twenty kinds
            reason = (
                str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            )
            raise HsiviError(
                f"could not fetch {source} from the hub ({reason}); there is no such folder here "
                "either"
            ) from error
    path = path / subfolder if subfolder else path
    if not path.is_dir():
        raise HsiviError(f"{source} has no subfolder {subfolder}")
    return path


def load_unet(folder: Path, name: str, variant: str | None) -> UNet2DModel:
    """A UNet2DModel in float32 with every weight found in its file."""
    kind = read_json(folder / "config.json").get("_class_name")
    if kind != "UNet2DModel":
        raise HsiviError(f"{name} is a {kind}; only UNet2DModel teachers can be distilled")
    files = [file.name for file in folder.glob("diffusion_pytorch_model*.*")]
    if variant is None and not any(file.split(".")[1] in WEIGHTS for file in files):
        variants = sorted({file.split(".")[1] for file in files if file.count(".") == 2})
        if variants:
            raise HsiviError(
                f"{name} has weights of the variant {' and '.join(variants)} alone: give --variant "
                f"{variants[0]}"
            )
    quiet = logging.getLogger("diffusers.models.modeling_utils")
    level = quiet.level
    quiet.setLevel(logging.CRITICAL)  # it calls .bin weights an error, and loads them
    try:
        unet, found = UNet2DModel.from_pretrained(
            folder,
            variant=variant,
            torch_dtype=torch.float32,
            local_files_only=True,
            output_loading_info=True,
        )
    except (
        *(OSError, ValueError, RuntimeError, SafetensorError, EOFError),
        *(TypeError, LookupError, AttributeError),  # of a damaged config.json
    ) as error:
        reason = " ".join(str(error).split())[:300]
        raise HsiviError(
            f"the weights in {folder} cannot be loaded; fetch or copy them again ({reason})"
        ) from error
    finally:
        quiet.setLevel(level)
    missing = found["missing_keys"] or found["mismatched_keys"]
    if missing:
        raise HsiviError(
            f"the weights in {folder} do not fit their config.json: {missing[0]} is missing or "
            "has another shape"
        )
    check_finite(unet.state_dict(), folder)
    if unet.config.out_channels not in (unet.config.in_channels, 2 * unet.config.in_channels):
        channels = f"{unet.config.in_channels} channels in and {unet.config.out_channels} out"
        raise HsiviError(
            f"{name} has {channels}; a teacher has as many out as in, or twice as many with a "
            "learned variance"
        )
    if unet.config.class_embed_type is not None:
        raise HsiviError(
            f"{name} is conditioned by {unet.config.class_embed_type!r}; only class labels "
            "(num_class_embeds) are supported"
        )
    return unet
