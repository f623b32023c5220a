"""All that the bytes of a run's output depend on, beside its records and the reference's bases under them."""

from __future__ import annotations

from typing import Any

from evo2cli.variants.scoring import ScoreSettings
from evo2cli.version import __version__


def fingerprint(model: Any, settings: ScoreSettings, **more: Any) -> dict[str, object]:
    """Facts by the names that a user knows them by, all options with their defaults among them."""
    import torch

    weight = next(model.parameters())
    return {
        "model": model.source.name,
        "checksum": model.source.checksum,
        "configuration": {name: str(value) for name, value in vars(model.config).items()},
        "window": settings.windows.width,
        "tile": settings.windows.tiled,
        "right_context": settings.right_context,
        "reduce": settings.reduce,
        "strand": settings.strand,
        # what the last digits depend on
        "version": __version__,
        "torch": torch.__version__,
        "device": weight.device.type,
        "dtype": str(weight.dtype),
        "layers": sorted({type(module).__name__ for module in model.modules()}),  # FP8 and int8 have their own
        "threads": torch.get_num_threads(),
        "batch_tokens": settings.batch_tokens,
        **more,
    }
