"""What to report when a model's output is NaN or infinite."""

from __future__ import annotations

import torch

from evo2cli.errors import UserError
from evo2cli.inference.stream import LEAST, as_ids, stream
from stripedhyena2 import StripedHyena2
from stripedhyena2.parallel import SplitModel


class NotFiniteError(UserError):
    """A model's output is NaN or infinite; the message names the first layer affected."""


def not_finite(model: StripedHyena2, tokens: bytes) -> NotFiniteError:
    """The error to raise when a model's output is not finite somewhere in these tokens.

    Runs them again to find the first layer affected; under --cp each process does so by itself.
    """
    whole: StripedHyena2 = model.model if isinstance(model, SplitModel) else model
    for name, p in whole.named_parameters():
        if not bool(p.isfinite().all()):
            return NotFiniteError(
                f"the model's weights hold NaN or infinity, first in layer {name.rpartition('.')[0]} ({name}); "
                "the checkpoint is damaged; download or train it again"
            )
    layer = _first_layer(whole, tokens)
    where = "" if layer is None else f", first in layer {layer}"
    precision = str(whole.embedding.weight.dtype).removeprefix("torch.")
    return NotFiniteError(
        f"the model's output is NaN or infinite{where}, computed in {precision}; "
        "use a more precise --dtype, or --fp8 off, or another checkpoint"
    )


@torch.inference_mode()
def _first_layer(model: StripedHyena2, tokens: bytes) -> str | None:
    names = [name for name, _ in model.named_modules() if name and name != "blocks"]
    with model.recording(names) as seen:  # in execution order, inner modules before outer ones
        for _, x, _ in stream(model, as_ids(tokens), chunk=LEAST):
            logits = model.logits(x)
            for name, values in [*seen.items(), ("unembedding", logits)]:
                if not bool(values.isfinite().all()):
                    return name
    return None
