"""Published models by name: where they are on the Hugging Face Hub, and how they come into its cache on this machine.

A broken connection is resumed where it broke; a run that was killed goes on with the first file that is not whole.
Downloads take the token of `hf auth login` or HF_TOKEN, stay off the network under HF_HUB_OFFLINE=1, and go to
HF_ENDPOINT and HF_HOME where these are set: huggingface_hub sees to all of that.
"""

from __future__ import annotations

import hashlib
import logging
import re
import shutil
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from evo2cli.console import log
from evo2cli.errors import UserError

REPOSITORIES = {
    "evo2_1b_base": "arcinstitute/evo2_1b_base",
    "evo2_7b_base": "arcinstitute/evo2_7b_base",
    "evo2_7b_microviridae": "evo-design/evo-2-7b-8k-microviridae",
    "evo2_7b_262k": "arcinstitute/evo2_7b_262k",
    "evo2_7b": "arcinstitute/evo2_7b",
    "evo2_20b": "arcinstitute/evo2_20b",
    "evo2_40b_base": "arcinstitute/evo2_40b_base",
    "evo2_40b": "arcinstitute/evo2_40b",
}


def fetch(name: str) -> Path:
    """The path of a published model's checkpoint: in the cache already, or downloaded now.

    Raises:
        UserError: there is no network, no access, or no room.
    """
    return find_cached(name) or pull(name)


def find_cached(name: str) -> Path | None:
    """The checkpoint in the hub's cache, if it is there whole; asks no network."""
    from huggingface_hub import try_to_load_from_cache

    for file in (f"{name}.pt", f"{name}.pt.part0"):
        path = try_to_load_from_cache(REPOSITORIES[name], file)
        if isinstance(path, str):
            return _whole(Path(path))
    return None


def _whole(file: Path) -> Path | None:
    """The checkpoint that this is, or is the first part of; None while its end is not there."""
    from stripedhyena2.checkpoints.torch_file import JoinedFile, files_of, whole_name
    from stripedhyena2.errors import CheckpointError

    try:
        with JoinedFile(files_of(file)) as joined:
            return whole_name(file) if zipfile.is_zipfile(joined) else None
    except (CheckpointError, OSError):
        return None


@dataclass(frozen=True)
class _Remote:
    """A file in a repository; `sha256` is None where the hub has none for it."""

    name: str
    size: int
    sha256: str | None


def pull(name: str) -> Path:
    """Download a published model's checkpoint into the hub's cache, or what is missing of it, and check its sha256."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.utils import disable_progress_bars, enable_progress_bars

    repository = REPOSITORIES[name]
    quiet = not sys.stderr.isatty() or not log.isEnabledFor(logging.INFO)
    (disable_progress_bars if quiet else enable_progress_bars)()
    with _explained(name):
        files = _remote_files(name)
        _demand_room(name, files)
        size = sum(file.size for file in files)
        log.info("downloading %s: %d file%s, %.1f GB", repository, len(files), "s"[: len(files) > 1], size / 1e9)
        paths = [Path(hf_hub_download(repository, file.name)) for file in files]
    for file, path in zip(files, paths, strict=True):
        _demand_checksum(file, path)
    found = _whole(paths[0])
    if found is None:
        raise UserError(
            f"{paths[0]} is no checkpoint, or not all of it; remove it and pull again: evo2 model pull {name}"
        )
    return found


def _remote_files(name: str) -> list[_Remote]:
    from huggingface_hub import HfApi

    siblings = HfApi().model_info(REPOSITORIES[name], files_metadata=True).siblings or []
    by_name = {s.rfilename: _Remote(s.rfilename, s.size or 0, s.lfs.sha256 if s.lfs else None) for s in siblings}
    files = _weights(name, sorted(by_name))
    if not files:
        raise UserError(f"{REPOSITORIES[name]} has no checkpoint named {name}.pt; {_by_hand(name)}")
    return [by_name[file] for file in files]


def _weights(name: str, names: list[str]) -> list[str]:
    """Of the files of a repository, those of the checkpoint: one, or its parts in order."""
    if f"{name}.pt" in names:
        return [f"{name}.pt"]
    part = re.compile(re.escape(f"{name}.pt.part") + r"(\d+)")
    parts = {int(match[1]): file for file in names if (match := part.fullmatch(file))}
    if sorted(parts) != list(range(len(parts))):
        raise UserError(f"{REPOSITORIES[name]} lacks parts of {name}.pt: there are {', '.join(parts.values())}")
    return [parts[i] for i in sorted(parts)]


def _demand_room(name: str, files: list[_Remote]) -> None:
    from huggingface_hub import constants, try_to_load_from_cache

    cache = Path(constants.HF_HUB_CACHE)
    missing = sum(f.size for f in files if not isinstance(try_to_load_from_cache(REPOSITORIES[name], f.name), str))
    place = next(folder for folder in (cache, *cache.parents) if folder.exists())
    free = shutil.disk_usage(place).free
    if free < missing:
        raise UserError(
            f"{name} needs {missing / 1e9:.1f} GB and {cache} has {free / 1e9:.1f} GB free; make room or set HF_HOME"
        )


def _demand_checksum(file: _Remote, path: Path) -> None:
    if file.sha256 is None:
        return
    with path.open("rb") as opened:
        found = hashlib.file_digest(opened, "sha256").hexdigest()
    if found != file.sha256:
        path.resolve().unlink()
        path.unlink(missing_ok=True)
        raise UserError(f"{file.name} came damaged (its sha256 is {found}, not {file.sha256}); pull it again")


def recorded_checksum(path: Path) -> str | None:
    """The sha256 that the hub gave a file of its cache: the name under which its contents are kept there."""
    blob = path.resolve().name
    return blob if path.is_symlink() and re.fullmatch("[0-9a-f]{64}", blob) else None


def _by_hand(name: str) -> str:
    from huggingface_hub import constants

    address = f"{constants.ENDPOINT}/{REPOSITORIES[name]}"
    return f"fetch {name}.pt (or its .partN files) from {address} by other means and give its path: --model {name}.pt"


def _disconnected(name: str, error: Exception) -> str:
    reason = " ".join(str(error.__cause__ or error).split())[:200] or type(error).__name__
    return f"no connection to the hub for {name} ({reason}); whole files are kept: pull again, or {_by_hand(name)}"


@contextmanager
def _explained(name: str) -> Iterator[None]:
    """Turns what can go wrong on the way from the hub into one line of what to do."""
    from huggingface_hub import constants, errors

    repository = REPOSITORIES[name]
    login = "log in with: hf auth login (or set HF_TOKEN)"
    try:
        yield
    except errors.GatedRepoError as e:
        raise UserError(f"{repository} asks you to accept its terms on its web page first; then {login}") from e
    except errors.RepositoryNotFoundError as e:
        raise UserError(f"the hub shows no {repository}, or not to you; {login}, or {_by_hand(name)}") from e
    except (errors.OfflineModeIsEnabled, errors.LocalEntryNotFoundError) as e:
        if constants.HF_HUB_OFFLINE:
            raise UserError(f"{name} is not here and HF_HUB_OFFLINE forbids the network; {_by_hand(name)}") from e
        raise UserError(_disconnected(name, e)) from e
    except errors.EntryNotFoundError as e:
        raise UserError(f"{repository} lost a file of {name} on the way; pull again, or {_by_hand(name)}") from e
    except errors.HfHubHTTPError as e:
        reason = " ".join(str(e).split())[:200]
        raise UserError(f"the hub refused {repository} ({reason}); try again later, or {_by_hand(name)}") from e
    except errors.HTTPError as e:
        raise UserError(_disconnected(name, e)) from e
    except OSError as e:
        reason = e.strerror or " ".join(str(e).split())[:200]
        raise UserError(f"cannot download {name} ({reason}); mend that and pull again, whole files are kept") from e
