"""How much of a slow network the overlapped strategies hide: an injected delay, measured against the plain strategies.

    python benchmarks/overlap.py

Processes exchange through gloo on one machine, which takes next to no time. Every message is then held back until the
moment it would have arrived over a serial link of some bandwidth: a wait that starts earlier returns earlier, and
computation before the wait is not slowed down, as with a network card. The bandwidth is such that what the plain
strategy sends forward takes as long as its forward pass: hiding all of it would make that twice as fast. One JSON line
for each pair of strategies: medians of the times of a Hyena-MR core.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from stripedhyena2.parallel import Layout, SplitOperators, Strategies
from stripedhyena2.parallel.comm import Communicator, Handle
from stripedhyena2.parallel.shards import Shards

PAIRS = [("p2p", "p2p-overlap"), ("a2a", "a2a-pipelined")]


class SlowLink(Communicator):
    """A communicator whose messages come and go one after the other, at `bandwidth` bytes a second either way."""

    bandwidth = float("inf")
    carried = 0
    free = 0.0

    def send_receive(self, sends, receives):
        handle = super().send_receive(sends, receives)
        return self._held_back(handle, *(sum(t.nbytes for t, _ in messages) for messages in (sends, receives)))

    def all_to_all(self, x):
        buffer, handle = super().all_to_all(x)
        others = x.nbytes // self.size * (self.size - 1)
        return buffer, self._held_back(handle, others, others)

    def _held_back(self, handle, out, back):
        self.carried += max(out, back)
        self.free = max(self.free, time.perf_counter()) + max(out, back) / self.bandwidth
        return _HeldBack(handle, self.free)


class _HeldBack(Handle):
    def __init__(self, handle, until):
        super().__init__(handle.works, handle.buffers)
        self.until = until

    def wait(self):
        super().wait()
        time.sleep(max(self.until - time.perf_counter(), 0))


def measure(rank, args, store, results):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=args.ranks)
    link = SlowLink()
    shards = Shards(Layout(args.layout, args.ranks, rank), link)
    g = torch.Generator().manual_seed(rank)
    u = torch.randn(1, args.length // args.ranks, 3 * args.width, generator=g, requires_grad=True)
    w, h = torch.randn(3 * args.width, 3, requires_grad=True), torch.randn(args.groups, 128, requires_grad=True)
    skip = torch.randn(args.width, requires_grad=True)
    for plain, overlapped in PAIRS:
        operators = {name: SplitOperators(shards, Strategies(fir=name)) for name in (plain, overlapped)}

        def step(name, operators=operators):
            """Seconds of the forward and of the backward pass, the slowest rank's, and the bytes of the first."""
            dist.barrier()
            carried, start = link.carried, time.perf_counter()
            y, _ = operators[name].hyena_mr(u, w, h, skip)
            forward, carried = time.perf_counter(), link.carried - carried
            dist.barrier()
            middle = time.perf_counter()
            y.sum().backward()
            figures = torch.tensor([forward - start, time.perf_counter() - middle, carried], dtype=torch.float64)
            dist.all_reduce(figures, op=dist.ReduceOp.MAX)
            return figures.tolist()

        def side_by_side(operators=operators):
            runs = [[step(name) for name in operators] for _ in range(args.repeats)]
            return {name: medians(times) for name, times in zip(operators, zip(*runs, strict=True), strict=True)}

        link.bandwidth = float("inf")
        side_by_side()
        fast = side_by_side()
        link.bandwidth = fast[plain][2] / fast[plain][0]
        slow = side_by_side()
        if rank == 0:
            results.put(json.dumps({"plain": plain, "overlapped": overlapped, **vars(args), **figures_of(fast, slow)}))
    dist.destroy_process_group()


def medians(times):
    return [statistics.median(column) for column in zip(*times, strict=True)]


def figures_of(fast, slow):
    """Milliseconds, the plain strategy's time over the overlapped one's, and the part of the delay that was hidden."""
    plain, overlapped = fast
    figures = {"link_MB_per_s": fast[plain][2] / fast[plain][0] / 1e6}
    for i, direction in enumerate(("forward", "backward")):
        added = {name: slow[name][i] - fast[name][i] for name in fast}
        figures[direction] = {
            "ms_without_delay": {name: 1e3 * times[i] for name, times in fast.items()},
            "ms_with_delay": {name: 1e3 * times[i] for name, times in slow.items()},
            "ratio": slow[plain][i] / slow[overlapped][i],
            "hidden": 1 - added[overlapped] / added[plain],
        }
    return json.loads(json.dumps(figures), parse_float=lambda x: round(float(x), 3))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--layout", default="zigzag")
    parser.add_argument("--length", type=int, default=32768, help="tokens of the whole sequence")
    parser.add_argument("--width", type=int, default=128, help="channels")
    parser.add_argument("--groups", type=int, default=16, help="filters")
    parser.add_argument("--repeats", type=int, default=9)
    args = parser.parse_args()
    results = mp.get_context("spawn").SimpleQueue()
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(measure, (args, str(Path(folder) / "store"), results), nprocs=args.ranks)
    for _ in PAIRS:
        print(results.get())


if __name__ == "__main__":
    main()
