"""Teachers: the one place that knows diffusers' models and schedulers.

A teacher is a pixel-space UNet2DModel with a variance-preserving discrete schedule. Here every
prediction type, learned variance and label convention ends: above this module a network is a
function (x, time, labels, alpha_bar) -> eps.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import logging
from dataclasses import dataclass, field
from pathlib import Path

import diffusers
import numpy as np
import torch
from diffusers import DDPMScheduler, UNet2DModel
from safetensors import SafetensorError
from torch import Tensor

from . import chain as chains
from . import schedule
from .chain import Chain, Network
from .config import ORIGIN, HsiviError, embedded

WEIGHTS = ("safetensors", "bin")  # files of weights end so, after a variant's name if they have one
PIPELINES = ("DDPMPipeline", "DDIMPipeline", "HSIVIPipeline")
SCHEDULERS = tuple(
    f"{name}Scheduler"
    for name in (
        "DDPM", "DDIM", "PNDM", "DPMSolverMultistep", "DPMSolverSinglestep",
        "UniPCMultistep", "DEISMultistep",
        "EulerDiscrete", "EulerAncestralDiscrete", "HeunDiscrete", "LMSDiscrete",
    )
)  # fmt: skip


@dataclass(frozen=True)
class Teacher:
    """A pretrained model, frozen, with its schedule.

    table        [T]        alpha_bar by time, float64
    shape        (C, H, W)
    label_count             classes, or None for an unconditional model
    scheduler               the diffusers scheduler, kept so that a student can be saved with it
    digest                  of the weights' content, which with prediction and schedule_name tells
                            one teacher from another
    origin                  revision, variant and subfolder, those that were given
    """

    name: str
    unet: UNet2DModel
    scheduler: DDPMScheduler
    table: Tensor
    prediction: str
    shape: tuple[int, int, int]
    label_count: int | None
    digest: str
    origin: dict[str, str] = field(default_factory=dict)

    @property
    def schedule_name(self) -> str:
        """The noise schedule in words that are equal for equal schedules: "linear 0.0001 to 0.02,
        1000 times".
        """
        config = self.scheduler.config
        kind, betas = config.beta_schedule, config.trained_betas
        if betas is not None:
            numbers = np.asarray(betas, dtype=np.float64)
            kind = f"trained betas {hashlib.sha256(numbers.tobytes()).hexdigest()[:12]}"
        elif kind != "squaredcos_cap_v2":  # which has no ends
            kind += f" {config.beta_start:g} to {config.beta_end:g}"
        return f"{kind}, {len(self.table)} times"

    @property
    def identity(self) -> dict[str, str]:
        """What a student's hsivi.json keeps of its teacher."""
        return {
            "name": self.name,
            "digest": self.digest,
            "prediction": self.prediction,
            "schedule": self.schedule_name,
        } | self.origin

    def network(self, unet: UNet2DModel | None = None, dtype: str = "float32") -> Network:
        """This teacher's UNet, or another of the same kind, as an eps network."""
        return eps_network(unet or self.unet, self.table, self.prediction, dtype)

    def new_unet(self) -> UNet2DModel:
        """A copy of the teacher's network that can be trained; still in eval mode, as dropout would
        move the target.
        """
        return copy.deepcopy(self.unet).requires_grad_(True)

    def told_unet(self, rows: int) -> UNet2DModel:
        """A `new_unet` whose labels are row * label_count + label, row in 0..rows-1: each row has
        label embeddings of its own, at first the teacher's, or zeros where it has none.
        """
        unet = self.new_unet()
        width = unet.time_embedding.linear_2.out_features
        own = torch.zeros(1, width) if self.label_count is None else unet.class_embedding.weight
        table = own.detach().to(unet.device).repeat(rows, 1)
        unet.class_embedding = torch.nn.Embedding.from_pretrained(table, freeze=False)
        return unet


def difference(told: dict[str, str], own: dict[str, str]) -> str | None:
    """In what one teacher's `identity` is another's: a few words, or None.

    The name may differ: a teacher may have moved. Where one keeps no schedule, it is believed.
    """
    parts = {"digest": "weights", "prediction": "prediction type", "schedule": "noise schedule"}
    for key, words in parts.items():
        if key in told and key in own and told[key] != own[key]:
            return f"other {words} ({told[key]} of {told['name']}, {own[key]} of {own['name']})"
    return None


def eps_network(
    unet: UNet2DModel, table: Tensor, prediction: str, dtype: str = "float32"
) -> Network:
    """A UNet as a function (x [B,C,H,W], time [B], labels, alpha_bar [B] or None: looked up at
    time) -> eps, float32.
    """

    def network(
        x: Tensor, time: Tensor, labels: Tensor | None = None, alpha_bar: Tensor | None = None
    ) -> Tensor:
        if alpha_bar is None:
            alpha_bar = table.to(time.device)[time.long()]
        low = (
            torch.autocast(x.device.type, torch.bfloat16)
            if dtype == "bfloat16"
            else contextlib.nullcontext()
        )
        with low:
            output = unet(x, time, class_labels=labels).sample
        output = output.float()[:, : x.shape[1]]  # a learned variance comes second and is not used
        return schedule.to_eps(output, x, alpha_bar, prediction)

    return network


# ---- loading -------------------------------------------------------------------------------------


def load_teacher(
    source: str | None = None,
    device: str | torch.device = "cpu",
    revision: str | None = None,
    variant: str | None = None,
    subfolder: str | None = None,
) -> Teacher:
    """A teacher from a local diffusers directory, a hub id, or (None) the embedded one.

    The directory is a DDPM or DDIM pipeline, its parts in folders or at the root, or a bare
    UNet2DModel with its scheduler_config.json beside it or in scheduler/.
    Raises HsiviError for anything else, naming what was found.
    """
    name = "embedded:teacher" if source is None else source
    folder = find_folder(name, revision, subfolder)
    unet_folder, scheduler_file = folder, folder / "scheduler" / "scheduler_config.json"
    if (folder / "model_index.json").exists():
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
        if (folder / "unet").is_dir() or not (folder / "config.json").exists():
            unet_folder = folder / "unet"  # older pipelines keep their parts at the root
    if unet_folder == folder and not scheduler_file.exists():
        scheduler_file = folder / "scheduler_config.json"
    for file in (unet_folder / "config.json", scheduler_file):
        if not file.exists():
            raise HsiviError(f"{name} is no diffusers teacher: {file} is missing")
    scheduler, table = load_schedule(scheduler_file, name)
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
        origin={k: v for k, v in zip(ORIGIN, (revision, variant, subfolder), strict=True) if v},
    )


def find_folder(source: str, revision: str | None, subfolder: str | None) -> Path:
    """The local folder of a teacher: itself, or the hub's snapshot of the files that a teacher can
    need.
    """
    path = embedded(source)
    if not path.is_dir():
        if (
            path.exists()
            or source.startswith((".", "/", "~", "embedded:"))
            or source.count("/") != 1
        ):
            raise HsiviError(
                f"there is no teacher at {source}: give a diffusers directory or a hub id such as "
                "google/ddpm-cifar10-32"
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


def read_json(path: Path) -> dict:
    """The object in a JSON file."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise HsiviError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(found, dict):
        raise HsiviError(f"{path} holds no JSON object but a {type(found).__name__}")
    return found


def load_schedule(file: Path, name: str) -> tuple[DDPMScheduler, Tensor]:
    """The schedule of a scheduler_config.json as a DDPMScheduler, and its table of alpha_bar."""
    config = read_json(file)
    kind = config.get("_class_name", "DDPMScheduler")
    if kind not in SCHEDULERS:
        raise HsiviError(
            f"{name} has a {kind}; only variance-preserving discrete schedules (DDPM, DDIM and "
            "their solvers) are supported"
        )
    prediction = config.get("prediction_type", "epsilon")
    if prediction not in schedule.PREDICTIONS:
        raise HsiviError(
            f"{name} predicts {prediction!r}; supported are {', '.join(schedule.PREDICTIONS)}"
        )
    known = {
        "num_train_timesteps",
        "beta_start",
        "beta_end",
        "beta_schedule",
        "trained_betas",
        "prediction_type",
        "rescale_betas_zero_snr",
    }
    try:
        scheduler = DDPMScheduler(
            **{k: v for k, v in config.items() if k in known}, clip_sample=False
        )
    except (RuntimeError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise HsiviError(f"{file} describes no schedule: {reason}") from error
    table = scheduler.alphas_cumprod.double()
    if len(table) == 0 or not (table.diff() <= 0).all() or not (0 <= table[-1] <= table[0] < 1):
        raise HsiviError(
            f"{file} describes no schedule: betas lie in (0, 1), and alpha_bar falls from below 1"
        )
    if config.get("rescale_betas_zero_snr") or table[-1] < 1e-12:  # cosine betas end at 2e-9
        raise HsiviError(
            f"{name} has a schedule with zero terminal SNR, where eps says nothing about x0; such "
            "teachers are not supported"
        )
    return scheduler, table


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
    quiet.setLevel(logging.ERROR)
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


def digest_of(module: torch.nn.Module) -> str:
    """A short hash of a module's weights, whatever file or precision they came from."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().float().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


# ---- solvers -------------------------------------------------------------------------------------

DIFFUSERS_SPACINGS = ("linspace", "leading", "trailing", "karras")
GRID_SPACINGS = ("quad", "log-snr", "auto")  # schedule.grid's
OWN_SPACINGS = (*DIFFUSERS_SPACINGS, *GRID_SPACINGS)
MULTISTEP = {
    "dpm++2": ("DPMSolverMultistepScheduler", {"solver_order": 2}),
    "dpm++3": ("DPMSolverMultistepScheduler", {"solver_order": 3}),
    "unipc": ("UniPCMultistepScheduler", {"solver_order": 3}),
    "deis": ("DEISMultistepScheduler", {"solver_order": 3}),
}
OWN = {"ddim": chains.ddim_chain, "ipndm": chains.ipndm_chain, "heun": chains.heun_chain}
SOLVERS = {name: OWN_SPACINGS for name in (*OWN, *MULTISTEP)} | {
    name: (*OWN_SPACINGS, "lu") for name in ("dpm++2", "dpm++3")
}
NOISY = "it adds noise at every step, and only deterministic linear solvers are compared"
NOT_HERE = {
    "euler": "under a variance-preserving schedule that is ddim",
    "pndm": "its later form is ipndm",
    "lms": "ipndm is of its kind",
} | dict.fromkeys(("ddpm", "euler-a", "sde-dpm++", "dpm++-sde", "lcm", "tcd"), NOISY)


def solver_names(families: tuple[str, ...] = tuple(SOLVERS)) -> list[str]:
    """Every solver with every spacing it has: "ddim-linspace", "dpm++3-lu", ..."""
    return [f"{family}-{spacing}" for family in families for spacing in SOLVERS[family]]


def solver(name: str, nfe: int, scheduler: DDPMScheduler, table: Tensor) -> Chain:
    """A training-free solver as a chain of nfe calls on a teacher's schedule. "dpm++3" is
    "dpm++3-linspace".
    """
    family, spacing = parse_solver(name)
    if not 1 <= nfe <= len(table):
        raise HsiviError(f"{name} cannot take {nfe} calls on a schedule of {len(table)} times")
    if family == "heun" and nfe % 2 == 0:
        raise HsiviError(
            f"{name} takes two calls a step but one for the last: {nfe} calls do not fit, ask for "
            f"{nfe - 1} or {nfe + 1}"
        )
    if family in MULTISTEP:
        return chains.solver_chain(multistep(family, spacing, nfe, scheduler))
    time = own_times(spacing, (nfe + 1) // 2 if family == "heun" else nfe, table)
    check_times(name, time, nfe)
    return OWN[family]([-1, *time], torch.cat([torch.ones(1).double(), table[time]]))


def parse_solver(name: str) -> tuple[str, str]:
    """A solver's family and spacing. Refuses names that there are not, with those that there
    are.
    """
    found = [f for f in SOLVERS if name == f or name.startswith(f + "-")]
    if not found:
        why = f" ({NOT_HERE[name]})" if name in NOT_HERE else ""
        raise HsiviError(
            f"there is no solver {name!r}{why}: solvers are {', '.join(SOLVERS)}, also with a "
            "spacing as in dpm++3-lu"
        )
    family = found[0]
    spacing = name[len(family) + 1 :] or "linspace"
    if spacing not in SOLVERS[family]:
        raise HsiviError(
            f"there is no solver {name!r}: {family} has the spacings {', '.join(SOLVERS[family])}"
        )
    return family, spacing


def multistep(family: str, spacing: str, nfe: int, scheduler: DDPMScheduler) -> object:
    """The diffusers scheduler of a solver, its timesteps set, fed with eps."""
    kind, options = MULTISTEP[family]
    config = {key: scheduler.config[key] for key in ("num_train_timesteps", "beta_schedule")}
    # the betas themselves, as not every solver knows every schedule by name
    options = (
        options | config | {"trained_betas": scheduler.betas.tolist(), "prediction_type": "epsilon"}
    )
    if spacing in ("lu", "karras"):
        options["use_lu_lambdas" if spacing == "lu" else "use_karras_sigmas"] = True
    elif spacing not in GRID_SPACINGS:
        options["timestep_spacing"] = spacing
    made = getattr(diffusers, kind)(**options)
    made.set_timesteps(nfe)
    if spacing in GRID_SPACINGS:
        table = scheduler.alphas_cumprod.double()
        at_times(made, own_times(spacing, nfe, table), table)
    check_times(f"{family}-{spacing}", made.timesteps.tolist(), nfe)
    return made


def at_times(made, times: list[int], table: Tensor) -> None:
    """Move a multistep scheduler, its timesteps set, to other rising times. Only DPM-Solver++
    takes them by `set_timesteps`; all read their levels from `sigmas`, whose last is where they
    end.
    """
    ratio = schedule.noise_to_signal(table[times]).flip(0)
    made.timesteps = torch.tensor(times).flip(0)
    made.sigmas = torch.cat([ratio.to(made.sigmas), made.sigmas[-1:]])


def unipc_at(times: list[int], scheduler: DDPMScheduler, table: Tensor) -> Chain:
    """UniPC of third order over these rising times of network calls, as a chain."""
    made = multistep("unipc", "linspace", len(times), scheduler)
    at_times(made, times, table)
    return chains.solver_chain(made)


def check_times(name: str, times: list, nfe: int) -> None:
    """Refuse a spacing that rounds two calls to one time: diffusers fails there with an IndexError,
    or walks wrongly.
    """
    if len(set(times)) < len(times):
        raise HsiviError(
            f"{name} visits a time twice in {nfe} calls on this schedule; ask for fewer, or "
            "another spacing"
        )


def own_times(spacing: str, count: int, table: Tensor) -> list[int]:
    """`count` times of network calls, rising; the spacings' names are diffusers'."""
    end = len(table)
    if spacing == "linspace":
        times = np.linspace(0, end - 1, count + 1).round()[1:]
    elif spacing == "leading":
        times = np.arange(1, count + 1) * (end // (count + 1))
    elif spacing == "trailing":
        times = (end - np.arange(count) * end / count).round()[::-1] - 1
    elif spacing == "karras":  # equal steps of the 7th root of the ratio [Karras et al. 2022]
        ratio = schedule.noise_to_signal(table)
        low, high = ratio[0] ** (1 / 7), ratio[-1] ** (1 / 7)
        share = torch.linspace(1, 0, count, dtype=torch.float64).flip(0)
        times = schedule.nearest(ratio, (low + share * (high - low)) ** 7)
    else:
        times = schedule.grid(spacing, count, table)[1:]
    return [int(t) for t in times]
