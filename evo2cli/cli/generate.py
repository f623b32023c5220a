"""`evo2 generate`: prompts in, their continuations out."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from evo2cli.cli.options import (
    Debug,
    Device,
    Dtype,
    Fp8,
    Fp8Mode,
    Model,
    ModelConfig,
    Precision,
    Quantize,
    Quiet,
    Threads,
    Verbose,
)
from evo2cli.console import log


class Format(StrEnum):
    fasta = "fasta"
    jsonl = "jsonl"
    text = "text"


def generate(
    prompt: Annotated[
        list[str] | None, typer.Option("--prompt", "-p", metavar="SEQ", help="A prompt; repeatable.")
    ] = None,
    prompt_file: Annotated[
        str | None, typer.Option(metavar="FILE", help="Prompts as FASTA or one a line; - is standard input.")
    ] = None,
    n_tokens: Annotated[int, typer.Option("-n", "--n-tokens", min=0, help="Bases to add, at most.")] = 100,
    num_samples: Annotated[int, typer.Option(min=1, help="Continuations of each prompt.")] = 1,
    temperature: Annotated[float, typer.Option(min=0, help="0 takes the likeliest base.")] = 1.0,
    top_k: Annotated[int | None, typer.Option(min=1, help="Draw from the K likeliest.", show_default="all")] = None,
    top_p: Annotated[float, typer.Option(help="Draw from the likeliest that make up this probability.")] = 1.0,
    min_p: Annotated[float, typer.Option(help="Draw from those at least this fraction as likely as the first.")] = 0.0,
    alphabet: Annotated[str, typer.Option(help="Bytes that may be drawn; 'any' forbids none.")] = "ACGT",
    stop: Annotated[list[str] | None, typer.Option(metavar="SEQ", help="End a sample after this; repeatable.")] = None,
    tag: Annotated[
        str | None, typer.Option(metavar="TAXONOMY", help="Phylogenetic tag in front of every prompt: d__Bacteria;...")
    ] = None,
    save_state: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Save the state after the prompt for --state; with -n 0 do nothing else."),
    ] = None,
    state: Annotated[
        str | None, typer.Option(metavar="FILE", help="Go on from a saved state; prompts, if any, come after it.")
    ] = None,
    output: Annotated[str, typer.Option("-o", "--output", metavar="FILE", help="- is standard output.")] = "-",
    output_type: Annotated[
        Format | None,
        typer.Option(
            "-O", "--output-type", help="Form of the output.", show_default="by the output's name, else fasta"
        ),
    ] = None,
    model: Model = None,
    model_config: ModelConfig = None,
    seed: Annotated[
        int, typer.Option(min=0, max=2**64 - 1, help="A sample depends on seed, prompt and number alone.")
    ] = 0,
    batch_size: Annotated[int, typer.Option(min=1, help="Samples drawn at once; changes no sample.")] = 16,
    cuda_graph: Annotated[
        bool, typer.Option("--cuda-graph/--no-cuda-graph", help="Decode under a CUDA graph on a GPU.")
    ] = True,
    device: Device = "auto",
    dtype: Precision = Dtype.auto,
    fp8: Fp8 = Fp8Mode.auto,
    quantize: Quantize = None,
    threads: Threads = None,
    quiet: Quiet = False,
    verbose: Verbose = False,
    debug: Debug = False,
) -> None:
    """Continue sequences.

    Prompts come from --prompt, from --prompt-file, or from standard input. FASTA output holds prompt and continuation,
    and in its header the mean log-likelihood (natural, per base) of the continuation.
    """
    import time
    from dataclasses import replace

    import torch

    from evo2cli.errors import UsageError
    from evo2cli.inference.engine import generate as samples_of
    from evo2cli.inference.prefix import Prefix, run_prefix
    from evo2cli.inference.requests import Sample
    from evo2cli.inference.sampling import Sampler
    from evo2cli.io.outputs import open_output
    from evo2cli.io.sequences import Record
    from evo2cli.models.open import open_model

    if not 0 < top_p <= 1 or not 0 <= min_p <= 1:
        raise UsageError("--top-p must be above 0 and at most 1, --min-p between 0 and 1")
    if "" in (stop or []):
        raise UsageError("--stop needs at least one base")
    if state is not None and tag is not None:
        raise UsageError("--tag belongs in front of the sequence that --state was made from; give one of the two")
    if threads:
        torch.set_num_threads(threads)
    kind = output_type or _kind(output)
    if state is not None and not prompt and prompt_file is None:
        records = [Record("", b"")]  # all that is asked for is to go on
    else:
        records = _prompts(prompt or [], prompt_file, tag)
    if save_state is not None and len(records) > 1:
        raise UsageError(f"--save-state keeps the state after one prompt, not after {len(records)}; give one")
    sampler = Sampler(_alphabet(alphabet), temperature, top_k, top_p, min_p)
    net = open_model(model, config=model_config, device=device, dtype=dtype.value, fp8=fp8.value, quantize=quantize)
    after, prompts = None, [record.tokens for record in records]
    if state is not None:
        after = Prefix.load(state, net)
        records = [Record(record.name or after.name, after.tokens + record.tokens) for record in records]
    if save_state is not None:
        after, prompts = replace(run_prefix(net, prompts[0], after), name=records[0].name), [b""]
        after.save(save_state, net)
        if n_tokens == 0:
            return
    live = kind is Format.text and len(records) == num_samples == 1
    start, drawn = time.perf_counter(), 0
    with open_output(output) as out:

        def on_token(sample: Sample, token: int) -> None:
            nonlocal drawn
            drawn += 1
            if live:
                out.write(bytes([token]))

        if live:
            out.write(records[0].tokens)
        options: dict[str, Any] = {"num_samples": num_samples, "sampler": sampler, "seed": seed}
        options |= {"batch_size": batch_size, "cuda_graph": cuda_graph}
        options |= {"stop": [s.upper().encode() for s in stop or []], "on_token": on_token}
        for sample in samples_of(net, prompts, n_tokens, after=after, **options):
            out.write(b"\n" if live else _formatted(kind, records[sample.prompt], sample, num_samples))
    seconds = time.perf_counter() - start
    log.info(f"{drawn:,} bases in {seconds:.1f} s, {drawn / max(seconds, 1e-9):,.0f} a second")


def _kind(output: str) -> Format:
    if output == "-" and sys.stdout.isatty():
        return Format.text
    return {".jsonl": Format.jsonl, ".txt": Format.text}.get(Path(output).suffix.lower(), Format.fasta)


def _prompts(given: list[str], file: str | None, tag: str | None) -> list[Any]:
    from evo2cli.errors import UsageError, UserError
    from evo2cli.io.sequences import Record, encode_nucleotides, read_prompts

    records = [Record(f"prompt{i}", encode_nucleotides(p, f"--prompt {i}")) for i, p in enumerate(given, 1)]
    if file is not None or not given:
        records += read_prompts(file or "-")
    if tag is not None:
        text = tag.strip("|")
        if "__" not in text or "|" in text or not text.isascii():
            raise UsageError(f"--tag {tag} is no taxonomy; write it as d__Bacteria;p__Pseudomonadota;...")
        records = [Record(r.name, f"|{text}|".encode() + r.tokens) for r in records]
    if not records:
        raise UserError(f"{file or 'standard input'} has no prompts; give at least one")
    for r in records:
        if not r.tokens:
            raise UserError(f"prompt {r.name} is empty; give it at least one base, or a --tag")
    return records


def _alphabet(text: str) -> bytes | None:
    from evo2cli.errors import UsageError

    if text == "any":
        return None
    if not text or not text.isascii():
        raise UsageError("--alphabet needs at least one ASCII letter, or 'any'")
    return text.encode()


def _formatted(kind: Format, record: Any, sample: Any, num_samples: int) -> bytes:
    import json

    name = record.name if num_samples == 1 else f"{record.name}_{sample.sample + 1}"
    tokens = bytes(sample.tokens)
    if kind is Format.text:
        return record.tokens + tokens + b"\n"
    if kind is Format.jsonl:
        line = {
            "name": record.name,
            "sample": sample.sample,
            "prompt": record.tokens.decode(),
            "continuation": tokens.decode("latin-1"),
            "ended": sample.ended,
            "mean_log_likelihood": sample.mean_logprob,
            "log_likelihoods": sample.logprobs,
        }
        return json.dumps(line).encode() + b"\n"
    sequence = record.tokens + tokens.rstrip(b"\0")
    wrapped = b"\n".join(sequence[i : i + 80] for i in range(0, len(sequence), 80))
    return f">{name} mean_log_likelihood={sample.mean_logprob:.4f} ended={sample.ended}\n".encode() + wrapped + b"\n"
