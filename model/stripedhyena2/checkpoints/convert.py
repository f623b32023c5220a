"""From any format to any format, one tensor (native: one shard) in memory at a time."""

from __future__ import annotations

from pathlib import Path

from stripedhyena2.atomic import replacing
from stripedhyena2.checkpoints import native, savanna, torch_file, vortex
from stripedhyena2.checkpoints.checkpoint import Checkpoint
from stripedhyena2.checkpoints.vortex_config import config_text
from stripedhyena2.errors import CheckpointError


def convert(checkpoint: Checkpoint, to: str, path: str | Path) -> None:
    """Write a checkpoint in another format, every weight in the dtype it has.

    A `.pt` file gets its configuration beside it, in the published YAML's terms, for it has none inside.

    Raises:
        CheckpointError: something is at `path` already, the disk is full, or the checkpoint is damaged.
    """
    path = Path(path)
    yml = path.with_suffix(".yml")
    for file in [path] if to == "native" else [path, yml]:
        if file.exists():
            raise CheckpointError(f"{file} exists and is not overwritten; choose another name")
    config, tensors = checkpoint.config, checkpoint.tensors
    if to == "native":
        native.write(path, config, tensors, notes=checkpoint.notes, fp8_scales=checkpoint.fp8_scales)
        return
    if to == "vortex":
        vortex.write(path, config, tensors)
    else:
        torch_file.write(path, savanna.from_vortex(vortex.vortex_tensors(config, tensors), config))
    with replacing(yml, 0) as staging:
        staging.write_text(config_text(config))
