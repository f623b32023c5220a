"""How much of a sequence is run at once: enough to keep the device busy, little enough to fit in its free memory."""

from __future__ import annotations

import psutil
import torch

from evo2cli.measure.memory import working_bytes
from stripedhyena2 import StripedHyena2

MOST = {"cpu": 4096, "cuda": 16384}
LEAST = 64


def chunk_length(model: StripedHyena2, rows: int = 1) -> int:
    """Tokens to run at once, on the model's device, of each of so many sequences.

    A power of two, so that free memory, which changes from run to run, seldom changes it, and with it the rounding.
    """
    device, c = model.embedding.weight.device, model.config
    most = MOST.get(device.type, MOST["cpu"])
    room = min(free_memory(device) // (4 * working_bytes(c, torch.float32, 1)), most) // max(rows, 1)
    return max(1 << max(room.bit_length() - 1, 0), LEAST)


def free_memory(device: torch.device) -> int:
    """Bytes that new tensors on the device can take."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    return psutil.virtual_memory().available
