"""What was run before a prompt: a genome read once, and gone on from at any time."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from evo2cli.errors import UserError
from evo2cli.inference.stream import prefill
from evo2cli.io.atomic import replacing
from evo2cli.io.sequences import Record, split_tag
from stripedhyena2 import ModelState, StripedHyena2

_FORMAT = "evo2 prefix 1"


@dataclass(frozen=True)
class Prefix:
    """Tokens that a model has run: the logits (1, V) of what follows them, and its state after them.

    `name` is what the sequence is called where it is written.
    """

    tokens: bytes
    logits: Tensor
    state: ModelState
    name: str = "prefix"

    def record(self, name: str, more: bytes) -> Record:
        """The sequence that was run, behind its tag, with more bases behind it."""
        tag, sequence = (part.encode("latin-1") for part in split_tag(self.tokens.decode("latin-1")))
        return Record(name or self.name, sequence + more, tag)

    def save(self, path: str | Path, model: StripedHyena2) -> None:
        """Write a safetensors file that says which model ran the tokens."""
        beside = {"tokens": torch.frombuffer(bytearray(self.tokens), dtype=torch.uint8), "logits": self.logits}
        with replacing(path) as temporary:
            self.state.save(temporary, beside, {"format": _FORMAT, "name": self.name, **_identity(model)})

    @classmethod
    def load(cls, path: str | Path, model: StripedHyena2) -> Prefix:
        """Read what `save` wrote; UserError where that was with another model or in another precision."""
        device = str(next(model.parameters()).device)
        try:
            with safe_open(path, framework="pt", device=device) as file:
                about = file.metadata() or {}
                if about.get("format") != _FORMAT:
                    raise UserError(f"{path} is no state of evo2; make one with evo2 generate --save-state")
                _require_same(path, about, _identity(model))
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no mapping)
        except (OSError, SafetensorError) as error:
            raise UserError(f"cannot read the state {path}: {error}; check the path, or make it again") from None
        tokens = tensors["tokens"].cpu().numpy().tobytes()
        return cls(tokens, tensors["logits"], ModelState.from_tensors(tensors), about["name"])


def run_prefix(model: StripedHyena2, tokens: bytes, after: Prefix | None = None, chunk: int | None = None) -> Prefix:
    """The prefix that these tokens make, behind another one if there is one; not both may be empty."""
    if after is None:
        return Prefix(tokens, *prefill(model, tokens, chunk=chunk))
    return Prefix(after.tokens + tokens, *prefill(model, tokens, after.state, chunk)) if tokens else after


def _identity(model: StripedHyena2) -> dict[str, str]:
    weights: Any = model.source
    dtype = str(model.embedding.weight.dtype).removeprefix("torch.")
    return {"model": weights.name, "checksum": weights.checksum, "dtype": dtype}


def _require_same(path: str | Path, theirs: dict[str, str], ours: dict[str, str]) -> None:
    if theirs["checksum"] != ours["checksum"]:
        made, now = (f"{who['model']} (sha256 {who['checksum'][:12]})" for who in (theirs, ours))
        raise UserError(f"{path} was made with the model {made}, not with {now}; give --model that one")
    if theirs["dtype"] != ours["dtype"]:
        raise UserError(f"{path} was made in {theirs['dtype']}, not in {ours['dtype']}; give --dtype {theirs['dtype']}")
