"""A prefix that was run before a prompt: a genome read once, and continued at any time."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from evo2cli.errors import UserError
from evo2cli.inference.stream import prefill
from evo2cli.io.atomic import replacing
from evo2cli.io.sequences import Record, split_tag
from stripedhyena2 import ModelState, StripedHyena2
from stripedhyena2.layers.fp8 import FP8Linear
from stripedhyena2.layers.int8 import Int8Linear

_FORMAT = "evo2 prefix 2"
_ROUNDED: dict[str, type[nn.Module]] = {"--quantize int8": Int8Linear, "--fp8": FP8Linear}
"""The layers that replace dense ones, by option."""


@dataclass(frozen=True)
class Prefix:
    """Tokens that a model has run, the logits (1, V) of the next one, and the state after them.

    `name` is the sequence's name in output.
    """

    tokens: bytes
    logits: Tensor
    state: ModelState
    name: str = "prefix"

    def record(self, name: str, more: bytes) -> Record:
        """The sequence that was run and its tag, continued by more bases."""
        tag, sequence = (part.encode("latin-1") for part in split_tag(self.tokens.decode("latin-1")))
        return Record(name or self.name, sequence + more, tag)

    def save(self, path: str | Path, model: StripedHyena2) -> None:
        """Write a safetensors file that says which model ran the tokens, and how."""
        beside = {"tokens": torch.frombuffer(bytearray(self.tokens), dtype=torch.uint8), "logits": self.logits}
        about = {"format": _FORMAT, "name": self.name, "digest": _digest({**self.state.tensors(), **beside})}
        with replacing(path) as temporary:
            self.state.save(temporary, beside, about | _identity(model))

    @classmethod
    def load(cls, path: str | Path, model: StripedHyena2) -> Prefix:
        """Read what `save` wrote.

        Raises:
            UserError: the file is not a state, was changed, or was made with another model or other options.
        """
        try:
            with safe_open(path, framework="pt") as file:
                about = file.metadata() or {}
                if about.get("format") != _FORMAT:
                    older = about.get("format", "").startswith("evo2 prefix")
                    what = "a state of an older version of evo2" if older else "not a state of evo2"
                    raise UserError(f"{path} is {what}; make one with evo2 generate --save-state")
                _require_same(path, about, _identity(model))
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
        except (OSError, SafetensorError) as error:
            raise UserError(f"cannot read the state {path}: {error}; check the path, or make it again") from None
        wrong = _misfit(tensors, model)
        if wrong is None and _digest(tensors) != about.get("digest"):
            wrong = "its checksum is not that of its contents"
        if wrong is not None:
            raise UserError(f"the state {path} is damaged or was changed: {wrong}; make it again")
        tokens = tensors["tokens"].numpy().tobytes()
        device = model.embedding.weight.device
        state = ModelState.from_tensors(tensors).to(device)
        return cls(tokens, tensors["logits"].to(device), state, about.get("name", "prefix"))


def run_prefix(model: StripedHyena2, tokens: bytes, after: Prefix | None = None, chunk: int | None = None) -> Prefix:
    """The prefix of these tokens, after another prefix if there is one; not both may be empty."""
    if after is None:
        return Prefix(tokens, *prefill(model, tokens, chunk=chunk))
    return Prefix(after.tokens + tokens, *prefill(model, tokens, after.state, chunk)) if tokens else after


def _identity(model: StripedHyena2) -> dict[str, str]:
    """What a state depends on besides its tokens."""
    layers = {type(module) for module in model.modules()}
    rounded = [option for option, layer in _ROUNDED.items() if layer in layers]
    return {
        "model": model.source.name,
        "checksum": model.source.checksum,
        "dtype": str(model.embedding.weight.dtype).removeprefix("torch."),
        "config": json.dumps(asdict(model.config), sort_keys=True, default=str),
        "rounded": " and ".join(rounded) or "neither --quantize nor --fp8",
    }


def _require_same(path: str | Path, theirs: dict[str, str], ours: dict[str, str]) -> None:
    there = {name: theirs.get(name, "") for name in ours}
    if there["checksum"] != ours["checksum"]:
        made, now = (f"{who['model']} (sha256 {who['checksum'][:12]})" for who in (there, ours))
        raise UserError(f"{path} was made with the model {made}, not with {now}; give --model that one")
    if there["dtype"] != ours["dtype"]:
        raise UserError(f"{path} was made in {there['dtype']}, not in {ours['dtype']}; give --dtype {there['dtype']}")
    if there["rounded"] != ours["rounded"]:
        raise UserError(f"{path} was made with {there['rounded']}, not with {ours['rounded']}; use the same options")
    if there["config"] != ours["config"]:
        raise UserError(f"{path} was made with another configuration of the model; use the same --model-config")


def _misfit(tensors: dict[str, Tensor], model: StripedHyena2) -> str | None:
    """How the tensors of a file differ from those of a state of this model; None if they do not."""
    if "tokens" not in tensors or tensors["tokens"].dim() != 1:
        return "it has no tokens"
    n = len(tensors["tokens"])
    start = model.initial_state(1).tensors()
    shapes = {
        name: (t.dtype, (1, n, *t.shape[2:]) if name.endswith(".kv") else tuple(t.shape)) for name, t in start.items()
    }
    shapes["tokens"] = torch.uint8, (n,)
    weight = model.embedding.weight
    shapes["logits"] = torch.promote_types(weight.dtype, torch.float32), (1, model.config.vocab_size)
    found = {name: (t.dtype, tuple(t.shape)) for name, t in tensors.items()}
    for name in sorted(shapes.keys() | found.keys()):
        if found.get(name) != shapes.get(name):
            return f"{name} is {_described(found.get(name))}, not {_described(shapes.get(name))}"
    if int(tensors["position"]) != n:
        return f"position is {int(tensors['position'])}, not {n}"
    return None


def _described(tensor: tuple[torch.dtype, tuple[int, ...]] | None) -> str:
    return "missing" if tensor is None else f"{str(tensor[0]).removeprefix('torch.')} {list(tensor[1])}"


def _digest(tensors: Mapping[str, Tensor]) -> str:
    """A checksum of names and contents."""
    digest = hashlib.sha256()
    for name, t in sorted(tensors.items()):
        digest.update(name.encode())
        digest.update(t.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
