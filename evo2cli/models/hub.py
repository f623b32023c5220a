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
from typing import Annotated, Any

from pydantic import Field

from evo2cli.console import log
from evo2cli.errors import UserError
from stripedhyena2 import schema
from stripedhyena2.checkpoints import torch_file
from stripedhyena2.errors import CheckpointError

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

_ANSWER_SECONDS = 30.0
"""How long to wait for the hub's list of files."""


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
    try:
        with torch_file.JoinedFile(torch_file.files_of(file)) as joined:
            return torch_file.whole_name(file) if zipfile.is_zipfile(joined) else None
    except (CheckpointError, OSError):
        return None


@dataclass(frozen=True)
class _Remote:
    """A file in a repository; `sha256` is None where the hub has none for it."""

    name: str
    size: Annotated[int, Field(ge=0)]
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None


def pull(name: str) -> Path:
    """Download a published model's checkpoint into the hub's cache, or what is missing of it, and check its sha256."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.utils import disable_progress_bars, enable_progress_bars

    repository = REPOSITORIES[name]
    quiet = not sys.stderr.isatty() or not log.isEnabledFor(logging.INFO)
    (disable_progress_bars if quiet else enable_progress_bars)()
    files = _remote_files(name)
    _demand_room(name, files)
    size = sum(file.size for file in files)
    log.info("downloading %s: %d file%s, %.1f GB", repository, len(files), "s"[: len(files) > 1], size / 1e9)
    with _explained(name), _cache_guarded():
        paths = [Path(hf_hub_download(repository, file.name)) for file in files]
    for file, path in zip(files, paths, strict=True):
        _check_contents(file, path)
    found = _whole(paths[0])
    if found is None:
        raise UserError(f"{paths[0]} is not a whole checkpoint; remove it and pull again: evo2 model pull {name}")
    if any(file.sha256 is None for file in files):
        _check_records(name, found, paths)
    return found


def _remote_files(name: str) -> list[_Remote]:
    from huggingface_hub import HfApi

    repository = REPOSITORIES[name]
    with _explained(name):
        siblings = HfApi().model_info(repository, files_metadata=True, timeout=_ANSWER_SECONDS).siblings or []
        about = {s.rfilename: (s.size or 0, s.lfs.sha256 if s.lfs else None) for s in siblings}
    files = _weights(name, sorted(file for file in about if isinstance(file, str)))
    if not files:
        raise UserError(f"{repository} has no checkpoint named {name}.pt; {_by_hand(name)}")
    where = f"the hub's answer about {repository}"
    return [
        schema.parse(_Remote, {"name": file, "size": about[file][0], "sha256": about[file][1]}, where) for file in files
    ]


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


def _check_contents(file: _Remote, path: Path) -> None:
    """UserError, and the file removed, unless it has the size and the sha256 that the hub tells."""
    size, sha256 = path.stat().st_size, None
    if file.sha256:
        with path.open("rb") as opened:
            sha256 = hashlib.file_digest(opened, "sha256").hexdigest()
    if size == (file.size or size) and sha256 == file.sha256:
        return
    _remove([path])
    found = f"its sha256 is {sha256}, not {file.sha256}" if sha256 else f"it has {size:,} bytes, not {file.size:,}"
    raise UserError(f"{file.name} came damaged ({found}); pull it again")


def _check_records(name: str, path: Path, files: list[Path]) -> None:
    """Says that the hub had no sha256, and compares the checksums within the checkpoint."""
    changed = next((record for record, _, damaged in torch_file.damaged(path) if damaged), None)
    if changed:
        _remove(files)
        raise UserError(f"{name} came damaged ({changed} does not have its CRC-32); pull it again")
    log.warning(
        "the hub tells no sha256 for %s: its size and the CRC-32 of every record in it are right, which shows damage "
        "but not forgery; compare its sha256 with one that you trust: evo2 model verify %s",
        name,
        name,
    )


def _remove(files: list[Path]) -> None:
    """Remove files from the cache, and what their links point to."""
    for file in files:
        file.resolve().unlink()
        file.unlink(missing_ok=True)


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


_PLAIN_NAME = re.compile(r'(W/)?"?[\w+=:-][\w.+=:-]{0,199}"?')


@contextmanager
def _cache_guarded() -> Iterator[None]:
    """Refuses answers that would have huggingface_hub write outside its cache.

    It names files there after the ETag and the commit that the server tells, and looks at neither.
    """
    from huggingface_hub import constants, set_client_factory
    from huggingface_hub.utils import _http

    names = ("ETag", constants.HUGGINGFACE_HEADER_X_LINKED_ETAG, constants.HUGGINGFACE_HEADER_X_REPO_COMMIT)

    def check(response: Any) -> None:
        if response.request.method != "HEAD":  # no other answer names files
            return
        for name in names:
            value = response.headers.get(name)
            if value is not None and not _PLAIN_NAME.fullmatch(value):
                raise UserError(f"the hub answers with the {name} {schema.shown(value)}, which is refused: not a name")

    previous = _http._GLOBAL_CLIENT_FACTORY  # an application's own, with its proxies and certificates, is kept

    def client() -> Any:
        made = previous()
        hooks = made.event_hooks
        made.event_hooks = hooks | {"response": [*hooks["response"], check]}
        return made

    set_client_factory(client)
    try:
        yield
    finally:
        set_client_factory(previous)


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
        raise UserError(f"cannot download {name} ({reason}); fix that and pull again: complete files are kept") from e
    except UserError:
        raise
    except Exception as e:  # what a server that is not a hub answers makes the library raise anything
        reason = " ".join(f"{type(e).__name__}: {e}".split())[:200]
        raise UserError(
            f"{constants.ENDPOINT} does not answer like a hub for {repository} ({reason}); check HF_ENDPOINT, or "
            f"{_by_hand(name)}"
        ) from e
