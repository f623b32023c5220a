"""Whether a checkpoint is still what was written or published."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

from evo2cli.errors import UserError
from evo2cli.models import hub
from stripedhyena2.checkpoints import Checkpoint, native, torch_file
from stripedhyena2.checkpoints.torch_file import JoinedFile, whole_name

Advance = Callable[[float | None, str], None]


def verify(checkpoint: Checkpoint, advance: Advance) -> str:
    """One line on what was compared and found right.

    Raises:
        UserError: the checkpoint is damaged.
    """
    if checkpoint.format == "native":
        return _verify_tensors(checkpoint, advance)
    recorded = [hub.recorded_checksum(file) for file in checkpoint.files]
    if all(recorded):
        for i, (file, expected) in enumerate(zip(checkpoint.files, recorded, strict=True)):
            _demand([file], str(expected), "the hub's")
            advance((i + 1) / len(recorded), file.name)
        return f"{checkpoint.path}: {len(recorded)} file(s) have the hub's sha256"
    sidecar = Path(f"{whole_name(checkpoint.path)}.sha256")
    if sidecar.is_file():
        _demand(checkpoint.files, (sidecar.read_text().split() or [""])[0].lower(), f"that in {sidecar}")
        return f"{checkpoint.path}: it has the sha256 in {sidecar}"
    records = _verify_records(checkpoint, advance)
    return (
        f"{checkpoint.path}: no checksum is recorded for it; its {records} records have their CRC-32 and all "
        f"{len(checkpoint.tensors)} tensors are finite; its sha256 is {_sha256(checkpoint.files)}"
    )


def _verify_records(checkpoint: Checkpoint, advance: Advance) -> int:
    """How many records there are, all of them with the checksum within the file and all tensors finite."""
    done, total = 0, sum(file.stat().st_size for file in checkpoint.files)
    records = 0
    for name, size, damaged in torch_file.damaged(checkpoint.path):
        if damaged:
            raise UserError(f"{checkpoint.path} is damaged: {name} does not have its CRC-32; get it again")
        records += 1
        done += size
        advance(done / total, name)
    for i, (name, t) in enumerate(checkpoint.tensors.items()):
        if not bool(t.read().isfinite().all()):
            raise UserError(
                f"{checkpoint.path}: {t.name} has values that are NaN or infinite; download the checkpoint again"
            )
        advance((i + 1) / len(checkpoint.tensors), name)
    return records


def _verify_tensors(checkpoint: Checkpoint, advance: Advance) -> str:
    broken = []
    for i, (name, differs) in enumerate(native.damaged(checkpoint.path)):
        advance((i + 1) / len(checkpoint.tensors), name)
        if differs:
            broken.append(name)
    if broken:
        raise UserError(
            f"{checkpoint.path}: {len(broken)} tensors have changed since they were written ({', '.join(broken[:4])}); "
            "restore it from a copy"
        )
    return f"{checkpoint.path}: {len(checkpoint.tensors)} tensors have the sha256 they were written with"


def _demand(files: list[Path], expected: str, whose: str) -> None:
    found = _sha256(files)
    if found != expected:
        raise UserError(f"{files[0]} is damaged: its sha256 is {found}, {whose} is {expected}; download it again")


def _sha256(files: list[Path]) -> str:
    digest = hashlib.sha256()
    with JoinedFile(files) as joined:
        while block := joined.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
