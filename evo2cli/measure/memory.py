"""How much memory a model takes: weights, states, what a forward pass works with, what it keeps for a backward pass."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import psutil
import torch
from torch import Tensor, nn

from stripedhyena2 import Config, StripedHyena2
from stripedhyena2.checkpoints import parameter_dtype
from stripedhyena2.model import skeleton
from stripedhyena2.parallel.placement import assign_blocks
from stripedhyena2.state import AttentionState


@dataclass(frozen=True)
class Memory:
    """Bytes that a device holds; with several devices, that the fullest holds."""

    weights: int
    states: int
    working: int

    @property
    def total(self) -> int:
        return self.weights + self.states + self.working


def free_memory(device: torch.device) -> int:
    """Bytes that new tensors on the device can take."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    return psutil.virtual_memory().available


def memory_in_use(device: torch.device) -> int:
    """Bytes: the most allocated so far on a GPU, the most resident so far of this process elsewhere."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource  # which Windows does not have

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def needed(
    config: Config, dtype: torch.dtype, *, batch: int, length: int, chunk: int, devices: int = 1, int8: bool = False
) -> Memory:
    """What `batch` sequences of `length` tokens need, run `chunk` tokens at a time, on each of `devices` devices.

    The working memory is an estimate: the largest tensors of a block that exist at a time.
    """
    model = skeleton(config)
    blocks = [weight_bytes(block, dtype, int8) for block in model.blocks]
    model.embedding.weight = nn.Parameter(model.embedding.weight.to(dtype))  # Module.to takes seconds of imports
    states = state_bytes(model, batch, length)
    rest = weight_bytes(model, dtype, int8) - sum(blocks)
    device_of = assign_blocks(blocks, [1.0] * devices)
    held = [
        (
            sum(b for b, d in zip(blocks, device_of, strict=True) if d == device) + (rest if device == 0 else 0),
            sum(s for s, d in zip(states, device_of, strict=True) if d == device),
        )
        for device in range(devices)
    ]
    fullest = max(held, key=sum)
    return Memory(*fullest, working_bytes(config, dtype, batch * min(chunk, length)))


def weight_bytes(module: nn.Module, dtype: torch.dtype, int8: bool = False) -> int:
    """Bytes of a module's weights: dense ones in `dtype` or int8, filters and poles in float32 at least."""
    dense = {id(m.weight) for m in module.modules() if isinstance(m, nn.Linear)} if int8 else set()
    return sum(
        p.numel() * (1 if id(p) in dense else parameter_dtype(n, dtype).itemsize) for n, p in module.named_parameters()
    )


def state_bytes(model: StripedHyena2, batch: int, length: int) -> list[int]:
    """Bytes of each layer's state after `length` tokens of `batch` sequences, in the model's precision."""
    cache = batch * length * 2 * model.config.d_model * model.embedding.weight.itemsize
    layers = model.initial_state(batch).layers
    return [cache if isinstance(s, AttentionState) else s.nbytes() for s in layers]


def working_bytes(config: Config, dtype: torch.dtype, tokens: int) -> int:
    """About what a forward pass over `tokens` tokens holds besides weights and states, in its widest part: a mixer, an
    MLP, or the logits and their softmax in float32."""
    c = config
    mixer, mlp, logits = 16 * c.d_model, 3 * c.d_mlp + 3 * c.d_model, 4 * c.vocab_size
    return tokens * max(max(mixer, mlp) * dtype.itemsize, logits * 4)


def kept_for_backward(loss: Callable[[], Tensor], parameters: Iterable[Tensor]) -> int:
    """Bytes of the tensors that autograd keeps for the backward pass of a loss, without the parameters.

    On the meta device they are counted without being allocated.
    """
    own = {p.untyped_storage()._cdata for p in parameters}
    kept: dict[int, Tensor] = {}

    def keep(t: Tensor) -> Tensor:
        if t.untyped_storage()._cdata not in own:
            kept[t.untyped_storage()._cdata] = t  # held, so that no other storage gets the same address
        return t

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        loss()
    return sum(t.untyped_storage().nbytes() for t in kept.values())
