"""`evo2 generate`: prompts in, their continuations out."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from typer import Option

from evo2cli.cli.options import DEVICES, EXPERT, INPUT, OUTPUT, SAMPLING, ModelOptions, Output
from evo2cli.console import log
from evo2cli.errors import UsageError, UserError

if TYPE_CHECKING:
    from evo2cli.inference.prefix import Prefix
    from evo2cli.inference.requests import Sample
    from evo2cli.inference.sampling import Sampler
    from evo2cli.io.sequences import Record
    from stripedhyena2 import StripedHyena2

Format = Literal["fasta", "jsonl", "text"]


@dataclass(frozen=True)
class PromptOptions:
    """What is continued."""

    prompt: Annotated[
        list[str] | None,
        Option("-p", "--prompt", metavar="SEQ", help="A prompt; repeatable.", rich_help_panel=INPUT),
    ] = None
    prompt_file: Annotated[
        str | None,
        Option(
            metavar="FILE", help="Prompts as FASTA or one per line; - is standard input.", show_default="-",
            rich_help_panel=INPUT,
        ),
    ] = None  # fmt: skip
    tag: Annotated[
        str | None,
        Option(
            metavar="TAXONOMY", help="Phylogenetic tag to put before every prompt: d__Bacteria;...",
            rich_help_panel=INPUT,
        ),
    ] = None  # fmt: skip
    state: Annotated[
        str | None,
        Option(metavar="FILE", help="Continue from a saved state; prompts, if any, follow it.", rich_help_panel=INPUT),
    ] = None
    save_state: Annotated[
        str | None,
        Option(
            metavar="FILE", help="Save the state after the prompt, for --state; with -n 0 do only that.",
            rich_help_panel=OUTPUT,
        ),
    ] = None  # fmt: skip

    def records(self) -> list[Record]:
        """The prompts; one without bases where all that is asked for is to continue a state.

        Raises:
            UsageError: options that do not go together.
            UserError: no prompt, or one that is empty or not a sequence.
        """
        from evo2cli.io.sequences import Record, encode_nucleotides, read_prompts

        if self.state is not None and self.tag is not None:
            raise UsageError("--tag belongs before the sequence that --state was made from; use only one of the two")
        if self.state is not None and not self.prompt and self.prompt_file is None:
            return [Record("", b"")]
        given = [encode_nucleotides(f"prompt{i}", p, f"--prompt {i}") for i, p in enumerate(self.prompt or [], 1)]
        file = self.prompt_file or (None if given else "-")
        records = [*given, *(read_prompts(file) if file else [])]
        if not records:
            raise UserError(f"no prompts in {'standard input' if file == '-' else file}; give at least one")
        if self.tag is not None:
            if tagged := [r.name for r in records if r.tag.startswith(b"|")]:
                raise UsageError(f"prompt {tagged[0]} has a tag of its own; leave out --tag")
            records = [replace(r, tag=_tag(self.tag) + r.tag) for r in records]
        empty = next((r.name for r in records if not r.tagged), None)
        if empty is not None:
            raise UserError(f"prompt {empty} is empty; give it at least one base, or a --tag")
        if self.save_state is not None and len(records) > 1:
            raise UsageError(f"--save-state saves the state after one prompt, got {len(records)}; give one")
        return records


@dataclass(frozen=True)
class SamplingOptions:
    """How continuations are drawn."""

    n_tokens: Annotated[
        int, Option("-n", "--n-tokens", min=0, help="Bases to add, at most.", rich_help_panel=SAMPLING)
    ] = 100
    num_samples: Annotated[int, Option(min=1, help="Continuations of each prompt.", rich_help_panel=SAMPLING)] = 1
    temperature: Annotated[float, Option(help="0 takes the most likely base.", rich_help_panel=SAMPLING)] = 1.0
    top_k: Annotated[
        int | None,
        Option(min=1, help="Draw from the N most likely bases.", show_default="all", rich_help_panel=SAMPLING),
    ] = None
    top_p: Annotated[
        float,
        Option(help="Draw from the most likely bases that make up this probability.", rich_help_panel=SAMPLING),
    ] = 1.0
    min_p: Annotated[
        float,
        Option(
            min=0, max=1, help="Draw from bases at least this fraction as likely as the first.",
            rich_help_panel=SAMPLING,
        ),
    ] = 0.0  # fmt: skip
    alphabet: Annotated[
        str, Option(metavar="LETTERS", help="Bytes that may be drawn; any: all.", rich_help_panel=SAMPLING)
    ] = "ACGT"
    stop: Annotated[
        list[str] | None,
        Option(metavar="SEQ", help="End a sample after this sequence; repeatable.", rich_help_panel=SAMPLING),
    ] = None
    seed: Annotated[
        int,
        Option(
            "-s", "--seed", min=0, max=2**64 - 1, rich_help_panel=SAMPLING,
            help="Seed of the random numbers; a sample depends on it, the prompt and the sample's number alone.",
        ),
    ] = 0  # fmt: skip
    batch_size: Annotated[
        int, Option(min=1, help="Samples to draw at once; changes no sample.", rich_help_panel=DEVICES)
    ] = 16
    cuda_graph: Annotated[
        bool, Option("--cuda-graph/--no-cuda-graph", help="Decode with a CUDA graph on a GPU.", rich_help_panel=EXPERT)
    ] = True

    def sampler(self) -> Sampler:
        """UsageError where a value is out of its range."""
        from evo2cli.inference.sampling import Sampler

        if not 0 < self.top_p <= 1:
            raise UsageError(f"--top-p: expected a number above 0 and at most 1, got {self.top_p:g}")
        if "" in (self.stop or []):
            raise UsageError("--stop: expected at least one base, got an empty sequence")
        if not self.alphabet or not self.alphabet.isascii():
            raise UsageError(f"--alphabet: expected ASCII letters, or any, got {self.alphabet!r}")
        alphabet = None if self.alphabet == "any" else self.alphabet.encode()
        return Sampler(alphabet, self.temperature, self.top_k, self.top_p, self.min_p)

    def arguments(self) -> dict[str, Any]:
        """What `inference.engine.generate` takes."""
        return {
            "num_samples": self.num_samples,
            "sampler": self.sampler(),
            "seed": self.seed,
            "batch_size": self.batch_size,
            "cuda_graph": self.cuda_graph,
            "stop": [s.upper().encode() for s in self.stop or []],
        }


def generate(
    prompts: PromptOptions,
    sampling: SamplingOptions,
    models: ModelOptions,
    output: Output = "-",
    output_type: Annotated[
        Format | None,
        Option(
            "-O",
            "--output-type",
            help="Format of the output.",
            show_default="by the name of FILE, else fasta",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
) -> None:
    """Continue sequences with bases drawn from the model.

    Prompts come from --prompt, from --prompt-file, or from standard input. FASTA output holds prompt and continuation,
    and in its header the phylogenetic tag and the mean log-likelihood (natural, per base) of the continuation.
    """  # fmt: skip
    from evo2cli.inference.engine import generate as samples_of
    from evo2cli.io.outputs import open_output

    arguments, kind = sampling.arguments(), output_type or _kind(output)
    records = prompts.records()
    net = models.open()
    records, tokens, after = _prefilled(prompts, records, net)
    if prompts.save_state is not None and sampling.n_tokens == 0:
        return
    live = kind == "text" and len(records) == sampling.num_samples == 1
    start, drawn = time.perf_counter(), 0
    with open_output(output) as out:

        def on_token(sample: Sample, token: int) -> None:
            nonlocal drawn
            drawn += 1
            if live:
                out.write(bytes([token]))

        if live:
            out.write(records[0].tokens)
        for sample in samples_of(net, tokens, sampling.n_tokens, after=after, on_token=on_token, **arguments):
            out.write(b"\n" if live else _formatted(kind, records[sample.prompt], sample, sampling.num_samples))
    seconds = time.perf_counter() - start
    log.info(f"{drawn:,} bases in {seconds:.1f} s, {drawn / max(seconds, 1e-9):,.0f} a second")


def _prefilled(
    prompts: PromptOptions, records: list[Record], net: StripedHyena2
) -> tuple[list[Record], list[bytes], Prefix | None]:
    """The records, what of them is yet to be run, and the state to run it from; saves a state if one is asked for."""
    from evo2cli.inference.prefix import Prefix, run_prefix

    after, tokens = None, [record.tagged for record in records]
    if prompts.state is not None:
        after = Prefix.load(prompts.state, net)
        records = [after.record(record.name, record.tokens) for record in records]
    if prompts.save_state is not None:
        after, tokens = replace(run_prefix(net, tokens[0], after), name=records[0].name), [b""]
        after.save(prompts.save_state, net)
    return records, tokens, after


def _kind(output: str) -> Format:
    if output == "-" and sys.stdout.isatty():
        return "text"
    kinds: dict[str, Format] = {".jsonl": "jsonl", ".txt": "text"}
    return kinds.get(Path(output).suffix.lower(), "fasta")


def _tag(text: str) -> bytes:
    """A phylogenetic tag as it stands before a sequence."""
    text = text.strip("|")
    if "__" not in text or "|" in text or not text.isascii():
        raise UsageError(f"--tag: expected a taxonomy such as d__Bacteria;p__Pseudomonadota;..., got {text!r}")
    return f"|{text}|".encode()


def _formatted(kind: Format, record: Record, sample: Sample, num_samples: int) -> bytes:
    name = record.name if num_samples == 1 else f"{record.name}_{sample.sample + 1}"
    tokens = bytes(sample.tokens)
    if kind == "text":
        return record.tokens + tokens + b"\n"
    if kind == "jsonl":
        line = {
            "name": record.name,
            "sample": sample.sample,
            "prompt": record.tagged.decode(),
            "continuation": tokens.decode("latin-1"),
            "ended": sample.ended,
            "mean_log_likelihood": sample.mean_logprob,
            "log_likelihoods": sample.logprobs,
        }
        return json.dumps(line).encode() + b"\n"
    sequence = record.tokens + tokens.rstrip(b"\0")
    wrapped = b"\n".join(sequence[i : i + 80] for i in range(0, len(sequence), 80))
    title = f"{name} tag={record.tag.decode()}" if record.tag else name
    return f">{title} mean_log_likelihood={sample.mean_logprob:.4f} ended={sample.ended}\n".encode() + wrapped + b"\n"
