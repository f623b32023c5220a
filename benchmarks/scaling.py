"""What context parallelism costs on machines that are not at hand: a model of bytes, latency, overlap and memory.

    python benchmarks/scaling.py                                   # the tables of docs/scaling.md
    python benchmarks/scaling.py --plot docs/images/scaling.png    # and its picture

The bytes and rounds are those of `context_parallel_cost.py`, which the tests compare with counted bytes at
1 to 8 processes. Everything else is a parameter of `Machine`: nothing here was measured on a GPU.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import context_parallel_cost as cost

from stripedhyena2 import Config, preset
from stripedhyena2.parallel import Layout

LENGTHS = [16_384, 131_072, 1_048_576]
GPUS = [8, 32, 128, 512, 2048]
MODELS = {"7B": "evo2_7b", "40B": "evo2_40b"}
STRATEGIES = {
    "fir": ["p2p", "p2p-overlap", "a2a", "a2a-pipelined"],
    "li": ["state", "a2a", "a2a-pipelined", "p2p-fft"],
    "attention": ["ring", "a2a"],
}
DEFAULTS = {"fir": "p2p-overlap", "li": "state", "attention": "ring"}
ALL_TO_ALL = {"fir": "a2a-pipelined", "li": "a2a-pipelined", "attention": "a2a"}
PIECES = 4


@dataclass(frozen=True)
class Machine:
    """GPUs in nodes of 8, and what they reach in practice: bytes, FLOP and seconds."""

    node: int = 8
    nvlink: float = 450e9
    infiniband: float = 50e9
    nvlink_latency: float = 5e-6
    infiniband_latency: float = 15e-6
    memory: float = 0.6 * 4.8e12
    dense: float = 400e12

    def travel(self, n_bytes: float, rounds: int, gpus: int) -> float:
        """Seconds that messages take between `gpus` GPUs, the slowest link on the way deciding."""
        inside = gpus <= self.node
        bandwidth, latency = (
            (self.nvlink, self.nvlink_latency) if inside else (self.infiniband, self.infiniband_latency)
        )
        return n_bytes / bandwidth + rounds * latency


@dataclass(frozen=True)
class Case:
    """A model, a length and a number of GPUs that share one sequence in bfloat16, zig-zag."""

    config: Config
    length: int
    gpus: int
    machine: Machine = Machine()

    @property
    def tokens(self) -> int:
        """Tokens of a GPU."""
        return self.length // self.gpus

    def impossible(self, kind: str, strategy: str) -> str | None:
        """Why a strategy cannot run, or None."""
        c, shard = self.config, self.tokens // 2
        if shard < c.featurizer_len + c.mr_len - 2:
            return "shards too short"
        groups = {"fir": min(c.se_groups, c.mr_groups), "li": c.d_model, "attention": c.n_heads}[kind]
        return "too few groups" if strategy.startswith("a2a") and groups % self.gpus else None

    def cost(self, kind: str, strategy: str) -> cost.Cost:
        """Of one layer forward, for a rank in the middle, which sends the most; `fir` is the longer filter, MR."""
        c, layout = self.config, Layout("zigzag", self.gpus, self.gpus // 2)
        x = cost.Sequences(1, self.length, c.d_model, 2)
        if kind == "fir":
            return cost.fir(strategy, layout, x, c.mr_len, c.featurizer_len)
        if kind == "li":
            return cost.li(strategy, layout, x, c.n_modes, c.featurizer_len)
        if strategy == "a2a":
            return cost.attention(strategy, layout, x)
        # as cost.attention, whose walk round the ring is long for thousands of ranks
        return cost.Cost((self.gpus - 1) * 2 * self.tokens * c.d_model * 2, self.gpus - 1)

    def operator(self, kind: str) -> float:
        """Seconds that the operator itself computes: cores at the memory's speed, attention at the products'."""
        c = self.config
        if kind == "attention":
            return 2 * c.d_model * self.length * self.tokens / self.machine.dense
        return 8 * c.d_model * self.tokens / self.machine.memory

    def exposed(self, kind: str, strategy: str) -> float:
        """Seconds of a layer's forward pass in which its operator waits."""
        sent, compute = self.cost(kind, strategy), self.operator(kind)
        travel = self.machine.travel(sent.bytes, sent.rounds, self.gpus)
        if strategy in ("p2p-overlap", "ring"):
            return max(travel - compute, 0.0)
        if strategy == "a2a-pipelined":  # the first piece's way there and the last one's way back are seen
            return travel / PIECES + max(travel * (1 - 1 / PIECES) - compute, 0.0)
        return travel

    def computing(self) -> float:
        """Seconds of the whole model's forward pass, without communication."""
        c, layers = self.config, self.layers()
        weights = c.n_layers * (4 * c.d_model**2 + 3 * c.d_model * c.d_mlp) + c.d_model * c.vocab_size
        dense = 2 * weights * self.tokens / self.machine.dense
        return dense + sum(n * self.operator(kind) for kind, n in layers.items())

    def layers(self) -> dict[str, int]:
        layout = self.config.layout
        return {"fir": layout.count("S") + layout.count("D"), "li": layout.count("H"), "attention": layout.count("*")}

    def slowdown(self, strategies: dict[str, str]) -> float | None:
        """Exposed communication of a forward pass over its computation; None where a strategy cannot run."""
        if any(self.impossible(kind, strategy) for kind, strategy in strategies.items()):
            return None
        exposed = sum(n * self.exposed(kind, strategies[kind]) for kind, n in self.layers().items())
        return exposed / self.computing()

    def best(self) -> dict[str, str]:
        """For each kind of operator, of the strategies that can run the one that waits least."""
        able = {kind: [s for s in names if not self.impossible(kind, s)] for kind, names in STRATEGIES.items()}
        kinds = {kind: names for kind, names in able.items() if names}
        return DEFAULTS | {kind: min(names, key=lambda s: self.exposed(kind, s)) for kind, names in kinds.items()}

    def activations(self) -> float:
        """Bytes of activations that training keeps a GPU: every block's input, and one block's insides."""
        c = self.config
        inside = 3 * c.d_model + 3 * c.d_model + 4 * c.d_model + 3 * c.d_mlp
        return 2 * self.tokens * (c.n_layers * c.d_model + inside) + 4 * self.tokens * c.vocab_size


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def strategies_table(model: str, length: int) -> str:
    """Bytes, rounds and exposed time of a layer by strategy, in a node and over eight."""
    config, rows = preset(MODELS[model]), []
    for kind, names in STRATEGIES.items():
        for strategy in names:
            cells = [f"{ {'fir': 'MR', 'li': 'LI', 'attention': 'attention'}[kind] }, `{strategy}`"]
            for gpus in (8, 64):
                case = Case(config, length, gpus)
                if reason := case.impossible(kind, strategy):
                    cells += [reason, "", ""]
                    continue
                sent = case.cost(kind, strategy)
                cells += [
                    f"{sent.bytes / 1e6:,.1f}",
                    str(sent.rounds),
                    f"{1e3 * case.exposed(kind, strategy):,.3f}",
                ]
            rows.append(cells)
    head = ["", "8 GPUs: MB", "rounds", "exposed ms", "64 GPUs: MB", "rounds", "exposed ms"]
    return table(head, rows)


def slowdown_table(model: str) -> str:
    """Exposed communication as a percentage of computation: the defaults, and all-to-all where it can run."""
    config, rows = preset(MODELS[model]), []
    for length in LENGTHS:
        cases = [Case(config, length, gpus) for gpus in GPUS]
        for name, choose in (
            ("defaults", lambda case: DEFAULTS),
            ("`a2a` for all", lambda case: ALL_TO_ALL),
            ("the best of each", Case.best),
        ):
            shares = [case.slowdown(choose(case)) for case in cases]
            rows.append([f"{length:,}, {name}", *("-" if s is None else f"{100 * s:.1f} %" for s in shares)])
    return table([f"{model}: tokens", *(f"{gpus} GPUs" for gpus in GPUS)], rows)


def memory_table() -> str:
    """GB of activations a GPU, with every block recomputed in the backward pass."""
    rows = []
    for model, name in MODELS.items():
        for length in LENGTHS:
            cases = [Case(preset(name), length, gpus) for gpus in (1, *GPUS)]
            cells = ["-" if case.impossible("fir", "p2p") else f"{case.activations() / 1e9:,.2f}" for case in cases]
            rows.append([f"{model}, {length:,}", *cells])
    return table(["GB of activations", "1 GPU", *(f"{gpus} GPUs" for gpus in GPUS)], rows)


def crossovers(model: str) -> list[tuple[str, int, int]]:
    """What, on how many GPUs, and from which length on (a power of two)."""
    config, found = preset(MODELS[model]), []
    lengths = [1 << p for p in range(12, 25)]

    def first(what: str, gpus: int, holds) -> None:
        for length in lengths:
            case = Case(config, length, gpus)
            if case.tokens // 2 >= config.mr_len + 1 and holds(case):
                found.append((what, gpus, length))
                return

    for gpus in (8, 32):
        first(
            "LI: `state` sends less than `a2a`",
            gpus,
            lambda c: c.cost("li", "state").bytes < c.cost("li", "a2a").bytes,
        )
        first(
            "LI: `state` waits less than `a2a-pipelined`",
            gpus,
            lambda c: c.exposed("li", "state") < c.exposed("li", "a2a-pipelined"),
        )
        first(
            "FIR: `p2p` sends less than `a2a`",
            gpus,
            lambda c: c.cost("fir", "p2p").bytes < c.cost("fir", "a2a").bytes,
        )
        first("attention: `ring` hides all its transfers", gpus, lambda c: c.exposed("attention", "ring") == 0)
        first(
            "attention: `ring` waits less than `a2a`",
            gpus,
            lambda c: c.exposed("attention", "ring") < c.exposed("attention", "a2a"),
        )
    return found


def crossover_table(model: str) -> str:
    rows = [[what, str(gpus), f"{length:,}"] for what, gpus, length in crossovers(model)]
    return table([model, "GPUs", "from this many tokens on"], rows)


def tables() -> list[str]:
    """Every table of docs/scaling.md."""
    made = [strategies_table("7B", 1_048_576)]
    made += [slowdown_table(model) for model in MODELS]
    made += [crossover_table(model) for model in MODELS]
    return [*made, memory_table()]


def plot(path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), constrained_layout=True)
    config = preset(MODELS["7B"])
    lengths = [1 << p for p in range(13, 21)]
    for strategy in ("state", "a2a", "p2p-fft"):
        left.plot(
            lengths, [Case(config, n, 8).cost("li", strategy).bytes / 1e6 for n in lengths], label=f"LI {strategy}"
        )
    for strategy, kind in (("p2p", "fir"), ("ring", "attention")):
        sent = [Case(config, n, 8).cost(kind, strategy).bytes / 1e6 for n in lengths]
        left.plot(lengths, sent, linestyle="--", label=f"{'MR' if kind == 'fir' else 'attention'} {strategy}")
    left.set(xscale="log", yscale="log", xlabel="tokens", ylabel="MB sent a GPU, one layer forward", title="7B, 8 GPUs")
    left.set_xticks([1 << p for p in range(13, 21)], [f"{1 << (p - 10)}K" for p in range(13, 21)])
    left.minorticks_off()
    left.legend(frameon=False)
    for length, colour in zip(LENGTHS, ("tab:blue", "tab:orange", "tab:green"), strict=True):
        for strategies, style, name in ((DEFAULTS, "-", "defaults"), (ALL_TO_ALL, ":", "a2a for all")):
            shares = [(gpus, Case(config, length, gpus).slowdown(strategies)) for gpus in GPUS]
            points = [(gpus, 100 * share) for gpus, share in shares if share is not None]
            if points:
                label = f"{length // 1024}K, {name}"
                right.plot(*zip(*points, strict=True), style, marker="o", color=colour, label=label)
    right.set(xscale="log", yscale="log", xlabel="GPUs that share a sequence", title="7B, forward pass")
    right.set_ylabel("exposed communication, % of computation")
    right.set_xticks(GPUS, [str(gpus) for gpus in GPUS])
    right.minorticks_off()
    right.legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plot", type=Path)
    args = parser.parse_args()
    print("\n\n".join(tables()))
    if args.plot:
        plot(args.plot)


if __name__ == "__main__":
    main()
