"""`from evo2cli import Evo2`: the interface of the published Evo 2 class, on this package's engine.

What differs, for the better: padding changes no score, prompts of any lengths run in one batch, and sequences of any
length run in memory that grows with the results alone.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, groupby
from operator import itemgetter
from pathlib import Path

import torch
from torch import Tensor

from evo2cli.console import log
from evo2cli.errors import UserError
from evo2cli.inference.embedding import find_layers
from evo2cli.inference.engine import generate as generate_samples
from evo2cli.inference.finite import not_finite
from evo2cli.inference.likelihood import log_likelihoods
from evo2cli.inference.profile import profile
from evo2cli.inference.requests import Sample
from evo2cli.inference.sampling import Sampler
from evo2cli.inference.stream import chunk_length, stream
from evo2cli.io.sequences import encode_tagged
from evo2cli.io.tokens import EOD, PAD, reverse_complement
from evo2cli.models.open import open_model
from stripedhyena2 import PRESETS, StripedHyena2
from stripedhyena2.layers.fp8 import Mode

_BATCH_SIZE = 16

Pair = tuple[bytes, bytes]
"""What a model reads first, and the sequence that it scores."""


class Tokenizer:
    """One byte is one token. It changes nothing: letters stay upper or lower case as they are."""

    vocab_size = 512
    eod_id = eos_id = eod = eos = EOD
    pad_id = PAD

    def tokenize(self, text: str) -> list[int]:
        """The bytes of a text in UTF-8."""
        return list(text.encode())

    def tokenize_batch(self, texts: list[str] | str) -> list[list[int]] | list[int]:
        return self.tokenize(texts) if isinstance(texts, str) else [self.tokenize(text) for text in texts]

    def detokenize(self, tokens: Iterable[int]) -> str:
        """The text of tokens; control bytes, the end of a document (0) among them, become spaces."""
        return "".join(chr(max(int(token), 32)) for token in tokens)

    def detokenize_batch(self, tokens: Iterable[Iterable[int]]) -> list[str]:
        return [self.detokenize(row) for row in tokens]


@dataclass(frozen=True)
class GenerationOutput:
    """Continuations, in the order of their prompts.

    `sequences` are without their prompts. `logits` (1, n, vocabulary), float32 or better, on the CPU, are those that
    each of the n tokens was drawn from. `logprobs_mean` is the mean natural-log probability of the tokens.
    """

    sequences: list[str]
    logits: list[Tensor]
    logprobs_mean: list[float]


class Evo2:
    """A model, its tokenizer, and what can be done with sequences.

    Args:
        model_name: a preset's name (evo2_7b, ...), a bundled model (prok-mini), or the path of a checkpoint.
        local_path: where the checkpoint of that name is.
        config: a published-style YAML, for a published checkpoint that matches no preset.
        device: auto, cpu, cuda, cuda:N, mps, or several GPUs that share the layers: cuda:0,cuda:1.
        dtype: auto (bfloat16 on CUDA, float32 elsewhere), float32 or bfloat16.
        fp8: FP8 input projections: auto (for the models that lose accuracy without), native, emulated or off.
        quantize: int8 holds dense weights in one byte each.
        use_kernels: there for the interface's sake; the fastest kernels that the device has always run.

    Raises:
        ModelError: there is no such checkpoint, or it cannot be used.
    """

    def __init__(
        self,
        model_name: str = "evo2_7b",
        local_path: str | None = None,
        *,
        config: str | None = None,
        device: str = "auto",
        dtype: str = "auto",
        fp8: Mode = "auto",
        quantize: str | None = None,
        use_kernels: bool = True,
    ):
        if local_path is not None and config is None and model_name in PRESETS and Path(local_path).is_file():
            config = model_name
        self.model: StripedHyena2 = open_model(
            local_path or model_name, config=config, device=device, dtype=dtype, fp8=fp8, quantize=quantize
        )
        self.tokenizer = Tokenizer()

    @torch.no_grad()
    def forward(
        self, input_ids: Tensor, return_embeddings: bool = False, layer_names: Sequence[str | int] | None = None
    ) -> tuple[tuple[Tensor, None], dict[str | int, Tensor] | None]:
        """Logits, and what layers put out, of token sequences input_ids (B, L), L >= 1.

        Sequences shorter than L are padded on the right: nothing before the padding changes.

        Args:
            layer_names: as in `evo2 embed --layer`: blocks.28.mlp.l3, blocks.28.mlp.w3, blocks.28, 28, -4.

        Returns:
            ((logits, None), embeddings): logits (B, L, vocabulary), float32 or better; embeddings None, or (B, L,
            width) by layer name.
        """
        if return_embeddings and not layer_names:
            raise UserError("return_embeddings needs layer_names; give for example layer_names=['blocks.28.mlp.l3']")
        asked = list(layer_names or []) if return_embeddings else []
        layers = dict(zip(asked, find_layers(self.model, map(str, asked)), strict=True))
        logits: list[Tensor] = []
        embeddings: dict[str | int, list[Tensor]] = {name: [] for name in layers}
        with self.model.recording(layer.module for layer in layers.values()) as seen:
            for _, x, _ in stream(self.model, input_ids):
                logits.append(self.model.logits(x))
                for name, layer in layers.items():
                    embeddings[name].append(layer.of(seen))
        joined = {name: torch.cat(pieces, dim=1) for name, pieces in embeddings.items()}
        return (torch.cat(logits, dim=1), None), joined if return_embeddings else None

    __call__ = forward

    def score_sequences(
        self,
        seqs: Sequence[str],
        batch_size: int = 1,
        prepend_bos: bool = False,
        reduce_method: str = "mean",
        average_reverse_complement: bool = False,
    ) -> list[float]:
        """The natural-log likelihood of each sequence, over all its tokens that others stand before.

        A score depends on its sequence alone, not on what it is batched with. Nucleotides are upper-cased. A
        phylogenetic tag before them, |d__...|, conditions the score and is not scored itself.

        Args:
            batch_size: sequences run at once.
            prepend_bos: put an end of document before the sequence, so that its first base has a probability too.
            reduce_method: mean (per token) or sum.
            average_reverse_complement: the mean with the score of the other strand.

        Returns:
            Scores in the order of the sequences; NaN for one that has no token with another before it.
        """
        bos = bytes([EOD]) if prepend_bos else b""
        if reduce_method not in ("mean", "sum"):
            raise UserError(f"no reduce_method {reduce_method!r}; give mean or sum")
        encoded = [encode_tagged(seq, f"sequence {i}") for i, seq in enumerate(seqs)]
        strands = [[(bos + tag, tokens) for tag, tokens in encoded]]
        if average_reverse_complement:
            strands.append([(before, reverse_complement(tokens)) for before, tokens in strands[0]])
        totals = self._log_likelihoods(list(chain.from_iterable(strands)), batch_size)
        scores = [sum(totals[pair] for pair in same) / len(same) for same in zip(*strands, strict=True)]
        if reduce_method == "sum":
            return scores
        counts = [len(tokens) - (not before) for before, tokens in strands[0]]
        return [score / max(count, 1) for score, count in zip(scores, counts, strict=True)]

    def _log_likelihoods(self, pairs: list[Pair], batch_size: int) -> dict[Pair, float]:
        """By (what stands before, sequence), that of the sequence; NaN where none of its tokens has one before it."""
        totals = dict.fromkeys(pairs, float("nan"))
        most = chunk_length(self.model)
        scored = sorted((pair for pair in totals if len(pair[1]) > (not pair[0])), key=lambda pair: len(pair[1]))
        short = [pair for pair in scored if len(pair[1]) <= most]
        for before, same in groupby(sorted(short, key=itemgetter(0)), key=itemgetter(0)):
            sequences = [tokens for _, tokens in same]
            for i in range(0, len(sequences), batch_size):
                batch = sequences[i : i + batch_size]
                room = len(batch) * len(batch[-1])
                totals.update(log_likelihoods(self.model, {before: batch}, room, conditional=True))
        for before, tokens in scored[len(short) :]:
            totals[before, tokens] = profile(self.model, tokens, before=before).log_likelihood or 0.0
        for before, tokens in scored:
            if not math.isfinite(totals[before, tokens]):
                raise not_finite(self.model, before + tokens)
        return totals

    def generate(
        self,
        prompt_seqs: Sequence[str],
        n_tokens: int = 500,
        temperature: float = 1.0,
        top_k: int = 4,
        top_p: float = 1.0,
        batched: bool = True,
        cached_generation: bool = True,
        verbose: int = 1,
        force_prompt_threshold: int | None = None,
        *,
        seed: int | None = None,
        cuda_graph: bool = True,
    ) -> GenerationOutput:
        """One continuation of each prompt; equal prompts have different ones.

        A sequence ends before `n_tokens` where the model ends the document. Nucleotides of prompts are upper-cased.

        Args:
            n_tokens: the most tokens a continuation gets.
            temperature: 0 takes the likeliest token.
            top_k: draw from the K likeliest tokens; 0 from all.
            top_p: draw from the likeliest that make up this probability.
            batched: run the prompts together; it changes no sequence.
            cached_generation: there for the interface's sake; generation is always cached.
            verbose: above 0, report each sequence to the logger `evo2`.
            force_prompt_threshold: the most tokens of a prompt that are run at once.
            seed: the same seed gives the same sequences; None takes one from torch's random numbers.
            cuda_graph: let a GPU decode under a CUDA graph.
        """
        prompts = [b"".join(encode_tagged(prompt, f"prompt {i}")) for i, prompt in enumerate(prompt_seqs)]
        if not all(prompts):
            raise UserError(f"prompt {prompts.index(b'')} is empty; give it at least one base")
        copies = Counter(prompts)
        distinct = list(copies)
        samples = generate_samples(
            self.model,
            distinct,
            n_tokens,
            num_samples=[copies[prompt] for prompt in distinct],
            sampler=Sampler(temperature=temperature, top_k=top_k or None, top_p=top_p or 1.0),
            seed=int(torch.randint(2**62, ())) if seed is None else seed,
            batch_size=_BATCH_SIZE if batched else 1,
            prefill_chunk=force_prompt_threshold,
            keep_logits=True,
            cuda_graph=cuda_graph,
        )
        drawn: dict[bytes, deque[Sample]] = {prompt: deque() for prompt in distinct}
        for sample in samples:
            drawn[distinct[sample.prompt]].append(sample)
        output, vocabulary = GenerationOutput([], [], []), self.model.config.vocab_size
        for prompt in prompts:
            sample = drawn[prompt].popleft()
            tokens = bytes(sample.tokens).removesuffix(bytes([EOD]))
            output.sequences.append(self.tokenizer.detokenize(tokens))
            output.logits.append(torch.stack(sample.logits)[None] if sample.logits else torch.empty(1, 0, vocabulary))
            output.logprobs_mean.append(sample.mean_logprob)
            if verbose:
                log.info("prompt %s, continuation %s", self.tokenizer.detokenize(prompt), output.sequences[-1])
        return output
