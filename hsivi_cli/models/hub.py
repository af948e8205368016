"""Teachers from the hub: the files that a teacher needs, and no others.

The hub is asked for the list of files whenever a teacher is named by its hub id; what is in its
cache is not fetched again, and serves where the hub cannot be reached or the network is forbidden.
"""

from __future__ import annotations

import glob
from collections.abc import Collection
from pathlib import Path, PurePosixPath

from ..errors import HsiviError
from ..files.network import FORBIDDEN, is_offline
from .layouts import AVERAGED, INDEX, NETWORK, find_parts, schedule_places, snapshot_of
from .weights import chosen, files_of


def is_hub_id(source: str) -> bool:
    """Whether the hub could have a teacher of this name."""
    from huggingface_hub.utils import HFValidationError, validate_repo_id  # slow

    try:
        validate_repo_id(source)
    except HFValidationError:
        return False
    return source.count("/") == 1


def fetch(source: str, revision: str | None, variant: str | None, subfolder: str | None) -> Path:
    """The hub's snapshot of a teacher: its descriptions first and then, where they are a teacher's,
    its weights.
    """
    from huggingface_hub import HfApi, snapshot_download  # slow, and few need it
    from huggingface_hub.constants import HF_HUB_CACHE
    from huggingface_hub.file_download import repo_folder_name

    cache = Path(HF_HUB_CACHE) / repo_folder_name(repo_id=source, repo_type="model")
    if is_offline():
        if (cache / "snapshots").is_dir():
            return snapshot_of(cache, revision)
        raise HsiviError(
            f"{source} is neither a folder here nor in the hub's cache, and {FORBIDDEN}: give a "
            "folder, or fetch it once without"
        )
    try:
        names = [file.rfilename for file in HfApi().model_info(source, revision=revision).siblings]
        needed = descriptions(names, subfolder)
        if not needed:
            where = f" in {subfolder}" if subfolder else ""
            raise HsiviError(f"{source} on the hub holds no diffusers teacher{where}")
        folder = download(snapshot_download, source, revision, needed)
        unet, _ = find_parts(folder / (subfolder or ""), source, subfolder)
        needed += weights_of(names, unet.relative_to(folder).as_posix(), variant, source)
        return download(snapshot_download, source, revision, needed)
    except HsiviError:
        raise
    except Exception as error:  # the hub's client raises some twenty kinds
        if (cache / "snapshots").is_dir():
            return snapshot_of(cache, revision)
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise HsiviError(
            f"could not fetch {source} from the hub ({reason}); there is no such folder here either"
        ) from error


def download(snapshot_download, source: str, revision: str | None, names: list[str]) -> Path:
    """The hub's snapshot with these files."""
    patterns = [glob.escape(name) for name in names]
    return Path(snapshot_download(source, revision=revision, allow_patterns=patterns))


def descriptions(names: Collection[str], subfolder: str | None = None) -> list[str]:
    """Of a repository's files, those that tell whether a teacher lies in a subfolder, and which."""
    base = PurePosixPath(subfolder or "")
    wanted = {base / INDEX, *schedule_places(base)}
    wanted |= {part / NETWORK for part in (base, base / "unet", base / AVERAGED)}
    return sorted(name for name in names if PurePosixPath(name) in wanted)


def weights_of(names: Collection[str], folder: str, variant: str | None, place: str) -> list[str]:
    """Of a repository's files, the weights in a folder to fetch."""
    paths = [PurePosixPath(name) for name in names]
    inside = {path.name: str(path) for path in paths if path.parent == PurePosixPath(folder)}
    files = files_of(chosen(inside, variant, place), inside)
    return [inside[file] for file in files]
